"""How often predictions are right: overall, in the worst group, and before and after a repair."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest, norm, t

from trueup.measure._rows import column, counts, mean, truth

SURE = 1e-4
"""The largest p-value at which `surer_order` accepts an order as better."""


def accuracy(predicted: ArrayLike, label: ArrayLike, *, weight: ArrayLike | None = None) -> float:
    """Share of examples whose prediction equals the label.

    Args:
        predicted, label: (n,) class numbers or names.
        weight: (n,) how often each row counts; None for once.

    Unit: share of examples, 0 to 1. Higher is better.
    Raises: BadInput on empty columns, or columns of unequal length.
    """
    label = column(label, "label")
    return mean(column(predicted, "predicted", label.size) == label, weight)


def worst_group_accuracy(
    predicted: ArrayLike, label: ArrayLike, group: ArrayLike, *, weight: ArrayLike | None = None
) -> float:
    """The lowest accuracy of any group (Sagawa et al. 2020, arXiv 1911.08731): min over g of accuracy among rows of g.

    A group without mass (absent, or of weight 0) has no accuracy and is skipped. Integer codes are faster than
    names.

    Args:
        predicted, label: (n,) class numbers or names.
        group: (n,) the group of each row, numbers or names.
        weight: (n,) how often each row counts; None for once.

    Unit: share of the examples of a group, 0 to 1. Higher is better.
    Raises: BadInput on empty columns, or columns of unequal length.
    """
    label = column(label, "label")
    right = column(predicted, "predicted", label.size) == label
    member = np.unique(column(group, "group", label.size), return_inverse=True)[1]
    w = counts(weight, label.size)
    mass = np.bincount(member, w)
    hits = np.bincount(member, right if w is None else w * right)
    present = mass > 0
    return float((hits[present] / mass[present]).min())


def mcnemar(correct_before: ArrayLike, correct_after: ArrayLike) -> float:
    """Exact two-sided p-value that a repair changed the accuracy (McNemar 1947, in its binomial form).

    Of the examples that changed between right and wrong, b got worse and c better; under no effect b ~ Bin(b + c,
    1/2), so p = min(1, 2 P(Bin(b + c, 1/2) <= min(b, c))). p = 1 when nothing changed.

    Args:
        correct_before, correct_after: (n,) booleans of the same examples in the same order.

    Unit: probability. Lower is more evidence of a change, in either direction.
    Raises: BadInput on empty columns, columns of unequal length, or values other than true and false.
    """
    before = truth(correct_before, "correct_before")
    after = truth(correct_after, "correct_after", before.size)
    worse, better = int((before & ~after).sum()), int((~before & after).sum())
    return float(binomtest(worse, worse + better, 0.5).pvalue) if worse + better else 1.0


def best_order(predicted: ArrayLike, label: ArrayLike, classes: int) -> NDArray[np.int64]:
    """The assignment of classes to logit columns under which most predictions are right: an assignment problem (Kuhn 1955).

    Args:
        predicted: (n,) columns of the logits, 0 to `classes` - 1. label: (n,) class numbers.

    Returns: (classes,) the class assigned to each column of the logits.
    Raises: BadInput on empty columns, or columns of unequal length.
    """
    label = column(label, "label")
    table = np.zeros((classes, classes), np.int64)
    np.add.at(table, (column(predicted, "predicted", label.size), label), 1)
    return linear_sum_assignment(table, maximize=True)[1]


def surer_order(predicted: ArrayLike, label: ArrayLike, classes: int) -> tuple[NDArray[np.int64], float] | None:
    """An order of the classes under which significantly more predictions are right than in the present order, if there is one.

    The best of many orders looks better by selection alone. So each half of the rows judges the order that is best on the other
    half. The order must also beat every constant answer (Wilson interval), since predictions that hardly vary say nothing about
    the order.

    Args:
        predicted, label, classes: as in `best_order`.

    Returns: the best order on all rows, as in `best_order`, and the share of rows that is right under the order chosen on the
        other half. None where McNemar's p is above `SURE`, where the order gains nothing, or where it does not beat a constant.
    Raises: BadInput as `best_order`.
    """
    label = column(label, "label")
    predicted = column(predicted, "predicted", label.size)
    half, reordered = np.arange(label.size) % 2 == 1, np.empty(label.size, np.int64)
    if not half.any():
        return None
    for rows in (half, ~half):
        reordered[rows] = best_order(predicted[~rows], label[~rows], classes)[predicted[rows]]
    right_as_is, right_reordered = predicted == label, reordered == label
    constant = np.bincount(label).max() / label.size
    if (
        right_reordered.sum() <= right_as_is.sum()
        or wilson(right_reordered.sum(), label.size)[0] <= constant
        or mcnemar(right_as_is, right_reordered) > SURE
    ):
        return None
    return best_order(predicted, label, classes), float(right_reordered.mean())


def wilson(hits: ArrayLike, n: ArrayLike, level: float = 0.95) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The interval of a share `hits` / `n` (Wilson 1927). It lies within 0 to 1 and is valid near both ends and for few trials.

    The arguments have any shapes that broadcast. Where `n` is 0 the interval is 0 to 1. Returns the low and the high ends.
    """
    k, n = np.asarray(hits, np.float64), np.asarray(n, np.float64)
    z2 = norm.ppf((1 + level) / 2) ** 2
    middle, half = k + z2 / 2, np.sqrt(np.maximum(k * (1 - k / np.maximum(n, 1)), 0) * z2 + z2**2 / 4)
    return np.clip((middle - half) / (n + z2), 0, 1), np.clip((middle + half) / (n + z2), 0, 1)


def share_difference(mean: float, square: float, n: float, level: float = 0.95) -> tuple[float, float, float]:
    """Interval and two-sided p-value of the difference of two shares of the same `n` examples, after minus before (Bonett and
    Price 2012, Journal of Educational and Behavioral Statistics 37, 479): Wald's, after one more example has changed either way.

    Where few examples change, no bootstrap is valid: where none changes, its interval is 0 to 0 however few examples there are.
    This interval is then about +-2.8 / `n`. Departures from the paper: the quantile is that of Student's t with `n` + 1 degrees
    of freedom, and the difference of an example may be less its expected value.

    Args:
        mean, square: means of the examples' differences and of their squares. For shares these are (won - lost) / n and
            (won + lost) / n, with won and lost the numbers of examples that change to true and to false.
        n: examples, above 0; it need not be a whole number.

    Returns: low and high, with `mean` between them, and p, which is below 1 - `level` exactly where the interval excludes 0.
    """
    middle, error = one_more_each_way(mean, square, n)
    half = t.ppf((1 + level) / 2, n + 1) * error
    return float(middle - half), float(middle + half), float(2 * t.sf(abs(middle) / error, n + 1))


def one_more_each_way(mean: float, square: float, n: float, reach: float = 1.0) -> tuple[float, float]:
    """The mean of `n` examples and its standard error after two more examples, of values `reach` and -`reach`, are added.

    Args:
        mean, square: means of the examples' values and of their squares.
    """
    middle = n * mean / (n + 2)
    variance = (n * square + 2 * reach**2) / (n + 2) - middle**2
    return middle, math.sqrt(max(variance, 0.0) / (n + 2))


def moved_share(
    before: tuple[float, float, float], after: tuple[float, float, float], level: float
) -> tuple[float, float, float]:
    """Interval and two-sided p-value of `after` less `before`, two independent shares with the ends of their intervals at `level`
    (Newcombe 1998, method 10). The squared distances of the ends from the shares add up. p as in `p_of_ends`."""
    (share_before, low_before, high_before), (share_after, low_after, high_after) = before, after
    value = share_after - share_before
    low = float(value - np.hypot(share_after - low_after, high_before - share_before))
    high = float(value + np.hypot(high_after - share_after, share_before - low_before))
    return low, high, p_of_ends(value, low, high, level)


def p_of_ends(value: float, low: float, high: float, level: float) -> float:
    """A two-sided p-value of no difference, below 1 - `level` exactly where the interval low to high excludes 0. It is that of a
    normal distribution whose standard error follows from the end of the interval on the side of 0. nan where that end equals the
    value, or is nan."""
    spread = (value - low if value > 0 else high - value) / norm.ppf((1 + level) / 2)
    return float(2 * norm.sf(abs(value) / spread)) if spread > 0 else math.nan


def independent_rows(size: ArrayLike) -> float:
    """The effective number of independent rows of clusters of `size` (k,) rows, if all rows of a cluster are alike (Kish 1965):
    (sum m)^2 / sum m^2 over the sizes m. It is the number of clusters where they are equally large, and 0 without a row."""
    m = np.asarray(size, np.float64)
    return float(m.sum() ** 2 / (m @ m)) if m.any() else 0.0


def same_predictions(before: ArrayLike, after: ArrayLike) -> bool:
    """Whether the logits `after` are those `before` times one number above 0, up to a constant in each row and to rounding. If so,
    the predictions of all possible examples are the same, and not only those of these examples.

    Args:
        before, after: (n, C) of the same examples in the same order, with two rows or more that differ.
    """
    a, b = (np.asarray(z, np.float64) for z in (before, after))
    if a.shape != b.shape or len(a) < 2 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return False
    a, b = (z - z.mean(axis=1, keepdims=True) for z in (a, b))
    if not a.any():
        return False
    factor = float((a * b).sum() / (a * a).sum())
    return factor > 0 and bool(np.abs(b - factor * a).max() <= 1e-5 * np.abs(b).max())
