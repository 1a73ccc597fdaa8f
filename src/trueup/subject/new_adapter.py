"""Fresh, trainable subjects made from kinds of adapter, and the kind that a subject's own adapter is of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import peft
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from trueup.errors import BadInput, Unsupported
from trueup.subject import checkpoint as door
from trueup.subject.anatomy import Anatomy, check_words
from trueup.subject.discover import anatomy_of, told, tried
from trueup.subject.kinds import Lora, Prefix, Prompt, PTuning, Recipe, shape_of, unwrapped
from trueup.subject.positions import check_runs, longest, position_limit
from trueup.subject.quiet import quiet
from trueup.subject.subject import SoftmaxResponse, Source, Subject
from trueup.subject.template import Template
from trueup.subject.weights import Weights, device_of, need_memory


def fresh(
    model: str,
    recipe: Recipe,
    classes: Sequence[str],
    *,
    template: Template | None = None,
    tokenizer: Any = None,
    max_length: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    seed: int = 0,
    revision: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> Subject:
    """A base model with a new adapter of the given kind, ready to be trained. The same seed gives the same start.

    With a `template`, a causal model that answers with a word; otherwise a sequence classifier with a new head. `tokenizer`:
    to read texts with instead of the base's own.

    Raises:
        Unsupported: the family has no sequence classifier or no prefix tuning. Else as `load`.
    """
    weights = Weights(dtype, quantize).checked(device)
    device = device_of(device)
    where = door.resolve(model)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = door.read_model_config(where, model, **options)
    anatomy = anatomy_of(config, words=template is not None, trust_remote_code=trust_remote_code)
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
    check_words(anatomy, template)
    if template is None and not anatomy.head:
        raise Unsupported(
            f"transformers has no sequence classifier for '{anatomy.model_type}'; "
            "give --template and --verbaliser, so that the model answers with a word."
        )
    tokenizer = tokenizer or door.load_tokenizer(where, model, **options)
    if template is not None:
        door.check_template(tokenizer, template)
        if len(template.words) != len(classes):
            raise BadInput(f"{len(template.words)} class words for {len(classes)} classes; give one word per class.")
    cls = transformers.AutoModelForSequenceClassification if template is None else transformers.AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if template is None:
            options["num_labels"] = len(classes)
        net, missing = door.load_base(
            cls, where, model, device=device, allow_pickle=allow_pickle, weights=weights, **options
        )
        door.set_padding(net, tokenizer)
        anatomy = tried(net, anatomy, tokenizer, words=template is not None)
        check_words(anatomy, template)
        settings = recipe.config(anatomy, anatomy.sizes(config))
        if isinstance(recipe, Lora) and (recipe.layers or recipe.part):
            # Full names: BERT's "output.dense" is also the end of "attention.output.dense", in every layer.
            settings.target_modules = set(recipe.modules(net, anatomy))  # type: ignore[attr-defined]
        settings.task_type = peft.TaskType.SEQ_CLS if template is None else peft.TaskType.CAUSAL_LM  # type: ignore[assignment]
        invented = [m for m in missing if not m.split(".")[0].endswith(anatomy.head_root) and ".position_ids" not in m]
        if template is None and not settings.is_prompt_learning:
            # Weights that the checkpoint lacks are drawn at random; an adapter that did not carry them could not be loaded.
            settings.modules_to_save = sorted({anatomy.head_root, *(m.rpartition(".")[0] for m in invented)})  # type: ignore[attr-defined]
        elif invented:
            raise BadInput(
                f"'{model}' lacks the weights {', '.join(invented[:3])}, which this kind of adapter cannot carry; use `tune lora`."
            )
        with quiet():
            wrapped = peft.get_peft_model(net, settings)
            if isinstance(recipe, Prompt):
                _start_from_text(wrapped, tokenizer, recipe)
            if isinstance(recipe, Prefix) and recipe.rank:
                _mix_slots(wrapped, recipe)
            if isinstance(recipe, Lora) and recipe.part:
                _train_rows(wrapped, recipe, anatomy)
            check_runs(wrapped, anatomy)  # type: ignore[arg-type]
    settings.base_model_name_or_path = model
    kind: str = settings.peft_type.value  # type: ignore[union-attr]
    return Subject(
        model=wrapped.to(device).eval(),
        tokenizer=tokenizer,
        anatomy=anatomy,
        classes=tuple(classes),
        source=Source(
            model, None, kind, revision, allow_pickle, trust_remote_code, told=told(anatomy), weights=weights
        ),
        max_length=longest(max_length, door.LENGTH, position_limit(config, anatomy, settings)),
        template=template,
        confidence=SoftmaxResponse(len(classes)),
    )


def random_prompt(subject: Subject, tokens: int) -> Subject:
    """A classifier behind a soft prompt of so many random tokens: for times, not for answers."""
    from trueup.subject import adapter as files
    from trueup.subject.swap_adapter import wear

    config = Prompt(tokens).config(subject.anatomy, subject.anatomy.sizes(subject.base.config))
    config.task_type = peft.TaskType.SEQ_CLS  # type: ignore[assignment]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tensors = {"prompt_embeddings": torch.randn(tokens, config.token_dim) * 0.02}  # type: ignore[attr-defined]
    tensors[f"base_model.{subject.anatomy.head}.weight"] = subject.own_head().weight
    return wear(subject, files.settings_of(subject, config), tensors)


def beside(subject: Subject, recipe: Recipe, *, seed: int) -> Subject:
    """A new adapter of the given kind on the subject's own base, for the same classes and read the same way, to be trained.

    Raises:
        Unsupported: the subject's adapter brings embeddings of its own, which the new one would not have; its base is quantised,
            in float16, or not all in memory. Else as `fresh`.
    """
    source = subject.source
    need_memory(subject.base, "Training another adapter")
    if subject.quantised or source.weights.dtype == "float16":
        how = "float16, in which gradients run out of range" if not subject.quantised else "fewer bits"
        raise Unsupported(
            f"What trains another adapter was not tried, because the base is in {how}. Give it in full: leave --quantize out, or "
            "take --dtype bfloat16."
        )
    if source.vocabulary:
        raise Unsupported(
            "The adapter brings embeddings of the base with it, which an adapter that is trained anew would not have. Merge it "
            "into its base (PEFT's merge_and_unload) and tune an adapter on that."
        )
    return fresh(
        source.base, recipe, subject.classes, template=subject.template,
        tokenizer=subject.tokenizer if source.tokenizer else None, max_length=subject.max_length, device=str(subject.device),
        dtype=source.weights.dtype, seed=seed, revision=source.revision, allow_pickle=source.allow_pickle,
        trust_remote_code=source.trust_remote_code,
    )  # fmt: skip


def recipe_of(subject: Subject) -> Recipe | None:
    """The recipe that would make an adapter of the subject's kind and size; None without an adapter, or for IA3."""
    config = subject.peft_config
    match config:
        case peft.AdaLoraConfig():  # a LoRA by descent, which keeps three matrices
            return None
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


def size_of(recipe: Recipe, subject: Subject) -> int:
    """How many numbers a fresh adapter of this recipe on the subject's base trains and keeps, without a head's.

    P-tuning counts as the prompt it makes. Rows of a LoRA that stay at 0 do not count.

    Raises:
        As `Lora.modules`.
    """
    net, anatomy = subject.base, subject.anatomy
    if isinstance(recipe, Lora):
        total = 0
        for name, module in recipe.modules(net, anatomy).items():
            (read, written), rows = shape_of(module), recipe.rows(net, anatomy, name)
            total += recipe.rank * (read + (written if rows is None else int(rows.sum())))
        return total
    sizes = anatomy.sizes(net.config)
    if not isinstance(recipe, Prefix):
        return recipe.tokens * sizes["token_dim"]
    layers: Any = net.base_model.get_submodule(anatomy.layers)  # type: ignore[operator,union-attr]
    # Fewer keys than queries where heads share them; a third of the rows where all three are one matrix.
    keys = shape_of(unwrapped(layers[0].get_submodule(anatomy.key)))[1] // (3 if anatomy.query == anatomy.key else 1)
    if anatomy.discovered:  # a fused matrix need not be in thirds
        keys = anatomy.prefix_sizes(net.config)["token_dim"]
    rows = recipe.tokens * sizes["num_layers"] * 2
    return recipe.rank * (rows + keys) if recipe.rank else rows * keys


def prompt_embeddings(subject: Subject) -> Tensor | None:
    """The prompt as PEFT saves it, (tokens, width), on the CPU; None for adapters that are no prompt."""
    config = subject.peft_config
    if config is None or not config.is_prompt_learning:
        return None
    model = subject.model
    if config.inference_mode:  # p-tuning's files hold what its encoder has made, and no encoder
        prompt = model.prompt_encoder[model.active_adapter].embedding.weight
    else:
        prompt = model.get_prompt_embedding_to_save(adapter_name=model.active_adapter)
    return prompt.detach().cpu().clone()


def _start_from_text(model: Any, tokenizer: Any, recipe: Prompt) -> None:
    # PEFT's own text start writes the tokenizer's path into the adapter; copying the rows here leaves no trace of it.
    ids = tokenizer(recipe.start, add_special_tokens=False)["input_ids"]
    if not ids:
        raise BadInput(f"The prompt cannot start from {recipe.start!r}: it has no token. Give some words with --start.")
    ids = (ids * (recipe.tokens // len(ids) + 1))[: recipe.tokens]
    with torch.no_grad():
        rows = model.word_embeddings(torch.tensor(ids)).float()
        model.prompt_encoder[model.active_adapter].embedding.weight.copy_(rows)


class _Mixed(nn.Module):
    """In place of a prefix encoder's embedding (tokens, layers x 2 x width): a product of two trained matrices.

    PEFT asks the encoder for what it saves, so that the file holds the product and no trace of how it was trained.
    """

    START = 0.1
    """Standard deviation of a fresh key or value. PEFT's own is 1, at which many slots take so much attention from the text of the
    planted model of rigidity that nothing is learnt."""

    def __init__(self, recipe: Prefix, config: Any):
        super().__init__()
        self.shape = recipe.tokens, config.num_layers * 2 * config.token_dim
        rows = recipe.tokens * config.num_layers * 2
        self.mixes = nn.Parameter(torch.randn(rows, recipe.rank) * self.START / recipe.rank**0.5)
        self.directions = nn.Parameter(torch.randn(recipe.rank, config.token_dim))

    @property
    def weight(self) -> Tensor:
        return (self.mixes @ self.directions).view(self.shape)

    def forward(self, slots: Tensor) -> Tensor:
        return F.embedding(slots, self.weight)


def _mix_slots(wrapped: Any, recipe: Prefix) -> None:
    wrapped.prompt_encoder[wrapped.active_adapter].embedding = _Mixed(recipe, wrapped.active_peft_config)


class _SomeRows(nn.Linear):
    """LoRA's B (out, rank) of which only the rows `keep` are used, so that the others get no gradient and stay at 0.

    No hook and no change of the file: decay, checkpoints and merging see zero rows, and the mask is not saved.
    """

    keep: Tensor

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight * self.keep)


def _train_rows(wrapped: Any, recipe: Lora, anatomy: Anatomy) -> None:
    net, adapter = wrapped.get_base_model(), wrapped.active_adapter
    for name in recipe.modules(net, anatomy):
        rows = recipe.rows(net, anatomy, name)
        if rows is None:
            continue
        layer = net.get_submodule(name)
        weight = layer.lora_B[adapter].weight
        some = _SomeRows(weight.shape[1], weight.shape[0], bias=False, device="meta")
        some.weight = weight
        some.register_buffer("keep", rows[:, None].to(weight), persistent=False)
        layer.lora_B[adapter] = some
