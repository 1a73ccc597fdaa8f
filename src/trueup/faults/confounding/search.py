"""Which of many columns a classifier leans on: put forward by some examples, judged on others. Arrays only, no model.

Examples that judge choose nothing. Each column that the searching examples put forward comes with the way of its coupling, so that
its lean is expected above 0; on the judging examples that is a test of "the lean is at most the threshold", with the false
discovery rate controlled over all columns that were judged (Benjamini and Hochberg 1995). The intervals of those that are named are
at the level that goes with the choice (Benjamini and Yekutieli 2005: false coverage rate). They are two-sided, and so p is twice
the upper tail: a column is named exactly when its interval lies above the threshold.
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
"""Of columns that are named, the share that may be wrong in expectation."""
JUDGED = 40
"""Most columns that are put forward. Each one judged makes the others' proof harder."""
PROMISING = 0.02
"""Lean on the searching examples below which a column is not put forward."""
ALIKE = 0.9
"""Correlation of two columns' head starts from which they are one column twice."""
CHECKED = 0.8
"""The same from which a cluster of hidden states gives way to a column that can be checked by reading."""
RESAMPLES = 200
HALVES, STABLE, SPARSE = 20, 0.6, 0.7
"""Stability selection (Meinshausen and Buhlmann 2010): half samples, the share of them that must choose a word, and the lasso's
penalty as a share of the universal one (Donoho and Johnstone 1994), below which correlations by chance begin."""


@dataclass(frozen=True, eq=False)
class Side:
    """Examples that search, or that judge: centred logits (n, C), label and cluster (n,)."""

    score: Floats
    label: NDArray
    cluster: NDArray


@dataclass(frozen=True, eq=False)
class Lead:
    """A column that was put forward.

    Attributes:
        column: its place among those tried. groups: its values, sorted.
        starts: (C, G) mean score of each class in each group at a given label. coupling: (C, G) logs, along the head starts.
        lean: on the examples that searched, by which it was chosen, and so too high.
    """

    column: int
    groups: tuple[str, ...]
    starts: Floats
    coupling: Floats
    lean: float


@dataclass(frozen=True, eq=False)
class Judgement:
    """What the judging examples say of one lead.

    Attributes:
        lean, low, high: with an interval at the level that goes with the choice; AUPRC lost when a coupling of 3 is reversed.
        p: of a lean at most the threshold, twice the tail. q: the false discovery rate at which it is named. named: q is at most
            `RATE`, and so low is above the threshold.
        error: standard error. df: degrees of freedom, by the clusters of the rarest (label, group) cell.
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
    """(n,) the place of each value in sorted `groups`; None where one is not among them."""
    at = np.clip(np.searchsorted(np.asarray(groups), values), 0, len(groups) - 1)
    return at if (np.asarray(groups)[at] == values).all() else None


def lead(column: int, values: NDArray, side: Side) -> Lead | None:
    """What the searching examples say of a column; None where a (label, group) cell has fewer than `FEWEST` clusters."""
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
    """The most promising leads, the strongest first and no column twice; and how many columns are too rare to say anything.

    Args:
        hidden: places of columns that nobody can check by reading (clusters of hidden states). One of them gives way to a promising
            column like it that can be checked. A state holds something of the label beside the cue, so that its lean is larger.
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
    """What a column adds to every example's scores, as a vector of length 1."""
    shift = lean.interaction(starts).T[group]
    shift = (shift - shift.mean(axis=0)).ravel()
    return shift / max(float(np.linalg.norm(shift)), 1e-300)


def alike(a: Lead, b: Lead, columns: Sequence[NDArray]) -> float:
    """Correlation of what two leads add to the scores of the examples that `columns` are of."""
    one, other = (_shift(x.starts, np.searchsorted(np.asarray(x.groups), columns[x.column])) for x in (a, b))
    return float(one @ other)


def judge(
    leads: Sequence[Lead], columns: Sequence[NDArray], side: Side, *, threshold: float, seed: int
) -> tuple[list[Judgement], int]:
    """Every lead on examples that chose nothing, the dearest to reverse first and those named before others; and how many leads
    are too rare there.

    Args:
        columns: (n,) of strings for each lead, in their order.
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
    """The lean that this many judging examples would name in `power` of cases, standing alone among those judged; nan of none."""
    if not judged:
        return math.nan
    error = float(np.median([j.error for j in judged]))
    df = float(np.median([j.df for j in judged]))
    return threshold + error * float(t.ppf(1 - RATE / len(judged) / 2, df) + norm.ppf(power))


def needed(judged: Sequence[Judgement], threshold: float, clusters: int, power: float = 0.8) -> int | None:
    """Judging clusters that would name the strongest of `judged` in `power` of cases if it is as strong as it looks; None where
    it looks no stronger than the threshold."""
    best = max(judged, key=lambda j: j.lean, default=None)
    if best is None or best.lean <= threshold:
        return None
    z = norm.ppf(1 - RATE / len(judged) / 2) + norm.ppf(power)
    return max(clusters, math.ceil(clusters * float(z * best.error / (best.lean - threshold)) ** 2))


def telling(has: Any, targets: Floats, cluster: NDArray, seed: int) -> NDArray[np.bool_]:
    """(m,) which of m words predict one of the targets beyond the other words: chosen by the lasso in most half samples.

    Args:
        has: (n, m) sparse, whether each example has each word. targets: (n, k) numbers to predict. cluster: (n,) of half samples.
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
    """(n, 2C + 1) what words are to predict: each class as the label, the head start of each at a given label, and the error;
    (n, 3) for two classes, of which one says what the other says."""
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
    """Clusters of hidden states, to which further examples can be assigned: x -> the nearest centre after a projection."""

    mean: Floats
    basis: Floats
    centres: Floats

    def distances(self, x: NDArray) -> Floats:
        """(n, k) squared distance of each example to each centre."""
        at = (x - self.mean) @ self.basis
        return ((at[:, None] - self.centres) ** 2).sum(axis=2)


PARTITIONS, DIMENSIONS = (2, 4, 8), 12


def partitions(x: NDArray, seed: int) -> list[Partition]:
    """Clusters of hidden states (n, d), `PARTITIONS` of them at a time, in the plane of their main directions."""
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
