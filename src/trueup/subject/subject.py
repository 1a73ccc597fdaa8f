"""The noun Subject: an adapted language model under examination, as a frozen value around a live model."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from trueup.errors import listing
from trueup.measure.calibration import softmax
from trueup.subject.anatomy import Anatomy
from trueup.subject.few_shot_tokens import first_tokens, wording
from trueup.subject.linear import active, map_of
from trueup.subject.template import Shots, Template
from trueup.subject.weights import Weights, device_in, inside, offloaded, scales

Confidence = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Head:
    """A linear head that stands in for the model's own: logits = features @ weight.T + bias. (K, d) and (K,)."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class SoftmaxResponse:
    """The confidence of an unrepaired classifier: max_c softmax(logits)_c over its C classes. Higher is surer."""

    classes: int

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        return softmax(logits[:, : self.classes]).max(axis=1)


@dataclass(frozen=True)
class Source:
    """Where a subject came from: the base's name as the user gave it, the adapter's folder or id, its PEFT type.

    What follows `revision` is no part of what the subject is: two that differ in it alone are equal, with one fingerprint.

    Attributes:
        allow_pickle, trust_remote_code: what the user allowed, for a repair that loads the base again.
        seen: which examples the adapter has learnt from (``data``, ``seed``, ``limit``, ``cluster``, fingerprint of ``train``), for
            the card of a repair.
        tokenizer: where the tokenizer came from, if it is another than the base's own. A saved repair then brings it along.
        vocabulary: rows of the embeddings that the adapter brings with it, as PEFT saves them where the vocabulary was
            resized or they were adapted; 0 where it brings none. A saved repair brings them along.
        borrowed: the class names are the base's, and the adapter brings another head: they may be those of another task.
        told: what a reader of the report must know of how it was loaded, in whole sentences.
        weights: how the base's weights were loaded, for a repair that loads it again.
    """

    base: str
    adapter: str | None = None
    peft_type: str | None = None
    revision: str | None = None
    allow_pickle: bool = field(default=False, repr=False, compare=False)
    trust_remote_code: bool = field(default=False, repr=False, compare=False)
    seen: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)
    tokenizer: str | None = field(default=None, repr=False, compare=False)
    vocabulary: int = field(default=0, repr=False, compare=False)
    borrowed: bool = field(default=False, repr=False, compare=False)
    told: tuple[str, ...] = field(default=(), repr=False, compare=False)
    weights: Weights = field(default=Weights(), repr=False, compare=False)


@dataclass(frozen=True, eq=False)
class Subject:
    """The adapted model that trueup examines. It is frozen: a repaired subject is another Subject around the same live model.

    Attributes:
        model: a transformers model, or a PeftModel around one, in eval mode.
        tokenizer: the tokenizer of the model, with a padding token.
        anatomy: the model family: where its layers, its head and its units are.
        classes: C class names, in the order of the logits.
        source: where the model was loaded from.
        max_length: the longest input in tokens. A longer text is truncated at its end. In a prompt, only the text is truncated.
        template: the prompt of a causal model that answers with a word. None for a model with a classification head.
        head: a linear layer with K >= C outputs that replaces the model's own last one, after a repair. The first C outputs
            are the classes. None: the model's own.
        confidence: a function from logits (n, K) to the probability (n,) that the predicted class is right. Higher means more
            certain.
        sigmoid: True if the model's head has one logit, whose sigmoid is the probability of the second of two classes. trueup
            then uses the two logits 0 and this one: their softmax gives the same probability.
        multi_label: True if each logit has its own sigmoid, so that a text can have any number of the classes. A computation that
            needs exactly one class for each text uses the view of one label (`of_label`).
    """

    model: Any
    tokenizer: Any
    anatomy: Anatomy
    classes: tuple[str, ...]
    source: Source
    max_length: int
    template: Template | None = None
    head: Head | None = None
    confidence: Confidence = SoftmaxResponse(2)
    sigmoid: bool = False
    multi_label: bool = False

    def __repr__(self) -> str:
        adapter = f", adapter {self.source.adapter!r}" if self.source.adapter else ""
        kind = f" ({self.source.peft_type})" if self.source.peft_type else ""
        return f"Subject({self.source.base!r}{adapter}{kind}, classes {listing(self.classes)}, at most {self.max_length} tokens)"

    def of_label(self, place: int) -> Subject:
        """A view of one label of a multi-label head, as two classes: without the label, and with it.

        The two logits are 0 and the label's logit. Their softmax gives the label's sigmoid.

        Args:
            place: the index of the label in `classes`.
        """
        head, name = self.head or self.own_head(), self.classes[place]
        weight, bias = (
            torch.stack([torch.zeros_like(t[place]), t[place]]).to(self.device) for t in (head.weight, head.bias)
        )
        return replace(
            self,
            classes=(f"not {name}", name),
            head=Head(weight, bias),
            confidence=SoftmaxResponse(2),
            multi_label=False,
        )

    @property
    def device(self) -> torch.device:
        return device_in(self.base)

    @property
    def base(self) -> nn.Module:
        """The transformers model inside, with the adapter's layers if the adapter adds layers to the model."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

    @property
    def peft_config(self) -> Any:
        """The PEFT config of the active adapter, or None without an adapter."""
        if not hasattr(self.model, "peft_config"):
            return None
        return self.model.peft_config[self.model.active_adapter]

    @property
    def soft_prompted(self) -> bool:
        """True if the adapter puts trained embeddings before the text: prompt tuning or p-tuning, but not prefix tuning."""
        return self.source.peft_type in ("PROMPT_TUNING", "P_TUNING")

    @property
    def quantised(self) -> bool:
        """True if the base's weights are stored in fewer bits than are used to compute."""
        return getattr(self.base.config, "quantization_config", None) is not None  # type: ignore[union-attr]

    @property
    def pad_token_id(self) -> int | None:
        """The padding token in the model's config; None if it names none."""
        return getattr(self.base.config.get_text_config(), "pad_token_id", None)  # type: ignore[union-attr, operator]

    def own_head(self) -> Head:
        """The classifier's last linear layer, or the rows of the language-model head for the answer words (verbaliser).

        The weight (C, d) and the bias (C,) are detached copies in float32 on the CPU. The bias is 0 if the layer has none.
        """
        head = self.head_map()
        weight, bias = head.weight.detach(), head.bias.detach()
        return Head(weight.to("cpu", torch.float32, copy=True), bias.to("cpu", torch.float32, copy=True))

    def head_map(self) -> Head:
        """The live last layer as a matrix. It is trainable if the adapter trains it, and includes the factor by which some
        language models multiply their logits."""
        weight, bias = map_of(self.head_layer(), None if self.template is None else self.verbaliser_ids())
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        if self.sigmoid:
            weight, bias = (torch.cat([torch.zeros_like(t), t]) for t in (weight, bias))
        scale = 1.0 if self.template is None else self.anatomy.scale
        return Head(weight, bias) if scale == 1 else Head(weight * scale, bias * scale)

    def head_layer(self) -> Any:
        """The live last layer. It is the active adapter's copy if PEFT keeps a copy of the head, and the adapter's layer if the
        adapter changes the head. `linear.map_of` reads it as a matrix.
        """
        if self.template is not None:
            return active(self.base.get_output_embeddings())  # type: ignore[operator]
        return head_layer(self.base, self.anatomy)

    def head_roots(self) -> list[str]:
        """The names of the head's modules in `base`: the language-model head, or all modules that PEFT would save as the
        classification head (for DistilBERT, pre_classifier and classifier).
        """
        if self.template is not None:
            head: Any = self.base.get_output_embeddings()  # type: ignore[operator]
            return [n for n, m in self.base.named_modules() if m is head]
        return [n for n, _ in self.base.named_modules() if n.endswith(self.anatomy.head_root)]

    def verbaliser_ids(self) -> list[int]:
        """For each answer word, the id of the token that tells it from the others: its first token, or in a few-shot prompt the
        first one after the tokens that all answers start with."""
        assert self.template is not None
        if self.template.shots is not None:
            return [answer[0] for answer in wording(self.tokenizer, self.template).answers]
        return first_tokens(self.tokenizer, self.template)

    @property
    def shots(self) -> Shots | None:
        """The demonstrations of a few-shot prompt, or None."""
        return None if self.template is None else self.template.shots

    @property
    def fingerprint(self) -> str:
        """The sha256 of all parameters, buffers, hooks, training modes and requires_grad flags, and of `head`.

        Two subjects with equal fingerprints are the same model in the same state.
        """
        h = hashlib.sha256(model_fingerprint(self.model).encode())
        settings = (self.classes, self.source, self.max_length, self.template, self.confidence, self.pad_token_id)
        h.update(repr(settings).encode())
        h.update(repr(self.shots and self.shots.pool).encode())
        for t in (self.head.weight, self.head.bias) if self.head else ():
            h.update(_raw(t))
        return h.hexdigest()


def head_layer(base: nn.Module, anatomy: Anatomy) -> Any:
    """The last layer of a sequence classifier, seen through PEFT's ``modules_to_save`` wrapper."""
    module: nn.Module = base
    for name in anatomy.head.split("."):
        module = active(getattr(module, name))
    return module


def _raw(tensor: Tensor) -> memoryview:
    """The bytes, not copied where they lie on the CPU as they are."""
    return tensor.detach().to("cpu").contiguous().flatten().view(torch.uint8).numpy().data


def model_fingerprint(model: nn.Module) -> str:
    """sha256 over weights, buffers, hooks, training modes, requires_grad and adapter settings of a live model."""
    h = hashlib.sha256()
    for name, module in model.named_modules():
        h.update(f"{name}{module.training}".encode())
    for name, parameter in model.named_parameters():
        h.update(f"{name}{parameter.requires_grad}".encode())
    return _computes(model, h)


def body_fingerprint(subject: Subject) -> str:
    """sha256 over what decides the input of the last linear layer, and every state before it, in eval mode.

    Two classifiers that differ only in that layer's numbers, or in what is trained, have the same.
    """
    # An answer word's layer may share its weight with the embeddings, which stand at the other end.
    head = () if subject.template is not None else tuple(map(id, subject.head_layer().parameters()))
    return _computes(subject.model, hashlib.sha256(repr(subject.pad_token_id).encode()), without=head)


_NAMING = {
    "_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype", "_attn_implementation", "id2label",
    "label2id", "problem_type", "pad_token_id", "use_cache", "output_attentions", "output_hidden_states", "return_dict",
    "quantization_config", "auto_map",
}  # fmt: skip
"""Keys of a config that change nothing of what is computed, or stand in the weights themselves."""


def _computes(model: nn.Module, h: Any, without: tuple[int, ...] = ()) -> str:
    """The digest of `h` and all that changes what the model computes in a given mode; parameters by id are left out.

    The same weights are asked for before every pass. A checksum takes a third of the time: it tells that they are as they were when
    they were hashed (another state has the same once in 4 billion times), and stands in no digest.
    """
    parts, mark = _parts(model, without), 0
    for part in parts:
        mark = zlib.crc32(
            _raw(part) if isinstance(part, Tensor) else part if isinstance(part, bytes) else part.mark, mark
        )
    known, key = _HASHED.setdefault(model, {}), (h.digest(), mark)
    if key not in known:
        for part in parts:
            h.update(
                _raw(part) if isinstance(part, Tensor) else part if isinstance(part, bytes) else _raw(part.fetch())
            )
        known[key] = h.hexdigest()
    return known[key]


_HASHED: WeakKeyDictionary[nn.Module, dict[tuple[bytes, int], str]] = WeakKeyDictionary()


@dataclass(frozen=True)
class _Away:
    """A weight that is not in memory. No pass changes what it is fetched from, so that `mark` stands for it between passes."""

    mark: bytes
    fetch: Callable[[], Tensor]


def _parts(model: nn.Module, without: tuple[int, ...]) -> list[bytes | Tensor | _Away]:
    """What `_computes` is the digest of, in its order."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    # Heads, eps, windows, factors: what the config says and no tensor does. Not what only names or loads it.
    settings = {k: v for k, v in base.config.to_dict().items() if k not in _NAMING}  # type: ignore[union-attr, operator]
    parts: list[bytes | Tensor | _Away] = [repr(sorted(settings.items())).encode()]
    away = offloaded(model)
    for name, parameter in model.named_parameters():
        if id(parameter) not in without:
            tensors = (
                [_Away(f"{name} away".encode(), away[name])] if name in away else [t for _, t in inside(parameter)]
            )
            parts += [f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode(), *tensors]
    for name, buffer in model.named_buffers():
        parts += [name.encode(), buffer]
    for name, module in model.named_modules():
        hooks = (
            len(module._forward_hooks), len(module._forward_pre_hooks),
            len(module._backward_hooks), len(module._backward_pre_hooks),
        )  # fmt: skip
        parts += [f"{name}{hooks}".encode(), *scales(module)]
        # What of an adapter is no tensor and yet changes what is computed: its scale, and which of it is on.
        if isinstance(module, PeftModel):
            parts.append(f"{module.active_adapter}{module._adapters_disabled}".encode())
        elif isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            attributes = vars(
                module
            )  # a wrapper passes on what it lacks, such as the number that attention calls its scaling
            scale = sorted((k, float(v)) for k, v in attributes.get("scaling", {}).items())
            switches = (attributes.get("merged_adapters"), attributes.get("is_feedforward"))
            parts.append(f"{module.active_adapters}{module.disable_adapters}{scale}{switches}".encode())
    return parts
