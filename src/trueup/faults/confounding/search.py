"""Which of many columns a classifier leans on: selected on some examples, judged on others. Arrays only, no model.

The searching examples select columns, and the judging examples choose nothing. A selected column (a lead) comes with the direction
of its coupling, so its lean is expected to be above 0. The judging examples test the hypothesis "the lean is at most the
threshold". The false discovery rate is controlled over all judged columns (Benjamini and Hochberg 1995), and columns that pass are
named. The level of the intervals of named columns allows for this selection (Benjamini and Yekutieli 2005: false coverage rate).
The intervals are two-sided, so p is twice the upper tail: a column is named exactly when its interval lies above the threshold.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array
from scipy.stats import false_discovery_control, norm, t

from trueup.faults.confounding.mixes import FEWEST, in_cells
from trueup.measure import bootstrap, lean
from trueup.measure.folds import folds

Floats = NDArray[np.float64]
RATE = 0.05
"""The false discovery rate: the expected share of named columns that may be wrong."""
JUDGED = 40
"""The most columns that are selected. Each further column that is judged makes it harder to prove the others."""
PROMISING = 0.02
"""A column with at most this lean on the searching examples is not selected."""
ALIKE = 0.9
"""Above this correlation of their head starts, two columns count as the same column."""
CHECKED = 0.8
"""Above this correlation, a column that can be checked by reading is preferred to a cluster of hidden states."""
RESAMPLES = 200
HALVES, STABLE, SPARSE = 20, 0.6, 0.7
"""Stability selection (Meinshausen and Buhlmann 2010): the number of half samples, the share of them that must choose a word, and
the lasso's penalty as a share of the universal one (Donoho and Johnstone 1994), below which correlations by chance begin."""


@dataclass(frozen=True, eq=False)
class Side:
    """The examples that search, or those that judge: centred logits (n, C), label and cluster (n,)."""

    score: Floats
    label: NDArray
    cluster: NDArray


@dataclass(frozen=True, eq=False)
class Lead:
    """A column that the searching examples select.

    Attributes:
        column: its index among the columns tried. groups: its values, sorted.
        starts: (C, G) mean score of each class in each group at a given label. coupling: (C, G) logs, along the head starts.
        lean: the lean on the searching examples. It is biased upwards, because it was the criterion of the selection.
    """

    column: int
    groups: tuple[str, ...]
    starts: Floats
    coupling: Floats
    lean: float


@dataclass(frozen=True, eq=False)
class Judgement:
    """The results for one lead on the judging examples.

    Attributes:
        lean, low, high: the AUPRC lost when a coupling of 3 is reversed. The level of the interval allows for the selection.
        p: p-value of "the lean is at most the threshold", twice the tail. q: the false discovery rate at which it is named.
            named: q is at most `RATE`, and so `low` is above the threshold.
        error: the standard error. df: degrees of freedom, from the clusters of the rarest (label, group) cell.
    """

    lead: Lead
    lean: float
    low: float
    high: float
    p: float
    q: float
    named: bool
    error: float
    df: int


def indexed(values: NDArray, groups: Sequence[str]) -> NDArray[np.intp] | None:
    """(n,) the index of each value in the sorted `groups`; None where a value is not among them."""
    at = np.clip(np.searchsorted(np.asarray(groups), values), 0, len(groups) - 1)
    return at if (np.asarray(groups)[at] == values).all() else None


def lead(column: int, values: NDArray, side: Side) -> Lead | None:
    """The lead of a column on the searching examples; None where a (label, group) cell has fewer than `FEWEST` clusters.

    It is None, too, for a column with one value or without any head start.
    """
    groups, group = np.unique(values, return_inverse=True)
    shape = (side.score.shape[1], len(groups))
    if len(groups) < 2 or not _whole(side, group, shape):
        return None
    starts = lean.head_starts(side.score, side.label, group, shape)
    if np.abs(lean.interaction(starts)).max() < 1e-12:
        return None
    coupling = lean.along(starts)
    drop, floor = lean.drop_and_floor(side.score, side.label, group, coupling)
    return Lead(column, tuple(map(str, groups)), starts, coupling, float(drop - floor))


def _whole(side: Side, group: NDArray, shape: tuple[int, int]) -> bool:
    cells = in_cells(side.label, group, side.cluster)
    return cells.shape == shape and bool(cells.min() >= FEWEST)


def put_forward(columns: Sequence[NDArray], side: Side, hidden: Collection[int] = ()) -> tuple[list[Lead], int]:
    """The most promising leads, the strongest first and without duplicates; and the number of columns that give no lead.

    Args:
        hidden: indices of columns that nobody can check by reading (clusters of hidden states). Such a column is dropped where a
            promising column like it can be checked. The lean on a state is larger, because the state also depends on the label.
    """
    every = [lead(i, values, side) for i, values in enumerate(columns)]
    promising = sorted((x for x in every if x is not None and x.lean > PROMISING), key=lambda x: (-x.lean, x.column))
    shifts = {x.column: _shift(x.starts, np.searchsorted(np.asarray(x.groups), columns[x.column])) for x in promising}
    plain = [shifts[x.column] for x in promising if x.column not in hidden]
    found: list[Lead] = []
    for one in promising:
        shift = shifts[one.column]
        given_way = one.column in hidden and any(shift @ other > CHECKED for other in plain)
        if not given_way and not any(shift @ shifts[x.column] > ALIKE for x in found):
            found.append(one)
        if len(found) == JUDGED:
            break
    return found, sum(x is None for x in every)


def _shift(starts: Floats, group: NDArray) -> Floats:
    """The contribution of a column's head starts to the scores of every example, scaled to a vector of length 1."""
    shift = lean.interaction(starts).T[group]
    shift = (shift - shift.mean(axis=0)).ravel()
    return shift / max(float(np.linalg.norm(shift)), 1e-300)


def alike(a: Lead, b: Lead, columns: Sequence[NDArray]) -> float:
    """Correlation of the contributions (`_shift`) of two leads to the scores of the examples that `columns` describe."""
    one, other = (_shift(x.starts, np.searchsorted(np.asarray(x.groups), columns[x.column])) for x in (a, b))
    return float(one @ other)


def judge(
    leads: Sequence[Lead], columns: Sequence[NDArray], side: Side, *, threshold: float, seed: int
) -> tuple[list[Judgement], int]:
    """Judge every lead on examples that chose nothing. Named leads come first, and a larger lean before a smaller one.

    The second result is the number of leads that could not be judged, mostly because they are too rare in these examples.

    Args:
        columns: for each lead, in their order, (n,) strings: the column's values.
    """
    found: list[tuple[Lead, float, float, int]] = []
    for one, values in zip(leads, columns, strict=True):
        group = indexed(values, one.groups)
        if group is None or not _whole(side, group, one.coupling.shape):
            continue
        of = bootstrap.Many(
            lambda score, label, group, weight, c=one.coupling: np.subtract(
                *lean.drop_and_floor(score, label, group, c, weight=weight)
            )
        )
        value, error = bootstrap.standard_error(
            of, side.score, side.label, group, seed=seed, resamples=RESAMPLES, cluster=side.cluster
        )
        if math.isfinite(error) and error > 0:
            rarest = int(in_cells(side.label, group, side.cluster).min())
            found.append((one, value, error * math.sqrt(rarest / (rarest - 1)), rarest - 1))
    if not found:
        return [], len(leads)
    p = np.array([min(1.0, 2 * float(t.sf((value - threshold) / error, df))) for _, value, error, df in found])
    q = np.asarray(false_discovery_control(p))
    named = q <= RATE
    level = RATE * max(int(named.sum()), 1) / len(found)
    judged = []
    for k, (one, value, error, df) in enumerate(found):
        half = float(t.ppf(1 - level / 2, df)) * error
        judged.append(
            Judgement(one, value, value - half, value + half, float(p[k]), float(q[k]), bool(named[k]), error, df)
        )
    return sorted(judged, key=lambda j: (not j.named, -j.lean, j.lead.column)), len(leads) - len(found)


def smallest(judged: Sequence[Judgement], threshold: float, power: float = 0.8) -> float:
    """The lean that would be named in `power` of cases with these examples, as the only one named; nan where none was judged."""
    if not judged:
        return math.nan
    error = float(np.median([j.error for j in judged]))
    df = float(np.median([j.df for j in judged]))
    return threshold + error * float(t.ppf(1 - RATE / len(judged) / 2, df) + norm.ppf(power))


def needed(judged: Sequence[Judgement], threshold: float, clusters: int, power: float = 0.8) -> int | None:
    """The number of judging clusters at which the strongest of `judged` would be named in `power` of cases.

    Its true lean is taken to be the estimate. None where the estimate is not above the threshold, or nothing was judged.
    """
    best = max(judged, key=lambda j: j.lean, default=None)
    if best is None or best.lean <= threshold:
        return None
    z = norm.ppf(1 - RATE / len(judged) / 2) + norm.ppf(power)
    return max(clusters, math.ceil(clusters * float(z * best.error / (best.lean - threshold)) ** 2))


def telling(has: Any, targets: Floats, cluster: NDArray, seed: int) -> NDArray[np.bool_]:
    """(m,) which of m words predict one of the targets given the other words: the lasso chooses them in most half samples.

    Args:
        has: (n, m) sparse, whether each example has each word. targets: (n, k) numbers to predict.
        cluster: (n,); half samples are drawn by clusters.
    """
    from sklearn.linear_model import Lasso

    n, m = has.shape
    chosen = np.zeros((targets.shape[1], m))
    x = csr_array(has.astype(np.float64))
    share = np.asarray(x.mean(axis=0)).ravel()
    x = csr_array(x.multiply(1 / np.sqrt(np.maximum(share * (1 - share), 1e-12))))  # words of one spread, rare or not
    for h in range(HALVES // 2):
        half = folds(np.zeros(n), 2, seed=np.random.SeedSequence([seed, 21, h]), cluster=cluster)
        for side in (0, 1):
            rows = np.flatnonzero(half == side)
            part = csc_array(x[rows])
            part.indices, part.indptr = (
                part.indices.astype(np.int32),
                part.indptr.astype(np.int32),
            )  # what scikit-learn takes
            least = SPARSE * math.sqrt(2 * math.log(max(m, 2)) / max(rows.size, 1))
            for k, y in enumerate(targets[rows].T):
                if not (spread := float(y.std())):
                    continue
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # a fit that has not converged votes all the same
                    chosen[k] += Lasso(alpha=least * spread, max_iter=200, tol=1e-3).fit(part, y).coef_ != 0
    return np.asarray((chosen / HALVES >= STABLE).any(axis=0), bool)


def targets(side: Side) -> Floats:
    """(n, 2C + 1) the targets that words have to predict: (n, 3) for two classes, where one of them determines the other.

    They are the label as an indicator of each class, the score of each class less its mean at the label, and the error.
    """
    classes = side.score.shape[1]
    is_label = np.eye(classes)[side.label]
    start = side.score.copy()
    for y in np.unique(side.label):
        start[side.label == y] -= start[side.label == y].mean(axis=0)
    wrong = (side.score.argmax(axis=1) != side.label).astype(float)
    first = 1 if classes == 2 else 0
    return np.column_stack([is_label[:, first:], start[:, first:], wrong])


@dataclass(frozen=True, eq=False)
class Partition:
    """Clusters of hidden states. Further examples can be assigned to them: the nearest centre after a projection."""

    mean: Floats
    basis: Floats
    centres: Floats

    def distances(self, x: NDArray) -> Floats:
        """(n, k) squared distance of each example to each centre."""
        at = (x - self.mean) @ self.basis
        return ((at[:, None] - self.centres) ** 2).sum(axis=2)


PARTITIONS, DIMENSIONS = (2, 4, 8), 12


def partitions(x: NDArray, seed: int) -> list[Partition]:
    """Partitions of hidden states (n, d) into 2, 4 and 8 clusters (`PARTITIONS`), in the space of their main `DIMENSIONS`."""
    from sklearn.cluster import KMeans

    mean = x.mean(axis=0, dtype=np.float64)
    _, _, main = np.linalg.svd(x - mean, full_matrices=False)
    basis = main[:DIMENSIONS].T
    found = []
    for k in PARTITIONS:
        if k * 2 * FEWEST <= len(x):
            fit: Any = KMeans(n_clusters=k, n_init=4, random_state=seed).fit((x - mean) @ basis)  # pyright: ignore[reportArgumentType]
            found.append(Partition(mean, basis, np.asarray(fit.cluster_centers_, np.float64)))
    return found
