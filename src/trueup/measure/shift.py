"""How a score depends on the coupling of label and confounder, with both margins held fixed.

The confounding-shift protocol keeps P(y) and P(z) and changes P(y | z). A `table` (C, G) holds the mass of each cell: rows
are labels y, columns are groups z. Its cells are shares or counts, and a returned table has the total of the given one. For
2 x 2 the coupling is one number, alpha = P(y=1 | z=1) / P(y=1 | z=0). 1 is no coupling, and the mirror image of a coupling
alpha is 1 / alpha. All functions raise BadInput on empty columns, columns of unequal length, and codes outside the table.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trueup.errors import BadInput
from trueup.measure._rows import Floats, column, counts, levels, score

STEPS = 200_000
"""Rounds of proportional fitting after which :func:`coupled_as` gives up. An ordinary table takes about twenty."""


def joint(label: ArrayLike, group: ArrayLike, classes: int, groups: int, *, weight: ArrayLike | None = None) -> Floats:
    """The share of each (label, group) cell, (C, G), summing to 1.

    Args:
        label, group: (n,) numbers below `classes` and below `groups`.
        weight: (n,) how often each row counts; None for once.

    Unit: share of examples, 0 to 1. No polarity.
    """
    return _joint(_cells(label, group, classes, groups), classes, groups, weight)


def alpha_of(table: ArrayLike) -> float:
    """The coupling of a 2 x 2 table: P(y=1 | z=1) / P(y=1 | z=0).

    Unit: ratio, 0 upwards; 1 is no coupling. No polarity.
    Raises: BadInput on other shapes, a row or column without mass, or P(y=1 | z=0) = 0.
    """
    t = _two(table)
    if not t[1, 0]:
        raise BadInput(
            "The table has no mass at y=1, z=0, so alpha divides by 0; give a table with examples in that cell, or swap "
            "the two groups."
        )
    without, with_ = t[1] / t.sum(axis=0)
    return float(with_ / without)


def feasible_alphas(table: ArrayLike) -> tuple[float, float]:
    """The open interval of alpha at which a table of the same margins has mass in every cell.

    Let Cy = P(y=1) and Cz = P(z=1). P(y=1 | z=0) < 1 requires alpha > (Cy + Cz - 1) / Cz. Where Cy > Cz, P(y=1 | z=1) < 1
    requires alpha < (1 - Cz) / (Cy - Cz); otherwise the high end is infinite. At the ends one cell is empty.

    Unit: ratio. Raises: BadInput as :func:`alpha_of`, except that P(y=1 | z=0) may be 0.
    """
    t = _two(table)
    (a, b), (c, d) = t / t.sum()
    # Cy + Cz - 1 = d - a and Cy - Cz = c - b, without the rounding of margins that nearly cancel
    return max(0.0, float((d - a) / (b + d))), float((a + c) / (c - b)) if c > b else math.inf


def table_at(table: ArrayLike, alpha: float) -> Floats:
    """The 2 x 2 table of the same margins whose coupling is `alpha` (confounding-shift protocol; DeconDTN's code).

    P(y=1 | z=0) = Cy / (1 - (1 - alpha) Cz), and P(y=1 | z=1) is alpha times that.

    Raises: BadInput as :func:`feasible_alphas`, or when `alpha` lies outside the interval that it returns.
    """
    t = _two(table)
    low, high = feasible_alphas(t)
    if not low < alpha < high:
        raise BadInput(
            f"alpha is {alpha:g}, and these margins (P(y=1) = {t[1].sum() / t.sum():.3g}, P(z=1) = "
            f"{t[:, 1].sum() / t.sum():.3g}) allow {_between(low, high)}; give one of these, or other margins."
        )
    mass_0, mass_1 = t.sum(axis=0)
    p = t[1].sum() / (mass_0 + alpha * mass_1)
    cells = np.array([[mass_0 * (1 - p), mass_1 * (1 - alpha * p)], [mass_0 * p, mass_1 * alpha * p]])
    return np.maximum(cells, 0.0)  # near an end of the interval, rounding alone can make a cell negative


def _fitted(cells: Floats, margins: Floats) -> Floats | None:
    """exp(`cells`) brought to the margins of a table by proportional fitting, in logs; None where that does not converge."""
    row, col = np.log(margins.sum(axis=1)), np.log(margins.sum(axis=0))
    for _ in range(STEPS):
        cells = cells + (row - np.logaddexp.reduce(cells, axis=1))[:, None]
        off = col - np.logaddexp.reduce(cells, axis=0)
        cells = cells + off
        if np.abs(off).max() <= 1e-12:
            return np.exp(cells)
    return None


def _alike(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """Both tables, of one shape. Raises BadInput."""
    if a.shape != b.shape:
        raise BadInput(f"The tables are {a.shape} and {b.shape}; give two of one shape.")
    return a, b


def coupled_as(table: ArrayLike, other: ArrayLike) -> Floats:
    """The table with the margins of `table` and the odds ratios, hence the coupling, of `other`, which has the same shape.

    It starts from the cells of `other`. Iterative proportional fitting to the margins (Deming and Stephan 1940) changes no odds
    ratio. It runs in logs until no margin is off by more than 1e-12 of itself. Where both have the same margins the result is
    `other`.

    Raises: BadInput on other shapes, or a cell of `other` without mass (add 1/2 to counts, for example).
    """
    t, o = _alike(_mass(table), _mass(other))
    if not o.all():
        c, g = np.argwhere(o == 0)[0]
        raise BadInput(
            f"The other table has no mass at y={c}, z={g}, so its coupling has no end; add 1/2 to each count."
        )
    fitted = _fitted(np.log(o), t)
    if fitted is None:
        raise BadInput("No table of these margins has these odds ratios to be found: its cells are too near 0.")
    return fitted


def reweighted(label: ArrayLike, group: ArrayLike, target: ArrayLike, *, weight: ArrayLike | None = None) -> Floats:
    """Weights (n,) under which the joint distribution of label and group is `target`. Their sum is that of `weight`.

    The weight of each row is multiplied by target / joint of its cell. A cell of `target` without rows (a resample may lack
    one) is left out, and the other cells share its mass in proportion. Where no cell of `target` has rows, all weights are 0.

    Args:
        label, group: (n,) numbers below C and below G.
        target: (C, G) masses of the cells, in any unit.
        weight: (n,) how often each row counts; None for once.

    Unit: how often each row counts, mean 1 over the mass of `weight`. No polarity.
    """
    t = _mass(target, margins=False)
    cell = _cells(label, group, *t.shape)
    w = counts(weight, cell.size)
    cell_mass = np.bincount(cell, w, t.size)
    target_mass = np.where(cell_mass > 0, t.ravel(), 0.0)
    present = target_mass.sum()
    if not present:
        return np.zeros(cell.size)
    ratio = np.divide(target_mass * (cell_mass.sum() / present), cell_mass, out=np.zeros(t.size), where=cell_mass > 0)
    return ratio[cell] if w is None else w * ratio[cell]


def auprc(probability: ArrayLike, label: ArrayLike, *, weight: ArrayLike | None = None) -> float:
    """Area under precision against recall as average precision: sum over thresholds of precision times recall gained.

    It is the mean over the classes that occur, each against the rest. Two classes are treated like more, so that the naming of
    classes does not matter. Each average precision is a sum of steps without interpolation, with ties collapsed, as in
    scikit-learn's ``average_precision_score``. nan when fewer than two classes occur. A random ranking scores the mean
    prevalence, so compare only at equal P(y).

    Args:
        probability: (n, C) scores, higher for likelier. Only their order within a column matters.
        label: (n,) class numbers 0 to C - 1.
        weight: (n,) how often each row counts; None for once.

    Unit: precision, 0 to 1. Higher is better.
    Raises: BadInput on wrong shapes, nan, or labels outside the classes.
    """
    p, label = _scores(probability, label)
    each = [_average_precision(p[:, c], label == c, weight) for c in range(p.shape[1])]
    each = [a for a in each if not math.isnan(a)]
    return float(np.mean(each)) if each else math.nan


def auprc_at(
    probability: ArrayLike, label: ArrayLike, group: ArrayLike, target: ArrayLike, *, weight: ArrayLike | None = None
) -> float:
    """:func:`auprc` with the weights of :func:`reweighted`: its value where label and group are coupled as in `target`.

    It assumes that P(x | y, z) does not change, as the protocol does. Every example counts at every coupling, so the value
    varies less than that of a test set drawn at `target`, of which it is the limit. nan also when no cell of `target` has
    rows.

    Unit: precision, 0 to 1. Higher is better.
    """
    w = reweighted(label, group, target, weight=weight)
    return auprc(probability, label, weight=w) if w.any() else math.nan


def slope_on_log_alpha(alphas: ArrayLike, values: ArrayLike) -> float:
    """Least-squares slope of `values` (k,) on log10 of `alphas` (k,). nan when a value is nan.

    Unit: that of the values, per tenfold alpha. 0 is best: the score does not depend on the coupling. The slope is above 0
    where the score rises with alpha, so its sign is that of the coupling that the classifier relies on.
    Raises: BadInput on alphas not above 0, or fewer than two different ones.
    """
    a = column(alphas, "alphas").astype(np.float64)
    v = column(values, "values", a.size).astype(np.float64)
    if not ((a > 0) & (a < np.inf)).all() or np.unique(a).size < 2:
        raise BadInput("alphas must be above 0, finite, and of two values or more; give say 0.2, 1 and 5.")
    x = np.log10(a)
    x -= x.mean()
    return float(x @ v / (x @ x))


# ---------------------------------------------------------------------------------------------------------------------
# Checks and counting


def _mass(table: ArrayLike, *, margins: bool = True) -> Floats:
    """`table` as (C, G) floats at least 0, with mass; with `margins`, in every row and column. Raises BadInput."""
    t = np.asarray(table, np.float64)
    if t.ndim != 2 or not t.size:
        raise BadInput(f"The table has shape {t.shape}; give one row for each class and one column for each group.")
    if not (t >= 0).all() or not 0 < t.sum() < np.inf:
        raise BadInput("The table must be finite, at least 0 and not 0 everywhere; give the mass of each cell.")
    if margins:
        for name, axis in (("row y", 1), ("column z", 0)):
            if (empty := np.flatnonzero(t.sum(axis=axis) == 0)).size:
                raise BadInput(f"The table has no mass in {name}={empty[0]}; give a table with examples there.")
    return t


def _two(table: ArrayLike) -> Floats:
    t = _mass(table)
    if t.shape != (2, 2):
        raise BadInput(
            f"The table has shape {t.shape} and alpha is for 2 x 2; give two classes and two groups, or use `coupled_as`."
        )
    return t


def _between(low: float, high: float) -> str:
    return f"alpha above {low:.3g}" + ("" if math.isinf(high) else f" and below {high:.3g}")


def _codes(values: ArrayLike, name: str, n: int | None = None, size: int | None = None) -> NDArray[np.intp]:
    """`values` as (n,) whole numbers at least 0 and below `size`. Raises BadInput."""
    array = column(values, name, n)
    if array.dtype.kind not in "biu" or array.min() < 0 or (size is not None and array.max() >= size):
        range_text = "from 0 upwards" if size is None else f"0 to {size - 1}"
        raise BadInput(f"{name} must hold whole numbers {range_text}; give the index of each value, not its name.")
    return array.astype(np.intp, copy=False)


def _cells(label: ArrayLike, group: ArrayLike, classes: int, groups: int) -> NDArray[np.intp]:
    label = _codes(label, "label", size=classes)
    return label * groups + _codes(group, "group", label.size, groups)


def _joint(cell: NDArray[np.intp], classes: int, groups: int, weight: ArrayLike | None) -> Floats:
    have = np.bincount(cell, counts(weight, cell.size), classes * groups).reshape(classes, groups)
    return have / have.sum()


def _scores(probability: ArrayLike, label: ArrayLike) -> tuple[Floats, NDArray[np.intp]]:
    p = np.asarray(probability)
    if p.ndim != 2 or not p.size or p.shape[1] < 2:
        raise BadInput(
            f"probability has shape {p.shape}; give one row for each example and one column for each of two or more "
            "classes."
        )
    flat = score(p.ravel(), "probability")
    return flat.reshape(p.shape), _codes(label, "label", len(p), p.shape[1])


def _average_precision(confidence: Floats, hit: NDArray, weight: ArrayLike | None) -> float:
    _, mass, hits = levels(confidence, hit, weight)
    positive = hits.sum()
    if not positive or not (mass > hits).any():
        return math.nan
    return float(hits @ (np.cumsum(hits) / np.cumsum(mass)) / positive)
