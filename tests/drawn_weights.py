"""A trained adapter's stand-in: trainable weights moved by drawn amounts, so that it does something and answers differ."""

from __future__ import annotations

import torch
from torch import nn


def move(model: nn.Module, size: float = 0.3, seed: int = 1) -> None:
    """Add normal noise of standard deviation `size` to every trainable weight of `model`."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=g) * size)
