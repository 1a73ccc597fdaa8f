"""Whether two live models give the same logits: the largest difference on the same texts, one text at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ALLOWED = 1e-5
"""The largest difference of two logits in float32, relative to the largest logit, that counts as rounding."""


@dataclass(frozen=True)
class Same:
    """The result: `apart` is the largest difference of a logit, relative to the largest one; `equal` of `texts` texts have the
    same largest logit (in a causal model at every token)."""

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


def same(pairs: Iterable[tuple[Tensor, Tensor]]) -> Same:
    """Compare pairs of logits, one pair for each text, in the columns that both have. The pairs are read one at a time."""
    difference, largest, equal, texts = 0.0, 0.0, 0, 0
    for a, b in pairs:
        a, texts = a[..., : b.shape[-1]], texts + 1
        # A NaN counts as an infinite difference.
        difference = max(difference, float((a - b).abs().nan_to_num(float("inf")).max()))
        largest, equal = max(largest, float(a.abs().max())), equal + bool((a.argmax(-1) == b.argmax(-1)).all())
    return Same(difference / max(largest, 1e-12), equal, texts)
