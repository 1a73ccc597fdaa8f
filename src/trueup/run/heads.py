"""Linear heads on cached features: a grid of runs as one tensor and one matrix product a step, and one convex fit."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from scipy.linalg import cho_factor, cho_solve
from scipy.special import expit
from torch import Tensor

from trueup.corpus.corpus import Corpus
from trueup.run.predict import predict, session
from trueup.subject.subject import Head, Subject

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


@runtime_checkable
class Margined(Protocol):
    """A `Loss` that depends only on the margin when there are two classes, and that gives its derivative."""

    def __call__(self, z: Tensor, rows: Tensor, alpha: Tensor, /) -> Tensor:
        """As any `Loss`."""
        ...

    def slope(self, margin: Tensor, rows: Tensor, alpha: Tensor) -> Tensor:
        """(runs, b) margins z_1 - z_0, (b,) rows, (runs,) alpha -> (runs, b) derivatives of the runs' losses."""
        ...


BETA_2 = 0.999
"""Adam's second decay, torch's default."""
NEWTON, TAKEN_ANEW, SPARSE_NEWTON = 50, 8, 300
"""Most steps of `logistic`; products in a step from which the shared Hessian is computed again; most steps of `_lasso`."""


@dataclass(frozen=True)
class HeadRun:
    """One run of the grid. `alpha` weighs the pull to the anchor, `beta` the L2-SP pull of the weights to their start."""

    lr: float
    epochs: int
    alpha: float
    beta: float


def train_heads(
    x: np.ndarray, start: Head, loss: Loss, runs: Sequence[HeadRun], *, biased: bool, batch: int = 128, seed: int = 0,
    watch: Callable[[Tensor], bool] | None = None,
) -> list[Head]:  # fmt: skip
    """Train one head per run from `start` on features `x` (n, d), in float32; returns them in the runs' order.

    Adam with torch's OneCycle schedule (10% warm-up, cosine, momentum cycled), as in the published code. All runs see
    the same batches; a run with fewer epochs ends earlier. The result is that of training each run alone, up to
    rounding (held by a test against ``torch.optim.Adam`` and ``OneCycleLR``).

    Under a `Margined` loss the gradients of two classes are opposite, and so are Adam's steps. So only one row is trained: the
    change of the second class's row. The change of the first class's row is its negative.

    Args:
        loss: (runs, b, K) logits, (b,) rows, (runs,) alpha -> (runs,) losses. The L2-SP term is added here.
        biased: whether the bias is trained too; a family whose head has none keeps it at its start.
        watch: shown the heads (runs, K, d + 1) after each epoch, biases last, in the runs' order; training ends where it
            returns True.
    """
    # The longest runs come first, so that those still training are next to each other.
    order = sorted(range(len(runs)), key=lambda i: -runs[i].epochs)
    ranked = [runs[i] for i in order]
    n, d, k = *x.shape, len(start.weight)
    per_epoch = math.ceil(n / batch)
    theta0 = torch.cat([start.weight.float().cpu(), start.bias.float().cpu()[:, None]], dim=1)
    slope = loss.slope if k == 2 and isinstance(loss, Margined) else None
    begin = theta0 if slope is None else torch.zeros(1, d + 1)
    theta = begin.expand(len(ranked), *begin.shape).clone()

    def whole() -> Tensor:
        return theta if slope is None else theta0 + torch.cat([-theta, theta], dim=1)

    alpha, beta = torch.tensor([r.alpha for r in ranked]), torch.tensor([r.beta for r in ranked])
    trained = torch.ones(d + 1)
    trained[-1] = float(biased)
    pull = 2 * beta[:, None, None] * trained
    first_moment, second_moment = torch.zeros_like(theta), torch.zeros_like(theta)
    rng, step = np.random.default_rng(np.random.SeedSequence([seed, 3])), 0
    x_with_one = torch.cat([torch.as_tensor(x, dtype=torch.float32), torch.ones(n, 1)], dim=1)
    margin = x_with_one @ (theta0[-1] - theta0[0])

    # Runs of equal length and rate have one schedule.
    schedules = list(dict.fromkeys((r.epochs, r.lr) for r in ranked))
    schedule_of_run = torch.tensor([schedules.index((r.epochs, r.lr)) for r in ranked])

    for epoch in range(ranked[0].epochs):
        live = sum(r.epochs > epoch for r in ranked)
        perm = torch.as_tensor(rng.permutation(n))
        plan = torch.tensor(
            [[_one_cycle(step + i, e * per_epoch, lr) for e, lr in schedules] for i in range(per_epoch)],
            dtype=torch.float64,
        )
        for i, at in enumerate(range(0, n, batch)):
            rows = perm[at : at + batch]
            batch_x, w = x_with_one[rows], theta[:live]
            # Examples last in memory: torch is slow along a short last axis.
            z = w.reshape(-1, d + 1) @ batch_x.T
            if slope is None:
                z = z.reshape(live, k, len(rows)).requires_grad_(True)
                (grad,) = torch.autograd.grad(loss(z.mT, rows, alpha[:live]).sum(), z)
            else:
                grad = slope(margin[rows] + 2 * z, rows, alpha[:live])
            g = (grad.reshape(-1, len(rows)) @ batch_x).reshape(w.shape).mul_(trained).addcmul_(pull[:live], w - begin)
            step += 1
            rate, beta1 = plan[i, schedule_of_run[:live], :, None, None].unbind(1)
            # Adam, with a rate and momentum for each run: torch's own takes longer over groups of runs than this over all numbers.
            m = first_moment[:live].lerp_(g, (1 - beta1).float())
            v = second_moment[:live].mul_(BETA_2).addcmul_(g, g, value=1 - BETA_2)
            # rate / (1 - beta_1^t) is put into the denominator, so that one pass over the numbers makes the step.
            scale = (1 - beta1**step) / rate
            root = v.sqrt().mul_((scale / math.sqrt(1 - BETA_2**step)).float()).add_((1e-8 * scale).float())
            w.addcdiv_(m, root, value=-1)
        session().progress("training heads", epoch + 1, ranked[0].epochs)
        if watch is not None and watch(whole()[torch.as_tensor(np.argsort(order))]):
            break
    heads: list[Head] = [start] * len(runs)
    final = whole()
    for place, i in enumerate(order):
        heads[i] = Head(final[place, :, :-1].clone(), final[place, :, -1].clone())
    return heads


def _one_cycle(step: int, total: int, peak: float) -> tuple[float, float]:
    """Learning rate and beta1 at `step` of `total`: torch's OneCycleLR(pct_start=0.1, anneal_strategy="cos")."""
    rise, end = 0.1 * total - 1, total - 1.0
    if step <= rise:
        low, high, progress = peak / 25, (peak, 0.85), step / rise if rise > 0 else 1.0
        ends = (low, 0.95), high
    else:
        ends, progress = ((peak, 0.85), (peak / 25 / 1e4, 0.95)), min(1.0, (step - rise) / max(end - rise, 1e-9))
    (lr, beta1), (lr_then, beta1_then) = ends
    up = (1 + math.cos(math.pi * progress)) / 2
    return lr_then + (lr - lr_then) * up, beta1_then + (beta1 - beta1_then) * up


def fit_head(
    x: np.ndarray,
    label: np.ndarray,
    classes: int,
    *,
    strength: float,
    weight: np.ndarray | None = None,
    extra: np.ndarray | None = None,
    biased: bool = True,
    sparse: bool = False,
    moments: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A logistic head on features (n, d): weight (C, d), bias (C,), and (C, e) weights of the `extra` columns (n, e).

    Features are standardised for the fit and the head is written back in their own units; where the head has no bias
    they are only scaled. `strength` is scikit-learn's C: of a squared penalty, or of an L1 penalty where `sparse`. A class
    without examples gets a logit of -30, or of 0 without bias. `moments`: centre and spread to standardise by, (d,) each; default
    those of `x`.
    """
    from sklearn.linear_model import LogisticRegression

    centre, spread = moments if moments is not None else (x.mean(axis=0) * biased, x.std(axis=0) + 1e-6)
    z = (x - centre) / spread
    if extra is not None:
        z = np.concatenate([z, extra], axis=1)
    solver: dict[str, Any] = {"tol": 1e-6}
    if sparse:
        # scikit-learn 1.8 renamed the argument for an L1 penalty. liblinear is exact and fast, but takes two classes only.
        l1 = {"penalty": "l1"} if LogisticRegression().l1_ratio is None else {"l1_ratio": 1.0}
        solver = {"solver": "liblinear" if len(np.unique(label)) == 2 else "saga", "random_state": 0, **l1}
    fit = LogisticRegression(C=strength, max_iter=3000, fit_intercept=biased, **solver).fit(
        z, label, sample_weight=weight
    )
    present = fit.classes_.astype(int)
    coefficients, intercept = fit.coef_, np.atleast_1d(fit.intercept_)  # without bias liblinear's is a bare 0.0
    if len(present) == 2:
        coefficients, intercept = (
            np.stack([-coefficients[0], coefficients[0]]) / 2,
            np.array([-0.5, 0.5]) * intercept[0],
        )
    d = x.shape[1]
    w, b, e = np.zeros((classes, d)), np.full(classes, -30.0 * biased), np.zeros((classes, z.shape[1] - d))
    w[present] = coefficients[:, :d] / spread
    b[present] = (intercept if biased else 0.0) - w[present] @ centre
    e[present] = coefficients[:, d:]
    return w, b, e


def fit_sparse(
    x: np.ndarray, label: np.ndarray, classes: int, strengths: Sequence[float], *, biased: bool = True
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weight and bias of the sparse `fit_head` at each of `strengths`, weakest first.

    With two classes each fit starts where the one before it ended, and comes closer to the minimum than liblinear. Like
    liblinear it penalises the intercept.
    """
    if len(np.unique(label)) != 2:
        return [fit_head(x, label, classes, strength=s, biased=biased, sparse=True)[:2] for s in strengths]
    present, hit = np.unique(label, return_inverse=True)
    centre, spread = x.mean(axis=0) * biased, x.std(axis=0) + 1e-6
    columns = [((x - centre) / spread).T, np.ones((int(biased), len(x)))]
    a, u = np.concatenate(columns), np.zeros(x.shape[1] + biased)
    heads = []
    for strength in strengths:
        u, found = _lasso(a, hit, strength, u)
        if not found:
            heads.append(fit_head(x, label, classes, strength=strength, biased=biased, sparse=True)[:2])
            continue
        w, b = np.zeros((classes, x.shape[1])), np.full(classes, -30.0 * biased)
        w[present] = np.outer([-0.5, 0.5], u[: x.shape[1]] / spread)
        b[present] = (np.array([-0.5, 0.5]) * u[-1] - w[present] @ centre) if biased else 0.0
        heads.append((w, b))
    return heads


def _lasso(a: np.ndarray, hit: np.ndarray, strength: float, u: np.ndarray) -> tuple[np.ndarray, bool]:
    """(p,) the minimum of |u|_1 + strength sum_i nll(hit_i; (u a)_i) for `a` (p, n), from a start `u`; and whether it was reached.

    Newton's method within the orthant of `u`. A coefficient that would change its sign stops at 0. A coefficient leaves 0 only
    where its gradient violates optimality most, and only in that direction. A step that does not lower the loss is halved.
    """

    def nll(m: np.ndarray) -> float:
        return strength * float(np.logaddexp(0, m).sum() - m @ hit)

    m = u @ a
    loss = nll(m) + np.abs(u).sum()
    for _ in range(SPARSE_NEWTON):
        p = expit(m)
        gradient = strength * (a @ (p - hit))
        at_zero = u == 0
        sign = np.where(at_zero, -np.sign(gradient), np.sign(u))
        # How far each coefficient is from the optimality condition.
        violation = np.where(at_zero, np.maximum(np.abs(gradient) - 1, 0), np.abs(gradient + sign))
        if violation.max() < 1e-9 * max(1.0, strength * len(hit)):
            return u, True
        active = np.flatnonzero(~at_zero | (violation > violation[at_zero].max(initial=0) / 2))
        rows, active_u, active_sign, slope = a[active], u[active], sign[active], (gradient + sign)[active]
        root = rows * np.sqrt(strength * p * (1 - p))
        hessian = root @ root.T
        hessian[np.diag_indices(len(active))] += 1e-10 * (1 + hessian.diagonal())
        step, free = np.zeros(len(active)), np.ones(len(active), bool)
        while True:
            step[free] = -cho_solve(cho_factor(hessian[np.ix_(free, free)], check_finite=False), slope[free])
            blocked = free & (active_u == 0) & (step * active_sign < 0)
            if not blocked.any():
                break
            free &= ~blocked
            step[blocked] = 0
        length = 1.0
        while True:
            candidate = active_u + length * step
            candidate[candidate * active_sign < 0] = 0
            margin = candidate @ rows
            candidate_loss = nll(margin) + np.abs(candidate).sum()
            if candidate_loss <= loss + 1e-4 * slope @ (candidate - active_u) + 1e-13 * abs(loss):
                break
            length /= 2
            if length < 1e-10:
                return u, False
        u = u.copy()
        u[active], m, loss = candidate, margin, candidate_loss
    return u, False


def fit_heads(
    x: np.ndarray,
    label: np.ndarray,
    classes: int,
    kept: np.ndarray,
    *,
    strength: float | Sequence[float],
    weight: np.ndarray | None = None,
    extra: np.ndarray | None = None,
    biased: bool = True,
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """`fit_head` on each of F sets of rows, `kept` (F, n) bool, each with its own `strength` and `weight` (F, n).

    With two classes all are fitted at once, closer to the minimum than scikit-learn; with more, one after the other.
    """
    present, strengths = np.unique(label), np.broadcast_to(strength, len(kept))
    if len(present) != 2 or any(len(np.unique(label[k])) < 2 for k in kept):
        all_fits = range(len(kept))
        return [
            fit_head(
                x[kept[f]], label[kept[f]], classes, strength=float(strengths[f]), biased=biased,
                weight=None if weight is None else weight[f][kept[f]], extra=None if extra is None else extra[kept[f]],
            )
            for f in all_fits
        ]  # fmt: skip
    rows = kept.astype(np.float64)
    size = rows.sum(axis=1, keepdims=True)
    origin, unit = x.mean(axis=0), x.std(axis=0) + 1e-6
    centred = x - origin
    # Each fit is penalised in standard deviations of its own rows.
    spread = np.sqrt(np.maximum(rows @ centred**2 / size - (rows @ centred / size) ** 2, 0.0)) + 1e-6
    columns = [centred / unit if biased else x / unit]
    scale = unit / spread
    if extra is not None:
        columns, scale = [*columns, extra], np.concatenate([scale, np.ones((len(kept), extra.shape[1]))], axis=1)
    if biased:
        columns, scale = [*columns, np.ones((len(x), 1))], np.concatenate([scale, np.ones((len(kept), 1))], axis=1)
    penalty = np.repeat(1 / strengths[:, None], scale.shape[1], axis=1)
    if biased:
        penalty[:, -1] = 0.0
    row_weight = rows if weight is None else rows * weight
    minima = logistic(np.concatenate(columns, axis=1), label == present[1], row_weight, scale, penalty)
    d = x.shape[1]
    heads = []
    for u, spread_of_fit in zip(minima, spread, strict=True):
        w, b, e = np.zeros((classes, d)), np.full(classes, -30.0 * biased), np.zeros((classes, len(u) - d - biased))
        w[present] = np.outer([-0.5, 0.5], u[:d] / spread_of_fit)
        b[present] = (np.array([-0.5, 0.5]) * u[-1] - w[present] @ origin) if biased else 0.0
        e[present] = np.outer([-0.5, 0.5], u[d : len(u) - biased])
        heads.append((w, b, e))
    return heads


def logistic(
    a: np.ndarray,
    hit: np.ndarray,
    weight: np.ndarray,
    scale: np.ndarray,
    penalty: np.ndarray,
    start: np.ndarray | None = None,
) -> np.ndarray:
    """(F, p) the minima u of sum_i weight_fi nll(hit_i; a_i . (scale_f u)) + penalty_f . u^2 / 2, for each f, starting from
    `start` (F, p) or 0.

    Newton's method. Its systems are solved together by conjugate gradients, preconditioned with the Hessian at their mean
    weights, which is computed again when solving takes too many products. A step that raises a loss is halved. Steps are in
    float32. The gradient that ends the iteration is in float64, and does not depend on how exact the steps are.
    """
    y, total = hit.astype(np.float64), weight.sum(axis=1)
    u, a_float32 = np.zeros(scale.shape) if start is None else start, a.astype(np.float32)

    def at(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        m = (u * scale) @ a.T
        return m, np.einsum("fn,fn->f", weight, np.logaddexp(0, m) - y * m) + (penalty * u**2).sum(axis=1) / 2

    (m, loss), factor, products = at(u), None, TAKEN_ANEW
    for _ in range(NEWTON):
        p = expit(m)
        gradient = (weight * (p - y)) @ a * scale + penalty * u
        if (np.abs(gradient).max(axis=1) / total).max() < 1e-10:
            break
        q = weight * p * (1 - p)
        if products >= TAKEN_ANEW:
            shared = (a_float32 * q.mean(axis=0).astype(np.float32)[:, None]).T @ a_float32
            factor = _factor(shared.astype(np.float64) + np.diag(penalty.mean(axis=0)))
        curve = np.ascontiguousarray(q.T, np.float32)

        def times(d: np.ndarray, curve: np.ndarray = curve) -> np.ndarray:
            # Rows first: BLAS is slow at few rows of many columns.
            return (curve * (a_float32 @ (d * scale).T.astype(np.float32))).T @ a_float32 * scale + penalty * d

        step, products = _conjugate(times, gradient, factor)
        length = np.ones(len(u))
        for _ in range(NEWTON):
            candidate = u - length[:, None] * step
            margin, candidate_loss = at(candidate)
            worse = ~(candidate_loss <= loss + 1e-14 * np.abs(loss))
            if not worse.any():
                break
            length[worse] /= 2
        u, m, loss = candidate, margin, candidate_loss
    return u


def _factor(h: np.ndarray) -> Any:
    """A Cholesky factor of `h`, which rounding may have made indefinite: the least of three dampings that works is added."""
    diagonal = h.diagonal()
    diagonal = np.maximum(diagonal, 1e-12 * diagonal.max())
    for damp in (1e-6, 1e-4, 1e-2):
        with contextlib.suppress(np.linalg.LinAlgError):
            return cho_factor(h + np.diag(damp * diagonal))
    return cho_factor(np.diag(diagonal))


def _conjugate(times: Callable[[np.ndarray], np.ndarray], b: np.ndarray, near: Any) -> tuple[np.ndarray, int]:
    """(F, p) x with times(x) = b to a hundredth, where each row is its own system, and the number of products it took.

    `near` is the Cholesky factor of a matrix that is close to all of theirs (the preconditioner).
    """
    x, residual = np.zeros(b.shape), b
    z = d = cho_solve(near, residual.T).T
    size = np.einsum("fp,fp->f", residual, z)
    target = 1e-4 * size
    for k in range(b.shape[1]):
        if (size <= target).all():
            return x, k
        product = times(d)
        curvature = np.einsum("fp,fp->f", d, product)
        step = np.where(curvature > 0, size / np.where(curvature > 0, curvature, 1.0), 0.0)[:, None]
        x, residual = x + step * d, residual - step * product
        z = cho_solve(near, residual.T).T
        size, previous_size = np.einsum("fp,fp->f", residual, z), size
        d = z + np.where(previous_size > 0, size / np.where(previous_size > 0, previous_size, 1.0), 0.0)[:, None] * d
    return x, b.shape[1]


def warm_start(subject: Subject, corpus: Corpus, *, strength: float = 0.01, weight: np.ndarray | None = None) -> None:
    """Fit the last layer to `corpus` before an adapter is trained with it (linear probing first, arXiv 2202.10054).

    A prompt moves the features little, so under a random last layer most of its training goes into that layer.

    Args:
        weight: (n,) how much each example counts; None is equally.
    """
    if len(np.unique(corpus.label)) < 2:
        return  # training itself refuses this with a message
    layer = subject.head_layer()
    x = predict(subject, corpus).features.astype(np.float64)
    w, b, _ = fit_head(
        x, corpus.label, len(subject.classes), strength=strength, weight=weight, biased=layer.bias is not None
    )  # fmt: skip
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(w))
        if layer.bias is not None:
            layer.bias.copy_(torch.as_tensor(b))
