"""PEFT adapters as files: reading one as untrusted input, and writing one that loads where trueup is not installed."""

from __future__ import annotations

import copy
import json
import pickle
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.ia3 import IA3Layer
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trueup.errors import BadInput, Unsupported, did_you_mean, listing
from trueup.store import schema
from trueup.store.schema import FLAG, TEXT, Kind, either, lists, mapping, number, one_of, optional, record, whole
from trueup.subject.anatomy import Anatomy
from trueup.subject.linear import active, map_of
from trueup.subject.places import SETTINGS, WEIGHTS
from trueup.subject.sharing import state_of
from trueup.subject.subject import Head, Subject

KINDS: dict[str, type[peft.PeftConfig]] = {
    "LORA": peft.LoraConfig,
    "PROMPT_TUNING": peft.PromptTuningConfig,
    "PREFIX_TUNING": peft.PrefixTuningConfig,
    "P_TUNING": peft.PromptEncoderConfig,
    "IA3": peft.IA3Config,
}
"""The adapter kinds whose shape trueup knows, so that every repair can start from them, by PEFT's own name."""

TASKS = ("SEQ_CLS", "CAUSAL_LM", None)
"""The tasks of adapters trueup examines, by PEFT's own name; one that names none says by its head what it is."""

_NEVER = (
    "auto_mapping", "runtime_config", "eva_config", "corda_config", "lora_bias_config", "lora_ga_config", "megatron_config",
    "megatron_core",
)  # fmt: skip
"""Settings that are not handed on: they name code to import, or say how training began, where nothing is trained."""

_NAMES = optional(either(TEXT, lists(TEXT)))
_LAYERS = optional(either(whole(), lists(whole())))
_REPLICATED = Kind(
    "a list of pairs that make 1,000 layers at most",
    lambda v: schema.wrong(v, lists(lists(whole(), 2))) is None and sum(stop - start for start, stop in v) <= 1000,
)
_ANY: dict[str, Kind] = {
    "base_model_name_or_path": optional(TEXT), "revision": optional(TEXT), "inference_mode": FLAG,
    "modules_to_save": optional(lists(TEXT)),
}  # fmt: skip
_PROMPT = _ANY | {
    "num_virtual_tokens": whole(1), "token_dim": optional(whole(1)), "num_transformer_submodules": optional(whole(1, 2)),
    "num_attention_heads": optional(whole(1)), "num_layers": optional(whole(1)),
}  # fmt: skip
_FORM: dict[str, dict[str, Kind]] = {
    "LORA": _ANY | {
        "r": whole(1), "lora_alpha": number(), "lora_dropout": number(0, 1), "fan_in_fan_out": FLAG, "lora_bias": FLAG,
        "bias": one_of("none", "all", "lora_only"), "use_rslora": FLAG, "use_dora": FLAG, "use_qalora": FLAG,
        "qalora_group_size": whole(1), "ensure_weight_tying": FLAG, "init_lora_weights": optional(either(FLAG, TEXT)),
        "target_modules": _NAMES, "exclude_modules": _NAMES, "layers_pattern": _NAMES, "layers_to_transform": _LAYERS,
        "target_parameters": optional(lists(TEXT)), "rank_pattern": optional(mapping(whole(1))),
        "alpha_pattern": optional(mapping(number())), "layer_replication": optional(_REPLICATED),
        "trainable_token_indices": optional(either(lists(whole()), mapping(lists(whole())))),
        "alora_invocation_tokens": optional(lists(whole())),
        "loftq_config": optional(record({"loftq_bits": whole(1, 8), "loftq_iter": whole()})),
    },
    "ADALORA": _ANY | {"init_r": whole(1), "rank_pattern": optional(mapping(lists(FLAG)))},
    "IA3": _ANY | {
        "target_modules": _NAMES, "exclude_modules": _NAMES, "feedforward_modules": _NAMES, "fan_in_fan_out": FLAG,
        "init_ia3_weights": FLAG,
    },
    "PROMPT_TUNING": _PROMPT,
    "PREFIX_TUNING": _PROMPT | {"encoder_hidden_size": optional(whole(1)), "prefix_projection": FLAG},
    "P_TUNING": _PROMPT | {
        "encoder_hidden_size": optional(whole(1)), "encoder_num_layers": whole(1, 100), "encoder_dropout": number(0, 1),
        "encoder_reparameterization_type": one_of("MLP", "LSTM"),
    },
}  # fmt: skip
"""What the settings of each kind of adapter hold, as far as anything here or in PEFT looks into them."""

_UNREAD = ("ADAPTION_PROMPT", "POLY", "SHADOW", "XLORA")
"""Kinds that are no prompt and are more than weights on one model: they load others, or want a task with every text."""

AUDITED: dict[str, type[peft.PeftConfig]] = KINDS | {
    name: c
    for k, c in peft.PEFT_TYPE_TO_CONFIG_MAPPING.items()
    if (name := str(k.value)) not in (*KINDS, *_UNREAD) and not issubclass(c, peft.PromptLearningConfig)
}
"""The adapter kinds trueup examines: those of `KINDS`, and every kind of changed weights that PEFT has. On the latter a repair can
change the last layer alone."""


def read_config(folder: Path) -> peft.PeftConfig:
    """The PEFT config in `folder`, read as untrusted input: known kinds only, known keys only, no code mapping.

    Raises:
        BadInput: no adapter here, broken JSON, or settings that PEFT refuses. Unsupported: a kind or task of adapter trueup
            does not examine.
    """
    raw = read_settings(folder)
    if isinstance(raw.get("target_modules"), str) and raw.get("layers_to_transform") is not None:
        # PEFT takes a pattern or a choice of layers, not both. The weights say which modules were meant.
        raw |= {"target_modules": _modules_in(folder), "layers_to_transform": None, "layers_pattern": None}
    try:
        return config_of(raw)
    except Exception as e:  # PEFT checks its settings in as many ways as there are
        message = " ".join(str(e).split())[:200].rstrip(".")
        raise BadInput(
            f"PEFT does not take the settings in '{folder / SETTINGS}' ({message}). Correct them, or save the adapter again."
        ) from e


def read_settings(folder: Path) -> dict[str, Any]:
    """What adapter_config.json in `folder` holds, once kind, task and form of every setting are known. Raises as `read_config`."""
    path = folder / SETTINGS
    again = "Save the adapter again."
    raw = schema.read(
        path, record({"peft_type": optional(TEXT), "task_type": optional(TEXT)}), otherwise=again, correct=again
    )
    check_kind(raw.get("peft_type"), f"The adapter in '{folder}'")
    check_task(raw.get("task_type"), f"The adapter in '{folder}'")
    form = _FORM.get(raw["peft_type"], _ANY)
    raw |= {k: False for k, kind in form.items() if kind is FLAG and k in raw and raw[k] is None}  # as PEFT takes it
    schema.check(raw, record(form), path, "Correct it, or save the adapter again.")
    if raw.get("megatron_config") is not None:
        raise Unsupported(
            f"The adapter in '{folder}' was made for layers of Megatron, which trueup does not load. Merge it into its base where "
            "Megatron is installed (PEFT's merge_and_unload), and give that folder without an adapter."
        )
    return raw


def _modules_in(folder: Path) -> list[str]:
    """The full names of the modules that the LoRA in `folder` adapts."""
    file = folder / WEIGHTS
    if not file.is_file():
        return []
    with safe_open(str(file), "pt") as saved:
        parts = [(k, k.find(".lora_")) for k in saved.keys()]  # noqa: SIM118
    return sorted({k[:at].removeprefix("base_model.model.") for k, at in parts if at > 0})


def known(settings: peft.PeftConfig) -> bool:
    """Whether an adapter is of a kind in `KINDS`."""
    return str(getattr(settings.peft_type, "value", settings.peft_type)) in KINDS


def check_kind(kind: Any, which: str) -> None:
    """Raises Unsupported when trueup does not examine adapters of this `kind` (PEFT's own name). `which`: "The adapter ..."."""
    if kind is None:
        raise Unsupported(
            f"{which} names no kind (peft_type in {SETTINGS}), so PEFT did not write it. Save it with PEFT's save_pretrained; the "
            "adapters of other libraries, such as AdapterHub's, are of other shapes: merge one into its base there, and give that "
            "folder without an adapter."
        )
    if (kind := str(getattr(kind, "value", kind))) in AUDITED:
        return
    known = [str(k.value) for k in peft.PEFT_TYPE_TO_CONFIG_MAPPING]
    close = did_you_mean(kind.upper(), AUDITED) if kind not in known else ""
    step = "Give one of these."
    if kind in known:
        step = (
            "PEFT cannot merge such an adapter into its base, so tune one of these kinds instead: `trueup tune lora MODEL "
            "--data ...`."
        )
    raise Unsupported(
        f"{which} is of kind '{kind}', which trueup does not examine.{close} It examines {listing(AUDITED, most=99)}. {step}"
    )


def check_task(task: Any, which: str) -> None:
    """Raises Unsupported when an adapter of this `task` (PEFT's own name) is no classifier. `which`: "The adapter ..."."""
    if (task := getattr(task, "value", task)) in TASKS:
        return
    step = "Give an adapter of one of these, or tune one on its base: `trueup tune lora MODEL --data ...`."
    if task == "FEATURE_EXTRACTION":
        step = (
            "Merge it into its base (PEFT's merge_and_unload), save that with its tokenizer, and tune a classifier on the folder: "
            "`trueup tune lora FOLDER --data ...`."
        )
    known = [str(t.value) for t in peft.TaskType]
    if close := "" if task in known else did_you_mean(str(task).upper(), [t for t in TASKS if t]):
        step = f"Correct task_type in its {SETTINGS}."
    raise Unsupported(
        f"{which} was trained for the task '{task}', and trueup examines classifiers of whole texts: "
        f"{listing([t for t in TASKS if t])}.{close} {step}"
    )


def check_sizes(config: peft.PeftConfig, tensors: Mapping[str, Tensor], other: str) -> None:
    """Raises BadInput where settings ask for a size that none of the adapter's own weights has, before PEFT allocates it."""
    largest = max((n for t in tensors.values() for n in t.shape), default=0)
    asked = {"num_virtual_tokens": getattr(config, "num_virtual_tokens", 0)}
    if isinstance(config, peft.AdaLoraConfig):  # whose r is not read, and whose pattern is of the ranks that are kept
        asked["init_r"] = config.init_r
    elif isinstance(config, peft.LoraConfig):
        asked["r"] = max([config.r, *(config.rank_pattern or {}).values()])
    for key, size in asked.items():
        if size > largest:
            raise BadInput(
                f"{other}: its settings ask for {key} {size}, and its weights have {largest} at most. Save the adapter again."
            )
    if isinstance(config, peft.AdaLoraConfig):
        for name, mask in (config.rank_pattern or {}).items():
            if len(mask) != config.init_r:
                raise BadInput(
                    f"{other}: its rank_pattern says of {len(mask)} ranks of '{name}' whether they are kept, and its init_r is "
                    f"{config.init_r}. Save the adapter again."
                )


def check_numbers(tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]], where: str) -> None:
    """Raises BadInput when a weight is NaN or infinite. `where`: the file or the adapter they stand in."""
    pairs = tensors.items() if isinstance(tensors, Mapping) else tensors
    wrong = [k for k, t in pairs if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    if wrong:
        raise BadInput(
            f"{where} holds NaN or infinite numbers in {listing(wrong, 4)}, so the model answers nothing. Training diverged, or "
            "the numbers outgrew half precision when they were saved. Give an earlier checkpoint, or train again with a lower "
            "learning rate, or in bfloat16."
        )


def config_of(raw: Mapping[str, Any]) -> peft.PeftConfig:
    """The PEFT config of settings as adapter_config.json holds them: known keys only, no code mapping.

    How a prompt was started is left out, and so is the text or tokenizer that it needs: the weights are there.
    """
    cls = AUDITED[str(getattr(raw["peft_type"], "value", raw["peft_type"]))]
    known = {f.name for f in fields(cls)} - set(_NEVER)
    known_settings = {k: v for k, v in raw.items() if k in known and k != "peft_type"}
    known_settings["inference_mode"] = True
    if cls is peft.PromptTuningConfig:
        known_settings["prompt_tuning_init"] = "RANDOM"
        for key in ("prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"):
            known_settings.pop(key, None)
    if isinstance(loftq := known_settings.get("loftq_config"), dict):
        known_settings["loftq_config"] = {k: int(loftq[k]) for k in ("loftq_bits", "loftq_iter") if k in loftq}
    return cls(**known_settings)


_NF4_TWICE = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
_AXOLOTL = "\naxolotl version:"
_TRAINED_ON = "The following `bitsandbytes` quantization config was used during training:"


def trained_on(folder: Path | None, settings: peft.PeftConfig | None) -> dict[str, Any] | None:
    """The quantisation of the base that an adapter was trained on, as settings of bitsandbytes; None where nothing says so.

    PEFT writes it into README.md where the config of the base names it, Axolotl writes there what it was given, and AutoTrain
    writes a file of its own. Else only a base's name tells (``...-bnb-4bit``).
    """
    page = folder / "README.md" if folder is not None else None
    if page is not None and page.is_file():
        text = ""
        with suppress(OSError, ValueError):  # a page of no end says nothing
            text = schema.plain_bytes(page).decode("utf-8", "replace")
        section = text.partition(_TRAINED_ON)[2]
        recorded = dict(re.findall(r"^- (\w+): ([\w.]+)$", section.split("#")[0], re.M))
        for bits in ("load_in_4bit", "load_in_8bit"):
            if recorded.get(bits) == "True":
                kind = {"bnb_4bit_quant_type": recorded.get("bnb_4bit_quant_type", "fp4"),
                        "bnb_4bit_use_double_quant": recorded.get("bnb_4bit_use_double_quant") == "True"}  # fmt: skip
                return {bits: True} | (kind if bits == "load_in_4bit" else {})
        if _AXOLOTL in text:
            parts = text.partition(_AXOLOTL)[2].split("```")  # what was given stands between the first two
            given = dict(re.findall(r"^(load_in_[48]bit|adapter): *['\"]?(\w+)", "".join(parts[1:2]), re.M))
            if given.get("load_in_4bit") == "true" or given.get("adapter") == "qlora":
                return dict(_NF4_TWICE)
            if given.get("load_in_8bit") == "true":
                return {"load_in_8bit": True}
    params = folder / "training_params.json" if folder is not None else None
    if params is not None and params.is_file():
        written: Any = None
        with suppress(OSError, ValueError, RecursionError):  # a file of another program says nothing
            written = json.loads(schema.plain_bytes(params))
        kind = written.get("quantization") if isinstance(written, dict) else None
        if kind == "int4":
            return _NF4_TWICE | {"bnb_4bit_use_double_quant": False}
        if kind == "int8":
            return {"load_in_8bit": True}
    name = str(getattr(settings, "base_model_name_or_path", None) or "").lower()
    if re.search(r"bnb-4bit(-\w+)?$", name):
        return dict(_NF4_TWICE)
    return None


def started(config: peft.PeftConfig, which: str) -> tuple[str, ...]:
    """What a reader must know of how a LoRA was started, in sentences; `config` is changed to what can be loaded.

    Most starts say only where training begins: ``gaussian``, ``orthogonal``, ``eva`` and ``mica`` leave the base as it is, and
    so does loading. PiSSA and OLoRA take their start off the base's weights, and PEFT does so again when it loads them.

    Raises:
        BadInput: a start that PEFT cannot make again (CorDA).
    """
    start = getattr(config, "init_lora_weights", True)
    if type(config) is not peft.LoraConfig or not isinstance(start, str):
        return ()
    conversion = "model.save_pretrained(..., path_initial_model_for_weight_conversion=...)"
    if start == "corda":
        raise BadInput(
            f"{which} was started by CorDA, which takes its start off the base's weights, and neither its files nor PEFT can do "
            f"that again. Save it as a plain LoRA with {conversion}. If the base that you give is the one that was left over, set "
            "init_lora_weights to true in adapter_config.json."
        )
    if start == "loftq" and not (torch.cuda.is_available() and find_spec("bitsandbytes")):
        bits = dict(config.loftq_config).get("loftq_bits", 4)  # type: ignore[call-overload, arg-type]
        config.init_lora_weights, config.loftq_config = True, {}
        return (
            f"{which} was started by LoftQ beside base weights rounded to {bits} bits. PEFT makes these again on a CUDA device "
            "alone; here the adapter was put on the base as it is. If that is not the rounded base, figures can differ a little.",
        )
    if start == "lora_ga":
        return (
            f"{which} was started by LoRA-GA, which takes its start off the base's weights in training. PEFT does not do that "
            f"again when it loads, so the figures are those of the adapter as PEFT loads it. To keep what was trained, save it "
            f"with {conversion}.",
        )
    if start.startswith("pissa_niter"):
        return (
            f"{which} was started by a PiSSA that draws random numbers ({start}), and PEFT draws others each time it loads it: "
            f"figures of two loads can differ. To keep what was trained, save it with {conversion}.",
        )
    return ()


def read_tensors(folder: Path, *, allow_pickle: bool = False) -> dict[str, Tensor]:
    """The adapter's weights.

    Raises:
        BadInput: they are missing, damaged, no finite numbers, or a pickle and `allow_pickle` is False.
    """
    safe, pickled = folder / WEIGHTS, folder / "adapter_model.bin"
    try:
        tensors = None
        if safe.is_file():
            tensors = load_file(str(safe))
        elif pickled.is_file() and allow_pickle:
            tensors = torch.load(pickled, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:  # whose text tells how to run it all the same
        raise BadInput(more_than_tensors(pickled)) from e
    except Exception as e:  # safetensors and torch each raise their own kinds for damaged files
        message = " ".join(str(e).split())[:200] or "the file ends too soon"
        raise BadInput(f"The adapter weights in '{folder}' are damaged ({message}). Save the adapter again.") from e
    if tensors is not None:
        file = safe if safe.is_file() else pickled
        tensors = _named(tensors, file)
        check_numbers(tensors, f"'{file}'")
        return tensors
    if pickled.is_file():
        raise BadInput(
            f"'{pickled}' is a pickle, which can run code when loaded. Save the adapter again with "
            "`save_pretrained(..., safe_serialization=True)`, or pass --allow-pickle if you trust its author."
        )
    raise BadInput(f"'{folder}' has an adapter_config.json but no adapter_model.safetensors. Save the adapter again.")


def more_than_tensors(what: object) -> str:
    """The refusal of a pickle that torch does not read with ``weights_only``."""
    return (
        f"'{what}' is no plain file of tensors: it is damaged, or loading it would run code of its own. Nothing of it was run, and "
        "--allow-pickle does not run it either. Ask its author for safetensors."
    )


_WRAPPED = re.compile(
    r"^module\.|(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|modules_to_save\.default)\.|^(base_model\.model\.){2}"
)
"""Names of weights inside a wrapper of torch (compile, DDP, FSDP, checkpoints), or of a PeftModel's own state.

PEFT's files name a resized head ``lm_head.modules_to_save.weight``, without the adapter's name.
"""
_ADAPTER = re.compile(r"(\.lora_(?:embedding_)?[AB])\.default(?=$|\.weight$)")
"""The name of the adapter within that of a weight: PEFT reads it, where another program has left it there."""


def _named(tensors: Any, file: Path) -> dict[str, Tensor]:
    """The weights under the names that PEFT gives them.

    Raises:
        BadInput: they are no mapping of names to tensors, or a wrapper has named them: PEFT would leave them out in silence.
    """
    if not isinstance(tensors, Mapping) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in tensors.items()
    ):
        raise BadInput(
            f"'{file}' holds something else than names and their tensors, so it is no adapter as PEFT saves it. Save the adapter "
            "again with the PeftModel's save_pretrained."
        )
    if wrapped := [k for k in tensors if _WRAPPED.search(k)]:
        raise BadInput(
            f"'{file}' names its weights as a wrapped model does, such as '{wrapped[0]}', and PEFT finds no place for these. Save "
            "the adapter again with save_pretrained of the PeftModel inside (accelerator.unwrap_model takes DDP, FSDP and "
            "torch.compile off)."
        )
    plain = {_ADAPTER.sub(r"\1", k): v for k, v in tensors.items()}
    return plain if len(plain) == len(tensors) else dict(tensors)


def adapter_tensors(subject: Subject) -> dict[str, Tensor]:
    """The active adapter's weights under PEFT's file names, copied to the CPU; empty where there is no adapter.

    With the model's embeddings where the adapter brings them (`Source.vocabulary`).
    """
    if subject.peft_config is None:
        return {}
    model = subject.model
    state = peft.get_peft_model_state_dict(
        model, state_of(model), adapter_name=model.active_adapter, save_embedding_layers=False
    )
    if subject.source.vocabulary:
        state |= embeddings_of(model)
    return {k: v.detach().to("cpu").contiguous().clone() for k, v in state.items()}


def embeddings_of(model: Any) -> dict[str, Tensor]:
    """The embeddings of a live PeftModel under the names that PEFT saves them by, and those that it leaves out.

    Where one of the two embeddings is adapted, PEFT saves that one alone, and new rows of the other would be lost.
    """
    name, base = model.active_adapter, model.get_base_model()
    own_tables, every = (
        peft.get_peft_model_state_dict(model, state_of(model), adapter_name=name, save_embedding_layers=e)
        for e in (False, True)
    )
    found = {k: v for k, v in every.items() if k not in own_tables}
    words, heads = base.get_input_embeddings(), base.get_output_embeddings()
    tied = heads is not None and heads.weight is words.weight
    for module in (words,) if heads is None or tied else (words, heads):
        at = next(n for n, m in model.named_modules() if m is module)
        if isinstance(module, nn.Embedding | nn.Linear):
            found |= {f"{at}.{k}": v for k, v in state_of(module).items()}
        elif isinstance(module, BaseTunerLayer):
            found |= {f"{at}.base_layer.{k}": v for k, v in state_of(module.get_base_layer()).items()}
    return found


def settings_of(subject: Subject, config: peft.PeftConfig) -> dict[str, Any]:
    """The settings of `config` as adapter_config.json holds them, for an adapter on the subject's base."""
    return config.to_dict() | {
        "inference_mode": True, "base_model_name_or_path": subject.source.base, "revision": subject.source.revision,
    }  # fmt: skip


def adapter_of(subject: Subject) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The subject's active adapter as PEFT's files hold it: settings and weights."""
    return settings_of(subject, subject.peft_config), adapter_tensors(subject)


def head_in(tensors: Mapping[str, Tensor], anatomy: Anatomy) -> Head:
    """The last linear layer among an adapter's weights; a zero bias where the family's has none."""
    name = next(k for k in tensors if k.endswith(f"{anatomy.head}.weight"))
    weight = tensors[name]
    return Head(weight, tensors.get(name.removesuffix("weight") + "bias", weight.new_zeros(len(weight))))


def in_place(subject: Subject, head: Head) -> Head:
    """A head of the subject's own classes, in as many rows as the model's own has: of two where a sigmoid reads one, how far the
    second is above the first."""
    if not subject.sigmoid:
        return head
    return Head(head.weight[1:] - head.weight[:1], head.bias[1:] - head.bias[:1])


def adapter_with_head(subject: Subject, head: Head) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The subject's adapter with `head` for a classification head: PEFT settings and weights, ready to be written.

    A causal model with a verbaliser becomes a sequence classifier on the same base: its ``score`` layer holds the
    language-model head's rows at the class words, so the logits are the same numbers. A subject without an adapter
    gets one dormant rank-1 LoRA (B = 0) to carry the head.

    Raises:
        Unsupported: transformers has no sequence classifier for this family, the head needs a bias that the family's
            layer lacks, or a layer of the head that cannot be read as a matrix.
    """
    anatomy, words = subject.anatomy, subject.template is not None
    if not anatomy.head:
        raise Unsupported(
            f"transformers has no sequence classifier for '{anatomy.model_type}', so a head cannot be saved as an adapter."
        )
    biased = not words and subject.head_layer().bias is not None
    if not biased and bool(head.bias.abs().max() > 0):
        last = subject.head_layer()
        if (
            words
            and getattr(last.get_base_layer() if isinstance(last, BaseTunerLayer) else last, "bias", None) is not None
        ):
            raise Unsupported(
                f"The language-model head of '{anatomy.model_type}' has a bias and its classification head has none, so a head "
                "over answer words cannot be saved as its adapter. Train a classification head instead: `trueup tune lora MODEL "
                "--data ...`."
            )
        if bool(subject.own_head().bias.abs().max() > 0):
            raise Unsupported(
                f"The adapter adds a bias to the head (lora_bias), and the classification head of '{anatomy.model_type}' has none, "
                "so no other head can be saved in its place. Train the adapter without lora_bias."
            )
        raise Unsupported(f"The classification head of '{anatomy.model_type}' has no bias; give a head without one.")
    if words and anatomy.discovered:
        _says_the_same(subject, head)
    config = subject.peft_config
    prompt = config is not None and config.is_prompt_learning
    if config is not None and not hasattr(config, "modules_to_save"):
        raise Unsupported(
            f"PEFT keeps no head in an adapter of kind {subject.source.peft_type} (it has no modules_to_save), so none can be "
            "saved on top of it. Merge it into its base (PEFT's merge_and_unload), save that, and give it without an adapter."
        )
    if isinstance(config, peft.PrefixTuningConfig) and subject.template is not None:
        _prefix_on_a_classifier(anatomy)
    prefix = "base_model." if prompt else "base_model.model."
    roots = subject.head_roots()
    settings, tensors = (
        _dormant(subject) if config is None else _apart(subject, config.to_dict(), adapter_tensors(subject), roots)
    )
    if not words:
        # As it is now, also where the adapter changed it layer by layer: what PEFT keeps whole it does not adapt as well.
        whole = {f"{n}.{k}": v for n in roots for k, v in _whole(subject.base.get_submodule(n)).items()}
        tensors = {f"{prefix}{k}": v.detach().cpu().clone() for k, v in whole.items()} | tensors
    tensors[f"{prefix}{anatomy.head}.weight"] = head.weight.detach().cpu().float().contiguous()
    if biased:
        tensors[f"{prefix}{anatomy.head}.bias"] = head.bias.detach().cpu().float().contiguous()
    settings |= {
        "task_type": "SEQ_CLS",
        "inference_mode": True,
        "auto_mapping": None,
        "revision": subject.source.revision,
    }
    settings["base_model_name_or_path"] = subject.source.base
    if not prompt:
        settings["modules_to_save"] = sorted({*(settings.get("modules_to_save") or ()), anatomy.head_root})
    return settings, tensors


def _says_the_same(subject: Subject, head: Head) -> None:
    """Raises Unsupported unless transformers' sequence classifier, around the very same backbone, gives `head` the final state of
    the last token as its input."""
    import transformers

    from trueup.subject.quiet import quiet

    base: Any = subject.base
    config, family = copy.deepcopy(base.config), subject.anatomy.model_type
    config.num_labels = len(head.weight)
    ids = torch.tensor([[i for i in range(1, 16) if i != subject.pad_token_id][:6]], device=subject.device)
    try:
        with quiet(), torch.no_grad():
            with torch.device("meta"), torch.random.fork_rng():
                net: Any = transformers.AutoModelForSequenceClassification.from_config(config)
            setattr(net, net.base_model_prefix, base.base_model)
            last = net.get_submodule(subject.anatomy.head)
            last.weight = nn.Parameter(head.weight.to(ids.device, next(base.parameters()).dtype), requires_grad=False)
            model_logits = net.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].float()
            states = base.base_model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
            layer_logits = states[0, -1].float() @ last.weight.float().T
    except Exception as e:  # whatever else stands around its backbone
        raise _another_classifier(family, " ".join(f"{type(e).__name__}: {e}".split())[:160]) from e
    off = float((model_logits - layer_logits).abs().max() / layer_logits.abs().max().clamp(min=1e-6))
    if not off <= (1e-4 if last.weight.dtype == torch.float32 else 0.05):
        raise _another_classifier(family, f"its logits are off by {off:.2g} of their size")


def _another_classifier(family: str, why: str) -> Unsupported:
    return Unsupported(
        f"transformers' sequence classifier of '{family}' does not read the last token's final state with its head as the language "
        f"model does ({why}), so a head over answer words cannot be saved as its adapter. Train a classification head instead: "
        "`trueup tune lora MODEL --data ...`."
    )


def _whole(module: Any) -> dict[str, Tensor]:
    """The weights of a part of the model as it computes now, under the base's own names."""
    module = active(module)
    if isinstance(module, BaseTunerLayer):
        weight, bias = map_of(module)
        return {"weight": weight} | ({} if bias is None else {"bias": bias})
    state = {k: v for k, v in state_of(module).items() if "." not in k}
    return state | {f"{n}.{k}": v for n, part in module.named_children() for k, v in _whole(part).items()}


def _apart(
    subject: Subject, settings: dict[str, Any], tensors: dict[str, Tensor], roots: list[str]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The adapter without what it adds to the modules `roots`, or brings of them where they are a language model's head."""
    live: dict[str, Any] = {n: m for n, m in subject.base.named_modules() if isinstance(m, LoraLayer | IA3Layer)}
    gone = {n for n in live if any(f"{n}.".startswith(f"{r}.") for r in roots)}
    left = gone | set(roots) if subject.template is not None else gone
    if subject.template is not None:
        saved = [n for n in settings.get("modules_to_save") or () if not any(f".{r}".endswith(f".{n}") for r in roots)]
        if "modules_to_save" in settings:
            settings["modules_to_save"] = saved or None
        if isinstance(single := settings.get("trainable_token_indices"), dict):
            settings["trainable_token_indices"] = {k: v for k, v in single.items() if k not in roots} or None
    under = tuple(f"{prefix}{n}." for n in left for prefix in ("base_model.model.", "base_model."))
    tensors = {k: v for k, v in tensors.items() if not k.startswith(under)}
    if not gone:
        return settings, tensors
    in_both = sorted(live.keys() - gone)
    if not in_both:  # the adapter was the head's alone
        carrier, dormant = _dormant(subject)
        whole_parts = {k: settings.get(k) for k in ("modules_to_save", "trainable_token_indices")}
        return carrier | {k: v for k, v in whole_parts.items() if v}, tensors | dormant
    # Full names: a pattern, or the end of a name, would reach the head again.
    settings |= {
        "target_modules": in_both,
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
    }
    if "feedforward_modules" in settings:
        settings["feedforward_modules"] = [n for n in in_both if live[n].is_feedforward]
    if settings.get("ensure_weight_tying"):
        settings["ensure_weight_tying"] = False
    return settings, tensors


def _prefix_on_a_classifier(anatomy: Anatomy) -> None:
    """Raises Unsupported where the installed PEFT cannot run a prefix on a sequence classifier of this family, by a tiny one."""
    import transformers

    from trueup.subject.positions import check_runs
    from trueup.subject.quiet import quiet
    from trueup.subject.tiny import SIZES

    family = anatomy.model_type
    if family not in SIZES:
        raise Unsupported(
            f"A prefix under a head cannot be tried beforehand on '{family}', which was discovered; use a prompt or a LoRA."
        )
    config = transformers.AutoConfig.for_model(family, **SIZES[family], vocab_size=8, pad_token_id=0)
    with torch.random.fork_rng(), quiet():
        model = transformers.AutoModelForSequenceClassification.from_config(config)
        settings = peft.PrefixTuningConfig(task_type=peft.TaskType.SEQ_CLS, num_virtual_tokens=1)
        check_runs(peft.get_peft_model(model, settings).eval(), anatomy)  # type: ignore[arg-type]


def _dormant(subject: Subject) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not subject.anatomy.lora:
        raise Unsupported(
            f"'{subject.anatomy.model_type}' has no linear layer beside its head on which an adapter could stand, so a head "
            "cannot be saved as one."
        )
    target, inside = subject.anatomy.lora[0], f".{subject.anatomy.layers}."
    names = [n for n, m in subject.base.named_modules() if f".{n}".endswith(f".{target}") and hasattr(m, "weight")]
    # In the layers that read text, where a model has towers beside them.
    name = next((n for n in names if inside in f".{n}."), names[0])
    layer = subject.base.get_submodule(name)
    rows, columns = map(int, layer.weight.shape)  # type: ignore[union-attr,arg-type]
    if type(layer).__name__ == "Conv1D":
        rows, columns = columns, rows
    fan = type(layer).__name__ == "Conv1D"
    config = peft.LoraConfig(r=1, lora_alpha=1, target_modules=[name], fan_in_fan_out=fan, task_type="SEQ_CLS")
    settings = {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
    return settings, {
        f"base_model.model.{name}.lora_A.weight": torch.zeros(1, columns),
        f"base_model.model.{name}.lora_B.weight": torch.zeros(rows, 1),
    }


def brought(subject: Subject) -> Any:
    """The tokenizer that a saved adapter has to bring along: the subject's, unless it is the base's own."""
    return subject.tokenizer if subject.source.tokenizer else None


def write_adapter(
    folder: Path, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], tokenizer: Any = None
) -> None:
    """PEFT's two files into `folder`, which the caller makes whole or not at all, and a tokenizer where one is given."""
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in settings.items()}
    plain = {k: getattr(v, "value", v) for k, v in plain.items()}
    (folder / "adapter_config.json").write_text(json.dumps(plain, indent=2, sort_keys=True, default=str) + "\n")
    save_file({k: v.contiguous() for k, v in tensors.items()}, str(folder / WEIGHTS))
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


P0 = "p0.safetensors"
"""Where a tuned prompt keeps the prompt it started from: tensor ``prompt_embeddings``, (tokens, width)."""


def read_start(folder: Path | None) -> Tensor | None:
    """The prompt (m, w) that a tuned prompt in `folder` started from; None where nothing kept it, or it is damaged."""
    if folder is None or not (folder / P0).is_file():
        return None
    try:
        return load_file(str(folder / P0))["prompt_embeddings"].float()
    except Exception:  # safetensors raises its own kinds; a start that cannot be read is as good as none
        return None


def save_tuned(subject: Subject, folder: Path, *, start: Tensor | None = None) -> None:
    """The active adapter as plain PEFT saves it, and the prompt it started from where there is one."""
    write_adapter(folder, *adapter_of(subject), brought(subject))
    if start is not None:
        save_file({"prompt_embeddings": start.contiguous()}, str(folder / P0))
