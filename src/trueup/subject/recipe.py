"""Kinds of adapter as values, and fresh, trainable subjects made from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import peft
import torch
import transformers
from torch import Tensor

from trueup.errors import BadInput, Unsupported
from trueup.subject import load as door
from trueup.subject.anatomy import Anatomy, anatomy_of
from trueup.subject.quiet import quiet
from trueup.subject.subject import SoftmaxResponse, Source, Subject, Template


@dataclass(frozen=True)
class Lora:
    """Low-rank adaptation (Hu et al., arXiv 2106.09685) of the family's query, key and value projections."""

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    name: ClassVar[str] = "lora"
    lr: ClassVar[float] = 1e-3

    def config(self, anatomy: Anatomy, sizes: dict[str, Any]) -> peft.PeftConfig:
        fused = anatomy.model_type == "gpt2"
        return peft.LoraConfig(
            r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, fan_in_fan_out=fused,
            target_modules=list(self.targets or anatomy.lora),
        )  # fmt: skip


@dataclass(frozen=True)
class Prompt:
    """Prompt tuning (Lester et al., arXiv 2104.08691): `tokens` trained embeddings in front, started from `start`'s own."""

    tokens: int = 10
    start: str = "Classify the text by its meaning:"
    name: ClassVar[str] = "prompt"
    lr: ClassVar[float] = 1e-2

    def config(self, anatomy: Anatomy, sizes: dict[str, Any]) -> peft.PeftConfig:
        return peft.PromptTuningConfig(num_virtual_tokens=self.tokens, prompt_tuning_init="RANDOM", **sizes)


@dataclass(frozen=True)
class Prefix:
    """Prefix tuning (Li & Liang, arXiv 2101.00190): `tokens` trained keys and values in every layer."""

    tokens: int = 10
    name: ClassVar[str] = "prefix"
    lr: ClassVar[float] = 1e-2

    def config(self, anatomy: Anatomy, sizes: dict[str, Any]) -> peft.PeftConfig:
        return peft.PrefixTuningConfig(num_virtual_tokens=self.tokens)


@dataclass(frozen=True)
class PTuning:
    """P-tuning (Liu et al., arXiv 2103.10385): a prompt made by a small trained encoder, saved as the prompt it makes."""

    tokens: int = 10
    width: int = 128
    name: ClassVar[str] = "p-tuning"
    lr: ClassVar[float] = 1e-3

    def config(self, anatomy: Anatomy, sizes: dict[str, Any]) -> peft.PeftConfig:
        return peft.PromptEncoderConfig(num_virtual_tokens=self.tokens, encoder_hidden_size=self.width, **sizes)


Recipe = Lora | Prompt | Prefix | PTuning
RECIPES: dict[str, type[Recipe]] = {r.name: r for r in (Prompt, Prefix, PTuning, Lora)}


def fresh(
    model: str,
    recipe: Recipe,
    classes: Sequence[str],
    *,
    template: Template | None = None,
    max_length: int | None = None,
    device: str | None = None,
    seed: int = 0,
    revision: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> Subject:
    """A base model with a new adapter of the given kind, ready to be trained. The same seed gives the same start.

    With a `template`, a causal model that answers with a word; otherwise a sequence classifier with a new head.

    Raises:
        Unsupported: the family has no sequence classifier or no prefix tuning. Else as `load`.
    """
    device = door.device_of(device)
    where = door.resolve(model)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = door.read_model_config(where, model, **options)
    anatomy = anatomy_of(config)
    if isinstance(recipe, Prefix) and not anatomy.prefix:
        raise Unsupported(
            f"PEFT's prefix tuning does not run on '{anatomy.model_type}'; use `tune prompt` or `tune lora`."
        )
    if isinstance(recipe, Prompt | PTuning) and anatomy.model_type == "electra":
        if config.embedding_size != config.hidden_size:
            raise Unsupported(
                "PEFT's prompt tuning does not run on an ELECTRA whose embeddings are narrower than its layers; "
                "use `tune lora` or `tune prefix`."
            )
    if template is not None and not anatomy.causal:
        raise door.answers_with_no_word(anatomy)
    if template is None and not anatomy.head:
        raise Unsupported(
            f"transformers has no sequence classifier for '{anatomy.model_type}'; "
            "give --template and --verbaliser, so that the model answers with a word."
        )
    tokenizer = door.load_tokenizer(where, model, **options)
    if template is not None:
        door.check_template(tokenizer, template)
        if len(template.words) != len(classes):
            raise BadInput(f"{len(template.words)} class words for {len(classes)} classes; give one word per class.")
    cls = transformers.AutoModelForSequenceClassification if template is None else transformers.AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net, missing = door.load_base(
            cls, where, model, device=device, allow_pickle=allow_pickle, **options,
            **({"num_labels": len(classes)} if template is None else {}),
        )  # fmt: skip
        net.config.pad_token_id = tokenizer.pad_token_id
        settings = recipe.config(anatomy, anatomy.sizes(config))
        settings.task_type = peft.TaskType.SEQ_CLS if template is None else peft.TaskType.CAUSAL_LM  # type: ignore[assignment]
        invented = [m for m in missing if not m.split(".")[0].endswith(anatomy.head_root) and ".position_ids" not in m]
        if template is None and not settings.is_prompt_learning:
            # Weights that the checkpoint lacks are drawn at random; an adapter that did not carry them could not be loaded.
            settings.modules_to_save = sorted({anatomy.head_root, *(".".join(m.split(".")[1:-1]) for m in invented)})  # type: ignore[attr-defined]
        elif invented:
            raise BadInput(
                f"'{model}' lacks the weights {', '.join(invented[:3])}, which this kind of adapter cannot carry; use `tune lora`."
            )
        with quiet():
            wrapped = peft.get_peft_model(net, settings)
            if isinstance(recipe, Prompt):
                _start_from_text(wrapped, tokenizer, recipe)
    settings.base_model_name_or_path = model
    return Subject(
        model=wrapped.to(device).eval(),
        tokenizer=tokenizer,
        anatomy=anatomy,
        classes=tuple(classes),
        source=Source(model, None, settings.peft_type.value, revision, allow_pickle, trust_remote_code),  # type: ignore[union-attr]
        max_length=min(max_length or 256, door.position_limit(config, settings)),
        template=template,
        confidence=SoftmaxResponse(len(classes)),
    )


def recipe_of(subject: Subject) -> Recipe | None:
    """The recipe that would make an adapter of the subject's kind and size; None without an adapter, or for IA3."""
    config = subject.peft_config
    match config:
        case peft.LoraConfig():
            targets = config.target_modules if isinstance(config.target_modules, set | list) else ()
            return Lora(config.r, config.lora_alpha, config.lora_dropout, tuple(sorted(targets)))
        case peft.PromptTuningConfig():
            return Prompt(config.num_virtual_tokens)
        case peft.PrefixTuningConfig():
            return Prefix(config.num_virtual_tokens)
        case peft.PromptEncoderConfig():
            return PTuning(config.num_virtual_tokens, config.encoder_hidden_size)
    return None


def prompt_embeddings(subject: Subject) -> Tensor | None:
    """The prompt as PEFT saves it, (tokens, width), on the CPU; None for adapters that are no prompt."""
    config = subject.peft_config
    if config is None or not config.is_prompt_learning:
        return None
    return subject.model.get_prompt_embedding_to_save(adapter_name=subject.model.active_adapter).detach().cpu().clone()


def _start_from_text(model: Any, tokenizer: Any, recipe: Prompt) -> None:
    # PEFT's own text start writes the tokenizer's path into the adapter; copying the rows here leaves no trace of it.
    ids = tokenizer(recipe.start, add_special_tokens=False)["input_ids"]
    if not ids:
        raise BadInput(f"The prompt cannot start from {recipe.start!r}: it has no token. Give some words with --start.")
    ids = (ids * (recipe.tokens // len(ids) + 1))[: recipe.tokens]
    with torch.no_grad():
        rows = model.word_embeddings(torch.tensor(ids)).float()
        model.prompt_encoder[model.active_adapter].embedding.weight.copy_(rows)
