"""Kinds of adapter as values. No torch until one is made of them: what a user asks for is checked in no time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from trueup.errors import BadInput, Unsupported

if TYPE_CHECKING:
    import peft
    from torch import Tensor, nn

    from trueup.subject.anatomy import Anatomy

Part = Literal["", "query-key", "value-mlp"]


@dataclass(frozen=True)
class Lora:
    """Low-rank adaptation (Hu et al., arXiv 2106.09685) of the family's query, key and value projections.

    Attributes:
        rank, alpha, dropout: B @ A of this rank, times alpha / rank, under dropout of the input.
        targets: the ends of the adapted modules' names instead of the family's own.
        layers: the adapted layers, counted from 0; empty for all.
        part: ``query-key`` for the projections that decide where attention looks, ``value-mlp`` for value, up and down,
            which decide what is read there and what becomes of it. Where query, key and value are one fused matrix, the
            rows of B that belong to the other part stay at 0.
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    part: Part = ""
    name: ClassVar[str] = "lora"
    lr: ClassVar[float] = 1e-3

    def config(self, anatomy: Anatomy, sizes: dict[str, Any]) -> peft.PeftConfig:
        import peft

        fused = anatomy.model_type == "gpt2"
        return peft.LoraConfig(
            r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, fan_in_fan_out=fused,
            target_modules=list(self.targets or anatomy.lora),
        )  # fmt: skip

    def modules(self, net: Any, anatomy: Anatomy) -> dict[str, nn.Module]:
        """The layers of the base that are adapted, by their full names in `net`, which may wear an adapter already.

        Raises:
            BadInput: no such layer or part, or a part beside targets. Unsupported: a part of a family without attention.
        """
        names = {"": self.targets or anatomy.lora, "query-key": (anatomy.query, anatomy.key),
                 "value-mlp": (anatomy.value, anatomy.up, anatomy.down)}.get(self.part)  # fmt: skip
        if names is None or (self.part and self.targets):
            raise BadInput(
                f"A LoRA cannot adapt the part {self.part!r} and the targets {self.targets}; give 'query-key' or "
                "'value-mlp' and no targets, or targets alone."
            )
        if self.part and not anatomy.query:
            raise Unsupported(
                f"'{anatomy.model_type}' has no attention, so a LoRA has no part '{self.part}' of it to adapt; "
                "leave the part out."
            )
        layers = net.base_model.get_submodule(anatomy.layers)
        if wrong := [i for i in self.layers if not 0 <= i < len(layers)]:
            raise BadInput(
                f"There is no layer {wrong[0]}: the model has layers 0 to {len(layers) - 1}; give one of these."
            )
        top = next(n for n, m in net.named_modules() if m is layers)
        if self.part:
            found = [f"{top}.{i}.{name}" for i in self.layers or range(len(layers)) for name in dict.fromkeys(names)]
        else:
            ends, within = tuple(f".{n}" for n in names), tuple(f"{top}.{i}." for i in self.layers) or ("",)
            found = [n for n, _ in net.named_modules() if f".{n}".endswith(ends) and n.startswith(within)]
        return {n: unwrapped(net.get_submodule(n)) for n in found}

    def rows(self, net: Any, anatomy: Anatomy, name: str) -> Tensor | None:
        """(out,) bool: the output rows of the module `name` that belong to the part; None where that is all of them.

        Fused matrices hold blocks of queries, keys and values, or these three for each head in turn (`anatomy.in_turn`).
        """
        import torch

        if not self.part or anatomy.query != anatomy.value or not name.endswith(f".{anatomy.query}"):
            return None
        out = shape_of(unwrapped(net.get_submodule(name)))[1]
        blocks = anatomy.size(net.config, "heads") if anatomy.in_turn else 1
        third = torch.arange(out) // (out // (3 * blocks)) % 3
        return third == 2 if self.part == "value-mlp" else third < 2


@dataclass(frozen=True)
class Prompt:
    """Prompt tuning (Lester et al., arXiv 2104.08691): `tokens` trained embeddings in front, started from `start`'s own."""

    tokens: int = 10
    start: str = "Classify the text by its meaning:"
    name: ClassVar[str] = "prompt"
    lr: ClassVar[float] = 1e-2

    def config(self, anatomy: Anatomy, sizes: dict[str, Any]) -> peft.PeftConfig:
        import peft

        return peft.PromptTuningConfig(num_virtual_tokens=self.tokens, prompt_tuning_init="RANDOM", **sizes)


@dataclass(frozen=True)
class Prefix:
    """Prefix tuning (Li & Liang, arXiv 2101.00190): `tokens` trained keys and values in every layer.

    Attributes:
        tokens: slots.
        rank: 0 trains every key and value freely. Else each is a mix of `rank` directions (rank, width) that all slots and layers
            share, and mixes and directions are trained: rank x (2 x layers x tokens + width) numbers. Saved as a plain prefix.
    """

    tokens: int = 10
    rank: int = 0
    name: ClassVar[str] = "prefix"
    lr: ClassVar[float] = 1e-2

    def config(self, anatomy: Anatomy, sizes: dict[str, Any]) -> peft.PeftConfig:
        import peft

        return peft.PrefixTuningConfig(num_virtual_tokens=self.tokens)


@dataclass(frozen=True)
class PTuning:
    """P-tuning (Liu et al., arXiv 2103.10385): a prompt made by a small trained encoder, saved as the prompt it makes."""

    tokens: int = 10
    width: int = 128
    name: ClassVar[str] = "p-tuning"
    lr: ClassVar[float] = 1e-3

    def config(self, anatomy: Anatomy, sizes: dict[str, Any]) -> peft.PeftConfig:
        import peft

        return peft.PromptEncoderConfig(num_virtual_tokens=self.tokens, encoder_hidden_size=self.width, **sizes)


Recipe = Lora | Prompt | Prefix | PTuning
RECIPES: dict[str, type[Recipe]] = {r.name: r for r in (Prompt, Prefix, PTuning, Lora)}


def unwrapped(module: Any) -> Any:
    """The base's own layer, out of the adapter's wrapping where there is one."""
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module


def shape_of(module: Any) -> tuple[int, int]:
    """(inputs, outputs) of a linear layer, or of GPT-2's Conv1D, whose weight is turned."""
    if hasattr(module, "in_features"):
        return module.in_features, module.out_features
    read, written = map(int, module.weight.shape)
    return read, written
