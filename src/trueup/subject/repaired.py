"""A saved repair opened as plain PEFT opens it, and written in other forms: merged into its base, or as a LoRA of one rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft.tuners.ia3 import IA3Layer
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from trueup.errors import BadInput, Unsupported
from trueup.subject import adapter as files
from trueup.subject import checkpoint as door
from trueup.subject import tokens
from trueup.subject.anatomy import Anatomy
from trueup.subject.discover import anatomy_of
from trueup.subject.linear import active
from trueup.subject.quiet import quiet
from trueup.subject.sharing import copy_of
from trueup.subject.subject import head_layer
from trueup.subject.units import Adapter, beyond, turned, weight_of

SHARD = "2GB"
"""The most that one file of weights holds."""


@dataclass(frozen=True, eq=False)
class Repaired:
    """A saved repair on its base.

    Attributes:
        model: the PeftModel in float32 on the CPU, in eval mode. tokenizer, anatomy: of its base.
        card: what trueup wrote beside it. settings: PEFT's own.
        causal: it writes words; else it is a sequence classifier.
        base: loads the base alone once more. folder: where the repair is saved.
    """

    model: Any
    tokenizer: Any
    anatomy: Anatomy
    card: Mapping[str, Any]
    settings: Mapping[str, Any]
    causal: bool
    base: Callable[[], Any]
    folder: Path

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.card.get("classes") or ())

    @property
    def head(self) -> Any:
        """The last layer of a classifier, as it runs."""
        return head_layer(
            self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model, self.anatomy
        )


def open_repaired(folder: Path, card: Mapping[str, Any], model: str | None = None) -> Repaired:
    """The repair in `folder` on its base, or on `model`, where that is moved.

    Raises:
        BadInput: the base is not named, or is another than the one that the repair was made for. Else as `load`.
    """
    settings, tensors = files.read_settings(folder), files.read_tensors(folder)
    name = model or str(card["base"])
    if name == door.UNNAMED:
        raise BadInput(
            f"The repair in '{folder}' was made on a live model, and no name is known under which its base loads again. Save that "
            "base with save_pretrained, and give its folder with --model."
        )
    where = door.resolve(name)
    options: dict[str, Any] = {"revision": card.get("revision")}
    config = door.read_model_config(where, name, **options)
    causal = settings.get("task_type") == "CAUSAL_LM"
    if getattr(config, "quantization_config", None) is not None or card.get("quantised"):
        raise Unsupported(
            f"The weights of '{name}' are quantised, and a repair put into them would be rounded to as few bits again: other "
            "logits than those that were examined. Give the base in 16 or 32 bits with --model, or serve the adapter itself on the "
            f"quantised base, with PEFT: '{folder}'."
        )
    anatomy = anatomy_of(config, words=causal)
    rows = next(
        (int(v.shape[0]) for k, v in tensors.items() if anatomy.head and k.endswith(f".{anatomy.head}.weight")), 0
    )
    cls = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForSequenceClassification
    labels: dict[str, Any] = {} if causal else {"num_labels": rows or int(getattr(config, "num_labels", 2))}
    has_tokenizer = tokens.has_one(folder)
    tokenizer = door.load_tokenizer(str(folder) if has_tokenizer else where, str(folder) if has_tokenizer else name,
                                    **({} if has_tokenizer else options))  # fmt: skip
    peft_config = files.read_config(folder)
    files.started(peft_config, f"The repair in '{folder}'")
    other = f"The repair in '{folder}' does not fit '{name}'"

    def base() -> tuple[Any, list[str]]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net, missing = door.load_base(cls, where, name, device="cpu", **options, **labels)
        door.set_padding(net, tokenizer)
        door.fit_vocabulary(net, tensors, other)
        return net, missing

    net, missing = base()
    with torch.random.fork_rng():
        wrapped, _ = door.attach(net, peft_config, tensors, anatomy, other=other)
    if lost := [m for m in missing if not any(m in k for k in tensors)]:
        raise BadInput(
            f"{other}: the base lacks {lost[0]}, and the repair does not bring it. Give the base with --model."
        )
    for p in wrapped.parameters():
        p.requires_grad_(False)
    return Repaired(wrapped.eval(), tokenizer, anatomy, card, settings, causal, lambda: base()[0], folder)


def merged(repair: Repaired) -> Any:
    """The base with the repair in its weights, as a transformers model of its own.

    Raises:
        Unsupported: a prompt or a prefix, which is no change of weights; or a kind that PEFT does not merge.
    """
    _no_prompt(repair.model, "merged into its base")
    with quiet():
        try:
            # Shared with the repair until here: merging writes to the weights.
            copies = {id(p): nn.Parameter(p.detach().clone(), False) for p in repair.model.parameters()}
            net = copy_of(repair.model, copies).merge_and_unload(safe_merge=True)
        except Exception as e:  # PEFT has a reason for each kind
            kind = repair.settings.get("peft_type")
            raise Unsupported(
                f"PEFT does not merge this adapter of kind {kind} ({' '.join(str(e).split())[:160].rstrip('.')}). Serve it as it "
                "is."
            ) from e
    for attribute in ("peft_config", "_hf_peft_config_loaded"):
        if attribute in net.__dict__:
            delattr(net, attribute)
    return net.eval()


def with_classes(net: Any, anatomy: Anatomy, classes: Sequence[str], *, sigmoid: bool = False) -> tuple[Tensor, Tensor]:
    """Cut the last layer of a classifier to its own classes, and name these in its config; returns the rows that were cut, (k, d),
    and their biases (k,)."""
    layer, rows = active(head_layer(net, anatomy)), 1 if sigmoid else len(classes)
    weight, bias = (
        layer.weight.data,
        layer.bias.data if layer.bias is not None else layer.weight.new_zeros(len(layer.weight)),
    )
    layer.weight, layer.out_features = nn.Parameter(weight[:rows].clone(), False), rows
    if layer.bias is not None:
        layer.bias = nn.Parameter(bias[:rows].clone(), False)
    # One logit has one name in transformers: that of the class for which its sigmoid is the probability.
    names = classes[1:] if sigmoid else classes
    net.config.id2label = dict(enumerate(names))
    net.config.label2id = {n: i for i, n in enumerate(names)}
    if hasattr(net, "num_labels"):
        net.num_labels = rows
    return weight[rows:].clone(), bias[rows:].clone()


def as_lora(repair: Repaired) -> Adapter:
    """The repair as a LoRA of one rank in all layers and a scaling of 1, which servers read that know no patterns of ranks.

    An IA3 is written with one rank for each factor other than 1: of inputs B = W[:, u] (s_u - 1) and A one-hot, of outputs
    B one-hot and A = (s_u - 1) W[u]. Smaller ranks are filled up with zeros.

    Raises:
        Unsupported: a prompt or a prefix; a kind that is neither; an IA3 on the outputs of a layer with a bias.
    """
    _no_prompt(repair.model, "written as a LoRA")
    config = repair.model.peft_config[repair.model.active_adapter]
    base, name = repair.model.get_base_model(), repair.model.active_adapter
    parts: dict[str, tuple[Tensor, Tensor]] = {}
    layers: dict[str, Any] = dict(base.named_modules())
    if type(config) is peft.LoraConfig:
        if more := beyond(config):
            raise Unsupported(
                f"The repair's LoRA has '{more[0]}' set to {getattr(config, more[0])!r}, which servers do not read in a LoRA; "
                "export it merged."
            )
        for at, layer in layers.items():
            if isinstance(layer, LoraLayer) and name in layer.lora_embedding_A:
                raise Unsupported(
                    "The repair's LoRA changes embeddings, which servers do not take in a LoRA; export it merged."
                )
            if isinstance(layer, LoraLayer) and name in layer.lora_A:
                down: Any = layer.lora_A[name]
                up: Any = layer.lora_B[name]
                parts[at] = down.weight.data, up.weight.data * layer.scaling[name]
    elif isinstance(config, peft.IA3Config):
        for at, layer in layers.items():
            if isinstance(layer, IA3Layer) and name in layer.ia3_l:
                parts[at] = _from_ia3(at, layer, layer.ia3_l[name].data.flatten())
    else:
        kind = repair.settings.get("peft_type")
        raise Unsupported(f"An adapter of kind {kind} is no LoRA and cannot be written as one; export it merged.")
    parts = {at: (a, b) for at, (a, b) in parts.items() if len(a)}
    if not parts:
        raise Unsupported("The repair changes no layer that a LoRA could carry; export it merged.")
    rank = max(len(a) for a, _ in parts.values())
    tensors = {}
    for at, (a, b) in parts.items():
        tensors[f"base_model.model.{at}.lora_A.weight"] = torch.cat([a, a.new_zeros(rank - len(a), a.shape[1])])
        tensors[f"base_model.model.{at}.lora_B.weight"] = torch.cat([b, b.new_zeros(len(b), rank - b.shape[1])], dim=1)
    saved_tensors = peft.get_peft_model_state_dict(repair.model, adapter_name=name, save_embedding_layers=False)
    tensors |= {k: v for k, v in saved_tensors.items() if ".lora_" not in k and not k.endswith(".ia3_l")}
    lora = peft.LoraConfig(
        r=rank, lora_alpha=rank, target_modules=sorted(parts), fan_in_fan_out=turned(base.get_submodule(next(iter(parts)))),
        modules_to_save=getattr(config, "modules_to_save", None), task_type=config.task_type,
    )  # fmt: skip
    about = {k: repair.settings.get(k) for k in ("base_model_name_or_path", "revision")}
    settings = lora.to_dict() | about | {"inference_mode": True}
    return settings, {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}


def _from_ia3(at: str, layer: Any, scale: Tensor) -> tuple[Tensor, Tensor]:
    weight, units = weight_of(layer).detach(), (scale != 1).nonzero()[:, 0]
    hot = torch.zeros(len(units), len(scale)).scatter_(1, units[:, None], 1.0)
    if layer.is_feedforward:
        return hot, (weight[:, units] * (scale[units] - 1)).contiguous()
    bias = getattr(layer.get_base_layer(), "bias", None)
    if bias is not None and bool((bias[units] != 0).any()):
        raise Unsupported(f"The IA3 scales the bias of '{at}' as well, which no LoRA can; export it merged.")
    return (weight[units] * (scale[units] - 1)[:, None]).contiguous(), hot.T.contiguous()


def _no_prompt(model: Any, what: str) -> None:
    config = model.peft_config[model.active_adapter]
    if config.is_prompt_learning:
        kind = "prefix" if config.peft_type.value == "PREFIX_TUNING" else "prompt"
        raise Unsupported(
            f"A {kind} cannot be {what}: it is {config.num_virtual_tokens} trained vectors that stand before every text, and no "
            "change of weights. transformers with PEFT serves it as it is: PeftModel.from_pretrained."
        )


def saved(net: Any, tokenizer: Any, folder: Path) -> None:
    """A transformers model and its tokenizer into `folder`, in safetensors of at most `SHARD` each."""
    with quiet():
        net.save_pretrained(folder, max_shard_size=SHARD)
        tokenizer.save_pretrained(folder)


def opened(folder: Path, causal: bool, tokenizer: Any) -> Any:
    """What `saved` wrote, as transformers loads it. A cut of its padding is that of `tokenizer`."""
    cls = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForSequenceClassification
    with quiet():
        net = cls.from_pretrained(folder, dtype=torch.float32).eval()
    door.set_padding(net, tokenizer)
    return net


def with_adapter(repair: Repaired, folder: Path) -> Any:
    """The repair's base, loaded anew, with the adapter in `folder`, as PEFT loads it.

    Raises:
        Unsupported: PEFT does not put it on this family.
    """
    with quiet():
        try:
            return peft.PeftModel.from_pretrained(repair.base(), str(folder)).eval()
        except ValueError as e:
            message = " ".join(str(e).split())[:200].rstrip(".")
            raise Unsupported(
                f"PEFT puts no such LoRA on '{repair.anatomy.model_type}' ({message}). Export it merged."
            ) from e
