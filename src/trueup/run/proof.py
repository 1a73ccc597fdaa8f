"""Checks of exact shortcuts on the model in use: a shortcut must give what the model itself gives.

Each shortcut is checked where it is used, at a cost that is small compared with its use. When a library changes, trueup must
stop with an error message, and never give a wrong number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trueup.errors import TESTED, Unsupported

ROUNDINGS = 10_000
"""Largest deviation that is accepted, in machine epsilons of the dtype, relative to the largest value; 0.1% in float32."""
MOST = 0.05
"""Upper bound of the tolerance, relative to the largest value; it holds in the 16-bit types."""

CANCELLED = 100
"""How many times stricter the tolerance is where the deviation is relative to the terms of a sum, and not to the sum."""


def tolerance(dtype: torch.dtype) -> float:
    """The largest relative deviation that still counts as rounding: 0.0012 in float32, 0.05 in float16 and bfloat16."""
    return min(MOST, ROUNDINGS * torch.finfo(dtype).eps)


def deviation(got: Tensor, expected: Tensor, size: float | None = None) -> float:
    """The largest difference, relative to `size`, which is the largest value of `expected` by default.

    It is infinite where shapes differ or a number is not finite.
    """
    if got.shape != expected.shape:
        return float("inf")
    a, b = got.detach().double(), expected.detach().double()
    if not bool(torch.isfinite(a).all()) or not bool(torch.isfinite(b).all()):
        return float("inf")
    return float((a - b).abs().max()) / max(float(b.abs().max()) if size is None else size, 1e-12)


def equal(got: Tensor, expected: Tensor, what: str, part: str, terms: Tensor | None = None) -> None:
    """Raises Unsupported where `got`, from the shortcut `what`, differs by more than rounding from `expected`, from a plain pass.

    `part` names what is compared. Values may be small differences of large terms; `terms` are the sums of their absolute values.
    Rounding is relative to the terms and does not cancel. So the deviation may also be a hundredth of the tolerance, or one
    rounding, relative to the largest of `terms`.
    """
    largest, allowed = deviation(got, expected), tolerance(expected.dtype)
    if largest <= allowed:
        return
    one_rounding = torch.finfo(expected.dtype).eps / 2
    if terms is not None and deviation(got, expected, float(terms.max())) <= max(allowed / CANCELLED, one_rounding):
        return
    raise Unsupported(
        f"{what} does not give what the model itself gives: {part} differ by {largest:.2g} of their size. So nothing that rests on "
        f"it was computed. {TESTED}"
    )
