"""Finding -> Remedy: the best confidence that one linear head can give, chosen and judged on held-out data, or none."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from scipy.stats import binom
from torch import Tensor

from trueup import guard
from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput, Unsupported
from trueup.faults import loading, predict_script
from trueup.faults.card import Card, page
from trueup.faults.fault import Comparison, Difference, Method, NoRemedy, Remedy, as_differences
from trueup.faults.overconfidence import platt
from trueup.faults.overconfidence.audit import FEWEST, FEWEST_ERRORS
from trueup.faults.overconfidence.candidates import FAMILIES, RESPONSE, Evidence, Part, choose
from trueup.faults.overconfidence.forecast import share
from trueup.measure import bootstrap, confidence_scores
from trueup.measure.calibration import fit_temperature
from trueup.measure.confidence_scores import score_from_json, score_to_json
from trueup.measure.folds import folds as spread
from trueup.measure.selective import certified_threshold, error_auc
from trueup.run import ensemble
from trueup.run.predict import outputs, predict, session
from trueup.store import atomic
from trueup.subject import adapter as files
from trueup.subject.subject import Head, Subject, model_fingerprint

CERTIFIED = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Risks for which an abstention threshold is sought."""


@dataclass(frozen=True, eq=False)
class ConfidenceHead(Remedy):
    """The classifier with further rows in its last layer: the first C logits are its own, bit for bit.

    Attributes:
        head: (K, d) rows and biases, the classifier's own C first.
        score: reads a confidence out of the K logits. classes: C names.
        made_for: fingerprint of the model it was made for.
        settings, tensors: the PEFT adapter it is saved as.
        card: what is written beside it: choice, candidates, abstention thresholds, how to load it.
        tokenizer: the subject's, where it is not the base's own: it is saved with the adapter.
        guard: what `trueup.Guard` reads, by name; empty where nothing was learnt.
    """

    head: Head
    score: confidence_scores.Calibrated
    classes: tuple[str, ...]
    made_for: str
    settings: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    card: Mapping[str, Any]
    tokenizer: Any = None
    guard: Mapping[str, np.ndarray] = field(default_factory=dict)

    @contextlib.contextmanager
    def on(self, subject: Subject) -> Iterator[Subject]:
        if model_fingerprint(subject.model) != self.made_for:
            raise BadInput(
                "This confidence head was made for another model or adapter (weights or settings differ). Load the adapter it was "
                "made for, or repair this one: `trueup repair overconfidence MODEL --adapter DIR --data ...`."
            )
        yield replace(subject, head=self.head, confidence=self.score)

    def save(self, folder: Path, comparison: Comparison | None = None) -> Path:
        folder = Path(folder)
        told = self
        if comparison is not None and not comparison.gained:  # what is kept without a gain carries no certificate
            told = replace(self, card={k: v for k, v in self.card.items() if k not in ("promise", "abstention")})
        with atomic.new_folder(folder, force=folder.exists()) as new:
            files.write_adapter(new, self.settings, self.tensors, self.tokenizer)
            card = dict(told.card) | {
                "made_for": self.made_for, "classes": list(self.classes), "rows": len(self.head.weight),
                "score": score_to_json(self.score),
            }  # fmt: skip
            atomic.write_json(new / files.CARD, card)
            if self.guard:
                np.savez(new / guard.FILE, allow_pickle=False, **self.guard)
            atomic.write_text(new / "README.md", page(_card(told), comparison))
            load, inputs, read = _lines(self)
            text = predict_script.script(self.card, self.classes, load=load, inputs=inputs, read=read)
            atomic.write_text(new / predict_script.NAME, text)
        return folder

    def usage(self, folder: str) -> str:
        return predict_script.usage(folder, self.card)

    def describe(self) -> str:
        return f"{self.card['describe']} {self.card.get('promise', '')}".rstrip()


def read_remedy(folder: Path, subject: Subject) -> ConfidenceHead:
    """The remedy that `ConfidenceHead.save` wrote.

    Raises:
        BadInput: the folder holds no confidence head, or is damaged.
    """
    folder = Path(folder)
    card = files.read_card(folder)
    if "score" not in card or "made_for" not in card:
        raise BadInput(f"'{folder}' holds no confidence head saved by trueup; give the folder of a saved remedy.")
    atomic.verify(folder)
    settings, tensors = files.read_settings(folder), files.read_tensors(folder)
    rest = {k: v for k, v in card.items() if k not in ("made_for", "classes", "rows", "score")}
    return ConfidenceHead(
        files.head_in(tensors, subject.anatomy),
        score_from_json(card["score"]),
        tuple(card["classes"]),
        card["made_for"],
        settings,
        tensors,
        rest,
        files.brought(subject),
        _arrays_in(folder / guard.FILE),
    )


def _arrays_in(file: Path) -> dict[str, np.ndarray]:
    if not file.is_file():
        return {}
    with np.load(file, allow_pickle=False) as held:
        return {k: held[k] for k in held.files}


def null_remedy(subject: Subject) -> ConfidenceHead:
    """The head as it is, read by the softmax response: changes no prediction and no confidence."""
    c, card = len(subject.classes), loading.facts(subject) | {"describe": "Changes nothing."}
    # sigmoid(log-odds of SR) is SR itself: the identity, in the form every remedy has.
    return _remedy(subject, None, confidence_scores.Calibrated(confidence_scores.ResponseLogOdds(c), 1.0, 0.0), card)


@dataclass(frozen=True, eq=False)
class _Gathered:
    """What a repair learns from, and what it is judged by.

    Attributes:
        evidence: of the calibration examples that choose. rest, cluster: those that judge, and the clusters of all, where `last`
            (n,) says which are which. tuned_on: training examples. streams: seeds of what is drawn.
        there: by the name in `Evidence`, what several opinions (an ensemble, dropout) say of further examples.
    """

    evidence: Evidence
    rest: Part
    cluster: np.ndarray
    last: np.ndarray
    tuned_on: int
    there: Mapping[str, np.ndarray | None]


def _gathered(
    subject: Subject, corpus: Corpus, *, folds: int, members: int, passes: int, seed: int, further: np.ndarray | None = None
) -> _Gathered | NoRemedy:  # fmt: skip
    """Two thirds of the calibration clusters as evidence, the last third apart. `further`: rows of `corpus` on which several
    opinions are asked for as well."""
    rows = np.flatnonzero(corpus.split == "calibration")
    held = corpus.take(rows)
    if len(held) < FEWEST:
        raise BadInput(
            f"'{corpus.name}' has {len(held)} calibration examples; a repair needs at least {FEWEST}. "
            "Give more rows, or a split column that sets some aside as 'calibration'."
        )
    if subject.head is not None:
        return NoRemedy("The subject already carries a confidence head; repair the adapter it was made from.")
    own = subject.own_head()
    part = _part(subject, held)
    if part.error.sum() < FEWEST_ERRORS or (~part.error).sum() < FEWEST_ERRORS:
        return NoRemedy(
            f"Only {int(part.error.sum())} errors among {len(held)} calibration examples: too few to learn from."
        )
    streams = [int(s.generate_state(1)[0]) for s in np.random.SeedSequence([seed, 4]).spawn(5)]
    last = spread(part.error, 3, seed=streams[0], cluster=held.cluster) == 0
    first, rest, cluster = part.take(np.flatnonzero(~last)), part.take(np.flatnonzero(last)), held.cluster
    if min(first.error.sum(), (~first.error).sum()) < 2:
        return NoRemedy(f"The errors among {len(held)} calibration examples lie in too few clusters to learn from.")
    tuned_on = corpus.take(corpus.split == "train")
    asked = corpus.take(np.concatenate([rows[~last], np.zeros(0, np.int64) if further is None else further]))
    opinions: dict[str, np.ndarray | None] = {"committee": None, "dropped": None}
    if members and not len(tuned_on):
        session().note(
            f"No ensemble was tried, because '{corpus.name}' holds no training examples for its {members} members. Give the data "
            "that the adapter was tuned on, with a split column that calls them 'train'."
        )
    elif members:
        try:
            opinions["committee"] = ensemble.committee(subject, tuned_on, asked, members=members, seed=streams[1])
        except Unsupported as e:
            session().note(f"No ensemble was tried. {e}")
    if passes:
        try:
            opinions["dropped"] = ensemble.dropped(subject, asked, passes=passes, seed=streams[4])
        except Unsupported as e:
            session().note(f"MC dropout was not tried. {e}")
    n, biased = int((~last).sum()), subject.template is None and subject.head_layer().bias is not None
    evidence = Evidence(
        train=_part(subject, tuned_on) if len(tuned_on) else None, held=first, head=own, biased=biased,
        fold=spread(first.error, folds, seed=streams[2], cluster=cluster[~last]), seed=streams[3],
        **{k: None if o is None else o[:n] for k, o in opinions.items()},
    )  # fmt: skip
    there = {k: None if o is None else o[n:] for k, o in opinions.items()}
    return _Gathered(evidence, rest, cluster, last, len(tuned_on), there)


def repair(
    subject: Subject, corpus: Corpus, *, folds: int, members: int, passes: int, resamples: int, delta: float, seed: int
) -> ConfidenceHead | NoRemedy:
    """Learn and choose on ``calibration`` (and, for the published heads, on ``train``); never looks at ``test``.

    Two thirds of the calibration clusters choose: every family is scored out of fold, and the best of all by point estimate is
    learnt from them and calibrated (Platt, on its out-of-fold scores). It is judged on examples that chose nothing: in each
    fold by what the other folds choose, and on the last third as it stands, all in one interval by clusters. A head that saves
    Brier loss beyond the recalibrated softmax response with its whole interval is handed over; else the recalibrated response,
    where that saves loss with its whole interval; else nothing. The last third also certifies abstention thresholds, for the
    score as it was fixed before; that they are told only after the judgement can only lower the chance that a false one is told.

    Raises:
        BadInput: fewer than 20 calibration examples.
    """
    corpus = corpus.relabel(subject.classes)
    got = _gathered(subject, corpus, folds=folds, members=members, passes=passes, seed=seed)
    if isinstance(got, NoRemedy):
        return got
    evidence, rest, cluster, last = got.evidence, got.rest, got.cluster, got.last
    first = evidence.held
    choice = choose(evidence, FAMILIES)
    head = confidence_scores.Calibrated(choice.learnt.score, choice.slope, choice.intercept)
    response = confidence_scores.ResponseLogOdds(evidence.classes)
    odds, later = response(first.z), choice.learnt.logits(rest)
    plain = confidence_scores.Calibrated(response, *platt.platt(odds, ~first.error))
    saved = judged(
        [
            np.concatenate([before, np.square(then - ~rest.error)])
            for before, then in (
                (choice.stated, expit(response(rest.z))), (choice.recalibrated, plain(rest.z)), (choice.chosen, head(later)),
            )
        ],
        np.concatenate([cluster[~last], cluster[last]]), resamples=resamples, seed=seed,
    )  # fmt: skip
    tried = sum(r["saveable"] for r in choice.table) - 1
    beyond, recalibration, whole = saved["beyond"], saved["recalibration"], saved["whole"]
    chosen, extra = RESPONSE.key, None
    if beyond.low > 0 and whole.low > 0:
        chosen, extra, score, scores = choice.key, choice.learnt.extra, head, choice.crossed
        sentence = (
            f"Reads the confidence from {choice.title}, which saves {_percent(whole)} of the Brier loss of the softmax "
            f"response, and {_percent(beyond)} more than recalibrating it, on calibration examples that did not choose it. "
            "Predicted classes are unchanged."
        )
    elif recalibration.low > 0:
        score, scores = plain, odds
        sentence = (
            f"Keeps the softmax ranking and recalibrates it, which saves {_percent(recalibration)} of its Brier loss on "
            f"calibration examples that did not teach it. The best of {tried} heads and scores saves {_percent(beyond)} more, on "
            "examples that did not choose it."
        )
    else:
        score, scores = confidence_scores.Calibrated(response, 1.0, 0.0), odds
        sentence = (
            f"Nothing is better than the softmax response beyond doubt. On calibration examples that chose nothing, recalibration "
            f"saves {_percent(recalibration)} of its Brier loss, and the best of {tried} heads and scores {_percent(beyond)} more."
        )
    facts: dict[str, Any] = {"candidates": choice.table, "saved": {k: asdict(v) for k, v in saved.items()}}
    if chosen == RESPONSE.key and not recalibration.low > 0:
        return NoRemedy(sentence, facts)
    # Certified on what the saved adapter says, in the type in which it computes.
    saying = replace(subject, head=_whole(subject, extra), confidence=score)
    said = outputs(saying, rest.x.astype(np.float32)).confidence
    abstention = _certificates(
        expit(score.slope * scores + score.intercept), first.error, said, rest.error, cluster[last], delta, seed
    )  # fmt: skip
    card = loading.facts(subject) | facts | {
        "describe": sentence, "promise": _promise(abstention, delta), "abstention": abstention,
        "chosen": chosen, "delta": delta, "seed": seed, "pair": corpus.second is not None,
        "examples": {"chosen on": int((~last).sum()), "certified on": int(last.sum()), "train": got.tuned_on},
        "clusters": {"chosen on": len(np.unique(cluster[~last])), "certified on": len(np.unique(cluster[last]))},
    }  # fmt: skip
    try:
        remedy = _remedy(subject, extra, score, card)
    except Unsupported as e:
        return NoRemedy(str(e), facts)
    return _with_guard(remedy, got, abstention, seed)


def drop_in(
    subject: Subject, corpus: Corpus, *, folds: int, resamples: int, delta: float, seed: int
) -> ConfidenceHead | NoRemedy:  # fmt: skip
    """A repair that keeps the classifier's C outputs: one temperature (Guo et al. 2017, arXiv 1706.04599) written into the last
    layer, so that whatever takes the softmax of the logits has the confidence. It gives up what an extra output could say.

    Learnt on two thirds of the calibration clusters. It is judged in each fold by the temperature of the others, and on the last
    third by that of all, in one interval by clusters; handed over where that interval lies above 0.

    Raises:
        BadInput: fewer than 20 calibration examples.
    """
    corpus = corpus.relabel(subject.classes)
    got = _gathered(subject, corpus, folds=folds, members=0, passes=0, seed=seed)
    if isinstance(got, NoRemedy):
        return got
    fold, first, rest, cluster, last = got.evidence.fold, got.evidence.held, got.rest, got.cluster, got.last
    response, crossed = confidence_scores.ResponseLogOdds(len(subject.classes)), np.empty(len(first.label))
    for k in np.unique(fold):
        there = fold == k
        crossed[there] = response(first.z[there] / fit_temperature(first.z[~there], first.label[~there]))
    temperature = fit_temperature(first.z, first.label)
    error = np.concatenate([first.error, rest.error])
    before, after = (
        np.square(expit(np.concatenate(odds)) - ~error)
        for odds in ((response(first.z), response(rest.z)), (crossed, response(rest.z / temperature)))
    )
    saved = judged(
        [before, after, after], np.concatenate([cluster[~last], cluster[last]]), resamples=resamples, seed=seed
    )["whole"]
    facts: dict[str, Any] = {"saved": {"whole": asdict(saved)}, "temperature": temperature}
    told = f"saves {_percent(saved)} of the Brier loss of the softmax response, on calibration examples that did not teach it"
    if not saved.low > 0:
        return NoRemedy(
            f"One temperature for all logits is not better than the softmax response beyond doubt: it {told}.", facts
        )
    own = _whole(subject, None)
    head = Head(own.weight / temperature, own.bias / temperature)
    score = confidence_scores.Calibrated(response, 1.0, 0.0)
    said = outputs(replace(subject, head=head, confidence=score), rest.x.astype(np.float32)).confidence
    abstention = _certificates(expit(crossed), first.error, said, rest.error, cluster[last], delta, seed)
    card = loading.facts(subject) | facts | {
        "describe": f"Divides the logits by a temperature of {temperature:.4g}, which {told}. The outputs and the predicted "
        "classes are those of the model.",
        "promise": _promise(abstention, delta), "abstention": abstention, "chosen": "temperature", "drop in": True, "delta": delta,
        "seed": seed, "pair": corpus.second is not None,
        "examples": {"chosen on": int((~last).sum()), "certified on": int(last.sum()), "train": got.tuned_on},
        "clusters": {"chosen on": len(np.unique(cluster[~last])), "certified on": len(np.unique(cluster[last]))},
    }  # fmt: skip
    try:
        remedy = _saved_as(subject, head, score, card)
    except Unsupported as e:
        return NoRemedy(str(e), facts)
    return _with_guard(remedy, got, abstention, seed)


def methods(
    subject: Subject, corpus: Corpus, *, folds: int, members: int, passes: int, resamples: int, seed: int
) -> list[Method]:
    """Every family on ``test``: what each learns and chooses as in `repair`, its error ROC-AUC, and the Brier loss of its score
    after Platt scaling on the calibration examples that chose. The subject as it is stands for its softmax response unscaled.

    Raises:
        Unsupported: the calibration examples teach nothing.
    """
    corpus = corpus.relabel(subject.classes)
    rows = np.flatnonzero(corpus.split == "test")
    got = _gathered(subject, corpus, folds=folds, members=members, passes=passes, seed=seed, further=rows)
    if isinstance(got, NoRemedy):
        raise Unsupported(got.reason)
    e, test = got.evidence, corpus.take(rows)
    part = _part(subject, test)
    there = replace(e, **got.there)
    choice, every, right = choose(e, FAMILIES), np.arange(len(e.held.label)), ~e.held.error
    judged_by = {r["key"]: r for r in choice.table}
    odds = confidence_scores.ResponseLogOdds(e.classes)(part.z)
    scored = {"": (odds, np.square(expit(odds) - ~part.error))}
    for family in (f for f in FAMILIES if f.key in choice.best):
        best = judged_by[family.key]["variant"]
        if family is RESPONSE:
            score = odds
        elif family.comparison is not None:
            score = family.comparison(there, every, part)[:, best]
        else:
            score = family.learnt(e, [every])[0][best](part)
        slope, intercept = platt.platt(choice.best[family.key], right)
        scored[family.key] = (score, np.square(expit(slope * score + intercept) - ~part.error))

    def setting(row: Mapping[str, Any]) -> str:
        return f"run {row['variant'] + 1} of {row['variants']}" if row["variants"] > 1 else ""

    def apart(a: str, b: str) -> dict[str, Difference]:
        sides = [(*scored[k], ~part.error) for k in (a, b)]
        return as_differences(
            bootstrap.paired_many(_ON_TEST, *sides, seed=seed, resamples=resamples, cluster=test.cluster)
        )

    return [
        Method(
            f.key, f.title, f.source, setting(judged_by[f.key]),
            {k: float(s(*scored[f.key], ~part.error)) for k, s in _ON_TEST.items()},
            apart("", f.key), {} if f.key == choice.key else apart(choice.key, f.key), f.key == choice.key, f.saveable,
        )
        for f in FAMILIES if f.key in scored
    ]  # fmt: skip


_ON_TEST = {
    "error_auc": lambda score, loss, right, weight=None: error_auc(score, ~right, weight=weight),
    "confidence_brier": lambda score, loss, right, weight=None: float(np.average(loss, weights=weight)),
}
"""What `methods` tells of a score, its Brier losses and which predictions are right."""


def judged(
    losses: Sequence[np.ndarray], cluster: np.ndarray, *, resamples: int, seed: int
) -> dict[str, bootstrap.Estimate]:
    """What is saved of the first of three losses (n,), as shares of it: by the second, by the third beyond that, and in all."""
    pairs = {"recalibration": (0, 1), "beyond": (1, 2), "whole": (0, 2)}
    wanted = {k: bootstrap.Means(share, before, after, 0) for k, (before, after) in pairs.items()}
    return bootstrap.interval_many(wanted, *losses, seed=seed, resamples=resamples, cluster=cluster)


def _percent(e: bootstrap.Estimate) -> str:
    return f"{e.value:.1%} [{e.low:.1%}, {e.high:.1%}]"


def _remedy(
    subject: Subject, extra: Head | None, score: confidence_scores.Calibrated, card: Mapping[str, Any]
) -> ConfidenceHead:
    return _saved_as(subject, _whole(subject, extra), score, card)


def _saved_as(
    subject: Subject, head: Head, score: confidence_scores.Calibrated, card: Mapping[str, Any]
) -> ConfidenceHead:
    settings, tensors = files.adapter_with_head(subject, head)
    return ConfidenceHead(
        head, score, subject.classes, model_fingerprint(subject.model), settings, tensors, card, files.brought(subject)
    )


def _with_guard(remedy: ConfidenceHead, got: _Gathered, abstention: Any, seed: int) -> ConfidenceHead:
    """The remedy with what `trueup.Guard` reads: where the texts that chose lie, and those that judged, one of each cluster."""
    weight, bias = remedy.head.weight.double().cpu().numpy(), remedy.head.bias.double().cpu().numpy()
    far = got.rest.x[_one_each(got.cluster[got.last], seed)]
    return replace(
        remedy, guard=guard.arrays_of(remedy.classes, remedy.score, abstention, weight, bias, got.evidence.held.x, far)
    )


def _whole(subject: Subject, extra: Head | None) -> Head:
    """The classifier's own rows, and those that a repair adds, on the subject's device."""
    head = subject.own_head()
    if extra is not None:
        head = Head(torch.cat([head.weight, extra.weight]), torch.cat([head.bias, extra.bias]))
    return Head(head.weight.to(subject.device), head.bias.to(subject.device))


def _part(subject: Subject, corpus: Corpus) -> Part:
    out = predict(subject, corpus)
    return Part(out.features.astype(np.float64), out.logits[:, : len(subject.classes)].astype(np.float64), corpus.label)


def _differs(candidates: Sequence[Mapping[str, Any]]) -> str:
    """What differs from their sources in the scores that were tried, as a list."""
    tried = {r["key"] for r in candidates}
    return "\n".join(f"- {f.title}: {f.notes}" for f in FAMILIES if f.notes and f.key in tried)


def _certificates(
    seen: np.ndarray,
    seen_error: np.ndarray,
    scores: np.ndarray,
    error: np.ndarray,
    cluster: np.ndarray,
    delta: float,
    seed: int,
) -> list[dict[str, Any]]:
    """Abstention thresholds for `CERTIFIED` risks, tested on `scores` and `error`, which chose nothing.

    The binomial test needs independent examples: one is drawn of each cluster. All rows hold together with probability 1 -
    `delta` (each is tested at its part of it), since a reader picks among them.

    Where the walk starts is learnt from the examples that did choose (`seen`, out of fold): at the threshold that is
    surest to pass there, as in the split fixed-sequence test of Learn-then-Test (arXiv 2110.01052, section 4). Starting
    at the very top would let one unlucky error among a handful of texts end it.
    """
    one = _one_each(cluster, seed)
    rows = []
    candidates = np.unique(np.quantile(seen, np.linspace(0, 0.98, 50)))[::-1]
    accepted = (seen >= candidates[:, None]).sum(axis=1)
    wrong = ((seen >= candidates[:, None]) & seen_error).sum(axis=1)
    for risk in CERTIFIED:
        start = int(np.argmin(binom.cdf(wrong, accepted, risk)))
        c = certified_threshold(scores[one], error[one], candidates[start:], risk, delta / len(CERTIFIED))
        rows.append(
            {"risk": risk, "threshold": c.threshold, "coverage": c.coverage, "accepted": c.accepted, "of": len(one)}
        )
    return rows


def _one_each(cluster: np.ndarray, seed: int) -> np.ndarray:
    """One row of each cluster, at random."""
    order = np.random.default_rng(np.random.SeedSequence([seed, 8])).permutation(len(cluster))
    return order[np.unique(cluster[order], return_index=True)[1]]


def _upwards(threshold: float) -> str:
    """A threshold for printing, rounded up only: rounding down would let in texts that nothing was certified for.

    As many digits as leave it within a thousandth of the way to 1.
    """
    digits = 4
    while digits < 12 and math.ceil(threshold * 10**digits) / 10**digits - threshold > 0.001 * (1 - threshold):
        digits += 1
    return f"{math.ceil(threshold * 10**digits) / 10**digits:.{digits}f}"


def _promise(abstention: list[dict[str, Any]], delta: float) -> str:
    held = [r for r in abstention if r["threshold"] is not None]
    if not held:
        return f"No abstention threshold could be certified at {max(CERTIFIED):.0%} errors or fewer."
    r = held[0]
    return (
        f"With {1 - delta:.0%} certainty at most {r['risk']:.0%} errors when it answers only at a confidence of "
        f"{_upwards(r['threshold'])} or more: {r['coverage']:.0%} of the texts."
    )


def _lines(remedy: ConfidenceHead) -> tuple[str, str, str]:
    """The lines of code that load it, that make the inputs, and that read label and confidence."""
    c = len(remedy.classes)
    return (
        loading.load_lines(remedy.card, len(remedy.head.weight), remedy.classes), loading.input_lines(remedy.card),
        "out = model(**inputs).logits.double()\n"
        f"label, confidence = out[:, :{c}].argmax(-1), {remedy.score.torch_line}",
    )  # fmt: skip


def _warning(remedy: ConfidenceHead) -> str:
    """What a user of Hugging Face's pipelines must know."""
    if remedy.card.get("drop in"):
        return ""
    use = f"Use `{predict_script.NAME}` in this folder, or the lines below."
    if (extra := len(remedy.head.weight) - len(remedy.classes)) > 0:
        outputs, them = ("an extra output that is", "it") if extra == 1 else (f"{extra} extra outputs that are", "them")
        return (
            f'`pipeline("text-classification")`. The model has {outputs} no class; the pipeline mixes {them} '
            f"into its softmax, and its scores are wrong. {use}"
        )
    return (
        '`pipeline("text-classification")` gives the labels, and its scores are the softmax of the model as it was, not this '
        f"confidence. {use}"
    )


def _card(remedy: ConfidenceHead) -> Card:
    c, card = len(remedy.classes), remedy.card
    rows = "\n".join(
        f"| {100 * r['risk']:g}% | "
        + (f"{_upwards(r['threshold'])} | {r['coverage']:.0%} |" if r["threshold"] is not None else "none | 0% |")
        for r in card.get("abstention", ())
    )
    sections: list[tuple[str, str]] = []
    if rows:
        sections.append((
            "When to trust it",
            f"With probability {1 - card['delta']:.0%} over the draw of the calibration data, answering only at or above the "
            "threshold keeps the error rate among the answered at or below the wanted risk (Learn-then-Test). All rows hold "
            f"together.\n\n| wanted risk | confidence at least | answered |\n|---|---|---|\n{rows}",
        ))  # fmt: skip
    tried = "\n".join(
        f"| {r['title']} | {r['source']} | {r['brier']:.4f} | {r['saved']:+.1%} | {r['auc']:.3f} |"
        for r in sorted(card.get("candidates", ()), key=lambda r: r["brier"])
    )
    if tried:
        sections.append((
            "What was tried",
            "Brier loss after Platt scaling, out of fold on the calibration examples that chose, the share that it saves of the "
            "softmax response's, and the error ROC-AUC within folds. What was chosen is judged by other examples, at the top."
            f"\n\n| score | source | Brier loss | saved | AUC |\n|---|---|---|---|---|\n{tried}\n\n{_differs(card['candidates'])}",
        ))  # fmt: skip
    return Card(
        "overconfidence", "A classifier that says when to trust it", remedy.describe(), str(card["base"]), "text-classification",
        (
            f"It is a drop-in: the {c} logits are the classifier's own at another temperature. Their softmax is the confidence, "
            f'also in `pipeline("text-classification")` ({loading.class_names(remedy.classes)}).'
            if card.get("drop in")
            else f"The first {c} logits are the classifier's own, unchanged ({loading.class_names(remedy.classes)})."
        ),
        "\n".join(_lines(remedy)),
        loading.closing(card), tuple(sections), _warning(remedy), str(card.get("licence") or ""),
    )  # fmt: skip
