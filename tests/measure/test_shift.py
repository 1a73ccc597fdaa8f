import math
import time

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import chi2
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from trueup.errors import BadInput
from trueup.measure import shift
from trueup.measure.shift import (
    alpha_of,
    auprc,
    auprc_at,
    coupled_as,
    false_positive_gap,
    feasible_alphas,
    joint,
    mirrored,
    reweighted,
    same_coupling,
    slope_on_log_alpha,
    table_at,
    tilted,
    true_positive_gap,
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


@settings(deadline=None)
@given(ANY, st.floats(-2, 2))
def test_tilting_keeps_margins_and_multiplies_log_odds(table, strength):
    moved = tilted(table, strength)
    assert margins(moved) == pytest.approx(margins(table), rel=1e-11)
    assert log_odds(moved) == pytest.approx(strength * log_odds(table), abs=1e-9)


@settings(deadline=None)
@given(ANY)
def test_the_named_strengths(table):
    assert (tilted(table, 1) == table).all()
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
    with pytest.raises(BadInput, match="give a strength nearer 0"):
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


def test_the_same_coupling_is_the_likelihood_ratio_of_logistic_regressions():
    """Oracle: y on z, s and their product against y on z and s, fitted by scikit-learn without a penalty."""
    rng = np.random.default_rng(1)
    for _ in range(5):
        a, b = rng.integers(5, 60, (2, 2)), rng.integers(5, 60, (2, 2))
        y, z, s, n = (
            v.ravel() for v in (*np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), np.stack([a, b], axis=-1))
        )

        def deviance(x, y=y, n=n):
            fit = LogisticRegression(C=np.inf, max_iter=5000, tol=1e-10).fit(x, y, sample_weight=n)
            return -2 * (n * fit.predict_log_proba(x)[np.arange(len(y)), y]).sum()

        ratio = deviance(np.stack([z, s], axis=1)) - deviance(np.stack([z, s, z * s], axis=1))
        assert same_coupling(a, b) == pytest.approx(chi2.sf(ratio, 1), abs=1e-4)


def test_the_same_coupling_is_rejected_as_often_as_it_says():
    rng = np.random.default_rng(2)
    joint = np.array([[0.4, 0.2, 0.1], [0.05, 0.1, 0.15]])
    other = coupled_as(np.outer([0.4, 0.6], [0.2, 0.5, 0.3]), joint)  # other margins, the same odds ratios
    p = [
        same_coupling(*(rng.multinomial(500, t.ravel()).reshape(2, 3) for t in (joint, other))) for _ in range(400)
    ]  # fmt: skip
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.085
    reversed_ = rng.multinomial(500, tilted(joint, -1).ravel()).reshape(2, 3)
    assert same_coupling(rng.multinomial(500, joint.ravel()).reshape(2, 3), reversed_) < 1e-6
    assert same_coupling([[10, 20], [30, 0]], [[20, 40], [60, 0]]) == pytest.approx(1), "an empty cell in both"
    assert same_coupling([[10, 0], [30, 0]], [[20, 0], [60, 0]]) == 1, "one group is no coupling"
    few = same_coupling([[10, 20], [30, 10]], [[20, 10], [10, 30]])
    assert same_coupling([[10, 20, 9], [30, 10, 9]], [[20, 10, 0], [10, 30, 0]]) == few, "nor one that one side lacks"
    with pytest.raises(BadInput, match="two of one shape"):
        same_coupling(np.ones((2, 2)), np.ones((2, 3)))


def test_mirrored_turns_alpha_where_it_can_and_the_odds_elsewhere():
    train = coupled(0.1, 0.5, 0.5)
    assert mirrored(train) == pytest.approx(coupled(0.5, 0.1, 0.5))
    common = coupled(0.5, 0.95, 0.5)
    wide = coupled(0.3, 0.9, 0.8)  # at alpha 1/3, class 1 would need more than all of z=0
    assert mirrored(common) == pytest.approx(table_at(common, 1 / 1.9))
    assert not feasible_alphas(wide)[0] < 1 / alpha_of(wide)
    assert mirrored(wide) == pytest.approx(tilted(wide, -1))
    three = np.array([[4, 1, 1], [1, 3, 2.0]])
    assert mirrored(three) == pytest.approx(tilted(three, -1))
    assert mirrored(np.ones((2, 2))) == pytest.approx(np.ones((2, 2)))


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
def test_auprc_is_scikit_learns(rows):
    value, label, weight = np.array(rows, float).T
    live = weight > 0
    assume(len(set(label[live])) == 2)
    both = np.stack([-value, value], axis=1)
    mine, theirs = auprc(both, label.astype(int)), average_precision_score(label, value)
    assert mine == pytest.approx(theirs, abs=1e-12)
    weighted = average_precision_score(label[live], value[live], sample_weight=weight[live])
    assert auprc(both, label.astype(int), weight=weight) == pytest.approx(weighted, abs=1e-9)


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
    assert auprc(np.full((4, 2), 0.5), [1, 0, 0, 0]) == 0.25


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


# ---------------------------------------------------------------------------------------------------------------------
# Gaps


def test_gaps_of_two_classes():
    label = np.array([0, 0, 0, 0, 1, 1, 0, 0, 1, 1])
    group = np.array(["a"] * 6 + ["b"] * 4)
    predicted = np.array([1, 0, 0, 0, 1, 1, 1, 1, 1, 0])
    assert false_positive_gap(predicted, label, group) == 1 - 0.25
    assert true_positive_gap(predicted, label, group) == 1 - 0.5
    assert false_positive_gap(label, label, group) == true_positive_gap(label, label, group) == 0


def test_groups_without_mass_are_passed_over():
    predicted, label, group = [1, 0, 1, 0], [0, 0, 0, 1], [0, 1, 2, 3]
    assert false_positive_gap(predicted, label, group) == 1
    assert false_positive_gap(predicted, label, group, weight=[1, 0, 1, 1]) == 0
    assert math.isnan(false_positive_gap(predicted, label, group, weight=[1, 0, 0, 1]))
    assert math.isnan(true_positive_gap(predicted, label, group))
    assert math.isnan(true_positive_gap([0, 0], [0, 0], [0, 1]))


def _slow_gap(predicted, label, group, classes, of_class):
    best = math.nan
    for c in range(classes) if classes > 2 else [1]:
        rates = []
        for g in set(group):
            rows = [i for i in range(len(label)) if group[i] == g and (label[i] == c) == of_class]
            if rows:
                rates.append(np.mean([predicted[i] == c for i in rows]))
        if len(rates) > 1:
            best = np.fmax(best, max(rates) - min(rates))
    return best


@settings(deadline=None)
@given(ROWS, st.sampled_from([2, 3]))
def test_gaps_are_the_slow_ones_and_weights_are_repeated_rows(rows, classes):
    predicted, label, group, weight = np.array(rows).T
    predicted, label = np.minimum(predicted, classes - 1), np.minimum(label, classes - 1)
    repeated = [np.repeat(a, weight).tolist() for a in (predicted, label, group)]
    for gap, of_class in ((false_positive_gap, False), (true_positive_gap, True)):
        found = gap(predicted, label, group, classes=classes, weight=weight)
        assert found == pytest.approx(_slow_gap(*repeated, classes, of_class), abs=1e-12, nan_ok=True)


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
        lambda: tilted([[1, 0], [1, 1]], -1),
        lambda: tilted(np.ones((2, 2)), math.nan),
        lambda: mirrored([[1, 1, 0], [1, 1, 1]]),
        lambda: mirrored([[1, 1], [0, 1]]),
        lambda: reweighted([0, 1], [0, 1], np.zeros((2, 2))),
        lambda: reweighted([0, 2], [0, 1], np.ones((2, 2))),
        lambda: auprc([0.1, 0.2], [0, 1]),
        lambda: auprc([[0.1], [0.2]], [0, 1]),
        lambda: auprc([[0.1, np.nan], [0.2, 0.3]], [0, 1]),
        lambda: auprc([[0.1, 0.2], [0.2, 0.3]], [0, 2]),
        lambda: slope_on_log_alpha([1, 1], [0, 1]),
        lambda: slope_on_log_alpha([0, 1], [0, 1]),
        lambda: slope_on_log_alpha([1, 2], [0]),
        lambda: false_positive_gap([0, 1], [0], [0, 1]),
        lambda: true_positive_gap([0, 3], [0, 1], [0, 1], classes=2),
    ],
)
def test_refuses(call):
    with pytest.raises(BadInput, match="give"):
        call()
