"""What a checkpoint holds: config, tokenizer, weights, head and adapter, read and held against what was asked."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors import safe_open
from torch import Tensor
from transformers.utils import find_adapter_config_file

from trueup.errors import BadInput, TrueupError, Unavailable, Unsupported, listing, shortened
from trueup.store.inputs import path_of
from trueup.store.network import asking_hub, unanswered
from trueup.subject import adapter as files
from trueup.subject import linear, patterns, places, tokens
from trueup.subject.anatomy import FAMILIES, Anatomy
from trueup.subject.beside import CARD
from trueup.subject.few_shot_tokens import first_tokens, opened
from trueup.subject.outputs import MULTI_LABEL
from trueup.subject.positions import check_runs
from trueup.subject.quiet import quiet
from trueup.subject.sharing import copy_of, never_packed, state_of
from trueup.subject.subject import Subject
from trueup.subject.template import Template
from trueup.subject.weights import (
    Weights,
    best_device,
    device_in,
    filled,
    in_memory,
    kept_with,
    laid_out,
    not_loaded,
    numbers,
    offload_folder,
    offloaded,
    placed,
)

LENGTH = 256
"""Longest input in tokens of an adapter that trueup trains, unless told otherwise."""

_USUAL = Weights()
UNNAMED = "your base model"
"""The base's name in a Subject, and in what is saved from it, where no name is known under which its weights load again."""


def prove_head(subject: Subject) -> None:
    """Raises Unsupported when the head of `subject` is no matrix, or computes something else than `own_head` says.

    The head of a few-shot prompt is tried at its first rows: the answers are not known yet.
    """
    if subject.template is None:
        rows = [0] if subject.sigmoid else list(range(len(subject.classes)))
    else:
        rows = list(range(8)) if subject.shots is not None else subject.verbaliser_ids()
    linear.prove(subject.head_layer(), rows, f"this {type(subject.base).__name__}")


def pinned(settings: peft.PeftConfig | None, model: str, revision: str | None) -> tuple[str | None, tuple[str, ...]]:
    """The revision of the base `model` to take, and what a reader must know of it: without one, that of the adapter."""
    made_for, own_revision = (getattr(settings, k, None) for k in ("base_model_name_or_path", "revision"))
    if (
        not own_revision
        or made_for != model
        or own_revision == revision
        or Path(model).exists()
        or model.startswith("embedded:")
    ):
        return revision, ()
    if revision is None:
        return own_revision, (f"The adapter was made for revision '{own_revision}' of '{model}', which was taken.",)
    return revision, (f"The adapter was made for revision '{own_revision}' of '{model}', and '{revision}' was taken.",)


def fit_vocabulary(net: Any, tensors: dict[str, Tensor], other: str) -> bool:
    """Whether the embeddings of `net` were resized to the rows that an adapter's weights have of them, as they were when it
    was trained.

    Raises:
        BadInput: the weights disagree, or new rows are needed that they do not bring.
    """
    if not tokens.rows_of(net):
        return False
    heads, words = net.get_output_embeddings(), net.get_input_embeddings()
    ends = {"weight": 0, "base_layer.weight": 0, "token_adapter.base_layer.weight": 0, "original_module.weight": 0}
    sides = (
        (words, ends | {"lora_embedding_A": 1}),
        (heads, ends | {"bias": 0, "base_layer.bias": 0, "lora_B.weight": 0}),
    )
    rows: set[int] = set()
    whole: list[Any] = []
    for module, sizes in sides:
        for name in [n for n, m in net.named_modules() if module is not None and m is module]:
            for end, axis in sizes.items():
                for key in (f"base_model.model.{name}.{end}", f"base_model.{name}.{end}"):
                    if key in tensors and tensors[key].ndim > axis:
                        rows.add(int(tensors[key].shape[axis]))
                        whole += [module] if end in ends else []
    before = len(words.weight)
    if rows <= {before}:
        return False
    if len(rows) > 1:
        raise BadInput(f"{other}: it has embeddings of {listing(sorted(rows))} rows at once. Save the adapter again.")
    [now] = rows
    tied = heads is not None and heads.weight is words.weight
    needed = [words] if heads is None or tied else [words, heads]
    if now > before and not all(any(w is m or tied for w in whole) for m in needed):
        raise BadInput(
            f"{other}: it was trained with embeddings of {now} rows where the model has {before}, and it does not bring the new "
            "rows. Merge it into the model that it was trained on (PEFT's merge_and_unload), save that with its tokenizer, and "
            "give the folder without --adapter."
        )
    with quiet():
        net.resize_token_embeddings(now, mean_resizing=False)
    return True


def through_sigmoid(names: Sequence[str]) -> tuple[str, ...]:
    """What a reader must know of a head of one logit."""
    return (
        f"The head gives one number, whose sigmoid was read as the probability of '{names[1]}' against '{names[0]}', as "
        "transformers' pipelines read it. If it is no classifier, every figure here is wrong.",
    )


def check_head(config: Any, rows: int, name: str, *, own: bool = True) -> bool:
    """Whether a head of `rows` outputs gives each text any number of labels, by its config, and not one class of several.

    Raises:
        Unsupported: it is a regression.

    `own`: the head came with `config`, and not with an adapter that was trained otherwise.
    """
    kind = getattr(config, "problem_type", None) if own else None
    if kind == "regression" or rows < 1:
        raise Unsupported(
            f"The head of '{name}' gives {rows} number{'s' * (rows != 1)} and no choice between classes (a regression); trueup "
            "examines classifiers. Give a model with one logit for each class, or one for yes and no whose config does not "
            "call it a regression (problem_type)."
        )
    return kind == MULTI_LABEL and rows > 1


def says_multi_label(model: Any, **options: Any) -> bool:
    """Whether the config of a model, live or by name, calls its head multi-label; False where it cannot be read.

    Raises:
        Unavailable: the hub cannot be reached. It is not asked twice, as each time it is tried for half a minute.
    """
    config = getattr(model, "config", None)
    if isinstance(model, str | Path) and not str(model).startswith("embedded:"):
        with suppress(BadInput, Unsupported):
            config = read_model_config(resolve(str(model)), str(model), **options)
    return getattr(config, "problem_type", None) == MULTI_LABEL


def resolve(model: str) -> str:
    """A folder for ``embedded:`` names and local paths; a hub id otherwise, unchanged.

    Raises:
        BadInput: a name that no folder can have. Unsupported: the base of a live model that has no name to be loaded by.
    """
    if model == UNNAMED:
        raise Unsupported(
            "The base model is live, and no name is known under which its weights load again. Save it with save_pretrained, "
            "load it from that folder, and put the adapter on that."
        )
    if model.startswith("embedded:"):
        from trueup.subject.embedded import folder_of

        return str(folder_of(model.removeprefix("embedded:")))
    path_of(model)
    return model


def read_model_config(where: str, name: str, **options: Any) -> Any:
    """The transformers config of a folder or hub id; every failure as a sentence."""
    places.check_model(where, name)
    with quiet(), asking_hub(where):
        try:
            config = transformers.AutoConfig.from_pretrained(where, **options)
            with_adapter = find_adapter_config_file(where, revision=options.get("revision"))
        except Exception as e:
            raise _explained(e, name) from e
    if with_adapter is not None:
        raise BadInput(
            f"'{name}' holds an adapter ({places.SETTINGS}) beside the model, and transformers puts it on when it loads the model: "
            "figures would be of the two together. Take the adapter's files into a folder of their own, and give that as --adapter."
        )
    _believable(config, where, name, options.get("revision"))
    return config


LAYERS = 2000
"""The most layers of a model: ten times those of the deepest there are. A module is made of each before a weight is looked for."""


def _believable(config: Any, where: str, name: str, revision: str | None) -> None:
    """Raises BadInput where a config speaks of far more weights than there are beside it, before room is made for them."""

    def size(*names: str) -> int:
        return next((v for n in names if type(v := getattr(config, n, None)) is int), 0)

    layers = size("num_hidden_layers", "n_layer", "n_layers", "num_layers")
    width = size("hidden_size", "n_embd", "d_model", "dim")
    least = layers * width**2 + size("vocab_size") * (size("embedding_size", "word_embed_proj_dim") or width)
    held = sum(f.stat().st_size for f in weight_files(where, revision))
    # Four bits a weight are the fewest; what is small is not worth a refusal.
    if layers > LAYERS or (held and least > 2 * held + 10**8):
        raise BadInput(
            f"The config of '{name}' speaks of {layers:,} layers that are {width:,} wide and {size('vocab_size'):,} words, and its "
            f"weights are {held:,} bytes: the two do not belong together. Fetch or save the model again."
        )


def set_padding(net: Any, tokenizer: Any) -> None:
    """The tokenizer's padding token for the model's own, also in the part of a config that is about text."""
    net.config.pad_token_id = net.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def load_tokenizer(where: str, name: str, **options: Any) -> Any:
    """The tokenizer, with a padding token (the end-of-text token where it has none of its own)."""
    with quiet(), asking_hub(where), tokens.said(f"'{name}'"):
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(where, **options)
        except Exception as e:
            if not Path(where).is_dir():
                raise _explained(e, f"the tokenizer of {name}") from e
            if not tokens.has_one(Path(where)):
                raise tokens.none(f"'{name}'") from e
            why = " ".join(str(e).split())[:200].rstrip(".")
            raise BadInput(
                f"The tokenizer of '{name}' could not be loaded ({why}). Its files are damaged, or do not go together. Save them "
                "again with tokenizer.save_pretrained."
            ) from e
    return padded(tokenizer, name)


def padded(tokenizer: Any, name: str) -> Any:
    """The tokenizer itself, given its end token to pad with where it has no padding token."""
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise BadInput(f"The tokenizer of '{name}' has neither a padding nor an end token; set one and save it.")
        tokenizer.pad_token = tokenizer.eos_token
    tokens.tried(tokenizer, f"'{name}'")
    return tokenizer


def load_base(
    cls: Any,
    where: str,
    name: str,
    *,
    device: str | None = None,
    allow_pickle: bool = False,
    weights: Weights = _USUAL,
    **options: Any,
) -> tuple[Any, list[str]]:
    """The base model, in memory and on one device unless `weights` (`Weights.checked`) says otherwise, and the weights it had to
    invent.

    A head of another size in the checkpoint is replaced and listed among the invented weights.
    """
    key = (cls, where, name, device, allow_pickle, repr(weights), repr(options), *_rng(), *_files(where))
    if _kept.key == key:
        torch.set_rng_state(_kept.rng)
        return _kept.copy(), list(_kept.missing)
    path = Path(where)
    if path.is_dir() and not allow_pickle and not list(path.glob("*.safetensors")) and list(path.glob("*.bin")):
        raise BadInput(
            f"'{name}' holds its weights as a pickle ({next(path.glob('*.bin')).name}), which can run code when loaded. "
            "Save it again with safe_serialization=True, or pass --allow-pickle if you trust its author."
        )
    own_quantisation = quantisation_of(where, options.get("revision"))
    if own_quantisation is not None and weights.quantize is not None:
        raise BadInput(
            f"'{name}' is quantised already ({own_quantisation}). Leave --quantize out, or give the base in full."
        )
    if isinstance(weights.device_map, Mapping):
        with quiet(), torch.device("meta"):
            config = read_model_config(where, name, **{k: v for k, v in options.items() if k != "num_labels"})
            shape = cls.from_config(config, trust_remote_code=options.get("trust_remote_code", False))
        weights = replace(weights, device_map=laid_out(shape, weights.device_map, name))
    heads = sorted({a.head_root for a in FAMILIES.values() if a.head_root} | {"lm_head"})
    chosen = weights.options(device or best_device(), heads)
    folder = offload_folder(chosen)
    with quiet(), asking_hub(where):
        try:
            net, info = cls.from_pretrained(
                where, output_loading_info=True, ignore_mismatched_sizes=True,
                **({} if allow_pickle else {"use_safetensors": True}), **chosen, **options,
            )  # fmt: skip
        except Exception as e:
            raise (not_loaded(e, weights, name, own_quantisation) or _explained(e, name)) from e
    kept_with(folder, net)
    never_packed(net)
    if weights.quantize is not None:
        check_quantised(net, name)
    if offloaded(net):
        in_memory(net)
    check_weights(net, where, name, options.get("revision"))
    mismatched = [m[0] if isinstance(m, tuple | list) else str(m) for m in info.get("mismatched_keys", ())]
    missing = sorted({*info["missing_keys"], *mismatched})
    if _kept.wanted and weights.quantize is None:
        _kept.key, _kept.net, _kept.missing, _kept.rng = (
            key,
            placed(net, device or best_device()),
            missing,
            torch.get_rng_state(),
        )
        net = _kept.copy()
    return net, missing


def quantisation_of(where: str, revision: str | None = None) -> str | None:
    """The method by which a checkpoint's own config says that it is quantised, such as ``gptq``; None where it does not."""
    with quiet(), suppress(Exception):  # what is wrong with the config is said where it is read
        settings = transformers.PretrainedConfig.get_config_dict(where, revision=revision)[0].get("quantization_config")
        if isinstance(settings, dict):
            return str(settings.get("quant_method") or "bitsandbytes")
    return None


def check_quantised(net: Any, name: str) -> None:
    """One token through a base that was quantised here: kernels ask for layers of certain widths, each on its own machine.

    Raises:
        BadInput: it does not run.
    """
    try:
        with quiet(), torch.no_grad():
            net.eval()(input_ids=torch.ones((1, 1), dtype=torch.long, device=device_in(net)))
    except Exception as e:
        raise BadInput(
            f"'{name}' does not run in fewer bits on '{device_in(net)}' ({type(e).__name__}: {' '.join(str(e).split())[:120]}). "
            "Leave --quantize out."
        ) from e


def as_trained(
    weights: Weights, asked: str | Mapping[str, Any] | None, folder: Path | None, settings: peft.PeftConfig | None
) -> tuple[Weights, tuple[str, ...]]:
    """The weights in the very quantisation that an adapter was trained on, where it is asked for in as many bits; and a sentence
    where it is asked for in others."""
    trained_bits = files.trained_on(folder, settings) if isinstance(asked, str) else None
    if trained_bits is None:
        return weights, ()
    bits = "4bit" if trained_bits.get("load_in_4bit") else "8bit"
    if bits == asked:
        return replace(weights, quantize=trained_bits), ()
    return weights, (
        f"The adapter was trained on a base in {bits[0]} bits, and is examined on one in {str(asked)[0]}. Give --quantize {bits} "
        "to examine it as it was trained.",
    )


def check_weights(net: Any, where: str, name: str, revision: str | None) -> None:
    """Raises BadInput where a weight of a base is NaN or infinite, or is kept as what no cast makes the same number of."""
    files.check_numbers(numbers(net), f"'{name}'")
    if getattr(net.config, "quantization_config", None) is not None:
        return
    floating, prefix = {n for n, p in net.named_parameters() if p.is_floating_point()}, f"{net.base_model_prefix}."
    for file in weight_files(where, revision):
        with safe_open(str(file), "pt") as saved:
            for key in saved.keys():  # noqa: SIM118
                kind = saved.get_slice(key).get_dtype()
                if not kind.startswith(("F", "BF")) and floating & {key, prefix + key, key.removeprefix(prefix)}:
                    raise BadInput(
                        f"'{file}' holds '{key}' as {kind}, and it is a floating-point weight: a cast would make other numbers of "
                        "it. Save the model again as it was trained, in float32, float16 or bfloat16."
                    )


def weight_files(name: str, revision: str | None) -> list[Path]:
    """The weight files of a folder, or of a hub id in the hub's cache; none where they are not on this machine."""
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(
                snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=["*.safetensors"])
            )
        except Exception:  # not in the cache, or no name the hub could know
            return []
    return sorted(p for p in folder.glob("model*.safetensors") if p.is_file())


class _Kept:
    """The base that this process loaded last, as it was loaded, while `keeping_base` wants it."""

    wanted = False
    key: tuple[Any, ...] | None = None
    net: Any = None
    missing: Sequence[str] = ()
    rng: Any = None  # of torch after loading: what is drawn next is what would be drawn had it been loaded again

    def copy(self) -> Any:
        """Other modules around the same tensors; what a job says of its parameters (requires_grad) is not seen by the next."""
        return copy_of(
            self.net, {id(p): torch.nn.Parameter(p.detach(), p.requires_grad) for p in self.net.parameters()}
        )

    def forget(self) -> None:
        self.key = self.net = self.rng = None
        self.wanted = False


_kept = _Kept()


@contextmanager
def keeping_base() -> Iterator[None]:
    """Inside the block, the base that was loaded last stays in memory, and the next job on it does not load it again.

    Jobs do not see each other: each has modules of its own, and no job of trueup writes to a base's weights.
    """
    _kept.wanted = True
    try:
        yield
    finally:
        _kept.forget()


def _rng() -> tuple[bytes, ...]:
    """torch's random state, which says what a head that the checkpoint lacks is drawn as."""
    return (torch.get_rng_state().numpy().tobytes(),) if _kept.wanted else ()


def _files(where: str) -> tuple[Any, ...]:
    """What tells a model's folder from the same folder written again."""
    folder = Path(where)
    return (
        tuple(sorted((p.name, (s := p.stat()).st_size, s.st_mtime_ns) for p in folder.iterdir() if p.exists()))
        if folder.is_dir()
        else ()
    )


def attach(
    net: Any, settings: peft.PeftConfig, tensors: dict[str, Tensor], anatomy: Anatomy, *, other: str
) -> tuple[Any, bool]:
    """`net` with the adapter on it, and whether the adapter brought other embeddings than those of the base with it.

    PEFT only warns when keys do not match; here every key must find its place. `other` begins the sentence when one does not.

    Raises:
        BadInput: the adapter was made for another base model (name, layers or sizes differ).
    """
    files.check_sizes(settings, tensors, other)
    patterns.check(settings, (n for n, _ in net.named_modules()), other)
    for key, sizes in _prompt_sizes(net.config, settings, anatomy).items():
        if (given := getattr(settings, key)) not in (None, sizes):
            raise BadInput(
                f"{other}: its {key} is {given}, and for this model it would be {sizes}. Give the base model it was trained on."
            )
    modules = {f"base_model.model.{n}" for n, _ in net.named_modules()}
    with quiet():
        try:
            made_for = settings.base_model_name_or_path
            model: Any = peft.get_peft_model(net, settings)
            filled(model, device_in(net))
            settings.base_model_name_or_path = made_for  # get_peft_model writes the local folder over it
            expected = peft.get_peft_model_state_dict(model, state_of(model), save_embedding_layers=False)
            embeddings = files.embeddings_of(model)
        except Exception as e:
            raise BadInput(f"{other}: {e}. Give the base model it was trained on.") from e
    absent, extra = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected) - set(embeddings))
    if absent or extra:
        what = (
            f"it has no weights for {listing(absent, 3)}"
            if absent
            else f"the base has no place for {listing(extra, 3)}"
        )
        step = ""
        if extra and all({k.rsplit(".", n)[0] for n in (1, 2)} & modules for k in extra):  # the layers are there
            step = (
                f", or correct its {places.SETTINGS} (task_type, target_modules, modules_to_save), where that speaks of other "
                "weights than are there"
            )
        raise BadInput(f"{other}: {what}. Give the base model it was trained on{step}.")
    ours = {**expected, **embeddings}
    for k, v in tensors.items():
        if v.is_complex() or v.is_floating_point() != ours[k].is_floating_point():
            raise BadInput(
                f"{other}: '{k}' is {_kind(v)} in the adapter and {_kind(ours[k])} in the model: a cast would make other numbers "
                "of it. Save the adapter again as it was trained."
            )
        if v.shape != ours[k].shape:
            raise BadInput(
                f"{other}: '{k}' is {tuple(v.shape)} in the adapter and {tuple(ours[k].shape)} in the model. "
                "Give the base model it was trained on."
            )
    # A base whose embeddings these are already is not written to: others may share them.
    brought = {k for k in embeddings if k in tensors}
    unchanged = {k for k in brought if torch.equal(embeddings[k].cpu(), tensors[k].to(embeddings[k].dtype).cpu())}
    with quiet():
        peft.set_peft_model_state_dict(model, {k: v for k, v in tensors.items() if k not in unchanged})
    check_runs(model, anatomy)
    return model, brought > unchanged


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def check_template(tokenizer: Any, template: Template) -> None:
    """Raises BadInput when the template has no ``{text}``, or two class words start with the same token; or where the tokenizer
    has no chat template for what is asked as a chat."""
    if template.chat:
        opened(tokenizer, template)
        return
    if "{text}" not in template.text:
        raise BadInput(f"The template {template.text!r} has no {{text}} in it; say where the example goes.")
    if not all(w.strip() for w in template.words):
        raise BadInput(f"The verbaliser {listing(template.words)} has an empty word; give one word per class.")
    if len(template.words) < 2:
        raise BadInput("A verbaliser needs at least two class words; give one per class, separated by commas.")
    ids = first_tokens(tokenizer, template)
    for i, a in enumerate(ids):
        if a in ids[:i]:
            first = template.words[ids.index(a)]
            cure = "Choose words that differ in their first token."
            if not tokenizer.decode([a]).strip():
                cure = "It is their space: end the template with it, and leave it out of the words."
            raise BadInput(
                f"The class words {first!r} and {template.words[i]!r} start with the same token, so they cannot be told "
                f"apart. {cure}"
            )


def adapter_folder(adapter: str | None) -> Path | None:
    """The folder of an adapter given as a folder or a hub id (fetched into the hub's cache); None for None."""
    if adapter is None or (path := places.adapter_path(adapter)) is not None:
        return None if adapter is None else path
    from huggingface_hub import snapshot_download

    patterns = ["adapter_*", f"*/{places.SETTINGS}", CARD, *tokens.FILES, "README.md", "training_params.json"]
    with asking_hub(adapter):
        try:
            return Path(snapshot_download(adapter, allow_patterns=patterns))
        except Exception as e:
            raise _explained(e, adapter, places.SETTINGS) from e


def _prompt_sizes(config: Any, settings: peft.PeftConfig, anatomy: Anatomy) -> dict[str, int]:
    """The sizes that a prompt or prefix must have on a model: PEFT builds it by its own, so on any base it fits itself."""
    if isinstance(settings, peft.PrefixTuningConfig):
        return anatomy.prefix_sizes(config)
    return {"token_dim": anatomy.sizes(config)["token_dim"]} if settings.is_prompt_learning else {}


def _explained(e: Exception, name: str, holds: str = "config.json") -> TrueupError:
    """What kept a model or an adapter from being loaded, as a sentence. `holds`: the file that makes a folder one."""
    text = " ".join(str(e).split())
    if isinstance(e, TrueupError):
        return e
    if isinstance(e, pickle.UnpicklingError):
        return BadInput(files.more_than_tensors(name))
    if "trust_remote_code" in text:
        return Unsupported(
            f"'{name}' needs code of its own. Read that code, then pass --trust-remote-code if you trust it."
        )
    if isinstance(e, OSError) and not Path(name).exists():
        why = unanswered() or shortened(text.split(". ")[0].rstrip("."), 160)
        near = places.meant(name, holds)
        otherwise = "use an embedded model such as 'embedded:minilm'" if holds != places.SETTINGS else "give a folder"
        return Unavailable(
            f"'{name}' is not a local folder, and it cannot be downloaded from the Hugging Face Hub ({why}).{near} Check the name "
            f"and the network, or {otherwise}."
        )
    return BadInput(
        f"'{name}' could not be loaded: {text[:240]}. Check that the folder is a complete transformers model."
    )
