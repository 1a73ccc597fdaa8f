"""Subject + Corpus -> Finding: how well does the confidence rank the errors, and what can be answered at what risk?"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput
from trueup.faults.fault import Chart, Difference, Finding, Measure, Series, Slider
from trueup.measure import bootstrap
from trueup.measure import calibration as cal
from trueup.measure import selective as sel
from trueup.measure.accuracy import wilson
from trueup.run.predict import predict
from trueup.subject.subject import Subject

FEWEST = 20
"""Fewest examples an audit or a repair works with."""
FEWEST_ERRORS = 5
"""Fewest errors, and fewest right predictions: below this their ranking is not measurable."""
RISKS = (0.01, 0.02, 0.05)

Statistic = Callable[..., float]


def severity(confidence, error, probability, label, weight=None) -> float:
    """1 - ROC-AUC of telling errors from right predictions: the chance that an error is ranked above a right one."""
    return 1.0 - sel.error_auc(confidence, error, weight=weight)


def _of_ranking(f: Statistic, **fixed: float) -> Statistic:
    def statistic(confidence, error, probability, label, weight=None):
        return f(confidence, error, weight=weight, **fixed)

    return statistic


def _ece(confidence, error, probability, label, weight=None) -> float:
    return cal.squared_calibration_error(confidence, ~error, weight=weight)


def _of_classes(f: Statistic) -> Statistic:
    def statistic(confidence, error, probability, label, weight=None):
        return f(probability, label, weight=weight)

    return statistic


def _accuracy(confidence, error, probability, label, weight=None) -> float:
    return 1.0 - float(np.average(error, weights=weight))


MEASURES: Mapping[str, tuple[Statistic, str, str, str]] = {
    "accuracy": (_accuracy, "accuracy", "share of examples", "higher"),
    "error_auc": (_of_ranking(sel.error_auc), "error ROC-AUC", "probability", "higher"),
    "aurc": (_of_ranking(sel.aurc), "AURC", "risk", "lower"),
    "naurc": (_of_ranking(sel.naurc), "NAURC", "0 perfect, 1 random", "lower"),
    "augrc": (_of_ranking(sel.augrc), "AUGRC", "generalised risk", "lower"),
    "ece": (_ece, "calibration error (ECE)", "probability", "lower"),
    "brier": (_of_classes(cal.brier), "Brier score of the classes", "squared probability", "lower"),
    "nll": (_of_classes(cal.nll), "NLL of the classes", "nats", "lower"),
    **{
        f"coverage_{round(100 * r)}": (
            _of_ranking(functools.partial(sel.coverage_at_risk, risk=r)),
            f"coverage at {round(100 * r)}% risk", "share of examples", "higher",
        )
        for r in RISKS
    },
}  # fmt: skip
"""key -> statistic of (confidence, error, probability, label), title, unit, which direction is better."""

SQUARES = ("ece",)
"""Measures that chance pushes upwards: mean squares, given debiased and as their root."""
COLUMNS = ("confidence", "error", "probability", "label")


def audit(subject: Subject, corpus: Corpus, *, threshold: float, resamples: int, seed: int) -> Finding:
    """Examine on all of `corpus`.

    Raises:
        BadInput: fewer than 20 examples, or fewer than 5 errors or 5 right predictions among them.
    """
    corpus = corpus.relabel(subject.classes)
    if len(corpus) < FEWEST:
        raise BadInput(
            f"'{corpus.name}' gives {len(corpus)} examples to examine; overconfidence needs at least {FEWEST}. "
            "Give more rows, or a larger test split."
        )
    out = predict(subject, corpus)
    error = out.predicted != corpus.label
    wrong, right = int(error.sum()), int((~error).sum())
    if wrong < FEWEST_ERRORS or right < FEWEST_ERRORS:
        few, many = (f"only {wrong} errors", "right") if wrong < right else (f"only {right} right predictions", "wrong")
        least, share = min(wrong, right), max(wrong, right) / len(corpus)
        rows = f"at least {-(-FEWEST_ERRORS * len(corpus) // least):,}" if least else "many more"
        advice = "" if wrong < right else " Check that labels and classes agree as well."
        raise BadInput(
            f"There are {few} among {len(corpus)} examples of '{corpus.name}' ({share:.1%} are {many}), so the ranking of errors "
            f"cannot be measured: it needs {FEWEST_ERRORS} of each. Give {rows} test examples, or harder ones.{advice}"
        )
    columns = {"confidence": out.confidence, "error": error, "probability": out.probability, "label": corpus.label}
    return _finding(subject, columns, out.predicted, threshold, resamples, seed)


def _finding(
    subject: Subject,
    columns: Mapping[str, np.ndarray],
    predicted: np.ndarray,
    threshold: float,
    resamples: int,
    seed: int,
) -> Finding:
    values = [columns[k] for k in COLUMNS]
    statistics = {"severity": severity} | {k: m[0] for k, m in MEASURES.items()}
    got = bootstrap.interval_many(statistics, *values, seed=seed, resamples=resamples, squares=SQUARES)
    head = got["severity"]
    measures = {
        k: Measure(got[k].value, got[k].low, got[k].high, unit, better, title)  # type: ignore[arg-type]
        for k, (_, title, unit, better) in MEASURES.items()
    }
    error = columns["error"]
    at5 = measures["coverage_5"].value
    sentence = (
        f"It is wrong on {error.mean():.1%} of the texts, and ranks a wrong prediction above a right one in "
        f"{head.value:.1%} of pairs [{head.low:.1%}, {head.high:.1%}]; at most 5% errors would leave {at5:.0%} answered."
    )
    return Finding(
        fault="overconfidence", unit="share of misranked (wrong, right) pairs",
        severity=head.value, low=head.low, high=head.high, threshold=threshold, sentence=sentence,
        measures=measures, charts=charts(columns["confidence"], error),
        samples={**columns, "predicted": predicted},
        provenance={"seed": seed, "resamples": resamples, "level": 0.95, "examples": len(error),
                    "confidence": repr(subject.confidence)},
    )  # fmt: skip


def compare(before: Finding, after: Finding, *, resamples: int, seed: int) -> dict[str, Difference]:
    """Paired bootstrap differences, after minus before, of the severity and every measure."""
    statistics = {"severity": severity} | {k: m[0] for k, m in MEASURES.items()}
    got = bootstrap.paired_many(
        statistics, [before.samples[k] for k in COLUMNS], [after.samples[k] for k in COLUMNS], seed, resamples=resamples,
        squares=SQUARES,
    )  # fmt: skip
    return {k: Difference(d.value, d.low, d.high, d.p) for k, d in got.items()}


def examples(corpus: Corpus, before: Finding, after: Finding | None) -> list[dict[str, str | float | bool]]:
    """The 100 surest errors, and the 100 errors and right predictions whose rank the repair moved most."""
    confidence, error = before.samples["confidence"], before.samples["error"]
    order = np.lexsort((-confidence, ~error))[:100]
    if after is not None:
        moved = after.samples["confidence"].argsort().argsort() - confidence.argsort().argsort()
        order = np.concatenate([order, np.argsort(-np.abs(moved), kind="stable")[:100]])
    rows: list[dict[str, str | float | bool]] = []
    for i in dict.fromkeys(order.tolist()):
        row: dict[str, str | float | bool] = {
            "text": str(corpus.text[i])[:400],
            "label": corpus.classes[corpus.label[i]],
            "predicted": corpus.classes[int(before.samples["predicted"][i])],
            "right": not bool(error[i]),
            "confidence": float(confidence[i]),
        }
        if after is not None:
            row["confidence after"] = float(after.samples["confidence"][i])
        rows.append(row)
    return rows


def charts(confidence: NDArray[np.float64], error: NDArray[np.bool_]) -> tuple[Chart, ...]:
    """Risk against coverage, and reliability, as data (at most 200 points a line)."""
    curve = sel.risk_coverage(confidence, error)
    keep = np.unique(np.linspace(0, len(curve.coverage) - 1, 200).round().astype(int))
    mean, accuracy, count = cal.reliability_curve(confidence, ~error, 12)
    low, high = wilson(accuracy * count, count)
    return (
        Chart(
            "risk-coverage", "Risk against coverage", "line", "share of texts answered", "errors among the answered",
            "Answering only the surest texts should leave fewer errors: the lower the line on the left, the better.",
            (Series("risk", curve.coverage[keep].tolist(), curve.risk[keep].tolist(), cut=curve.threshold[keep].tolist()),),
            slider=Slider("Share of texts answered", 0.8, examples=len(error), column="confidence"),
        ),
        Chart(
            "reliability", "Reliability", "line", "stated confidence", "share that is right",
            "A confidence of 0.8 should be right 80% of the time: below the diagonal it promises too much.",
            (
                Series("right", mean.tolist(), accuracy.tolist(), low.tolist(), high.tolist()),
            ),
            diagonal=True,
        ),
    )  # fmt: skip
