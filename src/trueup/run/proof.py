"""Exact shortcuts prove themselves on the model in hand: what they give must be what the model itself gives.

Each is checked where it is used, at a cost that is small beside its use. A library that changes under trueup must stop it
with a sentence, and never turn into a wrong number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trueup.errors import TESTED, Unsupported

ROUNDINGS = 10_000
"""How many units of rounding of its own type a result may be off, relative to the largest value; 0.1% in float32."""
MOST = 0.05
"""And the most that this may be in the short types, relative to the largest value."""

CANCELLED = 100
"""How many times stricter it is where the deviation is measured against the terms of a sum, and not against the sum."""


def tolerance(dtype: torch.dtype) -> float:
    """The largest relative deviation that still counts as rounding: 0.0012 in float32, 0.05 in float16 and bfloat16."""
    return min(MOST, ROUNDINGS * torch.finfo(dtype).eps)


def deviation(got: Tensor, expected: Tensor, size: float | None = None) -> float:
    """The largest difference, relative to `size`, by default the largest value of `expected`; infinite where shapes differ or a
    number is none."""
    if got.shape != expected.shape:
        return float("inf")
    a, b = got.detach().double(), expected.detach().double()
    if not bool(torch.isfinite(a).all()) or not bool(torch.isfinite(b).all()):
        return float("inf")
    return float((a - b).abs().max()) / max(float(b.abs().max()) if size is None else size, 1e-12)


def equal(got: Tensor, expected: Tensor, what: str, part: str, terms: Tensor | None = None) -> None:
    """Raises Unsupported where `got`, by the shortcut `what`, is not `expected`, `part` of the plain pass, but for rounding.

    Values that are small differences of large `terms` (the sums of their absolute values) may be off by a hundredth of the
    tolerance of those, and by one rounding of them: rounding is relative to the terms, and cancels nothing.
    """
    off, allowed = deviation(got, expected), tolerance(expected.dtype)
    if off <= allowed:
        return
    once = torch.finfo(expected.dtype).eps / 2
    if terms is not None and deviation(got, expected, float(terms.max())) <= max(allowed / CANCELLED, once):
        return
    raise Unsupported(
        f"{what} does not give what the model itself gives: {part} differ by {off:.2g} of their size. So nothing that rests on "
        f"it was computed. {TESTED}"
    )
