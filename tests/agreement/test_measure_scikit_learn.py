"""The measures against scikit-learn's, where it has the same ones."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, auc, brier_score_loss, log_loss, roc_auc_score

from trueup.measure.accuracy import accuracy, mcnemar
from trueup.measure.calibration import brier, fit_temperature, nll, reliability_curve, softmax
from trueup.measure.selective import augrc, error_auc, risk_coverage

SEEDS = range(5)


def _case(seed, classes=4, n=300):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)) * 2
    label = (logits / 1.5 + rng.gumbel(size=logits.shape)).argmax(axis=1)
    return logits, label, rng.integers(0, 4, n)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("digits", [1, 12])
def test_error_auc(seed, digits):
    logits, label, weight = _case(seed)
    confidence, error = np.round(softmax(logits).max(axis=1), digits), logits.argmax(axis=1) != label
    assert error_auc(confidence, error) == pytest.approx(roc_auc_score(~error, confidence), abs=1e-12)
    assert error_auc(confidence, error, weight=weight) == pytest.approx(
        roc_auc_score(~error, confidence, sample_weight=weight), abs=1e-12
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_area_under_generalised_risk(seed):
    logits, label, _ = _case(seed)
    confidence, error = np.round(softmax(logits).max(axis=1), 2), logits.argmax(axis=1) != label
    curve = risk_coverage(confidence, error)
    assert augrc(confidence, error) == pytest.approx(auc([0, *curve.coverage], [0, *curve.generalised_risk]), abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("classes", [2, 4])
def test_brier_nll_and_accuracy(seed, classes):
    logits, label, weight = _case(seed, classes)
    p, names = softmax(logits), list(range(classes))
    for w in (None, weight):
        theirs = brier_score_loss(label, p, labels=names, scale_by_half=False, sample_weight=w)
        assert brier(p, label, weight=w) == pytest.approx(theirs, abs=1e-12)
        assert nll(p, label, weight=w) == pytest.approx(log_loss(label, p, labels=names, sample_weight=w), abs=1e-12)
        predicted = p.argmax(axis=1)
        assert accuracy(predicted, label, weight=w) == pytest.approx(accuracy_score(label, predicted, sample_weight=w))
    if classes == 2:  # the sum form is twice the binary one
        assert brier(p, label) == pytest.approx(2 * brier_score_loss(label, p[:, 1]), abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_reliability_curve(seed):
    """Their quantile bins are ours when the confidences are distinct and n is a multiple of the bins."""
    logits, label, _ = _case(seed)
    confidence, correct = softmax(logits).max(axis=1), logits.argmax(axis=1) == label
    assert np.unique(confidence).size == 300
    was, said = calibration_curve(correct, confidence, n_bins=15, strategy="quantile")
    ours = reliability_curve(confidence, correct, 15)
    assert ours[0] == pytest.approx(said, abs=1e-12)
    assert ours[1] == pytest.approx(was, abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_temperature_against_a_plain_minimiser(seed):
    logits, label, _ = _case(seed)
    plain = minimize_scalar(lambda b: log_loss(label, softmax(b * logits)), bounds=(0.01, 10), method="bounded")
    assert fit_temperature(logits, label) == pytest.approx(1 / plain.x, rel=1e-3)
    assert fit_temperature(logits, label) == pytest.approx(1.5, rel=0.35)


@pytest.mark.parametrize("seed", SEEDS)
def test_temperature_against_scikit_learn(seed):
    """CalibratedClassifierCV(method="temperature") on a frozen model whose decision function is the logits."""
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator

    class Given(ClassifierMixin, BaseEstimator):
        def fit(self, X, y):
            self.classes_ = np.unique(y)
            return self

        def decision_function(self, X):
            return X

        def predict(self, X):
            return X.argmax(axis=1)

    logits, label, _ = _case(seed)
    try:
        theirs = CalibratedClassifierCV(FrozenEstimator(Given().fit(logits, label)), method="temperature")
        theirs.fit(logits, label)
    except (ValueError, TypeError) as refused:
        pytest.skip(f"this scikit-learn has no temperature scaling: {refused}")
    ours = softmax(logits / fit_temperature(logits, label))
    assert ours == pytest.approx(theirs.predict_proba(logits), abs=1e-3)
    assert np.abs(ours - softmax(logits)).max() > 0.01  # and it did something


@pytest.mark.parametrize("seed", SEEDS)
def test_mcnemar(seed):
    rng = np.random.default_rng(seed)
    before, after = rng.random(80) < 0.6, rng.random(80) < 0.75
    worse, better = (before & ~after).sum(), (after & ~before).sum()
    assert mcnemar(before, after) == pytest.approx(binomtest(int(better), int(worse + better)).pvalue)
