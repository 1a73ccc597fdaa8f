"""How often predictions are right: overall, in the worst group, and before against after."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest, norm

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
    here, there = predicted == label, named == label
    constant = np.bincount(label).max() / label.size
    if there.sum() <= here.sum() or wilson(there.sum(), label.size)[0] <= constant or mcnemar(here, there) > SURE:
        return None
    return best_order(predicted, label, classes), float(there.mean())


def wilson(hits: ArrayLike, n: ArrayLike, level: float = 0.95) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The interval of a share `hits` / `n` (Wilson 1927): within 0 and 1, and honest at both ends and for few trials.

    Any shapes that go together; where `n` is 0 nothing is known: 0 to 1.
    """
    k, n = np.asarray(hits, np.float64), np.asarray(n, np.float64)
    z2 = norm.ppf((1 + level) / 2) ** 2
    middle, half = k + z2 / 2, np.sqrt(np.maximum(k * (1 - k / np.maximum(n, 1)), 0) * z2 + z2**2 / 4)
    return np.clip((middle - half) / (n + z2), 0, 1), np.clip((middle + half) / (n + z2), 0, 1)
