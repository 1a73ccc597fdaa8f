"""A repair that is a PEFT adapter, on a loaded model and as files. Every fault whose repair is an adapter uses it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from trueup.errors import BadInput
from trueup.faults import loading, predict_script
from trueup.faults.card import Card, page
from trueup.faults.fault import Alternative, Chart, Comparison, Remedy
from trueup.store import atomic
from trueup.subject import adapter as files
from trueup.subject.beside import CARD, read_card
from trueup.subject.subject import Head, Subject, model_fingerprint
from trueup.subject.swap_adapter import wear


@dataclass(frozen=True, eq=False, repr=False)
class Adapted(Remedy):
    """The repair that replaces the adapter of the subject by another one.

    Attributes:
        fault: the fault that it repairs. made_for: the fingerprint of the model for which it was made.
        settings, tensors: the configuration and the weights of the PEFT adapter.
        head: the last layer that replaces that of a subject which answers with words. It is saved as the head of a sequence
            classifier on the same base. None for other repairs.
        card: the facts that are saved with the adapter: what was chosen and what was tried.
        pictures: the charts that `Remedy.charts` returns.
        tokenizer: the tokenizer of the subject, saved with the adapter, if it differs from that of the base; else None.
    """

    fault: str
    made_for: str
    settings: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    head: Head | None
    card: Mapping[str, Any]
    pictures: tuple[Chart, ...] = ()
    tokenizer: Any = None

    @contextlib.contextmanager
    def on(self, subject: Subject) -> Iterator[Subject]:
        if model_fingerprint(subject.model) != self.made_for:
            raise BadInput(
                f"This repair of {self.fault} was made for another model or adapter (weights or settings differ). Load the adapter "
                f"it was made for, or repair this one: `trueup repair {self.fault} MODEL --adapter DIR --data ...`."
            )
        if self.head is not None:
            head = Head(self.head.weight.to(subject.device), self.head.bias.to(subject.device))
            yield replace(subject, head=head)
        else:
            yield wear(subject, self.settings, self.tensors)

    def save(self, folder: Path, comparison: Comparison | None = None) -> Path:
        folder = Path(folder)
        with atomic.new_folder(folder, force=folder.exists()) as new:
            files.write_adapter(new, self.settings, self.tensors, self.tokenizer)
            card = dict(self.card) | {"repairs": self.fault, "made_for": self.made_for, "words": self.head is not None}
            atomic.write_json(new / CARD, card)
            atomic.write_text(new / "README.md", page(_card(self), comparison))
            if not _shots(self.card):
                atomic.write_text(new / predict_script.NAME, _script(self))
        return folder

    def usage(self, folder: str) -> str:
        if not _shots(self.card):
            return predict_script.usage(folder, self.card)
        base, folder_literal = loading.code_literal(str(self.card["base"])), loading.code_literal(folder)
        input_lines = 'demonstrations, query = [("a text", "its answer"), ...], "a text to be answered"'
        return f"BASE, FOLDER = {base}, {folder_literal}\n{input_lines}\n{_few_shot(self, ()).code}"

    def describe(self) -> str:
        return str(self.card["describe"])

    def charts(self) -> tuple[Chart, ...]:
        return self.pictures

    def alternatives(self) -> tuple[Alternative, ...]:
        return tuple(Alternative(**a) for a in self.card.get("frontier", ()))


def adapted(
    fault: str, subject: Subject, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], card: Mapping[str, Any],
    *, head: Head | None = None, pictures: tuple[Chart, ...] = (),
) -> Adapted:  # fmt: skip
    """The remedy for `subject` that consists of this adapter. It adds to `card` the facts that are needed to load it.

    `card` says what was chosen. Its `table` (markdown) says what was tried, and its `pair` that the examples are pairs of texts.
    """
    about: dict[str, Any] = loading.facts(subject) | {"classes": list(subject.classes)}
    template = about["shape"]
    # A user may examine the repaired adapter again, so its card holds what trueup's loader reads from the card of an adapter.
    if template is not None and head is None:
        about["template"] = template
    if subject.source.seen is not None:
        about["tuned"] = dict(subject.source.seen)
    return Adapted(
        fault, model_fingerprint(subject.model), settings, tensors, head, about | dict(card), pictures, files.brought(subject)
    )  # fmt: skip


def with_head(fault: str, subject: Subject, head: Head, card: Mapping[str, Any]) -> Adapted:
    """The remedy for `subject` that replaces its last layer by `head`.

    Raises:
        Unsupported: as `subject.adapter.adapter_with_head`.
    """
    settings, tensors = files.adapter_with_head(subject, files.in_place(subject, head))
    return adapted(fault, subject, settings, tensors, card, head=head if subject.template is not None else None)


def read_adapted(fault: str, folder: Path, subject: Subject) -> Adapted:
    """The remedy that `Adapted.save` wrote.

    Raises:
        BadInput: the folder holds no repair of this fault, or is damaged.
    """
    folder = Path(folder)
    card = read_card(folder)
    if card.get("repairs") != fault or "made_for" not in card:
        raise BadInput(f"'{folder}' holds no repair of {fault} saved by trueup; give the folder of a saved remedy.")
    atomic.verify(folder)
    settings, tensors = files.read_settings(folder), files.read_tensors(folder)
    head = files.head_in(tensors, subject.anatomy) if card.get("words") else None
    choices = {k: v for k, v in card.items() if k not in ("repairs", "made_for", "words")}
    return Adapted(fault, card["made_for"], settings, tensors, head, choices, tokenizer=files.brought(subject))


def _shots(card: Mapping[str, Any]) -> bool:
    """Whether the subject of this card answers from demonstrations in its prompt."""
    return bool((card.get("shape") or {}).get("shots"))


def _lines(remedy: Adapted) -> tuple[str, str, str, str]:
    """The code of a card, in four parts: load the model, make the inputs, make `out` with one column per class, read the label."""
    card, names = remedy.card, remedy.card["classes"]
    words = card.get("shape") if remedy.head is None else None
    out, logits = "out = model(**inputs).logits", 1 if card.get("sigmoid") else None if words else len(names)
    if words:
        out = (
            f"words = {card['ids']}  # what {list(words['words'])!r} start with, as tokens\n"
            "out = model(**inputs).logits[:, -1, words]"
        )
    label, _ = loading.answer(len(names), sigmoid=bool(card.get("sigmoid")))
    return loading.load_lines(card, logits, names), loading.input_lines(card), out, f"label = {label}"


def _card(remedy: Adapted) -> Card:
    card, names = remedy.card, remedy.card["classes"]
    tried = (("What was tried", str(card["table"])),) if card.get("table") else ()
    if _shots(card):
        return _few_shot(remedy, tried)
    return Card(
        remedy.fault, f"A repaired adapter ({remedy.fault})", remedy.describe(), str(card["base"]), "text-classification",
        f"`{predict_script.NAME}` in this folder does it. Classes, in the order of the "
        f"{'labels' if card.get('sigmoid') else 'logits'}: {loading.class_names(names)}.",
        "\n".join(_lines(remedy)),
        loading.closing(card), tried, licence=str(card.get("licence") or ""),
    )  # fmt: skip


def _script(remedy: Adapted) -> str:
    card, (load, inputs, out, label) = remedy.card, _lines(remedy)
    _, confidence = loading.answer(len(card["classes"]), sigmoid=bool(card.get("sigmoid")))
    read = f"{out}\n{label}\nconfidence = {confidence}"
    return predict_script.script(card, card["classes"], load=load, inputs=inputs, read=read)


def _few_shot(remedy: Adapted, tried: tuple[tuple[str, str], ...]) -> Card:
    """The card of an adapter for a subject that answers from demonstrations in its prompt."""
    shape = remedy.card["shape"]

    def joined(text: str, x: str) -> str:
        parts = [p for p in re.split(r"(\{text\}|\{label\})", text) if p]
        return " + ".join({"{text}": x, "{label}": "answer"}.get(p, repr(p)) for p in parts)

    line = shape["text"] if shape["text"] != shape["text"].rstrip() else shape["text"] + "\n"
    header = f"{shape['header']!r} + " if shape.get("header") else ""
    prompt = "shown + " + joined(line.partition("{label}")[0].rstrip(), "query")
    shown = f'shown = {header}"".join({joined(line, "text")} for text, answer in demonstrations)'
    ends = "the answer ends where its line does"
    if shape.get("chat"):
        turns, header = shape["text"], str(shape.get("header") or "").strip()
        system = f"{{'role': 'system', 'content': {header!r}}}" if header else ""
        shown = f"""turns = [{system}]
for text, answer in demonstrations:
    turns += [{{'role': 'user', 'content': {joined(turns, "text")}}}, {{'role': 'assistant', 'content': answer}}]
turns.append({{'role': 'user', 'content': {joined(turns, "query")}}})
shown = tok.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)"""
        prompt = f"shown + {remedy.card['opened']!r}" if remedy.card["opened"] else "shown"
        ends = "the answer ends with its turn"
    return Card(
        remedy.fault, f"A repaired adapter ({remedy.fault})", remedy.describe(), str(remedy.card["base"]), "text-generation",
        f"It was made for prompts of {shape['shots']['number']} demonstrations and a query.",
        f"""{loading.load_lines(remedy.card, None)}
{shown}
{loading.input_lines(remedy.card, prompt)}
answer = tok.decode(model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1]:])""",
        f"`demonstrations` are pairs of a text and its answer, `query` is the text to be answered; {ends}.\n"
        f"{loading.closing(remedy.card)}",
        tried, licence=str(remedy.card.get("licence") or ""),
    )  # fmt: skip
