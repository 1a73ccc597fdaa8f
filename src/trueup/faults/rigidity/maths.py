"""Rigidity as arithmetic: the bias subspace, the adapter's signature, the verdict. Arrays in, numbers out.

Petrov, Torr and Bibi, arXiv 2310.19698. What is reconstruction is said where it stands.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Verdict = Literal["prompt suffices", "weights needed", "undecided"]
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


def verdict(low: float, high: float, margin: float) -> Verdict:
    """From the interval of (accuracy of weights) - (accuracy of a prompt), both best of their kind at one budget."""
    if low > margin:
        return "weights needed"
    return "prompt suffices" if high < margin else "undecided"


def signature(change: NDArray, residual: float, mass: float, virtual: int, tolerance: float) -> str:
    """What kind of adapter this looks like from inside, as a sentence (method file, D7).

    Args:
        change: (L,) largest mean total variation over heads that each layer makes by itself, on the base's inputs.
        residual: of layer 0 (`run.trace.Trace`). mass: largest mean attention on virtual tokens over layers and heads.
        virtual: virtual tokens, 0 for an adapter of weights.
    """
    moved = int((change > tolerance).sum())
    if moved:
        what = f"It re-aims attention: {moved} of {len(change)} layers look elsewhere by their own doing"
        return what + (", which a prompt cannot, so its wiring is wrong." if virtual else ".")
    if not virtual:
        return (
            "It leaves attention where it is in every layer, and changes what is read there or what becomes of it: an adapter of "
            "values or of the feed-forward part. The text keeps its whole attention, so it is no prompt."
        )
    if residual > 10 * tolerance:
        return f"Attention keeps its proportions, but the output is more than a bias and a shrinking (residual {residual:.1e})."
    if mass < 0.01:
        return "The model hardly looks at the virtual tokens: the prompt is as good as ignored."
    return (
        "It does what a prompt can: in no layer does it change what the text's tokens look at among themselves; it takes "
        f"attention from them (up to {mass:.0%} in the mean of a head) and adds a bias of at most {virtual} directions."
    )
