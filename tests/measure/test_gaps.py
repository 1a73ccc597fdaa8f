"""Gaps between groups: against slow references, and 0 where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from trueup.measure import gaps


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
    assert gaps.rate(rates, (0, 0)) == 0.1
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
