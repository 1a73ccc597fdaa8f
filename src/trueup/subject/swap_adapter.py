"""Another adapter on the same base: a second model that shares every base weight with the first, and no adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor

from trueup.errors import Unsupported
from trueup.subject import adapter as files
from trueup.subject import checkpoint as door
from trueup.subject.linear import active
from trueup.subject.positions import check_runs, position_limit
from trueup.subject.quiet import quiet
from trueup.subject.sharing import copy_of
from trueup.subject.subject import Subject
from trueup.subject.weights import placed


def wear(subject: Subject, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Subject:
    """`subject` with another adapter in place of its own, given as PEFT's files hold it; `subject` is left as it is.

    The modules are new and the base weights are the very same tensors, so this costs the memory of the adapter alone.

    Raises:
        BadInput: the adapter does not fit the base.
    """
    base = _bare(subject)
    trainable = [(p, p.requires_grad) for p in base.parameters()]
    config = files.config_of(settings)
    if isinstance(config, peft.LoraConfig):
        # PiSSA and OLoRA take their start off the base weight. Here the base is the subject's, which has had that done.
        config.init_lora_weights = True
    try:
        with torch.random.fork_rng():  # PEFT draws a start for what is overwritten at once
            other = f"The adapter 'the repaired adapter' does not fit '{subject.source.base}'"
            model, _ = door.attach(base, config, dict(tensors), subject.anatomy, other=other)
        for p in model.parameters():
            p.requires_grad_(False)
    finally:  # PEFT froze the base, whose parameters are the subject's own
        for p, flag in trainable:
            p.requires_grad_(flag)
    placed(model.eval(), subject.device)
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    # A prompt takes positions that the subject's own adapter may have left to the text.
    room = min(subject.max_length, position_limit(subject.base.config, subject.anatomy, config))
    return replace(subject, model=model, source=replace(subject.source, peft_type=kind), max_length=room, head=None)


def cannot_run(subject: Subject, config: peft.PeftConfig) -> str | None:
    """Why PEFT cannot run a prompt or prefix with these settings on the subject's base, by trying; None where it can."""
    base = _bare(subject)
    trainable = [(p, p.requires_grad) for p in base.parameters()]
    config.task_type = peft.TaskType.SEQ_CLS if subject.template is None else peft.TaskType.CAUSAL_LM
    try:
        with torch.random.fork_rng(), quiet():
            model = peft.get_peft_model(base, config)
            check_runs(placed(model.eval(), subject.device), subject.anatomy)  # type: ignore[arg-type]
    except Unsupported as e:
        return str(e)
    finally:
        for p, flag in trainable:
            p.requires_grad_(flag)
    return None


def bare(subject: Subject) -> Subject:
    """The base alone, without the subject's adapter: new modules around the very same tensors. `subject` is left as it is."""
    source = replace(subject.source, adapter=None, peft_type=None)
    return replace(subject, model=_bare(subject).eval(), source=source, head=None)


def without_layers(subject: Subject) -> Subject:
    """The subject without what its adapter does to the base's layers or puts before the text, and with the classification head that
    the adapter brings. `subject` is left as it is: new modules around the very same tensors."""
    model, config = copy_of(subject.model), subject.peft_config
    source = subject.source
    if config is not None and config.is_prompt_learning:
        model, source = model.get_base_model(), replace(source, peft_type=None)
        for attribute in ("peft_config", "_hf_peft_config_loaded"):
            if attribute in model.__dict__:
                delattr(model, attribute)
        return replace(subject, model=model.eval(), source=source)
    heads = [] if subject.template is not None else subject.head_roots()
    for name, module in model.get_base_model().named_modules():
        in_head = isinstance(module, ModulesToSaveWrapper) and any(f"{name}.".startswith(f"{root}.") for root in heads)
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) and not in_head:
            module._disable_adapters = (
                True  # not `enable_adapters`, which changes what is trained of the shared tensors
            )
    return replace(subject, model=model.eval(), source=source)


def brings_head(subject: Subject) -> bool:
    """Whether the adapter brings a classification head that is not the base's own."""
    for name in [] if subject.template is not None or subject.peft_config is None else subject.head_roots():
        module = subject.base.get_submodule(name)
        if isinstance(module, ModulesToSaveWrapper):
            base_head = dict(module.original_module.state_dict())
            if any(not torch.equal(v, base_head[k]) for k, v in active(module).state_dict().items() if k in base_head):
                return True
    return False


def _bare(subject: Subject) -> Any:
    """The base without adapter: new modules around the base's own tensors."""
    with quiet():
        model = copy_of(subject.model)
        config = subject.peft_config
        if config is None:
            return model
        base = model.get_base_model()
        # First: `unload` would leave the adapter's own copies here, and prompts never take them off.
        for name, module in list(base.named_modules()):
            if isinstance(module, ModulesToSaveWrapper):
                parent, _, leaf = name.rpartition(".")
                setattr(base.get_submodule(parent) if parent else base, leaf, module.original_module)
        if not config.is_prompt_learning:
            base = model.unload()
    for attribute in ("peft_config", "_hf_peft_config_loaded"):
        if attribute in base.__dict__:
            delattr(base, attribute)
    return base


def with_prompt(subject: Subject, prompt: Tensor) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The subject's own soft-prompt adapter with another prompt (m, w): PEFT settings and weights, ready to be written.

    A prompt that came from p-tuning's encoder is written as plain prompt tuning, which is what it has become.
    """
    config, tensors = subject.peft_config, files.adapter_tensors(subject)
    sizes = {k: getattr(config, k) for k in ("token_dim", "num_layers", "num_attention_heads")}
    plain = peft.PromptTuningConfig(
        num_virtual_tokens=len(prompt), prompt_tuning_init="RANDOM", task_type=config.task_type,
        num_transformer_submodules=config.num_transformer_submodules, modules_to_save=config.modules_to_save, **sizes,
    )  # fmt: skip
    tensors["prompt_embeddings"] = prompt.detach().to("cpu", tensors["prompt_embeddings"].dtype).contiguous().clone()
    return files.settings_of(subject, plain), tensors
