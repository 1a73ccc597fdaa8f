"""From a live model to a Subject: a view of it, so that the user's own model cannot be changed.

The view has modules of its own around the very same storage: no weight is copied, and training modes, requires_grad,
gradients, hooks, device and adapter state of the user's model are out of reach. A hook that the user has put there is part
of what the model computes and runs in the view as well. What training changes later is seen by the view too.

A saved repair names the base it belongs to, and some repairs load that base again. A live model remembers the name it came
from, but may have been trained since; so where that checkpoint is on this machine, its weights are compared with the live
ones. Without a name that holds, the base is called `checkpoint.UNNAMED`: a repair is saved all the same, to be put on the base
that the user has, and repairs that need to load it again are not offered.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from safetensors import safe_open
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from trueup.errors import BadInput, TrueupError, Unsupported, listing
from trueup.subject import adapter as files
from trueup.subject import checkpoint as door
from trueup.subject import tokens
from trueup.subject.anatomy import Anatomy, check_words
from trueup.subject.discover import anatomy_of, in_batches, tried
from trueup.subject.discover import told as told_of
from trueup.subject.linear import map_of
from trueup.subject.outputs import check_names, own_names
from trueup.subject.positions import longest, most_tokens, position_limit
from trueup.subject.quiet import quiet
from trueup.subject.sharing import copy_of, state_of
from trueup.subject.subject import SoftmaxResponse, Source, Subject, head_layer
from trueup.subject.template import template_of
from trueup.subject.weights import inside, numbers, settled


def adopt(
    model: Any,
    tokenizer: Any = None,
    *,
    classes: Sequence[str] | None = None,
    template: str | None = None,
    verbaliser: Sequence[str] | None = None,
    shots: int | None = None,
    chat: bool = False,
    max_length: int | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> Subject:
    """A view of a live PeftModel or transformers model as a Subject; `model` and `tokenizer` stay as they are.

    Args: as `trueup.load`.

    Raises:
        BadInput: no such model, a model without a head and no verbaliser, an adapter that is merged, switched off or one of
            several active, weights on several devices, or no tokenizer. Unsupported: a family, adapter kind or task that
            trueup does not know.
    """
    _check_kind(model)
    base, settings = _opened(model)
    files.check_numbers(numbers(base), f"This {type(base).__name__}")
    what = type(base).__name__
    chosen = template_of(template, verbaliser, shots, chat)
    causal = what in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() or what.endswith(("ForCausalLM", "LMHeadModel"))
    anatomy = anatomy_of(base.config, words=causal, trust_remote_code=trust_remote_code)
    check_words(anatomy, chosen)
    if chosen is not None and not causal:
        raise BadInput(f"A {what} answers with its head and not with a word; leave template, verbaliser and shots out.")
    if causal and chosen is None:
        raise BadInput(
            f"A {what} has no classification head; give `template` and `verbaliser`, so that it answers with a word, or `shots`."
        )
    sigmoid = multi_label = False
    if not causal:
        outputs = _head_rows(base, anatomy)
        multi_label = door.check_head(base.config, outputs, what)
        names, sigmoid = tuple(classes or own_names(base.config.id2label, outputs)), outputs == 1
        outputs = 2 if sigmoid else outputs
    elif shots is not None:
        outputs, names = 0, ()
    else:
        words = tuple(verbaliser or ())
        outputs, names = len(words), tuple(classes or (w.strip() for w in words))
    check_names(names, outputs)
    revision, notes = door.pinned(settings, str(getattr(base.config, "_name_or_path", "") or ""), revision)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    tokenizer, another, differs = _tokenizer(tokenizer, base, **options)
    rows = tokens.rows_of(base)
    before = _as_it_was(base, **options)
    resized = before is not None and settings is not None and rows > 0 and getattr(before, "vocab_size", rows) != rows
    if rows and (another or resized):
        tokens.check_rows(tokenizer, rows, "The tokenizer")
    if chosen is not None and (chosen.shots is None or chosen.chat):
        door.check_template(tokenizer, chosen)
    view = view_of(model)
    inside = view.get_base_model() if settings is not None else view
    anatomy = tried(inside, anatomy, tokenizer, words=causal)
    if settings is not None and not files.known(settings):
        anatomy = in_batches(inside, anatomy, tokenizer, words=causal)
    check_words(anatomy, chosen)
    name = base_name(base, settings, anatomy, revision)
    if getattr(base.config, "quantization_config", None) is not None and not hasattr(before, "quantization_config"):
        name = door.UNNAMED  # the weights under that name are not quantised
    unnamed = before is not None and before.id2label == base.config.id2label and not classes
    subject = Subject(
        model=settled(view.eval()),
        tokenizer=tokenizer,
        anatomy=anatomy,
        classes=names,
        source=Source(
            name, None, _kind(settings), revision, allow_pickle, trust_remote_code,
            tokenizer="given" if another else None, vocabulary=rows if resized else 0,
            borrowed=not causal and unnamed and _brings_head(base, anatomy), 
            told=(*notes, *differs, *told_of(anatomy), *(door.through_sigmoid(names) if sigmoid else ())),
        ),
        max_length=longest(
            max_length,
            most_tokens(base.config, anatomy, tokenizer, settings),
            position_limit(base.config, anatomy, settings),
        ),
        template=chosen,
        confidence=SoftmaxResponse(len(names)),
        sigmoid=sigmoid,
        multi_label=multi_label,
    )  # fmt: skip
    door.prove_head(subject)
    return subject


def view_of(model: nn.Module) -> Any:
    """A model with modules of its own around the storage of `model`; its parameters ask for no gradient.

    Raises:
        Unsupported: a module of it cannot be copied.
    """
    shared: dict[int, Any] = {
        id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters() if type(p) is nn.Parameter
    }
    shared |= {id(b): b.detach() for b in model.buffers()}
    with quiet():
        try:
            return copy_of(model, shared)
        except Exception as e:
            raise Unsupported(
                f"No view can be had of this {type(model).__name__} ({' '.join(str(e).split())[:160]}). Take off what wraps it "
                "(accelerator.unwrap_model), or save it and give its folder."
            ) from e


def base_name(base: Any, settings: peft.PeftConfig | None, anatomy: Anatomy, revision: str | None) -> str:
    """The name under which the base's weights load again, as far as this machine can tell; else `checkpoint.UNNAMED`."""
    remembered = getattr(base.config, "_name_or_path", "") or getattr(settings, "base_model_name_or_path", None) or ""
    gone = str(remembered).startswith((".", "/", "~")) or str(remembered).count("/") > 1
    if not remembered or (gone and not Path(remembered).is_dir()):
        return door.UNNAMED
    files = door.weight_files(str(remembered), revision)
    if not files:
        # A hub id that is not in the cache (any more) cannot be compared with, and is taken at its word. A folder that is
        # here could have been, but for its format.
        return door.UNNAMED if Path(remembered).is_dir() else str(remembered)
    return str(remembered) if _same_weights(base, settings, anatomy, files) else door.UNNAMED


_MODELS = (peft.PeftModel, transformers.PreTrainedModel)


def _check_kind(model: Any) -> None:
    name = type(model).__name__
    if isinstance(model, peft.PeftMixedModel):
        raise Unsupported(f"A {name} mixes adapters of several kinds; give a PeftModel with one.")
    if isinstance(model, type):
        raise BadInput(
            f"{model.__name__} is a class. Give a model: what its from_pretrained returns, or the name of one."
        )
    wraps = (BaseTunerLayer, ModulesToSaveWrapper)
    if isinstance(model, BaseTuner) or (
        isinstance(model, transformers.PreTrainedModel)
        and not getattr(model, "_hf_peft_config_loaded", False)
        and any(isinstance(m, wraps) for m in model.modules())
    ):
        raise BadInput(
            f"This {name} is the inside of a PeftModel: it holds the layers of an adapter, and not the adapter's settings. "
            "Give the PeftModel itself."
        )
    if not isinstance(model, _MODELS):
        # Of a Trainer or a pipeline, of DistributedDataParallel, and of torch.compile.
        inside = (n for n in ("_orig_mod", "module", "model") if isinstance(getattr(model, n, None), _MODELS))
        at = next(inside, None)
        given = (
            f"the model inside it, its attribute '{at}'"
            if at
            else "a PeftModel, a transformers model, or the name of one"
        )
        raise BadInput(f"This {name} is no model that can be examined. Give {given}.")
    places = sorted({str(p.device) for p in model.parameters()})
    if len(places) > 1 or "meta" in places:
        raise BadInput(f"The model lies on {listing(places)}; put it on one device with model.to(...) first.")


def _opened(model: Any) -> tuple[Any, peft.PeftConfig | None]:
    """The transformers model inside, and the settings of the one active adapter."""
    if not isinstance(model, peft.PeftModel):
        if getattr(model, "_hf_peft_config_loaded", False):
            raise Unsupported(
                "The adapter was put in by transformers' own add_adapter or load_adapter. Save it with "
                "model.save_pretrained(folder), put it on with PeftModel.from_pretrained(base, folder), and give that."
            )
        return model, None
    base, active = model.get_base_model(), list(model.active_adapters)
    if len(active) != 1 or active[0] not in model.peft_config:
        raise BadInput(f"The adapters {listing(active)} are active; activate exactly one with model.set_adapter(name).")
    settings = model.peft_config[active[0]]
    files.check_kind(settings.peft_type, f"The adapter '{active[0]}'")
    files.check_task(settings.task_type, f"The adapter '{active[0]}'")
    layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
    if any(m.merged for m in layers):
        raise BadInput("The adapter is merged into the base's weights; take it out with model.unmerge_adapter() first.")
    if getattr(model, "_adapters_disabled", False) or any(m.disable_adapters for m in layers):
        raise BadInput(
            "The adapter is switched off; switch it on with model.enable_adapter_layers(), or give the base alone."
        )
    state = peft.get_peft_model_state_dict(model, state_of(model), adapter_name=active[0], save_embedding_layers=False)
    files.check_numbers(state, f"The adapter '{active[0]}'")
    return base, settings


def _kind(settings: peft.PeftConfig | None) -> str | None:
    return None if settings is None else str(getattr(settings.peft_type, "value", settings.peft_type))


def _head_rows(base: Any, anatomy: Anatomy) -> int:
    what = type(base).__name__
    if not what.endswith("ForSequenceClassification") or not anatomy.head:
        raise Unsupported(
            f"A {what} is no classifier of texts; give a ...ForSequenceClassification, or a ...ForCausalLM with a verbaliser."
        )
    try:
        return len(map_of(head_layer(base, anatomy))[0])
    except (AttributeError, Unsupported) as e:
        raise Unsupported(
            f"The head of this {what} is not '{anatomy.head}', the linear layer that '{anatomy.model_type}' has there; give the "
            "model with its usual head."
        ) from e


def _brings_head(base: Any, anatomy: Anatomy) -> bool:
    """Whether the adapter keeps a head of its own in place of the base's."""
    return any(isinstance(m, ModulesToSaveWrapper) and n.endswith(anatomy.head_root) for n, m in base.named_modules())


def _as_it_was(base: Any, **options: Any) -> Any:
    """The config of the checkpoint that `base` came from; None where it is not on this machine."""
    name = str(getattr(base.config, "_name_or_path", "") or "")
    with quiet():
        try:
            return transformers.AutoConfig.from_pretrained(name, local_files_only=True, **options) if name else None
        except Exception:  # no such name, or nothing under it
            return None


def _tokenizer(given: Any, base: Any, **options: Any) -> tuple[Any, bool, tuple[str, ...]]:
    """The tokenizer that was given, or that of the base's name; whether it may be another than that one, and in what it is."""
    remembered = str(getattr(base.config, "_name_or_path", "") or "")
    if given is None:
        try:
            if not remembered:
                raise BadInput("Its config remembers no name.")
            return door.load_tokenizer(remembered, remembered, **options), False, ()
        except TrueupError as e:
            raise BadInput(
                f"This {type(base).__name__} does not say which tokenizer it reads text with ({e}) Give it: tokenizer=..."
            ) from e
    if not isinstance(given, transformers.PreTrainedTokenizerBase):
        raise BadInput(f"A {type(given).__name__} is no tokenizer of transformers; give what AutoTokenizer returns.")
    # A copy: reading long texts sets its truncation, and a padding token may have to be named.
    given = door.padded(copy.deepcopy(given), remembered or type(base).__name__)
    try:
        found = tokens.differences(given, door.load_tokenizer(remembered, remembered, local_files_only=True, **options))
    except Exception:  # nothing to compare with on this machine, or nothing that can read
        return given, True, ()
    notes = (f"The tokenizer that was given is not the base's: {'; '.join(found)}.",) if found else ()
    return given, bool(found), notes


def _same_weights(base: Any, settings: peft.PeftConfig | None, anatomy: Anatomy, files: list[Path]) -> bool:
    """Whether the weights in `files` are those of `base`, wherever the two use the same name and shape.

    Left out: the head where a saved repair carries it, and the weights that an adapter took its start off.
    """
    live: dict[str, Tensor] = {}
    head: set[str] = set()
    replaced = getattr(settings, "init_lora_weights", True) not in (True, False, "gaussian")
    tuned = {n for n, m in base.named_modules() if replaced and isinstance(m, BaseTunerLayer)}
    carried = settings is None
    for name, tensor in state_of(base).items():
        if "modules_to_save." in name and f"{anatomy.head_root}." in name:
            carried = True
        plain = name.replace(".base_layer.", ".").replace(".original_module.", ".")
        live[plain] = tensor
        if anatomy.head_root and plain.split(".")[0].endswith(anatomy.head_root):
            head.add(plain)
    skipped = {n for n in live if any(n.startswith(f"{t}.") for t in tuned)} | (head if carried else set())
    compared: set[str] = set()
    prefix = f"{base.base_model_prefix}."
    for file in files:
        with safe_open(str(file), "pt") as saved:
            for key in saved.keys():  # noqa: SIM118
                name = next((k for k in (key, prefix + key, key.removeprefix(prefix)) if k in live), None)
                if name is None or name in skipped or not live[name].is_floating_point():
                    continue
                saved_weight, live_weight = saved.get_tensor(key), live[name].detach()
                if saved_weight.shape != live_weight.shape:
                    continue
                if len(inside(live_weight)) > 1 or not torch.equal(
                    saved_weight.to(live_weight.dtype), live_weight.cpu()
                ):
                    return False
                compared.add(name)
    return bool(compared) and (carried or head <= compared)
