"""A prompt given to the forward pass is what plain PEFT says with that prompt; and the batches that a pass is cut into."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from drawn_weights import move
from trueup.corpus.corpus import Corpus
from trueup.errors import Unavailable
from trueup.run import forward
from trueup.run.predict import TOKENS, Session, in_batches, within
from trueup.subject.anatomy import FAMILIES
from trueup.subject.new_adapter import Lora, Prompt, PTuning, fresh, prompt_embeddings
from trueup.subject.subject import Subject
from trueup.subject.template import Template

CLASSES = ("a", "b", "c")
TEMPLATE = Template("say {text} now", ("good", "bad", "cat"))
TEXT = ["good cat sat", "bad", "the cat bad good mat sat on the good dog", "very loud film it was"]
SECOND = ["bad film", "the dog sat on mat", "now", "a calm cat"]
TOLERANCE = 1e-5


def corpus(*, pairs: bool = False) -> Corpus:
    n = len(TEXT)
    return Corpus(TEXT, np.arange(n) % 3, CLASSES, np.array(["test"] * n), second=SECOND if pairs else None)


def prompted(base: Path, recipe: Any = None, *, words: bool = False) -> Subject:
    template = TEMPLATE if words else None
    subject = fresh(str(base), recipe or Prompt(4), CLASSES, template=template, max_length=32, device="cpu")
    move(subject.model)
    return subject


def batch_of(subject: Subject, every: Corpus) -> forward.Batch:
    return forward.collate(forward.tokenize(subject, every), subject.tokenizer.pad_token_id)


def apart(a: Any, b: Any) -> float:
    a, b = (torch.as_tensor(v).detach().double() for v in (a, b))
    assert a.shape == b.shape, (a.shape, b.shape)
    return float((a - b).abs().max() / b.abs().max())


def plain_peft(subject: Subject, every: Corpus, prompts: Tensor) -> Tensor:
    """PEFT's own forward with its prompt set to `prompts` (n, m, w) in turn, one unpadded example each."""
    rows = None if subject.template is None else subject.verbaliser_ids()
    got = []
    for ids, prompt in zip(forward.tokenize(subject, every), prompts, strict=True):
        given = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        if ids.segments is not None:
            given["token_type_ids"] = torch.tensor([ids.segments])
        weights = {"prompt_encoder.default.embedding.weight": prompt}
        with torch.no_grad():
            z = torch.func.functional_call(subject.model, weights, (), given).logits
        got.append(z[0] if rows is None else z[0, -1, rows])
    return torch.stack(got)


# ----------------------------------------------------------------------------------------------------- given prompts


@pytest.mark.parametrize("family", FAMILIES)
def test_a_given_prompt_is_the_one_that_is_read(family: str, base_of: Callable[[str], Path]):
    subject, every = prompted(base_of(family), words=not FAMILIES[family].head), corpus()
    batch, own = batch_of(subject, every), prompt_embeddings(subject)
    assert own is not None
    assert int(batch.mask.sum()) < batch.mask.numel(), "there is padding"
    g = torch.Generator().manual_seed(2)
    each = own + torch.randn(len(TEXT), *own.shape, generator=g)
    before = subject.fingerprint
    with torch.no_grad():
        plain = forward.logits(subject, batch)
        assert apart(forward.logits(subject, batch, own), plain) <= 1e-6
        assert apart(forward.features(subject, batch, own), forward.features(subject, batch)) <= 1e-6
        one, several = forward.logits(subject, batch, each[0]), forward.logits(subject, batch, each)
        assert apart(one, plain_peft(subject, every, each[:1].expand_as(each))) <= TOLERANCE
        assert apart(several, plain_peft(subject, every, each)) <= TOLERANCE
        assert apart(one[0], several[0]) <= TOLERANCE
        assert apart(several.flip(0), several) > 1e-2
        assert apart(one[1:], several[1:]) > 1e-4, "one prompt for all is not one for each"
        assert apart(one, plain) > 1e-3, "and neither is the subject's own"
        x, head = forward.features(subject, batch, each), forward.live_head(subject)
        assert apart(x @ head.weight.T + head.bias, several) <= 1e-6
    assert subject.fingerprint == before, "no hook is left behind"


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_the_length_and_type_of_a_given_prompt_are_its_own(family: str, base_of: Callable[[str], Path]):
    subject, every = prompted(base_of(family)), corpus()
    batch, own = batch_of(subject, every), prompt_embeddings(subject)
    longer = torch.cat([own, own + 1])
    with torch.no_grad():
        got = forward.logits(subject, batch, longer)
        assert apart(forward.logits(subject, batch, longer.double()), got) <= 1e-6
        assert apart(forward.logits(subject, batch, longer.expand(len(TEXT), -1, -1)), got) <= 1e-6
        for i, ids in enumerate(forward.tokenize(subject, every)):  # by hand, on the bare backbone
            embedded = subject.model.word_embeddings(torch.tensor([ids]))
            wide = torch.cat([longer[None], embedded], dim=1)
            ones = torch.ones(wide.shape[:2], dtype=torch.long)
            assert apart(subject.base(inputs_embeds=wide, attention_mask=ones).logits[0], got[i]) <= TOLERANCE
        assert apart(forward.logits(subject, batch, longer[:4]), forward.logits(subject, batch)) <= 1e-6
    assert apart(got, forward.logits(subject, batch)) > 1e-3


def test_segments_of_pairs_move_on_with_the_prompt(base_of: Callable[[str], Path]):
    subject, every = prompted(base_of("bert")), corpus(pairs=True)
    batch, own = batch_of(subject, every), prompt_embeddings(subject)
    assert own is not None
    assert batch.segments is not None
    assert batch.segments.any()
    each = torch.randn(len(TEXT), *own.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        got = forward.logits(subject, batch, each)
        assert apart(got, plain_peft(subject, every, each)) <= TOLERANCE
        blind = forward.logits(subject, forward.Batch(batch.ids, batch.mask), each)
    assert apart(blind, got) > 1e-3, "the segments are heard"


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_p_tuned_subject_reads_the_given_prompt(family: str, base_of: Callable[[str], Path]):
    subject = prompted(base_of(family), PTuning(4, 16))
    batch, own = batch_of(subject, corpus()), prompt_embeddings(subject)
    assert own is not None
    other = own + torch.randn(own.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert apart(forward.logits(subject, batch, own), forward.logits(subject, batch)) <= 1e-6
        assert apart(forward.logits(subject, batch, other), forward.logits(subject, batch)) > 1e-3


@pytest.mark.parametrize("family", ["bert", "gpt2", "mamba"])
def test_gradients_reach_the_given_prompt_and_each_example_its_own(family: str, base_of: Callable[[str], Path]):
    subject = prompted(base_of(family), words=not FAMILIES[family].head)
    batch, own = batch_of(subject, corpus()), prompt_embeddings(subject)
    assert own is not None
    each = own.expand(len(TEXT), -1, -1).clone().requires_grad_(True)
    z = forward.logits(subject, batch, each)
    (grad,) = torch.autograd.grad(z[2, 0], each)
    assert grad[2].abs().max() > 0
    assert grad[[0, 1, 3]].abs().max() == 0
    shared = own.clone().requires_grad_(True)
    (together,) = torch.autograd.grad(forward.logits(subject, batch, shared)[:, 0].sum(), shared)
    (apiece,) = torch.autograd.grad(forward.logits(subject, batch, each)[:, 0].sum(), each)
    assert apart(together, apiece.sum(dim=0)) <= TOLERANCE


# --------------------------------------------------------------------------------------------------------- in_batches


@pytest.fixture
def subject(base_of: Callable[[str], Path]) -> Subject:
    return prompted(base_of("bert"), Lora(2, dropout=0.2))


def rows(*lengths: int) -> list[forward.Row]:
    """Row i is all of the token i + 1, so that a batch says what is in it."""
    return [forward.Row([i + 1] * n) for i, n in enumerate(lengths)]


LENGTHS = (5, 1, 9, 2, 5, 3, 9, 1)


@pytest.mark.parametrize("tokens", [1, 9, 12, 20, TOKENS])
def test_every_example_comes_once_in_batches_within_the_budget(tokens: int, subject: Subject):
    seen: list[tuple[list[int], forward.Batch]] = []
    for take, batch in in_batches(subject, rows(*LENGTHS), lambda s, b: b, "stage", tokens=tokens):
        assert batch.ids[:, 0].tolist() == [i + 1 for i in take], "what is read is what is said to be read"
        assert batch.mask.sum(dim=1).tolist() == [LENGTHS[i] for i in take]
        assert len(take) == 1 or batch.ids.numel() <= tokens
        seen.append((take, batch))
    assert sorted(i for take, _ in seen for i in take) == list(range(len(LENGTHS)))
    widths = [batch.ids.shape[1] for _, batch in seen]
    assert widths == sorted(widths)
    # As many as fit: the next batch's first example would have made this one too large.
    for (take, _), (following, _) in itertools.pairwise(seen):
        assert (len(take) + 1) * LENGTHS[following[0]] > tokens
    assert len(seen) == {1: 8, 9: 6, 12: 4, 20: 3, TOKENS: 1}[tokens]


def test_what_is_read_is_handed_on_as_it_is_and_progress_is_said(subject: Subject):
    said: list[tuple[str, int, int]] = []
    with within(Session(progress=lambda stage, done, total: said.append((stage, done, total)))):
        got = list(in_batches(subject, rows(*LENGTHS), lambda s, b: (s, len(b.ids)), "gradients", tokens=20))
    assert all(what == (subject, len(take)) for take, what in got)
    done = np.cumsum([len(take) for take, _ in got]).tolist()
    assert said == [("gradients", d, len(LENGTHS)) for d in done]
    assert list(in_batches(subject, [], lambda s, b: b, "stage")) == []


def test_modes_are_as_they_were_between_batches_and_after_an_early_end(subject: Subject):
    subject.model.train()
    before, inside = subject.fingerprint, []

    def read(s: Subject, b: forward.Batch) -> int:
        inside.append(any(m.training for m in s.model.modules()))
        return len(b.ids)

    batches = in_batches(subject, rows(*LENGTHS), read, "stage", tokens=9)
    next(batches)
    assert subject.fingerprint == before, "the caller's own work between two batches meets the caller's own modes"
    next(batches)
    batches.close()
    assert subject.fingerprint == before
    assert inside == [False, False]
    assert all(m.training for m in subject.model.modules() if isinstance(m, torch.nn.Dropout))


def test_grad_mode_is_the_callers(subject: Subject):
    modes: list[bool] = []
    read: Callable[[Subject, forward.Batch], None] = lambda s, b: modes.append(torch.is_grad_enabled())  # noqa: E731
    list(in_batches(subject, rows(3), read, "stage"))
    with torch.no_grad():
        list(in_batches(subject, rows(3), read, "stage"))
    assert modes == [True, False]


def test_a_batch_that_does_not_fit_is_halved_and_none_is_lost(subject: Subject):
    current, tried = Session(), []

    def read(s: Subject, b: forward.Batch) -> int:
        tried.append(len(b.ids))
        if len(b.ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return len(b.ids)

    with within(current):
        got = list(in_batches(subject, rows(*LENGTHS), read, "stage", tokens=80))
    assert sorted(i for take, _ in got for i in take) == list(range(len(LENGTHS)))
    assert tried[0] == len(LENGTHS)
    assert max(len(take) for take, _ in got) == 2
    assert current.notes
    assert all("Memory ran out; batches were halved to" in n for n in current.notes)
    current = Session()
    with within(current):
        list(in_batches(subject, rows(*LENGTHS), lambda s, b: None, "stage", tokens=80))
    assert not current.notes, "the control"


def test_one_example_that_does_not_fit_is_said_and_other_errors_pass(subject: Subject):
    def full(s: Subject, b: forward.Batch) -> None:
        raise MemoryError

    def broken(s: Subject, b: forward.Batch) -> None:
        raise RuntimeError("mat1 and mat2")

    subject.model.train()
    before = subject.fingerprint
    with pytest.raises(Unavailable, match=r"One example of 1 tokens does not fit in memory; lower --max-length\."):
        list(in_batches(subject, rows(*LENGTHS), full, "stage"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        list(in_batches(subject, rows(*LENGTHS), broken, "stage"))
    assert subject.fingerprint == before
