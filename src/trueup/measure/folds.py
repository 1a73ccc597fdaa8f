"""Folds, halves and thirds by clusters, each stratum spread evenly. Every inner split is made here."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trueup.errors import BadInput
from trueup.measure._rows import column

Seed = int | np.random.SeedSequence


def folds(stratum: ArrayLike, k: int, *, seed: Seed, cluster: ArrayLike | None = None) -> NDArray[np.int64]:
    """(n,) the fold of each row, 0 to `k` - 1. A cluster lies in one fold, and each stratum is spread as evenly as possible.

    Clusters are shuffled and dealt out, the largest first. A cluster's main stratum is that of most of its rows. Each cluster
    goes to the fold with the fewest rows of its main stratum, and among equals to the fold with the fewest rows in all. Where
    every cluster is a single row, a fold holds its share of each stratum to within one row.

    Args:
        stratum: (n,) numbers or names that folds should hold in equal shares (label, label by group, right or wrong).
        k: how many folds: 2 for halves, 3 for thirds.
        seed: an integer, or a SeedSequence (which is read, not spawned from).
        cluster: (n,) rows of equal number are never separated; None where every row is independent. With the same cluster
            numbers the folds depend neither on the order of rows nor on the names of the strata.

    A fold is empty where there are fewer clusters than folds.
    Raises: BadInput on columns of unequal length, or k < 2.
    """
    if k < 2:
        raise BadInput(f"There are {k} folds; give 2 or more.")
    values, stratum_of = np.unique(column(stratum, "stratum"), return_inverse=True)
    ids = (
        np.arange(stratum_of.size)
        if cluster is None
        else np.unique(column(cluster, "cluster", stratum_of.size), return_inverse=True)[1]
    )
    row_counts = np.zeros((int(ids.max()) + 1, values.size), np.int64)
    np.add.at(row_counts, (ids, stratum_of), 1)
    order = np.random.default_rng(seed).permutation(len(row_counts))
    # Strata are ordered by their rows in the shuffled clusters, so that the folds do not depend on the names of the strata.
    row_counts = row_counts[:, np.lexsort(-row_counts[order[::-1]])]
    cluster_size, main_stratum = row_counts.sum(axis=1), row_counts.argmax(axis=1)
    order = order[np.lexsort((main_stratum[order], -cluster_size[order]))]
    fold = np.empty(cluster_size.size, np.int64)
    load = np.zeros((k, values.size), np.int64)
    for c in order.tolist():
        target = int(np.lexsort((load.sum(axis=1), load[:, main_stratum[c]]))[0])
        fold[c] = target
        load[target] += row_counts[c]
    return fold[ids]
