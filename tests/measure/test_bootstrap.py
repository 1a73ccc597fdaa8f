import math

import numpy as np
import pytest

from trueup.errors import BadInput
from trueup.measure.accuracy import accuracy
from trueup.measure.bootstrap import interval, interval_many, paired, paired_many
from trueup.measure.calibration import brier, expected_calibration_error, nll, softmax
from trueup.measure.selective import augrc, aurc, coverage_at_risk, error_auc, naurc


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
    """Of (0, 1) the resampled means are 0, 1/2, 1 with chances 1/4, 1/2, 1/4."""
    x = np.array([0.0, 1.0])
    wide, narrow = interval(np.mean, x, seed=0), interval(np.mean, x, seed=0, level=0.4)
    assert (wide.value, wide.low, wide.high) == (0.5, 0, 1)
    assert (narrow.value, narrow.low, narrow.high) == (0.5, 0.5, 0.5)
    assert narrow.level == 0.4


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
    assert together.p == pytest.approx(2 / 1001)
    back = paired(np.mean, [after], [before], 0)
    assert (back.low, back.high, back.p) == pytest.approx((-together.high, -together.low, together.p))


def test_paired_without_a_difference_says_so():
    x = np.random.default_rng(0).normal(size=60)
    same = paired(np.mean, [x], [x], 0)
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)


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
        return math.nan if next(calls) < nan_in_100 else float(x.mean())

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
    ],
)
def test_refuses(call):
    with pytest.raises(BadInput, match="give"):
        call()


def test_the_interval_of_a_biased_statistic_is_around_its_value():
    """A small calibration error: the plain interval lies above it, the moved one around it, and never below 0."""
    p = np.repeat([0.6, 0.8, 0.9], 100)
    y = np.arange(300) % 100 < np.repeat([61, 80, 90], 100)
    ece = {"ece": expected_calibration_error, "mean": lambda p, y, weight=None: float(np.average(y, weights=weight))}
    plain = interval_many(ece, p, y, seed=0, resamples=300)
    moved = interval_many(ece, p, y, seed=0, resamples=300, biased=["ece"])
    assert plain["ece"].low > plain["ece"].value, "the control"
    assert 0 <= moved["ece"].low < moved["ece"].value < moved["ece"].high
    assert moved["mean"] == plain["mean"]
    fine = np.linspace(0.5, 1, 300)
    level = np.repeat(fine.reshape(15, 20).mean(axis=1), 20)
    hits = np.tile(np.arange(20), 15) < (20 * level).round()  # right to a twentieth in each of 15 bins
    sides = [fine, hits], [np.full(300, hits.mean()), hits]
    before = paired_many(ece, *sides, seed=0, resamples=300)["ece"]
    after = paired_many(ece, *sides, seed=0, resamples=300, biased=["ece"])["ece"]
    assert before.high < before.value < after.high, "the control"
    assert after.low < after.value == before.value
