"""Where tokens are mixed: the attention module of each layer, and the function it calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from trueup.errors import Unsupported
from trueup.subject.subject import Subject
from trueup.subject.units import layers_of


def mixer_of(subject: Subject, layer: int) -> nn.Module:
    """The module that computes the attention of a layer: the one that owns the value projection.

    Raises:
        Unsupported: a state-space model, which has no attention.
    """
    if not subject.anatomy.value:
        raise Unsupported(
            f"'{subject.anatomy.model_type}' is a state-space model: it mixes tokens by a recurrence, and there is no attention "
            "to look at."
        )
    return layers_of(subject)[layer].get_submodule(subject.anatomy.value.rpartition(".")[0])


def offer(name: str, attention: Callable[..., Any]) -> None:
    """Make `attention` one of the implementations that a transformers config can name, with a mask that is added to scores."""
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, eager_mask)


def adapted_layers(subject: Subject) -> list[tuple[int | None, BaseTunerLayer]]:
    """Every linear layer that the adapter changes, and the number of the block it stands in (None outside of them)."""
    block = {id(m): i for i, layer in enumerate(layers_of(subject)) for m in layer.modules()}
    return [(block.get(id(m)), m) for m in subject.base.modules() if isinstance(m, BaseTunerLayer)]
