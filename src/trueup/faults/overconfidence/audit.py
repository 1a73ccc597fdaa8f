"""The audit of overconfidence: how much of the confidence's Brier loss could have been avoided, and by what."""

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
"""The fewest examples for an audit or a repair."""
FEWEST_ERRORS = 5
"""The fewest clusters with an error, and the fewest with a right prediction. Below this the verdict is undecided."""
TAUGHT = 200
"""The fewest calibration clusters for the verdict *clear*: fewer teach too little."""

Statistic = Callable[..., float]


@dataclass(frozen=True, eq=False)
class Learnt:
    """The reference of a confidence: a forecast learnt from the held-out examples `held`. It reads the `confidence` that the
    subject had then."""

    forecast: fc.Forecast
    confidence: Confidence
    held: Corpus


def learn(subject: Subject, corpus: Corpus, *, seed: int) -> Learnt:
    """The forecast that is learnt from the ``calibration`` examples of `corpus`.

    Raises:
        BadInput: there are no calibration examples.
    """
    held, _ = in_order(corpus.relabel(subject.classes).part("calibration"))
    out = predict(subject, held)
    taught = fc.learn(seen(out, subject.confidence), out.predicted == held.label, held.cluster, seed=seed)
    return Learnt(taught, subject.confidence, held)


def seen(out: Outputs, confidence: Confidence) -> fc.Seen:
    """The inputs of a forecast for the predictions `out`, with the log-odds of `confidence`."""
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
    """The columns (n,) named in `COLUMNS`, on which `STATISTICS` are computed, with the rows in the order `order`."""
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
    """The rows by descending confidence, so that ranking measures need not sort again."""
    return np.argsort(-samples["odds"], kind="stable")


COLUMNS = (
    "confidence", "recalibrated", "forecast", "gap", "accuracy", "nll", "brier_classes", "nll_classes", "odds", "stated", "right",
)  # fmt: skip


def _column(key: str) -> Callable[..., NDArray]:
    return lambda *columns: columns[COLUMNS.index(key)]


def _mean(key: str) -> bootstrap.Means:
    return bootstrap.Means(lambda mean: mean, COLUMNS.index(key))


def _saved(before: str, after: str) -> bootstrap.Means:
    """The difference of two mean losses, before less after, as a share of the confidence's loss; 0 where that is 0."""
    return bootstrap.Means(fc.share, *map(COLUMNS.index, (before, after, "confidence")))


def _of(f: Statistic, *keys: str) -> Statistic:
    def statistic(*values, weight=None) -> float:
        return f(*(values[COLUMNS.index(k)] for k in keys), weight=weight)

    return statistic


def _error_auc(odds, right, weight=None) -> float:
    # Log-odds have the ranking of the confidence, without rounding at 1.
    return sel.error_auc(odds, ~right, weight=weight)


def _augrc(odds, right, weight=None) -> float:
    return sel.augrc(odds, ~right, weight=weight)


RIGHT = bootstrap.Share(_column("accuracy"))
"""The share of predictions that are right."""
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
"""Measures that chance raises, since they are mean squares. They are reported debiased and as their root."""


def between(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> dict[str, Statistic]:
    """`STATISTICS` for a paired difference. If both have the same classifier, its accuracy is certain not to change on any
    examples."""
    with np.errstate(divide="ignore"):
        same = same_predictions(np.log(before["probability"]), np.log(after["probability"]))
    return STATISTICS | ({"accuracy": RIGHT.certain()} if same else {})


def measured(samples: Mapping[str, np.ndarray], *, resamples: int, seed: int) -> dict[str, bootstrap.Estimate]:
    """The severity and the measures of samples with one row per example, with intervals by clusters."""
    order = surest_first(samples)
    estimates = bootstrap.interval_many(
        STATISTICS, *columns(samples, order), seed=seed, resamples=resamples, squares=SQUARES,
        rare=~samples["right"][order], cluster=samples["cluster"][order],
    )  # fmt: skip
    sizes = [np.unique(samples["cluster"][r], return_counts=True)[1] for r in (~samples["right"], samples["right"])]
    if 0 < min(map(len, sizes)) < bootstrap.FEWEST:
        # A bootstrap of a few errors that all rank low is too narrow, and so is the formula if the confidences lie in two clumps.
        e = estimates["error_auc"]
        low, high = sel.error_auc_interval(e.value, *map(independent_rows, sizes))
        estimates["error_auc"] = replace(e, low=float(np.fmin(e.low, low)), high=float(np.fmax(e.high, high)))
    return estimates


# ------------------------------------------------------------------------------------------------------------- audit


def audit(subject: Subject, corpus: Corpus, learnt: Learnt, *, threshold: float, resamples: int, seed: int) -> Finding:
    """Examine all of `corpus`. The subject may be the repaired one, which is compared with the same forecast.

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
    """Raises BadInput if a corpus has too few examples to examine."""
    if len(corpus) < FEWEST:
        raise BadInput(
            f"'{corpus.name}' gives {len(corpus)} examples to examine; overconfidence needs at least {FEWEST}. "
            "Give more rows, or a larger test split."
        )


def samples_of(subject: Subject, corpus: Corpus, learnt: Learnt) -> dict[str, NDArray]:
    """The samples of `finding`, one row per example. The labels of the corpus must be indices of the subject's classes."""
    out, held = predict(subject, corpus), predict(subject, learnt.held)
    predictions = seen(out, subject.confidence)
    recalibrated = fc.recalibrated(seen(held, subject.confidence), held.predicted == learnt.held.label)
    return {
        "confidence": out.confidence, "recalibrated": recalibrated(predictions), "forecast": learnt.forecast(seen(out,
        learnt.confidence)), "right": out.predicted == corpus.label, "odds": predictions.odds, "probability": out.probability,
        "label": corpus.label, "predicted": out.predicted, "cluster": corpus.cluster,
    }  # fmt: skip


def finding(
    samples: Mapping[str, np.ndarray], *, taught: NDArray, threshold: float, resamples: int, seed: int, **provenance
) -> Finding:
    """The finding of samples with one row per example.

    Args:
        samples: confidence, its log-odds, the recalibrated confidence, the forecast, right, probability (n, C), label, predicted
            and cluster; one row per example.
        taught: (m,) the clusters of the calibration examples from which the forecast was learnt.
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
    """A sentence that says why the verdict is undecided whatever the interval is; empty if there is no such reason.

    Args:
        right, cluster: (n,) of the test examples. taught: (m,) the clusters of the calibration examples.
        beyond: whether the whole interval lies above the threshold.
    """
    rows = len(right)
    wrong, well = (len(np.unique(cluster[r])) for r in (~right, right))
    if shortage := bootstrap.too_few(cluster):
        return shortage
    if min(wrong, well) < FEWEST_ERRORS:
        rarer = f"{wrong} errors" if wrong < well else f"{well} right predictions"
        return (
            f"There are only {rarer} among {rows:,} test examples, one a cluster counted, and {FEWEST_ERRORS} of each kind are "
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
    """What the finding means for a user: the mean confidence that the model states, and the share that is right."""

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
    """The 100 most confident errors, and the 100 predictions whose confidence the repair changed most."""
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
    # Rows of one cluster count as one row, which is the most conservative choice.
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
    """The chart of risk against coverage, with at most 200 points."""
    curve = sel.risk_coverage(confidence, ~right)
    keep = np.unique(np.linspace(0, len(curve.coverage) - 1, 200).round().astype(int))
    return Chart(
        "risk-coverage", "Risk against coverage", "line", "share of texts answered", "errors among the answered",
        "If only the most confident predictions are answered, fewer errors should remain. A lower line on the left is better.",
        (Series("risk", curve.coverage[keep].tolist(), curve.risk[keep].tolist(), cut=curve.threshold[keep].tolist()),),
        slider=Slider("Share of texts answered", 0.8, examples=len(right), column="confidence"), here=1.0,
    )  # fmt: skip
