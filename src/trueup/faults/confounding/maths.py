"""Pure functions of the fault confounding: tangent fits, prompt vectors, and linear repairs of a head.

We know only the abstract of HyPA (Sheng et al., arXiv 2605.03096): task arithmetic on soft prompts that combines task prompts
with linearised confounder prompts. The equations here are a reconstruction from the work it builds on (task arithmetic,
arXiv 2212.04089; tangent-space task arithmetic, arXiv 2305.12827). Everything here is numpy: no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PromptVector:
    """A change of a soft prompt, (m, w), with the operators + - * and a norm (task prompt vectors, arXiv 2408.01119)."""

    value: Floats

    @staticmethod
    def between(start: NDArray, end: NDArray) -> PromptVector:
        """tau = P - P0: the change of the prompt from `start` to `end`."""
        return PromptVector(np.asarray(end, np.float64) - np.asarray(start, np.float64))

    def __add__(self, other: PromptVector) -> PromptVector:
        return PromptVector(self.value + other.value)

    def __sub__(self, other: PromptVector) -> PromptVector:
        return PromptVector(self.value - other.value)

    def __mul__(self, coefficient: float) -> PromptVector:
        return PromptVector(self.value * float(coefficient))

    __rmul__ = __mul__

    def __neg__(self) -> PromptVector:
        return PromptVector(-self.value)

    @property
    def norm(self) -> float:
        """Euclidean length, in units of the embeddings."""
        return float(np.linalg.norm(self.value))


def shortcut(table: NDArray) -> NDArray[np.int64]:
    """(G,) the class that each group goes with: argmax_y P(y, z) / (P(y) P(z)), the cell with the largest lift.

    `table` is (C, G). For two classes and two groups this is the polarity coding: z = 1 stands for the group in which y = 1 is
    more frequent. A predictor of these classes gives the answer of the shortcut alone, so a repair removes its direction.
    """
    lift = table / np.maximum(table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True), 1e-300)
    return lift.argmax(axis=0).astype(np.int64)


def coding(table: NDArray) -> Floats:
    """(G, C) the class probabilities that the shortcut alone gives in each group: the target of a confounder prompt.

    They are the `shortcut`, one-hot, where every class goes with some group, as with two classes (the published polarity).
    Otherwise some class goes with no group (as with three classes and two groups). A prompt fitted to the shortcut would then
    learn never to predict this class, and subtracting that prompt would predict it too often. There the target is P(y | z), which
    contains every class.
    """
    named = shortcut(table)
    if np.isin(np.flatnonzero(table.sum(axis=1)), named).all():
        return np.eye(len(table))[named]
    return (table / np.maximum(table.sum(axis=0), 1e-300)).T


@dataclass(frozen=True, eq=False)
class Basis:
    """An orthonormal basis of the span of a set of gradients, in which fits are small and exact.

    The solution of a ridge fit lies in the span of its gradients, so nothing is lost. With rows Phi = X V^T and V orthonormal,
    Phi D = X b for D = V b, and |D| = |b|.

    Attributes:
        coordinates: (n, K, r) the gradients in the basis. vectors: (p, r) the basis. scale: mean squared length of a row.
    """

    coordinates: Floats
    vectors: Floats
    scale: float


def basis(rows: Callable[[], Iterator[tuple[slice, Floats]]], n: int, k: int, p: int) -> Basis:
    """The basis of gradients that come in pieces: from the (nK, nK) Gram matrix where nK < p, else from the (p, p) covariance.

    Args:
        rows: each call gives an iterator over (slice of examples, (b, K, p) float64 gradients).
    """
    if n * k < p:
        pieces = np.concatenate([g.reshape(-1, p) for _, g in rows()])
        values, left = np.linalg.eigh(pieces @ pieces.T)
        above_rounding = values > max(values.max(), 0) * 1e-10
        root = np.sqrt(values[above_rounding])
        x, vectors = left[:, above_rounding] * root, pieces.T @ (left[:, above_rounding] / root)
    else:
        covariance = np.zeros((p, p))
        for _, g in rows():
            flat = g.reshape(-1, p)
            covariance += flat.T @ flat
        values, vectors = np.linalg.eigh(covariance)
        above_rounding = values > max(values.max(), 0) * 1e-10
        vectors = vectors[:, above_rounding]
        x = np.concatenate([g.reshape(-1, p) @ vectors for _, g in rows()])
    return Basis(x.reshape(n, k, -1), vectors, float((x**2).sum() / max(1, n * k)))


def tangent_fit(
    base: Basis, offset: Floats, target: NDArray, ridge: float, *, weight: NDArray | None = None
) -> tuple[Floats, float]:
    """The tangent prompt (method file): argmin_D mean_i w_i CE(f(x_i; P0) + J_i D, t_i) + ridge/2 * scale * |D|^2.

    The problem is convex, so L-BFGS reaches its one optimum. Coordinates are rescaled by the root of the loss' curvature, which
    needs about twenty steps instead of hundreds.

    Args:
        base: the gradients of the margins f_c - f_0. offset: (n, K) the margins at P0.
        target: (n,) classes 0 .. K, or (n, K + 1) their probabilities.
        ridge: dimensionless: 1 is a penalty as large as the mean squared length of a gradient.
        weight: (n,) the weight of each example; None for equal weights.

    Returns: D (p,), and its loss without the ridge penalty (nats).
    """
    x, n = base.coordinates, len(offset)
    w = np.full(n, 1.0 / n) if weight is None else np.asarray(weight, np.float64) / np.sum(weight)
    hit = (target if target.ndim > 1 else np.eye(offset.shape[1] + 1)[target])[:, 1:]
    penalty = ridge * base.scale
    curvature = np.sqrt(0.25 * np.einsum("i,ikr->r", w, x**2) + penalty)

    def loss(c: Floats) -> tuple[float, Floats]:
        b = c / curvature
        m = offset + x @ b
        full = np.concatenate([np.zeros((n, 1)), m], axis=1)
        ce = logsumexp(full, axis=1) - (hit * m).sum(axis=1)
        residual = (softmax(full, axis=1)[:, 1:] - hit) * w[:, None]
        gradient = np.einsum("ik,ikr->r", residual, x) + penalty * b
        return float(w @ ce + 0.5 * penalty * b @ b), gradient / curvature

    found = minimize(
        loss,
        np.zeros(x.shape[2]),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 2000, "maxcor": 20, "ftol": 1e-13, "gtol": 1e-9},
    )
    b = found.x / curvature
    return base.vectors @ b, float(found.fun - 0.5 * penalty * b @ b)


def leace(x: Floats, z: Floats, *, weight: NDArray | None = None, shrink: float = 1e-4) -> tuple[Floats, Floats]:
    """Least-squares concept erasure (Belrose et al., arXiv 2306.03819, theorem 4.2): x -> A x + c.

    This is the smallest affine change, in the metric of x's own covariance, after which no linear probe predicts z (n, G) better
    than a constant. A = I - W^+ P W, where W is the whitening of x and P is the projection on the whitened cross-covariance.

    Args:
        weight: (n,) the weight of each example; None for equal weights. shrink: share of the mean variance that is added to x's
            covariance, so that directions without variance do not change.
    """
    w = np.full(len(x), 1.0 / len(x)) if weight is None else np.asarray(weight, np.float64) / np.sum(weight)
    mx, mz = w @ x, w @ z
    cx, cz = x - mx, z - mz
    covariance = (cx * w[:, None]).T @ cx
    covariance += shrink * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    cross = (cx * w[:, None]).T @ cz
    values, vectors = np.linalg.eigh(covariance)
    root = np.sqrt(values)
    whiten, unwhiten = (vectors / root) @ vectors.T, (vectors * root) @ vectors.T
    u, s, _ = np.linalg.svd(whiten @ cross, full_matrices=False)
    u = u[:, s > 1e-8 * max(s.max(), 1e-6)]  # whitened, so rounding alone is far below 1e-14
    a = np.eye(len(mx)) - unwhiten @ u @ u.T @ whiten
    return a, mx - a @ mx


def through(weight: Floats, bias: Floats, a: Floats, c: Floats) -> tuple[Floats, Floats]:
    """The weight and bias of a head that acts on affinely changed features: W (A x + c) + b."""
    return weight @ a, bias + weight @ c


def why_no_concatenation(settings: Mapping[str, Any]) -> str | None:
    """Why two LoRAs with these PEFT settings cannot be added by concatenating their ranks; None where they can.

    DoRA's magnitudes and a LoRA's own biases are not linear in B A. Ranks or scales that differ between layers would need a
    separate scale for each layer. rsLoRA can be added here, because each scale is multiplied into its B. (PEFT's own ``cat`` gives
    a wrong result for rsLoRA.)
    """
    if settings.get("use_dora"):
        return "DoRA rescales each column by its norm, which does not add up."
    if settings.get("rank_pattern") or settings.get("alpha_pattern"):
        return "Its ranks or scales differ from layer to layer."
    if settings.get("lora_bias") or settings.get("bias", "none") != "none":
        return "It trains biases as well."
    return None


def concatenate(
    settings: Mapping[str, Any],
    tensors: Mapping[str, Any],
    other: Mapping[str, Any],
    more: Mapping[str, Any],
    coefficient: float,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A LoRA that computes s B A + coefficient * s' B' A' exactly. Its rank is the sum of the ranks, and its scale is 1.

    Arguments and result are PEFT's settings and weights. Tensors that are not LoRA weights (a classification head) are taken from
    the first LoRA.
    """
    out, rank = dict(tensors), int(settings["r"]) + int(other["r"])
    for name in (k for k in tensors if ".lora_A." in k):
        down, up = name, name.replace(".lora_A.", ".lora_B.")
        out[down] = np.concatenate([tensors[down], more[down]], axis=0)
        out[up] = np.concatenate([_scale(settings) * tensors[up], coefficient * _scale(other) * more[up]], axis=1)
    return dict(settings) | {"r": rank, "lora_alpha": rank, "use_rslora": False}, out


def _scale(settings: Mapping[str, Any]) -> float:
    r = float(settings["r"])
    return float(settings["lora_alpha"]) / (r**0.5 if settings.get("use_rslora") else r)
