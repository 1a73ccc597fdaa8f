import math

import numpy as np
import pytest
from scipy.stats import binom, bootstrap, norm

from trueup.errors import BadInput
from trueup.measure.accuracy import accuracy, wilson
from trueup.measure.bootstrap import (
    FEWEST,
    Estimate,
    Many,
    Means,
    Share,
    _between,
    clusters_needed,
    interval,
    interval_many,
    paired,
    paired_many,
    too_few,
)
from trueup.measure.calibration import brier, expected_calibration_error, nll, softmax, squared_calibration_error
from trueup.measure.selective import augrc, aurc, coverage_at_risk, error_auc, naurc

SURE = 1e-4
"""The chance that a test of rates fails where the rates are right."""


def _case(seed=0, n=150):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, 3)) * 2
    label = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    probability = softmax(logits)
    return np.round(probability.max(axis=1), 2), probability.argmax(axis=1) != label, probability, label


WEIGHTED = {
    "error_auc": lambda c, e, p, y, weight=None: error_auc(c, e, weight=weight),
    "aurc": lambda c, e, p, y, weight=None: aurc(c, e, weight=weight),
    "naurc": lambda c, e, p, y, weight=None: naurc(c, e, weight=weight),
    "augrc": lambda c, e, p, y, weight=None: augrc(c, e, weight=weight),
    "coverage": lambda c, e, p, y, weight=None: coverage_at_risk(c, e, 0.1, weight=weight),
    "ece": lambda c, e, p, y, weight=None: expected_calibration_error(c, ~e, weight=weight),
    "brier": lambda c, e, p, y, weight=None: brier(p, y, weight=weight),
    "nll": lambda c, e, p, y, weight=None: nll(p, y, weight=weight),
    "accuracy": lambda c, e, p, y, weight=None: accuracy(p.argmax(axis=1), y, weight=weight),
}


def _numbers(estimate):
    return [v for k, v in vars(estimate).items() if k != "level"]


def test_weights_and_taken_rows_give_the_same_interval():
    plain = {k: (lambda c, e, p, y, f=f: f(c, e, p, y)) for k, f in WEIGHTED.items()}
    by_weight = interval_many(WEIGHTED, *_case(), seed=3, resamples=60)
    by_rows = interval_many(plain, *_case(), seed=3, resamples=60)
    for name in WEIGHTED:
        assert _numbers(by_weight[name]) == pytest.approx(_numbers(by_rows[name]), abs=1e-10), name
    before, after = _case(0), _case(1)
    one, other = (paired_many(s, before, after, 3, resamples=60) for s in (WEIGHTED, plain))
    for name in WEIGHTED:
        assert _numbers(one[name]) == pytest.approx(_numbers(other[name]), abs=1e-10), name


def test_many_are_the_same_as_one_by_one():
    together = interval_many({**WEIGHTED, "mean": lambda c, e, p, y: c.mean()}, *_case(), seed=5, resamples=50)
    assert together["naurc"] == interval(WEIGHTED["naurc"], *_case(), seed=5, resamples=50)
    assert together["mean"] == interval(lambda c: c.mean(), _case()[0], seed=5, resamples=50)


def test_seeds():
    x = np.random.default_rng(0).normal(size=50)
    assert interval(np.mean, x, seed=1) == interval(np.mean, x, seed=1)
    assert interval(np.mean, x, seed=1) != interval(np.mean, x, seed=2)
    sequence = np.random.SeedSequence(1)
    assert interval(np.mean, x, seed=sequence) == interval(np.mean, x, seed=sequence) == interval(np.mean, x, seed=1)
    assert interval(np.mean, x, seed=sequence.spawn(1)[0]) != interval(np.mean, x, seed=1)


def test_against_the_exact_distribution_of_two_rows():
    """Of (0, 1) the resampled means are 0, 1/2, 1 with chances 1/4, 1/2, 1/4; Student's t of one degree widens the level."""
    x = np.array([0.0, 1.0])
    wide, narrow = interval(np.mean, x, seed=0), interval(np.mean, x, seed=0, level=0.2)
    assert (wide.value, wide.low, wide.high) == (0.5, 0, 1)
    assert (narrow.value, narrow.low, narrow.high) == (0.5, 0.5, 0.5)
    assert narrow.level == 0.2


def test_far_ends_leave_what_they_say():
    """Intervals of many columns that hold together lie where a thousand draws have but two or three beyond."""
    p, rng = 0.0025, np.random.default_rng(0)
    left = {True: [], False: []}
    for _ in range(3000):
        draws = rng.random(1000)
        for far, found in left.items():
            found.append(_between(0.5, draws, [p, 1 - p], far=far)[0])
    assert np.mean(left[True]) == pytest.approx(p, rel=0.05)
    assert np.mean(left[False]) > 1.3 * p, "the control: numpy's usual quantile"
    x = rng.normal(size=400)
    near, out = (interval(Means(lambda m: m, 0), x, seed=0, level=level) for level in (0.95, 0.995))
    draws = np.array([x[np.random.default_rng(i).integers(0, 400, 400)].mean() for i in range(2000)])
    assert out.low < near.low < near.high < out.high
    assert (draws < out.low).mean() < 0.006


def test_against_scipys_bca():
    """Rows enough that the widening for few clusters is small: scipy's own BCa, of other resamples."""
    x = np.random.default_rng(0).exponential(size=100)
    ours = interval(np.std, x, seed=0, resamples=4000)
    theirs = bootstrap((x,), np.std, n_resamples=4000, method="BCa", rng=1).confidence_interval
    plain = bootstrap((x,), np.std, n_resamples=4000, method="percentile", rng=1).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.03)
    assert abs(plain.high - theirs.high) > 0.06, "the control: percentiles are elsewhere"


def test_interval_covers_at_its_level():
    rng = np.random.default_rng(0)
    repeats, covered, covered_narrow = 300, 0, 0
    for seed in range(repeats):
        right = rng.random(200) < 0.7
        wide = interval(accuracy, right, np.ones(200, bool), seed=seed, resamples=200)
        narrow = interval(accuracy, right, np.ones(200, bool), seed=seed, resamples=200, level=0.5)
        covered += wide.low <= 0.7 <= wide.high
        covered_narrow += narrow.low <= 0.7 <= narrow.high
    assert abs(covered / repeats - 0.95) < 0.045
    assert abs(covered_narrow / repeats - 0.5) < 0.12  # positive control: a narrower one covers less


def test_interval_covers_a_planted_error_auc():
    """Confidence of right ones ~ N(1, 1), of errors ~ N(0, 1): error ROC-AUC = Phi(1 / sqrt 2)."""
    truth = 0.5 * (1 + math.erf(0.5))
    rng = np.random.default_rng(1)
    repeats, covered = 200, 0
    for seed in range(repeats):
        error = rng.random(300) < 0.3
        found = interval(error_auc, rng.normal(size=300) + ~error, error, seed=seed, resamples=200)
        covered += found.low <= truth <= found.high
    assert abs(covered / repeats - 0.95) < 0.055


def test_paired_is_far_narrower_than_two_separate_intervals():
    rng = np.random.default_rng(0)
    before = rng.normal(size=200) * 10
    after = before + 1 + rng.normal(size=200)
    together = paired(np.mean, [before], [after], 0)
    apart = interval(np.mean, before, seed=0)
    assert together.value == pytest.approx(after.mean() - before.mean())
    assert 0.7 < together.low < together.high < 1.3
    assert together.high - together.low < 0.3 * (apart.high - apart.low)
    assert 1e-5 < together.p < 5e-3
    back = paired(np.mean, [after], [before], 0)
    assert (back.low, back.high, back.p) == pytest.approx((-together.high, -together.low, together.p), rel=0.02)


def test_paired_without_a_difference_says_so():
    x = np.random.default_rng(0).normal(size=60)
    same = paired(np.mean, [x], [x], 0)
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_a_difference_of_rounding_is_none():
    """Two losses that are equal but for the order of their sums; a difference a thousand times as large is one."""
    loss = np.random.default_rng(0).random(300)
    same, other = loss * (1 + 4e-16), loss * (1 + 1e-9)
    share = Means(lambda a, b: (a - b) / a, 0, 1)
    got = paired(share, [loss, loss], [loss, same], 0)
    assert (got.value, got.low, got.high, got.p) == (0, 0, 0, 1)
    assert paired(share, [loss, loss], [loss, other], 0).high < 0, "the control"
    assert interval(share, loss, same, seed=0) == Estimate(0, 0, 0, 0.95)
    with np.errstate(invalid="ignore"):
        boundless = interval(lambda x: float(np.mean(x)), np.where(loss < 0.5, loss, np.inf), seed=0)
    assert boundless.value == np.inf, "and is not taken for 0"


def test_paired_p_keeps_its_level_and_has_power():
    rng = np.random.default_rng(0)
    null, real = [], []
    for seed in range(300):
        before = rng.normal(size=100)
        null.append(paired(np.mean, [before], [before + rng.normal(size=100)], seed, resamples=200).p)
        real.append(paired(np.mean, [before], [before + 0.5 + rng.normal(size=100)], seed, resamples=200).p)
    assert np.mean(np.array(null) <= 0.05) < 0.05 + 0.045
    assert np.mean(np.array(null) <= 0.5) > 0.35  # not merely always large
    assert np.mean(np.array(real) <= 0.05) > 0.95


def test_resamples_without_an_error_are_dropped_and_too_many_are_said():
    c = np.linspace(0, 1, 40)
    few, none = np.zeros(40, bool), np.zeros(40, bool)
    few[[0, 5]] = True  # absent from some exp(-2) = 14 % of resamples
    assert not np.isnan(_numbers(interval(error_auc, c, few, seed=0))).any()
    assert np.isnan(_numbers(interval(error_auc, c, none, seed=0))).all()
    assert np.isnan(_numbers(paired(error_auc, [c, few], [c, none], 0))).all()
    assert not np.isnan(_numbers(paired(error_auc, [c, few], [-c, few], 0))).any()


@pytest.mark.parametrize(("nan_in_100", "said"), [(49, False), (50, False), (51, True)])
def test_more_than_half_nan_and_no_less(nan_in_100, said):
    calls = iter(range(1000))

    def partly(x):
        return math.nan if 1 <= next(calls) <= nan_in_100 else float(x.mean())  # the first call is of all rows

    assert math.isnan(interval(partly, np.arange(10.0), seed=0, resamples=100).low) == said


@pytest.mark.parametrize(
    "call",
    [
        lambda: interval(np.mean, seed=0),
        lambda: interval(np.mean, [], seed=0),
        lambda: interval(np.mean, 3.0, seed=0),
        lambda: interval(accuracy, [1, 2], [1], seed=0),
        lambda: interval(np.mean, [1, 2], seed=0, resamples=0),
        lambda: interval(np.mean, [1, 2], seed=0, level=95),
        lambda: paired(np.mean, [[1, 2]], [[1, 2, 3]], 0),
        lambda: paired(np.mean, [[1, 2]], [], 0),
        lambda: interval(np.mean, [1, 2], seed=0, cluster=[1]),
    ],
)
def test_refuses(call):
    with pytest.raises(BadInput, match="give"):
        call()


def test_a_mean_square_of_noise_is_told_without_it():
    """A calibrated forecast: the plain square, its root and all its draws lie above 0; debiased, 0 is in the interval."""
    held = around = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        p = rng.uniform(0.5, 1, 300)
        y = rng.random(300) < p
        plain = interval_many({"ece": squared_calibration_error}, p, y, seed=0, resamples=200)["ece"]
        fair = interval_many({"ece": squared_calibration_error}, p, y, seed=0, resamples=200, squares=["ece"])["ece"]
        held += fair.low == 0
        around += fair.low <= fair.value <= fair.high
        assert plain.low > 0, "the control"
    assert held >= 36
    assert around == 40


def test_a_planted_calibration_error_is_found_without_bias():
    found, plain, held = [], [], 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        p = rng.uniform(0.5, 0.9, 400)
        y = rng.random(400) < p - 0.1
        got = interval_many({"ece": squared_calibration_error}, p, y, seed=0, resamples=200, squares=["ece"])["ece"]
        found.append(got.value)
        plain.append(math.sqrt(squared_calibration_error(p, y)))
        held += got.low <= 0.1 <= got.high
    assert np.mean(found) == pytest.approx(0.1, abs=0.01)
    assert np.mean(plain) > 0.12, "the control"
    assert held >= 35
    p, y = np.tile(p, 5), np.random.default_rng(0).random(2000) < np.tile(p, 5) - 0.1
    after = paired_many(
        {"ece": squared_calibration_error}, [p, y], [p - 0.1, y], seed=0, resamples=200, squares=["ece"]
    )["ece"]
    assert after.low <= after.value <= after.high < 0


# -------------------------------------------------------------------------------------------------------------- shares


def test_a_share_that_many_have_is_drawn_as_its_mean():
    rng = np.random.default_rng(0)
    ids = np.repeat(np.arange(200), rng.integers(1, 5, 200))
    hit, chance = rng.random(ids.size) < 0.4, rng.random(ids.size)
    counted = rng.random(ids.size) < 0.7
    share = Share(lambda h, e, c: h, lambda h, e, c: c, lambda h, e, c: e)
    assert share(hit, chance, counted) == pytest.approx((hit[counted] - chance[counted]).mean())

    def plain(h, e, c, weight=None):
        w = c * (1.0 if weight is None else weight)
        return float(w @ (h - e) / w.sum())

    got = interval_many({"share": share, "plain": plain}, hit, chance, counted, seed=1, cluster=ids)
    assert _numbers(got["share"]) == pytest.approx(_numbers(got["plain"]), abs=1e-9)
    after = rng.random(ids.size) < 0.5
    both = paired_many(
        {"share": share, "plain": plain}, [hit, chance, counted], [after, chance, counted], 1, cluster=ids
    )
    assert _numbers(both["share"]) == pytest.approx(_numbers(both["plain"]), abs=1e-9)


def test_a_share_of_all_or_of_none_is_not_certain():
    """The control: the bootstrap alone, which is 1 to 1 and 0 to 0 however few rows there are."""
    for n in (30, 300):
        all_right, half = np.ones(n), Share(np.asarray)
        e = interval(half, all_right, seed=0)
        assert (e.low, e.high) == (pytest.approx(n / (n + norm.ppf(0.975) ** 2)), 1)
        d = paired(half, [all_right], [all_right], 0)
        assert d.value == 0
        assert d.p > 0.9
        assert -4 / n < d.low < -2 / n
        assert 2 / n < d.high < 4 / n
        assert _numbers(interval(Means(np.asarray, 0), all_right, seed=0)) == [1, 1, 1]
        same = paired(Means(np.asarray, 0), [all_right], [all_right], 0)
        assert (same.low, same.high) == (0, 0)


def test_rows_of_one_cluster_are_one_example_of_a_share():
    hit = np.zeros(300)
    alone = interval(Share(np.asarray), hit, seed=0)
    together = interval(Share(np.asarray), hit, seed=0, cluster=np.arange(300) // 10)
    assert together.high > 5 * alone.high
    assert together.high == interval(Share(np.asarray), hit[:30], seed=0).high


def test_sides_that_count_other_rows_are_two_shares():
    """What is counted before and not after is no pair: the interval is Newcombe's of two shares, 9 of 10 and 3 of 10 (his table
    II), and that of the bootstrap where many have it."""
    first, n = np.arange(20) < 10, np.arange(20)
    hit = ((n < 9) | (n >= 17)).astype(float)
    share = Share(lambda h, c: h, lambda h, c: c)
    e = paired(share, [hit, ~first], [hit, first], 0)
    assert (e.value, e.low, e.high) == (
        pytest.approx(0.6),
        pytest.approx(0.1705, abs=5e-5),
        pytest.approx(0.8090, abs=5e-5),
    )
    assert e.p < 0.05
    many, half = np.arange(400) % 2.0, np.arange(400) < 200
    drawn = paired(share, [many, half], [many, ~half], 0)
    plain = paired(lambda h, c, weight=1: np.average(h, weights=weight * c), [many, half], [many, ~half], 0)
    assert _numbers(drawn) == pytest.approx(_numbers(plain), abs=1e-9)


@pytest.mark.parametrize("rate", [0.005, 0.02, 0.1])
def test_shares_and_their_differences_cover_where_few_rows_have_them(rate: float):
    """Of 200 texts in clusters of 1 to 3; the control is the bootstrap alone, which does not where hardly any text changes."""
    held = {"share": 0, "difference": 0, "drawn": 0}
    share, mean, runs = Share(np.asarray), Means(np.asarray, 0), 200
    for seed in range(runs):
        rng = np.random.default_rng([seed, 5])
        ids = np.repeat(np.arange(120), rng.integers(1, 4, 120))
        before = np.ones(ids.size)
        after = (rng.random(120) >= rate)[ids].astype(float)
        e = interval(share, after, seed=seed, resamples=200, cluster=ids)
        d, b = (paired(s, [before], [after], seed, resamples=200, cluster=ids) for s in (share, mean))
        held["share"] += e.low <= 1 - rate <= e.high
        held["difference"] += d.low <= -rate <= d.high
        held["drawn"] += b.low <= -rate <= b.high
    assert min(held["share"], held["difference"]) >= 0.9 * runs, held
    assert rate > 0.02 or held["drawn"] < 0.9 * runs, held


def test_a_share_less_its_chance_covers_where_few_copy():
    """Few copies, and chances that differ from query to query."""
    held, runs = 0, 200
    share = Share(lambda h, e: h, less=lambda h, e: e)
    for seed in range(runs):
        rng = np.random.default_rng([seed, 6])
        chance = rng.choice([0.0, 0.4], 150, p=[0.9, 0.1])
        e = interval(share, rng.random(150) < chance, chance, seed=seed, resamples=200)
        held += e.low <= 0 <= e.high
    assert held >= 0.92 * runs


# ------------------------------------------------------------------------------------------------------------ clusters


def in_clusters(seed: int, clusters: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Rows 1 to 8 a cluster whose value is mostly the cluster's own; the mean over rows of the population is 0."""
    rng = np.random.default_rng(seed)
    ids = np.repeat(np.arange(clusters), rng.integers(1, 9, clusters))
    return rng.normal(size=clusters)[ids] + 0.3 * rng.normal(size=ids.size), ids


def test_a_difference_of_losses_that_few_errors_make_covers():
    """Six errors, and what two forecasts lose on them: of the same distribution, so the difference is 0."""
    lost = {"more": Means(lambda a, b: a - b, 0, 1)}
    rng, runs, held = np.random.default_rng(0), 300, {"parts": 0, "BCa": 0}
    for seed in range(runs):
        wrong = rng.random(200) < 0.03
        a, b = (np.where(wrong, rng.random(200) ** 2, 0.001 * rng.random(200)) for _ in range(2))
        for way, rare in (("parts", wrong), ("BCa", None)):
            e = interval_many(lost, a, b, seed=seed, resamples=200, rare=rare)["more"]
            held[way] += e.low <= 0 <= e.high
    assert held["parts"] / runs > 0.92
    assert held["BCa"] / runs < 0.87, "the control"


def test_where_all_errors_lose_the_same_the_interval_is_that_of_their_share():
    wrong = np.arange(300) < 9
    low, high = (float(e) for e in wilson(9, 300))
    for lost in (0.2, 1.0):
        loss = np.where(wrong, lost, 0.0)
        got = interval_many({"": Means(lambda m: m, 0)}, loss, seed=0, resamples=100, rare=wrong)[""]
        assert (got.low, got.high) == pytest.approx((lost * low, lost * high), abs=1e-12)
        usual = interval(Means(lambda m: m, 0), loss, seed=0, resamples=100)
        assert (usual.low, usual.high) != pytest.approx((got.low, got.high), abs=0.05 * lost * low), "the control"


def test_two_parts_are_drawn_only_where_few_clusters_have_what_is_rare():
    rng = np.random.default_rng(0)
    x = rng.normal(size=400)
    mean = {"mean": Means(lambda m: m, 0), "plain": Means(lambda m: m, 0)}

    def got(rare, cluster=None):
        return interval_many(mean, x, seed=1, resamples=100, plain={"plain": 50}, rare=rare, cluster=cluster)

    usual = got(None)
    assert got(np.arange(400) < 200) == usual, "many have it, and many do not"
    assert got(np.zeros(400, bool)) == got(np.ones(400, bool)) == usual, "none has it, or all"
    few = got(np.arange(400) < 20)
    assert few == got(np.arange(400) >= 20), "few have it, or few do not"
    assert few["mean"] != usual["mean"]
    assert few["plain"] == usual["plain"]
    cluster = np.arange(400) // 8
    assert got(np.arange(400) % 8 < 4, cluster) == got(None, cluster), "every cluster has both"


def test_a_paired_difference_in_two_parts_has_a_p_that_goes_with_it():
    rng = np.random.default_rng(0)
    mean = Means(lambda m: m, 0)
    for gain in (-0.5, -0.05, 0.0, 0.05, 0.5):
        wrong = np.arange(200) < 12
        before = np.where(wrong, rng.uniform(0.6, 1, 200), 0.02 * rng.random(200))
        after = before - wrong * (gain + 0.1 * rng.normal(size=200)) + 0.003 * rng.normal(size=200)
        d = paired_many({"loss": mean}, [before], [after], 0, resamples=200, rare=wrong)["loss"]
        assert d.low <= d.value <= d.high
        assert (d.p < 0.05) == (d.low > 0 or d.high < 0)
        assert (abs(gain) < 0.1) or d.p < 0.05
    same = paired_many({"loss": mean}, [before], [before], 0, resamples=200, rare=wrong)["loss"]
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_clusters_cover_where_rows_do_not():
    by_cluster = by_row = 0
    for seed in range(150):
        x, ids = in_clusters(seed)
        a, b = (interval(lambda x, weight=None: np.average(x, weights=weight), x, seed=seed, resamples=200, cluster=c)
                for c in (ids, None))  # fmt: skip
        by_cluster += a.low <= 0 <= a.high
        by_row += b.low <= 0 <= b.high
    assert by_cluster >= 134
    assert by_row < 110, "the control: rows resampled alone claim to know twice as much"


def test_repeating_every_row_changes_nothing():
    c, e, p, y = _case()
    ids = np.arange(c.size)
    once = interval_many(WEIGHTED, c, e, p, y, seed=0, resamples=60)
    four = interval_many(WEIGHTED, *(np.repeat(a, 4, axis=0) for a in (c, e, p, y)), seed=0, resamples=60,
                         cluster=np.repeat(ids, 4))  # fmt: skip
    for name in WEIGHTED:
        assert _numbers(four[name]) == pytest.approx(_numbers(once[name]), abs=1e-9), name


def test_the_rows_order_has_no_say():
    c, e, p, y = _case()
    ids, order = np.arange(c.size) // 2, np.random.default_rng(0).permutation(c.size)
    here = interval_many(WEIGHTED, c, e, p, y, seed=0, resamples=40, cluster=ids)
    there = interval_many(WEIGHTED, *(a[order] for a in (c, e, p, y)), seed=0, resamples=40, cluster=ids[order])
    for name in WEIGHTED:
        assert _numbers(there[name]) == pytest.approx(_numbers(here[name]), abs=1e-9), name


def test_weights_and_taken_rows_give_the_same_interval_by_clusters():
    x, ids = in_clusters(0)
    by_weight = interval(lambda x, weight=None: np.average(x, weights=weight), x, seed=0, resamples=60, cluster=ids)
    assert _numbers(interval(np.mean, x, seed=0, resamples=60, cluster=ids)) == pytest.approx(_numbers(by_weight))


def test_p_is_below_a_level_just_where_the_interval_excludes_no_difference():
    for seed in range(60):
        rng = np.random.default_rng(seed)
        x = rng.exponential(size=40) - 0.7
        got = paired(np.mean, [np.zeros(40)], [x], seed, resamples=999)
        excluded = got.low > 0 or got.high < 0
        assert excluded == (got.p < 0.05) or abs(got.p - 0.05) < 0.01, (seed, got)


def test_so_many_clusters_part_the_interval_from_the_threshold():
    def needed(value: float, low: float, high: float, threshold: float, clusters: int) -> int | None:
        return clusters_needed(value, low, high, threshold, np.arange(clusters))

    assert needed(0.05, 0.03, 0.07, 0.01, 100) == 100, "they do already"
    assert needed(0.05, 0.03, 0.07, 0.04, 100) == 818  # 100 * (2 * (1 + 0.8416 / 1.96))^2
    assert needed(0.00, -0.04, 0.06, 0.02, 50) == 920
    assert needed(0.05, 0.03, 0.07, 0.01, 18) == FEWEST, "they do, and so few decide nothing"
    assert needed(0.02, 0.0, 0.04, 0.02, 50) is None
    assert needed(0.05, math.nan, math.nan, 0.02, 50) is None


def test_four_in_five_checks_with_so_many_clusters_decide_if_the_estimate_is_true():
    x = np.random.default_rng(0).normal(size=400)
    first = interval(Means(lambda x: x, 0), x, seed=0)
    true, half = first.value, first.value - first.low
    threshold = true - 0.6 * half
    enough = clusters_needed(true, first.low, first.high, threshold, np.arange(400))
    assert enough is not None

    def decided(n: int) -> int:
        rows = (np.random.default_rng(i).normal(true, x.std(), n) for i in range(150))
        return sum(interval(Means(lambda x: x, 0), r, seed=0, resamples=200).low > threshold for r in rows)

    assert binom.ppf(SURE, 150, 0.75) <= decided(enough) <= binom.ppf(1 - SURE, 150, 0.85)
    assert decided(enough // 2) < 0.65 * 150, "the control: with half of them it is a toss-up"


def test_clusters_of_unequal_size_count_as_what_they_are_worth():
    alike, many = np.repeat(np.arange(40), 5), np.repeat(np.arange(200), np.r_[300, np.full(199, 1)])
    assert not too_few(np.arange(FEWEST))
    assert not too_few(alike)
    assert not too_few(alike.astype(str))
    assert "only 29 independent clusters" in too_few(np.arange(FEWEST - 1))
    said = too_few(many)  # (499)^2 / (300^2 + 199) = 2.8
    assert "200 independent clusters" in said
    assert "holds 60%" in said
    assert "as much as 2 clusters of equal size" in said
    assert clusters_needed(0.05, 0.03, 0.07, 0.01, alike) == 40
    assert clusters_needed(0.05, 0.03, 0.07, 0.01, many) == math.ceil(200 * FEWEST / (499**2 / (300**2 + 199)))


@pytest.mark.parametrize("names", ["numbers", "words"])
def test_one_large_cluster_widens_an_interval(names: str):
    size = np.r_[120, np.full(39, 2)]
    ids = np.repeat(np.arange(40), size)
    cluster = ids if names == "numbers" else np.array([f"c{i}" for i in ids])
    held = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        x = 0.5 * rng.normal(size=40)[ids] + rng.normal(size=ids.size)
        wide = interval(Means(lambda x: x, 0), x, seed=seed, resamples=300, cluster=cluster)
        held += wide.low <= 0 <= wide.high
    assert held >= binom.ppf(SURE, 60, 0.95), "they held the truth in 79 to 89% while all clusters counted alike"


def test_means_are_the_same_statistic_in_one_product():
    x, ids = in_clusters(0)
    y = np.random.default_rng(1).random(x.size)
    slow = {
        "ratio": lambda x, y, weight=None: np.average(x, weights=weight) / np.average(y, weights=weight),
        "mean": lambda x, y, weight=None: np.average(y, weights=weight),
    }
    fast = {"ratio": Means(lambda a, b: a / b, 0, 1), "mean": Means(lambda b: b, 1)}
    for cluster in (ids, None):
        one, other = (interval_many(s, x, y, seed=0, resamples=150, cluster=cluster) for s in (slow, fast))
        two, another = (paired_many(s, [x, y], [x + y**2, y**2], 0, 150, cluster=cluster) for s in (slow, fast))
        for name in slow:
            assert _numbers(other[name]) == pytest.approx(_numbers(one[name]), abs=1e-9)
            assert _numbers(another[name]) == pytest.approx(_numbers(two[name]), abs=1e-9)
    mixed = interval_many({"ratio": fast["ratio"], "mean": slow["mean"]}, x, y, seed=0, resamples=150, cluster=ids)
    plain = interval_many(fast, x, y, seed=0, resamples=150, cluster=ids)
    assert _numbers(mixed["mean"]) == pytest.approx(_numbers(plain["mean"]), abs=1e-9)


def test_a_statistic_that_takes_many_resamples_at_once_is_drawn_as_one_that_takes_each():
    rng = np.random.default_rng(0)
    x, cluster = rng.normal(size=90), np.arange(90) // 3

    def one(x, weight=None):
        return float(np.average(x**3, weights=weight))

    many = Many(lambda x, weight: weight @ x**3 / weight.sum(axis=1))
    assert many(x) == pytest.approx(one(x))
    for plain in ({}, {"a": 30, "b": 30}):
        got = interval_many({"a": one, "b": many}, x, seed=0, resamples=150, plain=plain, cluster=cluster)
        assert (got["a"].value, got["a"].low, got["a"].high) == pytest.approx(
            (got["b"].value, got["b"].low, got["b"].high)
        )
    got = paired_many({"a": one, "b": many}, [x], [x + 0.1], seed=0, resamples=150, cluster=cluster)
    assert (got["a"].low, got["a"].p) == pytest.approx((got["b"].low, got["b"].p))


def test_the_last_bits_of_a_draw_move_no_interval():
    """Whether a draw that equals the estimate lies below it is up to the processor; it must not be up to the verdict."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 9, (2, 60)).astype(float)

    def median(v, noise=0.0):
        return float(np.median(v)) / 9 + noise * rng.choice([-1, 1])

    def shaken(v):
        return median(v, 1e-15)

    def moved(v):
        return median(v, 0.02)

    one, other, far = (interval(f, x, seed=1, resamples=400) for f in (median, shaken, moved))
    assert np.allclose([other.low, other.high], [one.low, one.high], rtol=0, atol=1e-12)
    assert abs(far.low - one.low) > 1e-3, "the control"
    one, other = (paired(f, (x,), (y,), seed=1, resamples=400) for f in (median, shaken))
    assert np.allclose([other.low, other.high, other.p], [one.low, one.high, one.p], rtol=0, atol=1e-12)
