"""Checks of columns, and the one sort that every measure shares. Private to `trueup.measure`."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trueup.errors import BadInput

Floats = NDArray[np.float64]


def column(values: ArrayLike, name: str, n: int | None = None) -> NDArray:
    """`values` as a one-dimensional array of at least one row, and of `n` rows when given. Raises BadInput."""
    array = np.asarray(values)
    if array.ndim != 1 or not array.size:
        raise BadInput(f"{name} has shape {array.shape}; give one value for each of one or more examples.")
    if n is not None and array.size != n:
        raise BadInput(f"{name} has {array.size} rows where {n} are expected; give all columns of the same examples.")
    return array


def truth(values: ArrayLike, name: str, n: int | None = None) -> NDArray:
    """`values` as a boolean column. 0 and 1 are accepted too; anything else raises BadInput."""
    array = column(values, name, n)
    if array.dtype == np.bool_:
        return array
    if array.dtype.kind not in "iuf" or not ((array == 0) | (array == 1)).all():
        raise BadInput(f"{name} has values other than true and false; give booleans, or 0 and 1.")
    return array.astype(np.bool_)


def score(values: ArrayLike, name: str, n: int | None = None) -> Floats:
    """`values` as a float column that can be ranked: infinities are allowed, nan raises BadInput."""
    array = column(values, name, n)
    if array.dtype.kind not in "biuf":
        raise BadInput(f"{name} is of type {array.dtype}; give numbers.")
    array = array.astype(np.float64, copy=False)
    if np.isnan(array).any():
        raise BadInput(f"{name} has nan, which cannot be ranked; drop these examples or give them a finite score.")
    return array


def counts(weight: ArrayLike | None, n: int) -> Floats | None:
    """How often each row counts, as floats at least 0 and not all 0; None (each row counts once) stays None. Raises BadInput."""
    if weight is None:
        return None
    array = column(weight, "weight", n).astype(np.float64, copy=False)
    low, total = array.min(), array.sum()
    if not low >= 0 or not 0 < total < np.inf:
        raise BadInput("weight must be finite, at least 0 and not 0 everywhere; give how often each example counts.")
    return array


def mean(values: NDArray, weight: ArrayLike | None) -> float:
    """The mean of `values` (n,), each row counted `weight` times."""
    w = counts(weight, values.size)
    return float(values.mean()) if w is None else float(w @ values / w.sum())


def levels(confidence: Floats, hit: NDArray, weight: ArrayLike | None) -> tuple[Floats, Floats, Floats]:
    """Collapses ties: for each distinct confidence, highest first, the confidence, its mass, and the mass of its hits.

    Every measure that ranks uses this function, so a tied group can never be split and the order of rows cannot matter.
    Rows of weight 0 are left out. Rows that already come in descending confidence are not sorted again.
    """
    w = counts(weight, confidence.size)
    if w is not None:
        nonzero = np.flatnonzero(w)
        confidence, hit, w = confidence[nonzero], hit[nonzero], w[nonzero]
    if (confidence[1:] > confidence[:-1]).any():
        order = np.argsort(-confidence)
        confidence, hit, w = confidence[order], hit[order], None if w is None else w[order]
    first = np.concatenate(([0], np.flatnonzero(confidence[1:] != confidence[:-1]) + 1))
    if w is None:
        mass = np.diff(np.append(first, confidence.size)).astype(np.float64)
        hits = np.add.reduceat(hit.astype(np.float64), first)
    else:
        mass = np.add.reduceat(w, first)
        hits = np.add.reduceat(w * hit, first)
    return confidence[first], mass, hits
