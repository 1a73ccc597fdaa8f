"""The equations of AdUE (arXiv 2505.15443 v1), ALIEN (its v2), ours, and the baselines. Tensors and arrays in and out.

The first half is differentiable (torch), with any leading dimensions, so that a whole grid of heads is one tensor. The scores that
it teaches are in `measure.confidence_scores`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, logit
from torch import Tensor
from torch.nn import functional as F

from trueup.measure.confidence_scores import probabilities

Array = NDArray[np.float64]

# ---------------------------------------------------------------------------------------------------- differentiable


def softmax(z: Tensor) -> Tensor:
    """(..., C) -> (..., C) softmax over the last axis, by way of the one before it: torch takes 20 times as long along a short last
    axis, and a grid's logits have their examples last in memory."""
    return torch.softmax(z[None].mT, dim=-2).mT[0]


def log_softmax(z: Tensor) -> Tensor:
    """(..., C) -> (..., C), as `softmax`."""
    return torch.log_softmax(z[None].mT, dim=-2).mT[0]


def smooth_max(p: Tensor, lam: float = 100.0) -> Tensor:
    """(..., C) -> (...): (1/lam) log sum_i exp(lam p_i), a smooth upper bound of max_i p_i (AdUE v1). Unit of p."""
    x = lam * p
    # exp(-80) adds nothing to 1, and exp is slow where its result is hardly a number.
    return torch.maximum(x, x.detach().amax(dim=-1, keepdim=True) - 80).logsumexp(dim=-1) / lam


def adue_uncertainty(z: Tensor, *, rescaled: bool) -> Tensor:
    """(..., C) logits -> (...) uncertainty, higher is less sure: U = 1 - SmoothMax(softmax(z)) (AdUE v1).

    U never exceeds 1 - 1/C, so BCE cannot fit an error when C is small; `rescaled` divides by 1 - 1/C (the authors did
    so later; our correction 1).
    """
    u = 1.0 - smooth_max(softmax(z))
    return u / (1.0 - 1.0 / z.shape[-1]) if rescaled else u


def response_uncertainty(z: Tensor) -> Tensor:
    """(..., C) logits -> (...): U_SR = 1 - max_c p_c, what AdUE v1 pulls its head's U towards."""
    return 1.0 - softmax(z).amax(dim=-1)


def entropy_uncertainty(z: Tensor) -> Tensor:
    """(..., C) logits -> (...) normalised entropy -(1/log C) sum_c p_c log p_c in [0, 1] (ALIEN, v2)."""
    logp = log_softmax(z)
    return -(logp.exp() * logp).sum(dim=-1) / math.log(z.shape[-1])


def adue_logs(z: Tensor, *, rescaled: bool, lam: float = 100.0) -> tuple[Tensor, Tensor]:
    """log U and log(1 - U) of `adue_uncertainty`, each (...), exact where U itself rounds to 0.

    With m the largest logit: U = (1 - p_m) - (1/lam) log(1 + sum_{i != m} exp(lam (p_i - p_m))), where 1 - p_m is taken from the
    other logits. U is above 0 up to margins of about lam; from there on log U is held at what 1 - p_m gives, less 14.
    """
    scale = 1.0 - 1.0 / z.shape[-1] if rescaled else 1.0
    rest = _log_rest(z)
    p = softmax(z)
    top = z.max(dim=-1, keepdim=True).indices  # argmax takes ten times as long
    # The largest's own term is the 1 of log(1 + ...), so it is taken out here.
    more = _others(lam * (p - p.gather(-1, top)), top)
    excess = F.softplus(more) / lam
    log_u = rest + torch.log1p(-(excess / rest.exp().clamp(min=1e-37)).clamp(max=1 - 1e-6)) - math.log(scale)
    # 1 - U of the rescaled is (SmoothMax - 1/C) / (1 - 1/C), which is at least log C / lam / (1 - 1/C).
    sure = smooth_max(p, lam) - (1.0 / z.shape[-1] if rescaled else 0.0)
    return log_u, torch.log(sure / scale).clamp(max=0.0)


def entropy_logs(z: Tensor) -> tuple[Tensor, Tensor]:
    """log U and log(1 - U) of `entropy_uncertainty`, each (...), exact where U rounds to 0.

    log H = logsumexp_i (log p_i + log(-log p_i)), with -log p_m of the largest taken from the other logits; and
    1 - U = sum_i (x_i log x_i - x_i + 1) / (C log C) at x_i = C p_i, whose terms are not negative. log(1 - U) has no bound at the
    uniform distribution (with two classes: a tie of the logits): 1 - U is held above 1e-12, as torch's own cross-entropy does.
    """
    c = z.shape[-1]
    logp = log_softmax(z)
    top = z.max(dim=-1, keepdim=True).indices  # argmax takes ten times as long
    # -log p_m = log(1 + (1 - p_m) / p_m).
    own = F.softplus(_log_rest(z, odds=True))[..., None]
    surprise = logp.neg().scatter(-1, top, own)
    log_h = (logp + surprise.clamp(min=1e-37).log()).logsumexp(dim=-1)
    d = torch.expm1(logp + math.log(c))
    apart = ((1 + d) * (logp + math.log(c)) - d).sum(dim=-1) / (c * math.log(c))
    return log_h - math.log(math.log(c)), apart.clamp(min=1e-12).log()


def _log_rest(z: Tensor, *, odds: bool = False) -> Tensor:
    """(..., C) -> (...) log(1 - p_m) of the largest p_m, or the log of its odds (1 - p_m) / p_m, from the other logits."""
    top, at = z.max(dim=-1, keepdim=True)
    others = _others(z, at) - top[..., 0]
    return others if odds else others - F.softplus(others)


def _others(z: Tensor, at: Tensor) -> Tensor:
    """(..., C) -> (...) logsumexp of all but the entry `at` (..., 1)."""
    if z.shape[-1] == 2:  # of one number it is that number, and exp is slow at -inf
        return z.gather(-1, 1 - at)[..., 0]
    return z.scatter(-1, at, -math.inf).logsumexp(dim=-1)


class Slopes(NamedTuple):
    """Of two classes, at margins z_1 - z_0 of any shape: U, and the derivatives by the margin of U, log U and log(1 - U)."""

    value: Tensor
    of_value: Tensor
    of_log: Tensor
    of_log_sure: Tensor


def _two(margin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """|margin|, and the probabilities of the class that loses and of the one that wins."""
    s = margin.abs()
    t = torch.exp(-s.clamp(max=60))  # exp is slow where its result is hardly a number
    return s, t / (1 + t), 1 / (1 + t)


def adue_slopes(margin: Tensor, *, rescaled: bool, lam: float = 100.0) -> Slopes:
    """`adue_logs` of two classes: with q the lesser probability U is q - (1/lam) log(1 + exp(lam (2q - 1))), or twice that."""
    s, q, p = _two(margin)
    near = torch.exp(lam * (q - p).clamp(min=-80 / lam))
    excess = torch.log(1 + near) / lam  # next to q its rounding is nothing, and log1p takes ten times as long
    bend = (1 - near) / (1 + near) * margin.sign()
    scale = 0.5 if rescaled else 1.0
    of_value = -q * p * bend / scale
    sure = ((torch.tanh(s / 2) / 2 if rescaled else p) + excess) / scale
    return Slopes((q - excess) / scale, of_value, -p * bend / (1 - excess / q), -of_value / sure)


def entropy_slopes(margin: Tensor) -> Slopes:
    """`entropy_logs` of two classes: H = log(1 + exp(-s)) + q s at |margin| s, whose derivative is -s q p.

    log 2 - H = s tanh(s / 2) / 2 - log cosh(s / 2), of terms that are small where it is.
    """
    s, q, p = _two(margin)
    rest, tau = torch.log1p(torch.exp(-s.clamp(max=60))), torch.tanh(s / 2)
    value, of_value = (rest + q * s) / LOG_2, -margin * q * p / LOG_2
    cosh = torch.where(s < 1, -torch.log1p(-tau.square()) / 2, s / 2 + rest - LOG_2)
    sure = (s * tau / 2 - cosh) / LOG_2
    of_log_sure = torch.where(sure >= 1e-12, -of_value / sure, 0.0)
    return Slopes(value, of_value, -margin * p / (s + rest / q), of_log_sure)


LOG_2 = math.log(2)


@dataclass(frozen=True)
class Uncertainty:
    """A differentiable U of logits: `value` is (..., C) -> (...), `logs` gives log U and log(1 - U), `slopes` is of two classes."""

    value: Callable[[Tensor], Tensor]
    logs: Callable[[Tensor], tuple[Tensor, Tensor]]
    slopes: Callable[[Tensor], Slopes]


def _adue(rescaled: bool) -> Uncertainty:
    return Uncertainty(
        partial(adue_uncertainty, rescaled=rescaled),
        partial(adue_logs, rescaled=rescaled),
        partial(adue_slopes, rescaled=rescaled),
    )


ADUE_U, RESCALED_U = _adue(rescaled=False), _adue(rescaled=True)
ENTROPY_U = Uncertainty(entropy_uncertainty, entropy_logs, entropy_slopes)


def clamped(u: Uncertainty, least: float = 1e-7) -> Uncertainty:
    """`u` with its logs taken of U held between `least` and 1 - `least`, as AdUE v1 does (1e-7).

    Beyond a margin of about log(1 / `least`), 16, an error has no gradient: the most overconfident errors teach nothing.
    """

    def logs(z: Tensor) -> tuple[Tensor, Tensor]:
        held = u.value(z).clamp(least, 1 - least)
        return held.log(), (1 - held).log()

    def slopes(margin: Tensor) -> Slopes:
        value, of_value, *_ = u.slopes(margin)
        taught = torch.where((value >= least) & (value <= 1 - least), of_value, 0.0)
        return Slopes(value, of_value, taught / value.clamp(min=least), -taught / (1 - value).clamp(min=least))

    return Uncertainty(u.value, logs, slopes)


@dataclass(frozen=True)
class Objective:
    """What a head is trained for: BCE(U, e) + alpha mean((U - U_0)^2); the L2-SP term is the trainer's.

    Attributes:
        uncertainty: U of (..., C) logits. error: (n,) 0/1. anchor: (n,) the original model's own uncertainty.
    """

    uncertainty: Uncertainty
    error: Tensor
    anchor: Tensor

    def __call__(self, z: Tensor, rows: Tensor, alpha: Tensor) -> Tensor:
        """(runs, b, C) logits of the examples `rows` (b,), alpha (runs,) -> the runs' losses (runs,)."""
        log_u, log_sure = self.uncertainty.logs(z)
        e = self.error[rows]
        bce = -(e * log_u + (1 - e) * log_sure).mean(dim=-1)
        return bce + alpha * (self.uncertainty.value(z) - self.anchor[rows]).square().mean(dim=-1)

    def slope(self, margin: Tensor, rows: Tensor, alpha: Tensor) -> Tensor:
        """The derivatives of the losses by the margins z_1 - z_0 (runs, b) of two classes: the same, at a fraction of its cost."""
        value, of_value, of_log, of_log_sure = self.uncertainty.slopes(margin)
        bce = -torch.where(self.error[rows] > 0, of_log, of_log_sure)
        return (bce + 2 * alpha[:, None] * (value - self.anchor[rows]) * of_value) / len(rows)


# ------------------------------------------------------------------------------------------------------ calibration


FLATTEST, STEEPEST = math.exp(-6), math.exp(6)
"""Slopes between which `platts` looks, of scores in standard deviations."""
ROUNDS = 60

TO_THE_END = {"maxiter": 1000, "maxcor": 50, "ftol": 1e-16, "gtol": 1e-9}
"""Of L-BFGS. Stopped as early as it does by default, a fit depends on the order of the classes and on a constant on all logits: by
.001 of a probability. With a long memory the end costs no more time."""


def platt(score: Array, right: NDArray[np.bool_]) -> tuple[float, float]:
    """`platts` of one column of scores (n,)."""
    slope, intercept = platts(score[:, None], right)
    return float(slope[0]), float(intercept[0])


def platts(scores: Array, right: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Slopes and intercepts (V,) of P(right) = sigmoid(slope * score + intercept), for each column of scores (n, V) by maximum
    likelihood with Platt's targets.

    The slopes are kept positive: calibration must not turn a ranking round. Newton's method, each step halved until the loss
    falls: it is convex, and targets inside 0 to 1 give it a minimum.
    """
    n1, n0 = int(right.sum()), int((~right).sum())
    target = np.where(right, (n1 + 1) / (n1 + 2), 1 / (n0 + 2))[:, None]
    mean, scale = scores.mean(axis=0), scores.std(axis=0)
    flat = scale <= 1e-14 * np.abs(mean)  # but for rounding
    scale = np.where(flat, 1.0, scale)
    s = np.where(flat, 0.0, (scores - mean) / scale)
    a, b = np.ones(s.shape[1]), np.full(s.shape[1], float(logit(target.mean())))

    def loss(a: Array, b: Array) -> Array:
        v = a * s + b
        return np.mean(np.logaddexp(0, v) - target * v, axis=0)

    value = loss(a, b)
    for _ in range(ROUNDS):
        p = expit(a * s + b)
        off, q = p - target, p * (1 - p)
        ga, gb = np.mean(off * s, axis=0), np.mean(off, axis=0)
        haa, hab, hbb = np.mean(q * s * s, axis=0), np.mean(q * s, axis=0), np.mean(q, axis=0)
        det = haa * hbb - hab**2
        held = (det <= 0) | ((a <= FLATTEST) & (ga > 0)) | ((a >= STEEPEST) & (ga < 0))
        if max(np.abs(np.where(held, 0.0, ga)).max(), np.abs(gb).max()) < 1e-10:
            break
        det = np.where(held, 1.0, det)
        da = np.where(held, 0.0, (hab * gb - hbb * ga) / det)
        db = np.where(held, -gb / hbb, (hab * ga - haa * gb) / det)
        step = np.ones(s.shape[1])
        for _ in range(ROUNDS):
            there = np.clip(a + step * da, FLATTEST, STEEPEST), b + step * db
            found = loss(*there)
            worse = ~(found <= value + 1e-14 * np.abs(value))
            if not worse.any():
                break
            step[worse] /= 2
        (a, b), value = there, found
    return a / scale, b - a / scale * mean


# -------------------------------------------------------------------------------------- baselines on the features


def mahalanobis(train: Array, label: NDArray[np.int64], x: Array) -> Array:
    """Confidence -min_c (x - mu_c)' S^-1 (x - mu_c), shared covariance with a trace ridge (Lee et al., arXiv 1807.03888)."""
    means, precision = _gaussians(train, label)
    d = np.stack([_squared(x - m, precision) for m in means], axis=1)
    return -d.min(axis=1)


def relative_mahalanobis(train: Array, label: NDArray[np.int64], x: Array) -> Array:
    """Mahalanobis less the distance to one Gaussian of all classes (Ren et al., arXiv 2106.09022). Higher is surer."""
    _, whole = _gaussians(train, np.zeros(len(train), dtype=np.int64))
    return mahalanobis(train, label, x) + _squared(x - train.mean(axis=0), whole)


def robust_density(
    train: Array, label: NDArray[np.int64], x: Array, predicted: NDArray[np.int64], *, seed: int, most: int = 600
) -> Array:
    """(n, 2) RDE (Yoo et al., arXiv 2203.01677): kernel PCA, then a robust (MCD) Gaussian for each class.

    The first column is the paper's log density of the predicted class, -(d + log det S) / 2 with d the squared Mahalanobis
    distance; the second is -d alone, as the code of HUQ's authors has it. Higher is surer.
    Departures: at most `most` training examples enter the kernel, and as many dimensions are kept as a class can bear.
    """
    import warnings

    from sklearn.covariance import MinCovDet
    from sklearn.decomposition import KernelPCA

    rng = np.random.default_rng(seed)
    _vary(train, float(train.var(axis=0).sum()))
    keep = rng.permutation(len(train))[:most]
    smallest = min(int((label[keep] == c).sum()) for c in np.unique(label))
    k = min(max(smallest // 4, 2), 32)
    pca = KernelPCA(n_components=k, kernel="rbf", gamma=1.0 / train.shape[1] / float(train.var()), random_state=seed)
    low = pca.fit_transform(train[keep])
    out, score = pca.transform(x), np.full((len(x), 2), -np.inf)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for c in np.unique(label):
            mine, own = predicted == c, low[label[keep] == c]
            # A class too rare for a covariance leaves its predictions at the lowest score.
            if mine.any() and len(own) > low.shape[1]:
                fit = MinCovDet(random_state=seed).fit(own)
                distance = fit.mahalanobis(out[mine])
                score[mine] = np.stack([-(distance + np.linalg.slogdet(fit.covariance_)[1]) / 2, -distance], axis=1)
    known = np.isfinite(score[:, 0])
    return np.where(known[:, None], score, score[known].min(axis=0, initial=0.0))


def hybrid(
    response: Array, density: Array, reference_response: Array, reference_density: Array, weight: float = 0.5,
    inside: float = 0.0, ambiguous: float = 1.0,
) -> Array:  # fmt: skip
    """HUQ (Vazhentsev et al., ACL 2023): ranks of aleatoric (response) and epistemic (density) uncertainty, put together.

    With r_a and r_e the ranks, as shares of a reference set: (1 - weight) r_e + weight r_a; but where r_e is at most `inside`
    the rank by aleatoric uncertainty among those alone; and of these, where r_a is above `ambiguous`, r_a. Ranks are taken
    against a reference set, so that an example's score does not depend on its neighbours.

    Args:
        response, density: (n,) confidences, higher is surer; the reference's (m,).

    Returns: (n,) 1 less that rank: higher is surer.
    """

    def rank(confidence: Array, among: Array) -> Array:
        return (len(among) - np.searchsorted(np.sort(among), confidence)) / len(reference_response)

    a, e = rank(response, reference_response), rank(density, reference_density)
    near = rank(reference_density, reference_density) <= inside
    total = (1 - weight) * e + weight * a
    # A rank of 0 is surer than all of the reference, and inside nothing where nothing is inside.
    inner = (e <= inside) & near.any()
    total = np.where(inner, rank(response, reference_response[near]), total)
    return 1 - np.where(inner & (a > ambiguous), a, total)


def unit(x: Array) -> Array:
    """(n, d) rows at length 1, as HUQ's authors normalise features; a row of zeros stays."""
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1.0)


def laplace(x: Array, z: Array, at: Array, z_at: Array, prior: float) -> Array:
    """Last-layer Laplace with a Kronecker-factored GGN (Ritter et al. 2018; Daxberger et al., arXiv 2106.14806).

    Args: x (n, d) and z (n, C) of the training examples; at (m, d), z_at (m, C) to score; prior precision.
    Returns: (m,) the probit-averaged softmax response: softmax(z / sqrt(1 + pi/8 diag Var z)).
    The weight's posterior precision is A (x) B + prior I with A = X'X, B = mean_i(diag p_i - p_i p_i'), as in laplace-torch.
    """
    p = probabilities(z)
    b = np.einsum("nc,ce->ce", p, np.eye(z.shape[1])) / len(p) - p.T @ p / len(p)
    va, ea = np.linalg.eigh(x.T @ x)
    vb, eb = np.linalg.eigh(b)
    va, vb = np.clip(va, 0, None), np.clip(vb, 0, None)
    h = (at @ ea) ** 2
    variance = np.einsum("md,dk,ck->mc", h, 1.0 / (np.outer(va, vb) + prior), eb**2, optimize=True)
    return probabilities(z_at / np.sqrt(1 + np.pi / 8 * variance)).max(axis=1)


def _gaussians(x: Array, label: NDArray[np.int64]) -> tuple[list[Array], Array]:
    means = [x[label == c].mean(axis=0) for c in np.unique(label)]
    centred = np.concatenate([x[label == c] - m for c, m in zip(np.unique(label), means, strict=True)])
    s = centred.T @ centred / len(x)
    _vary(x, np.trace(s))
    return means, np.linalg.inv(s + 1e-3 * np.trace(s) / len(s) * np.eye(len(s)))


def _vary(x: Array, variance: float) -> None:
    """Refuses features (n, d) whose variance, summed over them, is rounding."""
    if variance <= 1e-24 * np.square(x).sum(axis=1).mean():
        raise ValueError("the features are the same for all training examples of a class")


def _squared(d: Array, precision: Array) -> Array:
    return np.einsum("nd,de,ne->n", d, precision, d, optimize=True)
