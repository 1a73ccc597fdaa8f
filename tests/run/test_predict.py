"""Whole corpora through a subject: order, memory on disk, memory that runs out, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drawn_weights import move
from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput, Unavailable, out_of_memory
from trueup.run import forward
from trueup.run import predict as room
from trueup.run.predict import Session, collect, evaluating, hidden_states, predict, within
from trueup.store.cache import Memo
from trueup.subject.anatomy import FAMILIES
from trueup.subject.load import load
from trueup.subject.new_adapter import Lora, Prefix, Prompt, fresh
from trueup.subject.subject import Head, Subject
from trueup.subject.template import Template
from trueup.subject.tiny import WORDS, make_base

CLASSES = ("no", "yes")
CAUSAL = [f for f, a in FAMILIES.items() if a.causal]


def texts(n: int = 40) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, int(rng.integers(1, 20)))) for _ in range(n)]


def corpus(text: list[str] | None = None) -> Corpus:
    text = text or texts()
    return Corpus(text, np.arange(len(text)) % 2, CLASSES, np.array(["test"] * len(text)))


def perturbed(subject: Subject) -> Subject:
    move(subject.model)
    return subject


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    made: dict[str, str] = {}

    def get(family: str) -> str:
        if family not in made:
            made[family] = str(make_base(family, tmp_path_factory.mktemp("bases") / family))
        return made[family]

    return get


@pytest.fixture
def subject(base_of: Callable[[str], str]) -> Subject:
    return perturbed(fresh(base_of("bert"), Lora(4, dropout=0.2), CLASSES, max_length=32, device="cpu"))


# ------------------------------------------------------------------------------------------------------------- order


def test_outputs_keep_the_corpus_order_over_many_batches(subject: Subject, monkeypatch: pytest.MonkeyPatch):
    every = corpus()
    whole = predict(subject, every)
    monkeypatch.setattr(room, "TOKENS", 48)
    sizes: list[int] = []
    plain = forward.features
    monkeypatch.setattr(forward, "features", lambda s, b: (sizes.append(len(b.ids)), plain(s, b))[1])
    split = predict(subject, every)
    assert len(sizes) > 8, "many batches"
    assert sum(sizes) == len(every)
    assert sizes != sorted(sizes), "and not in the corpus' order: short texts share large batches"
    np.testing.assert_allclose(split.logits, whole.logits, atol=1e-5)
    for i in (0, 7, 39):
        np.testing.assert_allclose(predict(subject, every.take(np.array([i]))).logits[0], whole.logits[i], atol=1e-5)
    rng = np.random.default_rng(3).permutation(len(every))
    np.testing.assert_allclose(predict(subject, every.take(rng)).logits, whole.logits[rng], atol=1e-5)
    assert np.abs(whole.logits - whole.logits[rng]).max() > 1e-2, "another order would have shown"


def test_outputs_follow_from_one_another(subject: Subject):
    out = predict(subject, corpus())
    head = subject.own_head()
    z = out.features.astype(float) @ head.weight.numpy().astype(float).T + head.bias.numpy()
    np.testing.assert_allclose(out.logits, z, atol=1e-5)
    e = np.exp(z - z.max(axis=1, keepdims=True))
    np.testing.assert_allclose(out.probability, e / e.sum(axis=1, keepdims=True), atol=1e-6)
    assert np.array_equal(out.predicted, out.logits.argmax(axis=1))
    np.testing.assert_allclose(out.confidence, out.probability.max(axis=1), atol=1e-12)


def test_batches_stay_within_their_budget(subject: Subject, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(room, "TOKENS", 60)
    seen: list[torch.Size] = []
    collect(subject, corpus(), lambda s, b: (seen.append(b.ids.shape), forward.features(s, b))[1], "features")
    assert all(b * t <= 60 or b == 1 for b, t in seen)
    assert max(b for b, _ in seen) > 3


def test_an_example_without_tokens_is_named(base_of: Callable[[str], str]):
    gpt2 = load(base_of("gpt2"), template="{text}", verbaliser=["good", "bad"], device="cpu")
    with pytest.raises(BadInput, match="Example 2 of 'corpus' becomes no token at all; drop it or give it text"):
        predict(gpt2, corpus(["good", " ", "bad"]))


def test_long_texts_are_cut_inside_the_template(base_of: Callable[[str], str]):
    gpt2 = load(base_of("gpt2"), template="say {text} now", verbaliser=["good", "bad"], max_length=6, device="cpu")
    words = gpt2.tokenizer.convert_ids_to_tokens(forward.tokenize(gpt2, corpus(["cat dog mat cat dog mat trap"]))[0])
    assert words == ["say", "cat", "dog", "mat", "cat", "now"]
    short = load(
        base_of("gpt2"), template="say it was {text} now now", verbaliser=["good", "bad"], max_length=4, device="cpu"
    )
    with pytest.raises(BadInput, match=r"template alone is longer than 4 tokens; shorten it or raise --max-length"):
        forward.tokenize(short, corpus(["cat dog"]))


# ------------------------------------------------------------------------------------------------------------ memory


def test_remembered_outputs_are_identical_and_need_no_model(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def no_model(*_: Any) -> None:
        raise AssertionError("the model was called")

    every = corpus()
    without = predict(subject, every)
    with within(Session(memo=Memo(tmp_path))):
        first = predict(subject, every)
        monkeypatch.setattr(forward, "features", no_model)
        again = predict(subject, every)
    for name in ("features", "logits", "predicted", "confidence", "probability"):
        assert np.array_equal(getattr(first, name), getattr(again, name)), name
        assert np.array_equal(getattr(first, name), getattr(without, name)), name
    with within(Session(memo=Memo(tmp_path))):
        # What else would change the features must miss: other texts, another length, other weights.
        with pytest.raises(AssertionError, match="the model was called"):
            predict(subject, corpus(texts()[:-1]))
        with torch.no_grad():
            next(p for n, p in subject.model.named_parameters() if "lora_B" in n).add_(1e-3)
        with pytest.raises(AssertionError, match="the model was called"):
            predict(subject, every)
    with pytest.raises(AssertionError, match="the model was called"):
        predict(subject, every)


def test_another_last_layer_needs_no_other_pass(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Features do not know the head, so a repair of the head alone finds them; the logits are its own."""
    every, passes, usual = corpus(), [], forward.features
    monkeypatch.setattr(forward, "features", lambda *a: (passes.append(a), usual(*a))[1])
    with within(Session(memo=Memo(tmp_path))):
        first, states = predict(subject, every), hidden_states(subject, every)
        done = len(passes)
        with torch.no_grad():
            subject.head_layer().weight.mul_(-1)
            subject.head_layer().weight.requires_grad_(not subject.head_layer().weight.requires_grad)
        again = predict(subject, every)
        assert len(passes) == done > 0
        assert np.array_equal(hidden_states(subject, every), states)
        # Logits that are asked for as such go through the head, and are not taken from memory.
        direct = [collect(subject, every, forward.logits, "logits") for _ in range(2)]
        with torch.no_grad():
            subject.head_layer().bias.add_(1)
        moved = collect(subject, every, forward.logits, "logits")
    np.testing.assert_allclose(again.logits, predict(subject, every).logits - 1, atol=1e-5)
    assert np.abs(again.logits - first.logits).max() > 1e-3
    assert np.array_equal(*direct)
    np.testing.assert_allclose(moved, direct[0] + 1, atol=1e-5)


def test_a_stand_in_head_is_remembered_by_itself(subject: Subject, tmp_path: Path):
    head = forward.live_head(subject)
    other = replace(subject, head=Head(head.weight.detach() * 2, head.bias.detach() + 1))
    with within(Session(memo=Memo(tmp_path))):
        first, second, again = (collect(s, corpus(), forward.logits, "logits") for s in (subject, other, subject))
    assert np.abs(first - second).max() > 0.1
    assert np.array_equal(first, again)


def test_features_and_hidden_states_are_remembered_apart(subject: Subject, tmp_path: Path):
    with within(Session(memo=Memo(tmp_path))):
        x, h = predict(subject, corpus()).features, hidden_states(subject, corpus())
        assert h.shape == (40, 3, 32)
        assert np.array_equal(hidden_states(subject, corpus()), h)
        assert np.array_equal(predict(subject, corpus()).features, x)


def test_hidden_states_and_the_prediction_come_from_one_pass(subject: Subject, tmp_path: Path):
    alone, calls = predict(subject, corpus()).features, []
    hook = subject.base.base_model.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[operator]
    with within(Session(memo=Memo(tmp_path))):
        states = hidden_states(subject, corpus())
        done = len(calls)
        x = predict(subject, corpus()).features
    assert len(calls) == done > 0
    assert np.array_equal(x, alone), "to the last bit"
    with within(Session()):
        assert np.array_equal(hidden_states(subject, corpus()), states)
        predict(subject, corpus())
    hook.remove()
    assert len(calls) > 2 * done, "the control: without a memory there are two passes"


def out_of_memory_above(largest: int, sizes: list[int]) -> Callable[[Subject, forward.Batch], torch.Tensor]:
    plain = forward.features

    def read(subject: Subject, batch: forward.Batch, prompt: None = None) -> torch.Tensor:
        sizes.append(len(batch.ids))
        if len(batch.ids) > largest:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return plain(subject, batch, prompt)

    return read


def test_batches_halve_when_memory_runs_out(subject: Subject, monkeypatch: pytest.MonkeyPatch):
    every, current = corpus(), Session()
    before = predict(subject, every)
    sizes: list[int] = []
    monkeypatch.setattr(forward, "features", out_of_memory_above(3, sizes))
    with within(current):
        after = predict(subject, every)
    assert sizes[0] == 40
    assert 1 < sum(s > 3 for s in sizes) <= 12, "halved a few times, and not tried again at every batch"
    assert sum(s for s in sizes if s <= 3) == 40, "every example once"
    np.testing.assert_allclose(after.logits, before.logits, atol=1e-5)
    assert np.array_equal(after.predicted, before.predicted)
    assert any("Memory ran out; batches were halved to" in n for n in current.notes)
    assert before.logits.shape == after.logits.shape == (40, 2)


def test_one_example_too_large_is_said(subject: Subject, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(forward, "features", out_of_memory_above(0, []))
    before = subject.fingerprint
    with pytest.raises(Unavailable, match=r"One example of \d+ tokens does not fit in memory; lower --max-length"):
        predict(subject, corpus())
    assert subject.fingerprint == before


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_other_errors_are_not_taken_for_memory(error: Exception, memory: bool, subject: Subject):
    calls: list[int] = []

    def read(s: Subject, b: forward.Batch) -> torch.Tensor:
        calls.append(len(b.ids))
        if len(calls) == 1:
            raise error
        return forward.features(s, b)

    assert out_of_memory(error) is memory
    if memory:
        assert collect(subject, corpus(), read, "features").shape == (40, 32)
    else:
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            collect(subject, corpus(), read, "features")


# ------------------------------------------------------------------------------------------------------ left behind


def test_a_pass_leaves_no_trace(subject: Subject, base_of: Callable[[str], str]):
    decoder = perturbed(fresh(base_of("llama"), Prefix(3), CLASSES, max_length=32, device="cpu"))
    for s in (subject, decoder):
        some = list(s.model.modules())[::3]
        s.model.train()
        for m in some:
            m.training = False
        modes = [m.training for m in s.model.modules()]
        assert 0 < sum(modes) < len(modes)
        before = s.fingerprint
        first = predict(s, corpus())
        hidden_states(s, corpus())
        assert s.fingerprint == before
        assert [m.training for m in s.model.modules()] == modes
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in s.model.modules())
        assert np.array_equal(predict(s, corpus()).logits, first.logits), "dropout was off"
        assert all(p.grad is None for p in s.model.parameters())


def test_a_failed_pass_leaves_no_trace(subject: Subject, monkeypatch: pytest.MonkeyPatch):
    subject.model.train()
    before = subject.fingerprint

    class Stop(Exception):
        pass

    def progress(stage: str, done: int, total: int) -> None:
        raise Stop

    with within(Session(progress=progress)), pytest.raises(Stop):
        predict(subject, corpus())
    assert subject.fingerprint == before

    def broken(*_: Any, **__: Any) -> None:
        raise Stop

    # Inside the model, after the hook has been set: the hook must go as well.
    monkeypatch.setattr(subject.base.base_model, "forward", broken)
    with pytest.raises(Stop):
        predict(subject, corpus())
    assert subject.fingerprint == before


def test_the_fingerprint_sees_weights_modes_hooks_and_gradients(subject: Subject):
    """The control: without it, the two tests above could not fail."""
    seen = {subject.fingerprint}

    def changed() -> bool:
        new = subject.fingerprint not in seen
        seen.add(subject.fingerprint)
        return new

    assert not changed()
    layer = next(m for m in subject.model.modules() if isinstance(m, torch.nn.Dropout))
    layer.training = not layer.training
    assert changed()
    hook = subject.head_layer().register_forward_pre_hook(lambda *_: None)
    assert changed()
    hook.remove()
    assert not changed()
    p = next(subject.model.parameters())
    p.requires_grad_(not p.requires_grad)
    assert changed()
    with torch.no_grad():
        p.view(-1)[0] += 1e-4
    assert changed()


def test_evaluating_puts_modes_back_after_an_error(subject: Subject):
    subject.model.train()
    inside: list[bool] = []

    def fails() -> None:
        with evaluating(subject):
            inside.extend(m.training for m in subject.model.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert inside
    assert not any(inside)
    assert all(m.training for m in subject.model.modules())


# ---------------------------------------------------------------------------------------------------- hidden states


@pytest.mark.parametrize("family", CAUSAL)
def test_last_hidden_state_of_a_causal_model_is_its_features(family: str, base_of: Callable[[str], str]):
    plain = load(base_of(family), template="say {text} now", verbaliser=["good", "bad"], device="cpu")
    h, x = hidden_states(plain, corpus()), predict(plain, corpus()).features
    assert h.shape == (40, 3, 32)
    np.testing.assert_allclose(h[:, -1], x, atol=1e-5)
    assert np.abs(h[:, -2] - x).max() > 1e-2, "the layer before is another"


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "roberta"])
@pytest.mark.parametrize("recipe", [Lora(4), Prompt(3), Prefix(3)], ids=lambda r: r.name)
def test_hidden_states_do_not_depend_on_the_batch(family: str, recipe: Any, base_of: Callable[[str], str]):
    subject = perturbed(fresh(base_of(family), recipe, CLASSES, max_length=32, device="cpu"))
    every = corpus()
    h = hidden_states(subject, every)
    assert h.shape == (40, 3, 32)
    for i in (0, 11, 39):
        np.testing.assert_allclose(hidden_states(subject, every.take(np.array([i])))[0], h[i], atol=2e-5)
    if FAMILIES[family].causal:
        np.testing.assert_allclose(h[:, -1], predict(subject, every).features, atol=1e-5)
    assert np.abs(h[0] - h[11]).max() > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recipe", [Lora(4), Prompt(3), Prefix(3)], ids=lambda r: r.name)
def test_hidden_states_are_those_of_transformers(family: str, recipe: Any, base_of: Callable[[str], str]):
    """Against ``output_hidden_states`` (which leaves hooks behind, so that trueup does without it), unpadded."""
    anatomy = FAMILIES[family]
    if recipe.name == "prefix" and not anatomy.prefix:
        return
    template = None if anatomy.head else Template("say {text} now", ("good", "bad"))
    subject = perturbed(fresh(base_of(family), recipe, CLASSES, template=template, max_length=32, device="cpu"))
    one = corpus(["good cat sat", "bad"])
    ours = hidden_states(subject, one)
    before = subject.fingerprint
    ids = torch.tensor(forward.tokenize(subject, one)[:1])
    mask, p = torch.ones_like(ids), getattr(subject.peft_config, "num_virtual_tokens", 0)
    wide = torch.ones(1, p + ids.shape[1], dtype=torch.long)
    backbone = subject.base.base_model
    with torch.no_grad():
        if recipe.name == "prefix":
            given = {
                "input_ids": ids,
                "attention_mask": wide,
                "past_key_values": subject.model.get_prompt(batch_size=1),
            }
        elif recipe.name == "prompt":
            rows = torch.cat([subject.model.get_prompt(batch_size=1), subject.model.word_embeddings(ids)], dim=1)
            given = {"inputs_embeds": rows, "attention_mask": wide}
        else:
            given = {"input_ids": ids, "attention_mask": mask}
        states = backbone(**given, output_hidden_states=True).hidden_states
    t = ids.shape[1]
    want = np.stack([(s[0, -1] if anatomy.causal else s[0, -t:].mean(dim=0)).numpy() for s in states])
    if anatomy.kind == "state-space":  # transformers leaves out Mamba's embeddings and gives the last layer twice
        rows = backbone.get_input_embeddings()(ids)[0, -1].detach().numpy()
        want = np.stack([rows, want[0], want[2]])
    np.testing.assert_allclose(ours[0], want, atol=2e-5)
    assert np.abs(ours[1] - want).max() > 1e-2
    if family in ("bert", "llama"):
        assert subject.fingerprint != before, "the reason: transformers' own way leaves hooks"


def test_templates_keep_braces_of_the_text():
    assert Template("say {text} now", ("a", "b")).fill("{second} {text}") == "say {second} {text} now"
    assert Template("{text} or {second}", ("a", "b")).fill("x {text}", "y") == "x {text} or y"


@pytest.mark.parametrize("second", [False, True])
def test_each_text_is_tokenised_once_in_a_session(
    second: bool, base_of: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(forward, "AT_ONCE", 3)
    subject = fresh(base_of("bert"), Lora(), CLASSES, max_length=8)
    whole = corpus([*texts(10), texts(1)[0]])
    whole = replace(whole, second=texts(11)[::-1]) if second else whole
    alone = forward.tokenize(subject, whole)
    read: list[int] = []
    own = forward._read
    monkeypatch.setattr(forward, "_read", lambda s, pairs: read.append(len(pairs)) or own(s, pairs))
    with within(Session(Memo(tmp_path))):
        assert room.rows_of(subject, whole) == alone
        assert [r.segments for r in room.rows_of(subject, whole)] == [r.segments for r in alone]
        assert room.rows_of(subject, whole.take(np.arange(5)[::-1])) == alone[4::-1]
        seen = sum(read)
        assert room.rows_of(replace(subject, max_length=4), whole) != alone
    assert max(read) == 3
    assert seen == len(set(zip(whole.text, whole.second or whole.text, strict=True)))
