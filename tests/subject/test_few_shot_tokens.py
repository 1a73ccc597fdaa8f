"""How answers are spelt in tokens: what all of them start with, what tells them apart, and what cannot be told."""

from __future__ import annotations

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from trueup.errors import BadInput
from trueup.subject.few_shot_tokens import text_ids, wording
from trueup.subject.template import SHOT, Shots, Template, template_of
from trueup.subject.tiny import make_tokenizer


def byte_level(*merges: str, eos: str | None = None) -> transformers.PreTrainedTokenizerFast:
    """GPT-2's kind of tokenizer, with the merges that are given; without any, a token for every byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate(["<pad>", "<unk>", "<end>", *alphabet])}
    pairs = []
    for merge in merges:
        a, b = merge.split("+")
        pairs.append((a, b))
        vocabulary.setdefault(a + b, len(vocabulary))
    raw = Tokenizer(models.BPE(vocabulary, pairs))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>", eos_token=eos
    )


def shots(text: str = SHOT, *words: str) -> Template:
    return Template(text, words, Shots(2))


def spelt(tokenizer, *tokens):
    return [tokenizer.decode(t) for t in tokens]


def test_a_space_that_all_answers_start_with_belongs_to_the_query():
    tok = byte_level()
    w = wording(tok, shots(SHOT, "3", "14"))
    assert tok.decode(w.lead) == " "
    assert spelt(tok, *w.answers) == ["3", "14"]
    assert w.longest == 2
    # The control: a tokenizer that has them in one piece with their space has nothing to share.
    joined = byte_level("Ġ+3", "Ġ+1")
    w = wording(joined, shots(SHOT, "3", "14"))
    assert w.lead == ()
    assert spelt(joined, *w.answers) == [" 3", " 14"]
    assert [len(a) for a in w.answers] == [1, 2]


def test_more_than_a_space_may_be_shared_and_each_answer_keeps_a_token():
    tok = byte_level()
    w = wording(tok, shots(SHOT, "abc", "abd"))
    assert (tok.decode(w.lead), spelt(tok, *w.answers)) == (" ab", ["c", "d"])
    # One of which begins another keeps its last token.
    w = wording(tok, shots(SHOT, "ab", "abd"))
    assert (tok.decode(w.lead), spelt(tok, *w.answers)) == (" a", ["b", "bd"])
    # One answer alone has nothing to be told apart from.
    assert wording(tok, shots(SHOT, "ab")).lead == ()


@given(
    st.lists(st.text("ab é中", min_size=1, max_size=5).map(str.strip).filter(bool), min_size=2, max_size=5, unique=True)
)
def test_the_prompt_the_lead_and_an_answer_are_the_tokens_of_the_whole_line(words):
    tok = byte_level("Ġ+a", "Ġa+b", "a+b")
    template = shots(SHOT, *words)
    w = wording(tok, template)
    for word, answer in zip(words, w.answers, strict=True):
        assert len(answer) >= 1
        whole = text_ids(tok, template.prompt("some {text}") + " " + word)
        assert [*text_ids(tok, template.prompt("some {text}")), *w.lead, *answer] == whole
        assert tok.decode([*w.lead, *answer]).strip() == word
    assert len(set(w.answers)) == len(words)


def test_words_of_a_word_tokenizer():
    tok = make_tokenizer()
    w = wording(tok, shots("{text} now {label}\n", "good film", "good", "bad"))
    assert (w.lead, spelt(tok, *w.answers)) == ((), ["good film", "good", "bad"])


def test_an_answer_that_is_not_read_back_is_refused():
    with pytest.raises(BadInput, match=r"reads the answer 'grand' back as '\[UNK\]'"):
        wording(make_tokenizer(), shots("{text} now {label}\n", "good", "grand"))
    with pytest.raises(BadInput, match="reads the answer 'Good' back as"):
        wording(make_tokenizer(), shots("{text} now {label}\n", "good", "Good"))
    raw = byte_level()
    raw.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(BadInput, match="reads the answer 'Good' back as 'good'"):
        wording(raw, shots(SHOT, "good", "Good"))
    assert wording(raw, shots(SHOT, "good", "bad")).answers, "the control"


def test_an_answer_that_the_tokenizer_joins_with_what_stands_before_it_is_refused():
    tok = byte_level("=+3")
    with pytest.raises(BadInput, match="joins the answer '3' with what stands before it"):
        wording(tok, shots("{text}={label}\n", "2", "3"))
    assert wording(tok, shots("{text}= {label}\n", "2", "3")).answers, "the control"
    assert wording(tok, shots("{text}={label}\n", "2", "4")).answers


def test_what_ends_an_answer():
    tok = byte_level()
    ends = {SHOT: "\n", "{text} -> {label}": "\n", "{text} -> {label}, ": ", ", "{text} {label} .\n": ".\n",
            "{text} {label} ": "\n", "{text} is {label} now\n": "now\n"}  # fmt: skip
    for text, end in ends.items():
        assert wording(tok, shots(text, "a", "b")).stop == end


def test_lines_end_where_the_template_says_or_in_a_new_line():
    pairs = [("x", "1"), ("y", "2")]
    assert shots("{text} -> {label}").prompt("q", pairs) == "x -> 1\ny -> 2\nq ->"
    assert shots("{text} -> {label}\n").prompt("q", pairs) == "x -> 1\ny -> 2\nq ->"
    assert shots("{text} -> {label}, ").prompt("q", pairs) == "x -> 1, y -> 2, q ->"
    assert shots("Q: {text}\nA:\n{label}\n\n").prompt("q", pairs[:1]) == "Q: x\nA:\n1\n\nQ: q\nA:"
    assert shots("{text} {label}").prompt("q") == "q"


def test_an_answer_on_a_line_of_its_own_shares_the_new_line():
    tok = byte_level()
    w = wording(tok, shots("Q: {text}\nA:\n{label}\n\n", "1", "2"))
    assert tok.decode(w.lead) == "\n"
    assert spelt(tok, *w.answers) == ["1", "2"]


def test_braces_in_texts_and_answers_stay_what_they_are():
    got = shots("{text} is {label}\n").prompt("{label} {x", [("{text}{label}", "{text}"), ("\\1 {", "}")])
    assert got == "{text}{label} is {text}\n\\1 { is }\n{label} {x is"


def test_a_token_that_ends_every_text_is_not_part_of_what_goes_on():
    tok = byte_level(eos="<end>")
    plain = text_ids(tok, "ab")
    tok.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <end>", special_tokens=[("<end>", tok.eos_token_id)]
    )
    assert tok("ab")["input_ids"][-1] == tok.eos_token_id
    assert text_ids(tok, "ab") == plain
    assert spelt(tok, *wording(tok, shots(SHOT, "3", "14")).answers) == ["3", "14"]
    # One that the text writes itself is a part of it, whether the tokenizer adds its own or not.
    assert text_ids(tok, "ab<end>") == [*plain, tok.eos_token_id] == text_ids(byte_level(eos="<end>"), "ab<end>")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{text} ->", "has no {label} in it"),
        ("-> {label}", "has no {text} in it"),
        ("{label} {text}", "the answer must come after the text"),
        ("{text} {label} {text}", "the answer must come after the text"),
        ("{text} {second} {label}", "has {second} in it"),
    ],
)
def test_demonstrations_that_cannot_be_used(text, says):
    with pytest.raises(BadInput) as e:
        template_of(text, None, 4)
    assert says in str(e.value)


@pytest.mark.parametrize(("words", "shots"), [(["bad", "good"], None), (None, 2)])
def test_a_line_break_as_a_shell_hands_it_over(words, shots):
    meant = "Review: {text}\nSentiment:\t{label}"
    typed = r"Review: {text}\nSentiment:\t{label}"
    assert typed != meant
    assert template_of(typed, words, shots).text == template_of(meant, words, shots).text == meant


def test_the_usual_demonstration():
    assert template_of(None, None, 3) == Template(SHOT, (), Shots(3))
    with pytest.raises(BadInput, match="bring their own answers"):
        template_of(None, ["a", "b"], 3)
