"""Whether probabilities mean what they say: ECE, Brier, NLL, the reliability curve, and temperature scaling."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special
from scipy.optimize import brentq

from trueup.errors import BadInput
from trueup.measure._rows import Floats, column, counts, levels, mean, score, truth

COLDEST, HOTTEST = 1e-3, 1e3
"""The temperatures between which :func:`fit_temperature` searches."""


def softmax(logits: ArrayLike) -> Floats:
    """Probabilities from logits over the last axis, in float64: exp(z_c) / sum_k exp(z_k), without overflow."""
    return special.softmax(np.asarray(logits, np.float64), axis=-1)


def reliability_curve(
    confidence: ArrayLike, correct: ArrayLike, bins: int = 15, *, weight: ArrayLike | None = None
) -> tuple[Floats, Floats, Floats]:
    """Confidence against accuracy in bins of equal mass.

    Distinct confidences are sorted upwards. One that occupies the masses a to b of n goes whole into the bin of its middle,
    floor(bins * (a + b) / 2n). So ties are never split and the order of rows cannot matter. If n distinct confidences are a
    multiple of `bins`, each bin has exactly n / bins of them. Empty bins are left out.

    Args:
        confidence: (n,) probability of the predicted class, in 0 to 1.
        correct: (n,) booleans.
        bins: at most this many bins.
        weight: (n,) how often each row counts; None for once.

    Returns: mean confidence (b,), accuracy (b,), count (b,), by rising confidence, b <= bins.
    Raises: BadInput on empty or unequal columns, nan, confidences outside 0 to 1, or bins < 1.
    """
    confidence = score(confidence, "confidence")
    correct = truth(correct, "correct", confidence.size)
    if bins < 1:
        raise BadInput(f"bins is {bins}; give at least 1.")
    if confidence.min() < -1e-6 or confidence.max() > 1 + 1e-6:
        raise BadInput(
            "confidence is outside 0 to 1, so it is no probability; give the probability of the predicted class."
        )
    level, mass, hits = (column[::-1] for column in levels(confidence, correct, weight))
    end = np.cumsum(mass)
    bin_of = np.floor_divide(bins * (2 * end - mass), 2 * end[-1])
    first = np.concatenate(([0], np.flatnonzero(bin_of[1:] != bin_of[:-1]) + 1))
    count = np.add.reduceat(mass, first)
    return np.add.reduceat(level * mass, first) / count, np.add.reduceat(hits, first) / count, count


def expected_calibration_error(
    confidence: ArrayLike, correct: ArrayLike, bins: int = 15, *, weight: ArrayLike | None = None
) -> float:
    """Mean distance between confidence and accuracy: sum_b n_b / n |accuracy_b - confidence_b|.

    Guo et al. 2017 (arXiv 1706.04599) eq. 3, but over the equal-mass bins of :func:`reliability_curve` (as in Nixon
    et al. 2019, arXiv 1904.01685), not equal-width ones. It is biased upwards by the order of sqrt(bins / n), so compare
    only equal n. For an interval use :func:`squared_calibration_error`, whose bias can be subtracted.

    Args:
        confidence: (n,) probability of the predicted class.
        correct: (n,) booleans.
        bins: at most this many bins.
        weight: (n,) how often each row counts; None for once.

    Unit: probability, 0 to 1. Lower is better.
    Raises: BadInput as :func:`reliability_curve`.
    """
    stated, correct_share, count = reliability_curve(confidence, correct, bins, weight=weight)
    return float(count @ np.abs(correct_share - stated) / count.sum())


def squared_calibration_error(
    confidence: ArrayLike, correct: ArrayLike, bins: int = 15, *, weight: ArrayLike | None = None
) -> float:
    """Mean square distance between confidence and accuracy: sum_b n_b / n (accuracy_b - confidence_b)^2.

    The bins are the equal-mass bins of :func:`reliability_curve`. Chance adds about sum_b accuracy_b (1 - accuracy_b) / n, even
    where the confidence is right. If it is named among `squares` of `bootstrap`, the bootstrap subtracts that and takes the
    root: the debiased calibration error of Kumar et al. 2019 (arXiv 1909.10155), by clusters.

    Unit: squared probability, 0 to 1. Lower is better.
    Raises: BadInput as :func:`reliability_curve`.
    """
    stated, correct_share, count = reliability_curve(confidence, correct, bins, weight=weight)
    return float(count @ np.square(correct_share - stated) / count.sum())


def brier(probability: ArrayLike, label: ArrayLike, *, weight: ArrayLike | None = None) -> float:
    """Brier score in its multi-class sum form: mean over examples of sum_c (p_c - [c = label])^2 (Brier 1950).

    With two classes this is twice the usual binary score, and equals scikit-learn's ``brier_score_loss`` with
    ``scale_by_half=False``.

    Args:
        probability: (n, C), rows summing to 1.
        label: (n,) class numbers 0 to C - 1.
        weight: (n,) how often each row counts; None for once.

    Unit: squared probability, 0 to 2. Lower is better.
    Raises: BadInput on wrong shapes, rows that are no distribution, or labels outside the classes.
    """
    probability, label = _distribution(probability, label)
    of_label = probability[np.arange(label.size), label]
    return mean(np.einsum("nc,nc->n", probability, probability) - 2 * of_label + 1, weight)


def nll(probability: ArrayLike, label: ArrayLike, *, weight: ArrayLike | None = None) -> float:
    """Negative log-likelihood: mean of -ln p_label, with p clipped from below at the least normal double (708 nats).

    Args:
        probability: (n, C), rows summing to 1.
        label: (n,) class numbers 0 to C - 1.
        weight: (n,) how often each row counts; None for once.

    Unit: nats per example, 0 upwards. Lower is better.
    Raises: BadInput on wrong shapes, rows that are no distribution, or labels outside the classes.
    """
    return mean(surprises(probability, label), weight)


def surprises(probability: ArrayLike, label: ArrayLike) -> Floats:
    """(n,) -ln p_label of each example, of which :func:`nll` is the mean."""
    probability, label = _distribution(probability, label)
    of_label = probability[np.arange(label.size), label]
    return -np.log(np.clip(of_label, np.finfo(np.float64).tiny, 1.0))


def fit_temperature(logits: ArrayLike, label: ArrayLike, *, weight: ArrayLike | None = None) -> float:
    """The temperature T that minimises the NLL of softmax(logits / T) (Guo et al. 2017, arXiv 1706.04599).

    In b = 1 / T the NLL is convex, with slope mean(sum_c p_c z_c - z_label) at p = softmax(b z). Brent's method finds the one
    root of the slope to full precision. Where the slope has no root in the range COLDEST to HOTTEST (every prediction is right,
    or the logits mislead), the end with the lower NLL is returned. Where the NLL does not depend on T at all, 1 is returned.

    Args:
        logits: (n, C) finite.
        label: (n,) class numbers 0 to C - 1.
        weight: (n,) how often each row counts; None for once.

    Unit: ratio. Above 1 the model was overconfident. No polarity.
    Raises: BadInput on wrong shapes, logits that are not finite, or labels outside the classes.
    """
    z, label = _table(logits, label, "logits")
    z = z - z.max(axis=1, keepdims=True)
    of_label = z[np.arange(label.size), label]
    w = counts(weight, label.size)

    def slope(b: float) -> float:
        return mean(np.einsum("nc,nc->n", special.softmax(b * z, axis=1), z) - of_label, w)

    low, high = 1 / HOTTEST, 1 / COLDEST
    if not (z if w is None else z[w > 0]).any():
        return 1.0
    if slope(low) >= 0:
        return HOTTEST
    if slope(high) <= 0:
        return COLDEST
    return 1.0 / float(brentq(slope, low, high, xtol=1e-14, rtol=1e-14))  # pyright: ignore[reportArgumentType]


def _table(values: ArrayLike, label: ArrayLike, name: str) -> tuple[Floats, NDArray]:
    """`values` as finite (n, C) floats and `label` as (n,) class numbers below C. Raises BadInput."""
    table = np.asarray(values, np.float64)
    if table.ndim != 2 or not table.size:
        raise BadInput(f"{name} has shape {table.shape}; give one row for each example, one column for each class.")
    if not np.isfinite(table).all():
        raise BadInput(f"{name} has values that are not finite; look for overflow (half precision?) in the model.")
    label = column(label, "label", len(table))
    if label.dtype.kind not in "biu" or label.min() < 0 or label.max() >= table.shape[1]:
        raise BadInput(f"label must hold class numbers 0 to {table.shape[1] - 1}; map the names of classes to them.")
    return table, label.astype(np.intp, copy=False)


def _distribution(probability: ArrayLike, label: ArrayLike) -> tuple[Floats, NDArray]:
    """As :func:`_table`, and every row a distribution within 1e-3."""
    table, label = _table(probability, label, "probability")
    if table.min() < -1e-6 or np.abs(np.einsum("nc->n", table) - 1).max() > 1e-3:
        raise BadInput("probability has rows that do not sum to 1; apply softmax to the logits in float32 or better.")
    return table, label
