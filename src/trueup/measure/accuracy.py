"""How often predictions are right: overall, in the worst group, and before against after."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest, norm, t

from trueup.measure._rows import column, counts, mean, truth

SURE = 1e-4
"""The p-value below which `surer_order` takes an order for surely better."""


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

    A group without mass (absent, or of weight 0) has no accuracy and is passed over. Integer codes are faster than
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
    """The order of the classes under which the predictions are right most often: an assignment problem (Kuhn 1955).

    Args:
        predicted: (n,) places among the logits, 0 to `classes` - 1. label: (n,) class numbers.

    Returns: (classes,) the class that stands at each place.
    Raises: BadInput on empty columns, or columns of unequal length.
    """
    label = column(label, "label")
    table = np.zeros((classes, classes), np.int64)
    np.add.at(table, (column(predicted, "predicted", label.size), label), 1)
    return linear_sum_assignment(table, maximize=True)[1]


def surer_order(predicted: ArrayLike, label: ArrayLike, classes: int) -> tuple[NDArray[np.int64], float] | None:
    """An order of the classes under which predictions are right far and surely more often than as they are, if there is one.

    Each half of the rows judges the order that the other half likes best: the best of many is better by choice alone. It
    has to beat every constant answer as well (Wilson interval), since predictions that hardly vary tell nothing of an order.

    Args:
        predicted, label, classes: as in `best_order`.

    Returns: the order of all rows, as in `best_order`, and the share that is right in halves; None where McNemar's p is
        above `SURE` or the gain is none.
    Raises: BadInput as `best_order`.
    """
    label = column(label, "label")
    predicted = column(predicted, "predicted", label.size)
    half, named = np.arange(label.size) % 2 == 1, np.empty(label.size, np.int64)
    if not half.any():
        return None
    for rows in (half, ~half):
        named[rows] = best_order(predicted[~rows], label[~rows], classes)[predicted[rows]]
    right_as_given, right_as_named = predicted == label, named == label
    constant = np.bincount(label).max() / label.size
    if (
        right_as_named.sum() <= right_as_given.sum()
        or wilson(right_as_named.sum(), label.size)[0] <= constant
        or mcnemar(right_as_given, right_as_named) > SURE
    ):
        return None
    return best_order(predicted, label, classes), float(right_as_named.mean())


def wilson(hits: ArrayLike, n: ArrayLike, level: float = 0.95) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The interval of a share `hits` / `n` (Wilson 1927): within 0 and 1, and honest at both ends and for few trials.

    Any shapes that go together; where `n` is 0 nothing is known: 0 to 1.
    """
    k, n = np.asarray(hits, np.float64), np.asarray(n, np.float64)
    z2 = norm.ppf((1 + level) / 2) ** 2
    middle, half = k + z2 / 2, np.sqrt(np.maximum(k * (1 - k / np.maximum(n, 1)), 0) * z2 + z2**2 / 4)
    return np.clip((middle - half) / (n + z2), 0, 1), np.clip((middle + half) / (n + z2), 0, 1)


def share_difference(mean: float, square: float, n: float, level: float = 0.95) -> tuple[float, float, float]:
    """Interval and two-sided p-value of the difference of two shares of the same `n` examples, after minus before (Bonett and
    Price 2012, Journal of Educational and Behavioral Statistics 37, 479): Wald's, after one more example has changed either way.

    Where few examples change, no bootstrap is valid: where none does, its interval is 0 to 0 however few examples there are. This
    one is about +-2.8 / `n` there. Departures: the quantile is that of Student's t with `n` + 1 degrees of freedom, and what an
    example adds may have been lessened by what was to be expected of it.

    Args:
        mean, square: of the examples' differences, and of their squares; of shares (won - lost) / n and (won + lost) / n.
        n: examples, above 0; it need not be a whole number.

    Returns: low and high, with `mean` between them, and p, which is below 1 - `level` just where they exclude 0.
    """
    middle, error = one_more_each_way(mean, square, n)
    half = t.ppf((1 + level) / 2, n + 1) * error
    return float(middle - half), float(middle + half), float(2 * t.sf(abs(middle) / error, n + 1))


def one_more_each_way(mean: float, square: float, n: float, reach: float = 1.0) -> tuple[float, float]:
    """The mean of `n` examples and its standard error after two more, one `reach` above 0 and one as far below.

    Args:
        mean, square: of what each example adds, and of its square.
    """
    middle = n * mean / (n + 2)
    variance = (n * square + 2 * reach**2) / (n + 2) - middle**2
    return middle, math.sqrt(max(variance, 0.0) / (n + 2))


def moved_share(
    before: tuple[float, float, float], after: tuple[float, float, float], level: float
) -> tuple[float, float, float]:
    """Interval and two-sided p-value of `after` less `before`, two independent shares with the ends of their intervals at `level`
    (Newcombe 1998, method 10): the squares of the ends' distances add up. p as in `p_of_ends`."""
    (was, was_low, was_high), (now, now_low, now_high) = before, after
    value = now - was
    low = float(value - np.hypot(now - now_low, was_high - was))
    high = float(value + np.hypot(now_high - now, was - was_low))
    return low, high, p_of_ends(value, low, high, level)


def p_of_ends(value: float, low: float, high: float, level: float) -> float:
    """A two-sided p-value of no difference, below 1 - `level` just where the interval excludes 0: that of a normal distribution
    whose spread is that of the interval towards 0. nan where it has none, or an end is nan."""
    spread = (value - low if value > 0 else high - value) / norm.ppf((1 + level) / 2)
    return float(2 * norm.sf(abs(value) / spread)) if spread > 0 else math.nan


def independent_rows(size: ArrayLike) -> float:
    """How many independent rows clusters of `size` (m,) rows are worth if all rows of a cluster come out alike (Kish 1965):
    (sum m)^2 / sum m^2, the number of clusters where they are equally large; 0 without a row."""
    m = np.asarray(size, np.float64)
    return float(m.sum() ** 2 / (m @ m)) if m.any() else 0.0


def same_predictions(before: ArrayLike, after: ArrayLike) -> bool:
    """Whether the logits `after` are those `before` times one number above 0, up to a constant in each row and to rounding: then
    no example whatever is predicted otherwise, and not only none of these.

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
