"""The estimand: how much of the confidence's Brier loss a forecast that calibration examples can teach would avoid.

b0 = mean (confidence - right)^2 and b1 the same for the taught forecast of "right", both on examples that taught nothing;
severity = 1 - b1 / b0. It is at most 0 in expectation for a calibrated model that ignores nothing, however noisy the task. Arrays
in and out.

There is no fall-back to the confidence as it is: a forecast that is worse than that makes the severity negative, whereas a
fall-back makes an interval of no width at 0, which said *clear* of 29% of models with 10% to avoid (200 examples).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from trueup.faults.overconfidence.platt import platt
from trueup.measure.folds import folds
from trueup.run.heads import logistic

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


def probes(seen: Seen, right: NDArray[np.bool_], kept: NDArray[np.bool_]) -> list[list[Forecast]]:
    """The class-aware shrunk probe at each of `RIDGES`, learnt from each of F sets of rows, `kept` (F, n).

    Intercept and slope of the log-odds are free of ridge, so that a strong one leaves the confidence's own ranking.
    """
    paths = ridge_paths(seen.x, right, kept, seen.odds, np.eye(seen.classes)[seen.predicted])
    return [[Forecast(s, o, w, ridge) for ridge, (w, o, s) in zip(RIDGES, path, strict=True)] for path in paths]


def ridge_paths(
    x: Array, right: NDArray[np.bool_], kept: NDArray[np.bool_], odds: Array | None = None, chosen: Array | None = None
) -> list[list[tuple[Array, Array, float]]]:
    """Logistic regression of being right for each of `RIDGES`: weight (d,), offsets (C,) or (1,), slope of the log-odds; on each of
    F sets of rows, `kept` (F, n).

    On features (n, d), which share one scale, and if given on indicators of the predicted class (n, C), all under the ridge;
    and on an intercept and the log-odds (n,), which are not. The slope is at least 0.
    """
    (n, d), sets = x.shape, len(kept)
    chosen = np.empty((n, 0)) if chosen is None else chosen
    # Free of ridge, the log-odds are looked at in units of their own, in which they are no second intercept.
    middle, spread = (0.0, 1.0) if odds is None else (float(odds.mean()), float(odds.std()) or 1.0)
    c, unpenalised = chosen.shape[1], [] if odds is None else [(odds[:, None] - middle) / spread]
    origin, scale = x.mean(axis=0), np.sqrt(d)
    unit = (np.stack([x[k].std() for k in kept]) + 1e-12)[:, None] * scale
    a = np.concatenate([(x - origin) / scale, chosen, np.ones((n, 1)), *unpenalised], axis=1)
    scales, penalty, at = (np.ones((sets, a.shape[1])) for _ in range(3))
    # From a slope of 1, or from where the log-odds are spread by 1: Newton's method is lost where it begins at margins so far out,
    # as those of a confidence that rounds to 1 are, that wrong ones among them have no curvature.
    scales[:, :d], at[:, : d + c + 1], at[:, d + c + 1 :] = scale / unit, 0.0, min(spread, 1.0)
    weight = kept / kept.sum(axis=1, keepdims=True)
    paths: list[list[tuple[Array, Array, float]]] = [[] for _ in kept]
    for ridge in RIDGES:
        penalty[:, : d + c], penalty[:, d + c :] = ridge, 0.0
        at = logistic(a, right, weight, scales, penalty, at)
        if odds is not None and (turned := at[:, -1] < 0).any():
            # Convex: the best slope that is no less than 0 is then 0.
            flat = scales[turned].copy()
            flat[:, -1], at[turned, -1], penalty[:, -1] = 0.0, 0.0, 1.0
            at[turned] = logistic(a, right, weight[turned], flat, penalty[turned], at[turned])
            at[turned, -1] = 0.0  # it is there but for rounding
        for v, u, path in zip(at, unit, paths, strict=True):
            w = v[:d] / u
            offsets = v[d : d + c] if c else np.zeros(1)
            slope = float(v[-1]) / spread if unpenalised else 0.0
            path.append((w, offsets + v[d + c] - w @ origin - slope * middle, slope))
    return paths


def learn(seen: Seen, right: NDArray[np.bool_], cluster: NDArray, *, seed: int) -> Forecast:
    """The forecast that does best on clusters which did not teach it: recalibration alone, or the probe at one of `RIDGES`.

    Chosen by the mean Brier loss over `FOLDS` folds of clusters, and learnt again from all. With errors or right predictions
    in fewer than `FEWEST_ERRORS` clusters it is recalibration alone.
    """
    if min(len(np.unique(cluster[r])) for r in (right, ~right)) < FEWEST_ERRORS:
        return recalibrated(seen, right)

    fold = folds(right, FOLDS, seed=seed, cluster=cluster)
    in_training = np.concatenate([np.unique(fold)[:, None] != fold, np.ones((1, len(fold)), bool)])
    *crossed, whole = (
        [recalibrated(seen.take(k), right[k]), *ps]
        for k, ps in zip(in_training, probes(seen, right, in_training), strict=True)
    )
    loss = np.zeros(1 + len(RIDGES))
    for k, each in zip(in_training, crossed, strict=False):
        loss += [np.square(f(seen.take(~k)) - right[~k]).sum() for f in each]
    return whole[int(loss.argmin())]


def share(before: Any, after: Any, stated: Any) -> Any:
    """(before - after) / stated of mean losses: what is saved, as a share; 0 where nothing is lost."""
    some = np.asarray(stated) > 0
    return np.where(some, before - after, 0.0) / np.where(some, stated, 1.0)


def avoidable(confidence: Array, forecast: Array, right: NDArray[np.bool_]) -> float:
    """The severity, 1 - b1 / b0, b the mean of (probability - right)^2: above 0 where the forecast is better."""
    b0, b1 = (np.square(p - right).mean() for p in (confidence, forecast))
    return float(share(b0, b1, b0))
