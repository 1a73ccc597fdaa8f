import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from trueup.errors import BadInput
from trueup.measure.bootstrap import interval
from trueup.measure.selective import (
    augrc,
    aurc,
    aurc_optimal,
    certified_threshold,
    coverage_at_risk,
    eaurc,
    error_auc,
    error_auc_interval,
    error_aucs,
    naurc,
    risk_coverage,
)

MEASURES = {
    "error_auc": error_auc,
    "aurc": aurc,
    "eaurc": eaurc,
    "naurc": naurc,
    "augrc": augrc,
    "coverage_at_risk": lambda c, e, weight=None: coverage_at_risk(c, e, 0.2, weight=weight),
}
# few levels: nearly always tied; the other extreme is in the tests with continuous confidences
ROWS = st.lists(st.tuples(st.integers(-3, 3), st.booleans(), st.integers(0, 4)), min_size=1, max_size=40).filter(
    lambda rows: any(r[2] for r in rows)
)


def _columns(rows):
    confidence, error, weight = (np.array(c) for c in zip(*rows, strict=True))
    return confidence / 7, error.astype(bool), weight


# ---- slow references: pure Python, O(n^2), straight from the definitions


def _slow_curve(confidence, error):
    n, points = len(confidence), []
    for t in sorted(set(confidence), reverse=True):
        accepted = [bool(e) for c, e in zip(confidence, error, strict=True) if c >= t]
        points.append((len(accepted) / n, sum(accepted) / len(accepted), sum(accepted) / n))
    return points


def _slow_aurc(confidence, error):
    points = _slow_curve(confidence, error)
    area = points[0][0] * points[0][1]
    for (c0, r0, _), (c1, r1, _) in itertools.pairwise(points):
        area += (c1 - c0) * (r0 + r1) / 2
    return area


def _slow_augrc(confidence, error):
    points = [(0.0, 0.0, 0.0), *_slow_curve(confidence, error)]
    return sum((b[0] - a[0]) * (a[2] + b[2]) / 2 for a, b in itertools.pairwise(points))


def _slow_error_auc(confidence, error):
    rows = list(zip(confidence, error, strict=True))
    pairs = [(c > d) + (c == d) / 2 for c, e in rows if not e for d, f in rows if f]
    return sum(pairs) / len(pairs) if pairs else math.nan


def _slow_coverage(confidence, error, risk):
    return max((c for c, r, _ in _slow_curve(confidence, error) if r <= risk), default=0.0)


@settings(deadline=None, max_examples=200)
@given(ROWS)
def test_agrees_with_the_slow_reference_under_ties(rows):
    c, e, _ = _columns(rows)
    curve = risk_coverage(c, e)
    points = list(zip(curve.coverage, curve.risk, curve.generalised_risk, strict=True))
    assert np.array(points) == pytest.approx(np.array(_slow_curve(c, e)), abs=1e-12)
    assert aurc(c, e) == pytest.approx(_slow_aurc(c, e), abs=1e-12)
    assert augrc(c, e) == pytest.approx(_slow_augrc(c, e), abs=1e-12)
    assert error_auc(c, e) == pytest.approx(_slow_error_auc(c, e), abs=1e-12, nan_ok=True)
    assert coverage_at_risk(c, e, 0.2) == pytest.approx(_slow_coverage(c, e, 0.2), abs=1e-12)


def test_agrees_with_the_slow_reference_without_ties():
    rng = np.random.default_rng(0)
    c, e = rng.normal(size=120), rng.random(120) < 0.3
    assert len(risk_coverage(c, e).risk) == 120
    assert aurc(c, e) == pytest.approx(_slow_aurc(c, e), abs=1e-12)
    assert error_auc(c, e) == pytest.approx(_slow_error_auc(c, e), abs=1e-12)


@settings(deadline=None, max_examples=200)
@given(ROWS)
def test_weights_are_repeated_rows(rows):
    c, e, weight = _columns(rows)
    for name, measure in MEASURES.items():
        repeated = measure(np.repeat(c, weight), np.repeat(e, weight))
        assert measure(c, e, weight=weight) == pytest.approx(repeated, abs=1e-12, nan_ok=True), name


@settings(deadline=None)
@given(ROWS, st.randoms())
def test_the_order_of_rows_does_not_matter_to_the_last_bit(rows, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    for name, measure in MEASURES.items():
        one, other = (measure(c, e, weight=w) for c, e, w in (_columns(rows), _columns(shuffled)))
        assert one == other or (math.isnan(one) and math.isnan(other)), name


@settings(deadline=None, max_examples=300)
@given(ROWS)
def test_augrc_identity_holds_under_ties(rows):
    c, e, _ = _columns(rows)
    err = e.mean()
    ranked = (1 - error_auc(c, e)) * err * (1 - err) if 0 < err < 1 else 0.0
    assert augrc(c, e) == pytest.approx(ranked + err**2 / 2, abs=1e-12)


def test_augrc_identity_can_fail():
    """Positive control: without the point (0, 0) the identity is off when the surest group has an error."""
    c, e = np.array([3, 3, 2, 1]), np.array([1, 0, 0, 1])
    curve = risk_coverage(c, e)
    identity = (1 - error_auc(c, e)) * 0.25 + 0.125
    assert augrc(c, e) == pytest.approx(identity)
    assert abs(np.trapezoid(curve.generalised_risk, curve.coverage) - identity) > 0.05


def test_perfect_reverse_and_constant_rankings():
    n, wrong = 4000, 1000
    err = wrong / n
    error = np.arange(n) >= n - wrong
    perfect, reverse, constant = -np.arange(n), np.arange(n), np.zeros(n)
    assert [error_auc(c, error) for c in (perfect, reverse, constant)] == [1, 0, 0.5]
    assert [augrc(c, error) for c in (perfect, reverse, constant)] == pytest.approx(
        [err**2 / 2, err * (1 - err) + err**2 / 2, err / 2]
    )
    assert aurc(perfect, error) == pytest.approx(aurc_optimal(err), abs=1e-4)
    assert aurc(reverse, error) == pytest.approx(err - err * math.log(err), abs=1e-4)  # 1 up to err, then err / c
    assert aurc(constant, error) == err
    assert naurc(perfect, error) == pytest.approx(0, abs=1e-3)
    assert naurc(constant, error) == pytest.approx(1)
    assert naurc(reverse, error) > 1.5
    assert eaurc(constant, error) == pytest.approx(err - aurc_optimal(err))


def test_aurc_left_of_the_first_point_is_the_risk_of_the_surest_group():
    assert aurc([2, 2, 1, 1], [1, 0, 0, 0]) == pytest.approx(0.5 * 0.5 + 0.5 * (0.5 + 0.25) / 2)


def test_degenerate_errors():
    for error in (np.zeros(5, bool), np.ones(5, bool)):
        assert math.isnan(error_auc(range(5), error))
        assert math.isnan(naurc(range(5), error))
        assert aurc(range(5), error) == pytest.approx(error.mean())
        assert eaurc(range(5), error) == pytest.approx(0)
    assert augrc(range(5), np.ones(5)) == pytest.approx(0.5)
    assert aurc_optimal(0) == 0
    assert aurc_optimal(1) == 1


def test_only_order_matters_and_infinity_is_an_order():
    rng = np.random.default_rng(3)
    c, e = rng.normal(size=50), rng.random(50) < 0.4
    ends = c.copy()
    ends[c.argmax()], ends[c.argmin()] = np.inf, -np.inf
    for measure in MEASURES.values():
        assert measure(c, e) == measure(np.exp(c), e) == measure(ends, e)
        assert measure(c, e) != measure(-c, e)


def test_coverage_at_risk_only_at_ends_of_groups():
    c, e = [3, 3, 2, 2, 2, 1], [0, 0, 0, 0, 1, 1]
    assert coverage_at_risk(c, e, 0.0) == pytest.approx(2 / 6)  # not 4 / 6: the group of 2 goes whole
    assert coverage_at_risk(c, e, 0.2) == pytest.approx(5 / 6)  # 1 / 5, reached exactly
    assert coverage_at_risk(c, e, 0.1999) == pytest.approx(2 / 6)
    assert coverage_at_risk(c, e, 1) == 1
    assert coverage_at_risk([2, 1], [1, 1], 0.5) == 0
    assert coverage_at_risk([3, 2, 1], [1, 0, 0], 0.4) == 1  # the surest is wrong, and yet


# ---- the certified threshold

GRID = np.linspace(0, 1, 51)


def _true_risk(t):
    return 0.2 * (1 - t)  # confidence uniform on 0 to 1, P(error | c) = 0.4 (1 - c)


def _draw(rng, n):
    c = rng.random(n)
    return c, rng.random(n) < 0.4 * (1 - c)


def _slow_certificate(c, e, candidates, risk, delta):
    best = None
    for t in sorted(set(candidates), reverse=True):
        k, wrong = sum(x >= t for x in c), sum(bool(y) for x, y in zip(c, e, strict=True) if x >= t)
        if (1 - risk) ** k > delta:
            continue
        if sum(math.comb(k, i) * risk**i * (1 - risk) ** (k - i) for i in range(wrong + 1)) > delta:
            break
        best = (t, k / len(c), wrong / k, k)
    return best


def test_certificate_is_the_slow_one():
    grid, granted = np.round(GRID, 2), 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        c, e = _draw(rng, 200)
        c = np.round(c, 1 + seed % 2)
        found = certified_threshold(c, e, rng.permutation(grid), 0.15, 0.1)
        slow = _slow_certificate(c, e, grid, 0.15, 0.1)
        granted += slow is not None
        mine = (found.threshold, found.coverage, found.empirical_risk, found.accepted)
        assert mine == pytest.approx(slow) if slow else found.threshold is None
        assert (found.n, found.risk, found.delta) == (200, 0.15, 0.1)
    assert 6 <= granted < 12  # both outcomes were compared


def test_certificate_keeps_its_promise_where_a_picked_threshold_does_not():
    rng = np.random.default_rng(0)
    repeats, risk, delta = 1500, 0.1, 0.05
    certified = picked = useful = 0
    for _ in range(repeats):
        c, e = _draw(rng, 2000)
        found = certified_threshold(c, e, GRID[:46], risk, delta)  # the first accepts some 200
        useful += found.coverage > 0.25
        certified += found.threshold is not None and _true_risk(found.threshold) > risk + 1e-9
        curve = risk_coverage(c, e)
        good = np.flatnonzero(curve.risk <= risk)
        picked += bool(good.size) and _true_risk(curve.threshold[good[-1]]) > risk
    slack = 3 * math.sqrt(delta * (1 - delta) / repeats)
    assert certified / repeats <= delta + slack
    assert picked / repeats > 0.3  # positive control
    assert useful / repeats > 0.9  # and it does not keep the promise by refusing everything


def test_certificate_from_too_high_a_start_is_safe_but_weak():
    """One unlucky error among the 29 surest stops the walk: what the docstring says about the first candidate."""
    rng = np.random.default_rng(2)
    low, high = 0, 0
    for _ in range(200):
        c, e = _draw(rng, 2000)
        low += certified_threshold(c, e, GRID[:46], 0.1).coverage > 0.25
        high += certified_threshold(c, e, np.linspace(0, 1, 501), 0.1).coverage > 0.25
    assert low > 190
    assert high < low - 15


def test_certificate_is_not_fooled_by_a_score_that_knows_nothing():
    rng = np.random.default_rng(1)
    repeats, granted = 1500, 0
    for _ in range(repeats):
        granted += certified_threshold(rng.random(300), rng.random(300) < 0.1, GRID, 0.1 - 1e-9).threshold is not None
    share = granted / repeats
    assert share <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / repeats)
    assert share > 0.005  # close to its level, not merely refusing


def test_certificate_skips_what_is_too_small_and_stops_at_the_first_failure():
    c = np.repeat([4.0, 3.0, 2.0, 1.0], [3, 60, 20, 400])
    e = np.zeros(c.size, bool)
    assert certified_threshold(c, e, [4, 3, 2, 1], 0.1).threshold == 1  # three right ones cannot reject: not a failure
    assert certified_threshold(c, e, [4], 0.1).threshold is None
    e[63:83] = True  # all of level 2 wrong
    assert certified_threshold(c, e, [4, 3, 2, 1], 0.1).threshold == 3  # 1 alone would pass, but 2 failed before it
    assert certified_threshold(c, e, [1], 0.1).threshold == 1


def test_no_certificate_is_said_plainly():
    found = certified_threshold([1, 2, 3], [0, 0, 0], [0], 0.1)
    assert found.threshold is None
    assert found.coverage == found.accepted == 0
    assert math.isnan(found.empirical_risk)


@pytest.mark.parametrize(
    "call",
    [
        lambda: error_auc([], []),
        lambda: error_auc([1, 2], [1]),
        lambda: aurc([1, np.nan], [1, 0]),
        lambda: aurc([1, 2], [1, 2]),
        lambda: aurc(["a", "b"], [1, 0]),
        lambda: augrc([1, 2], [1, 0], weight=[1]),
        lambda: augrc([1, 2], [1, 0], weight=[0, 0]),
        lambda: aurc_optimal(1.1),
        lambda: certified_threshold([1, 2], [1, 0], [], 0.1),
        lambda: certified_threshold([1, 2], [1, 0], [1], 0.0),
        lambda: certified_threshold([1, 2], [1, 0], [1], 0.1, 1.0),
    ],
)
def test_refuses(call):
    with pytest.raises(BadInput):
        call()


@pytest.mark.parametrize("levels", [2, 10, 10**9])
def test_error_auc_of_many_rankings_and_sets_is_each_alone(levels: int):
    rng = np.random.default_rng(0)
    confidence = rng.integers(0, levels, (7, 90)) / levels
    confidence[0, :5], confidence[1] = [np.inf, np.inf, -np.inf, -np.inf, np.inf], 0.5
    error = rng.random(90) < 0.3
    rows = np.stack([rng.random(90) < 0.7, np.ones(90, bool), np.zeros(90, bool), error, ~error, np.arange(90) < 40])
    got = error_aucs(confidence, error, rows)
    slow = [[error_auc(one[some], error[some]) if some.any() else math.nan for some in rows] for one in confidence]
    assert np.array_equal(got, slow, equal_nan=True)
    assert np.isnan(got).any(axis=0).tolist() == [False, False, True, True, True, False]
    with pytest.raises(BadInput):
        error_aucs(np.full((1, 90), np.nan), error, rows)
    assert np.isnan(error_aucs(confidence, np.zeros(90, bool), rows)).all()


def test_the_interval_of_few_errors_holds_a_planted_error_auc():
    """Right ones are surer by 1.5 sd: error ROC-AUC = Phi(1.5 / sqrt 2). The control: the bootstrap."""
    truth = float(norm.cdf(1.5 / math.sqrt(2)))
    rng, held, runs = np.random.default_rng(0), {"ours": 0, "bootstrap": 0}, 200
    for seed in range(runs):
        error = np.arange(150) < 6
        confidence = rng.normal(size=150) + 1.5 * ~error
        auc = error_auc(confidence, error)
        low, high = error_auc_interval(auc, 6, 144)
        assert 0 <= low < auc < high <= 1 or auc in (0, 1)
        held["ours"] += low <= truth <= high
        drawn = interval(error_auc, confidence, error, seed=seed, resamples=100)
        held["bootstrap"] += drawn.low <= truth <= drawn.high
    assert held["ours"] / runs > 0.92
    assert held["bootstrap"] / runs < 0.91


def test_the_interval_of_an_error_auc_at_its_ends_and_reversed():
    assert error_auc_interval(1.0, 5, 100)[1] == 1
    assert 0.6 < error_auc_interval(1.0, 5, 100)[0] < 0.95
    assert error_auc_interval(0.0, 5, 100) == pytest.approx((0, 1 - error_auc_interval(1.0, 5, 100)[0]), abs=1e-9)
    low, high = error_auc_interval(0.8, 12, 90)
    assert error_auc_interval(0.2, 12, 90) == pytest.approx((1 - high, 1 - low), abs=1e-9), "a confidence turned round"
    assert error_auc_interval(0.8, 90, 12) == pytest.approx((low, high), abs=1e-9), "errors for right ones"
    wide, narrow = error_auc_interval(0.8, 3, 90), error_auc_interval(0.8, 300, 9000)
    assert wide[0] < low < narrow[0] < narrow[1] < high < wide[1]
