import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, t

from trueup.errors import BadInput
from trueup.measure.accuracy import (
    accuracy,
    best_order,
    independent_rows,
    mcnemar,
    same_predictions,
    share_difference,
    surer_order,
    wilson,
    worst_group_accuracy,
)


def test_accuracy_counts_matches_of_numbers_and_of_names():
    assert accuracy([0, 1, 2, 2], [0, 1, 1, 2]) == 0.75
    assert accuracy(["yes", "no"], ["yes", "yes"]) == 0.5


def test_worst_group_is_the_lowest_and_not_the_mean():
    predicted, label, group = [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], ["a", "a", "a", "b", "b"]
    assert worst_group_accuracy(predicted, label, group) == 0.5
    assert accuracy(predicted, label) == 0.8
    assert worst_group_accuracy(predicted, label, ["one"] * 5) == 0.8


def test_a_group_of_weight_zero_is_passed_over():
    assert worst_group_accuracy([1, 0], [1, 1], [0, 1]) == 0
    assert worst_group_accuracy([1, 0], [1, 1], [0, 1], weight=[1, 0]) == 1


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2), st.integers(0, 4)), min_size=1, max_size=30
    ).filter(lambda rows: any(r[3] for r in rows))
)
def test_weights_are_repeated_rows(rows):
    predicted, label, group, weight = np.array(rows).T
    repeated = [np.repeat(a, weight) for a in (predicted, label, group)]
    assert accuracy(predicted, label, weight=weight) == pytest.approx(accuracy(*repeated[:2]), abs=1e-12)
    assert worst_group_accuracy(predicted, label, group, weight=weight) == pytest.approx(
        worst_group_accuracy(*repeated), abs=1e-12
    )


def test_mcnemar_closed_forms():
    same = np.array([True, False] * 10)
    assert mcnemar(same, same) == 1
    for changed in (5, 6):  # all one way: p = 2 * 2^-changed
        before, after = np.zeros(20, bool), np.zeros(20, bool)
        after[:changed] = True
        assert mcnemar(before, after) == pytest.approx(2 * 0.5**changed)
        assert mcnemar(after, before) == pytest.approx(2 * 0.5**changed)
    before = np.array([1, 0, 0, 0])  # one worse, two better: every outcome is at least as extreme
    after = np.array([0, 1, 1, 0])
    assert mcnemar(before, after) == 1


def test_mcnemar_keeps_its_level_and_has_power():
    rng = np.random.default_rng(0)
    null = [mcnemar(rng.random(100) < 0.7, rng.random(100) < 0.7) for _ in range(400)]
    real = [mcnemar(rng.random(100) < 0.5, rng.random(100) < 0.8) for _ in range(100)]
    assert np.mean(np.array(null) <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)
    assert np.mean(np.array(real) <= 0.05) > 0.9


@pytest.mark.parametrize(
    "call",
    [
        lambda: accuracy([], []),
        lambda: accuracy([1], [1, 0]),
        lambda: accuracy([[1]], [[1]]),
        lambda: accuracy([1, 1], [1, 0], weight=[0, 0]),
        lambda: accuracy([1, 1], [1, 0], weight=[2, -1]),
        lambda: accuracy([1, 1], [1, 0], weight=[np.nan, 1]),
        lambda: worst_group_accuracy([1, 1], [1, 0], [0]),
        lambda: mcnemar([True], [True, False]),
        lambda: mcnemar([2, 0], [1, 0]),
    ],
)
def test_refuses(call):
    with pytest.raises(BadInput, match="give"):
        call()


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (0, 10), (10, 10), (3, 10), (77, 100), (1000, 1000)])
def test_wilson_is_that_of_scipy(hits: int, n: int):
    theirs = binomtest(hits, n).proportion_ci(method="wilson")
    low, high = wilson(hits, n)
    assert (float(low), float(high)) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_of_nothing_is_everything_and_it_takes_arrays():
    low, high = wilson([0, 5], [0, 5])
    assert (low[0], high[0]) == (0, 1)
    assert (low[1], high[1]) == (pytest.approx(0.5655, abs=1e-4), 1)


def test_the_best_order_is_the_best_of_all():
    rng = np.random.default_rng(0)
    for k in (2, 3, 4):
        predicted, label = rng.integers(0, k, 60), rng.integers(0, k, 60) % max(2, k - 1)  # a class that never occurs
        order = best_order(predicted, label, k)
        assert sorted(order) == list(range(k))
        assert (order[predicted] == label).sum() == max(
            (np.array(p)[predicted] == label).sum() for p in permutations(range(k))
        )
    # Round in a ring, which is not its own inverse.
    assert best_order([0, 1, 2], [1, 2, 0], 3).tolist() == [1, 2, 0]


@pytest.mark.parametrize(("classes", "n"), [(2, 60), (5, 200), (20, 200), (77, 600)])
def test_a_surer_order_is_no_matter_of_choice(classes: int, n: int):
    """A weak model, a silent one and one that chance turned a little are left alone; a turned one is not."""
    found = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        label, guess = rng.integers(0, classes, n), rng.integers(0, classes, n)
        weak = np.where(rng.random(n) < 0.05, label, guess)
        assert surer_order(weak, label, classes) is None
        skewed = np.where(rng.random(n) < 0.7, 0, label)
        assert surer_order(np.full(n, classes - 1), skewed, classes) is None
        turned = np.where(rng.random(n) < 0.7, (label + 1) % classes, guess)
        assert surer_order((turned - 1) % classes, label, classes) is None
        found.append(surer_order(turned, label, classes))
    assert all(
        f is not None and (f[0][(np.arange(classes) + 1) % classes] == np.arange(classes)).mean() > 0.9 for f in found
    )
    assert surer_order([0], [1], 2) is None


@pytest.mark.parametrize(("lost", "won", "n"), [(0, 0, 30), (1, 0, 60), (3, 9, 200), (30, 0, 30)])
@pytest.mark.parametrize("chance", [0.0, 0.2])
def test_a_difference_of_paired_shares_is_walds_of_one_more_example_either_way(
    lost: int, won: int, n: int, chance: float
):
    """Bonett and Price (2012), from the examples themselves: two more, of which one was lost and one was won."""
    own = np.r_[np.zeros(n - lost - won), -np.ones(lost), np.ones(won)] * (1 - chance)
    change = np.r_[own, -1, 1]
    half = t.ppf(0.975, n + 1) * change.std() / math.sqrt(n + 2)
    low, high, p = share_difference(own.mean(), (own**2).mean(), n)
    assert (low, high) == pytest.approx((change.mean() - half, change.mean() + half))
    assert low <= own.mean() <= high
    assert (p < 0.05) == (not low <= 0 <= high)


def test_independent_rows_are_clusters_where_these_are_equally_large():
    assert independent_rows([4, 4, 4]) == 3
    assert independent_rows([1] * 7) == 7
    assert 1 < independent_rows([10, 1, 1]) < 2
    assert independent_rows([]) == 0


def test_the_same_predictions_are_those_of_logits_times_one_number():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(50, 3))
    assert same_predictions(z, z)
    assert same_predictions(z, z / 3 + rng.normal(size=(50, 1)))
    assert not same_predictions(z, -z)
    near = z + np.array([0, 0.01, 0])
    assert not same_predictions(z, near), "none of 50 is predicted otherwise, and others would be"
    assert (z.argmax(axis=1) == near.argmax(axis=1)).all()
    assert not same_predictions(z, np.where(z == z.max(), np.inf, z))
