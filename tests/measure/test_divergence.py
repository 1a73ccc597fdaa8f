import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from trueup.errors import BadInput
from trueup.measure.divergence import CAP, potential, probed, probed_by_chance, projected, sliced_wasserstein


def decodability(x, group, label, **how) -> tuple[float, float]:
    """The probe's balanced accuracy, and what chance gives."""
    return float(probed(x, group, label, **how)[1].mean()), probed_by_chance(x, group, label, **how)


def within(a, b) -> float:
    """The distance of two clouds under the function learnt on themselves."""
    return float(potential(a, b, b).mean() - potential(a, b, a).mean())


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 7), st.integers(0, 1000))
def test_on_the_rows_it_is_learnt_on_the_potential_gives_the_wasserstein_distance(n, m, directions, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(-2, 3, (n, directions)) / 2, rng.normal(size=(m, directions))
    slow = np.mean([wasserstein_distance(x, y) for x, y in zip(a.T, b.T, strict=True)])
    assert within(a, b) == pytest.approx(slow, abs=1e-12)
    assert within(np.repeat(a, 3, axis=0), b) == pytest.approx(slow, abs=1e-12), "of clouds, and not of rows"
    at = np.sort(rng.normal(size=(9, 1)) * 3, axis=0)
    assert (np.abs(np.diff(potential(a[:, :1], b[:, :1], at))) <= np.diff(at[:, 0]) + 1e-12).all(), "slope at most 1"


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=9), st.lists(st.floats(-10, 10), min_size=1, max_size=9))
def test_in_one_dimension_too_and_with_ties(a, b):
    assert within(np.array(a)[:, None], np.array(b)[:, None]) == pytest.approx(wasserstein_distance(a, b), abs=1e-12)


def test_held_out_it_comes_near_the_distance_of_a_shift_and_is_0_of_one_cloud():
    rng = np.random.default_rng(1)
    one, judges = rng.random(4000) < 0.4, rng.random(4000) < 0.6
    x = rng.normal(size=(4000, 20))
    x[:, 3] += 4 * one
    moved = sliced_wasserstein(projected(x, projections=500), one, judges)
    assert moved == pytest.approx(4 * math.sqrt(2 / (math.pi * 20)), rel=0.1)
    assert sliced_wasserstein(projected(x, projections=500), ~one, judges) == pytest.approx(moved, abs=1e-12)
    some = [projected(x, projections=9, seed=s) for s in (0, 0, 1)]
    assert np.array_equal(some[0], some[1])
    assert not np.allclose(some[0], some[2])
    # Two samples of one cloud, over worlds: 0 in the mean, where the distance itself never is.
    found, plain = [], []
    for _ in range(300):
        at, one, judges = (
            projected(rng.normal(size=(120, 5)), projections=8),
            rng.random(120) < 0.5,
            rng.random(120) < 0.6,
        )
        found.append(sliced_wasserstein(at, one, judges))
        plain.append(within(at[one], at[~one]))
    assert abs(np.mean(found)) < 3 * np.std(found) / math.sqrt(300) < np.mean(plain) / 5
    assert math.isnan(sliced_wasserstein(at, one, ~one)), "one cloud alone judges"


def cloud(n, d, seed=0):
    rng = np.random.default_rng(seed)
    label, group = rng.integers(0, 2, (2, n))
    return rng.normal(size=(n, d)), label, group


def test_a_planted_group_direction_is_found():
    x, label, group = cloud(800, 64)
    x[:, 5] += 3 * group
    found, control = decodability(x, group, label, seed=0)
    assert found > 0.85
    assert abs(control - 0.5) < 0.06
    assert found == decodability(x, group, label, seed=0)[0]
    scaled = decodability(1e-3 * x.astype(np.float32) + 7, group, label, seed=0)[0]
    assert scaled == pytest.approx(found, abs=0.01)


@pytest.mark.parametrize("d", [8, 384])
def test_noise_is_at_chance_however_many_dimensions(d):
    found = [decodability(*(cloud(400, d, s)[i] for i in (0, 2, 1)), seed=s) for s in range(6)]
    assert abs(np.mean(found, axis=0) - 0.5).max() < 0.04


def test_a_group_that_only_the_label_gives_away_is_not_found():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 2000)
    group = np.where(rng.random(2000) < 0.9, label, 1 - label)
    x = rng.normal(size=(2000, 16))
    x[:, 0] += 6 * label
    found, control = decodability(x, group, label, seed=0)
    assert abs(found - 0.5) < 0.08
    assert abs(control - 0.5) < 0.08
    unbalanced, _ = decodability(x, group, np.zeros(2000), seed=0)  # the same data, the label not told: it is found
    assert unbalanced > 0.85
    x[:, 1] += 4 * group  # and a direction of its own is found
    assert decodability(x, group, label, seed=0)[0] > 0.9


def test_more_groups_and_names():
    rng = np.random.default_rng(0)
    group = rng.integers(0, 3, 900)
    label = np.array(["no", "yes"])[rng.integers(0, 2, 900)]
    x = rng.normal(size=(900, 10))
    assert abs(decodability(x, group, label, seed=0)[0] - 1 / 3) < 0.08
    x[:, :3] += 4 * np.eye(3)[group]
    found, control = decodability(x, np.array(["a", "b", "c"])[group], label, seed=0)
    assert found > 0.9
    assert abs(control - 1 / 3) < 0.08


def test_the_smallest_cell_decides_and_the_rest_is_capped():
    label, group = (
        np.repeat([0, 0, 1, 1], [CAP + 500, CAP + 500, 5, 7]),
        np.repeat([0, 1, 0, 1], [CAP + 500] * 2 + [5, 7]),
    )
    x = np.random.default_rng(0).normal(size=(label.size, 3))
    found, _ = decodability(x, group, label, seed=0)
    assert found * 20 == pytest.approx(round(found * 20))  # four cells of five
    with pytest.raises(BadInput, match=r"5 rows of label '1' in group '0', fewer than 6 folds .* give at least 6"):
        decodability(x, group, label, seed=0, folds=6)
    many, _ = decodability(x[:1400], group[:1400], label[:1400], seed=0)
    assert many * 2 * CAP == pytest.approx(round(many * 2 * CAP))


def test_what_labels_and_groups_are_called_has_no_say():
    x, label, group = cloud(300, 5)
    cluster = np.arange(300) // 2
    (found, control), (rows, told) = (f(x, group, label, seed=0, cluster=cluster) for f in (decodability, probed))
    label, group = 1 - label, 1 - group
    again, (same, there) = (f(x, group, label, seed=0, cluster=cluster) for f in (decodability, probed))
    assert again == (found, control)
    assert (same.tolist(), there.tolist()) == (rows.tolist(), told.tolist())


def test_a_constant_feature_does_no_harm_and_it_is_fast():
    x, label, group = cloud(600, 384)
    x[:, 0] = 5
    decodability(x[:, :4], group, label, seed=0)
    start = time.perf_counter()
    decodability(x, group, label, seed=0)
    assert time.perf_counter() - start < 1.5


X, Y, Z = cloud(60, 2)


@pytest.mark.parametrize(
    "call",
    [
        lambda: projected([1.0]),
        lambda: projected(np.zeros((0, 2))),
        lambda: projected([[np.inf]]),
        lambda: projected([[1.0]], projections=0),
        lambda: decodability(X, np.zeros(60), Y, seed=0),
        lambda: decodability(X, Y, Y, seed=0),
        lambda: decodability(X, Z[:-1], Y, seed=0),
        lambda: decodability(X, Z, Y, seed=0, folds=1),
        lambda: decodability(X * np.nan, Z, Y, seed=0),
        lambda: decodability(X[:, 0], Z, Y, seed=0),
    ],
)
def test_refuses(call):
    with pytest.raises(BadInput, match="give"):
        call()
