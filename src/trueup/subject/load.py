"""From names, or a live model, to a Subject: the door through which every model comes in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import Tensor

from trueup.errors import BadInput, TrueupError, listing
from trueup.given import checked
from trueup.subject import adapter as files
from trueup.subject import places, tokens
from trueup.subject.anatomy import FAMILIES, Anatomy, check_words
from trueup.subject.beside import read_card
from trueup.subject.checkpoint import (
    adapter_folder,
    as_trained,
    attach,
    check_head,
    check_template,
    fit_vocabulary,
    load_base,
    load_tokenizer,
    padded,
    pinned,
    prove_head,
    read_model_config,
    resolve,
    set_padding,
    through_sigmoid,
)
from trueup.subject.discover import anatomy_of, in_batches, tried
from trueup.subject.discover import told as told_of
from trueup.subject.outputs import check_names, does_not_fit, no_head, other_head, own_names
from trueup.subject.positions import longest, most_tokens, position_limit
from trueup.subject.quiet import quiet
from trueup.subject.subject import SoftmaxResponse, Source, Subject
from trueup.subject.template import template_of
from trueup.subject.weights import (
    Weights,
    device_of,
    placed,
    settled,
)


@checked
def load(
    model: str | Any,
    adapter: str | Path | None = None,
    *,
    tokenizer: Any = None,
    classes: Sequence[str] | None = None,
    template: str | None = None,
    verbaliser: Sequence[str] | None = None,
    shots: int | None = None,
    chat: bool = False,
    max_length: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    quantize: str | Mapping[str, Any] | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> Subject:
    """Load an adapted classifier or, with `shots`, a causal model with demonstrations in its prompt.

    Files in the adapter's folder are used as well: a tokenizer, and embeddings that PEFT saved (the base's embeddings are
    resized to them). The adapter's config gives the revision of the base.

    Args:
        model: a hub id, a local folder, or ``embedded:NAME``. Or a live PeftModel or transformers model, which is not changed.
        adapter: the folder or hub id of a PEFT adapter (LoRA, prompt tuning, prefix tuning, p-tuning, IA3), or None.
        tokenizer: the tokenizer of a live model. Default: the tokenizer of the model name in its config. For a model given by
            name: the tokenizer in the adapter's folder, otherwise the model's.
        classes: the class names in the order of the logits. Default: the names in the adapter's trueup card, otherwise the
            label names in the model's config, otherwise the names in the data. If the adapter brings its own head, the
            base's label names are used only if the data have the same names.
        template, verbaliser: for a causal model that answers with a word: a prompt that contains ``{text}``, and one answer word
            for each class, compared by its first token. Default: those in the adapter's trueup card.
        shots: the number of demonstrations before each query. The answers are then the class names of the data, and `template`
            is one demonstration that contains ``{text}`` and ``{label}``.
        chat: with `shots`, for an instruct model: each demonstration is a user message and an answer of the assistant, written
            with the tokenizer's chat template. `template` is then the user message (default ``{text}``).
        max_length: the longest input in tokens. Default: the length in the card, otherwise the limit of the model and tokenizer.
        device: ``cpu``, ``cuda`` and so on. Default: the first available one of ``cuda``, ``mps`` and ``cpu``.
        revision: the revision of the model on the hub. Default: the revision in the adapter's config.
        dtype: the number type of the base's weights: ``float32``, ``bfloat16``, ``float16``, or ``auto`` for that of the
            checkpoint. Default: float32 on a CPU, otherwise ``auto``.
        quantize: ``4bit`` (NF4), ``8bit`` (LLM.int8), or settings of bitsandbytes. The base is loaded in this form, which needs
            the package (``trueup[quantize]``). With ``4bit``, settings that the adapter records from its training come first.
        device_map: replaces `device`: ``auto`` or another word of accelerate, a JSON file, or a mapping from modules to devices
            (``cpu``, ``disk``, ``cuda:0``). Embeddings and heads always stay in memory.
        allow_pickle: load weights that are not in safetensors files.
        trust_remote_code: run Python code from the model's repository.

    Raises:
        BadInput: there is no model under this name; the weights are a pickle; the adapter was made for another base; there is
            neither a head nor a verbaliser; the device cannot compute the number type; bitsandbytes is missing; or the device
            map does not fit.
        Unsupported: trueup does not support this architecture or kind of adapter.
        Unavailable: the hub cannot be reached.
    """
    if not isinstance(model, str | Path):
        from trueup.subject.adopt import adopt

        options = {"adapter": adapter, "device": device, "dtype": dtype, "quantize": quantize, "device_map": device_map}
        for what, asked in options.items():
            if asked is not None:
                raise BadInput(
                    f"A live model brings its own {what}, so '{asked}' cannot be had with it; leave `{what}` out, or give the "
                    "model by its name."
                )
        return adopt(
            model, tokenizer, classes=classes, template=template, verbaliser=verbaliser, shots=shots, chat=chat,
            max_length=max_length, revision=revision, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code,
        )  # fmt: skip
    if tokenizer is not None:
        raise BadInput(
            f"The tokenizer of '{model}' is loaded with it; leave `tokenizer` out, or give the model itself."
        )
    model, adapter = str(model), None if adapter is None else str(adapter)
    weights = Weights(dtype, quantize, device_map).checked(device)
    device = device_of(device)
    folder = adapter_folder(adapter)
    if folder is not None:
        places.check_adapter(folder, str(adapter))
    card = read_card(folder)
    if "score" in card:
        repaired_from = card.get("adapter")
        raise BadInput(
            f"'{adapter}' is a confidence head that trueup made as a repair, not an adapter to examine. Give what it was "
            + (
                f"made from instead: --adapter {repaired_from}."
                if repaired_from
                else "made from instead: the same model without --adapter."
            )
        )
    where = resolve(model)
    settings = files.read_config(folder) if folder else None
    revision, notes = pinned(settings, model, revision)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = read_model_config(where, model, **options)
    weights, trained = as_trained(weights, quantize, folder, settings)
    notes += trained
    if "template" in card:
        template, known = template or card["template"]["text"], card["template"].get("shots")
        shots = shots if shots is not None or not known else int(known["number"])
        verbaliser = verbaliser or (None if shots is not None else card["template"]["words"])
        chat = chat or bool(card["template"].get("chat"))
    chosen = template_of(template, verbaliser, shots, chat)
    if chosen is not None and card.get("template"):
        chosen = replace(chosen, header=card["template"].get("header", ""))
    anatomy = anatomy_of(config, words=chosen is not None, trust_remote_code=trust_remote_code)
    if settings is not None:
        notes += files.started(settings, f"The adapter '{adapter}'")
    tensors = files.read_tensors(folder, allow_pickle=allow_pickle) if folder else {}
    head_rows = _head_rows(tensors, anatomy)
    if folder and not head_rows and any(_head_rows(tensors, other) for other in FAMILIES.values()):
        raise other_head(str(adapter), model, _made_for(settings), anatomy.model_type)
    causal = chosen is not None or _is_causal(settings, config, head_rows, model, adapter)
    check_words(anatomy, chosen)
    names, multi_label = tuple(classes or card.get("classes") or ()), False
    if causal:
        words = tuple(verbaliser or ())
        names = () if shots is not None else names or tuple(w.strip() for w in words)
        rows = len(words)
    else:
        rows = head_rows or int(getattr(config, "num_labels", 0))
        multi_label = check_head(config, rows, model, own=not head_rows)
    borrowed, sigmoid = not causal and not names and bool(head_rows), not causal and rows == 1
    names = names if causal else names or own_names(config.id2label, rows)
    check_names(names, 2 if sigmoid else rows)
    notes += through_sigmoid(names) if sigmoid else ()
    tokenizer, another = _tokenizer(folder, adapter, where, model, **options)
    notes += another
    cls = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForSequenceClassification
    with torch.random.fork_rng():
        # A base without a head gets a random one, which PEFT keeps under the adapter's. Seeded, so that a model has one
        # fingerprint however often it is loaded.
        torch.manual_seed(0)
        net, missing = load_base(
            cls, where, model, device=device, allow_pickle=allow_pickle, weights=weights, **options,
            **({} if causal else {"num_labels": rows}),
        )  # fmt: skip
        set_padding(net, tokenizer)
        anatomy = tried(placed(net, device), anatomy, tokenizer, words=causal)
        check_words(anatomy, chosen)
        vocabulary = 0
        if settings is not None and folder is not None:
            other = does_not_fit(str(adapter), model, _made_for(settings))
            resized = fit_vocabulary(net, tensors, other)
            net, brought = attach(net, settings, tensors, anatomy, other=other)
            vocabulary = tokens.rows_of(net) if resized or brought else 0
            if not files.known(settings):
                anatomy = in_batches(net.get_base_model(), anatomy, tokenizer, words=causal)
            missing = [m for m in missing if not any(m in k for k in tensors)]
    notes += told_of(anatomy)
    if missing:
        raise BadInput(
            f"'{model}' lacks the weights {listing(missing, 4)}, and no adapter brings them: it would answer at random. "
            "Tune an adapter first: `trueup tune lora " + model + " --data ...`."
        )
    if tokens.rows_of(net) and (another or vocabulary):
        whose = (
            f"The tokenizer beside the adapter '{adapter}'" if tokens.has_one(folder) else f"The tokenizer of '{model}'"
        )
        tokens.check_rows(tokenizer, tokens.rows_of(net), whose)
    if chosen is not None and (chosen.shots is None or chosen.chat):
        check_template(tokenizer, chosen)
    room = position_limit(config, anatomy, settings)
    usual = card.get("max_length") or most_tokens(config, anatomy, tokenizer, settings)
    subject = Subject(
        model=settled(placed(net.eval(), device)),
        tokenizer=tokenizer,
        anatomy=anatomy,
        classes=names,
        source=Source(
            model,
            adapter,
            str(getattr(settings.peft_type, "value", settings.peft_type)) if settings is not None else None,
            revision,
            allow_pickle,
            trust_remote_code,
            tokenizer=adapter if another else None,
            vocabulary=vocabulary,
            borrowed=borrowed,
            told=notes,
            weights=weights,
        ),
        max_length=longest(max_length, usual, room),
        template=chosen,
        confidence=SoftmaxResponse(len(names)),
        sigmoid=sigmoid,
        multi_label=multi_label,
    )
    for p in net.parameters():
        p.requires_grad_(False)
    prove_head(subject)
    return subject


def _head_rows(tensors: dict[str, Tensor], anatomy: Anatomy) -> int:
    ends = f".{anatomy.head}.weight"
    return next((int(v.shape[0]) for k, v in tensors.items() if anatomy.head and k.endswith(ends)), 0)


def _is_causal(
    settings: peft.PeftConfig | None,
    config: Any,
    head_rows: int,
    model: str,
    adapter: str | None,
) -> bool:
    classifier = head_rows or any(a.endswith("ForSequenceClassification") for a in config.architectures or ())
    if settings is not None and str(getattr(settings.task_type, "value", settings.task_type)) == "CAUSAL_LM":
        classifier = False
    if classifier:
        return False
    raise no_head(model, adapter)


def _made_for(settings: peft.PeftConfig | None) -> object:
    return getattr(settings, "base_model_name_or_path", None)


def _tokenizer(
    folder: Path | None, adapter: str | None, where: str, name: str, **options: Any
) -> tuple[Any, tuple[str, ...]]:
    """The adapter's own tokenizer where it has one, else the base's; and a sentence where the two are not the same."""
    if not tokens.has_one(folder):
        return load_tokenizer(where, name, **options), ()
    with quiet(), tokens.said(f"the adapter '{adapter}'"):
        try:
            adapter_tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, trust_remote_code=options.get("trust_remote_code", False)
            )
        except Exception as e:
            raise BadInput(
                f"The tokenizer beside the adapter '{adapter}' could not be loaded: {' '.join(str(e).split())[:200].rstrip('.')}. "
                "Save it there again with tokenizer.save_pretrained, or take its files away to read with the base's."
            ) from e
    adapter_tokenizer = padded(adapter_tokenizer, f"the adapter {adapter}")
    try:
        found = tokens.differences(adapter_tokenizer, load_tokenizer(where, name, **options))
    except TrueupError:
        found = ["the base has none that could be read"]
    if not found:
        return adapter_tokenizer, ()
    return adapter_tokenizer, (
        f"Texts are read with the tokenizer beside the adapter, which is not the base's: {'; '.join(found)}.",
    )
