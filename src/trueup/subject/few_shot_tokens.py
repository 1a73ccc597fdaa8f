"""How a few-shot prompt is spelt in tokens: the query's end, the answers after it, and what ends an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import pre_tokenizers

from trueup.errors import BadInput
from trueup.subject.template import Template


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
    if template.chat:
        stem, gap, end = _chat(tokenizer, template)
    else:
        stem, (gap, _, end) = template.prompt("x"), template.text.partition("{label}")
        gap, end = gap[len(gap.rstrip()) :], template.line.partition("{label}")[2]
    ids = _in_turns if template.chat else text_ids
    before = ids(tokenizer, stem)
    stop = tokenizer(end.lstrip(" ") or "\n", add_special_tokens=False)["input_ids"]
    rests: list[tuple[int, ...]] = []
    for word in template.words:
        whole = ids(tokenizer, stem + gap + (word.strip() if template.chat else word))
        if whole[: len(before)] != before:
            step = (
                "Leave --chat out, and give --template '{text} -> {label}'."
                if template.chat
                else f"Put a space or a colon before {{label}} in the template {template.text!r}."
            )
            raise BadInput(
                f"The tokenizer joins the answer {word!r} with what stands before it, so a model cannot give it as an answer "
                f"of its own. {step}"
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


def prompt_ids(
    tokenizer: Any, template: Template, query: str, demonstrations: Sequence[tuple[str, str]] = (), first: str = ""
) -> list[int]:
    """The tokens of a few-shot prompt, up to where its answer goes; of a chat as the tokenizer's own template spells it.

    Args:
        first: what stands before the demonstrations, behind the header; in a chat at the beginning of the first user's turn.

    Raises:
        BadInput: the tokenizer has no chat template, or one that cannot say this.
    """
    if not template.chat:
        return text_ids(tokenizer, first + template.prompt(query, demonstrations))
    text = _rendered(tokenizer, template.messages(query, demonstrations, first), True)
    return _in_turns(tokenizer, text + opened(tokenizer, template))


def opened(tokenizer: Any, template: Template) -> str:
    """What a chat template writes between the prompt for an answer and the answer, but for a space: most often nothing; an empty
    thought in models that think."""
    messages = template.messages("x")
    return _apart(tokenizer, messages, _rendered(tokenizer, messages, True))[0].rstrip()


def _chat(tokenizer: Any, template: Template) -> tuple[str, str, str]:
    """A prompt, the space that comes between it and an answer, and what ends an answer's turn."""
    messages = template.messages("x")
    stem = _rendered(tokenizer, messages, True)
    gap, end = _apart(tokenizer, messages, stem)
    trimmed = gap.rstrip()
    return stem + trimmed, gap[len(trimmed) :], end.strip()


_ANSWER = "answer"
"""Stands for an answer where a template is asked what it writes around one."""


def _apart(tokenizer: Any, messages: list[dict[str, str]], stem: str) -> tuple[str, str]:
    """What a chat template writes before an answer, behind its own prompt for one, and what after it."""
    whole = _rendered(tokenizer, [*messages, {"role": "assistant", "content": _ANSWER}], False)
    if not whole.startswith(stem) or _ANSWER not in whole[len(stem) :]:
        raise BadInput(
            "The tokenizer's chat template does not write an answer where it asks for one (add_generation_prompt), so what a model "
            "answers cannot be read there. Leave --chat out, and give --template '{text} -> {label}'."
        )
    gap, _, end = whole[len(stem) :].partition(_ANSWER)
    return gap, end


def _rendered(tokenizer: Any, messages: list[dict[str, str]], asking: bool) -> str:
    """The chat as text, special tokens included.

    Raises:
        BadInput: there is no chat template, or it refuses these turns or leaves the system's message out.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise BadInput(
            "The tokenizer has no chat template, so --chat has nothing to spell turns with. Leave --chat out, or give the instruct "
            "model of this family, whose tokenizer brings one."
        )

    def said(turns: list[dict[str, str]]) -> str:
        try:
            return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=asking)
        except Exception as e:  # a template is a program, and raises what it likes
            raise BadInput(
                f"The tokenizer's chat template refuses turns of a user and an assistant ({' '.join(str(e).split())[:200]}). Leave "
                "--chat out, and give --template '{text} -> {label}'."
            ) from e

    if messages[0]["role"] != "system":
        return said(messages)
    why = ": it leaves it out"
    try:
        text = said(messages)
    except BadInput as e:
        said(messages[1:])  # a template that refuses the turns themselves says so
        text, why = "", f" ({' '.join(str(e.__cause__).split())[:200]})"
    if messages[0]["content"] not in text:
        raise BadInput(
            f"The tokenizer's chat template takes no system message{why}. Leave --header out, or put it into --template, before "
            "{text}."
        )
    return text


def _in_turns(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a rendered chat, which has its special tokens in it."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def first_tokens(tokenizer: Any, template: Template) -> list[int]:
    """The token that each class word starts with where it follows the prompt.

    A tokenizer may spell a word otherwise by itself: Llama-2's and Mistral's begin every text with a space of their own, and
    would start ``" good"`` and ``" bad"`` with the same token. Where a word melts into the prompt's last token, or no two
    words could be told apart after it, it is spelt by itself.
    """
    before = text_ids(tokenizer, stem := template.fill("x", "x"))
    alone = [tokenizer(w, add_special_tokens=False, verbose=False)["input_ids"][:1] for w in template.words]
    chosen = []
    for word, alone_tokens in zip(template.words, alone, strict=True):
        whole = text_ids(tokenizer, stem + word)
        after = whole[len(before) :] if whole[: len(before)] == before else []
        chosen.append(after[:1] if after and tokenizer.decode(after).strip() == word.strip() else alone_tokens)
    return [ids[0] for ids in (chosen if len({tuple(c) for c in chosen}) == len(chosen) else alone)]


def ends_texts(tokenizer: Any) -> bool:
    """Whether the tokenizer puts its end token after every text, which `text_ids` takes away again."""
    ids = tokenizer("a", verbose=False)["input_ids"]
    return len(ids) > 1 and ids[-1] == tokenizer.eos_token_id


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text that is to be gone on with. An end token that the text itself writes stays."""
    ids = tokenizer(text, verbose=False)["input_ids"]
    return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and ends_texts(tokenizer) else ids


def begins(tok: Any) -> bool:
    """Whether the tokens of a text begin with those of its beginning, where that ends before a space: words are split there first,
    each by itself, and what is beyond the cut is the end."""
    if not tok.is_fast or tok.truncation_side != "right":
        return False
    words = tok.backend_tokenizer.pre_tokenizer
    kinds = (pre_tokenizers.BertPreTokenizer, pre_tokenizers.WhitespaceSplit, pre_tokenizers.Whitespace)
    split = isinstance(words, kinds) or (isinstance(words, pre_tokenizers.ByteLevel) and words.use_regex)
    return split and not any(" " in str(t) for t in tok.added_tokens_decoder.values())
