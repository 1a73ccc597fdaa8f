"""The repair of overconfidence as a scikit-learn classifier on features, for pipelines and cross-validation.

```python
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from trueup.run.predict import predict

X = predict(subject, corpus).features      # or the last hidden layer of any model, (n, d)
trust = trueup.ConfidenceClassifier().fit(X, y)
sure = trust.confidence(X_new) >= 0.9
cross_val_score(make_pipeline(StandardScaler(), trueup.ConfidenceClassifier()), X, y)
```
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from trueup.faults.overconfidence import maths
from trueup.faults.overconfidence.audit import FEWEST, FEWEST_ERRORS
from trueup.faults.overconfidence.candidates import FAMILIES, RESPONSE, Evidence, Learnt, Part, cross_select
from trueup.measure import bootstrap
from trueup.measure.selective import error_auc
from trueup.run.heads import fit_head
from trueup.subject.subject import Head

Array = NDArray[np.float64]
_SHRUNK = next(f for f in FAMILIES if f.key == "shrunk")


class ConfidenceClassifier(ClassifierMixin, BaseEstimator):
    """A linear classifier on features that says how likely each of its predictions is to be right.

    `fit` learns a logistic head on all examples, and a confidence from what heads that had not seen an example said of it: the
    class-aware shrunk probe of `trueup.Overconfidence`, or the softmax response where the probe does not rank errors better by
    its whole paired interval. Either is Platt-scaled. The confidence never changes a prediction.

    Differs from `trueup.Overconfidence`, which repairs a classifier that is given and learns on examples held out for it: here
    the classifier is learnt as well, so every example is held out in turn (cross-fitting), and the only candidate is the one
    that does not start from the final head, which has seen all of them. Nothing is set aside to certify abstention.

    All of scikit-learn's estimator checks that apply are passed; none is expected to fail.

    Parameters:
        strength: inverse of the ridge of the logistic head, scikit-learn's C, on standardised features. Above 0.
        folds: of the cross-fitting, at least 2.
        resamples: of the paired bootstrap that chooses, at least 10.
        random_state: seed (int), a RandomState, or None: the folds and the bootstrap.

    Attributes:
        classes_: (C,) labels, sorted. n_features_in_: d. feature_names_in_: where X had names.
        coef_, intercept_: the head, (C, d) and (C,): one row per class, with two classes as well.
        chosen_: ``shrunk``, or ``response`` for the softmax response, which stays unscaled where there are fewer than 20
            examples, or fewer than 5 errors or 5 right predictions, to learn from.
        gain_: what the shrunk probe gains in error ROC-AUC over the softmax response, out of fold (a `PairedEstimate`); None
            where there were too few examples.
    """

    def __init__(
        self, strength: float = 1.0, folds: int = 5, resamples: int = 300, random_state: Any = 0
    ) -> None:  # fmt: skip
        self.strength = strength
        self.folds = folds
        self.resamples = resamples
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> ConfidenceClassifier:
        """Learn from features X (n, d) and labels y (n,).

        Raises:
            ValueError: fewer than two classes, a parameter out of its range, or as `sklearn.utils.validation.validate_data`.
        """
        if not self.strength > 0 or self.folds < 2 or self.resamples < 10:
            raise ValueError(
                f"strength={self.strength}, folds={self.folds} and resamples={self.resamples} cannot be used; give a strength "
                "above 0, at least 2 folds and at least 10 resamples."
            )
        x: Any
        targets: Any
        x, targets = validate_data(self, X, y, dtype=np.float64)  # pyright: ignore[reportArgumentType]
        check_classification_targets(targets)
        self.classes_, label = np.unique(targets, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"y has one class, {self.classes_[0]!r}, and a classifier needs at least two; give more data."
            )
        random = check_random_state(self.random_state)
        seed = int(random.randint(np.iinfo(np.int32).max))
        self.coef_, self.intercept_ = self._head(x, label)
        self._learn(x, label.astype(np.int64), seed)
        return self

    def decision_function(self, X: ArrayLike) -> Array:
        """(n, C) logits; with two classes (n,), the second's less the first's."""
        z = self._part(X).z
        return z[:, 1] - z[:, 0] if len(self.classes_) == 2 else z

    def predict_proba(self, X: ArrayLike) -> Array:
        """(n, C) probabilities of the classes: the softmax of the logits."""
        return maths.probabilities(self._part(X).z)

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """(n,) the class of the largest logit."""
        predicted = self._part(X).predicted
        return self.classes_[predicted]

    def confidence(self, X: ArrayLike) -> Array:
        """(n,) probability that the predicted class is right, higher is surer."""
        part = self._part(X)
        return self._confidence(self._learnt.logits(part))

    def _head(self, x: Array, label: NDArray[np.int64]) -> tuple[Array, Array]:
        weight, bias, _ = fit_head(x, label, len(self.classes_), strength=self.strength)
        return weight, bias

    def _part(self, X: ArrayLike) -> Part:
        check_is_fitted(self)
        x: Any = validate_data(self, X, dtype=np.float64, reset=False)  # pyright: ignore[reportArgumentType]
        z = x @ self.coef_.T + self.intercept_
        return Part(x, z, z.argmax(axis=1))

    def _learn(self, x: Array, label: NDArray[np.int64], seed: int) -> None:
        """Choose the confidence, and learn it from all examples."""
        c = len(self.classes_)
        self._learnt, self.chosen_, self.gain_ = Learnt(None, maths.ResponseLogOdds(c)), RESPONSE.key, None
        # The log-odds through a sigmoid are the softmax response itself.
        self._confidence = maths.Calibrated(self._learnt.score, 1.0, 0.0)
        fold = _folds(label, self.folds, seed)
        if len(x) < FEWEST or any(len(np.unique(label[fold != f])) < 2 for f in np.unique(fold)):
            return
        z = np.empty((len(x), c))
        for f in np.unique(fold):
            weight, bias = self._head(x[fold != f], label[fold != f])
            z[fold == f] = x[fold == f] @ weight.T + bias
        held = Part(x, z, label)
        if min(held.error.sum(), (~held.error).sum()) < FEWEST_ERRORS:
            return
        import torch

        head = Head(torch.as_tensor(self.coef_), torch.as_tensor(self.intercept_))
        evidence = Evidence(None, held, head, True, fold, seed)
        response, crossed = RESPONSE.crossed(evidence)[:, 0], _SHRUNK.crossed(evidence)
        honest, best = cross_select(crossed, held.error, fold)
        self.gain_ = bootstrap.paired(
            error_auc, (response, held.error), (honest, held.error), seed=seed, resamples=self.resamples
        )  # fmt: skip
        scores = self._learnt(held)
        # A nan (too few resamples held an error) is no gain.
        if not math.isnan(self.gain_.low) and self.gain_.low > 0:
            assert _SHRUNK.learn is not None
            self._learnt, self.chosen_ = _SHRUNK.learn(evidence, np.arange(len(x)))[best], _SHRUNK.key
            scores = crossed[:, best]
        self._confidence = maths.Calibrated(self._learnt.score, *maths.platt(scores, ~held.error))


def _folds(label: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """(n,) fold of each example: shuffled, each class spread evenly, however rare it is."""
    order = np.random.default_rng(seed).permutation(len(label))
    order = order[np.argsort(label[order], kind="stable")]
    fold = np.empty(len(label), dtype=np.int64)
    fold[order] = np.arange(len(label)) % folds
    return fold
