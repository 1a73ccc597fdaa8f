"""How large a model is, from its config alone: no weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import transformers

from trueup.errors import BadInput
from trueup.subject import checkpoint as door
from trueup.subject.embedded import MODELS
from trueup.subject.quiet import quiet


@dataclass(frozen=True)
class Size:
    """Numbers of a model: `parameters` in all, and of these `layers` outside of its embeddings, which every token passes."""

    parameters: int
    layers: int


@lru_cache(maxsize=64)
def size_of(model: str, revision: str | None = None) -> Size:
    """The size of a hub id, a local folder or an ``embedded:`` model, without a head.

    Raises:
        BadInput: no model is there. Unavailable: the hub is out of reach. Unsupported: transformers cannot build it.
    """
    if model.startswith("embedded:") and (shipped := MODELS.get(model.removeprefix("embedded:"))) is not None:
        return Size(*shipped.numbers)
    config = door.read_model_config(door.resolve(model), model, revision=revision)
    try:
        with quiet(), torch.device("meta"):
            net = transformers.AutoModel.from_config(config)
    except Exception as e:
        raise BadInput(
            f"The size of '{model}' cannot be told from its config ({' '.join(str(e).split())[:160]})."
        ) from e
    total = sum(p.numel() for p in net.parameters())
    return Size(total, total - sum(m.weight.numel() for m in net.modules() if isinstance(m, torch.nn.Embedding)))
