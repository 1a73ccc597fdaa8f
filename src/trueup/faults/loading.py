"""How a card says that a repaired adapter is loaded and asked with plain PEFT, in lines that say what trueup says."""

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
    """What the lines need to know of a subject; a card adds ``pair`` where its examples are pairs of texts."""
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
    """The settings under which a base was quantised as it was loaded; None where its own folder says so, or it is not."""
    settings = getattr(subject.base.config, "quantization_config", None)
    if settings is None or (subject.source.base != UNNAMED and subject.source.weights.quantize is None):
        return None
    plain = settings if isinstance(settings, dict) else settings.to_dict()
    return {k: getattr(v, "value", v) for k, v in plain.items() if not k.startswith("_")}


def load_lines(about: Mapping[str, Any], logits: int | None, names: Sequence[str] = ()) -> str:
    """The lines that make `model` and `tok`: a classifier of so many `logits`, or a model that writes for None. With the `names` of
    the outputs the model's config says them too; an output beyond them is no class."""
    kind = "CausalLM" if logits is None else "SequenceClassification"
    given = [f"dtype={about['dtype']!r}"]
    if logits is not None:
        given = [*_labels(logits, names), "ignore_mismatched_sizes=True", *given]
    if about.get("quantised"):
        given.append(f"quantization_config={about['quantised']!r}")
    pinned = f", revision={about['revision']!r}" if about.get("revision") else ""
    words = "FOLDER" if about.get("own tokenizer") else f"BASE{pinned}"
    rows = about.get("vocabulary")
    wider = f"\nbase.resize_token_embeddings({rows}, mean_resizing=False)" if rows else ""
    if logits is not None and about.get("causal"):  # a decoder's classifier reads the last token that is not this one
        wider += f"\nbase.config.pad_token_id = {about.get('pad')}"
    return f"""from transformers import AutoModelFor{kind}, AutoTokenizer
from peft import PeftModel
base = AutoModelFor{kind}.from_pretrained(BASE, {", ".join(given)}{pinned}){wider}
model, tok = PeftModel.from_pretrained(base, FOLDER).eval(), AutoTokenizer.from_pretrained({words})"""


def _labels(logits: int, names: Sequence[str]) -> list[str]:
    """The arguments that say how many outputs there are, and what they are called."""
    if not 1 < len(names) <= logits:
        return [f"num_labels={logits}"]
    outputs = [*names, *(f"no class: for the confidence {i + 1}" for i in range(logits - len(names)))]
    pairs = [(code_literal(n), i) for i, n in enumerate(outputs)]
    id_to_label, label_to_id = ", ".join(f"{i}: {n}" for n, i in pairs), ", ".join(f"{n}: {i}" for n, i in pairs)
    return [f"id2label={{{id_to_label}}}", f"label2id={{{label_to_id}}}"]


def input_lines(about: Mapping[str, Any], text: str | None = None, arrays: str = "pt") -> str:
    """The lines that make `inputs` of ``text``, and ``second`` for pairs, or of the Python expression `text`.

    `arrays` are ``pt`` for torch's tensors, or ``np``."""
    shape = about.get("shape")
    options = "" if shape is not None else f", truncation=True, max_length={about['max_length']}"
    if shape is None and not about.get(
        "causal", True
    ):  # several texts at once are padded; a decoder reads one at a time
        options = f", padding=True{options}"
    if text is None and shape is not None:
        # Joined and not replaced, so that braces inside a text stay what they are.
        parts = [p for p in re.split(r"(\{text\}|\{second\})", shape["text"]) if p]
        text = " + ".join(p[1:-1] if p in ("{text}", "{second}") else repr(p) for p in parts)
    text = text or ("text, second" if about.get("pair") else "text")
    if shape is not None and shape.get("chat"):  # the chat template has written the special tokens
        options += ", add_special_tokens=False"
    if not about.get("segments", True):
        options += ", return_token_type_ids=False"
    lines = f'inputs = tok({text}, return_tensors="{arrays}"{options})'
    if about.get("ends"):  # an answer comes where the text stops, not after a token that ends it
        lines += "\ninputs = {k: v[:, :-1] for k, v in inputs.items()}  # this tokenizer ends every text with a token"
    return lines


def answer(classes: int, *, score: Calibrated | None = None, sigmoid: bool = False) -> tuple[str, str]:
    """The Python expressions of label and confidence that read `out`, the logits (n, K) of so many classes.

    Args:
        score: reads the confidence where it is not the probability of the label; it takes `out` in float64.
        sigmoid: the two classes share one logit.
    """
    if score is not None:
        return f"out[:, :{classes}].argmax(-1)", score.torch_line
    if sigmoid:
        return "(out[:, 0] > 0).long()", "torch.sigmoid(out[:, 0].double().abs())"
    return "out.argmax(-1)", "out.double().softmax(-1).amax(-1)"


def code_literal(text: str) -> str:
    """A name as a Python literal that ends no line and no fenced block of a card."""
    return json.dumps(text).replace("`", "\\u0060")


def class_names(names: Sequence[str]) -> str:
    """The classes for a sentence of a card."""
    return ", ".join(map(literal, names))


def literal(name: str) -> str:
    """A name in a card, as it is: none ends a line, is read as markup, or turns what follows it around."""
    return f"`{visible(json.dumps(name, ensure_ascii=False)).replace('`', chr(39))}`"


def closing(about: Mapping[str, Any]) -> str:
    """What stands after the lines: what their names mean, and what they do not do."""
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
