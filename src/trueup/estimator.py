"""The repair of overconfidence as a scikit-learn classifier on features, for pipelines and cross-validation.

```python
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from trueup.run.predict import predict

X = predict(subject, corpus).features      # or the last hidden layer of any model, (n, d)
trust = trueup.ConfidenceClassifier().fit(X, y)
sure = trust.confidence(X_new) >= 0.9
pipe = make_pipeline(StandardScaler(), trueup.ConfidenceClassifier()).fit(X, y)
pipe[-1].confidence(pipe[:-1].transform(X_new))          # the confidence at the end of a pipeline
cross_val_score(pipe, X, y)                              # accuracy
cross_val_score(pipe, X, y, scoring=trueup.confidence_score)
```
"""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.pipeline import Pipeline
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
    validate_data,
)

from trueup.corpus.values import absent
from trueup.faults.overconfidence import platt
from trueup.faults.overconfidence.audit import FEWEST, FEWEST_ERRORS
from trueup.faults.overconfidence.candidates import FAMILIES, RESPONSE, Evidence, Learnt, Part, choose
from trueup.faults.overconfidence.repair import judge
from trueup.measure import confidence_scores
from trueup.measure.calibration import softmax
from trueup.measure.folds import folds
from trueup.run.heads import fit_head
from trueup.subject.subject import Head

Array = NDArray[np.float64]
_SHRUNK = next(f for f in FAMILIES if f.key == "shrunk")


class ConfidenceClassifier(ClassifierMixin, BaseEstimator):
    """A linear classifier for scikit-learn that estimates how likely each of its predictions is to be right.

    `fit` learns a logistic regression on all examples. It learns the confidence by cross-fitting, from predictions of models
    that were not trained on the example. The confidence is the class-aware shrunk probe of `trueup.Overconfidence`, if its
    Brier loss is lower than that of the recalibrated softmax response: the whole interval of the difference must be on one side,
    on examples that were not used to choose the ridge penalty. Otherwise it is the softmax response. Either is Platt-scaled.
    The confidence never changes a prediction.

    `trueup.Overconfidence` repairs a given classifier, and learns on examples that were held out from its training. Here the
    classifier is learnt as well, so every example is held out in turn. The shrunk probe is the only candidate, because the
    others start from the final head, which was trained on all examples. No examples are set aside to certify abstention.

    The class passes all of scikit-learn's estimator checks that apply. `score` is the accuracy, as for every classifier. The
    scorer `confidence_score` rates the confidence, also at the end of a pipeline. Sparse features are converted to dense ones,
    because the shrunk probe needs their covariance.

    Parameters:
        strength: the inverse of the ridge penalty of the logistic regression (scikit-learn's C), on standardised features. Above
            0.
        folds: the number of folds of the cross-fitting, at least 2.
        resamples: the number of bootstrap resamples for the choice of the confidence, at least 10.
        random_state: a seed (int), a RandomState, or None, for the folds and the bootstrap.

    Attributes:
        classes_: (C,) the labels, sorted.
        n_features_in_: d, the number of columns of X.
        feature_names_in_: the names of the columns, if X had names.
        coef_, intercept_: the weights (C, d) and the bias (C,) of the logistic regression, with one row for each class, also for
            two classes.
        chosen_: ``shrunk`` for the shrunk probe, or ``response`` for the softmax response. With fewer than 20 examples, 5 errors
            or 5 right predictions, it is ``response`` and is not scaled.
        gain_: the share of the softmax response's Brier loss that the shrunk probe saves beyond recalibration, on examples that
            were not used to choose its ridge penalty (an `Estimate`). None if there were too few examples.
    """

    def __init__(
        self, strength: float = 1.0, folds: int = 5, resamples: int = 300, random_state: Any = 0
    ) -> None:  # fmt: skip
        self.strength = strength
        self.folds = folds
        self.resamples = resamples
        self.random_state = random_state

    def fit(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> ConfidenceClassifier:
        """Learn from features and labels.

        In a pipeline, `sample_weight` and `groups` are requested with ``set_fit_request`` (scikit-learn's metadata routing).

        Args:
            X: (n, d) features, dense or sparse.
            y: (n,) labels.
            sample_weight: (n,) how often each row counts in the logistic regression, as if the row were repeated. For the
                confidence, each row with a weight above 0 counts once.
            groups: (n,) a group for each row. Rows of the same group are not independent of each other. Default: equal rows are
                a group.

        Raises:
            ValueError: there are fewer than two classes, or a parameter is out of its range. Also the errors of
                `sklearn.utils.validation.validate_data`.
        """
        counts = (self.folds, self.resamples)
        known = isinstance(self.strength, Real) and all(isinstance(n, Integral) for n in counts)
        if not known or not self.strength > 0 or self.folds < 2 or self.resamples < 10:
            raise ValueError(
                f"strength={self.strength!r}, folds={self.folds!r} and resamples={self.resamples!r} cannot be used; give a "
                "strength above 0, at least 2 folds and at least 10 resamples, both whole numbers."
            )
        x: Any
        targets: Any
        x, targets = validate_data(self, X, y, dtype=np.float64, accept_sparse="csr")  # pyright: ignore[reportArgumentType]
        x = _dense(x)
        check_classification_targets(targets)
        weight, row_group = None, x if groups is None else column_or_1d(groups)
        if groups is not None and (lacking := sum(map(absent, row_group.tolist()))):
            raise ValueError(f"groups has no value in {lacking} of {len(row_group)} rows; give each row a group.")
        check_consistent_length(x, row_group)
        if sample_weight is not None:
            weight = np.asarray(_check_sample_weight(sample_weight, x, ensure_non_negative=True), np.float64)
            if not (weight > 0).any():
                raise ValueError("No row has a sample_weight above 0; give some row one.")
            has_weight = weight > 0
            x, targets, row_group, weight = (
                x[has_weight],
                targets[has_weight],
                row_group[has_weight],
                weight[has_weight],
            )
        self.classes_, label = np.unique(targets, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"y has one class, '{self.classes_[0]}', and a classifier needs at least two; give more data."
            )
        random = check_random_state(self.random_state)
        seed = int(random.randint(np.iinfo(np.int32).max))
        self.coef_, self.intercept_ = self._head(x, label, weight)
        cluster = np.unique(row_group, axis=0, return_inverse=True)[1].reshape(-1)  # NumPy 2.0 gives it a second axis
        self._learn(x, label.astype(np.int64), cluster, weight, seed)
        return self

    def decision_function(self, X: ArrayLike) -> Array:
        """The logits (n, C). For two classes: (n,), the logit of the second class minus that of the first."""
        z = self._part(X).z
        return z[:, 1] - z[:, 0] if len(self.classes_) == 2 else z

    def predict_proba(self, X: ArrayLike) -> Array:
        """The class probabilities (n, C): the softmax of the logits."""
        return softmax(self._part(X).z)

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The predicted classes (n,): for each row, the class with the largest logit."""
        predicted = self._part(X).predicted
        return self.classes_[predicted]

    def confidence(self, X: ArrayLike) -> Array:
        """The probability (n,) that the predicted class is right. Higher means more certain."""
        part = self._part(X)
        return self._confidence(self._learnt.logits(part))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _head(self, x: Array, label: NDArray[np.int64], weight: Array | None) -> tuple[Array, Array]:
        moments = None
        if weight is not None:  # as if rows were repeated
            centre = np.average(x, axis=0, weights=weight)
            moments = centre, np.sqrt(np.average(np.square(x - centre), axis=0, weights=weight)) + 1e-6
        coef, bias, _ = fit_head(
            x, label, len(self.classes_), strength=self.strength, weight=weight, moments=moments
        )  # fmt: skip
        return coef, bias

    def _part(self, X: ArrayLike) -> Part:
        check_is_fitted(self)
        read: Any = validate_data(self, X, dtype=np.float64, accept_sparse="csr", reset=False)  # pyright: ignore[reportArgumentType]
        x = _dense(read)
        z = x @ self.coef_.T + self.intercept_
        return Part(x, z, z.argmax(axis=1))

    def _learn(
        self, x: Array, label: NDArray[np.int64], cluster: NDArray[np.int64], counts: Array | None, seed: int
    ) -> None:
        """Choose the confidence, and learn it from all examples."""
        c = len(self.classes_)
        self._learnt, self.chosen_, self.gain_ = Learnt(None, confidence_scores.ResponseLogOdds(c)), RESPONSE.key, None
        # The log-odds through a sigmoid are the softmax response itself.
        self._confidence = confidence_scores.Calibrated(self._learnt.score, 1.0, 0.0)
        fold = folds(label, self.folds, seed=seed, cluster=cluster)
        if len(x) < FEWEST or any(len(np.unique(label[fold != f])) < 2 for f in range(self.folds)):
            return
        z = np.empty((len(x), c))
        for f in np.unique(fold):
            weight, bias = self._head(x[fold != f], label[fold != f], None if counts is None else counts[fold != f])
            z[fold == f] = x[fold == f] @ weight.T + bias
        held_out = Part(x, z, label)
        training_errors = [held_out.error[fold != f] for f in range(self.folds)]
        if min(min(e.sum(), (~e).sum()) for e in (held_out.error, *training_errors)) < FEWEST_ERRORS:
            return
        import torch

        head = Head(torch.as_tensor(self.coef_), torch.as_tensor(self.intercept_))
        choice = choose(Evidence(None, held_out, head, True, fold, seed), (RESPONSE, _SHRUNK))
        losses = [choice.stated, choice.recalibrated, choice.chosen]
        self.gain_ = judge(losses, held_out.error, cluster, resamples=self.resamples, seed=seed).beyond
        if self.gain_.low > 0:
            self._learnt, self.chosen_ = choice.learnt, choice.key
            self._confidence = confidence_scores.Calibrated(choice.learnt.score, choice.slope, choice.intercept)
        else:
            self._confidence = confidence_scores.Calibrated(
                self._learnt.score, *platt.platt(self._learnt(held_out), ~held_out.error)
            )


MOST = 2**31
"""Bytes that sparse features may take once they are dense."""


def _dense(x: Any) -> Array:
    """Features (n, d) as a plain array."""
    if not issparse(x):
        return x
    if x.shape[0] * x.shape[1] * 8 > MOST:
        raise ValueError(
            f"X is sparse, {x.shape[0]} by {x.shape[1]}, which is too large as the dense array that is needed here. Reduce it "
            "first, for example with sklearn.decomposition.TruncatedSVD(300)."
        )
    return x.toarray()


def confidence_score(estimator: Any, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
    """A scorer for scikit-learn (``scoring=trueup.confidence_score``): how well the confidence tells right predictions.

    The score is the negative Brier loss, -mean((confidence - right)^2), weighted by `sample_weight` (n,). It lies between -1 and 0.
    Higher is better. `estimator` is a fitted `ConfidenceClassifier`, or a pipeline that ends in one.
    """
    steps = isinstance(estimator, Pipeline)
    last: Any = estimator[-1] if steps else estimator
    if not hasattr(last, "confidence"):
        raise ValueError(
            f"confidence_score rates a trueup.ConfidenceClassifier, alone or at the end of a pipeline, and {type(last).__name__} "
            "has no confidence. Give one, or another scorer."
        )
    x: Any = estimator[:-1].transform(X) if steps and len(estimator) > 1 else X
    is_right = last.predict(x) == np.asarray(y)
    weight: Any = sample_weight
    return -float(np.average(np.square(last.confidence(x) - is_right), weights=weight))
