"""Contrasts over seeds and clusters: against scipy where it has the answer, and how often intervals hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_ind

from trueup.errors import BadInput
from trueup.measure import bootstrap
from trueup.measure.seeds import contrast, over_seeds


def test_one_model_is_the_one_sample_t_test():
    x = np.random.default_rng(0).random((1, 80))
    got = contrast([(1.0, x)])
    theirs = ttest_1samp(x[0], 0).confidence_interval(0.95)
    assert (got.estimate().low, got.estimate().high) == pytest.approx((theirs.low, theirs.high))
    y = np.random.default_rng(1).random((1, 80))
    paired = contrast([(1.0, x), (-1.0, y)])
    wanted = ttest_1samp(x[0] - y[0], 0)
    assert paired.difference().p == pytest.approx(wanted.pvalue)
    assert contrast([(1.0, x), (-1.0, x)]).difference() == bootstrap.PairedEstimate(0.0, 0.0, 0.0, 1.0, 0.95)


def test_where_all_examples_are_alike_it_is_welch_s_t_test_of_the_seeds():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.8, 0.02, 3), rng.normal(0.7, 0.05, 5)
    got = contrast([(1.0, np.tile(a[:, None], 200)), (-1.0, np.tile(b[:, None], 200))])
    theirs = ttest_ind(a, b, equal_var=False)
    interval = theirs.confidence_interval(0.95)
    assert (got.estimate().low, got.estimate().high) == pytest.approx((interval.low, interval.high))
    assert got.difference().p == pytest.approx(theirs.pvalue)


def test_rows_of_one_cluster_say_what_one_row_says():
    x = np.random.default_rng(0).random((3, 60))
    y = np.random.default_rng(1).random((3, 60))
    once = contrast([(1.0, x), (-1.0, y)])
    rows = np.repeat(np.arange(60), 4)
    again = contrast([(1.0, x[:, rows]), (-1.0, y[:, rows])], cluster=rows)
    assert (again.value, again.error, again.freedom) == pytest.approx((once.value, once.error, once.freedom))
    assert contrast([(1.0, x[:, rows]), (-1.0, y[:, rows])]).error < once.error, "the control"


def test_models_that_are_always_right_may_differ_on_what_was_not_asked():
    for n in (40, 400):
        e = contrast([(1.0, np.ones((3, n))), (-1.0, np.ones((3, n)))]).estimate()
        assert e.value == 0
        assert -4 / n < e.low < -2 / n
        assert e.high == -e.low
        alone = contrast([(1.0, np.ones((3, n)))]).estimate()
        assert 1 - 4 / n < alone.low < 1 - 2 / n
        four = contrast([(1.0, np.ones((3, 4 * n)))], cluster=np.arange(4 * n) // 4).estimate()
        assert (four.low, four.high) == pytest.approx((alone.low, alone.high), rel=1e-3)
    plain = np.full((3, 40), 0.5)
    assert contrast([(1.0, plain), (-1.0, plain)]).error == 0, (
        "the control: losses have no 0 and 1 that could be hidden"
    )


def test_no_interval_of_shares_goes_beyond_them():
    rng = np.random.default_rng(0)
    right, wrong = (rng.random((3, 60)) < rate for rate in (0.99, 0.01))
    alone = contrast([(1.0, right * 1.0)]).estimate()
    assert alone.high == 1
    assert alone.low < alone.value < 1
    assert contrast([(1.0, wrong * 1.0)]).estimate().low == 0
    apart = contrast([(1.0, np.ones((3, 60))), (-1.0, np.zeros((3, 60)))])
    assert apart.estimate().high == apart.difference().high == 1
    assert contrast([(1.0, 0.5 + right)]).estimate().high > 1.5, "the control: a loss may be above any that was seen"


@pytest.mark.parametrize("rate", [0.005, 0.02])
def test_a_difference_that_few_examples_show_is_held(rate: float):
    """The first model is wrong on so many examples, whatever its seed, and the second never."""
    held, runs, n = 0, 200, 200
    for seed in range(runs):
        wrong = np.random.default_rng([seed, 4]).random(n) < rate
        e = contrast([(1.0, np.tile(1.0 - wrong, (3, 1))), (-1.0, np.ones((3, n)))]).estimate()
        held += e.low <= -rate <= e.high
    assert held >= 0.95 * runs


@pytest.mark.parametrize("spread", [0.0, 0.03])
def test_three_seeds_hold_the_truth_where_resampling_them_does_not(spread: float):
    rng, held, resampled = np.random.default_rng(0), 0, 0
    runs, n = 200, 200
    for _ in range(runs):
        each = 0.8 + spread * rng.normal(size=(2, 3, 1))
        x, y = (rng.random((2, 3, n)) < each).astype(float)
        e = contrast([(1.0, x), (-1.0, y)]).estimate()
        held += e.low <= 0 <= e.high
        draws = []
        for _ in range(100):
            rows, s = rng.integers(0, n, n), rng.integers(0, 3, (2, 3))
            draws.append(x[s[0]][:, rows].mean() - y[s[1]][:, rows].mean())
        low, high = np.quantile(draws, [0.025, 0.975])
        resampled += low <= 0 <= high
    assert held / runs > 0.92
    if spread:
        assert resampled / runs < held / runs


def test_sides_of_other_examples_are_refused():
    with pytest.raises(BadInput, match="other examples"):
        contrast([(1.0, np.ones((2, 5))), (-1.0, np.ones((2, 6)))])
    with pytest.raises(BadInput, match="other examples"):
        contrast([])


@pytest.mark.parametrize("spread", [0.0, 0.03])
@pytest.mark.parametrize("count", [3, 5])
def test_the_mean_over_trainings_with_test_sets_of_their_own_holds_the_truth(spread: float, count: int):
    """A fifth of one pool is drawn as the test set of each training, whose effect varies too."""
    rng, held, naive, runs, pool, n = np.random.default_rng(count), 0, 0, 400, 1000, 200
    for _ in range(runs):
        hardness = rng.normal(size=pool)
        found = []
        for _ in range(count):
            x = hardness[rng.permutation(pool)[:n]] + spread * 10 * rng.normal()
            half = 1.96 * x.std(ddof=1) / np.sqrt(n)
            found.append((x.mean(), x.mean() - half, x.mean() + half))
        e = over_seeds(found, shared=n / pool)
        held += e.low <= 0 <= e.high
        naive += all(low <= 0 <= high for _, low, high in found)
    assert 0.93 <= held / runs <= (0.98 if spread else 1), held / runs
    assert naive / runs < 0.92, "the control"


def test_one_training_has_its_own_interval_and_none_is_refused():
    assert over_seeds([(0.2, 0.1, 0.4)], 0.2) == bootstrap.Estimate(0.2, 0.1, 0.4, 0.95)
    for bad in ([], 0.2), ([(0.0, 0.0, 0.0)], 1.5):
        with pytest.raises(BadInput, match="estimates"):
            over_seeds(*bad)
