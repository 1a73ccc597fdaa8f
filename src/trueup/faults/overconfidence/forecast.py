"""The estimand: how much of the confidence's Brier loss a forecast that calibration examples can teach would avoid.

b0 = mean (confidence - right)^2 and b1 the same for the taught forecast of "right", both on examples that taught nothing;
severity = 1 - b1 / b0. It is at most 0 in expectation for a calibrated model that ignores nothing, however noisy the task. Arrays
in and out.

There is no fall-back to the confidence as it is: a forecast that is worse than that makes the severity negative, whereas a
fall-back makes an interval of no width at 0, which said *clear* of 29% of models with 10% to avoid (200 examples).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from trueup.faults.overconfidence.maths import TO_THE_END, platt
from trueup.measure.folds import folds

Array = NDArray[np.float64]

RIDGES = tuple(float(r) for r in np.logspace(1, -4, 11))
"""Strengths of the probe's ridge, strongest first."""
FOLDS = 5
FEWEST_ERRORS = 5
"""Clusters with an error, and with a right prediction, below which nothing but recalibration is taught."""


@dataclass(frozen=True, eq=False)
class Seen:
    """n predictions as a forecaster sees them: features (n, d), log-odds of the confidence (n,), predicted class (n,) of C."""

    x: Array
    odds: Array
    predicted: NDArray[np.int64]
    classes: int

    def take(self, rows: NDArray) -> Seen:
        return Seen(self.x[rows], self.odds[rows], self.predicted[rows], self.classes)


@dataclass(frozen=True, eq=False)
class Forecast:
    """P(right) = sigmoid(slope * log-odds + offset of the predicted class + weight . features).

    Attributes:
        slope, offsets (C,), weight (d,): recalibration alone has equal offsets and a weight of 0.
        ridge: that of the probe; None for recalibration alone.
    """

    slope: float
    offsets: Array
    weight: Array
    ridge: float | None = None

    def __call__(self, seen: Seen) -> Array:
        return expit(self.slope * seen.odds + self.offsets[seen.predicted] + seen.x @ self.weight)


def recalibrated(seen: Seen, right: NDArray[np.bool_]) -> Forecast:
    """Platt scaling of the confidence's log-odds."""
    slope, intercept = platt(seen.odds, right)
    return Forecast(slope, np.full(seen.classes, intercept), np.zeros(seen.x.shape[1]))


def probes(seen: Seen, right: NDArray[np.bool_]) -> Iterator[Forecast]:
    """The class-aware shrunk probe at each of `RIDGES`.

    Intercept and slope of the log-odds are free of ridge, so that a strong one leaves the confidence's own ranking.
    """
    c = seen.classes
    for ridge, (weight, offsets, slope) in zip(
        RIDGES, ridge_path(seen.x, right, seen.odds, np.eye(c)[seen.predicted]), strict=True
    ):
        yield Forecast(slope, offsets, weight, ridge)


def ridge_path(
    x: Array, right: NDArray[np.bool_], odds: Array | None = None, chosen: Array | None = None
) -> Iterator[tuple[Array, Array, float]]:
    """Logistic regression of being right for each of `RIDGES`: weight (d,), offsets (C,) or (1,), slope of the log-odds.

    On features (n, d), which share one scale, and if given on indicators of the predicted class (n, C), all under the ridge;
    and on an intercept and the log-odds (n,), which are not. The slope is at least 0.
    """
    n, d = x.shape
    chosen = np.empty((n, 0)) if chosen is None else chosen
    c, o, y = chosen.shape[1], np.zeros(n) if odds is None else odds, right.astype(np.float64)
    mean, unit = x.mean(axis=0), (x.std() + 1e-12) * np.sqrt(d)
    s = np.concatenate([(x - mean) / unit, chosen], axis=1)
    at = np.zeros(d + c + 2)
    at[-1] = float(odds is not None)
    bounds = [(None, None)] * (d + c + 1) + [(0.0, None)]
    for ridge in RIDGES:

        def loss(v: Array, ridge: float = ridge) -> tuple[float, Array]:
            w, b, a = v[:-2], v[-2], v[-1]
            t = s @ w + b + a * o
            r = (expit(t) - y) / n
            value = np.mean(np.logaddexp(0, t) - y * t) + ridge * (w @ w) / 2
            return float(value), np.concatenate([s.T @ r + ridge * w, [r.sum(), r @ o]])

        at = minimize(loss, at, jac=True, method="L-BFGS-B", bounds=bounds, options=TO_THE_END).x
        weight = at[:d] / unit
        offsets = at[d : d + c] if c else np.zeros(1)
        yield weight, offsets + at[-2] - weight @ mean, float(at[-1])


def learn(seen: Seen, right: NDArray[np.bool_], cluster: NDArray, *, seed: int) -> Forecast:
    """The forecast that does best on clusters which did not teach it: recalibration alone, or the probe at one of `RIDGES`.

    Chosen by the mean Brier loss over `FOLDS` folds of clusters, and learnt again from all. With errors or right predictions
    in fewer than `FEWEST_ERRORS` clusters it is recalibration alone.
    """
    if min(len(np.unique(cluster[r])) for r in (right, ~right)) < FEWEST_ERRORS:
        return recalibrated(seen, right)

    def taught(rows: NDArray) -> Callable[[Seen], Array]:
        each = [recalibrated(seen.take(rows), right[rows]), *probes(seen.take(rows), right[rows])]
        return lambda part: np.stack([f(part) for f in each], axis=1)

    fold = folds(right, FOLDS, seed=seed, cluster=cluster)
    loss = np.zeros(1 + len(RIDGES))
    for f in np.unique(fold):
        out = fold == f
        loss += np.square(taught(~out)(seen.take(out)) - right[out, None]).sum(axis=0)
    best = int(loss.argmin())
    return recalibrated(seen, right) if best == 0 else list(probes(seen, right))[best - 1]


def share(before: Any, after: Any, stated: Any) -> Any:
    """(before - after) / stated of mean losses: what is saved, as a share; 0 where nothing is lost."""
    some = np.asarray(stated) > 0
    return np.where(some, before - after, 0.0) / np.where(some, stated, 1.0)


def avoidable(confidence: Array, forecast: Array, right: NDArray[np.bool_]) -> float:
    """The severity, 1 - b1 / b0, b the mean of (probability - right)^2: above 0 where the forecast is better."""
    b0, b1 = (np.square(p - right).mean() for p in (confidence, forecast))
    return float(share(b0, b1, b0))
