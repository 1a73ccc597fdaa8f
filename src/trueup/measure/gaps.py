"""How differently groups are treated: gaps between groups, chosen on some rows and judged on others.

The largest of several differences, or the length of one, is above 0 by chance alone, and a bootstrap makes that worse. So
a third of the clusters decide which groups (and classes) are compared, and in which direction. The difference is taken on the
others. Its mean is 0 where no group is treated differently, and a bootstrap with a fixed choice is valid. (Swapping the parts, as
in cross-fitting, would use more rows, but not give a second independent estimate: the products of both parts are one product.)

Rates are shares of few rows, often near 0 or 1, where a bootstrap of the rows hardly varies: its 95% intervals of the difference
of two such shares at 200 examples held the truth in 81%. So their intervals are Wilson's (`share`) and Newcombe's (`between`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trueup.measure._rows import Floats
from trueup.measure.accuracy import independent_rows, moved_share, wilson
from trueup.measure.bootstrap import Estimate, PairedEstimate

Table = Callable[[NDArray], Floats]
"""Weights (n,) -> a table of numbers by group."""


def judged(
    table: Table, choose: Callable[[Floats], Any], judge: Callable[[Floats, Any], float], judges: NDArray[np.bool_]
) -> Callable[[NDArray | None], float]:
    """A statistic of weights (n,): `judge` of the table of the judging rows, given what `choose` chose on the other rows.

    Args:
        judges: (n,) which rows judge. The choice is made once, with every other row counted once.
    """
    pick = choose(table((~judges).astype(np.float64)))

    def statistic(weight: NDArray | None = None) -> float:
        return judge(table(judges.astype(np.float64) if weight is None else weight * judges), pick)

    return statistic


def confusion(predicted: NDArray, label: NDArray, group: NDArray, shape: tuple[int, int], weight: NDArray) -> Floats:
    """(G, C, C) the mass of each group, label and prediction; `shape` is (C, G)."""
    classes, groups = shape
    cell = (group * classes + label) * classes + predicted
    mass = np.bincount(cell, weight, groups * classes * classes).astype(np.float64)
    return mass.reshape(groups, classes, classes)


def true_positive_rates(mass: Floats) -> Floats:
    """(G, C): P(predicted c | y is c, group), from the mass of :func:`confusion`; nan without mass."""
    with np.errstate(invalid="ignore"):
        return np.einsum("gcc->gc", mass) / mass.sum(axis=2)


def false_positive_rates(mass: Floats) -> Floats:
    """(G, C): P(predicted c | y is not c, group), from the mass of :func:`confusion`; nan without mass."""
    other_labels = 1 - np.eye(mass.shape[1])
    with np.errstate(invalid="ignore"):
        return (mass * other_labels).sum(axis=1) / (mass.sum(axis=2) @ other_labels)


def widest(rates: Floats) -> tuple[int, int, int]:
    """The class of the widest gap in `rates` (G, C), and its highest and lowest groups. Among equals the first is taken."""
    low, high = np.nanmin(rates, axis=0), np.nanmax(rates, axis=0)
    c = int(np.argmax(high - low))
    return c, int(np.nanargmax(rates[:, c])), int(np.nanargmin(rates[:, c]))


def gap(rates: Floats, pick: tuple[int, int, int]) -> float:
    """The difference of the `rates` (G, C) of two groups in one class, picked by :func:`widest`. Unit: probability. 0 is equal."""
    c, high, low = pick
    return float(rates[high, c] - rates[low, c])


def lowest(rates: Floats) -> tuple[int, int]:
    """The group and the class of the lowest of `rates` (G, C)."""
    g, c = np.unravel_index(int(np.nanargmin(rates)), rates.shape)
    return int(g), int(c)


def share(
    event: NDArray[np.bool_], rows: NDArray[np.bool_], cluster: NDArray, *, variance: float = 1.0, level: float = 0.95
) -> Estimate:
    """The share of `rows` in which `event` is true, with Wilson's interval. Without a row it is nan, with the interval 0 to 1.

    The number of trials is `independent_rows` of the clusters: their number where they are equally large.

    Args:
        event, rows: (n,) booleans. cluster: (n,) rows of equal number belong together.
        variance: the factor by which the variance of the share exceeds that of as many independent trials.

    Unit: share of rows, 0 to 1. No polarity.
    """
    trials = independent_rows(np.unique(cluster[rows], return_counts=True)[1]) / variance
    value = float(event[rows].mean()) if rows.any() else math.nan
    low, high = wilson(0.0 if math.isnan(value) else value * trials, trials, level)
    return Estimate(value, float(low), float(high), level)


def between(high: Estimate, low: Estimate) -> Estimate:
    """The difference `high` - `low` of two independent shares (`accuracy.moved_share`)."""
    down, up, _ = moved_share(_ends(low), _ends(high), high.level)
    return Estimate(high.value - low.value, down, up, high.level)


def change(high: PairedEstimate, low: PairedEstimate) -> PairedEstimate:
    """The change of the difference of two independent shares, from the change of each (`accuracy.moved_share`)."""
    down, up, p = moved_share(_ends(low), _ends(high), high.level)
    return PairedEstimate(high.value - low.value, down, up, p, high.level)


def _ends(e: Estimate | PairedEstimate) -> tuple[float, float, float]:
    return e.value, e.low, e.high


def mean_predictions(probability: NDArray, label: NDArray, group: NDArray, groups: int, weight: NDArray) -> Floats:
    """(C, G, C): the mean prediction of the rows of each label and group; nan without mass."""
    classes = probability.shape[1]
    cell = label * groups + group
    mass = np.bincount(cell, weight, classes * groups)
    sums = np.stack([np.bincount(cell, weight * p, classes * groups) for p in probability.T], axis=1)
    with np.errstate(invalid="ignore"):
        return (sums / mass[:, None]).reshape(classes, groups, classes)


def farthest(mean: Floats) -> list[tuple[int, int, list[float]]]:
    """For each label, the two groups whose mean predictions (C, G, C) lie farthest apart, and the sign of each class' part."""
    found = []
    for m in mean:
        apart = np.nan_to_num(np.abs(m[:, None] - m[None]).sum(axis=2))
        a, b = np.unravel_index(int(apart.argmax()), apart.shape)
        found.append((int(a), int(b), np.sign(np.nan_to_num(m[a] - m[b])).tolist()))
    return found


def moved(mean: Floats, pick: list[tuple[int, int, list[float]]]) -> float:
    """The mean over labels of the total variation distance of the groups that :func:`farthest` picks in `mean` (C, G, C).

    Unit: probability. 0 is no difference. nan where no label has both groups.
    """
    found = [0.5 * float(np.array(s) @ (m[a] - m[b])) for m, (a, b, s) in zip(mean, pick, strict=True)]
    defined = [f for f in found if not math.isnan(f)]
    return float(np.mean(defined)) if defined else math.nan
