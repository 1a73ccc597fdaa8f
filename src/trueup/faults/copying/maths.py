"""Copying as equations: what a copy is, what chance makes of it, and which units a copied answer comes from.

Source: Ali, Wolf and Titov, arXiv 2410.01288, of which the abstract and introduction are at hand; the rest is reconstruction.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def at_answer(table: NDArray, answer: NDArray[np.int64]) -> NDArray:
    """(n,): the value of `table` (n, C) at each answer; 0 where the answer is no class (-1)."""
    known = answer >= 0
    return np.where(known, table[np.arange(len(answer)), np.where(known, answer, 0)], 0).astype(table.dtype)


def copies(answer: NDArray[np.int64], gold: NDArray[np.int64], shown: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(n,) 1 where the answer is wrong and stands in the demonstrations: the paper's copying error. `shown` is (n, C)."""
    return ((answer != gold) & at_answer(shown, answer)).astype(float)


def expected(answer: NDArray[np.int64], gold: NDArray[np.int64], chance: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) the chance that the same wrong answer would stand in demonstrations drawn anew; `chance` (n, C) says of each.

    A departure: the paper counts copying errors, of which two classes and four demonstrations give 94% by chance alone.
    """
    return np.where(answer != gold, at_answer(chance, answer), 0.0)


def penalised(
    logits: NDArray[np.float32], other: NDArray[np.float32], shown: NDArray[np.bool_], penalty: float
) -> NDArray[np.int64]:
    """(n,) the answers after `penalty` (nats) is taken off the logit of every shown class: the trivial rival of a repair.

    Args:
        logits: (n, C) of the classes' tokens. other: (n,) the highest of any other token, which answers -1.
    """
    z = logits - penalty * shown
    best = z.argmax(axis=1)
    return np.where(z.max(axis=1) >= other, best, -1)


def shift(logits: Tensor, shown: Tensor, gold: int, *, same: Tensor | None = None, right: bool = False) -> Tensor:
    """(r,) the prediction shift that attribution explains: max over shown classes of P - P(gold).

    With `right`, the gold answer stands in the demonstrations, and the shift is towards copying it: P(gold) - max over the
    other classes of P. P is over the classes, which is all that the difference of two answers needs. The published target
    is a "prediction shift"; that it is this one is reconstruction.

    Args:
        logits: (r, C) of the classes' first tokens. shown: (C,) bool. same: (C,) bool, classes that begin with the same token
            as the gold one, which cannot be told from it by that token.
    """
    p = torch.softmax(logits.float(), dim=1)
    others = torch.ones_like(shown) if right else shown.clone()
    others[gold] = False
    if same is not None:
        others &= ~same
    rival = p[:, others].amax(dim=1) if bool(others.any()) else p.new_zeros(len(p))
    return p[:, gold] - rival if right else rival - p[:, gold]


def spread(attribution: NDArray[np.float32]) -> NDArray[np.float64]:
    """Min-max scaling of each prompt's attributions over the units of each layer: (n, layers, units) to 0..1 (confirmed)."""
    low, high = attribution.min(axis=2, keepdims=True), attribution.max(axis=2, keepdims=True)
    return (attribution - low) / np.maximum(high - low, 1e-30)


def top(score: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """The `count` highest of a vector, highest first; ties go to the lower index."""
    return np.argsort(-score, kind="stable")[:count]


def by_token(
    first: NDArray[np.int64], choice: NDArray[np.int64], gold: NDArray[np.int64], shown: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """(n,) the class meant by a first token that several classes may begin with: the right one, else a shown one.

    Args:
        first: (C,) first token of each class. choice: (n,) class chosen by it. gold: (n,). shown: (n, C).
    """
    meant = choice.copy()
    for i, c in enumerate(choice):
        alike = first == first[c]
        if alike[gold[i]]:
            meant[i] = gold[i]
        elif (alike & shown[i]).any():
            meant[i] = int(np.flatnonzero(alike & shown[i])[0])
    return meant
