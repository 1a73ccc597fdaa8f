"""Few-shot prompts as chats: the tokens of the tokenizer's own chat template, answers behind its own prompt for one, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from test_few_shot_tokens import byte_level
from tokenizers import processors

from trueup.errors import BadInput
from trueup.subject.checkpoint import check_template
from trueup.subject.few_shot_tokens import opened, prompt_ids, wording
from trueup.subject.template import Shots, Template, template_of

CHATML = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPACED = (
    "{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }} <|im_end|>"
    "{% else %}{{ bos_token }}[{{ m.role }}] {{ m.content }} [/{{ m.role }}]{% endif %}{% endfor %}"
)
THINKS = CHATML.replace(
    "{{ m.content }}", "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)
DROPS = CHATML.replace("{{ m.content }}", "{% if m.role != 'system' %}{{ m.content }}{% endif %}")
FAITHFUL = {"chatml": CHATML, "spaced": SPACED, "thinks": THINKS}
PAIRS = [("three cats", "3"), ("one {label} dog", "1")]


def tokenizer(chat: str | None) -> transformers.PreTrainedTokenizerFast:
    """A byte tokenizer that puts <s> before every text, as Llama's does, with two tokens for turns."""
    tok = byte_level("a+m", "b+e", "be+r", "Ġ+am", eos="<end>")
    tok.add_special_tokens({"bos_token": "<s>", "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tok._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tok.bos_token_id)]
    )
    tok.chat_template = chat
    assert tok("x")["input_ids"][0] == tok.bos_token_id
    return tok


def chat(header: str = "", text: str = "{text}", words: tuple[str, ...] = ("1", "14", "amber")) -> Template:
    return Template(text, words, Shots(2), header, chat=True)


def turns(*pairs: str, system: str = "") -> list[dict[str, str]]:
    roles = ["user", "assistant"] * len(pairs)
    said = [{"role": role, "content": content} for role, content in zip(roles, pairs, strict=False)]
    return [{"role": "system", "content": system}, *said] if system else said


def own(tok: Any, messages: list[dict[str, str]], asking: bool = True) -> list[int]:
    return tok.apply_chat_template(messages, add_generation_prompt=asking, tokenize=True, return_dict=False)


@pytest.mark.parametrize("name", ["chatml", "spaced"])
@pytest.mark.parametrize("header", ["", "Answer in one word."])
def test_a_prompt_is_what_the_tokenizer_makes_of_its_turns(name: str, header: str):
    tok = tokenizer(FAITHFUL[name])
    got = prompt_ids(tok, chat(header, "Count: {text}"), "two {text} dogs", PAIRS)
    asked = ("Count: three cats", "3", "Count: one {label} dog", "1", "Count: two {text} dogs")
    assert got == own(tok, turns(*asked, system=header))
    if name == "chatml":
        assert got.count(tok.bos_token_id) == 1, "the template has written it, and the tokenizer must not again"
    # What names all answers stands in the first user's turn, so that a template without a system's message takes it.
    got = prompt_ids(tok, chat(header, "Count: {text}"), "two {text} dogs", PAIRS, "One of 1, 3.\n")
    assert got == own(tok, turns("One of 1, 3.\nCount: three cats", *asked[1:], system=header))
    assert prompt_ids(tok, chat(header), "x") == own(tok, turns("x", system=header))


@pytest.mark.parametrize("name", FAITHFUL)
@pytest.mark.parametrize("words", [("1", "14", "amber"), ("amber", "amble"), (" amber", "1")])
def test_the_prompt_the_lead_and_an_answer_are_the_tokens_of_the_whole_chat(name: str, words: tuple[str, ...]):
    tok, template = tokenizer(FAITHFUL[name]), chat("Be brief.", words=words)
    w = wording(tok, template)
    assert w.stop == "<|im_end|>"
    assert w.end == 1
    for word, tokens in zip(words, w.answers, strict=True):
        whole = own(tok, turns("x", word.strip(), system="Be brief."), asking=False)
        mine = [*prompt_ids(tok, template, "x"), *w.lead, *tokens]
        assert whole[: len(mine)] == mine
        assert tok.decode(whole[len(mine) :]).strip() == "<|im_end|>"
    if name == "chatml" and words[0] == "1":
        assert w.lead == ()
        assert [tok.decode(a) for a in w.answers] == ["1", "14", "amber"], "no space after the prompt for an answer"


def test_an_empty_thought_is_part_of_the_prompt():
    tok = tokenizer(THINKS)
    assert opened(tok, chat()) == "<think>\n\n</think>"
    assert tok.decode(prompt_ids(tok, chat(), "x")).endswith("<|im_start|>assistant\n<think>\n\n</think>")
    assert opened(tokenizer(CHATML), chat()) == ""


@pytest.mark.parametrize(
    ("template", "header", "says"),
    [
        (None, "", r"The tokenizer has no chat template, so --chat has nothing to spell turns with\. Leave --chat out"),
        (NO_SYSTEM, "Be brief.", r"takes no system message \(System role not supported\)\. Leave --header out, or put it into"),
        (DROPS, "Be brief.", r"takes no system message: it leaves it out\. Leave --header out"),
        ("{{ raise_exception('no turns') }}", "Be brief.", r"refuses turns of a user and an assistant \(no turns\)\. Leave --chat"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}say:{% endif %}", "",
         r"does not write an answer where it asks for one \(add_generation_prompt\)"),
    ],
)  # fmt: skip
def test_what_a_chat_template_cannot_say_is_a_sentence(template: str | None, header: str, says: str):
    with pytest.raises(BadInput, match=says):
        check_template(tokenizer(template), chat(header))


def test_a_template_without_a_system_message_serves_without_a_header():
    tok = tokenizer(NO_SYSTEM)
    check_template(tok, chat())
    assert prompt_ids(tok, chat(), "x", PAIRS) == own(tok, turns("three cats", "3", "one {label} dog", "1", "x"))


def test_the_user_turn_is_asked_for_alone():
    assert template_of(None, None, 4, chat=True) == Template("{text}", (), Shots(4), chat=True)
    assert template_of("Q: {text}", None, 0, chat=True) == Template("Q: {text}", (), Shots(0), chat=True)
    with pytest.raises(
        BadInput, match=r"is the user's turn alone, and the answer is the assistant's: leave {label} and what"
    ):
        template_of("{text} -> {label}", None, 4, chat=True)
    with pytest.raises(BadInput, match=r"has no {text} in it"):
        template_of("say it", None, 4, chat=True)
    with pytest.raises(
        BadInput, match=r"--chat goes with prompts that show demonstrations.* Give --shots 4, or leave it out\."
    ):
        template_of("{text}", ("good", "bad"), chat=True)
