import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trueup.errors import BadInput
from trueup.measure.calibration import (
    COLDEST,
    HOTTEST,
    brier,
    expected_calibration_error,
    fit_temperature,
    nll,
    reliability_curve,
    softmax,
)

ROWS = st.lists(st.tuples(st.integers(0, 10), st.booleans(), st.integers(0, 4)), min_size=1, max_size=40).filter(
    lambda rows: any(r[2] for r in rows)
)


def _slow_ece(confidence, correct, bins):
    """Pure Python: each distinct confidence goes whole into the bin of its middle."""
    n, start, table = len(confidence), 0, {}
    for level in sorted(set(confidence)):
        hits = [bool(h) for c, h in zip(confidence, correct, strict=True) if c == level]
        b = (bins * (2 * start + len(hits))) // (2 * n)
        size, said, was = table.get(b, (0, 0.0, 0))
        table[b] = (size + len(hits), said + level * len(hits), was + sum(hits))
        start += len(hits)
    return sum(abs(said - was) for _, said, was in table.values()) / n


@settings(deadline=None)
@given(ROWS, st.integers(1, 20))
def test_ece_is_the_slow_one_and_weights_are_repeated_rows(rows, bins):
    confidence, correct, weight = np.array(rows, float).T
    confidence, weight = confidence / 10, weight.astype(int)
    repeated = np.repeat(confidence, weight), np.repeat(correct, weight)
    weighted = expected_calibration_error(confidence, correct, bins, weight=weight)
    assert weighted == pytest.approx(expected_calibration_error(*repeated, bins), abs=1e-12)
    assert weighted == pytest.approx(_slow_ece(*(list(r) for r in repeated), bins), abs=1e-12)


@settings(deadline=None)
@given(ROWS, st.randoms())
def test_ece_does_not_depend_on_the_order_to_the_last_bit(rows, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    one, other = (np.array(r, float) for r in (rows, shuffled))
    assert expected_calibration_error(one[:, 0] / 10, one[:, 1]) == expected_calibration_error(
        other[:, 0] / 10, other[:, 1]
    )


def test_bins_have_equal_mass_and_never_split_ties():
    distinct = np.linspace(0.1, 0.9, 60)
    assert reliability_curve(distinct, distinct > 0.5, 15)[2].tolist() == [4] * 15
    tied = np.repeat([0.2, 0.5, 0.9], [7, 50, 3])
    said, _, count = reliability_curve(tied, tied > 0.3, 15)
    assert said.tolist() == pytest.approx([0.2, 0.5, 0.9])
    assert count.tolist() == [7, 50, 3]


def test_ece_closed_forms():
    assert expected_calibration_error([0.8] * 10, [1] * 8 + [0] * 2) == pytest.approx(0)
    assert expected_calibration_error([0.8] * 10, [0] * 10) == pytest.approx(0.8)
    assert expected_calibration_error([1.0] * 4 + [0.5] * 4, [1, 1, 1, 0, 1, 1, 1, 0]) == pytest.approx(0.25)


def test_ece_tells_calibrated_from_overconfident():
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.5, 1, 6000)
    correct = rng.random(6000) < truth
    assert expected_calibration_error(truth, correct) < 0.03
    assert expected_calibration_error(np.sqrt(truth), correct) > 0.06


def test_brier_and_nll_closed_forms():
    sure, even = np.eye(3)[[0, 1]], np.full((2, 4), 0.25)
    assert brier(sure, [0, 1]) == 0
    assert brier(sure, [1, 2]) == 2
    assert brier(even, [0, 3]) == pytest.approx(0.75)
    assert nll(sure, [0, 1]) == 0
    assert nll(even, [0, 3]) == pytest.approx(np.log(4))
    assert nll(sure, [1, 2]) == pytest.approx(-np.log(np.finfo(float).tiny))


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
def test_weights_are_repeated_rows_in_brier_nll_and_temperature(seed, classes):
    rng = np.random.default_rng(seed)
    logits, label = rng.normal(size=(12, classes)), rng.integers(0, classes, 12)
    weight = rng.multinomial(12, np.full(12, 1 / 12))
    long, long_label = np.repeat(logits, weight, axis=0), np.repeat(label, weight)
    p, q = softmax(logits), softmax(long)
    assert brier(p, label, weight=weight) == pytest.approx(brier(q, long_label), abs=1e-12)
    assert nll(p, label, weight=weight) == pytest.approx(nll(q, long_label), abs=1e-12)
    assert fit_temperature(logits, label, weight=weight) == pytest.approx(fit_temperature(long, long_label), rel=1e-6)


def test_softmax_survives_large_logits():
    assert softmax([[1e4, 0.0], [0.0, np.log(3)]]) == pytest.approx(np.array([[1, 0], [0.25, 0.75]]))


def _planted_logits(rng, n=4000):
    logits = rng.normal(size=(n, 3)) * 2
    label = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)  # label ~ softmax(logits)
    return logits, label


@pytest.mark.parametrize("planted", [0.5, 1.0, 3.0])
def test_temperature_is_found_again(planted):
    logits, label = _planted_logits(np.random.default_rng(1))
    assert fit_temperature(logits * planted, label) == pytest.approx(planted, rel=0.1)
    # exact property: scaling the logits scales the temperature
    assert fit_temperature(logits * planted, label) == pytest.approx(planted * fit_temperature(logits, label), rel=1e-9)


def test_temperature_is_the_minimum():
    logits, label = _planted_logits(np.random.default_rng(2), 500)
    best = fit_temperature(logits * 2, label)
    at = [nll(softmax(logits * 2 / t), label) for t in (best * 0.99, best, best * 1.01, 1.0)]
    assert at[1] < min(at[0], at[2]) < at[3]


def test_temperature_at_the_ends():
    logits = np.eye(3) * 2
    assert fit_temperature(logits, [0, 1, 2]) == COLDEST  # always right: no temperature is too cold
    assert fit_temperature(logits, [1, 2, 0]) == HOTTEST  # always wrong
    assert fit_temperature(np.ones((4, 3)), [0, 1, 2, 0]) == 1  # says nothing


@pytest.mark.parametrize(
    "call",
    [
        lambda: expected_calibration_error([0.5, 1.5], [1, 0]),
        lambda: expected_calibration_error([0.5, np.nan], [1, 0]),
        lambda: expected_calibration_error([0.5, 0.6], [1, 3]),
        lambda: expected_calibration_error([0.5], [1], 0),
        lambda: brier([[0.5, 0.6]], [0]),
        lambda: brier([[1.5, -0.5]], [0]),
        lambda: brier([[0.5, 0.5]], [2]),
        lambda: brier([[0.5, 0.5]], [-1]),
        lambda: brier([[0.5, 0.5]], ["a"]),
        lambda: nll([0.5, 0.5], [0, 1]),
        lambda: nll([[0.5, 0.5]], [0, 1]),
        lambda: fit_temperature([[np.inf, 0.0]], [0]),
    ],
)
def test_refuses(call):
    with pytest.raises(BadInput):
        call()
