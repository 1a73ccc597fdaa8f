"""Folds by clusters: a partition, even in every stratum, the same for the same clusters in any order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from trueup.errors import BadInput
from trueup.measure.folds import folds

ROWS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 15)), min_size=1, max_size=60)


@given(ROWS, st.integers(2, 5), st.integers(0, 3))
def test_a_cluster_is_never_torn(rows, k, seed):
    stratum, cluster = np.array(rows).T
    fold = folds(stratum, k, seed=seed, cluster=cluster)
    assert set(fold) <= set(range(k))
    assert all(len(set(fold[cluster == c])) == 1 for c in np.unique(cluster))
    if len(np.unique(cluster)) >= k:
        assert set(fold) == set(range(k)) or len(np.unique(stratum)) > 1


@given(st.lists(st.integers(0, 3), min_size=2, max_size=80), st.integers(2, 6), st.integers(0, 3))
def test_without_clusters_every_stratum_is_even_to_a_row(stratum, k, seed):
    fold = folds(stratum, k, seed=seed)
    for s in set(stratum):
        counts = np.bincount(fold[np.array(stratum) == s], minlength=k)
        assert counts.max() - counts.min() <= 1
    total = np.bincount(fold, minlength=k)
    assert total.max() - total.min() <= len(set(stratum))


@given(ROWS, st.integers(2, 5), st.randoms(use_true_random=False))
def test_the_rows_order_has_no_say(rows, k, random):
    stratum, cluster = np.array(rows).T
    order = list(range(len(rows)))
    random.shuffle(order)
    fold = folds(stratum, k, seed=1, cluster=cluster)
    assert folds(stratum[order], k, seed=1, cluster=cluster[order]).tolist() == fold[order].tolist()


@given(ROWS, st.integers(2, 5), st.permutations(range(3)))
def test_what_strata_are_called_has_no_say(rows, k, names):
    stratum, cluster = np.array(rows).T
    cluster = np.unique(cluster * 3 + stratum, return_inverse=True)[1]  # each cluster in one stratum
    kept = folds(stratum, k, seed=1, cluster=cluster)
    assert folds(np.array(names)[stratum], k, seed=1, cluster=cluster).tolist() == kept.tolist()


def test_the_seed_matters():
    assert folds(np.zeros(50), 2, seed=0).tolist() != folds(np.zeros(50), 2, seed=1).tolist()


def test_clusters_of_unequal_size_are_spread_about_as_evenly_as_scikit_learn_does():
    rng = np.random.default_rng(0)
    cluster = np.repeat(np.arange(60), rng.integers(1, 9, 60))
    stratum = rng.random(len(cluster)) < 0.2

    def unevenness(fold) -> float:
        return max(np.ptp([(stratum[fold == f] == s).sum() for f in range(5)]) for s in (False, True))

    theirs = np.empty(len(cluster), int)
    for f, (_, at) in enumerate(StratifiedGroupKFold(5, shuffle=True, random_state=0).split(cluster, stratum, cluster)):
        theirs[at] = f
    ours = [unevenness(folds(stratum, 5, seed=s, cluster=cluster)) for s in range(20)]
    by_chance = [unevenness(rng.integers(0, 5, 60)[cluster]) for _ in range(20)]
    assert np.mean(ours) <= unevenness(theirs) + 8
    assert np.mean(ours) < np.mean(by_chance) / 2, "the control: clusters dealt out by lot"


def test_one_fold_is_refused():
    with pytest.raises(BadInput, match="give 2 or more"):
        folds([0, 1], 1, seed=0)
