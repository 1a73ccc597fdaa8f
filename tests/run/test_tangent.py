"""A prompt classifier's first order, against forward-mode differentiation of plain PEFT's own model, one example at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from drawn_weights import move
from trueup.corpus.corpus import Corpus
from trueup.errors import Unavailable, Unsupported
from trueup.run import forward, tangent
from trueup.run.predict import Session, predict, within
from trueup.run.tangent import Tangent, expand
from trueup.store.cache import Memo
from trueup.subject.anatomy import FAMILIES
from trueup.subject.load import load
from trueup.subject.new_adapter import Lora, Prefix, Prompt, PTuning, Recipe, fresh, prompt_embeddings
from trueup.subject.quiet import quiet
from trueup.subject.subject import Head, Subject
from trueup.subject.swap_adapter import wear, with_prompt
from trueup.subject.template import Template

WORDS = ("good", "bad", "cat")  # first letters differ too: the tiny Qwen2 spells
TEXT = ["good cat sat", "bad", "the cat bad good mat sat on the good dog", "very loud film it was"]
SECOND = ["bad film", "the dog sat on mat", "now", "a calm cat"]
TOLERANCE = 1e-5
TOKENS = 4


@dataclass(frozen=True)
class Kind:
    """What is differentiated: a family, the number of classes, and whether it answers with a word or has pairs."""

    family: str
    classes: int = 3
    words: bool = False
    pairs: bool = False

    def __str__(self) -> str:
        return "-".join([self.family, str(self.classes), *["words"] * self.words, *["pairs"] * self.pairs])


# Every family; besides, two classes, class words, and pairs, on an encoder and on decoders.
KINDS = [
    *(Kind(f, words=not a.head) for f, a in FAMILIES.items()),
    Kind("bert", 2), Kind("gpt2", 2), Kind("llama", 2, words=True), Kind("gpt2", words=True), Kind("bert", pairs=True),
]  # fmt: skip


def corpus(classes: int = 3, *, pairs: bool = False) -> Corpus:
    names = ("a", "b", "c")[:classes]
    second = SECOND if pairs else None
    return Corpus(TEXT, np.arange(len(TEXT)) % classes, names, np.array(["test"] * len(TEXT)), second=second)


def subject_of(base: Path, kind: Kind, recipe: Recipe | None = None) -> Subject:
    template = Template("say {text} now", WORDS[: kind.classes]) if kind.words else None
    names, recipe = ("a", "b", "c")[: kind.classes], recipe or Prompt(TOKENS)
    subject = fresh(str(base), recipe, names, template=template, max_length=32, device="cpu")
    move(subject.model)
    return subject


@dataclass(frozen=True, eq=False)
class Case:
    kind: Kind
    subject: Subject
    corpus: Corpus
    at: Tensor
    tangent: Tangent


@pytest.fixture(scope="module", params=KINDS, ids=str)
def case(request: pytest.FixtureRequest, base_of: Callable[[str], Path]) -> Case:
    kind = request.param
    subject, every = subject_of(base_of(kind.family), kind), corpus(kind.classes, pairs=kind.pairs)
    at = prompt_embeddings(subject)
    assert at is not None
    return Case(kind, subject, every, at, expand(subject, every, at))


@pytest.fixture
def subject(base_of: Callable[[str], Path]) -> Subject:
    return subject_of(base_of("bert"), Kind("bert"))


def change_of(prompt: Tensor, seed: int = 2) -> Tensor:
    return torch.randn(prompt.shape, generator=torch.Generator().manual_seed(seed))


def own_prompt(subject: Subject) -> Tensor:
    at = prompt_embeddings(subject)
    assert at is not None
    return at


def apart(a: Any, b: Any) -> float:
    """The largest difference, relative to the largest value."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    assert np.isfinite(b).all()
    return float(np.abs(a - b).max() / np.abs(b).max())


def forward_mode(subject: Subject, every: Corpus, at: Tensor, change: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(n, C - 1) margins and their directional derivatives, in float64 and without trueup's forward pass or any padding.

    Plain PEFT's forward with the prompt's weight as the argument of ``torch.func.jvp``. The only thing changed in the
    model is Bloom's activation, a hand-written autograd.Function without a forward mode, for torch's own equal one.
    """
    model = copy.deepcopy(subject.model).double()
    for module in model.modules():
        if type(module).__name__ == "BloomMLP":
            module.gelu_impl = torch.nn.GELU(approximate="tanh")
    name = "prompt_encoder.default.embedding.weight"
    assert dict(model.named_parameters())[name].shape == at.shape
    rows = None if subject.template is None else subject.verbaliser_ids()
    margins, slopes = [], []
    for ids in forward.tokenize(subject, every):
        given = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        if ids.segments is not None:
            given["token_type_ids"] = torch.tensor([ids.segments])

        def margin(prompt: Tensor, given: dict[str, Tensor] = given) -> Tensor:
            z = torch.func.functional_call(model, {name: prompt}, (), given).logits
            z = z[0] if rows is None else z[0, -1, rows]
            return z[1:] - z[0]

        with sdpa_kernel(SDPBackend.MATH):
            value, slope = torch.func.jvp(margin, (at.double(),), (change.double(),))
        margins.append(value.detach().numpy())
        slopes.append(slope.detach().numpy())
    return np.stack(margins), np.stack(slopes)


# --------------------------------------------------------------------------------------------------------- exactness


def test_moved_is_the_forward_mode_derivative(case: Case):
    lengths = [len(r) for r in forward.tokenize(case.subject, case.corpus)]
    assert len(set(lengths)) > 2, "texts of unequal lengths, so that all but one are padded"
    change = change_of(case.at)
    margins, slopes = forward_mode(case.subject, case.corpus, case.at, change)
    got = case.tangent.moved(change.numpy())
    assert got.shape == (len(TEXT), case.kind.classes - 1)
    assert apart(got, slopes) <= TOLERANCE
    assert apart(case.tangent.margins, margins) <= TOLERANCE
    # What would have shown: another direction, another example's row, another class.
    assert apart(case.tangent.moved(change_of(case.at, 3).numpy()), slopes) > 0.01
    assert apart(got[::-1], slopes) > 0.01
    if case.kind.classes > 2:
        assert apart(got[:, ::-1], slopes) > 0.01


def test_logits_are_those_of_predict(case: Case):
    ours = predict(case.subject, case.corpus).logits
    assert case.tangent.logits.shape == (len(TEXT), case.kind.classes)
    assert apart(case.tangent.logits, ours) <= 1e-6
    assert np.array_equal(case.tangent.at, case.at.numpy())
    elsewhere = expand(case.subject, case.corpus, case.at + change_of(case.at))
    assert apart(elsewhere.logits, ours) > 1e-3, "the logits are those at the prompt that was given"
    moved = wear(case.subject, *with_prompt(case.subject, case.at + change_of(case.at)))
    assert apart(elsewhere.logits, predict(moved, case.corpus).logits) <= 1e-6


def test_an_example_does_not_depend_on_its_batch(case: Case, monkeypatch: pytest.MonkeyPatch):
    change = change_of(case.at).numpy()
    for i in range(len(TEXT)):
        alone = expand(case.subject, case.corpus.take(np.array([i])), case.at)
        assert apart(alone.gradient[0], case.tangent.gradient[i]) <= TOLERANCE
        assert apart(alone.logits[0], case.tangent.logits[i]) <= TOLERANCE
    backwards = expand(case.subject, case.corpus.take(np.arange(len(TEXT))[::-1]), case.at)
    assert apart(backwards.moved(change)[::-1], case.tangent.moved(change)) <= TOLERANCE
    assert apart(backwards.moved(change), case.tangent.moved(change)) > 0.01
    sizes: list[int] = []
    plain = forward.logits
    monkeypatch.setattr(forward, "logits", lambda s, b, p: (sizes.append(len(b.ids)), plain(s, b, p))[1])
    monkeypatch.setattr(tangent, "TOKENS", 8 * 12)
    split = expand(case.subject, case.corpus, case.at)
    assert len(sizes) > 1, "more than one batch"
    assert sum(sizes) == len(TEXT)
    assert apart(split.gradient, case.tangent.gradient) <= TOLERANCE


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_a_p_tuned_prompt_is_differentiated_as_the_prompt_it_made(family: str, base_of: Callable[[str], Path]):
    subject = subject_of(base_of(family), Kind(family), PTuning(TOKENS, 16))
    at = own_prompt(subject)
    got = expand(subject, corpus(), at)
    assert apart(got.logits, predict(subject, corpus()).logits) <= 1e-6
    plain = wear(subject, *with_prompt(subject, at))  # forward_mode wants the prompt as one weight
    change = change_of(at)
    assert apart(got.moved(change.numpy()), forward_mode(plain, corpus(), at, change)[1]) <= TOLERANCE
    assert subject.source.peft_type == "P_TUNING"


def test_a_longer_prompt_than_the_subjects_own(subject: Subject):
    longer = torch.cat([own_prompt(subject), change_of(own_prompt(subject))])
    got = expand(subject, corpus(), longer)
    assert got.gradient.shape == (len(TEXT), 2, longer.numel())
    worn = wear(subject, *with_prompt(subject, longer))
    change = change_of(longer)
    assert apart(got.moved(change.numpy()), forward_mode(worn, corpus(), longer, change)[1]) <= TOLERANCE


def test_a_stand_in_head_is_the_head_that_is_differentiated(subject: Subject):
    """Of a head with more rows than classes only the classes count."""
    own, at = subject.own_head(), own_prompt(subject)
    change = change_of(at).numpy()
    plain = expand(subject, corpus(), at)
    wide = Head(torch.cat([own.weight * 2, own.weight[:1]]), torch.cat([own.bias * 2, own.bias[:1]]))
    twice = expand(replace(subject, head=wide), corpus(), at)
    assert apart(twice.moved(change), 2 * plain.moved(change)) <= TOLERANCE
    assert apart(twice.logits, 2 * plain.logits) <= TOLERANCE


def test_rows_are_the_gradient_in_pieces(subject: Subject, monkeypatch: pytest.MonkeyPatch):
    t = expand(subject, corpus(), own_prompt(subject), half=True)
    change = change_of(own_prompt(subject)).numpy()
    whole = t.moved(change)
    assert len(list(t.rows())) == 1
    monkeypatch.setattr(tangent, "CHUNK", 3 * t.gradient[0].size)
    pieces = list(t.rows())
    assert [len(g) for _, g in pieces] == [3, 1]
    joined = np.concatenate([g for _, g in pieces])
    assert joined.dtype == np.float64
    assert np.array_equal(joined, t.gradient.astype(np.float64) * t.scale[:, :, None])
    assert np.array_equal(np.concatenate([np.arange(len(t))[part] for part, _ in pieces]), np.arange(len(t)))
    assert apart(t.moved(change), whole) <= 1e-12
    assert len(t) == len(TEXT)


# ------------------------------------------------------------------------------------------------------------ storage


def test_half_storage_is_half_as_large_and_within_its_bound(case: Case):
    half = expand(case.subject, case.corpus, case.at, half=True)
    assert half.gradient.dtype == np.float16
    assert half.gradient.nbytes * 2 == case.tangent.gradient.nbytes
    assert np.array_equal(half.logits, case.tangent.logits)
    assert np.array_equal(case.tangent.scale, np.ones_like(case.tangent.scale))
    full = case.tangent.gradient.astype(np.float64)
    largest = np.abs(full).max(axis=2)
    got = half.gradient.astype(np.float64) * half.scale[:, :, None]
    assert np.array_equal(np.abs(half.gradient).max(axis=2), np.ones_like(largest)), "a largest entry of 1"
    slack = 1 + 1e-3  # float32's own rounding of the scale and of the quotient
    assert (np.abs(got - full).max(axis=2) <= slack * 2.0**-12 * largest).all()
    assert np.abs(got - full).max() > 0, "something was lost, so the bound means something"
    # The bound is on the worst change: one that pushes every entry the way its error points.
    worst = np.sign(got - full)[0, 0].reshape(case.at.shape)
    for change in (worst, change_of(case.at).numpy()):
        error = np.abs(half.moved(change) - case.tangent.moved(change))
        bound = slack * 2.0**-12 * largest * np.abs(change).sum()
        assert (error <= bound).all()
        assert error.max() > 0
    assert apart(half.moved(change), case.tangent.moved(change)) <= 1e-2


def test_a_half_gradient_of_nothing_is_nothing(subject: Subject):
    own = subject.own_head()
    dead = replace(subject, head=Head(torch.zeros_like(own.weight), own.bias))
    half = expand(dead, corpus(), own_prompt(subject), half=True)
    assert np.array_equal(half.moved(change_of(own_prompt(subject)).numpy()), np.zeros((len(TEXT), 2)))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("remembered", [False, True])
def test_large_gradients_live_in_a_file(
    half: bool, remembered: bool, subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    at, change = own_prompt(subject), change_of(own_prompt(subject)).numpy()
    small = expand(subject, corpus(), at, half=half)
    assert not isinstance(small.gradient, np.memmap)
    monkeypatch.setattr(tangent, "LARGE", 0)
    memo = tmp_path / "not yet" / "there"
    with within(Session(memo=Memo(memo) if remembered else None)):
        large = expand(subject, corpus(), at, half=half)
    assert isinstance(large.gradient, np.memmap)
    assert large.gradient.dtype == small.gradient.dtype
    for name in ("at", "logits", "gradient", "scale"):
        assert np.array_equal(getattr(large, name), getattr(small, name)), name
    assert np.array_equal(large.moved(change), small.moved(change))
    found = sorted(p.suffix for p in memo.glob("*")) if remembered else []
    assert found == ([".kept", ".npy"] if remembered else []), "and no half-written file"
    assert (Path(str(large.gradient.filename)).parent == memo) is remembered


def test_large_gradients_without_a_memory_do_not_overwrite_one_another(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tangent, "LARGE", 0)
    at = own_prompt(subject)
    first = expand(subject, corpus(), at)
    kept = first.gradient.copy()
    second = expand(subject, corpus(), at * 2)
    assert np.array_equal(first.gradient, kept)
    assert not np.array_equal(second.gradient, kept)


class Called(Exception):
    pass


def no_model(*_: Any, **__: Any) -> None:
    raise Called


@pytest.mark.parametrize("large", [False, True])
def test_the_memory_is_found_again_and_never_mixed_up(
    large: bool, subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if large:
        monkeypatch.setattr(tangent, "LARGE", 0)
    own, at, every = subject.own_head(), own_prompt(subject), corpus()
    stand_in = replace(subject, head=Head(own.weight * 2, own.bias))
    shifted = replace(subject, head=Head(own.weight, own.bias + torch.tensor([0.0, 1.0, 2.0])))
    fewer = replace(stand_in, classes=("a", "b"))
    inside: dict[str, Tangent] = {}

    def calls() -> dict[str, Callable[[], Tangent]]:
        return {
            "whole": lambda: expand(subject, every, at),
            "half": lambda: expand(subject, every, at, half=True),
            "prompt": lambda: expand(subject, every, at + 1e-3 * change_of(at)),
            "head": lambda: expand(stand_in, every, at),
            "bias": lambda: expand(shifted, every, at),
            "classes": lambda: expand(fewer, every, at),
            "texts": lambda: expand(subject, every.take(np.array([0, 1])), at),
        }

    without = {name: call() for name, call in calls().items()}
    different = {n for n, t in without.items() if not np.array_equal(t.gradient, without["whole"].gradient)}
    assert different == {"half", "prompt", "head", "classes", "texts"}
    assert not np.array_equal(without["bias"].logits, without["whole"].logits)
    for name, call in calls().items():
        with within(Session(memo=Memo(tmp_path))):
            with pytest.MonkeyPatch.context() as m:
                m.setattr(tangent, "in_batches", no_model)
                with pytest.raises(Called):  # what the others left behind is not taken for this one's
                    call()
            inside[name] = call()
    monkeypatch.setattr(tangent, "in_batches", no_model)
    with within(Session(memo=Memo(tmp_path))):
        again = {name: call() for name, call in calls().items()}
        for name, t in again.items():
            for part in ("at", "logits", "gradient", "scale"):
                assert np.array_equal(getattr(t, part), getattr(inside[name], part)), (name, part)
                assert np.array_equal(getattr(t, part), getattr(without[name], part)), (name, part)
            assert isinstance(t.gradient, np.memmap) is large
        # The subject's own last layer, and a weight far below it.
        for weight in (subject.head_layer().weight, next(subject.base.base_model.parameters())):
            with torch.no_grad():
                weight.view(-1)[0] += 1e-3
            with pytest.raises(Called):
                expand(subject, every, at)
            with torch.no_grad():
                weight.view(-1)[0] -= 1e-3
    with pytest.raises(Called):
        expand(subject, every, at)  # no session, no memory


@pytest.mark.parametrize("spoilt", ["lost", "a bit turned", None])
def test_a_spoilt_file_is_computed_again(
    spoilt: str | None, subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tangent, "LARGE", 0)
    at = own_prompt(subject)
    with within(Session(memo=Memo(tmp_path))):
        first = expand(subject, corpus(), at).gradient.copy()
        (file,) = tmp_path.glob("*.npy")
        whole = file.read_bytes()
        if spoilt == "lost":
            file.unlink()
        elif spoilt:
            file.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
        else:
            monkeypatch.setattr(tangent, "in_batches", no_model)  # the control: it is read again
        assert np.array_equal(expand(subject, corpus(), at).gradient, first)
        assert file.read_bytes() == whole


# ------------------------------------------------------------------------------------------- refusals and left behind


@pytest.mark.parametrize("recipe", [Lora(2), Prefix(2)], ids=lambda r: r.name)
def test_a_subject_without_a_soft_prompt_is_refused(recipe: Recipe, base_of: Callable[[str], Path]):
    kind = Kind("bert")
    refused = subject_of(base_of("bert"), kind, recipe)
    with pytest.raises(Unsupported, match=r"Only a prompt-tuned subject has a prompt .* `trueup tune prompt`\."):
        expand(refused, corpus(), torch.zeros(TOKENS, 32))
    for allowed in (Prompt(TOKENS), PTuning(TOKENS, 16)):
        assert len(expand(subject_of(base_of("bert"), kind, allowed), corpus(), torch.zeros(TOKENS, 32))) == len(TEXT)


def test_a_bare_model_is_refused(base_of: Callable[[str], Path], tmp_path: Path):
    with quiet():
        net = transformers.AutoModelForSequenceClassification.from_pretrained(base_of("bert"), num_labels=3)
        net.save_pretrained(tmp_path)
        transformers.AutoTokenizer.from_pretrained(base_of("bert")).save_pretrained(tmp_path)
    with pytest.raises(Unsupported, match="Only a prompt-tuned subject has a prompt"):
        expand(load(str(tmp_path), device="cpu"), corpus(), torch.zeros(TOKENS, 32))


def test_expanding_leaves_no_trace(case: Case):
    model = case.subject.model
    some = list(model.modules())[::3]
    model.train()
    for m in some:
        m.training = False
    try:
        before = case.subject.fingerprint
        flags = [p.requires_grad for p in model.parameters()]
        assert any(flags)
        t = expand(case.subject, case.corpus, case.at)
        assert case.subject.fingerprint == before
        assert all(p.grad is None for p in model.parameters())
        assert [p.requires_grad for p in model.parameters()] == flags
        assert np.array_equal(t.gradient, case.tangent.gradient), "evaluated in eval mode all the same"
        model.eval()
        assert case.subject.fingerprint != before, "the fingerprint sees modes"
    finally:
        model.eval()


def test_a_failed_expansion_leaves_no_trace(subject: Subject, monkeypatch: pytest.MonkeyPatch):
    subject.model.train()
    before, calls = subject.fingerprint, []

    def broken(*_: Any, **__: Any) -> Any:
        calls.append(1)
        raise Called

    monkeypatch.setattr(subject.base.base_model, "forward", broken)
    with pytest.raises(Called):
        expand(subject, corpus(), own_prompt(subject))
    assert calls
    assert subject.fingerprint == before


def test_gradients_are_taken_where_gradients_are_off(subject: Subject):
    at, change = own_prompt(subject), change_of(own_prompt(subject)).numpy()
    for p in subject.model.parameters():
        p.requires_grad_(False)
    with torch.no_grad():
        off = expand(subject, corpus(), at)
    assert np.abs(off.moved(change)).min() > 0
    assert apart(off.moved(change), forward_mode(subject, corpus(), at, torch.as_tensor(change))[1]) <= TOLERANCE


def test_batches_halve_when_memory_runs_out(subject: Subject, monkeypatch: pytest.MonkeyPatch):
    at, plain, current = own_prompt(subject), forward.logits, Session()
    before, sizes = expand(subject, corpus(), at), []

    def tight(s: Subject, b: forward.Batch, p: Tensor) -> Tensor:
        sizes.append(len(b.ids))
        if len(b.ids) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(s, b, p)

    monkeypatch.setattr(forward, "logits", tight)
    most = 2
    with within(current):
        after = expand(subject, corpus(), at)
    assert sizes[0] == len(TEXT)
    assert apart(after.gradient, before.gradient) <= TOLERANCE
    assert any("Memory ran out; batches were halved to" in n for n in current.notes)
    most = 0
    with pytest.raises(Unavailable, match=r"One example of \d+ tokens does not fit in memory"):
        expand(subject, corpus(), at)
