"""Subject + Corpus -> Finding: how much of the confidence's loss could have been avoided, and by what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from trueup.corpus.clusters import in_order
from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput, shortened
from trueup.faults.fault import Chart, Difference, Finding, Measure, Series, Slider, as_differences
from trueup.faults.overconfidence import forecast as fc
from trueup.measure import bootstrap, confidence_scores
from trueup.measure import calibration as cal
from trueup.measure import selective as sel
from trueup.measure.accuracy import independent_rows, same_predictions, wilson
from trueup.run.predict import Outputs, predict
from trueup.subject.subject import Confidence, SoftmaxResponse, Subject

FEWEST = 20
"""Fewest examples an audit or a repair works with."""
FEWEST_ERRORS = 5
"""Fewest clusters with an error, and fewest with a right prediction: below this nothing is decided."""
TAUGHT = 200
"""Calibration clusters below which nothing is called clear: so few teach too little."""

Statistic = Callable[..., float]


@dataclass(frozen=True, eq=False)
class Learnt:
    """What a confidence is held against: a forecast taught by the examples `held`, reading the `confidence` it was taught with."""

    forecast: fc.Forecast
    confidence: Confidence
    held: Corpus


def learn(subject: Subject, corpus: Corpus, *, seed: int) -> Learnt:
    """The forecast that the ``calibration`` examples of `corpus` teach.

    Raises:
        BadInput: there are none.
    """
    held, _ = in_order(corpus.relabel(subject.classes).part("calibration"))
    out = predict(subject, held)
    taught = fc.learn(seen(out, subject.confidence), out.predicted == held.label, held.cluster, seed=seed)
    return Learnt(taught, subject.confidence, held)


def seen(out: Outputs, confidence: Confidence) -> fc.Seen:
    """Predictions as a forecaster sees them, with the log-odds of `confidence`."""
    return fc.Seen(
        out.features.astype(np.float64), log_odds(out.logits, confidence), out.predicted, out.probability.shape[1]
    )


def log_odds(logits: np.ndarray, confidence: Confidence) -> NDArray[np.float64]:
    """(n,) log-odds of the confidence, exact where it rounds to 1."""
    z = logits.astype(np.float64)
    if isinstance(confidence, SoftmaxResponse):
        return confidence_scores.response_log_odds(z[:, : confidence.classes])
    if isinstance(confidence, confidence_scores.Calibrated):
        return confidence.log_odds(z)
    return logit(np.clip(confidence(logits), 1e-12, 1 - 1e-12))


# ------------------------------------------------------------------------------------------------------- statistics


def columns(samples: Mapping[str, np.ndarray], order: NDArray[np.intp]) -> list[NDArray]:
    """`COLUMNS`, which `STATISTICS` are taken of: one number per example, in this order."""
    right, odds, p = samples["right"], samples["odds"], samples["probability"]
    of_label = p[np.arange(len(right)), samples["label"]]
    found = {
        **{k: np.square(samples[k] - right) for k in ("confidence", "recalibrated", "forecast")},
        "gap": samples["confidence"] - right,
        "accuracy": right.astype(np.float64),
        "nll": np.logaddexp(0, np.where(right, -odds, odds)),
        "brier_classes": np.square(p).sum(axis=1) - 2 * of_label + 1,
        "nll_classes": -np.log(np.maximum(of_label, np.finfo(np.float64).tiny)),
        "odds": odds, "stated": samples["confidence"], "right": right,
    }  # fmt: skip
    return [found[k][order] for k in COLUMNS]


def surest_first(samples: Mapping[str, np.ndarray]) -> NDArray[np.intp]:
    """An order of rows in which ranking need not sort again."""
    return np.argsort(-samples["odds"], kind="stable")


COLUMNS = (
    "confidence", "recalibrated", "forecast", "gap", "accuracy", "nll", "brier_classes", "nll_classes", "odds", "stated", "right",
)  # fmt: skip


def _column(key: str) -> Callable[..., NDArray]:
    return lambda *columns: columns[COLUMNS.index(key)]


def _mean(key: str) -> bootstrap.Means:
    return bootstrap.Means(lambda mean: mean, COLUMNS.index(key))


def _saved(before: str, after: str) -> bootstrap.Means:
    """What one mean loss is above another, as a share of the confidence's; 0 where that loses nothing."""
    return bootstrap.Means(fc.share, *map(COLUMNS.index, (before, after, "confidence")))


def _of(f: Statistic, *keys: str) -> Statistic:
    def statistic(*values, weight=None) -> float:
        return f(*(values[COLUMNS.index(k)] for k in keys), weight=weight)

    return statistic


def _error_auc(odds, right, weight=None) -> float:
    # Log-odds rank as the confidence does, without its rounding at 1.
    return sel.error_auc(odds, ~right, weight=weight)


def _augrc(odds, right, weight=None) -> float:
    return sel.augrc(odds, ~right, weight=weight)


RIGHT = bootstrap.Share(_column("accuracy"))
"""How many predictions are right."""
MEASURES: Mapping[str, tuple[Statistic, str, str, str]] = {
    "misstated": (_saved("confidence", "recalibrated"), "avoidable by recalibration", "share of the Brier loss", "lower"),
    "misranked": (_saved("recalibrated", "forecast"), "avoidable by ranking errors", "share of the Brier loss", "lower"),
    "gap": (_mean("gap"), "mean confidence less accuracy", "probability", "zero"),
    "accuracy": (RIGHT, "accuracy", "share of examples", "higher"),
    "error_auc": (_of(_error_auc, "odds", "right"), "error ROC-AUC", "probability", "higher"),
    "augrc": (_of(_augrc, "odds", "right"), "AUGRC", "generalised risk", "lower"),
    "confidence_brier": (_mean("confidence"), "Brier loss of the confidence", "squared probability", "lower"),
    "confidence_nll": (_mean("nll"), "NLL of the confidence", "nats", "lower"),
    "ece": (
        _of(cal.squared_calibration_error, "stated", "right"), "calibration error (debiased)", "probability", "lower",
    ),
    "brier": (_mean("brier_classes"), "Brier score of the classes", "squared probability", "lower"),
    "nll": (_mean("nll_classes"), "NLL of the classes", "nats", "lower"),
}  # fmt: skip
"""key -> statistic of `COLUMNS`, title, unit, which direction is better."""
STATISTICS = {"severity": _saved("confidence", "forecast")} | {k: m[0] for k, m in MEASURES.items()}
SQUARES = ("ece",)
"""Measures that chance pushes upwards: mean squares, given debiased and as their root."""


def between(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> dict[str, Statistic]:
    """`STATISTICS` for the difference of two: where the classifier is the same, its accuracy is too, whatever the examples are."""
    with np.errstate(divide="ignore"):
        same = same_predictions(np.log(before["probability"]), np.log(after["probability"]))
    return STATISTICS | ({"accuracy": RIGHT.certain()} if same else {})


def measured(samples: Mapping[str, np.ndarray], *, resamples: int, seed: int) -> dict[str, bootstrap.Estimate]:
    """Severity and measures of one row per example, with their intervals by clusters."""
    order = surest_first(samples)
    estimates = bootstrap.interval_many(
        STATISTICS, *columns(samples, order), seed=seed, resamples=resamples, squares=SQUARES,
        rare=~samples["right"][order], cluster=samples["cluster"][order],
    )  # fmt: skip
    sizes = [np.unique(samples["cluster"][r], return_counts=True)[1] for r in (~samples["right"], samples["right"])]
    if 0 < min(map(len, sizes)) < bootstrap.FEWEST:
        # Few errors that all rank low know of no others; and confidences of two heaps vary more than a formula says.
        e = estimates["error_auc"]
        low, high = sel.error_auc_interval(e.value, *map(independent_rows, sizes))
        estimates["error_auc"] = replace(e, low=float(np.fmin(e.low, low)), high=float(np.fmax(e.high, high)))
    return estimates


# ------------------------------------------------------------------------------------------------------------- audit


def audit(subject: Subject, corpus: Corpus, learnt: Learnt, *, threshold: float, resamples: int, seed: int) -> Finding:
    """Examine on all of `corpus`. The subject may be the repaired one: it is held against the same forecast.

    Raises:
        BadInput: fewer than 20 examples.
    """
    corpus, place = in_order(corpus.relabel(subject.classes))
    check_enough(corpus)
    samples = samples_of(subject, corpus, learnt)
    found = finding(
        samples, taught=learnt.held.cluster, threshold=threshold, resamples=resamples, seed=seed,
        confidence=repr(subject.confidence), forecast=learnt.forecast.ridge,
    )  # fmt: skip
    return replace(found, samples={k: v[place] for k, v in samples.items()})


def check_enough(corpus: Corpus) -> None:
    """Raises BadInput where a corpus has too few examples to examine."""
    if len(corpus) < FEWEST:
        raise BadInput(
            f"'{corpus.name}' gives {len(corpus)} examples to examine; overconfidence needs at least {FEWEST}. "
            "Give more rows, or a larger test split."
        )


def samples_of(subject: Subject, corpus: Corpus, learnt: Learnt) -> dict[str, NDArray]:
    """What `finding` takes, one row per example of a corpus whose labels are places among the subject's classes."""
    out, held = predict(subject, corpus), predict(subject, learnt.held)
    seen_now = seen(out, subject.confidence)
    recalibrated = fc.recalibrated(seen(held, subject.confidence), held.predicted == learnt.held.label)
    return {
        "confidence": out.confidence, "recalibrated": recalibrated(seen_now),
        "forecast": learnt.forecast(seen(out, learnt.confidence)), "right": out.predicted == corpus.label,
        "odds": seen_now.odds, "probability": out.probability, "label": corpus.label,
        "predicted": out.predicted, "cluster": corpus.cluster,
    }  # fmt: skip


def finding(
    samples: Mapping[str, np.ndarray], *, taught: NDArray, threshold: float, resamples: int, seed: int, **provenance
) -> Finding:
    """The finding of one row per example, held against a forecast of other examples, whose clusters are `taught` (m,).

    Args:
        samples: confidence, its log-odds, what recalibration and the forecast say instead, right, probability (n, C), label,
            predicted and cluster; one row per example.
    """
    cluster, right = samples["cluster"], samples["right"]
    estimates = measured(samples, resamples=resamples, seed=seed)
    head, clusters, teachers = estimates["severity"], len(np.unique(cluster)), len(np.unique(taught))
    measures = {
        k: Measure(estimates[k].value, estimates[k].low, estimates[k].high, unit, better, title)  # type: ignore[arg-type]
        for k, (_, title, unit, better) in MEASURES.items()
        if not np.isnan(estimates[k].value)  # there is no ranking of errors without errors
    }
    found = Finding(
        fault="overconfidence", unit="avoidable share of the confidence's Brier loss",
        severity=head.value, low=head.low, high=head.high, threshold=threshold,
        sentence=_sentence(head, measures, teachers), measures=measures,
        charts=charts(samples["confidence"], right, cluster, head, measures),
        samples=samples, doubt=doubt(right, cluster, taught, head.low > threshold),
        provenance={"seed": seed, "resamples": resamples, "level": 0.95, "examples": len(right), "clusters": clusters,
                    "calibration clusters": teachers, **provenance},
    )  # fmt: skip
    if found.verdict != "undecided":
        return found
    needed = bootstrap.clusters_needed(head.value, head.low, head.high, threshold, cluster)
    return replace(found, needed=needed)


def doubt(right: np.ndarray, cluster: np.ndarray, taught: np.ndarray, beyond: bool) -> str:
    """Why nothing is decided whatever the interval says, as a sentence; empty where something is.

    Args:
        right, cluster: (n,) of the test examples. taught: (m,) the clusters of the calibration examples.
        beyond: whether the whole interval lies above the threshold.
    """
    rows = len(right)
    wrong, well = (len(np.unique(cluster[r])) for r in (~right, right))
    if too_few := bootstrap.too_few(cluster):
        return too_few
    if min(wrong, well) < FEWEST_ERRORS:
        which = f"{wrong} errors" if wrong < well else f"{well} right predictions"
        return (
            f"There are only {which} among {rows:,} test examples, one a cluster counted, and {FEWEST_ERRORS} of each kind are "
            "needed."
        )
    size = np.unique(taught, return_counts=True)[1]
    if len(size) < TAUGHT and not beyond:
        return (
            f"The calibration examples are {len(size)} independent clusters. Below {TAUGHT} they teach too little to say that "
            "nothing is wrong."
        )
    if independent_rows(size) < bootstrap.FEWEST and not beyond:
        return (
            f"The largest cluster holds {size.max() / size.sum():.0%} of the {size.sum():,} calibration examples. What is learnt "
            "mostly from large clusters cannot say that nothing is wrong elsewhere. Take examples out of the largest clusters, or "
            "add others."
        )
    return ""


def _sentence(head: bootstrap.Estimate, measures: Mapping[str, Measure], taught: int) -> str:
    stated, ranked, gap, accuracy = (measures[k].value for k in ("misstated", "misranked", "gap", "accuracy"))
    states = "overstates" if gap > 0 else "understates"
    return (
        f"A forecast learnt from {taught:,} independent calibration examples avoids {head.value:.1%} "
        f"[{head.low:.1%}, {head.high:.1%}] of the Brier loss of its confidence: {stated:.1%} by recalibration (it {states}: mean "
        f"confidence {accuracy + gap:.1%}, accuracy {accuracy:.1%}), {ranked:.1%} by ranking its errors better."
    )


def consequence(before: Finding, after: Finding | None) -> str:
    """What a wrong confidence means: what it states, and what is right."""

    def states(f: Finding) -> str:
        return f"{f.measures['gap'].value + f.measures['accuracy'].value:.1%}"

    opening = {
        "found": "You cannot rely on this model's confidence.",
        "undecided": "It is not settled whether you can rely on this model's confidence.",
        "clear": "This model's confidence is as reliable as the calibration examples can make it.",
    }[before.verdict]
    sentence = f"On average it states {states(before)} and is right on {before.measures['accuracy'].value:.1%}"
    if after is not None:
        sentence += f"; the repaired adapter states {states(after)}"
    return f"{opening} {sentence}."


def compare(before: Finding, after: Finding, *, resamples: int, seed: int) -> dict[str, Difference]:
    """Paired differences, after minus before, of the severity and every measure."""
    order = surest_first(before.samples)
    differences = bootstrap.paired_many(
        between(before.samples, after.samples), columns(before.samples, order), columns(after.samples, order), seed,
        resamples=resamples, squares=SQUARES, rare=~(before.samples["right"] & after.samples["right"])[order],
        cluster=before.samples["cluster"][order],
    )  # fmt: skip
    return as_differences({k: d for k, d in differences.items() if not np.isnan(d.value)})


def examples(corpus: Corpus, before: Finding, after: Finding | None) -> list[dict[str, str | float | bool]]:
    """The 100 surest errors, and the 100 errors and right predictions whose confidence the repair moved most."""
    confidence, right = before.samples["confidence"], before.samples["right"]
    order = np.lexsort((-confidence, right))[:100]
    if after is not None:
        moved = np.abs(after.samples["confidence"] - confidence)
        order = np.concatenate([order, np.argsort(-moved, kind="stable")[:100]])
    rows: list[dict[str, str | float | bool]] = []
    for i in dict.fromkeys(order.tolist()):
        row: dict[str, str | float | bool] = {
            "text": shortened(corpus.text[i], 400),
            "label": corpus.classes[corpus.label[i]],
            "predicted": corpus.classes[int(before.samples["predicted"][i])],
            "right": bool(right[i]),
            "confidence": float(confidence[i]),
        }
        if after is not None:
            row["confidence after"] = float(after.samples["confidence"][i])
        rows.append(row)
    return rows


def charts(
    confidence: NDArray[np.float64],
    right: NDArray[np.bool_],
    cluster: NDArray,
    head: bootstrap.Estimate,
    measures: Mapping[str, Measure | bootstrap.Estimate],
) -> tuple[Chart, ...]:
    """The severity and its parts, reliability, and risk against coverage, as data."""
    mean, accuracy, count = cal.reliability_curve(confidence, right, 12)
    # Rows of one cluster count as one, which is the most that they can share.
    independent = count * len(np.unique(cluster)) / len(cluster)
    low, high = wilson(accuracy * independent, independent)
    parts = [head, measures["misstated"], measures["misranked"]]
    return (
        Chart(
            "avoidable", "What could have been avoided", "bar", "by what", "share of the Brier loss",
            "What a forecast learnt from calibration examples saves: in all, by recalibration alone, by ranking errors better.",
            (Series("avoidable", ["all", "recalibration", "ranking"], [p.value for p in parts], [p.low for p in parts],
                    [p.high for p in parts]),),
        ),
        Chart(
            "reliability", "Reliability", "line", "stated confidence", "share that is right",
            "A confidence of 0.8 should be right 80% of the time: below the diagonal it promises too much.",
            (
                Series("right", mean.tolist(), accuracy.tolist(), low.tolist(), high.tolist()),
            ),
            diagonal=True,
        ),
        risk_chart(confidence, right),
    )  # fmt: skip


def risk_chart(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> Chart:
    """Risk against coverage, at most 200 points."""
    curve = sel.risk_coverage(confidence, ~right)
    keep = np.unique(np.linspace(0, len(curve.coverage) - 1, 200).round().astype(int))
    return Chart(
        "risk-coverage", "Risk against coverage", "line", "share of texts answered", "errors among the answered",
        "If only the most confident predictions are answered, fewer errors should remain. A lower line on the left is better.",
        (Series("risk", curve.coverage[keep].tolist(), curve.risk[keep].tolist(), cut=curve.threshold[keep].tolist()),),
        slider=Slider("Share of texts answered", 0.8, examples=len(right), column="confidence"), here=1.0,
    )  # fmt: skip
