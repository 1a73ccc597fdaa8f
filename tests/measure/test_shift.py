import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score

from trueup.errors import BadInput
from trueup.measure import shift
from trueup.measure.shift import (
    alpha_of,
    auprc,
    auprc_at,
    coupled_as,
    feasible_alphas,
    joint,
    reweighted,
    slope_on_log_alpha,
    table_at,
)

TWO = arrays(float, (2, 2), elements=st.floats(0.01, 1))
ANY = arrays(float, st.tuples(st.integers(2, 4), st.integers(2, 4)), elements=st.floats(0.05, 1))
ROWS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=40
).filter(lambda rows: any(r[3] for r in rows))


def margins(table):
    return np.concatenate([table.sum(axis=0), table.sum(axis=1)])


def log_odds(table):
    """Log odds ratios of every cell against the first row and column."""
    logs = np.log(table)
    return logs - logs[:1] - logs[:, :1] + logs[0, 0]


def coupled(p0, p1, share):
    return np.array([[(1 - share) * (1 - p0), share * (1 - p1)], [(1 - share) * p0, share * p1]])


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def test_joint_is_shares_of_cells_and_weights_count():
    label, group = [0, 0, 1, 1], [0, 2, 1, 1]
    assert joint(label, group, 2, 3).tolist() == [[0.25, 0, 0.25], [0, 0.5, 0]]
    assert joint(label, group, 2, 3, weight=[2, 0, 1, 1]).tolist() == [[0.5, 0, 0], [0, 0.5, 0]]


@pytest.mark.parametrize(("alpha", "p0", "p1"), [(0.2, 0.5, 0.1), (1, 0.3, 0.3), (5, 0.1, 0.5)])
def test_the_worked_check_of_the_protocol(alpha, p0, p1):
    train = coupled(0.1, 0.5, 0.5)
    assert alpha_of(train) == pytest.approx(5)
    assert table_at(train, alpha) == pytest.approx(coupled(p0, p1, 0.5), abs=1e-15)


DECON = json.loads((Path(__file__).parent / "decon.json").read_text())
"""[alpha, P(y=1), P(z=1), then the joint of (y, z): 00, 01, 10, 11] as `alpha_to_joint_distribution` of decon-dtn-toolkit 0.1.1
(the protocol's authors, MIT) says them. Its docstring has alpha upside down; its code, like ours, has z = 1 above."""


@pytest.mark.parametrize(("alpha", "y", "z", "cells"), [(a, y, z, t) for a, y, z, *t in DECON])
def test_a_table_at_alpha_is_that_of_the_authors_toolkit(alpha, y, z, cells):
    theirs = np.reshape(cells, (2, 2))
    np.testing.assert_allclose(table_at(np.outer([1 - y, y], [1 - z, z]), alpha), theirs, atol=1e-15)
    assert alpha_of(theirs) == pytest.approx(alpha, rel=1e-9)


@settings(deadline=None)
@given(TWO, st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_margins_never_move_and_alpha_is_what_was_asked(table, where):
    low, high = feasible_alphas(table)
    alpha = low + where * (min(high, low + 10) - low)
    assume(low < alpha < high)
    moved = table_at(table, alpha)
    assert (moved >= 0).all()
    assert margins(moved) == pytest.approx(margins(table), rel=1e-12)
    assume(moved.min() > 1e-9)
    assert alpha_of(moved) == pytest.approx(alpha, rel=1e-6)
    assert table_at(moved, alpha_of(table)) == pytest.approx(table, abs=1e-6)


@settings(deadline=None)
@given(TWO)
def test_the_feasible_interval_ends_where_a_cell_runs_empty(table):
    low, high = feasible_alphas(table)
    assert low < alpha_of(table) < high
    ends = [low * (1 + 1e-9) + 1e-9] + ([high * (1 - 1e-9)] if math.isfinite(high) else [1e12])
    for end in ends:
        assume(low < end < high)
        assert table_at(table, end).min() < 1e-6 * table.sum()
    for outside in (low, low / 2, high, 2 * high, -1.0, math.nan):
        with pytest.raises(BadInput, match=r"allow alpha above .*; give"):
            table_at(table, outside)


def test_the_refusal_names_the_range():
    with pytest.raises(BadInput, match=r"alpha is 9, .*alpha above 0\.5 and below 1\.67; give"):
        table_at([[1, 1], [4, 3]], 9)
    with pytest.raises(BadInput, match=r"alpha above 0; give"):
        table_at([[3, 3], [1, 1]], -1)


def tilted(table, strength):
    """The table of the same margins whose log odds ratios are `strength` times as large."""
    return coupled_as(table, np.asarray(table, float) ** strength)


@settings(deadline=None)
@given(ANY, st.floats(-2, 2))
def test_tilting_keeps_margins_and_multiplies_log_odds(table, strength):
    moved = tilted(table, strength)
    assert margins(moved) == pytest.approx(margins(table), rel=1e-11)
    assert log_odds(moved) == pytest.approx(strength * log_odds(table), abs=1e-9)


@settings(deadline=None)
@given(ANY)
def test_the_named_strengths(table):
    assert tilted(table, 1) == pytest.approx(table, rel=1e-11)
    assert tilted(table, 0) == pytest.approx(np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum(), rel=1e-11)
    assert log_odds(tilted(table, -1)) == pytest.approx(-log_odds(table), abs=1e-9)
    assert tilted(tilted(table, -1), -1) == pytest.approx(table, rel=1e-8)


def test_tilting_survives_extreme_tables():
    table = np.array([[0.5, 1e-3], [1e-3, 0.498]])
    moved = tilted(table, -1)
    assert margins(moved) == pytest.approx(margins(table), rel=1e-11)
    assert log_odds(moved) == pytest.approx(-log_odds(table), abs=1e-9)


def test_a_strength_out_of_reach_is_a_sentence(monkeypatch):
    monkeypatch.setattr(shift, "STEPS", 1000)
    even = tilted(np.random.default_rng(0).random((4, 4)) + 0.05, 0.9)
    for _ in range(200):
        even = even / even.sum(axis=0)
        even = even / even.sum(axis=1, keepdims=True)
    assert tilted(even, 2).sum(axis=0) == pytest.approx(np.ones(4))
    with pytest.raises(BadInput, match="too near 0"):
        tilted(even, 100)


def test_a_coupling_moves_to_other_margins():
    rng = np.random.default_rng(0)
    for shape in ((2, 2), (3, 4)):
        a, b = rng.random(shape) + 0.1, rng.random(shape) + 0.1
        moved = coupled_as(a, b)
        assert moved.sum(axis=0) == pytest.approx(a.sum(axis=0))
        assert moved.sum(axis=1) == pytest.approx(a.sum(axis=1))
        assert log_odds(moved) == pytest.approx(log_odds(b), abs=1e-9)
        assert coupled_as(b, b) == pytest.approx(b)
        assert coupled_as(a, np.ones(shape)) == pytest.approx(tilted(a, 0))
    with pytest.raises(BadInput, match="no mass at y=1, z=0"):
        coupled_as(np.ones((2, 2)), [[1, 1], [0, 1]])
    with pytest.raises(BadInput, match="two of one shape"):
        coupled_as(np.ones((2, 2)), np.ones((2, 3)))


# ---------------------------------------------------------------------------------------------------------------------
# Weights and scores


@settings(deadline=None)
@given(ROWS, arrays(float, (3, 3), elements=st.floats(0.1, 1)))
def test_reweighting_reaches_the_target_on_the_cells_there_are(rows, target):
    label, group, _, weight = np.array(rows).T
    for w in (None, weight):
        new = reweighted(label, group, target, weight=w)
        have = joint(label, group, 3, 3, weight=w)
        wanted = np.where(have > 0, target, 0)
        assert joint(label, group, 3, 3, weight=new) == pytest.approx(wanted / wanted.sum(), abs=1e-12)
        assert new.sum() == pytest.approx(len(rows) if w is None else w.sum())
        assert w is None or not new[w == 0].any()


def test_reweighting_to_itself_changes_nothing_and_to_nothing_is_zero():
    label, group = [0, 0, 1, 1, 1], [0, 1, 0, 1, 1]
    assert reweighted(label, group, joint(label, group, 2, 2)) == pytest.approx(np.ones(5))
    assert reweighted([0, 0], [0, 0], [[0, 1], [1, 1]]).tolist() == [0, 0]
    assert math.isnan(auprc_at(np.ones((2, 2)), [0, 0], [0, 0], [[0, 1], [1, 1]]))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.just(0.0) | st.floats(0.01, 3)), min_size=2, max_size=40)
)
def test_auprc_is_scikit_learns_mean_over_both_classes(rows):
    value, label, weight = np.array(rows, float).T
    live = weight > 0
    assume(len(set(label[live])) == 2)
    both = np.stack([-value, value], axis=1)
    theirs = [average_precision_score(label == c, sign * value) for c, sign in ((0, -1), (1, 1))]
    assert auprc(both, label.astype(int)) == pytest.approx(np.mean(theirs), abs=1e-12)
    assert auprc(both[:, ::-1], 1 - label.astype(int)) == pytest.approx(np.mean(theirs), abs=1e-12), "classes swapped"
    w = weight[live]
    weighted = [
        average_precision_score(label[live] == c, sign * value[live], sample_weight=w) for c, sign in ((0, -1), (1, 1))
    ]
    assert auprc(both, label.astype(int), weight=weight) == pytest.approx(np.mean(weighted), abs=1e-9)


@settings(deadline=None)
@given(ROWS, st.integers(0, 1000))
def test_auprc_of_more_classes_is_the_mean_of_one_against_the_rest_and_weights_repeat(rows, seed):
    label, _, _, weight = np.array(rows).T
    p = np.random.default_rng(seed).integers(0, 5, (len(rows), 3)) / 4
    repeated = np.repeat(label, weight)
    found = auprc(p, label, weight=weight)
    if len(set(repeated)) < 2:
        assert math.isnan(found)
        return
    each = [average_precision_score(repeated == c, np.repeat(p[:, c], weight)) for c in set(repeated)]
    assert found == pytest.approx(np.mean(each), abs=1e-12)
    assert found == pytest.approx(auprc(np.repeat(p, weight, axis=0), repeated), abs=1e-12)


def test_auprc_without_positives_or_negatives_is_nan_and_knowing_nothing_is_prevalence():
    p = np.array([[0.2, 0.8], [0.7, 0.3], [0.4, 0.6]])
    assert math.isnan(auprc(p, [0, 0, 0]))
    assert math.isnan(auprc(p, [1, 1, 1]))
    assert math.isnan(auprc(p, [1, 0, 0], weight=[0, 1, 1]))
    assert auprc(p, [1, 0, 1]) == 1
    assert auprc(np.full((4, 2), 0.5), [1, 0, 0, 0]) == np.mean([0.25, 0.75])


def planted(n, reads, seed=0):
    """Label, group and scores; `reads` is how much of the group the score reads."""
    rng = np.random.default_rng(seed)
    label, group = rng.integers(0, 2, (2, n))
    score = label + reads * group + rng.normal(size=n)
    return label, group, np.stack([-score, score], axis=1)


@pytest.mark.parametrize("reads", [0.0, 2.0])
def test_a_score_that_reads_the_group_has_a_slope_and_one_that_does_not_has_none(reads):
    label, group, p = planted(20_000, reads)
    alphas = [0.2, 0.5, 1, 2, 5]
    free = np.outer([0.7, 0.3], [0.5, 0.5])
    values = [auprc_at(p, label, group, table_at(free, a)) for a in alphas]
    slope = slope_on_log_alpha(alphas, values)
    assert abs(slope) < 0.01 if reads == 0 else slope > 0.1
    assert auprc_at(p, label, group, free) == pytest.approx(auprc(p, label, weight=reweighted(label, group, free)))


def test_the_slope_is_least_squares():
    alphas = np.array([0.1, 0.5, 1, 4])
    assert slope_on_log_alpha(alphas, 3 - 0.25 * np.log10(alphas)) == pytest.approx(-0.25)
    values = np.array([0.3, 0.1, 0.7, 0.5])
    assert slope_on_log_alpha(alphas, values) == pytest.approx(np.polyfit(np.log10(alphas), values, 1)[0])
    assert math.isnan(slope_on_log_alpha(alphas, [1, 2, math.nan, 3]))


def test_auprc_at_is_fast_enough_to_resample():
    label, group, p = planted(1000, 1.0)
    target, weight = table_at(np.outer([0.7, 0.3], [0.5, 0.5]), 0.2), np.ones(1000)
    auprc_at(p, label, group, target, weight=weight)
    start = time.perf_counter()
    for _ in range(200):
        auprc_at(p, label, group, target, weight=weight)
    assert time.perf_counter() - start < 1  # 5 ms each; it takes about 0.2


@pytest.mark.parametrize(
    "call",
    [
        lambda: joint([], [], 2, 2),
        lambda: joint([0, 2], [0, 1], 2, 2),
        lambda: joint([0, 1], [0, -1], 2, 2),
        lambda: joint(["x", "y"], [0, 1], 2, 2),
        lambda: joint([0, 1], [0], 2, 2),
        lambda: alpha_of(np.ones((2, 3))),
        lambda: alpha_of([[1, 0], [1, 0]]),
        lambda: alpha_of([[1, 1], [0, 1]]),
        lambda: alpha_of([[1, 1], [-1, 1]]),
        lambda: alpha_of([[1, 1], [np.nan, 1]]),
        lambda: feasible_alphas([[1, 1], [0, 0]]),
        lambda: reweighted([0, 1], [0, 1], np.zeros((2, 2))),
        lambda: reweighted([0, 2], [0, 1], np.ones((2, 2))),
        lambda: auprc([0.1, 0.2], [0, 1]),
        lambda: auprc([[0.1], [0.2]], [0, 1]),
        lambda: auprc([[0.1, np.nan], [0.2, 0.3]], [0, 1]),
        lambda: auprc([[0.1, 0.2], [0.2, 0.3]], [0, 2]),
        lambda: slope_on_log_alpha([1, 1], [0, 1]),
        lambda: slope_on_log_alpha([0, 1], [0, 1]),
        lambda: slope_on_log_alpha([1, 2], [0]),
    ],
)
def test_refuses(call):
    with pytest.raises(BadInput, match="give"):
        call()
