"""Scaled feed-forward units, or attention heads, as plain PEFT adapters: scaled inputs of a linear projection.

The units of a layer are the input of `anatomy.down`, and what its heads found is the input of `anatomy.mixer_out`, one head
after another. To multiply these by factors is to multiply the columns of the projection's weight by them. As an IA3 adapter that
is one vector a layer, 4 bytes a unit: 12 kB for a layer of GPT-2, 6 kB for one of SmolLM2-135M, whatever is scaled. Where
the subject already wears a LoRA, PEFT cannot put an IA3 beside it in one folder, and the same change of weights joins the
LoRA, at one rank for each unit that is scaled: exact, and larger.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import peft
import torch
from peft.tuners.ia3 import IA3Layer
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from trueup.errors import BadInput, Unsupported
from trueup.subject import adapter as files
from trueup.subject.subject import Subject

Adapter = tuple[dict[str, Any], dict[str, Tensor]]
"""PEFT's settings and weights, ready to be worn or written."""
Part = Literal["down", "mixer_out"]
"""The projection of `Anatomy` whose input is scaled: ``down`` for units, ``mixer_out`` for attention heads."""
_BEYOND = (
    "use_dora", "lora_bias", "target_parameters", "trainable_token_indices", "layer_replication", "use_qalora",
    "alora_invocation_tokens", "use_bdlora", "arrow_config", "velora_config", "monteclora_config", "kasa_config",
)  # fmt: skip
"""Settings of a LoRA under which its change of the weights is not just scaling * B @ A."""


def layers_of(subject: Subject) -> list[nn.Module]:
    """The blocks of the model, in order.

    Raises:
        Unsupported: they could not be discovered.
    """
    subject.anatomy.need("layers")
    return list(subject.base.base_model.get_submodule(subject.anatomy.layers))  # type: ignore[operator, union-attr, arg-type]


def projection_of(subject: Subject, layer: int, part: Part = "down") -> tuple[str, nn.Module]:
    """A projection of a layer, in the adapter's wrapping where there is one, and its full name in the base."""
    subject.anatomy.need(part)
    module = layers_of(subject)[layer].get_submodule(getattr(subject.anatomy, part))
    return next(n for n, m in subject.base.named_modules() if m is module), module


def width_of(subject: Subject, layer: int, part: Part = "down") -> int:
    """How many units a layer has; with ``mixer_out`` how many numbers its heads give."""
    return int(weight_of(projection_of(subject, layer, part)[1]).shape[1])


def head_width(subject: Subject) -> int:
    """How many inputs of `anatomy.mixer_out` one attention head gives: those of head h begin at h times as many.

    Raises:
        Unsupported: a state-space model, which has no heads of attention.
    """
    anatomy = subject.anatomy
    anatomy.need("mixer_out")
    if anatomy.kind == "state-space":
        raise Unsupported(
            f"'{anatomy.model_type}' is a state-space model and has no attention heads; scale its units instead."
        )
    return width_of(subject, 0, "mixer_out") // anatomy.size(subject.base.config, "heads")


def check(subject: Subject, scales: Mapping[int, Tensor], part: Part = "down") -> None:
    """Raises BadInput where `scales` names a layer that is not there, or has another length than the layer's units.

    With ``mixer_out`` it is the length of what the layer's heads give."""
    depth = len(layers_of(subject))
    for at, factors in scales.items():
        if not 0 <= at < depth:
            raise BadInput(f"There is no layer {at}: the model has layers 0 to {depth - 1}. Give one of these.")
        units = width_of(subject, at, part)
        if tuple(factors.shape) != (units,):
            has, one = ("units", "unit") if part == "down" else ("inputs of its heads' projection", "input")
            raise BadInput(
                f"Layer {at} has {units} {has}, and the scales are {tuple(factors.shape)}; give one per {one}."
            )


def scales_as_adapter(subject: Subject, scales: Mapping[int, Tensor], part: Part = "down") -> Adapter:
    """The subject's adapter with the units of layer l multiplied by ``scales[l]`` (units,), as one PEFT adapter.

    With ``mixer_out`` it is what the layer's attention heads give that is multiplied. An IA3 on a subject without an adapter or
    with an IA3; joined into the LoRA of a subject that has one.

    Raises:
        Unsupported: a prompt or a prefix, which PEFT keeps apart from changes of weights. Else as the two below.
    """
    make = scales_as_lora if type(subject.peft_config) is peft.LoraConfig else scales_as_ia3
    return make(subject, scales, part)


def scales_as_ia3(subject: Subject, scales: Mapping[int, Tensor], part: Part = "down") -> Adapter:
    """As an IA3 adapter on the projections of the layers in `scales`; multiplied into the subject's own IA3 where it has one.

    Raises:
        BadInput: no layer, one that is not there, or scales of another length. Unsupported: another kind of adapter, or an
            IA3 that scales what comes out of the projection.
    """
    check(subject, scales, part)
    own_config = subject.peft_config
    if own_config is not None and not isinstance(own_config, peft.IA3Config):
        raise _not_beside(own_config)
    if own_config is None and not scales:
        raise _nothing()
    live: dict[str, Any] = {}
    if own_config is not None:
        worn = subject.model.active_adapter
        live = {n: m for n, m in subject.base.named_modules() if isinstance(m, IA3Layer) and worn in m.ia3_l}
    settings, tensors = files.adapter_of(subject) if own_config is not None else (_plain(subject, peft.IA3Config()), {})
    inputs = {n for n, m in live.items() if m.is_feedforward}
    for at, factors in scales.items():
        name, module = projection_of(subject, at, part)
        key = f"base_model.model.{name}.ia3_l"
        if name in live and name not in inputs:
            raise Unsupported(
                f"The subject's IA3 scales what comes out of '{name}', not what goes into it; give an adapter whose "
                "feedforward_modules name it, or the base without it."
            )
        before = tensors.get(key, torch.ones(1, len(factors)))
        tensors[key] = before * factors.detach().to(before)
        inputs.add(name)
        settings["fan_in_fan_out"] = turned(module)
    # Full names: PEFT's own patterns would reach the other layers as well.
    settings |= {
        "target_modules": sorted({*live, *inputs}),
        "feedforward_modules": sorted(inputs),
        "exclude_modules": None,
    }
    return settings, tensors


def scales_as_lora(subject: Subject, scales: Mapping[int, Tensor], part: Part = "down") -> Adapter:
    """As a LoRA of one rank per input scaled, B = (s_u - 1) W[:, u] and A one-hot; joined with the subject's own LoRA.

    On a projection that the subject's LoRA adapts, the columns of its A are multiplied as well, so that the sum of base
    and adapter is scaled; its own scaling is folded into B.

    Raises:
        BadInput: nothing is scaled, a layer is not there, or scales of another length. Unsupported: another kind of
            adapter, a LoRA that is more than scaling * B @ A, or a state-space model, where PEFT puts no LoRA.
    """
    check(subject, scales, part)
    own_config = subject.peft_config
    if own_config is not None and type(own_config) is not peft.LoraConfig:
        raise _not_beside(own_config)
    if subject.anatomy.kind == "state-space":
        raise Unsupported(
            f"PEFT puts no LoRA on '{subject.anatomy.down}' of '{subject.anatomy.model_type}'; give the base without its "
            "adapter, whose units an IA3 can scale."
        )
    if own_config is None and all(bool((s == 1).all()) for s in scales.values()):
        raise _nothing()
    live: dict[str, Any] = {}
    if own_config is not None:
        _plain_enough(own_config)
        worn = subject.model.active_adapter
        live = {n: m for n, m in subject.base.named_modules() if isinstance(m, LoraLayer) and worn in m.r}
        sizes = {n: (int(m.r[worn]), m.lora_alpha[worn]) for n, m in live.items()}
        settings, tensors = files.adapter_of(subject)
    else:
        sizes, tensors = {}, {}
        settings = _plain(subject, peft.LoraConfig(r=1, lora_alpha=1))
    for at, factors in scales.items():
        name, module = projection_of(subject, at, part)
        weight = weight_of(module).detach().float().cpu()
        factors = factors.detach().float().cpu()
        units = (factors != 1).nonzero()[:, 0]
        if not len(units):
            continue
        a = torch.zeros(len(units), len(factors)).scatter_(1, units[:, None], 1.0)
        b = weight[:, units] * (factors[units] - 1)
        keys = f"base_model.model.{name}.lora_A.weight", f"base_model.model.{name}.lora_B.weight"
        if name in live:
            before = tensors[keys[0]].float() * factors, tensors[keys[1]].float() * live[name].scaling[worn]
            a, b = torch.cat([before[0], a]), torch.cat([before[1], b], dim=1)
        rank = len(a)
        # The alpha that makes PEFT's scaling 1, to the last digit.
        sizes[name] = rank, math.sqrt(rank) if settings["use_rslora"] else rank
        tensors[keys[0]], tensors[keys[1]] = a, b.contiguous()
        settings["fan_in_fan_out"] = turned(module)
    usual = settings["r"], settings["lora_alpha"]
    settings |= {
        # Full names, and PEFT's patterns by full names, so that each module is met by its own entry alone.
        "target_modules": sorted(sizes), "exclude_modules": None, "layers_to_transform": None, "layers_pattern": None,
        "rank_pattern": {n: r for n, (r, _) in sizes.items() if r != usual[0]},
        "alpha_pattern": {n: a for n, (_, a) in sizes.items() if a != usual[1]},
    }  # fmt: skip
    return settings, tensors


def _plain(subject: Subject, config: peft.PeftConfig) -> dict[str, Any]:
    # Without a task PEFT leaves a classifier's head where it is.
    task = None if subject.template is None else "CAUSAL_LM"
    return files.settings_of(subject, config) | {"task_type": task}


def beyond(config: peft.PeftConfig) -> list[str]:
    """The settings of a LoRA under which its change of the weights is not just scaling * B @ A."""
    found = [name for name in _BEYOND if getattr(config, name, None)]
    found += ["bias"] if config.bias != "none" else []  # type: ignore[attr-defined]
    return found + (["init_lora_weights"] if config.init_lora_weights not in (True, False, "gaussian") else [])  # type: ignore[attr-defined]


def _plain_enough(config: peft.LoraConfig) -> None:
    if more := beyond(config):
        raise Unsupported(
            f"Units cannot be scaled inside a LoRA with '{more[0]}' set to {getattr(config, more[0])!r}; merge it into the "
            "base (PEFT's merge_and_unload), save that, and give it without an adapter."
        )


def _not_beside(config: peft.PeftConfig) -> Unsupported:
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if config.is_prompt_learning:
        what = f"PEFT keeps a prompt ({kind}) and changed weights in different adapters, and loads one"
        return Unsupported(f"{what}; give the base without its prompt, or a LoRA.")
    if not isinstance(config, peft.LoraConfig | peft.IA3Config) or type(config) is peft.AdaLoraConfig:
        return Unsupported(
            f"The subject has an adapter of kind {kind}, whose files cannot hold scaled units. A repair of it can change only "
            "the last layer. Merge it into its base (PEFT's merge_and_unload), save that, and give it without an adapter."
        )
    return Unsupported(f"The subject has an adapter of kind {kind}; scale its units with `scales_as_adapter`.")


def _nothing() -> BadInput:
    return BadInput("No unit is scaled, so there is nothing to put into an adapter; give a scale other than 1.")


def weight_of(module: Any) -> Tensor:
    """(out, inputs): the base weight of a projection."""
    layer = module.get_base_layer() if hasattr(module, "get_base_layer") else module
    return layer.weight.T if turned(layer) else layer.weight


def turned(module: Any) -> bool:
    layer = module.get_base_layer() if hasattr(module, "get_base_layer") else module
    return type(layer).__name__ == "Conv1D"
