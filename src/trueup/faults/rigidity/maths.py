"""Rigidity as arithmetic: the bias subspace, the adapter's signature, the verdict. Arrays in, numbers out.

Petrov, Torr and Bibi, arXiv 2310.19698. What is reconstruction is said where it stands.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trueup.faults.fault import Finding
from trueup.measure import bootstrap
from trueup.measure.seeds import Contrast

Says = Literal["prompt suffices", "weights needed", "undecided"]
TOLERANCE = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 5e-3}
"""Total variation up to which attention counts as unchanged, by the model's number type."""


def rank(gram: NDArray, tolerance: float = 1e-4) -> NDArray:
    """(..., d, d) sums of b b^T -> (...): dimensions of the span, by singular values above `tolerance` of the largest."""
    values = np.clip(np.linalg.eigvalsh(gram), 0, None)
    return (values > tolerance**2 * np.maximum(values.max(axis=-1, keepdims=True), 1e-30)).sum(axis=-1)


def participation(gram: NDArray) -> NDArray:
    """(..., d, d) -> (...): (sum of eigenvalues)^2 / sum of their squares. 1 for one direction, d for all alike, 0 for none."""
    values = np.clip(np.linalg.eigvalsh(gram), 0, None)
    return values.sum(axis=-1) ** 2 / np.maximum((values**2).sum(axis=-1), 1e-300)


def judged(head: Contrast, cluster: NDArray | None, n: int, *, threshold: float, **rest: Any) -> Finding:
    """The finding that goes with (accuracy of weights) - (accuracy of a prompt), both of one size and effort, over seeds."""
    e = head.estimate()
    return Finding(
        fault="rigidity", unit="accuracy advantage of weights over a prompt of equal size and effort", severity=e.value, low=e.low,
        high=e.high, threshold=threshold, doubt=bootstrap.too_few(np.arange(n) if cluster is None else cluster), **rest,
    )  # fmt: skip


SAYS: dict[str, Says] = {"found": "weights needed", "clear": "prompt suffices", "undecided": "undecided"}


def signature(
    first: float,
    change: NDArray,
    residual: float,
    mass: float,
    virtual: int,
    tolerance: float,
    *,
    inside: bool,
    elsewhere: str,
) -> str:
    """What kind of adapter this looks like from inside, as a sentence (method file, D7).

    Args:
        first: total variation in layer 0, the largest mean over heads. It alone is exact for a prompt in any number type.
        change: (L,) the same of what each layer does by itself, on the base's inputs.
        residual: of layer 0 (`run.attention_change.Trace`). mass: largest mean attention on virtual tokens over layers and heads.
        virtual: virtual tokens, 0 for an adapter of weights.
        inside: whether the answer is read at a virtual token, which looks at the text itself.
        elsewhere: what the adapter changes outside of the layers that are looked at; empty for nothing.
    """
    if not virtual:
        if elsewhere:
            return f"It also changes {elsewhere}, so what its layers do by themselves cannot be told apart from that."
        moved = int((change > tolerance).sum())
        if moved:
            return f"It re-aims attention: {moved} of {len(change)} layers look elsewhere by their own doing."
        return (
            "It leaves attention where it is in every layer, and changes what is read there or what becomes of it: an adapter of "
            "values or of the feed-forward part. The text keeps its whole attention, so it is no prompt."
        )
    if first > tolerance:
        return f"Its first layer looks elsewhere (total variation {first:.1e}), which a prompt cannot: its wiring is wrong."
    if residual > 10 * tolerance:
        return f"Attention keeps its proportions, but the output is more than a bias and a shrinking (residual {residual:.1e})."
    does = "By itself no layer changes what the text's tokens look at among themselves; the prompt takes attention from them"
    if inside:
        return (
            f"{does} (up to {mass:.0%} in the mean of a head). But this encoder answers at the prompt's first token, which looks "
            "at the text by its own trained query: what that one reads, the theorem does not limit."
        )
    if mass < 0.01:
        return "The model hardly looks at the virtual tokens: the prompt is as good as ignored."
    return (
        f"It does what a prompt can. {does} (up to {mass:.0%} in the mean of a head) and adds a bias of at most {virtual} "
        "directions."
    )
