"""Few-shot prompts and their answers: what transformers itself would generate, whatever the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput
from trueup.run import predict as runs
from trueup.run import prompts
from trueup.run.answers import answers
from trueup.run.prompts import Row, drawn, rows, with_pool
from trueup.subject.anatomy import anatomy_of
from trueup.subject.load import SHOT, load, template_of
from trueup.subject.subject import Source, Subject
from trueup.subject.tiny import WORDS
from trueup.subject.wording import wording

FAMILIES = ("gpt2", "llama", "mamba")
TEMPLATE = "{text} say {label} now\n"
WORDED = tuple(w for w in WORDS if w not in ("say", "now"))


def corpus(classes: tuple[str, ...], n: int = 40, seed: int = 0) -> Corpus:
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDED, rng.integers(1, 6))) + f" {'the ' * (i % 5)}cat" for i in range(n)]
    return Corpus(texts, np.arange(n) % len(classes), classes, np.array(["train"] * n))


def few_shot(base: Path, classes: tuple[str, ...], shots: int = 3, **options: Any) -> tuple[Subject, Corpus]:
    pairs = corpus(classes)
    return with_pool(load(str(base), shots=shots, template=TEMPLATE, device="cpu", **options), pairs), pairs


def generated(subject: Subject, row: Row, tokens: int) -> list[int]:
    """What plain transformers goes on with, greedily."""
    ids = torch.tensor([list(row)])
    got = subject.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens,
        eos_token_id=subject.tokenizer.eos_token_id, pad_token_id=subject.tokenizer.pad_token_id,
    )  # fmt: skip
    return got[0, len(row) :].tolist()


def first_words(subject: Subject, asked: list[Row]) -> list[int]:
    return [generated(subject, r, 1)[0] for r in asked]


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_of_one_token_are_the_word_that_transformers_generates(family: str, base_of: Callable[[str], Path]):
    subject, pairs = few_shot(base_of(family), WORDED)
    asked = rows(subject, pairs.text, drawn(subject, pairs))
    got = answers(subject, asked)
    want = first_words(subject, asked)
    spoken = [subject.tokenizer.decode([t]) for t in want]
    assert got.answer.tolist() == [WORDED.index(w) if w in WORDED else -1 for w in spoken]
    assert len(set(spoken)) > 1, "the control: not every prompt is answered alike"
    with torch.no_grad():
        plain = subject.model(torch.tensor([list(asked[0])])).logits[0, -1].numpy()
    ids = subject.verbaliser_ids()
    assert np.allclose(got.logits[0], plain[ids], atol=1e-4)
    assert np.isclose(got.other[0], np.delete(plain, ids).max(), atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_of_several_tokens_is_read_to_its_end(family: str, base_of: Callable[[str], Path]):
    subject, pairs = few_shot(base_of(family), WORDED)
    asked = rows(subject, pairs.text, drawn(subject, pairs))
    said = [subject.tokenizer.decode(generated(subject, r, 3)) for r in asked]
    common = max(set(said), key=said.count)
    one, two = common.split()[0], " ".join(common.split()[:2])
    for classes in ((common, "cat dog"), (two, f"{two} {two}"), (f"{one} bad bad", "dog"), (one, "dog mat")):
        named = tuple(dict.fromkeys(classes))
        other = with_pool(replace(subject), replace(pairs, classes=named, label=np.arange(len(pairs)) % len(named)))
        # The demonstrations stay as they were: what is asked here is how an answer is read.
        lead = wording(other.tokenizer, other.template).lead  # type: ignore[arg-type]
        begun = [Row([*r, *lead]) for r in asked]
        got = answers(other, begun).answer
        want = []
        for r in begun:
            words = subject.tokenizer.decode([*lead, *generated(subject, r, 8)]).split()
            hits = [i for i, c in enumerate(named) if words[: len(c.split())] == c.split()]
            # One that begins another class counts only where an answer ends, which "now" does.
            ends = [
                i for i in hits
                if words[len(named[i].split()) :][:1] == ["now"]
                or not any(c != named[i] and c.startswith(named[i]) for c in named)
            ]  # fmt: skip
            want.append(max(ends, key=lambda i: len(named[i])) if ends else -1)
        assert got.tolist() == want, classes
    # The control: the whole of what is said most often is an answer.
    whole = with_pool(subject, replace(pairs, classes=(common, "cat dog"), label=np.arange(len(pairs)) % 2))
    assert (answers(whole, asked).answer == 0).sum() == said.count(common)


def test_an_answer_does_not_depend_on_its_batch(base_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch):
    subject, pairs = few_shot(base_of("llama"), (*WORDED, "good film"))
    asked = rows(subject, pairs.text, drawn(subject, pairs))
    whole = answers(subject, asked)
    monkeypatch.setattr(runs, "TOKENS", 1)
    alone = answers(subject, asked)
    assert np.array_equal(whole.answer, alone.answer)
    assert np.allclose(whole.logits, alone.logits, atol=1e-5)
    assert np.allclose(whole.other, alone.other, atol=1e-5)


# ------------------------------------------------------------------------------- a model that says what it is told to


class Parrot(torch.nn.Module):
    """A causal model that says the tokens of a script after a prompt of `start` tokens, whatever it was."""

    def __init__(self, script: list[int], size: int) -> None:
        super().__init__()
        self.config = transformers.GPT2Config(vocab_size=size, n_embd=size, n_layer=1, n_head=1)
        self.head = torch.nn.Linear(size, size, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(size))
        self.script, self.start = script, 0

    def base_model(self, input_ids: torch.Tensor, **_: Any) -> Any:
        states = torch.zeros(*input_ids.shape, len(self.head.weight))
        for i, token in enumerate(self.script[: input_ids.shape[1] - self.start + 1]):
            states[:, self.start - 1 + i, token] = 1.0
        return transformers.modeling_outputs.BaseModelOutputWithPast(last_hidden_state=states)

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        return transformers.modeling_outputs.CausalLMOutput(logits=self.head(self.base_model(input_ids).last_hidden_state))

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.head


def letters(eos: str = "<end>") -> transformers.PreTrainedTokenizerFast:
    """A token for every byte."""
    vocabulary = {c: i for i, c in enumerate(["<pad>", "<unk>", eos, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    raw = Tokenizer(models.BPE(vocabulary, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>", eos_token=eos
    )


def told(says: str, *classes: str, ends: bool = False, template: str | None = None) -> int:
    """What is understood of a model that says this, and ends there or goes on with noughts."""
    tok = letters()
    before = (template or SHOT).partition("{label}")[0]
    script = [
        *tok(before[len(before.rstrip()) :] + says)["input_ids"],
        *([tok.eos_token_id] if ends else tok("0" * 20)["input_ids"]),
    ]
    model = Parrot([], len(tok)).eval()
    line = template_of(template, None, 1)
    pairs = Corpus(["a", "b", "c"], np.arange(3) % len(classes), classes, np.array(["train"] * 3))
    subject = with_pool(Subject(model, tok, anatomy_of(model.config), (), Source("parrot"), 256, line), pairs)
    (row,) = asked = rows(subject, ["q"], drawn(subject, replace(pairs.take(np.array([0])), text=["q"])))
    lead = wording(tok, subject.template).lead  # type: ignore[arg-type]
    assert tuple(script[: len(lead)]) == lead
    model.script, model.start = script[len(lead) :], len(row)
    return int(answers(subject, asked).answer[0])


@pytest.mark.parametrize(
    ("says", "classes", "ends", "answer"),
    [
        ("3\n", ("3", "30"), False, 0),  # one begins the other: the new line ends it
        ("30\n", ("3", "30"), False, 1),
        ("34\n", ("3", "30"), False, -1),
        ("3", ("3", "30"), True, 0),  # and so does the end of the text
        ("3 now", ("3", "30"), False, -1),
        ("34\n", ("3", "5"), False, 0),  # no class goes on, so the first words decide
        ("São", ("São", "Rio"), False, 0),  # a letter of two tokens
        ("ré", ("ré", "r"), True, 0),
        ("r", ("ré", "r"), True, 1),
        ("中文", ("中文", "中国"), False, 0),
        ("中", ("中文", "中国"), True, -1),
        ("\n3", ("3", "30"), False, -1),  # an empty answer is none
        ("xyz", ("3", "30"), False, -1),
    ],
)
def test_where_an_answer_ends(says: str, classes: tuple[str, ...], ends: bool, answer: int):
    assert told(says, *classes, ends=ends) == answer


@pytest.mark.parametrize(
    ("template", "says", "classes", "answer"),
    [
        ("{text} -> {label}, ", "3, x", ("3", "30"), 0),
        ("{text} -> {label}, ", "30, x", ("3", "30"), 1),
        ("Q: {text}\nA:\n{label}\n\n", "3\n", ("3", "30"), 0),  # an answer on a line of its own
        ("Q: {text}\nA:\n{label}\n\n", "30\n", ("3", "30"), 1),
        ("{text} -> {label}.\n", "1.5", ("1", "1.5"), 1),  # what ends an answer may stand in one
        ("{text} -> {label}.\n", "1.\n", ("1", "1.5"), 0),
        ("{text} -> {label} now\n", "fine", ("fine", "find"), 0),
        ("{text} -> {label} now\n", "in now", ("i", "in"), 1),
        ("{text} -> {label} now\n", "i now", ("i", "in"), 0),
        ("{text} -> {label} now\n", "i the", ("i", "in"), -1),
    ],
)
def test_what_ends_an_answer_is_what_the_template_says(template: str, says: str, classes: tuple[str, ...], answer: int):
    assert told(says, *classes, template=template) == answer


# -------------------------------------------------------------------------------------------------------- the prompts


def test_a_prompt_is_its_lines_and_what_all_answers_start_with(base_of: Callable[[str], Path]):
    subject, pairs = few_shot(base_of("llama"), ("good film", "good cat", "good mat"))
    d = drawn(subject, pairs)
    tok, lead = subject.tokenizer, wording(subject.tokenizer, subject.template).lead  # type: ignore[arg-type]
    assert tok.decode(lead) == "good"
    for text, index, row in zip(pairs.text, d.index, rows(subject, pairs.text, d), strict=True):
        shown = " ".join(f"{pairs.text[j]} say {pairs.classes[pairs.label[j]]} now" for j in index)
        assert tok.decode(row) == " ".join(f"{shown} {text} say good".split())


def test_answers_may_be_exchanged(base_of: Callable[[str], Path]):
    subject, pairs = few_shot(base_of("llama"), ("good", "bad", "fine"))
    d = drawn(subject, pairs)
    own = pairs.label[d.index]
    same = rows(subject, pairs.text, d, own)
    assert same == rows(subject, pairs.text, d), "their own answers: the same prompts"
    other = rows(subject, pairs.text, d, (own + 1) % 3)
    for a, b, labels in zip(same, other, own, strict=True):
        at = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
        assert [subject.tokenizer.decode([b[i]]) for i in at] == [pairs.classes[(y + 1) % 3] for y in labels]


def test_a_query_without_such_a_draw_is_asked_without_demonstrations(base_of: Callable[[str], Path]):
    subject, pairs = few_shot(base_of("llama"), ("good", "bad", "fine"))
    one = replace(pairs, label=np.array([2, *([0, 1] * 20)][:40]))
    subject = with_pool(subject, one)
    d = drawn(subject, one, mode="always")
    assert d.possible.tolist() == [False] + [True] * 39
    got = rows(subject, one.text, d, np.zeros_like(d.index))
    assert subject.tokenizer.decode(got[0]) == " ".join(f"{one.text[0]} say".split())
    assert len(got[1]) > len(got[0])


def test_a_prompt_too_long_says_how_many_demonstrations_fit(base_of: Callable[[str], Path]):
    base = base_of("llama")
    subject, pairs = few_shot(base, ("good", "bad"), shots=8)
    d = drawn(subject, pairs)
    longest = max(range(40), key=lambda i: len(rows(subject, [pairs.text[i]], d.take(np.array([i])))[0]))
    here, most = d.take(np.array([longest])), 0
    whole = len(rows(subject, [pairs.text[longest]], here)[0])
    for most in range(whole + 1, 3, -1):
        short = replace(subject, max_length=most)
        if most == whole + 1:  # the answer takes a token as well
            assert rows(short, [pairs.text[longest]], here)
            continue
        with pytest.raises(BadInput) as e:
            rows(short, [pairs.text[longest]], here)
        says = str(e.value)
        assert f"with 8 demonstrations and its answer has {whole + 1} tokens, and {most} are read: " in says
        if "not one of them fits. Raise --max-length" in says:
            break
        fit = int(says.partition("at most ")[2].split()[0])
        assert f"Lower --shots to {fit}," in says
        for k in range(9):  # as many as it says, and no more
            fewer = replace(here, index=here.index[:, :k])
            if k <= fit:
                assert rows(short, [pairs.text[longest]], fewer)
            else:
                with pytest.raises(BadInput):
                    rows(short, [pairs.text[longest]], fewer)
    else:
        pytest.fail("the control: at last nothing fits")


def test_the_longest_prompt_has_room_for_its_answer(base_of: Callable[[str], Path]):
    """GPT-2 has no position for a token beyond its last one. Here it says "the" for ever."""
    classes = ("the the the the", "cat", "the the the dog")
    subject, _ = few_shot(base_of("gpt2"), classes, shots=2, max_length=128)
    with torch.no_grad():
        word, last = subject.head_layer().weight, subject.base.transformer.ln_f
        word[subject.tokenizer("the")["input_ids"]] *= 5
        last.weight.zero_()
        last.bias.copy_(word[subject.tokenizer("the")["input_ids"][0]])
    lengths = []
    for extra in range(60, 130):
        one = Corpus([" ".join(["the"] * extra)], np.array([0]), classes, np.array(["test"]))
        try:
            asked = rows(subject, one.text, drawn(subject, one))
        except BadInput:
            continue
        lengths.append(len(asked[0]))
        assert answers(subject, asked).answer.tolist() == [0]
    assert max(lengths) == 128 - wording(subject.tokenizer, subject.template).longest  # type: ignore[arg-type]


def test_what_a_pool_cannot_be(base_of: Callable[[str], Path]):
    subject, pairs = few_shot(base_of("llama"), ("good", "bad"))
    with pytest.raises(BadInput, match="leave --second out"):
        with_pool(subject, replace(pairs, second=list(pairs.text)))
    bare = load(str(base_of("llama")), shots=3, template=TEMPLATE, device="cpu")
    with pytest.raises(BadInput, match="no pairs to take demonstrations from"):
        prompts.drawn(bare, pairs)
