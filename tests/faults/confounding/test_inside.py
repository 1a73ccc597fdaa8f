"""Probe, distance and use by layer, before and after: said where it changed and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from trueup.faults.confounding import inside
from trueup.measure import lean
from trueup.measure.divergence import REFITTED, probed, probed_by_chance


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
    probe = inside.moved_probe(found[0].hit, found[1].hit, cluster, np.zeros(found[0].hit.shape[1], bool))
    distance = inside.jackknife(found[1].distance - found[0].distance)
    for moved in (probe, distance):
        assert [d.high < 0 for d in moved] == [False, True, False]
        assert all((d.p < 0.05) == (d.high < 0) for d in moved)
    chance = probed_by_chance(states[0][:, -1], group, label, seed=0, cluster=cluster)
    assert chance == pytest.approx(0.5, abs=0.06)
    assert probe[1].value == pytest.approx(np.nanmean(found[1].hit[:, 1]) - np.nanmean(found[0].hit[:, 1]))
    was, now = (inside.jackknife(f.distance)[1] for f in found)
    assert now.low < 0 < was.low
    same = inside.jackknife(found[0].distance - found[0].distance)
    assert [(d.value, d.low, d.high, d.p) for d in same] == [(0, 0, 0, 1)] * 3
    charts = inside.charts("site", found[0], chance, cluster) + inside.charts_of_change(probe, distance)
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


def test_of_two_classes_and_groups_the_use_of_a_linear_answer_is_its_head_start():
    """The lead of the favoured class, in logits, at a given label; whatever classes and groups are called."""
    rng = np.random.default_rng(2)
    label, group = rng.integers(0, 2, (2, 400))
    states = rng.normal(size=(400, 1, 3)) + group[:, None, None] * np.array([1.0, 0, 0])
    w = np.array([[-0.3, 0.2, 0], [0.4, 0, 0.1]])
    found = []
    for turn in (False, True):
        y, z, v = (1 - label, 1 - group, w[::-1]) if turn else (label, group, w)
        logits = states[:, 0] @ v.T
        answers = inside.toward(lean.head_starts(lean.centred(logits), y, z, (2, 2)))
        gradients = np.broadcast_to((answers @ v)[:, None], (400, 2, 1, 3))
        found.append(
            inside.used(inside.Rows(gradients, y, z, np.arange(400)), inside.Rows(states, y, z, np.arange(400, 800)), 0)
        )
        lead = logits[:, 1] - logits[:, 0]
        by_hand = np.mean([lead[(y == c) & (z == 1)].mean() - lead[(y == c) & (z == 0)].mean() for c in (0, 1)])
        assert found[-1][0] == pytest.approx(abs(by_hand))
    assert found[0] == pytest.approx(found[1])
    (told,) = inside.jackknife(found[0])
    assert told.low < told.value < told.high, (
        "the direction is learnt, so a constant derivative has an interval as well"
    )


def test_intervals_of_use_hold_the_truth():
    """Gradients and states drawn anew: the truth is the product of their means."""
    held, truth = 0, np.array([1.0, 0.5, 0]) @ np.array([0.8, 0, 0.3])
    for seed in range(200):
        rng = np.random.default_rng(seed)
        y, z = rng.integers(0, 2, (2, 300))
        gradients = rng.normal(size=(300, 2, 1, 3)) + np.array([[-1.0], [1.0]])[None, :, None] * np.array([1.0, 0.5, 0])
        states = rng.normal(size=(300, 1, 3)) + z[:, None, None] * np.array([0.8, 0, 0.3])
        use = inside.used(
            inside.Rows(gradients, y, z, np.arange(300)), inside.Rows(states, y, z, np.arange(300, 600)), 0
        )
        (told,) = inside.jackknife(use)
        held += told.low <= truth <= told.high
    assert 180 <= held <= 199


def test_where_nothing_moved_the_probes_paired_interval_holds_0_because_it_counts_that_the_probe_is_learnt():
    held = naive = 0
    for seed in range(80):
        rng = np.random.default_rng(seed)
        label, group = rng.integers(0, 2, (2, 200))
        hits = []
        for x in rng.normal(size=(2, 200, 1, 30)):
            rows, told = probed(x[:, 0], group, label, seed=seed)
            hits.append(np.full((200, 1), np.nan))
            hits[-1][rows, 0] = told
        (moved,) = inside.moved_probe(*hits, np.arange(200), np.zeros(1, bool))
        held += moved.low <= 0 <= moved.high
        naive += abs(moved.value) <= (moved.high - moved.low) / 2 / np.sqrt(REFITTED)
    assert held >= 75
    assert naive < 74, "the control: as if the probe were given"


def test_a_probe_that_no_row_at_hand_shows_to_move_may_have_moved():
    hit = np.ones((200, 2))
    moved, still = inside.moved_probe(hit, hit, np.arange(200), np.array([False, True]))
    assert (moved.value, moved.p) == (0, 1)
    assert -0.05 < moved.low < -0.01
    assert moved.high == -moved.low
    assert (still.low, still.high, still.p) == (0, 0, 1), "the control: states that are the same cannot have moved it"
    fewer, _ = inside.moved_probe(
        np.repeat(hit, 4, axis=0), np.repeat(hit, 4, axis=0), np.arange(800) // 4, np.array([False, True])
    )
    assert fewer.low == pytest.approx(moved.low), "four rows of a cluster are one"
