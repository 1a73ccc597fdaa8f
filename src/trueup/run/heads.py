"""Linear heads on cached features: a grid of runs as one tensor and one matrix product a step, and one convex fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trueup.corpus.corpus import Corpus
from trueup.run.predict import predict, session
from trueup.subject.subject import Head, Subject

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


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

    Args:
        loss: (runs, b, K) logits, (b,) rows, (runs,) alpha -> (runs,) losses. The L2-SP term is added here.
        biased: whether the bias is trained too; a family whose head has none keeps it at its start.
        watch: shown the heads (runs, K, d + 1) after each epoch, biases last, in the runs' order where all have as many epochs;
            training ends where it returns True.
    """
    order = sorted(range(len(runs)), key=lambda i: -runs[i].epochs)
    ranked = [runs[i] for i in order]
    features = torch.as_tensor(x, dtype=torch.float32)
    n, d, k = len(features), features.shape[1], len(start.weight)
    per_epoch = math.ceil(n / batch)
    theta0 = torch.cat([start.weight.float().cpu(), start.bias.float().cpu()[:, None]], dim=1)
    theta = theta0.expand(len(ranked), k, d + 1).clone()
    first, second = torch.zeros_like(theta), torch.zeros_like(theta)
    totals = torch.tensor([r.epochs * per_epoch for r in ranked])
    rates = torch.tensor([r.lr for r in ranked])
    alpha, beta = torch.tensor([r.alpha for r in ranked]), torch.tensor([r.beta for r in ranked])
    trained = torch.ones(d + 1)
    trained[-1] = float(biased)
    rng, step = np.random.default_rng(np.random.SeedSequence([seed, 3])), 0
    # Adam's bias correction divides by the product of the betas so far, and OneCycle moves beta1.
    ones = torch.cat([features, torch.ones(n, 1)], dim=1)
    for epoch in range(ranked[0].epochs):
        live = sum(r.epochs > epoch for r in ranked)
        perm = torch.as_tensor(rng.permutation(n))
        for at in range(0, n, batch):
            rows = perm[at : at + batch]
            w = theta[:live].detach().requires_grad_(True)
            z = (ones[rows] @ w.reshape(live * k, d + 1).T).reshape(len(rows), live, k).transpose(0, 1)
            total = loss(z, rows, alpha[:live]) + beta[:live] * ((w - theta0) * trained).square().sum(dim=(1, 2))
            (grad,) = torch.autograd.grad(total.sum(), w)
            with torch.no_grad():
                lr, beta1 = _one_cycle(step, totals[:live], rates[:live])
                shape = (live, 1, 1)
                g = grad * trained
                b1 = beta1.reshape(shape)
                first[:live] = b1 * first[:live] + (1 - b1) * g
                second[:live] = 0.999 * second[:live] + 0.001 * g.square()
                # torch's Adam corrects with the present beta1 to the power of the step, also while it is being cycled.
                m = first[:live] / (1 - b1 ** (step + 1))
                v = second[:live] / (1 - 0.999 ** (step + 1))
                theta[:live] -= lr.reshape(shape) * m / (v.sqrt() + 1e-8) * trained
            step += 1
        session().progress("training heads", epoch + 1, ranked[0].epochs)
        if watch is not None and watch(theta):
            break
    heads: list[Head] = [start] * len(runs)
    for place, i in enumerate(order):
        heads[i] = Head(theta[place, :, :-1].clone(), theta[place, :, -1].clone())
    return heads


def _one_cycle(step: int, totals: Tensor, peak: Tensor) -> tuple[Tensor, Tensor]:
    """Learning rate and beta1 of each run at `step`: torch's OneCycleLR(pct_start=0.1, anneal_strategy="cos")."""
    rise, end = 0.1 * totals - 1, totals - 1.0
    low, last = peak / 25, peak / 25 / 1e4
    up = torch.where(rise > 0, step / rise.clamp(min=1e-9), torch.ones_like(rise)).clamp(max=1)
    down = ((step - rise) / (end - rise).clamp(min=1e-9)).clamp(0, 1)

    def cosine(a: Tensor | float, b: Tensor | float, t: Tensor) -> Tensor:
        return b + (a - b) / 2 * (1 + torch.cos(math.pi * t))

    rising = step <= rise
    lr = torch.where(rising, cosine(low, peak, up), cosine(peak, last, down))
    beta1 = torch.where(rising, cosine(0.95, 0.85, up), cosine(0.85, 0.95, down))
    return lr, beta1


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
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A logistic head on features (n, d): weight (C, d), bias (C,), and (C, e) weights of the `extra` columns (n, e).

    Features are standardised for the fit and the head is written back in their own units; where the head has no bias
    they are only scaled. `strength` is scikit-learn's C, of a squared penalty, or of an L1 penalty where `sparse`. A class
    without examples gets a logit of -30, or of 0 without bias.
    """
    from sklearn.linear_model import LogisticRegression

    centre, spread = x.mean(axis=0) * biased, x.std(axis=0) + 1e-6
    z = (x - centre) / spread
    if extra is not None:
        z = np.concatenate([z, extra], axis=1)
    how: dict[str, Any] = {"tol": 1e-6}
    if sparse:
        # scikit-learn calls an L1 penalty otherwise from 1.8 on. liblinear is exact and fast, and knows two classes alone.
        l1 = {"penalty": "l1"} if LogisticRegression().l1_ratio is None else {"l1_ratio": 1.0}
        how = {"solver": "liblinear" if len(np.unique(label)) == 2 else "saga", "random_state": 0, **l1}
    fit = LogisticRegression(C=strength, max_iter=3000, fit_intercept=biased, **how).fit(z, label, sample_weight=weight)
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


def warm_start(subject: Subject, corpus: Corpus, *, strength: float = 0.01, weight: np.ndarray | None = None) -> None:
    """Fit the last layer to `corpus` before an adapter is trained under it (linear probing first, arXiv 2202.10054).

    A prompt moves the features little, so under a random last layer most of its training goes into that layer.

    Args:
        weight: (n,) how much each example counts; None is equally.
    """
    if len(np.unique(corpus.label)) < 2:
        return  # training itself says what is wrong with that
    layer = subject.head_layer()
    x = predict(subject, corpus).features.astype(np.float64)
    w, b, _ = fit_head(
        x, corpus.label, len(subject.classes), strength=strength, weight=weight, biased=layer.bias is not None
    )  # fmt: skip
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(w))
        if layer.bias is not None:
            layer.bias.copy_(torch.as_tensor(b))
