"""Training objectives of confidence heads: AdUE (arXiv 2505.15443 v1), ALIEN (its v2), and ours. All are differentiable and take
any leading dimensions, so that a whole grid of heads is one tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


def softmax(z: Tensor) -> Tensor:
    """(..., C) -> (..., C) softmax over the last axis. It is computed along the axis before it, since torch takes 20 times as long
    along a short last axis, and the logits of a grid have their examples last in memory."""
    return torch.softmax(z[None].mT, dim=-2).mT[0]


def log_softmax(z: Tensor) -> Tensor:
    """(..., C) -> (..., C), as `softmax`."""
    return torch.log_softmax(z[None].mT, dim=-2).mT[0]


def smooth_max(p: Tensor, lam: float = 100.0) -> Tensor:
    """(..., C) -> (...): (1/lam) log sum_i exp(lam p_i), a smooth upper bound of max_i p_i (AdUE v1). Unit of p."""
    x = lam * p
    # exp(-80) adds nothing to 1, and exp is slow where its result is denormal.
    return torch.maximum(x, x.detach().amax(dim=-1, keepdim=True) - 80).logsumexp(dim=-1) / lam


def adue_uncertainty(z: Tensor, *, rescaled: bool) -> Tensor:
    """(..., C) logits -> (...) uncertainty, higher is less sure: U = 1 - SmoothMax(softmax(z)) (AdUE v1).

    U never exceeds 1 - 1/C, so BCE cannot fit an error when C is small. `rescaled` divides by 1 - 1/C (our correction 1, which
    the authors made later too).
    """
    u = 1.0 - smooth_max(softmax(z))
    return u / (1.0 - 1.0 / z.shape[-1]) if rescaled else u


def response_uncertainty(z: Tensor) -> Tensor:
    """(..., C) logits -> (...): U_SR = 1 - max_c p_c, towards which AdUE v1 regularises the U of its head."""
    return 1.0 - softmax(z).amax(dim=-1)


def entropy_uncertainty(z: Tensor) -> Tensor:
    """(..., C) logits -> (...) normalised entropy -(1/log C) sum_c p_c log p_c in [0, 1], higher is less sure (ALIEN, v2)."""
    logp = log_softmax(z)
    return -(logp.exp() * logp).sum(dim=-1) / math.log(z.shape[-1])


def adue_logs(z: Tensor, *, rescaled: bool, lam: float = 100.0) -> tuple[Tensor, Tensor]:
    """log U and log(1 - U) of `adue_uncertainty`, each (...), exact where U itself rounds to 0.

    With m the largest logit: U = (1 - p_m) - (1/lam) log(1 + sum_{i != m} exp(lam (p_i - p_m))), where 1 - p_m is computed from
    the other logits. Numerically U is above 0 up to margins of about lam. Beyond, log U is at least log(1 - p_m) - 14.
    """
    scale = 1.0 - 1.0 / z.shape[-1] if rescaled else 1.0
    log_rest = _log_rest(z)
    p = softmax(z)
    top = z.max(dim=-1, keepdim=True).indices  # argmax takes ten times as long
    # The term of the largest logit is the 1 in log(1 + ...), so it is left out of the sum.
    log_sum_others = _others(lam * (p - p.gather(-1, top)), top)
    excess = F.softplus(log_sum_others) / lam
    log_u = log_rest + torch.log1p(-(excess / log_rest.exp().clamp(min=1e-37)).clamp(max=1 - 1e-6)) - math.log(scale)
    # The rescaled 1 - U is (SmoothMax - 1/C) / (1 - 1/C), which is at least log C / lam / (1 - 1/C).
    sure = smooth_max(p, lam) - (1.0 / z.shape[-1] if rescaled else 0.0)
    return log_u, torch.log(sure / scale).clamp(max=0.0)


def entropy_logs(z: Tensor) -> tuple[Tensor, Tensor]:
    """log U and log(1 - U) of `entropy_uncertainty`, each (...), exact where U rounds to 0.

    log H = logsumexp_i (log p_i + log(-log p_i)), where -log p_m of the largest is computed from the other logits. And
    1 - U = sum_i (x_i log x_i - x_i + 1) / (C log C) with x_i = C p_i, whose terms are not negative. At the uniform distribution
    (with two classes: a tie of the logits) log(1 - U) is unbounded, so 1 - U is kept above 1e-12, as in torch's cross-entropy.
    """
    c = z.shape[-1]
    logp = log_softmax(z)
    top = z.max(dim=-1, keepdim=True).indices  # argmax takes ten times as long
    # -log p_m = log(1 + (1 - p_m) / p_m).
    surprise_of_top = F.softplus(_log_rest(z, odds=True))[..., None]
    surprise = logp.neg().scatter(-1, top, surprise_of_top)
    log_h = (logp + surprise.clamp(min=1e-37).log()).logsumexp(dim=-1)
    d = torch.expm1(logp + math.log(c))
    certainty = ((1 + d) * (logp + math.log(c)) - d).sum(dim=-1) / (c * math.log(c))
    return log_h - math.log(math.log(c)), certainty.clamp(min=1e-12).log()


def _log_rest(z: Tensor, *, odds: bool = False) -> Tensor:
    """(..., C) -> (...) log(1 - p_m) for the largest p_m, or with `odds` log((1 - p_m) / p_m), computed from the other logits."""
    top, top_index = z.max(dim=-1, keepdim=True)
    log_odds_rest = _others(z, top_index) - top[..., 0]
    return log_odds_rest if odds else log_odds_rest - F.softplus(log_odds_rest)


def _others(z: Tensor, at: Tensor) -> Tensor:
    """(..., C) -> (...) logsumexp of all but the entry `at` (..., 1)."""
    if z.shape[-1] == 2:  # the logsumexp of one number is that number, and exp is slow at -inf
        return z.gather(-1, 1 - at)[..., 0]
    return z.scatter(-1, at, -math.inf).logsumexp(dim=-1)


class Slopes(NamedTuple):
    """For two classes, at margins z_1 - z_0 of any shape: U, and the derivatives of U, log U and log(1 - U) by the margin."""

    value: Tensor
    of_value: Tensor
    of_log: Tensor
    of_log_sure: Tensor


def _two(margin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """|margin|, the probability of the less likely class, and that of the likelier class."""
    s = margin.abs()
    t = torch.exp(-s.clamp(max=60))  # exp is slow where its result is denormal
    return s, t / (1 + t), 1 / (1 + t)


def adue_slopes(margin: Tensor, *, rescaled: bool, lam: float = 100.0) -> Slopes:
    """`Slopes` of `adue_logs` for two classes. With q the lesser probability, U = q - (1/lam) log(1 + exp(lam (2q - 1))), or twice
    that if `rescaled`."""
    s, q, p = _two(margin)
    near = torch.exp(lam * (q - p).clamp(min=-80 / lam))
    excess = torch.log(1 + near) / lam  # its rounding is negligible against q, and log1p takes ten times as long
    bend = (1 - near) / (1 + near) * margin.sign()
    scale = 0.5 if rescaled else 1.0
    of_value = -q * p * bend / scale
    sure = ((torch.tanh(s / 2) / 2 if rescaled else p) + excess) / scale
    return Slopes((q - excess) / scale, of_value, -p * bend / (1 - excess / q), -of_value / sure)


def entropy_slopes(margin: Tensor) -> Slopes:
    """`Slopes` of `entropy_logs` for two classes: H = log(1 + exp(-s)) + q s with s = |margin|, and its derivative is -s q p.

    log 2 - H = s tanh(s / 2) / 2 - log cosh(s / 2). Both terms are small where the difference is, so it keeps its precision.
    """
    s, q, p = _two(margin)
    surprise_of_top, tau = torch.log1p(torch.exp(-s.clamp(max=60))), torch.tanh(s / 2)
    value, of_value = (surprise_of_top + q * s) / LOG_2, -margin * q * p / LOG_2
    cosh = torch.where(s < 1, -torch.log1p(-tau.square()) / 2, s / 2 + surprise_of_top - LOG_2)
    sure = (s * tau / 2 - cosh) / LOG_2
    of_log_sure = torch.where(sure >= 1e-12, -of_value / sure, 0.0)
    return Slopes(value, of_value, -margin * p / (s + surprise_of_top / q), of_log_sure)


LOG_2 = math.log(2)


@dataclass(frozen=True)
class Uncertainty:
    """A differentiable uncertainty U of logits: `value` maps (..., C) to (...), `logs` gives log U and log(1 - U), and `slopes` the
    derivatives for two classes."""

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
    """`u` whose logs are those of U clamped to `least` and 1 - `least`, as in AdUE v1 (1e-7).

    Beyond a margin of about log(1 / `least`), which is 16, an error has no gradient, so the most overconfident errors teach
    nothing.
    """

    def logs(z: Tensor) -> tuple[Tensor, Tensor]:
        bounded = u.value(z).clamp(least, 1 - least)
        return bounded.log(), (1 - bounded).log()

    def slopes(margin: Tensor) -> Slopes:
        value, of_value, *_ = u.slopes(margin)
        taught = torch.where((value >= least) & (value <= 1 - least), of_value, 0.0)
        return Slopes(value, of_value, taught / value.clamp(min=least), -taught / (1 - value).clamp(min=least))

    return Uncertainty(u.value, logs, slopes)


@dataclass(frozen=True)
class Objective:
    """The loss of a head: BCE(U, e) + alpha mean((U - U_0)^2). The trainer adds the L2-SP term (distance from the initial weights).

    Attributes:
        uncertainty: U of (..., C) logits. error: (n,) e, 0 or 1. anchor: (n,) U_0, the uncertainty of the original model.
    """

    uncertainty: Uncertainty
    error: Tensor
    anchor: Tensor

    def __call__(self, z: Tensor, rows: Tensor, alpha: Tensor) -> Tensor:
        """The losses (runs,) of logits `z` (runs, b, C) of the examples `rows` (b,), at `alpha` (runs,)."""
        log_u, log_sure = self.uncertainty.logs(z)
        e = self.error[rows]
        bce = -(e * log_u + (1 - e) * log_sure).mean(dim=-1)
        return bce + alpha * (self.uncertainty.value(z) - self.anchor[rows]).square().mean(dim=-1)

    def slope(self, margin: Tensor, rows: Tensor, alpha: Tensor) -> Tensor:
        """(runs, b) the derivatives of the losses by the margins z_1 - z_0 (runs, b) of two classes, much faster than by
        autograd."""
        value, of_value, of_log, of_log_sure = self.uncertainty.slopes(margin)
        bce = -torch.where(self.error[rows] > 0, of_log, of_log_sure)
        return (bce + 2 * alpha[:, None] * (value - self.anchor[rows]) * of_value) / len(rows)
