"""How a text becomes a prompt: the template, its class words, and the demonstrations before a query."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trueup.errors import BadInput


@dataclass(frozen=True)
class Shots:
    """In-context learning: `number` demonstrations before every query, drawn from `pool` for each query by itself.

    Attributes:
        pool: pairs of a text and its answer. Empty until the corpus that brings them is known (its ``train`` split).
        fixed: so many pairs at the beginning of `pool` stand before every query, in their order; then `number` is as many. 0
            where they are drawn.
    """

    number: int = 4
    pool: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    fixed: int = 0


@dataclass(frozen=True)
class Template:
    """How a text becomes a causal model's prompt, and which words are the classes (a verbaliser).

    Attributes:
        text: the prompt; ``{text}`` stands for the example, ``{second}`` for its second text. With `shots` it is one
            demonstration, ``{label}`` its answer; the query is the same line up to there.
        words: one word per class, in the classes' order, leading space included. A class scores by the logit of its
            word's first token, so first tokens must differ (with `shots` they need not: `run.answers` reads to the end).
        shots: demonstrations before the query, or None.
        header: what stands before the first demonstration, its line break included.
        chat: with `shots`, each demonstration is a user's turn, which `text` makes, and the assistant's answer; `header` is the
            system's message. The tokenizer's chat template spells them (`few_shot_tokens.prompt_ids`).
    """

    text: str
    words: tuple[str, ...]
    shots: Shots | None = None
    header: str = ""
    chat: bool = False

    def fill(self, text: str, second: str | None = None) -> str:
        """The prompt of one example. Braces inside the example are left alone."""
        return _filled(self.text, {"{text}": text, "{second}": second or ""})

    def for_card(self) -> dict[str, Any]:
        """What is written beside an adapter: not the demonstrations, which are the user's."""
        shots = None if self.shots is None else {"number": self.shots.number}
        return {"text": self.text, "words": self.words, "shots": shots, "header": self.header, "chat": self.chat}

    def prompt(self, text: str, demonstrations: Sequence[tuple[str, str]] = ()) -> str:
        """The few-shot prompt of one query: a line for each demonstration, then the query's, up to where the answer goes."""
        return self.before(demonstrations) + _filled(self.line.partition("{label}")[0].rstrip(), {"{text}": text})

    def before(self, demonstrations: Sequence[tuple[str, str]]) -> str:
        """What stands before a query: the header, and a line for each demonstration."""
        return self.header + "".join(_filled(self.line, {"{text}": x, "{label}": y}) for x, y in demonstrations)

    def messages(
        self, text: str, demonstrations: Sequence[tuple[str, str]] = (), first: str = ""
    ) -> list[dict[str, str]]:
        """The turns of a chat that ends with a query, as transformers' chat templates take them; `first` stands before the first
        user's text."""
        turns = [] if not self.header.strip() else [{"role": "system", "content": self.header.strip()}]
        for x, y in demonstrations:
            turns += [{"role": "user", "content": first + self.fill(x)}, {"role": "assistant", "content": y.strip()}]
            first = ""
        return [*turns, {"role": "user", "content": first + self.fill(text)}]

    @property
    def line(self) -> str:
        """What one demonstration is made from: the text, on a line of its own where nothing else parts it from the next."""
        return self.text if self.text != self.text.rstrip() else self.text + "\n"


def _filled(text: str, parts: Mapping[str, str]) -> str:
    return re.sub("|".join(map(re.escape, parts)), lambda m: parts[m.group()], text)


SHOT = "{text} -> {label}\n"
"""One demonstration of a few-shot prompt, unless a template says otherwise."""


def template_of(
    text: str | None, words: Sequence[str] | None, shots: int | None = None, chat: bool = False
) -> Template | None:
    """The template of a causal model that answers with a word, or from `shots` demonstrations; None for a classifier with
    a head.

    Raises:
        BadInput: a text without words to answer with, or a demonstration without a place for its answer.
    """
    text = as_meant(text or "")
    if chat and shots is None:
        raise BadInput(
            "--chat goes with prompts that show demonstrations, as a user's turns and the assistant's answers. Give --shots 4, or "
            "leave it out."
        )
    if shots is not None:
        text = text or ("{text}" if chat else SHOT)
        if shots < 0:
            raise BadInput(f"There cannot be {shots} demonstrations; give --shots 4 or another number.")
        if words:
            raise BadInput("Demonstrations bring their own answers (the data's class names); leave --verbaliser out.")
        if chat and "{label}" in text:
            raise BadInput(
                f"With --chat the template {text!r} is the user's turn alone, and the answer is the assistant's: leave {{label}} "
                "and what stands before it out."
            )
        for part in ("{text}",) if chat else ("{text}", "{label}"):
            if part not in text:
                raise BadInput(f"The demonstration {text!r} has no {part} in it; say where it goes, as in {SHOT!r}.")
        if "{second}" in text:
            raise BadInput(
                f"The demonstration {text!r} has {{second}} in it, and one has one text alone; leave it out."
            )
        if chat:
            return Template(text, (), Shots(shots), chat=True)
        if not text.partition("{label}")[0].strip() or "{text}" in text.partition("{label}")[2]:
            raise BadInput(f"In the demonstration {text!r} the answer must come after the text, as in {SHOT!r}.")
        return Template(text, (), Shots(shots))
    if words:
        return Template(text or "{text}", tuple(words))
    if text:
        raise BadInput("A template needs --verbaliser, one word per class, for the model to answer with.")
    return None


def as_meant(text: str) -> str:
    r"""A template as typed, with its ``\n`` and ``\t`` for what they stand for: a shell hands them over as two characters."""
    return text.replace("\\n", "\n").replace("\\t", "\t")
