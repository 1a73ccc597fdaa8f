"""Probe, distance and use by layer, before and after: said where it changed and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from trueup.faults.confounding import inside
from trueup.measure import lean


@pytest.fixture(scope="module")
def worlds():
    """Labels, groups, clusters, who judges; and states before and after: layer 1 forgets the group, layers 0 and 2 do not."""
    rng = np.random.default_rng(0)
    n = 800
    label, group, cluster, judges = (
        rng.integers(0, 2, n),
        rng.integers(0, 2, n),
        np.arange(n) // 2,
        rng.random(n // 2) < 2 / 3,
    )
    noise, again = rng.normal(size=(2, n, 3, 6))
    before = noise.copy()
    before[:, :, 0] += 1.5 * group[:, None]
    before[:, :, 1] += label[:, None]
    after = before.copy()
    after[:, :, 3:] = again[:, :, 3:]  # other noise, as much of it
    after[:, 1, 0] -= 1.5 * group
    return label, group, cluster, judges[cluster], before, after


def test_what_a_layer_forgets_is_said_of_that_layer_alone(worlds):
    label, group, cluster, judges, *states = worlds
    found = [inside.inside(s, label, group, cluster, judges, 0) for s in states]
    probe = inside.moved_probe(found[0].hit, found[1].hit, cluster)
    distance = inside.jackknife(found[1].distance - found[0].distance)
    for moved in (probe, distance):
        assert [d.high < 0 for d in moved] == [False, True, False]
        assert all((d.p < 0.05) == (d.high < 0) for d in moved)
    assert found[0].chance == pytest.approx(0.5, abs=0.06)
    assert probe[1].value == pytest.approx(np.nanmean(found[1].hit[:, 1]) - np.nanmean(found[0].hit[:, 1]))
    was, now = (inside.jackknife(f.distance)[1] for f in found)
    assert now.low < 0 < was.low
    same = inside.jackknife(found[0].distance - found[0].distance)
    assert [(d.value, d.low, d.high, d.p) for d in same] == [(0, 0, 0, 1)] * 3
    charts = inside.charts("site", found[0], cluster) + inside.charts_of_change(probe, distance)
    assert len({c.key for c in charts}) == 4
    assert all(s.x == [0, 1, 2] for c in charts for s in c.series)


def test_rows_of_one_cluster_count_as_one(worlds):
    label, group, _, judges, before, _ = worlds
    cluster = np.arange(len(label))
    one = inside.apart(before[:, 0], label, group, cluster, judges, 0)
    twice = inside.apart(*(np.repeat(a, 2, axis=0) for a in (before[:, 0], label, group, cluster, judges)), 0)
    assert twice == pytest.approx(one, abs=1e-9)


def test_the_jackknife_of_a_mean_is_its_standard_error():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(inside.PARTS, 2))
    values = np.stack([x.mean(axis=0), *(np.delete(x, k, axis=0).mean(axis=0) for k in range(inside.PARTS))])
    for k, d in enumerate(inside.jackknife(values)):
        low, high = scipy.stats.ttest_1samp(x[:, k], 0).confidence_interval()
        assert (d.value, d.low, d.high) == pytest.approx((x[:, k].mean(), low, high))
        assert d.p == pytest.approx(scipy.stats.ttest_1samp(x[:, k], 0).pvalue)


def test_use_counts_labels_equally_and_its_interval_is_that_of_a_stratified_mean():
    rng = np.random.default_rng(1)
    label = np.repeat([0, 1], [30, 90])
    values = rng.normal(size=(120, 1)) + 3 * label[:, None]
    (found,) = inside.Used(values, label).means(np.arange(120))
    means, spreads = ([f(values[label == y, 0]) for y in (0, 1)] for f in (np.mean, np.var))
    assert found.value == pytest.approx(np.mean(means))
    error = np.sqrt(spreads[0] / 30 + spreads[1] / 90) / 2
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error)
    (moved,) = (inside.Used(values + 0.5, label) - inside.Used(values, label)).means(np.arange(120))
    assert (moved.value, moved.high - moved.low) == pytest.approx((0.5, 0))


def test_of_two_classes_and_groups_the_use_of_a_linear_answer_is_its_head_start():
    """The lead of the favoured class, in logits, at a given label; whatever classes and groups are called."""
    rng = np.random.default_rng(2)
    label, group = rng.integers(0, 2, (2, 400))
    states = rng.normal(size=(400, 1, 3)) + group[:, None, None] * np.array([1.0, 0, 0])
    w = np.array([[-0.3, 0.2, 0], [0.4, 0, 0.1]])
    for turn in (False, True):
        y, z, v = (1 - label, 1 - group, w[::-1]) if turn else (label, group, w)
        logits = states[:, 0] @ v.T
        starts = lean.head_starts(lean.centred(logits), y, z, (2, 2))
        answers, apart = inside.toward(starts), inside.apart_by_label(states, y, z)
        use = np.einsum("kc,cd,nkld->n", answers, v, apart[y])
        lead = logits[:, 1] - logits[:, 0]
        by_hand = np.mean([lead[(y == c) & (z == 1)].mean() - lead[(y == c) & (z == 0)].mean() for c in (0, 1)])
        assert inside.Used(use[:, None], y).means(np.arange(400))[0].value == pytest.approx(abs(by_hand))
