"""Folds, halves and thirds by clusters, each stratum spread evenly: the one home of every inner split."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trueup.errors import BadInput
from trueup.measure._rows import column

Seed = int | np.random.SeedSequence


def folds(stratum: ArrayLike, k: int, *, seed: Seed, cluster: ArrayLike | None = None) -> NDArray[np.int64]:
    """(n,) the fold of each row, 0 to `k` - 1: a cluster lies in one fold, and each stratum is spread as evenly as can be.

    Clusters are shuffled and dealt out, the largest first, each to the fold that has the fewest rows of the stratum most
    of its rows are of (of those, the fewest rows in all). Where no cluster repeats, a fold holds its share of each stratum
    to within one row.

    Args:
        stratum: (n,) numbers or names that folds should hold in equal shares (label, label by group, right or wrong).
        k: how many folds: 2 for halves, 3 for thirds.
        seed: an integer, or a SeedSequence (which is read, not spawned from).
        cluster: (n,) rows of equal number are never apart; None where every row stands by itself. With the same numbers the
            folds depend neither on the rows' order nor on what the strata are called.

    A fold is empty where there are fewer clusters than folds.
    Raises: BadInput on columns of unequal length, or k < 2.
    """
    if k < 2:
        raise BadInput(f"There are {k} folds; give 2 or more.")
    values, of = np.unique(column(stratum, "stratum"), return_inverse=True)
    ids = (
        np.arange(of.size)
        if cluster is None
        else np.unique(column(cluster, "cluster", of.size), return_inverse=True)[1]
    )
    held = np.zeros((int(ids.max()) + 1, values.size), np.int64)
    np.add.at(held, (ids, of), 1)
    order = np.random.default_rng(seed).permutation(len(held))
    # Strata go by the clusters that hold them, from the first shuffled one on, so that their names have no say.
    held = held[:, np.lexsort(-held[order[::-1]])]
    size, most = held.sum(axis=1), held.argmax(axis=1)
    order = order[np.lexsort((most[order], -size[order]))]
    fold = np.empty(size.size, np.int64)
    load = np.zeros((k, values.size), np.int64)
    for c in order.tolist():
        at = int(np.lexsort((load.sum(axis=1), load[:, most[c]]))[0])
        fold[c] = at
        load[at] += held[c]
    return fold[ids]
