"""Finding -> Remedy: the best confidence that one linear head can give, chosen on held-out data, or the softmax response."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from scipy.special import expit
from scipy.stats import binom
from torch import Tensor

from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput, Unsupported
from trueup.faults import loading
from trueup.faults.card import Card, page
from trueup.faults.fault import Comparison, NoRemedy, Remedy
from trueup.faults.overconfidence import maths
from trueup.faults.overconfidence.audit import FEWEST, FEWEST_ERRORS
from trueup.faults.overconfidence.candidates import (
    FAMILIES,
    RESPONSE,
    Evidence,
    Learnt,
    Part,
    cross_select,
)  # fmt: skip
from trueup.measure import bootstrap
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
    """

    head: Head
    score: maths.Calibrated
    classes: tuple[str, ...]
    made_for: str
    settings: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    card: Mapping[str, Any]
    tokenizer: Any = None

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
        with atomic.new_folder(folder, force=folder.exists()) as new:
            files.write_adapter(new, self.settings, self.tensors, self.tokenizer)
            card = dict(self.card) | {
                "made_for": self.made_for, "classes": list(self.classes), "rows": len(self.head.weight),
                "score": _score_to_json(self.score),
            }  # fmt: skip
            atomic.write_json(new / files.CARD, card)
            atomic.write_text(new / "README.md", page(_card(self), comparison))
        return folder

    def describe(self) -> str:
        return str(self.card["describe"])


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
    tensors = load_file(str(folder / "adapter_model.safetensors"))
    settings = json.loads((folder / "adapter_config.json").read_text())
    rest = {k: v for k, v in card.items() if k not in ("made_for", "classes", "rows", "score")}
    return ConfidenceHead(
        files.head_in(tensors, subject.anatomy),
        _score_from_json(card["score"]),
        tuple(card["classes"]),
        card["made_for"],
        settings,
        tensors,
        rest,
        files.brought(subject),
    )


def null_remedy(subject: Subject) -> ConfidenceHead:
    """The head as it is, read by the softmax response: changes no prediction and no confidence."""
    c, card = len(subject.classes), loading.facts(subject) | {"describe": "Changes nothing."}
    # sigmoid(log-odds of SR) is SR itself: the identity, in the form every remedy has.
    return _remedy(subject, None, maths.Calibrated(maths.ResponseLogOdds(c), 1.0, 0.0), card)


def repair(
    subject: Subject, corpus: Corpus, *, folds: int, members: int, resamples: int, delta: float, seed: int
) -> ConfidenceHead | NoRemedy:
    """Learn and choose on ``calibration`` (and, for the published heads, on ``train``); never looks at ``test``.

    Two thirds of the calibration examples choose: every family is scored out of fold, its variant cross-selected, and
    compared with the softmax response by a paired bootstrap. The best family whose whole interval lies above zero wins;
    with none, the softmax response stays. The winner is then calibrated (Platt, on its out-of-fold scores), and the last
    third, untouched so far, certifies abstention thresholds.

    Raises:
        BadInput: fewer than 20 calibration examples.
    """
    corpus = corpus.relabel(subject.classes)
    held = corpus.take(corpus.split == "calibration")
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
    streams = [int(s.generate_state(1)[0]) for s in np.random.SeedSequence([seed, 4]).spawn(4)]
    choose, certify = _two_thirds(part.error, streams[0])
    tuned_on = corpus.take(corpus.split == "train")
    committee = None
    if members and len(tuned_on):
        try:
            committee = ensemble.committee(subject, tuned_on, held.take(choose), members=members, seed=streams[1])
        except Unsupported as e:
            session().note(f"No ensemble was tried. {e}")
    biased = subject.template is None and subject.head_layer().bias is not None
    evidence = Evidence(
        train=_part(subject, tuned_on) if len(tuned_on) else None,
        held=part.take(choose), head=own, biased=biased,
        fold=_folds(part.error[choose], folds, streams[2]), seed=streams[3], committee=committee,
    )  # fmt: skip
    chosen, learnt, crossed, table = choose_family(evidence, resamples=resamples)
    right = ~evidence.held.error
    if chosen == RESPONSE.key:
        learnt = Learnt(None, maths.ResponseLogOdds(evidence.classes))
        crossed = learnt(evidence.held)
    slope, intercept = maths.platt(crossed, right)
    score = maths.Calibrated(learnt.score, slope, intercept)
    rest = part.take(certify)
    # Certified on what the saved adapter says, in the type in which it computes.
    saved = replace(subject, head=_whole(subject, learnt.extra), confidence=score)
    said = outputs(saved, rest.x.astype(np.float32)).confidence
    abstention = _certificates(
        expit(slope * crossed + intercept), evidence.held.error, said, rest.error, delta
    )  # fmt: skip
    if chosen == RESPONSE.key:
        best = max((r for r in table if r["saveable"] and r["key"] != RESPONSE.key), key=lambda r: r["gain"])
        sentence = (
            f"Keeps the softmax ranking: none of {sum(r['saveable'] for r in table) - 1} heads and scores beat it on validation "
            f"(the best, {best['title']}: {best['gain']:+.3f} AUC [{best['low']:+.3f}, {best['high']:+.3f}]). "
            "The confidence is recalibrated."
        )
    else:
        row = next(r for r in table if r["key"] == chosen)
        sentence = (
            f"Reads the confidence from {row['title']}: {row['gain']:+.3f} error ROC-AUC [{row['low']:+.3f}, {row['high']:+.3f}] "
            "over the softmax response on validation. Predicted classes are unchanged."
        )
    card = loading.facts(subject) | {
        "describe": f"{sentence} {_promise(abstention, delta)}",
        "chosen": chosen, "candidates": table, "abstention": abstention, "delta": delta, "seed": seed,
        "pair": corpus.second is not None,
        "examples": {"chosen on": len(choose), "certified on": len(certify), "train": len(tuned_on)},
    }  # fmt: skip
    try:
        return _remedy(subject, learnt.extra, score, card)
    except Unsupported as e:
        return NoRemedy(str(e), {"candidates": table, "abstention": abstention})


def choose_family(evidence: Evidence, *, resamples: int) -> tuple[str, Learnt, np.ndarray, list[dict[str, Any]]]:
    """Every possible family against the softmax response on the held-out examples.

    Returns the winner's key, its finished form, its out-of-fold scores, and a table with one row per family: AUC, gain
    over the softmax response and its paired interval, whether it can be saved.
    """
    error, every = evidence.held.error, np.arange(len(evidence.held.label))
    response = RESPONSE.crossed(evidence)[:, 0]
    table: list[dict[str, Any]] = []
    scores: dict[str, np.ndarray] = {}
    possible = [f for f in FAMILIES if f.possible(evidence)]
    for i, family in enumerate(possible):
        crossed = family.crossed(evidence)
        honest, best = cross_select(crossed, error, evidence.fold)
        # `honest` are ranks where a family has variants; calibration needs the chosen variant's own scale.
        scores[family.key] = crossed[:, best]
        d = bootstrap.paired(
            error_auc, (response, error), (honest, error), seed=evidence.seed, resamples=resamples
        )  # fmt: skip
        table.append(
            {
                "key": family.key, "title": family.title, "source": family.source, "saveable": family.saveable,
                "auc": float(error_auc(honest, error)), "gain": d.value, "low": d.low, "high": d.high, "variant": best,
            }
        )  # fmt: skip
        session().progress("trying candidates", i + 1, len(possible))
    winners = [r for r in table if r["saveable"] and r["low"] > 0]
    chosen = max(winners, key=lambda r: r["gain"])["key"] if winners else RESPONSE.key
    family = next(f for f in FAMILIES if f.key == chosen)
    assert family.learn is not None
    best = next(r["variant"] for r in table if r["key"] == chosen)
    return chosen, family.learn(evidence, every)[best], scores[chosen], table


def _remedy(subject: Subject, extra: Head | None, score: maths.Calibrated, card: Mapping[str, Any]) -> ConfidenceHead:
    head = _whole(subject, extra)
    settings, tensors = files.adapter_with_head(subject, head)
    return ConfidenceHead(
        head, score, subject.classes, model_fingerprint(subject.model), settings, tensors, card, files.brought(subject)
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


def _two_thirds(error: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    third = _folds(error, 3, seed) == 0
    return np.flatnonzero(~third), np.flatnonzero(third)


def _folds(error: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """(n,) fold of each example: shuffled, errors spread evenly."""
    rng, fold = np.random.default_rng(seed), np.empty(len(error), dtype=np.int64)
    order = np.concatenate([rng.permutation(np.flatnonzero(error)), rng.permutation(np.flatnonzero(~error))])
    fold[order] = np.arange(len(error)) % folds
    return fold


def _certificates(
    seen: np.ndarray, seen_error: np.ndarray, scores: np.ndarray, error: np.ndarray, delta: float
) -> list[dict[str, Any]]:
    """Abstention thresholds for `CERTIFIED` risks, tested on `scores` and `error`, which chose nothing.

    Where the walk starts is learnt from the examples that did choose (`seen`, out of fold): at the threshold that is
    surest to pass there, as in the split fixed-sequence test of Learn-then-Test (arXiv 2110.01052, section 4). Starting
    at the very top would let one unlucky error among a handful of texts end it.
    """
    rows = []
    candidates = np.unique(np.quantile(seen, np.linspace(0, 0.98, 50)))[::-1]
    accepted = (seen >= candidates[:, None]).sum(axis=1)
    wrong = ((seen >= candidates[:, None]) & seen_error).sum(axis=1)
    for risk in CERTIFIED:
        start = int(np.argmin(binom.cdf(wrong, accepted, risk)))
        c = certified_threshold(scores, error, candidates[start:], risk, delta)
        rows.append(
            {"risk": risk, "threshold": c.threshold, "coverage": c.coverage, "accepted": c.accepted, "of": len(scores)}
        )
    return rows


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


_SCORES = {
    cls.__name__: cls
    for cls in (
        maths.MaxSoftmax, maths.SmoothMax, maths.NegativeEntropy, maths.Margin, maths.Energy, maths.MaxLogit, maths.PNorm,
        maths.ProbabilityOfPredicted, maths.ShrunkProbe, maths.Column, maths.ResponseLogOdds,
    )
}  # fmt: skip


def _score_to_json(score: maths.Calibrated) -> dict[str, Any]:
    inner = {"kind": type(score.score).__name__} | asdict(score.score)
    return {"slope": score.slope, "intercept": score.intercept, "score": inner}


def _score_from_json(data: Mapping[str, Any]) -> maths.Calibrated:
    given = dict(data["score"])
    kind = given.pop("kind")
    if kind not in _SCORES:
        raise BadInput(f"The card names a score '{kind}' that this version of trueup does not know; update trueup.")
    inner: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    return maths.Calibrated(_SCORES[kind](**inner), data["slope"], data["intercept"])


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
            "threshold keeps the error rate among the answered at or below the wanted risk (Learn-then-Test). Each row holds by "
            f"itself.\n\n| wanted risk | confidence at least | answered |\n|---|---|---|\n{rows}",
        ))  # fmt: skip
    tried = "\n".join(
        f"| {r['title']} | {r['source']} | {r['auc']:.3f} | {r['gain']:+.3f} [{r['low']:+.3f}, {r['high']:+.3f}] |"
        for r in sorted(card.get("candidates", ()), key=lambda r: -r["auc"])
    )
    if tried:
        sections.append((
            "What was tried",
            "Error ROC-AUC on held-out calibration examples, out of fold, and its paired difference to the softmax response."
            f"\n\n| score | source | AUC | difference [95%] |\n|---|---|---|---|\n{tried}",
        ))  # fmt: skip
    return Card(
        "overconfidence", "A classifier that says when to trust it", remedy.describe(), str(card["base"]), "text-classification",
        f"The first {c} logits are the classifier's own, unchanged ({loading.class_names(remedy.classes)}).",
        f"""{loading.load_lines(card, len(remedy.head.weight))}
{loading.input_lines(card)}
out = model(**inputs).logits.double()
label, confidence = out[:, :{c}].argmax(-1), {remedy.score.torch_line}""",
        loading.closing(card), tuple(sections),
    )  # fmt: skip
