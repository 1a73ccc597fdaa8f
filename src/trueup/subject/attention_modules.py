"""Where tokens are mixed: the attention module of each layer, and the function it calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from trueup.errors import Unsupported
from trueup.subject.adapter import adapter_tensors
from trueup.subject.subject import Subject
from trueup.subject.units import layers_of


def mixer_of(subject: Subject, layer: int) -> nn.Module:
    """The module that computes the attention of a layer: the one that owns the value projection.

    Raises:
        Unsupported: a state-space model, which has no attention, or one whose attention could not be discovered.
    """
    subject.anatomy.need("attention")
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
    """Every layer that the adapter changes, apart from the head, and the number of its block (None outside of them)."""
    block = {id(m): i for i, layer in enumerate(layers_of(subject)) for m in layer.modules()}
    heads = tuple(f"{n}." for n in subject.head_roots())
    tuners = [
        m for n, m in subject.base.named_modules() if isinstance(m, BaseTunerLayer) and not f"{n}.".startswith(heads)
    ]
    return [(block.get(id(m)), m) for m in tuners]


def of_the_adapter(name: str) -> bool:
    """Whether a weight in an adapter's file is its own kind of weight, and no part of the model that it brings whole."""
    return name == "prompt_embeddings" or "lora_" in name or "ia3_" in name


def brought_whole(subject: Subject) -> list[str]:
    """Weights of the model, beside the head, that the adapter brings trained: most often none."""
    root = subject.anatomy.head_root
    whole_layers = [k.removeprefix("base_model.model.") for k in adapter_tensors(subject) if not of_the_adapter(k)]
    # DistilBERT's head is a classifier and a pre_classifier.
    return sorted(k for k in whole_layers if not (root and any(part.endswith(root) for part in k.split("."))))


def changed_elsewhere(subject: Subject) -> list[str]:
    """What an adapter of weights changes outside of the blocks' linear layers and the head, by name; often nothing.

    Embeddings, for one: where they move, everything behind them attends otherwise, by no layer's own doing.
    """
    outside = any(at is None for at, _ in adapted_layers(subject))
    return [*(["layers outside of the blocks"] if outside else []), *brought_whole(subject)]
