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
from trueup.run import answers as reading
from trueup.run import predict as runs
from trueup.run import prompts
from trueup.run.answers import answers, in_full
from trueup.run.prompts import Row, drawn, rows, with_pool
from trueup.subject.anatomy import FAMILIES as ANATOMY
from trueup.subject.few_shot_tokens import wording
from trueup.subject.load import load
from trueup.subject.subject import Source, Subject
from trueup.subject.template import SHOT, template_of
from trueup.subject.tiny import WORDS

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


def exact_match(said: list[str], stop: str, classes: tuple[str, ...]) -> list[int]:
    """The outside reading: the text up to the word that ends an answer, stripped, or no class at all."""
    cut = [" ".join(s.split()[: s.split().index(stop)]) if stop in s.split() else "" for s in said]
    return [classes.index(c) if c in classes else -1 for c in cut]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_are_those_of_transformers(family: str, base_of: Callable[[str], Path]):
    subject, pairs = few_shot(base_of(family), WORDED)
    asked = rows(subject, pairs.text, drawn(subject, pairs))
    got = answers(subject, asked)
    assert len({generated(subject, r, 1)[0] for r in asked}) > 1, "the control: not every prompt is answered alike"
    with torch.no_grad():
        plain = subject.model(torch.tensor([list(asked[0])])).logits[0, -1].numpy()
    ids = subject.verbaliser_ids()
    assert np.allclose(got.logits[0], plain[ids], atol=1e-4)
    assert np.isclose(got.other[0], np.delete(plain, ids).max(), atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_is_what_transformers_writes_up_to_what_ends_it(family: str, base_of: Callable[[str], Path]):
    """Whatever ends an answer: each word in turn, under classes of one to three words that the model says."""
    subject, pairs = few_shot(base_of(family), WORDED)
    asked = rows(subject, pairs.text, drawn(subject, pairs))
    said = [subject.tokenizer.decode(generated(subject, r, 16)) for r in asked]
    found = {"class": 0, "more": 0, "other": 0}
    for stop in WORDS:
        begun = [s.split()[: n + 1] for s in said for n in range(3)]
        classes = tuple(dict.fromkeys(" ".join(w) for w in begun if stop not in w))
        classes = (*classes[:: 2 if len(classes) > 12 else 1], "film film film calm", "calm")
        other = with_pool(subject, replace(pairs, classes=classes, label=np.arange(len(pairs)) % len(classes)))
        # The demonstrations stay as they were: what is asked here is how an answer is read.
        other = replace(other, template=replace(other.template, text=f"{{text}} say {{label}} {stop}\n"))
        assert wording(other.tokenizer, other.template).lead == ()  # type: ignore[arg-type]
        got = answers(other, asked)
        want = exact_match(said, stop, classes)
        assert got.answer.tolist() == want, stop
        starts = [any(s == c or s.startswith(f"{c} ") for c in classes) for s in said]
        found["class"] += sum(w >= 0 for w in want)
        found["more"] += int(got.beyond.sum())
        found["other"] += sum(w < 0 and not s for w, s in zip(want, starts, strict=True))
        assert not (got.beyond & (got.answer >= 0)).any()
        assert not (got.beyond & ~np.array(starts)).any()
    assert min(found.values()) > 0, f"the control: every kind of answer occurs ({found})"


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_sign_for_the_line_s_end_an_answer_ends_with_its_words(family: str, base_of: Callable[[str], Path]):
    subject, pairs = few_shot(base_of(family), WORDED)
    asked = rows(subject, pairs.text, drawn(subject, pairs))
    said = [subject.tokenizer.decode(generated(subject, r, 4)) for r in asked]
    common = max(set(said), key=said.count).split()
    for classes in ((common[0], "calm loud"), (" ".join(common[:2]), common[0]), (" ".join(common[:3]), "calm")):
        named = tuple(dict.fromkeys(classes))
        other = with_pool(subject, replace(pairs, classes=named, label=np.arange(len(pairs)) % len(named)))
        other = replace(other, template=replace(other.template, text="{text} say {label}\n"))
        words = wording(other.tokenizer, other.template)  # type: ignore[arg-type]
        assert (words.stop, words.end, words.lead) == ("", 1, ())
        whole = [[c for c in named if s.split()[: len(c.split())] == c.split()] for s in said]
        want = [named.index(max(w, key=len)) if w else -1 for w in whole]
        assert answers(other, asked).answer.tolist() == want, classes
        assert max(want) >= 0, "the control"


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
        return transformers.modeling_outputs.CausalLMOutput(
            logits=self.head(self.base_model(input_ids).last_hidden_state)
        )

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


def parrot(
    says: str, *classes: str, ends: bool = False, template: str | None = None, own_end: int | None = None
) -> tuple[Subject, list[Row]]:
    """A subject that says this to the one prompt, and ends there or goes on with noughts."""
    tok = letters()
    before = (template or SHOT).partition("{label}")[0]
    end = tok.eos_token_id if own_end is None else own_end
    script = [
        *tok(before[len(before.rstrip()) :] + says)["input_ids"],
        *([end] if ends else tok("0" * 20)["input_ids"]),
    ]
    model = Parrot([], len(tok)).eval()
    if own_end is not None:
        model.generation_config = transformers.GenerationConfig(eos_token_id=[own_end])
    line = template_of(template, None, 1)
    pairs = Corpus(["a", "b", "c"], np.arange(3) % len(classes), classes, np.array(["train"] * 3))
    subject = with_pool(Subject(model, tok, ANATOMY[model.config.model_type], (), Source("parrot"), 256, line), pairs)
    (row,) = asked = rows(subject, ["q"], drawn(subject, replace(pairs.take(np.array([0])), text=["q"])))
    lead = wording(tok, subject.template).lead  # type: ignore[arg-type]
    assert tuple(script[: len(lead)]) == lead
    model.script, model.start = script[len(lead) :], len(row)
    return subject, asked


def told(says: str, *classes: str, **options: Any) -> int:
    """What is understood of a model that says this."""
    return int(answers(*parrot(says, *classes, **options)).answer[0])


@pytest.mark.parametrize(
    ("says", "classes", "ends", "answer"),
    [
        ("3\n", ("3", "30"), False, 0),  # one begins the other: the new line ends it
        ("30\n", ("3", "30"), False, 1),
        ("34\n", ("3", "30"), False, -1),
        ("3", ("3", "30"), True, 0),  # and so does the end of the text
        ("3 now", ("3", "30"), False, -1),
        ("34\n", ("3", "5"), False, -1),  # another number, although no class goes on
        ("10\n", ("1", "2"), False, -1),
        ("1.5\n", ("1", "2"), False, -1),
        ("1,5\n", ("1", "2"), False, -1),
        ("b,k,s\n", ("b", "k", "s"), False, -1),
        ("b;k\n", ("b", "k"), False, -1),
        ("b k\n", ("b", "k"), False, -1),
        ("b\n", ("b", "k"), False, 0),
        ("b", ("b", "k"), True, 0),
        ("b  \n", ("b", "k"), False, 0),  # stripped
        ("b\r\n", ("b", "k"), False, 0),
        ("Paris or London\n", ("Paris", "London"), False, -1),
        ("Parisian\n", ("Paris", "London"), False, -1),
        ("Paris.\n", ("Paris", "London"), False, 0),  # closed like a sentence
        ("Paris.", ("Paris", "London"), True, 0),
        ("Paris. \n", ("Paris", "London"), False, 0),
        ("Paris...\n", ("Paris", "London"), False, -1),
        ("Paris. It is large.\n", ("Paris", "London"), False, -1),
        ("Paris.\n", ("Paris", "Paris."), False, 1),  # unless a class has it
        ("New York\n", ("New York", "New"), False, 0),
        ("New\n", ("New York", "New"), False, 1),
        ("New Yor\n", ("New York", "New"), False, -1),
        ("b, k\n", ("b", "b, k"), False, 1),
        ("São\n", ("São", "Rio"), False, 0),  # a letter of two tokens
        ("São", ("São", "Rio"), False, -1),
        ("Sé\n", ("S", "Rio"), False, -1),
        ("ré", ("ré", "r"), True, 0),
        ("r", ("ré", "r"), True, 1),
        ("中文\n", ("中文", "中国"), False, 0),
        ("中", ("中文", "中国"), True, -1),
        ("\n3", ("3", "30"), False, -1),  # an empty answer is none
        ("", ("3", "30"), True, -1),
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
        ("{text} -> {label}, ", "3\n", ("3", "30"), 0),  # a line break ends every answer
        ("{text} -> {label}, ", "3;", ("3", "30"), -1),
        ("{text} -> {label}; ", "b,k; x", ("b", "k"), -1),
        ("{text} -> {label}; ", "b; k", ("b", "k"), 0),
        ("Q: {text}\nA:\n{label}\n\n", "3\n", ("3", "30"), 0),  # an answer on a line of its own
        ("Q: {text}\nA:\n{label}\n\n", "30\n", ("3", "30"), 1),
        ("{text} -> {label}.\n", "1.5.\n", ("1", "1.5"), 1),  # what ends an answer may stand in one
        ("{text} -> {label}.\n", "1.\n", ("1", "1.5"), 0),
        ("{text} -> {label}.\n", "1.7.\n", ("1", "1.5"), -1),
        ("{text} -> {label}.", "1.7.\n", ("1", "1.5"), -1),  # the line break that a demonstration gets belongs to it
        ("{text} -> {label}.", "1.\n", ("1", "1.5"), 0),
        ("{text} -> {label} now\n", "fine now\n", ("fine", "find"), 0),
        ("{text} -> {label} now\n", "in now\n", ("i", "in"), 1),
        ("{text} -> {label} now\n", "i now\n", ("i", "in"), 0),
        ("{text} -> {label} now\n", "i nowhere", ("i", "in"), -1),
        ("{text} -> {label} now\n", "i the", ("i", "in"), -1),
        ("{text} <a>{label}</a> ", "i</a> ", ("i", "in"), 0),
        ("{text} <a>{label}</a> ", "i</b> ", ("i", "in"), -1),
    ],
)
def test_what_ends_an_answer_is_what_the_template_says(template: str, says: str, classes: tuple[str, ...], answer: int):
    assert told(says, *classes, template=template) == answer


def test_a_model_s_own_end_tokens_end_an_answer():
    """Chat models end their turn with a token that is not the tokenizer's."""
    tok = letters()
    assert told("b", "b", "k", ends=True, own_end=tok.unk_token_id) == 0
    assert told("b", "b", "k", ends=True, own_end=None) == 0
    subject, asked = parrot("b", "b", "k", ends=True, own_end=tok.unk_token_id)
    del subject.model.generation_config
    assert answers(subject, asked).answer.tolist() == [-1], "the control: to others it is a token like any"


@pytest.mark.parametrize(
    ("says", "beyond", "written"),
    [("b,k,s\n", True, "b,k,s"), ("b\n", False, "b"), ("x,b\n", False, "x,b"), ("b", True, "b" + "0" * 11)],
)
def test_an_answer_that_went_on_is_known_and_read_in_full(says: str, beyond: bool, written: str):
    subject, asked = parrot(says, "b", "k")
    assert answers(subject, asked).beyond.tolist() == [beyond]
    assert in_full(subject, asked[0]) == written


def test_an_answer_is_read_no_longer_than_it_may_be_a_class(monkeypatch: pytest.MonkeyPatch):
    """The cost: one pass for the first token, and one more for every further token that a class has or that ends it."""
    for says, passes in (("xyz\n", 1), ("b\n", 2), ("bx\n", 2), ("kind\n", 5), ("kiss\n", 3)):
        subject, asked = parrot(says, "b", "kind")
        seen: list[int] = []
        monkeypatch.setattr(
            reading, "collect_rows", lambda s, r, *a, seen=seen: seen.append(len(r)) or runs.collect_rows(s, r, *a)
        )
        lead = len(wording(subject.tokenizer, subject.template).lead)  # type: ignore[arg-type]
        assert lead == 1
        answers(subject, asked)
        assert seen == [1] * passes, says


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
        got = answers(subject, asked)
        assert (got.answer.tolist(), got.beyond.tolist()) == ([-1], [True])
    assert max(lengths) == 128 - wording(subject.tokenizer, subject.template).longest  # type: ignore[arg-type]


def test_what_a_pool_cannot_be(base_of: Callable[[str], Path]):
    subject, pairs = few_shot(base_of("llama"), ("good", "bad"))
    with pytest.raises(BadInput, match="leave --second out"):
        with_pool(subject, replace(pairs, second=list(pairs.text)))
    bare = load(str(base_of("llama")), shots=3, template=TEMPLATE, device="cpu")
    with pytest.raises(BadInput, match="no pairs to take demonstrations from"):
        prompts.drawn(bare, pairs)
