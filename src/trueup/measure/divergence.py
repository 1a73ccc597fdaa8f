"""How far apart two clouds of features lie, and how well a probe tells the groups they come from."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trueup.errors import BadInput
from trueup.measure._rows import Floats, column
from trueup.measure.folds import folds as dealt

Seed = int | np.random.SeedSequence

CAP = 200
"""Examples of one (label, group) cell that a probe sees at most, to bound its time."""

RIDGE = 0.01
"""scikit-learn's C of the probe. With some hundred examples of some hundred standardised features it decodes planted
directions better than 0.1 or 1 do, and about as well as 0.001."""

CONTROLS = 5
"""Permutations of the groups that the control is the mean of; one alone varies by 1 / (2 sqrt(n))."""


def sliced_wasserstein(a: ArrayLike, b: ArrayLike, *, projections: int = 128, seed: Seed = 0) -> float:
    """Mean over random unit directions of the Wasserstein-1 distance of the projections (Rabin et al. 2012; Bonneel et
    al. 2015, doi 10.1007/s10851-014-0506-3).

    Exact for each direction, also for unequal numbers of rows: both quantile functions are steps, and the area between
    them is summed over the union of their steps. A shift by a vector v in d dimensions gives about |v| sqrt(2 / (pi
    d)). Two finite samples of one distribution are not at 0: compare with a split within one group.

    Args:
        a: (n, d) features. b: (m, d).
        projections: how many directions.
        seed: of the directions; the same ones for the same seed and d.

    Unit: that of the features, 0 upwards. Lower is closer.
    Raises: BadInput on other shapes, no rows, values that are not finite, or projections < 1.
    """
    a, b = _features(a, "a"), _features(b, "b")
    if a.shape[1] != b.shape[1]:
        raise BadInput(f"a has {a.shape[1]} features and b has {b.shape[1]}; give features of the same layer.")
    if projections < 1:
        raise BadInput(f"projections is {projections}; give at least 1, such as 128.")
    direction = np.random.default_rng(seed).normal(size=(a.shape[1], projections))
    direction /= np.linalg.norm(direction, axis=0)
    n, m = len(a), len(b)
    # The steps end at i/n and j/m. In units of 1/(n m) these are whole numbers, so that equal ends are found equal.
    end = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    width = np.diff(end, prepend=0) / (n * m)
    of_a = np.sort(a @ direction, axis=0)[(end - 1) // m]
    of_b = np.sort(b @ direction, axis=0)[(end - 1) // n]
    return float((width @ np.abs(of_a - of_b)).mean())


def decodability(
    x: ArrayLike, group: ArrayLike, label: ArrayLike, *, seed: Seed, cluster: ArrayLike | None = None, folds: int = 5
) -> tuple[float, float]:
    """How well a linear probe tells the group from features, where the label cannot help it; and what chance gives.

    The mean of :func:`probed`. The control is the same with groups permuted within each label, the mean of `CONTROLS`: what
    remains above it is in the features.

    Returns: balanced accuracy, and that of the control.
    Unit: share of the examples of a group, mean over groups, 0 to 1; 1 / groups is chance. Lower is less decodable.
    Raises: BadInput as :func:`probed`.
    """
    rows, hit = probed(x, group, label, seed=seed, cluster=cluster, folds=folds)
    x = _features(x, "x")[rows]
    z, y = (np.unique(np.asarray(c)[rows], return_inverse=True)[1] for c in (group, label))
    ids = None if cluster is None else np.asarray(cluster)[rows]
    rng = np.random.default_rng(np.random.SeedSequence([*_entropy(seed), 1]))
    control = []
    for _ in range(CONTROLS):
        mixed, place = z.copy(), rng.permutation(z.size)
        for c in range(int(y.max()) + 1):
            mixed[y == c] = z[y == c][np.argsort(place[y == c])]
        control.append(_told(x, mixed, y, folds, rng, ids).mean())
    return float(hit.mean()), float(np.mean(control))


def probed(
    x: ArrayLike, group: ArrayLike, label: ArrayLike, *, seed: Seed, cluster: ArrayLike | None = None, folds: int = 5
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Whether a linear probe told each row's group from its features, on rows that it did not learn from.

    Every (label, group) cell is subsampled to the smallest one (at most `CAP` rows), so that groups are equally
    frequent within each label, and features that only hold the label decode nothing. A logistic probe (l2, C =
    `RIDGE`) on features standardised within each training part is tested on the part held out; folds go by clusters and
    hold as many rows of each cell as can be. The rows do not depend on the features, so two sets of features of the same
    examples are compared in pairs.

    Args:
        x: (n, d) features.
        group, label: (n,) numbers or names.
        seed: of the subsample, the folds and the permutations.
        cluster: (n,) rows of equal number are never apart; None where every row stands by itself.
        folds: parts of the cross-validation, 2 or more.

    Returns: (k,) the rows that took part, and (k,) whether the group was told.
    Raises: BadInput on wrong shapes, values that are not finite, one group, or a cell with fewer than `folds` rows.
    """
    x = _features(x, "x")
    groups, z = np.unique(column(group, "group", len(x)), return_inverse=True)
    labels, y = np.unique(column(label, "label", len(x)), return_inverse=True)
    if folds < 2:
        raise BadInput(f"folds is {folds}; give at least 2, such as 5.")
    if groups.size < 2:
        raise BadInput(f"Every row is of group '{groups[0]}'; give rows of two groups or more.")
    size = np.bincount(y * groups.size + z, minlength=labels.size * groups.size)
    if size.min() < folds:
        c, g = divmod(int(size.argmin()), groups.size)
        raise BadInput(
            f"There are {size.min()} rows of label '{labels[c]}' in group '{groups[g]}', fewer than {folds} folds need; "
            f"give at least {folds} of each label in each group, or leave that label or group out."
        )
    rng = np.random.default_rng(seed)
    k = min(int(size.min()), CAP)
    # One order of all clusters serves every cell, so that what labels and groups are called has no say.
    of = np.arange(z.size) if cluster is None else np.unique(cluster, return_inverse=True)[1]
    order = np.argsort(rng.permutation(int(of.max()) + 1)[of], kind="stable")
    cell = (y * groups.size + z)[order]
    rows = np.sort(np.concatenate([order[cell == c][:k] for c in range(size.size)]))
    ids = None if cluster is None else np.asarray(cluster)[rows]
    return rows, _told(x[rows], z[rows], y[rows], folds, rng, ids)


def _entropy(seed: Seed) -> list[int]:
    return (
        list(np.random.SeedSequence(seed).generate_state(4)) if isinstance(seed, int) else list(seed.generate_state(4))
    )


def _told(
    x: Floats, z: NDArray, y: NDArray, folds: int, rng: np.random.Generator, cluster: NDArray | None
) -> NDArray[np.bool_]:
    """(n,) whether a cross-validated probe tells each row's group."""
    from sklearn.linear_model import LogisticRegression

    stratum = y * (int(z.max()) + 1) + z
    fold = dealt(stratum, folds, seed=np.random.SeedSequence(rng.integers(2**63)), cluster=cluster)
    hit = np.zeros(z.size, bool)
    for f in range(folds):
        train, test = fold != f, fold == f
        if not test.any() or np.unique(z[train]).size < 2:
            continue
        mean, spread = x[train].mean(axis=0), x[train].std(axis=0)
        spread[spread == 0] = 1.0
        probe = LogisticRegression(C=RIDGE, max_iter=1000).fit((x[train] - mean) / spread, z[train])
        hit[test] = probe.predict((x[test] - mean) / spread) == z[test]
    return hit


def _features(values: ArrayLike, name: str) -> Floats:
    array = np.asarray(values)
    if array.ndim != 2 or not array.size or array.dtype.kind not in "biuf":
        raise BadInput(f"{name} has shape {array.shape}; give one row of numbers for each of one or more examples.")
    array = array.astype(np.float64, copy=False)
    if not np.isfinite(array).all():
        raise BadInput(
            f"{name} has values that are not finite; look for overflow (half precision?) in the model, or "
            "give other features."
        )
    return array
