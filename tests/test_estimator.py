"""ConfidenceClassifier is an estimator like any other, and its confidence is the house's own."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from scipy import sparse
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import trueup
from trueup import ConfidenceClassifier
from trueup.measure.calibration import expected_calibration_error
from trueup.measure.selective import error_auc


@parametrize_with_checks([ConfidenceClassifier()])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def trapped(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three classes of features (n, 8); where the last feature is high, the label is drawn by lot."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 8))
    label = (2.5 * x[:, :3] + rng.gumbel(size=(n, 3))).argmax(axis=1)
    label = np.where(x[:, 7] > 0.8, rng.integers(0, 3, n), label)
    return x, np.array(["ant", "bee", "cat"])[label]


def plain(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two classes whose log-odds are linear: a logistic head's softmax is all there is to know."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6))
    return x, (rng.random(n) < 1 / (1 + np.exp(-2 * x[:, 0]))).astype(int)


@pytest.fixture(scope="module")
def fitted() -> ConfidenceClassifier:
    return ConfidenceClassifier().fit(*trapped(1500, 0))


def ranking(estimator, x, y) -> float:
    return error_auc(estimator.confidence(x), estimator.predict(x) != y)


def test_the_confidence_ranks_errors_better_than_the_softmax_where_the_features_know(fitted):
    x, y = trapped(3000, 1)
    assert fitted.chosen_ == "shrunk"
    assert fitted.gain_.low > 0
    softmax = error_auc(fitted.predict_proba(x).max(axis=1), fitted.predict(x) != y)
    assert ranking(fitted, x, y) > softmax + 0.05


def test_the_confidence_is_a_probability_of_being_right(fitted):
    x, y = trapped(3000, 1)
    confidence, right = fitted.confidence(x), fitted.predict(x) == y
    assert expected_calibration_error(confidence, right) < 0.05
    softmax = fitted.predict_proba(x).max(axis=1)
    assert expected_calibration_error(softmax, right) > expected_calibration_error(confidence, right)


def test_the_softmax_stays_where_nothing_is_gained():
    x, _ = plain(800, 0)
    kept = [ConfidenceClassifier(random_state=s).fit(*plain(800, s)) for s in range(4)]
    assert [e.chosen_ for e in kept].count("response") >= 3
    response = next(e for e in kept if e.chosen_ == "response")
    softmax, confidence = response.predict_proba(x).max(axis=1), response.confidence(x)
    order = np.argsort(softmax)
    assert (np.diff(confidence[order]) >= -1e-12).all()


def test_too_few_errors_leave_the_bare_softmax():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    e = ConfidenceClassifier().fit(x, (x[:, 0] > 0).astype(int))
    assert e.gain_ is None
    np.testing.assert_allclose(e.confidence(x), e.predict_proba(x).max(axis=1))


def test_the_head_is_a_logistic_regression_on_standardised_features():
    x, y = trapped(400, 0)
    ours = ConfidenceClassifier(strength=0.3).fit(x, y)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, tol=1e-8, max_iter=5000)).fit(x, y)
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=1e-4)


def test_the_same_state_gives_the_same_confidence():
    x, y = trapped(400, 0)
    a, b = (ConfidenceClassifier(random_state=5).fit(x, y).confidence(x) for _ in range(2))
    assert np.array_equal(a, b)
    c = clone(ConfidenceClassifier(strength=2.0, random_state=5))
    assert c.get_params() == {"strength": 2.0, "folds": 5, "resamples": 300, "random_state": 5}
    with pytest.raises(NotFittedError):
        c.confidence(x)


def test_it_survives_pickling(fitted):
    x, _ = trapped(50, 2)
    assert np.array_equal(pickle.loads(pickle.dumps(fitted)).confidence(x), fitted.confidence(x))


def test_cross_validation_pipelines_and_grids():
    x, y = trapped(400, 0)
    whole = make_pipeline(StandardScaler(), ConfidenceClassifier())
    assert cross_val_score(whole, x, y, cv=3).min() > 0.4
    assert cross_val_predict(whole, x, y, cv=3, method="predict_proba").shape == (400, 3)
    assert cross_val_score(ConfidenceClassifier(), x, y, cv=3, scoring=ranking).min() > 0.5
    grid = GridSearchCV(ConfidenceClassifier(), {"strength": [0.01, 1.0]}, scoring=ranking, cv=2).fit(x, y)
    assert grid.best_estimator_.confidence(x).shape == (400,)


def test_a_class_with_one_example_is_no_error():
    x, y = trapped(200, 0)
    y = np.concatenate([y[:-1], ["dog"]])
    assert ConfidenceClassifier().fit(x, y).predict_proba(x).shape == (200, 4)


@pytest.mark.parametrize(
    "wrong", [{"strength": 0.0}, {"folds": 1}, {"resamples": 1}, {"strength": "1"}, {"folds": 2.5}]
)
def test_parameters_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=r"cannot be used; give"):
        ConfidenceClassifier(**wrong).fit(*trapped(50, 0))


def test_a_row_without_a_group_is_refused():
    x, y = trapped(50, 0)
    for none in (None, float("nan")):
        with pytest.raises(ValueError, match="groups has no value in 2 of 50 rows"):
            ConfidenceClassifier().fit(x, y, groups=[none, none, *range(48)])


def test_the_scorer_refuses_what_has_no_confidence():
    x, y = trapped(200, 0)
    other = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y)
    with pytest.raises(ValueError, match="LogisticRegression has no confidence"):
        trueup.confidence_score(other, x, y)


def test_a_pipeline_gives_its_confidence_and_is_scored_by_it():
    x, y = trapped(900, 0)
    pipe = make_pipeline(StandardScaler(), ConfidenceClassifier()).fit(x[:600], y[:600])
    confidence = pipe[-1].confidence(pipe[:-1].transform(x[600:]))
    right = pipe.predict(x[600:]) == y[600:]
    assert trueup.confidence_score(pipe, x[600:], y[600:]) == pytest.approx(-np.mean((confidence - right) ** 2))
    weight = np.arange(300.0)
    repeated = np.repeat(np.arange(300), weight.astype(int))
    assert trueup.confidence_score(pipe, x[600:], y[600:], weight) == pytest.approx(
        trueup.confidence_score(pipe, x[600:][repeated], y[600:][repeated])
    )
    assert cross_val_score(pipe, x, y, cv=3, scoring=trueup.confidence_score).max() < 0
    best = GridSearchCV(
        pipe, {"confidenceclassifier__strength": [1e-4, 1.0]}, scoring=trueup.confidence_score, cv=2
    ).fit(x, y)
    assert best.best_score_ == best.cv_results_["mean_test_score"].max() < 0


def test_weights_are_rows_repeated():
    x, y = trapped(300, 0)
    weight = np.random.default_rng(0).integers(0, 4, 300)
    weighted = ConfidenceClassifier().fit(x, y, sample_weight=weight)
    repeated = ConfidenceClassifier().fit(np.repeat(x, weight, axis=0), np.repeat(y, weight))
    np.testing.assert_allclose(weighted.predict_proba(x), repeated.predict_proba(x), atol=1e-4)
    plain = ConfidenceClassifier().fit(x, y)
    assert np.abs(weighted.predict_proba(x) - plain.predict_proba(x)).max() > 0.01
    with pytest.raises(ValueError, match="weight"):
        plain.fit(x, y, sample_weight=np.zeros(300))


def test_weights_and_groups_are_routed_through_a_pipeline():
    x, y = trapped(300, 0)
    weight, groups = np.random.default_rng(0).integers(1, 4, 300), np.arange(300) // 2
    alone = ConfidenceClassifier().fit(StandardScaler().fit_transform(x), y, sample_weight=weight, groups=groups)
    with config_context(enable_metadata_routing=True):
        asking = ConfidenceClassifier().set_fit_request(sample_weight=True, groups=True)
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        pipe = make_pipeline(scaler, asking).fit(x, y, sample_weight=weight, groups=groups)
    np.testing.assert_allclose(pipe.predict_proba(x), alone.predict_proba(StandardScaler().fit_transform(x)))


def test_sparse_features_give_what_dense_ones_do():
    x, y = trapped(300, 0)
    x = np.where(np.abs(x) > 1, x, 0)
    dense, thin = ConfidenceClassifier().fit(x, y), ConfidenceClassifier().fit(sparse.csr_matrix(x), y)
    np.testing.assert_array_equal(thin.confidence(sparse.csc_array(x)), dense.confidence(x))
    with pytest.raises(ValueError, match="TruncatedSVD"):
        ConfidenceClassifier().fit(sparse.csr_matrix((1000, 10**6)), np.arange(1000) % 2)
