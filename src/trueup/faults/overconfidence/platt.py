"""Platt scaling: a score as a probability of being right."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

Array = NDArray[np.float64]

FLATTEST, STEEPEST = math.exp(-6), math.exp(6)
"""The range of slopes in which `platts` searches, for scores in units of their standard deviation."""
ROUNDS = 60

TO_THE_END = {"maxiter": 1000, "maxcor": 50, "ftol": 1e-16, "gtol": 1e-9}
"""Options of L-BFGS. With its default tolerances a fit depends on the order of the classes and on a constant added to all logits,
by .001 of a probability. With a long memory the full convergence takes no more time."""


def platt(score: Array, right: NDArray[np.bool_]) -> tuple[float, float]:
    """`platts` of one column of scores (n,)."""
    slope, intercept = platts(score[:, None], right)
    return float(slope[0]), float(intercept[0])


def platts(scores: Array, right: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Slopes and intercepts (V,) of P(right) = sigmoid(slope * score + intercept), for each column of scores (n, V) by maximum
    likelihood with Platt's targets.

    The slopes are kept positive, because calibration must not reverse a ranking. The method is Newton's, with each step halved
    until the loss falls. The loss is convex, and it has a minimum because the targets lie inside 0 to 1.
    """
    n1, n0 = int(right.sum()), int((~right).sum())
    target = np.where(right, (n1 + 1) / (n1 + 2), 1 / (n0 + 2))[:, None]
    mean, scale = scores.mean(axis=0), scores.std(axis=0)
    flat = scale <= 1e-14 * np.abs(mean)  # constant up to rounding
    scale = np.where(flat, 1.0, scale)
    s = np.where(flat, 0.0, (scores - mean) / scale)
    a, b = np.ones(s.shape[1]), np.full(s.shape[1], float(logit(target.mean())))

    def loss(a: Array, b: Array) -> Array:
        v = a * s + b
        return np.mean(np.logaddexp(0, v) - target * v, axis=0)

    value = loss(a, b)
    for _ in range(ROUNDS):
        p = expit(a * s + b)
        residual, q = p - target, p * (1 - p)
        ga, gb = np.mean(residual * s, axis=0), np.mean(residual, axis=0)
        haa, hab, hbb = np.mean(q * s * s, axis=0), np.mean(q * s, axis=0), np.mean(q, axis=0)
        det = haa * hbb - hab**2
        fixed = (det <= 0) | ((a <= FLATTEST) & (ga > 0)) | ((a >= STEEPEST) & (ga < 0))
        if max(np.abs(np.where(fixed, 0.0, ga)).max(), np.abs(gb).max()) < 1e-10:
            break
        det = np.where(fixed, 1.0, det)
        da = np.where(fixed, 0.0, (hab * gb - hbb * ga) / det)
        db = np.where(fixed, -gb / hbb, (hab * ga - haa * gb) / det)
        step = np.ones(s.shape[1])
        for _ in range(ROUNDS):
            candidate = np.clip(a + step * da, FLATTEST, STEEPEST), b + step * db
            candidate_loss = loss(*candidate)
            worse = ~(candidate_loss <= value + 1e-14 * np.abs(value))
            if not worse.any():
                break
            step[worse] /= 2
        (a, b), value = candidate, candidate_loss
    return a / scale, b - a / scale * mean
