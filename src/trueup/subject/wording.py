"""How a few-shot prompt is spelt in tokens: the query's end, the answers after it, and what ends an answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trueup.errors import BadInput
from trueup.subject.subject import Template


@dataclass(frozen=True)
class Wording:
    """The tokens of a task's answers.

    Attributes:
        lead: tokens that every answer starts with (a space before a digit): they belong to the query.
        answers: the tokens of each class after that, in the classes' order.
        stop: the text that ends an answer, as the tokenizer writes it: empty where it knows no line break.
        end: tokens of that, one at the least.
    """

    lead: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    stop: str
    end: int

    @property
    def longest(self) -> int:
        """Tokens of the longest answer."""
        return max(map(len, self.answers))


def wording(tokenizer: Any, template: Template) -> Wording:
    """The wording of a few-shot template whose `words` are the answers.

    Raises:
        BadInput: the tokenizer joins an answer with what stands before it, or reads it back as something else.
    """
    stem = template.prompt("x")
    before = text_ids(tokenizer, stem)
    gap = template.text.partition("{label}")[0]
    gap = gap[len(gap.rstrip()) :]
    stop = tokenizer(template.line.partition("{label}")[2].lstrip(" ") or "\n", add_special_tokens=False)["input_ids"]
    rests: list[tuple[int, ...]] = []
    for word in template.words:
        whole = text_ids(tokenizer, stem + gap + word)
        if whole[: len(before)] != before:
            raise BadInput(
                f"The tokenizer joins the answer {word!r} with what stands before it, so a model cannot give it as an answer "
                f"of its own. Put a space or a colon before {{label}} in the template {template.text!r}."
            )
        back = tokenizer.decode(whole[len(before) :]).strip()
        if back != word.strip():
            raise BadInput(
                f"The tokenizer reads the answer {word!r} back as {back!r}, so the model could not give it; write it otherwise, "
                "or drop its pairs."
            )
        rests.append(tuple(whole[len(before) :]))
    shared = 0
    while all(len(r) > shared + 1 for r in rests) and len({r[shared] for r in rests}) == 1 and len(rests) > 1:
        shared += 1
    return Wording(
        rests[0][:shared], tuple(r[shared:] for r in rests), tokenizer.decode(stop).lstrip(" "), max(1, len(stop))
    )


def first_tokens(tokenizer: Any, template: Template) -> list[int]:
    """The token that each class word starts with where it follows the prompt.

    A tokenizer may spell a word otherwise by itself: Llama-2's and Mistral's begin every text with a space of their own, and
    would start ``" good"`` and ``" bad"`` with the same token. Where a word melts into the prompt's last token, or no two
    words could be told apart after it, it is spelt by itself.
    """
    before = text_ids(tokenizer, stem := template.fill("x", "x"))
    alone = [tokenizer(w, add_special_tokens=False, verbose=False)["input_ids"][:1] for w in template.words]
    chosen = []
    for word, own in zip(template.words, alone, strict=True):
        whole = text_ids(tokenizer, stem + word)
        after = whole[len(before) :] if whole[: len(before)] == before else []
        chosen.append(after[:1] if after and tokenizer.decode(after).strip() == word.strip() else own)
    return [ids[0] for ids in (chosen if len({tuple(c) for c in chosen}) == len(chosen) else alone)]


def ends_texts(tokenizer: Any) -> bool:
    """Whether the tokenizer puts its end token after every text, which `text_ids` takes away again."""
    ids = tokenizer("a", verbose=False)["input_ids"]
    return len(ids) > 1 and ids[-1] == tokenizer.eos_token_id


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text that is to be gone on with. An end token that the text itself writes stays."""
    ids = tokenizer(text, verbose=False)["input_ids"]
    return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and ends_texts(tokenizer) else ids
