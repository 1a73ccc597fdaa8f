"""Directional derivatives layer by layer: against finite differences in every family, and exact where the answer is linear."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from trueup.corpus.corpus import Corpus
from trueup.run import forward
from trueup.run.concept import gradients, gradients_of
from trueup.run.predict import hidden_states
from trueup.subject import tiny
from trueup.subject.anatomy import FAMILIES
from trueup.subject.new_adapter import Lora, Prompt, fresh
from trueup.subject.subject import Head, Subject
from trueup.subject.template import Template

TEXTS = ["the cat sat on the mat", "a good film it was very fine now", "bad", "it was a poor film the dog sat"]
CORPUS = Corpus(TEXTS, np.array([0, 1, 0, 1]), ("no", "yes"), np.array(["train"] * 4), name="four texts")
EITHER = np.array([[-1.0, 1.0], [0.5, 0.25]])


def subject_of(family: str, recipe) -> Subject:
    template = None if FAMILIES[family].head else Template("say {text} now", ("bad", "good"))
    base = str(tiny.kept_base(family))
    return fresh(base, recipe, CORPUS.classes, template=template, device="cpu", max_length=64, seed=1)


def pushed(subject: Subject, layer: int, by: np.ndarray) -> np.ndarray:
    """(n, C) logits with the state that enters `layer` (or leaves the last one) moved by `by` (n, d): the slow way."""
    net = subject.base.base_model
    layers = list(net.get_submodule(subject.anatomy.layers))  # type: ignore[operator]
    found = []
    for i in range(len(CORPUS)):
        batch = forward.collate(forward.tokenize(subject, CORPUS.take(np.array([i]))), 0)
        step = torch.as_tensor(by[i], dtype=subject.model.dtype)

        def moved(h, batch=batch, step=step):
            h, text = h.clone(), batch.ids.shape[1]
            h[:, h.shape[1] - (1 if subject.anatomy.causal else text) :] += step
            return h

        def entering(_, inputs, named, moved=moved):
            if inputs:
                return (moved(inputs[0]), *inputs[1:]), named
            return inputs, {**named, "hidden_states": moved(named["hidden_states"])}

        def leaving(_, __, out, moved=moved):
            out.last_hidden_state = moved(out.last_hidden_state)
            return out

        hook = (
            layers[layer].register_forward_pre_hook(entering, with_kwargs=True)
            if layer < len(layers) else net.register_forward_hook(leaving)
        )  # fmt: skip
        with hook, torch.no_grad():  # type: ignore[attr-defined]
            found.append(forward.logits(subject, batch)[0, :2].numpy())
    return np.stack(found)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_it_is_the_derivative_of_the_logits(family: str):
    subject = subject_of(family, Prompt(3) if FAMILIES[family].kind != "state-space" else Lora(rank=2))
    double = FAMILIES[family].kind != "state-space"  # whose reference code mixes types
    subject.model.to(torch.float64 if double else torch.float32).eval()
    rng = np.random.default_rng(0)
    layers, width = hidden_states(subject, CORPUS).shape[1:]
    directions, which = rng.normal(size=(2, 2, layers, width)), np.array([0, 1, 1, 0])
    before = {n: p.requires_grad for n, p in subject.model.named_parameters()}
    got = np.einsum("nkld,nkld->nl", gradients(subject, CORPUS, EITHER), directions[which])
    assert {n: p.requires_grad for n, p in subject.model.named_parameters()} == before
    # Some norms compute in float32 whatever the model's type.
    step, tolerance = (1e-3, 2e-3) if double else (1e-3, 2e-2)
    for layer in range(layers):
        slow = 0.0
        for k, answer in enumerate(EITHER):
            toward = directions[which, k, layer]
            ahead, behind = (pushed(subject, layer, sign * step * toward) for sign in (1, -1))
            slow = slow + (ahead - behind) @ answer / (2 * step)
        assert np.allclose(got[:, layer], slow, rtol=tolerance, atol=tolerance * np.abs(got[:, layer]).max()), layer
    assert np.abs(got).max() > 1e-4, "the control: it moves at all"


def test_at_a_state_that_the_last_linear_layer_reads_it_is_the_whole_effect():
    subject = subject_of("gpt2", Lora(rank=2))
    states = hidden_states(subject, CORPUS)
    toward = states[CORPUS.label == 1].mean(axis=0) - states[CORPUS.label == 0].mean(axis=0)
    got = gradients(subject, CORPUS, np.array([[-1.0, 1.0]]))
    w = subject.own_head().weight.numpy()
    assert got[:, 0, -1] @ toward[-1] == pytest.approx(np.full(4, (w[1] - w[0]) @ toward[-1]), rel=1e-5)


def test_answers_that_are_sums_of_others_cost_no_pass_of_their_own(monkeypatch: pytest.MonkeyPatch):
    subject = subject_of("bert", Lora(rank=2))
    alone = np.concatenate([gradients(subject, CORPUS, a[None]) for a in EITHER], axis=1)
    both = gradients(subject, CORPUS, EITHER)
    assert np.allclose(both, alone, rtol=0, atol=1e-5 * np.abs(alone).max())
    passes: list[int] = []
    own = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: passes.append(1) or own(*a, **k))
    turned = gradients(subject, CORPUS, np.array([EITHER[0], -EITHER[0], 2 * EITHER[0]]))
    per_batch = len(passes)
    gradients(subject, CORPUS, EITHER[:1])
    assert len(passes) == 2 * per_batch
    for k, times in enumerate((1, -1, 2)):
        assert np.allclose(turned[:, k], times * alone[:, 0], rtol=0, atol=1e-5 * np.abs(alone).max())
    assert not gradients(subject, CORPUS, np.zeros((2, 2))).any()


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_subjects_that_differ_in_the_head_share_a_pass_and_others_do_not(family: str, monkeypatch: pytest.MonkeyPatch):
    subject, other = subject_of(family, Lora(rank=2)), subject_of(family, Lora(rank=2))
    head = subject.own_head()
    turned = replace(subject, head=Head(head.weight.flip(0) * 2 + 0.1, head.bias + 1))
    alone = [gradients(s, CORPUS, EITHER) for s in (subject, turned)]
    passes: list[int] = []
    own = forward.features
    monkeypatch.setattr(forward, "features", lambda *a, **k: passes.append(1) or own(*a, **k))
    gradients(subject, CORPUS, EITHER)
    one = len(passes)
    for got, slow in zip(gradients_of([subject, turned], CORPUS, EITHER), alone, strict=True):
        assert np.allclose(got, slow, rtol=0, atol=1e-6 * np.abs(slow).max())
    assert len(passes) == 2 * one
    assert np.abs(alone[0] - alone[1]).max() > 1e-3 * np.abs(alone[0]).max(), "the control: the head tells"
    gradients_of([subject, other], CORPUS, EITHER)
    assert len(passes) == 4 * one
