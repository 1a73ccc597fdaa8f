"""The code on a card that loads and runs a repaired adapter with plain PEFT. Its results are those of trueup."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from trueup.errors import visible
from trueup.measure.confidence_scores import Calibrated
from trueup.subject.checkpoint import UNNAMED
from trueup.subject.few_shot_tokens import ends_texts, opened
from trueup.subject.hub import licence_of
from trueup.subject.subject import Subject


def facts(subject: Subject) -> dict[str, Any]:
    """The facts of a subject that the lines of code depend on. A card adds ``pair`` where the examples are pairs of texts."""
    causal, chat = subject.anatomy.causal, subject.template is not None and subject.template.chat
    takes_segments = not causal and getattr(subject.base.config, "type_vocab_size", 0) > 1
    return {
        "base": subject.source.base, "adapter": subject.source.adapter, "revision": subject.source.revision,
        "dtype": str(next(subject.model.parameters()).dtype).removeprefix("torch."), "max_length": subject.max_length,
        "shape": None if subject.template is None else subject.template.for_card(),
        "segments": takes_segments or "token_type_ids" not in subject.tokenizer.model_input_names,
        "ends": subject.template is not None and not chat and ends_texts(subject.tokenizer),
        "opened": opened(subject.tokenizer, subject.template) if subject.template is not None and chat else None,
        "ids": None if subject.template is None or subject.shots is not None else subject.verbaliser_ids(),
        "quantised": _quantised(subject), "pad": None if subject.template is not None else subject.pad_token_id,
        "sigmoid": subject.sigmoid,
        "causal": causal, "own tokenizer": subject.source.tokenizer is not None, "vocabulary": subject.source.vocabulary,
        "licence": licence_of(subject.source.base),
    }  # fmt: skip


def _quantised(subject: Subject) -> Any:
    """The settings with which a base was quantised when it was loaded; None if its folder holds them, or it is not quantised."""
    settings = getattr(subject.base.config, "quantization_config", None)
    if settings is None or (subject.source.base != UNNAMED and subject.source.weights.quantize is None):
        return None
    plain = settings if isinstance(settings, dict) else settings.to_dict()
    return {k: getattr(v, "value", v) for k, v in plain.items() if not k.startswith("_")}


def load_lines(about: Mapping[str, Any], logits: int | None, names: Sequence[str] = ()) -> str:
    """The lines that make `model` and `tok`: a classifier with `logits` outputs, or a text generator if that is None. `names` are
    the names of the classes, which the model's config then holds as well. Outputs beyond them are no classes."""
    kind = "CausalLM" if logits is None else "SequenceClassification"
    arguments = [f"dtype={about['dtype']!r}"]
    if logits is not None:
        arguments = [*_labels(logits, names), "ignore_mismatched_sizes=True", *arguments]
    if about.get("quantised"):
        arguments.append(f"quantization_config={about['quantised']!r}")
    pinned = f", revision={about['revision']!r}" if about.get("revision") else ""
    words = "FOLDER" if about.get("own tokenizer") else f"BASE{pinned}"
    rows = about.get("vocabulary")
    further_lines = f"\nbase.resize_token_embeddings({rows}, mean_resizing=False)" if rows else ""
    if logits is not None and about.get("causal"):  # a decoder's classifier reads the last token other than this one
        further_lines += f"\nbase.config.pad_token_id = {about.get('pad')}"
    return f"""from transformers import AutoModelFor{kind}, AutoTokenizer
from peft import PeftModel
base = AutoModelFor{kind}.from_pretrained(BASE, {", ".join(arguments)}{pinned}){further_lines}
model, tok = PeftModel.from_pretrained(base, FOLDER).eval(), AutoTokenizer.from_pretrained({words})"""


def _labels(logits: int, names: Sequence[str]) -> list[str]:
    """The arguments that give the number of outputs and their names."""
    if not 1 < len(names) <= logits:
        return [f"num_labels={logits}"]
    outputs = [*names, *(f"no class: for the confidence {i + 1}" for i in range(logits - len(names)))]
    pairs = [(code_literal(n), i) for i, n in enumerate(outputs)]
    names_of, indices_of = ", ".join(f"{i}: {n}" for n, i in pairs), ", ".join(f"{n}: {i}" for n, i in pairs)
    return [f"id2label={{{names_of}}}", f"label2id={{{indices_of}}}"]


def input_lines(about: Mapping[str, Any], text: str | None = None, arrays: str = "pt") -> str:
    """The lines that make `inputs` from ``text``, and from ``second`` for pairs, or from the Python expression `text`.

    `arrays` is ``pt`` for torch tensors, or ``np``."""
    shape = about.get("shape")
    options = "" if shape is not None else f", truncation=True, max_length={about['max_length']}"
    if shape is None and not about.get(
        "causal", True
    ):  # several texts at once are padded; a decoder reads one at a time
        options = f", padding=True{options}"
    if text is None and shape is not None:
        # The parts are joined and nothing is replaced, so that braces inside a text stay unchanged.
        parts = [p for p in re.split(r"(\{text\}|\{second\})", shape["text"]) if p]
        text = " + ".join(p[1:-1] if p in ("{text}", "{second}") else repr(p) for p in parts)
    text = text or ("text, second" if about.get("pair") else "text")
    if shape is not None and shape.get("chat"):  # the chat template adds the special tokens
        options += ", add_special_tokens=False"
    if not about.get("segments", True):
        options += ", return_token_type_ids=False"
    lines = f'inputs = tok({text}, return_tensors="{arrays}"{options})'
    if about.get("ends"):  # the answer follows the text directly, not a token that ends the text
        lines += "\ninputs = {k: v[:, :-1] for k, v in inputs.items()}  # this tokenizer ends every text with a token"
    return lines


def answer(classes: int, *, score: Calibrated | None = None, sigmoid: bool = False) -> tuple[str, str]:
    """The Python expressions of label and confidence from `out`, the logits (n, K) of `classes` classes.

    Args:
        score: computes the confidence from `out` in float64, where it is not the probability of the label.
        sigmoid: whether the two classes share one logit.
    """
    if score is not None:
        return f"out[:, :{classes}].argmax(-1)", score.torch_line
    if sigmoid:
        return "(out[:, 0] > 0).long()", "torch.sigmoid(out[:, 0].double().abs())"
    return "out.argmax(-1)", "out.double().softmax(-1).amax(-1)"


def code_literal(text: str) -> str:
    """A name as a Python literal that cannot end a line or a fenced block of a card."""
    return json.dumps(text).replace("`", "\\u0060")


def class_names(names: Sequence[str]) -> str:
    """The classes for a sentence of a card."""
    return ", ".join(map(literal, names))


def literal(name: str) -> str:
    """A name in a card, quoted so that it cannot end a line, act as markup, or reverse the direction of the text after it."""
    return f"`{visible(json.dumps(name, ensure_ascii=False)).replace('`', chr(39))}`"


def closing(about: Mapping[str, Any]) -> str:
    """The text after the code of a card: what its names mean, and what it does not do."""
    shape = about.get("shape")
    text = f"`BASE` is {literal(str(about['base']))}, and `FOLDER` is the folder of this card."
    if str(about["base"]).startswith("embedded:"):
        text += " The base is a folder in trueup's cache: `trueup.fetch` returns it. You can use a copy of it anywhere."
    if shape is not None and shape.get("shots"):
        return text
    if shape is not None:
        text += (
            f" Where the prompt has more than {about['max_length']} tokens, trueup cuts `text` at its end until it fits; these "
            "lines do not, so cut it first."
        )
    if about.get("causal", True):
        return text + " Give one text at a time: among padding the answer may be read at the wrong token."
    return text + " For several texts at once give lists."
