"""Copies of a live model that share its weights: modules of their own around the same storage, quantised layers included."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


def copy_of(model: nn.Module, shared: dict[int, Any] | None = None) -> Any:
    """Other modules around the very same parameters and buffers; `shared` puts others in place of some of these, by their id.

    Nothing that happens to the copy is seen by `model`. bitsandbytes moves what it keeps beside a quantised weight (scales,
    the weight itself) when a layer runs, so each copy gets a record of its own, of the same tensors.
    """
    known: dict[int, Any] = {id(p): p if _plain(p) else _own_weight(p) for p in model.parameters()}
    known |= {id(b): b for b in model.buffers()} | (shared or {})
    kept = [
        v for m in model.modules() for v in vars(m).values() if hasattr(v, "__dict__") and not isinstance(v, nn.Module)
    ]
    known |= {id(t): t for v in kept for t in vars(v).values() if type(t) is Tensor}
    hooks = (
        h
        for m in model.modules()
        for h in getattr(getattr(m, "_hf_hook", None), "hooks", [getattr(m, "_hf_hook", None)])
    )
    known |= {id(w): w for h in hooks if (w := getattr(h, "weights_map", None)) is not None}  # what is offloaded, once
    copied = copy.deepcopy(model, known)
    for p in copied.parameters():
        for name, value in vars(p).items():
            if isinstance(value, nn.Module):  # a quantised weight that knows its layer
                setattr(p, name, known.get(id(value), value))
    return copied


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that ``model.state_dict()`` names, which that cannot be asked for: it changes quantised layers that have run.

    (bitsandbytes 0.50 unpacks a 4-bit layer's weight there, and leaves its scales as they are.)
    """
    named: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    for name, buffer in model.named_buffers(remove_duplicate=False):
        parent, _, leaf = name.rpartition(".")
        if leaf not in model.get_submodule(parent)._non_persistent_buffers_set:
            named[name] = buffer
    return {k: v.detach() for k, v in named.items()}


def never_packed(model: nn.Module) -> None:
    """Keeps the 4-bit layers of a model that was just loaded in the form in which gradients pass through them.

    On a processor with AVX512-BF16, bitsandbytes packs the weight of a layer when it runs for a prediction. A packed layer
    computes in bfloat16, and no gradient passes through it: a training that follows fails.
    """
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            vars(layer)["support_avx512bf16_for_cpu"] = False  # what bitsandbytes reads; torch types no such attribute


def whole_batches(model: nn.Module) -> bool:
    """Whether an example's result may depend on its neighbours: LLM.int8 looks for outliers over the whole batch."""
    return any(type(m).__name__ == "Linear8bitLt" for m in model.modules())


def _plain(weight: nn.Parameter) -> bool:
    """Whether nothing beside a weight changes when its layer runs: a parameter of torch's own, or torchao's of several tensors."""
    return type(weight) is nn.Parameter or hasattr(weight, "__tensor_flatten__")


def _own_weight(weight: nn.Parameter) -> nn.Parameter:
    shared_view: Any = torch.Tensor._make_subclass(type(weight), weight.detach(), False)
    for name, value in vars(weight).items():
        plain = isinstance(value, Tensor | nn.Module) or not hasattr(value, "__dict__")
        setattr(shared_view, name, value if plain else _record(value))
    return shared_view


def _record(value: Any) -> Any:
    duplicate = copy.copy(value)
    for name, inner in vars(value).items():
        if type(inner) is type(value):  # the scales of the scales
            setattr(duplicate, name, _record(inner))
    return duplicate
