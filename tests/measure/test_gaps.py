"""Gaps between groups: against slow references, and 0 where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from trueup.measure import gaps
from trueup.measure.accuracy import wilson
from trueup.measure.bootstrap import Estimate, Share, paired, paired_many


def drawn(n: int, seed: int, bias: float = 0.0):
    rng = np.random.default_rng(seed)
    label, group = rng.integers(3, size=n), rng.integers(4, size=n)
    probability = rng.dirichlet(np.ones(3), size=n) + 0.4 * np.eye(3)[label]
    probability[:, 0] += bias * (group == 2)
    probability /= probability.sum(axis=1, keepdims=True)
    return probability, probability.argmax(axis=1), label, group


def test_rates_are_the_slow_ones_and_weights_repeat():
    probability, predicted, label, group = drawn(400, 0)
    weight = np.random.default_rng(1).integers(0, 3, 400).astype(float)
    mass = gaps.confusion(predicted, label, group, (3, 4), weight)
    tp, fp = gaps.true_positive_rates(mass), gaps.false_positive_rates(mass)
    means = gaps.mean_predictions(probability, label, group, 4, weight)
    for g in range(4):
        for c in range(3):
            own, other = (group == g) & (label == c), (group == g) & (label != c)
            assert tp[g, c] == pytest.approx(np.average(predicted[own] == c, weights=weight[own]))
            assert fp[g, c] == pytest.approx(np.average(predicted[other] == c, weights=weight[other]))
            assert means[c, g] == pytest.approx(np.average(probability[own], axis=0, weights=weight[own]))


def test_the_widest_gap_the_lowest_cell_and_the_farthest_groups():
    rates = np.array([[0.1, 0.5], [0.4, 0.2], [np.nan, 0.6]])
    assert gaps.widest(rates) == (1, 2, 1)
    assert gaps.gap(rates, (1, 2, 1)) == pytest.approx(0.4)
    assert gaps.lowest(rates) == (0, 0)
    mean = np.array([[[1.0, 0], [0, 1], [0.5, 0.5]]])
    assert gaps.moved(mean, gaps.farthest(mean)) == pytest.approx(1)


def test_what_is_judged_on_other_rows_than_chose_is_0_where_there_is_none():
    """The control: the largest gap of all rows, which chance alone moves."""
    judged, largest = [], []
    for seed in range(200):
        _, predicted, label, group = drawn(240, seed)
        judges = np.arange(240) % 3 > 0

        def table(w, p=predicted, y=label, z=group):
            return gaps.true_positive_rates(gaps.confusion(p, y, z, (3, 4), w))

        judged.append(gaps.judged(table, gaps.widest, gaps.gap, judges)())
        largest.append(gaps.gap(table(np.ones(240)), gaps.widest(table(np.ones(240)))))
    assert abs(np.mean(judged)) < 4 * np.std(judged) / np.sqrt(200)
    assert np.mean(largest) > 0.1
    probability, _, label, group = drawn(4000, 0, bias=2.0)
    use = gaps.judged(
        lambda w: gaps.mean_predictions(probability, label, group, 4, w),
        gaps.farthest,
        gaps.moved,
        np.arange(4000) % 3 > 0,
    )
    assert use() > 0.15


def test_a_share_is_wilsons_and_clusters_count_once():
    event = np.array([True, True, False, True, False, True])
    rows = np.array([True, True, True, True, True, False])
    low, high = wilson(3, 5)
    assert gaps.share(event, rows, np.arange(6)) == Estimate(0.6, float(low), float(high), 0.95)
    again = gaps.share(np.repeat(event, 4), np.repeat(rows, 4), np.repeat(np.arange(6), 4))
    assert (again.value, again.low, again.high) == pytest.approx((0.6, float(low), float(high)), abs=1e-12)
    apart = gaps.share(np.repeat(event, 4), np.repeat(rows, 4), np.arange(24))
    assert apart.high - apart.low < (again.high - again.low) / 1.5, "the control: as rows of their own they say more"
    none = gaps.share(event, np.zeros(6, bool), np.arange(6))
    assert np.isnan(none.value)
    assert (none.low, none.high) == (0, 1)


def test_a_difference_of_shares_is_newcombes():
    """Newcombe 1998, table II: 56/70 and 48/80, and 9/10 and 3/10, by his method 10."""
    for (a, m), (b, n), (low, high) in (((56, 70), (48, 80), (0.0524, 0.3339)), ((9, 10), (3, 10), (0.1705, 0.8090))):
        one, two = (gaps.share(np.arange(n) < k, np.ones(n, bool), np.arange(n)) for k, n in ((a, m), (b, n)))
        got = gaps.between(one, two)
        assert (got.low, got.high) == pytest.approx((low, high), abs=5e-5)


def test_the_interval_of_a_gap_holds_0_where_groups_are_alike_and_shares_are_near_1():
    """The control: a bootstrap of the same shares, which falls short (plain percentiles)."""
    held = rows = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        right = rng.random(70) < 0.95
        group = np.arange(70) % 2
        one, two = (gaps.share(right, group == g, np.arange(70)) for g in (0, 1))
        got = gaps.between(one, two)
        held += got.low <= 0 <= got.high
        draws = rng.binomial(35, np.array([one.value, two.value]), (300, 2)) / 35
        low, high = np.quantile(draws[:, 0] - draws[:, 1], [0.025, 0.975])
        rows += low <= 0 <= high and high > low
    assert held / 400 > 0.93
    assert rows / 400 < held / 400


def test_the_change_of_a_gap_holds_where_hardly_any_row_changes():
    """Two groups of 100, of which one loses a right answer in 100; the control is a paired bootstrap of the gap."""
    held, drawn, runs = 0, 0, 200
    group = np.arange(200) % 2
    shares = {g: Share(np.asarray, lambda r, g=g: group == g) for g in (0, 1)}

    def gap(right, weight=None):
        w = np.ones(200) if weight is None else weight
        of = [np.average(right[group == g], weights=w[group == g]) for g in (0, 1)]
        return of[0] - of[1]

    for seed in range(runs):
        rng = np.random.default_rng([seed, 8])
        before = np.ones(200)
        after = before - ((rng.random(200) < 0.01) & (group == 0))
        got = paired_many({str(g): s for g, s in shares.items()}, [before], [after], seed, resamples=60)
        e = gaps.change(got["0"], got["1"])
        assert (e.p < 0.05) == (not e.low <= 0 <= e.high)
        held += e.low <= -0.01 <= e.high
        b = paired(gap, [before], [after], seed, resamples=60)
        drawn += b.low <= -0.01 <= b.high
    assert held >= 0.95 * runs
    assert drawn < 0.8 * runs
