"""The repair of overconfidence: the best confidence that one linear head can give, chosen and judged on held-out data, or none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit

from trueup import guard
from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput, Unsupported
from trueup.faults import loading
from trueup.faults.fault import NoRemedy
from trueup.faults.overconfidence import platt
from trueup.faults.overconfidence.abstention import certificates, one_each, promise
from trueup.faults.overconfidence.audit import FEWEST, FEWEST_ERRORS
from trueup.faults.overconfidence.candidates import FAMILIES, RESPONSE, Choice, Evidence, Part, choose
from trueup.faults.overconfidence.confidence_head import ConfidenceHead, confidence_head, with_rows
from trueup.faults.overconfidence.forecast import share
from trueup.measure import bootstrap
from trueup.measure.calibration import fit_temperature
from trueup.measure.confidence_scores import Calibrated, ResponseLogOdds
from trueup.measure.folds import folds as spread
from trueup.run import ensemble
from trueup.run.predict import outputs, predict, session
from trueup.subject.subject import Head, Subject

TAUGHT = 5_000
"""The most training examples from which heads and densities learn: each costs a forward pass. If there are more, they are divided
into equal parts of at most this size, and one is used.

On a LoRA of MiniLM with 5,400 training and 1,800 test examples (film reviews), a quarter of the training examples changed the
error ROC-AUC of no score by more than 0.003, and no Brier loss by more than 0.5% of it."""
TEMPERATURE = "temperature"
"""The key of the confidence of `drop_in` on the card."""


def repair(
    subject: Subject, corpus: Corpus, *, folds: int, members: int, passes: int, resamples: int, delta: float, seed: int
) -> ConfidenceHead | NoRemedy:
    """Learn and choose on ``calibration`` (and, for the published heads, on ``train``). The ``test`` split is not used.

    Two thirds of the calibration clusters choose. Every family is scored out of fold, and the best by point estimate is learnt from
    them and calibrated (Platt scaling of its out-of-fold scores). The choice is judged on examples that did not choose it: in each
    fold the choice of the other folds, and on the last third the final choice. All enter one interval by clusters.

    The repair is the best head, if the whole interval of the Brier loss that it saves beyond the recalibrated softmax response is
    above 0. Otherwise it is the recalibrated response, if the whole interval of the loss that this saves is above 0. Otherwise
    there is none. The last third also certifies abstention thresholds for the score that was fixed before. They are reported only
    if the score passes this judgement, which can only lower the probability that a false one is reported.

    Raises:
        BadInput: fewer than 20 calibration examples.
    """
    corpus = corpus.relabel(subject.classes)
    split = split_calibration(subject, corpus, folds=folds, seed=seed)
    if isinstance(split, NoRemedy):
        return split
    several = opinions(subject, corpus, split.choosing.rows, members=members, passes=passes, seed=seed)
    choice = choose(evidence(subject, corpus, split, several, seed=seed), FAMILIES)
    stated, recalibrated, best = contenders(subject, split, choice)
    losses = [stated.loss, recalibrated.loss, best.loss]
    saved = judge(losses, split.error, split.cluster, resamples=resamples, seed=seed)
    winner = best if saved.best_is_better else recalibrated if saved.recalibration.low > 0 else None
    reason = _reason(choice, saved, winner)
    facts: dict[str, Any] = {"candidates": choice.table, "saved": asdict(saved)}
    if winner is None:
        return NoRemedy(reason, facts)
    abstention = certify(subject, split, winner, delta=delta, seed=seed)
    return tell(subject, corpus, split, winner, abstention, reason, facts, delta=delta, seed=seed)


def drop_in(
    subject: Subject, corpus: Corpus, *, folds: int, resamples: int, delta: float, seed: int
) -> ConfidenceHead | NoRemedy:
    """A repair that keeps the classifier's C outputs: one temperature (Guo et al. 2017, arXiv 1706.04599) written into the last
    layer, so that any code that takes the softmax of the logits gets the confidence. It does without an extra output.

    The temperature is learnt on two thirds of the calibration clusters. It is judged in each fold with the temperature of the other
    folds, and on the last third with that of all folds, in one interval by clusters. It is the repair if the interval is above 0.

    Raises:
        BadInput: fewer than 20 calibration examples.
    """
    corpus = corpus.relabel(subject.classes)
    split = split_calibration(subject, corpus, folds=folds, seed=seed)
    if isinstance(split, NoRemedy):
        return split
    temperature = fit_temperature(split.choosing.part.z, split.choosing.part.label)
    stated, tempered = as_it_is(subject, split), divided_by(temperature, subject, split)
    losses = [stated.loss, tempered.loss, tempered.loss]
    saved = judge(losses, split.error, split.cluster, resamples=resamples, seed=seed).whole
    gain = f"saves {_percent(saved)} of the Brier loss of the softmax response, on calibration examples that did not teach it"
    facts: dict[str, Any] = {"saved": {"whole": asdict(saved)}, "temperature": temperature}
    if not saved.low > 0:
        return NoRemedy(
            f"One temperature for all logits is not measurably better than the softmax response: it {gain}.", facts
        )
    reason = (
        f"Divides the logits by a temperature of {temperature:.4g}, which {gain}. The outputs and the predicted classes are those "
        "of the model."
    )
    abstention = certify(subject, split, tempered, delta=delta, seed=seed)
    return tell(subject, corpus, split, tempered, abstention, reason, facts, delta=delta, seed=seed)


# ------------------------------------------------------------------------------------------------------------------ split


@dataclass(frozen=True, eq=False)
class Side:
    """n calibration examples: their `rows` in the corpus (n,), the outputs of the classifier, and the `cluster` of each (n,)."""

    rows: np.ndarray
    part: Part
    cluster: np.ndarray

    @property
    def clusters(self) -> int:
        return len(np.unique(self.cluster))


@dataclass(frozen=True, eq=False)
class Split:
    """The calibration examples, split by clusters: two thirds choose, and the last third judges and certifies.

    Attributes:
        fold: (n,) cross-fitting folds of the examples that choose.
    """

    choosing: Side
    judging: Side
    fold: np.ndarray

    @property
    def cluster(self) -> np.ndarray:
        """(n + m,) the clusters of all examples, those that choose first."""
        return np.concatenate([self.choosing.cluster, self.judging.cluster])

    @property
    def error(self) -> np.ndarray:
        """(n + m,) whether the predictions of all examples are wrong, those that choose first."""
        return np.concatenate([self.choosing.part.error, self.judging.part.error])


def split_calibration(subject: Subject, corpus: Corpus, *, folds: int, seed: int) -> Split | NoRemedy:
    """The two sides of the calibration examples, or the reason why nothing can be learnt from them.

    Raises:
        BadInput: fewer than 20 calibration examples.
    """
    rows = np.flatnonzero(corpus.split == "calibration")
    held = corpus.take(rows)
    if len(held) < FEWEST:
        raise BadInput(
            f"'{corpus.name}' has {len(held)} calibration examples; a repair needs at least {FEWEST}. "
            "Give more rows, or a split column that sets some aside as 'calibration'."
        )
    if subject.head is not None:
        return NoRemedy("The subject already carries a confidence head; repair the adapter it was made from.")
    part, seeds = part_of(subject, held), _seeds(seed)
    if part.error.sum() < FEWEST_ERRORS or (~part.error).sum() < FEWEST_ERRORS:
        return NoRemedy(
            f"Only {int(part.error.sum())} errors among {len(held)} calibration examples: too few to learn from."
        )
    is_judging = spread(part.error, 3, seed=seeds.split, cluster=held.cluster) == 0
    choosing, judging = (
        Side(rows[mask], part.take(np.flatnonzero(mask)), held.cluster[mask]) for mask in (~is_judging, is_judging)
    )
    error = choosing.part.error
    if min(error.sum(), (~error).sum()) < 2:
        return NoRemedy(f"The errors among {len(held)} calibration examples lie in too few clusters to learn from.")
    return Split(choosing, judging, spread(error, folds, seed=seeds.folds, cluster=choosing.cluster))


def part_of(subject: Subject, corpus: Corpus) -> Part:
    """The outputs of the classifier on a corpus."""
    out = predict(subject, corpus)
    return Part(out.features.astype(np.float64), out.logits[:, : len(subject.classes)].astype(np.float64), corpus.label)


class _Seeds(NamedTuple):
    """One seed for each random step."""

    split: int
    committee: int
    folds: int
    heads: int
    dropout: int
    taught: int


def _seeds(seed: int) -> _Seeds:
    streams = np.random.SeedSequence([seed, 4]).spawn(len(_Seeds._fields))
    return _Seeds(*(int(s.generate_state(1)[0]) for s in streams))


# ----------------------------------------------------------------------------------------------------------------- choose

Opinions = Mapping[str, np.ndarray | None]
"""The mean class probabilities (n, C) of an ensemble and of passes with dropout, by their names in `Evidence`; None if not
computed."""


def opinions(subject: Subject, corpus: Corpus, rows: np.ndarray, *, members: int, passes: int, seed: int) -> Opinions:
    """The mean class probabilities of an ensemble of `members` and of `passes` with dropout, for the examples at `rows`. A note
    says why one is missing."""
    examples, tuned_on, seeds = corpus.take(rows), corpus.take(corpus.split == "train"), _seeds(seed)
    scores: dict[str, np.ndarray | None] = {"committee": None, "dropped": None}
    if members and not len(tuned_on):
        session().note(
            f"No ensemble was tried, because '{corpus.name}' holds no training examples for its {members} members. Give the data "
            "that the adapter was tuned on, with a split column that calls them 'train'."
        )
    elif members:
        try:
            scores["committee"] = ensemble.committee(subject, tuned_on, examples, members=members, seed=seeds.committee)
        except Unsupported as e:
            session().note(f"No ensemble was tried. {e}")
    if passes:
        try:
            scores["dropped"] = ensemble.dropped(subject, examples, passes=passes, seed=seeds.dropout)
        except Unsupported as e:
            session().note(f"MC dropout was not tried. {e}")
    return scores


def evidence(subject: Subject, corpus: Corpus, split: Split, several: Opinions, *, seed: int) -> Evidence:
    """The data from which the families learn: at most `TAUGHT` training examples, the examples that choose, and the probabilities
    `several` for these."""
    tuned_on, seeds = corpus.take(corpus.split == "train"), _seeds(seed)
    parts = math.ceil(len(tuned_on) / TAUGHT)
    if parts > 1:
        tuned_on = tuned_on.take(spread(tuned_on.label, parts, seed=seeds.taught, cluster=tuned_on.cluster) == 0)
    return Evidence(
        train=part_of(subject, tuned_on) if len(tuned_on) else None,
        held=split.choosing.part,
        head=subject.own_head(),
        biased=subject.template is None and subject.head_layer().bias is not None,
        fold=split.fold,
        seed=seeds.heads,
        **several,
    )


@dataclass(frozen=True, eq=False)
class Confidence:
    """A confidence, fixed by the examples that choose.

    Attributes:
        key: its name on the card. head: (K, d) the last layer. score: computes the confidence from its K logits.
        crossed: (n,) its values on the examples that choose, out of fold if it learnt from them.
        loss: (n + m,) its Brier losses on examples that did not teach it: on the n that choose, out of fold and chosen anew by the
            other folds, and on the m that judge.
    """

    key: str
    head: Head
    score: Calibrated
    crossed: np.ndarray
    loss: np.ndarray


def contenders(subject: Subject, split: Split, choice: Choice) -> tuple[Confidence, Confidence, Confidence]:
    """The softmax response as it is, the recalibrated response, and the best of all heads and scores."""
    choosing, judging = split.choosing.part, split.judging.part
    response, class_head = ResponseLogOdds(len(subject.classes)), with_rows(subject, None)
    odds = response(choosing.z)
    plain = Calibrated(response, *platt.platt(odds, ~choosing.error))
    best = Calibrated(choice.learnt.score, choice.slope, choice.intercept)
    return (
        as_it_is(subject, split),
        Confidence(
            RESPONSE.key, class_head, plain, expit(plain.slope * odds + plain.intercept),
            np.concatenate([choice.recalibrated, _brier(plain(judging.z), judging)]),
        ),
        Confidence(
            choice.key, with_rows(subject, choice.learnt.extra), best, expit(best.slope * choice.crossed + best.intercept),
            np.concatenate([choice.chosen, _brier(best(choice.learnt.logits(judging)), judging)]),
        ),
    )  # fmt: skip


def as_it_is(subject: Subject, split: Split) -> Confidence:
    """The softmax response as it is."""
    choosing, judging = split.choosing.part, split.judging.part
    score = Calibrated(ResponseLogOdds(len(subject.classes)), 1.0, 0.0)
    loss = np.concatenate([_brier(score(p.z), p) for p in (choosing, judging)])
    return Confidence(RESPONSE.key, with_rows(subject, None), score, score(choosing.z), loss)


def divided_by(temperature: float, subject: Subject, split: Split) -> Confidence:
    """The softmax response of logits divided by `temperature`, which was fitted on all examples that choose."""
    choosing, judging = split.choosing.part, split.judging.part
    score, class_head = Calibrated(ResponseLogOdds(len(subject.classes)), 1.0, 0.0), with_rows(subject, None)
    crossed = np.empty(len(choosing.label))
    for k in np.unique(split.fold):
        out = split.fold == k
        crossed[out] = score(choosing.z[out] / fit_temperature(choosing.z[~out], choosing.label[~out]))
    loss = np.concatenate([_brier(crossed, choosing), _brier(score(judging.z / temperature), judging)])
    return Confidence(
        TEMPERATURE, Head(class_head.weight / temperature, class_head.bias / temperature), score, crossed, loss
    )


def _brier(confidence: np.ndarray, part: Part) -> np.ndarray:
    return np.square(confidence - ~part.error)


# ------------------------------------------------------------------------------------------------------------------ judge


@dataclass(frozen=True)
class Saved:
    """Shares of the Brier loss of the softmax response that are saved, with intervals by clusters: by recalibration, by the best
    score beyond recalibration, and by the best score in all. Higher is better."""

    recalibration: bootstrap.Estimate
    beyond: bootstrap.Estimate
    whole: bootstrap.Estimate

    @property
    def best_is_better(self) -> bool:
        """Whether the best score saves loss, and more than recalibration does: both intervals lie above 0."""
        return self.beyond.low > 0 and self.whole.low > 0


def judge(losses: Sequence[np.ndarray], error: np.ndarray, cluster: np.ndarray, *, resamples: int, seed: int) -> Saved:
    """The shares of loss that are saved. `losses` are three columns (n,): those of the softmax response as it is, of the
    recalibrated response, and of the best score. `error`: (n,) the prediction is wrong."""
    pairs = {"recalibration": (0, 1), "beyond": (1, 2), "whole": (0, 2)}
    statistics = {k: bootstrap.Means(share, before, after, 0) for k, (before, after) in pairs.items()}
    estimates = bootstrap.interval_many(
        statistics, *losses, seed=seed, resamples=resamples, rare=error, cluster=cluster
    )
    return Saved(**estimates)


# ---------------------------------------------------------------------------------------------------------------- certify


def certify(subject: Subject, split: Split, winner: Confidence, *, delta: float, seed: int) -> list[dict[str, Any]]:
    """Abstention thresholds, tested on the confidences of the saved adapter on the examples that judge, computed in its own float
    type."""
    judging = split.judging
    repaired = replace(subject, head=winner.head, confidence=winner.score)
    confidence = outputs(repaired, judging.part.x.astype(np.float32)).confidence
    return certificates(
        winner.crossed, split.choosing.part.error, confidence, judging.part.error, judging.cluster, delta, seed
    )


# ------------------------------------------------------------------------------------------------------------------- tell


def tell(
    subject: Subject, corpus: Corpus, split: Split, winner: Confidence, abstention: list[dict[str, Any]], reason: str,
    facts: dict[str, Any], *, delta: float, seed: int,
) -> ConfidenceHead | NoRemedy:  # fmt: skip
    """The remedy with its card and its guard, or the reason why no adapter can hold it. `facts`: what was tried, for both cases."""
    sides = {"chosen on": split.choosing, "certified on": split.judging}
    card = loading.facts(subject) | facts | {
        "describe": reason, "promise": promise(abstention, delta), "abstention": abstention, "chosen": winner.key,
        "delta": delta, "seed": seed, "pair": corpus.second is not None,
        "examples": {k: len(s.rows) for k, s in sides.items()} | {"train": int((corpus.split == "train").sum())},
        "clusters": {k: s.clusters for k, s in sides.items()},
    }  # fmt: skip
    if winner.key == TEMPERATURE:
        card["drop in"] = True
    try:
        return guarded(confidence_head(subject, winner.head, winner.score, card), split, seed)
    except Unsupported as e:
        return NoRemedy(str(e), facts)


def guarded(remedy: ConfidenceHead, split: Split, seed: int) -> ConfidenceHead:
    """The repair with the arrays that `trueup.Guard` reads: the distribution of the examples that chose, and the distances of one
    judging example of each cluster."""
    weight, bias = (t.double().cpu().numpy() for t in (remedy.head.weight, remedy.head.bias))
    judging = split.judging
    judging_features = judging.part.x[one_each(judging.cluster, seed)]
    try:
        arrays = guard.arrays_of(
            remedy.classes,
            remedy.score,
            remedy.card["abstention"],
            weight,
            bias,
            split.choosing.part.x,
            judging_features,
        )
    except BadInput as why:
        session().note(f"The repair of overconfidence comes without a guard: {why}")
        return remedy
    return replace(remedy, guard=arrays)


def _reason(choice: Choice, saved: Saved, winner: Confidence | None) -> str:
    """Sentences that say which repair there is and why, or why there is none."""
    recalibration, beyond = _percent(saved.recalibration), _percent(saved.beyond)
    tried = sum(r["saveable"] for r in choice.table) - 1
    if winner is None:
        return (
            f"Nothing that was tried is measurably better than the softmax response. On calibration examples that were not "
            f"used for choosing, recalibration saves {recalibration} of its Brier loss, and the best of {tried} heads and scores "
            f"{beyond} more."
        )
    if winner.key == RESPONSE.key:
        return (
            f"Keeps the softmax ranking and recalibrates it, which saves {recalibration} of its Brier loss on "
            f"calibration examples that were not used to learn it. The best of {tried} heads and scores saves {beyond} more, on "
            "examples that were not used to choose it."
        )
    return (
        f"The confidence is read from another score: {choice.title}. It saves {_percent(saved.whole)} of the Brier loss of the "
        f"softmax response, and {beyond} more than recalibration, on calibration examples that were not used to choose it. "
        "Predicted classes are unchanged."
    )


def _percent(e: bootstrap.Estimate) -> str:
    return f"{e.value:.1%} [{e.low:.1%}, {e.high:.1%}]"
