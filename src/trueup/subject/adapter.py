"""PEFT adapters as files: reading one as untrusted input, and writing one that loads where trueup is not installed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trueup.errors import BadInput, Unsupported, did_you_mean, listing
from trueup.subject.anatomy import Anatomy
from trueup.subject.subject import Head, Subject

KINDS: dict[str, type[peft.PeftConfig]] = {
    "LORA": peft.LoraConfig,
    "PROMPT_TUNING": peft.PromptTuningConfig,
    "PREFIX_TUNING": peft.PrefixTuningConfig,
    "P_TUNING": peft.PromptEncoderConfig,
    "IA3": peft.IA3Config,
}
"""The adapter kinds trueup examines, by PEFT's own name."""

TASKS = ("SEQ_CLS", "CAUSAL_LM", None)
"""The tasks of adapters trueup examines, by PEFT's own name; one that names none says by its head what it is."""

CARD = "trueup.json"
"""What trueup adds beside PEFT's two files: class names, template, seed, fingerprints. PEFT ignores it."""

_NEVER = ("auto_mapping", "runtime_config", "eva_config", "corda_config", "loftq_config", "lora_bias_config")


def read_config(folder: Path) -> peft.PeftConfig:
    """The PEFT config in `folder`, read as untrusted input: known kinds only, known keys only, no code mapping.

    Raises:
        BadInput: no adapter here, or broken JSON. Unsupported: a kind or task of adapter trueup does not examine.
    """
    path = folder / "adapter_config.json"
    if not path.is_file():
        found = sorted(p.name for p in folder.iterdir())[:8] if folder.is_dir() else []
        raise BadInput(
            f"'{folder}' is no PEFT adapter: it has no adapter_config.json (found {listing(found)}). "
            "Give the folder that `save_pretrained` or `trueup tune` wrote."
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as e:
        raise BadInput(f"'{path}' is not readable JSON ({e}). Save the adapter again.") from e
    if not isinstance(raw, dict):
        raise BadInput(f"'{path}' holds {type(raw).__name__}, not an object of settings. Save the adapter again.")
    kind = str(raw.get("peft_type"))
    if kind not in KINDS:
        raise Unsupported(
            f"The adapter in '{folder}' is of kind '{kind}', which trueup does not examine.{did_you_mean(kind, KINDS)} "
            f"It examines {listing(KINDS)}."
        )
    if (task := raw.get("task_type")) not in TASKS:
        raise Unsupported(
            f"The adapter in '{folder}' was trained for the task '{task}', and trueup examines classifiers of whole texts: "
            f"{listing([t for t in TASKS if t])}."
        )
    return config_of(raw)


def config_of(raw: Mapping[str, Any]) -> peft.PeftConfig:
    """The PEFT config of settings as adapter_config.json holds them: known keys only, no code mapping."""
    cls = KINDS[str(getattr(raw["peft_type"], "value", raw["peft_type"]))]
    known = {f.name for f in fields(cls)} - set(_NEVER)
    kept = {k: v for k, v in raw.items() if k in known and k != "peft_type"}
    kept["inference_mode"] = True
    return cls(**kept)


def read_tensors(folder: Path, *, allow_pickle: bool = False) -> dict[str, Tensor]:
    """The adapter's weights.

    Raises:
        BadInput: they are missing, damaged, or a pickle and `allow_pickle` is False.
    """
    safe, pickled = folder / "adapter_model.safetensors", folder / "adapter_model.bin"
    try:
        if safe.is_file():
            return load_file(str(safe))
        if pickled.is_file() and allow_pickle:
            return torch.load(pickled, map_location="cpu", weights_only=True)
    except Exception as e:  # safetensors and torch each raise their own kinds for damaged files
        raise BadInput(f"The adapter weights in '{folder}' are damaged ({e}). Save the adapter again.") from e
    if pickled.is_file():
        raise BadInput(
            f"'{pickled}' is a pickle, which can run code when loaded. Save the adapter again with "
            "`save_pretrained(..., safe_serialization=True)`, or pass --allow-pickle if you trust its author."
        )
    raise BadInput(f"'{folder}' has an adapter_config.json but no adapter_model.safetensors. Save the adapter again.")


def read_card(folder: Path | None) -> dict[str, Any]:
    """trueup's own card beside an adapter, or an empty dict."""
    path = folder / CARD if folder else None
    if path is None or not path.is_file():
        return {}
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise BadInput(f"'{path}' is not readable JSON ({e}). Delete it, or save the adapter again.") from e
    if not isinstance(card, dict):
        return {}
    _check_tuned(path, card.get("tuned"))
    return card


def _check_tuned(path: Path, tuned: Any) -> None:
    """What `trueup tune` noted of itself may have been edited by hand: refused by file and key before anything reads it."""
    rows: list[tuple[str, Any, bool, str]] = [("tuned", tuned, isinstance(tuned, dict), "an object of settings")]
    if isinstance(tuned, dict):
        also = tuned.get("also")
        whole = {k: type(tuned.get(k)) is int and tuned[k] >= 0 for k in ("seed", "limit")}
        rows = [
            ("tuned.data", tuned.get("data"), isinstance(tuned.get("data"), str), "the name of the data"),
            ("tuned.seed", tuned.get("seed"), whole["seed"], "a whole number, 0 or above"),
            ("tuned.limit", tuned.get("limit"), whole["limit"], "a whole number, 0 or above"),
            (
                "tuned.also",
                also,
                isinstance(also, list) and all(isinstance(d, str) for d in also),
                "a list of names of data",
            ),
            ("tuned.training", tuned.get("training"), isinstance(tuned.get("training"), dict), "an object of settings"),
        ]
    for key, value, right, wanted in rows:
        if value is not None and not right:
            raise BadInput(
                f"'{path}' holds {json.dumps(value)[:60]} for '{key}', which is {wanted}. Correct it, or delete '{key}'."
            )


def adapter_tensors(subject: Subject) -> dict[str, Tensor]:
    """The active adapter's weights under PEFT's file names, copied to the CPU; empty where there is no adapter."""
    if subject.peft_config is None:
        return {}
    state = peft.get_peft_model_state_dict(
        subject.model, adapter_name=subject.model.active_adapter, save_embedding_layers=False
    )
    return {k: v.detach().to("cpu").contiguous().clone() for k, v in state.items()}


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


def adapter_with_head(subject: Subject, head: Head) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The subject's adapter with `head` for a classification head: PEFT settings and weights, ready to be written.

    A causal model with a verbaliser becomes a sequence classifier on the same base: its ``score`` layer holds the
    language-model head's rows at the class words, so the logits are the same numbers. A subject without an adapter
    gets one dormant rank-1 LoRA (B = 0) to carry the head.

    Raises:
        Unsupported: transformers has no sequence classifier for this family, the head needs a bias that the family's
            layer lacks, or the adapter retrains the embeddings.
    """
    anatomy = subject.anatomy
    if not anatomy.head:
        raise Unsupported(
            f"transformers has no sequence classifier for '{anatomy.model_type}', so a head cannot be saved as an adapter."
        )
    if subject.template is not None:
        biased = False
    else:
        biased = subject.head_layer().bias is not None
    if not biased and bool(head.bias.abs().max() > 0):
        raise Unsupported(f"The classification head of '{anatomy.model_type}' has no bias; give a head without one.")
    config = subject.peft_config
    tensors = adapter_tensors(subject)
    prompt = config is not None and config.is_prompt_learning
    prefix = "base_model." if prompt else "base_model.model."
    if any("lm_head" in k or "embed_tokens" in k for k in tensors):
        raise Unsupported("The adapter retrains embeddings or the language-model head; its head cannot be replaced.")
    if config is None:
        settings, tensors = _dormant(subject)
    else:
        settings = config.to_dict()
    if not any(anatomy.head in k for k in tensors) and subject.template is None:
        # PEFT keeps every module whose name ends so: DistilBERT's pre_classifier beside its classifier.
        roots = [(n, m) for n, m in subject.base.named_modules() if n.endswith(anatomy.head_root)]
        names = {f"{n}.{k}": v for n, m in roots for k, v in m.state_dict().items() if "modules_to_save" not in k}
        tensors |= {f"{prefix}{k.replace('original_module.', '')}": v.detach().cpu().clone() for k, v in names.items()}
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


def _dormant(subject: Subject) -> tuple[dict[str, Any], dict[str, Tensor]]:
    target = subject.anatomy.lora[0]
    names = [n for n, m in subject.base.named_modules() if n.endswith("." + target) and hasattr(m, "weight")]
    name, layer = names[0], subject.base.get_submodule(names[0])
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


def write_adapter(folder: Path, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """PEFT's two files into `folder`, which the caller makes whole or not at all."""
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in settings.items()}
    plain = {k: getattr(v, "value", v) for k, v in plain.items()}
    (folder / "adapter_config.json").write_text(json.dumps(plain, indent=2, sort_keys=True, default=str) + "\n")
    save_file({k: v.contiguous() for k, v in tensors.items()}, str(folder / "adapter_model.safetensors"))


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
    write_adapter(folder, *adapter_of(subject))
    if start is not None:
        save_file({"prompt_embeddings": start.contiguous()}, str(folder / P0))
