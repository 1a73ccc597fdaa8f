"""Whether two live models say the same: the largest difference of their logits on the same texts, one text at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ALLOWED = 1e-5
"""The largest difference of two logits in float32, relative to the largest logit, that is rounding alone."""


@dataclass(frozen=True)
class Same:
    """What was compared: `apart` is the largest difference of a logit, relative to the largest one; `equal` of `texts` have the
    same largest logit (of a causal model at every token)."""

    apart: float
    equal: int
    texts: int

    @property
    def ok(self) -> bool:
        return self.apart <= ALLOWED


def logits_of(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """(K,) or (t, V) float64 logits of one text."""
    with torch.inference_mode():
        return model(**inputs).logits[0].double()


def same(
    inputs: Sequence[dict[str, Tensor]],
    one: Callable[[dict[str, Tensor]], Tensor],
    other: Callable[[dict[str, Tensor]], Tensor],
) -> Same:
    """`one` and `other` on each text; the columns that both have are compared."""
    apart, largest, equal = 0.0, 0.0, 0
    for given in inputs:
        a, b = one(given), other(given)
        a = a[..., : b.shape[-1]]
        # NaN is as far apart as can be.
        apart = max(apart, float((a - b).abs().nan_to_num(float("inf")).max()))
        largest, equal = max(largest, float(a.abs().max())), equal + bool((a.argmax(-1) == b.argmax(-1)).all())
    return Same(apart / max(largest, 1e-12), equal, len(inputs))
