"""Attention seen through an adapter, in every family: what the theorem says, its controls, and a slow reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from trueup.corpus.corpus import Corpus
from trueup.errors import Unsupported
from trueup.faults.rigidity import maths
from trueup.run import attention_change as t
from trueup.run import forward
from trueup.run.attention import tapped
from trueup.run.forward import Batch
from trueup.subject import tiny
from trueup.subject.anatomy import FAMILIES
from trueup.subject.new_adapter import Lora, Prefix, Prompt, Recipe, fresh
from trueup.subject.subject import Subject
from trueup.subject.swap_adapter import bare

ATTENTIVE = [f for f, a in FAMILIES.items() if a.kind != "state-space"]
PREFIXED = [f for f in ATTENTIVE if FAMILIES[f].prefix]
PROMPTED = [(f, Prompt) for f in ATTENTIVE] + [(f, Prefix) for f in PREFIXED]
TEXTS = [
    "the cat sat on the mat",
    "a good film it was very fine now",
    "bad",
    "it was a poor film the dog sat on a mat now",
]
CORPUS = Corpus(TEXTS, np.array([0, 1, 0, 1]), ("no", "yes"), np.array(["train"] * 4), name="four texts")


def some(kind: Any, tokens: int) -> Recipe:
    """A prompt or prefix; a prompt starts from words that differ, so that its tokens can part."""
    return Prefix(tokens) if kind is Prefix else Prompt(tokens, start=" ".join(tiny.WORDS))


def tuned(base: Any, recipe: Recipe, steps: int = 8) -> Subject:
    """A few large steps, so that the prompt is a trained one: far from its start, and not random."""
    subject = fresh(str(base), recipe, CORPUS.classes, device="cpu", max_length=64, seed=1)
    trainable = [p for p in subject.model.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(trainable, lr=0.1)
    batch = forward.collate(forward.tokenize(subject, CORPUS), subject.tokenizer.pad_token_id)
    for _ in range(steps):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(forward.logits(subject, batch), torch.as_tensor(CORPUS.label)).backward()
        optimiser.step()
    for p in subject.model.parameters():
        p.requires_grad_(False)
        p.grad = None
    return subject


def padded(subject: Subject, side: str) -> Batch:
    batch = forward.collate(forward.tokenize(subject, CORPUS), subject.tokenizer.pad_token_id)
    if side == "right":
        return batch
    ids, mask = batch.ids.clone(), batch.mask.clone()
    for i, n in enumerate(mask.sum(dim=1).tolist()):
        ids[i], mask[i] = ids[i].roll(-n), mask[i].roll(-n)
    return replace(batch, ids=ids, mask=mask)


def summed(subject: Subject, batch: Batch, *, shift: int | None = None) -> t.Trace:
    sums = t.Sums(subject)
    with torch.inference_mode():
        sums.add(subject, bare(subject), batch, shift=shift)
    return sums.result()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("tokens", [1, 5, 20])
@pytest.mark.parametrize(("family", "kind"), PROMPTED)
def test_a_prompt_leaves_the_first_layers_attention_in_proportion(
    family: str, kind: Any, tokens: int, side: str, base_of: Any
):
    """The certificate: attention among the text's tokens is the base's, the output is a bias and the shrunk one."""
    subject = tuned(base_of(family), some(kind, tokens))
    got = summed(subject, padded(subject, side))
    assert got.worst[0].max() <= 1e-5
    assert got.residual[0].max() <= 1e-5
    assert got.mass[0].min() > 0
    assert got.worst[1].max() > 1e-5  # the deeper layer does move, through what the first one changed
    heads = got.gram.shape[-1]
    assert (maths.rank(got.gram)[0] == min(tokens, heads)).all()
    if tokens == 1:
        assert np.allclose(maths.participation(got.gram)[0], 1, atol=1e-4)
        assert np.allclose(got.cosine[0], 1, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "opt", "bert", "distilbert"])
def test_without_the_shift_of_positions_there_is_a_false_violation(family: str, base_of: Any):
    """The negative control: where positions are absolute, a base at other positions attends otherwise."""
    subject = tuned(base_of(family), Prompt(5))
    assert summed(subject, padded(subject, "right"), shift=0).worst[0].max() > 0.05
    assert summed(subject, padded(subject, "right"), shift=4).worst[0].max() > 0.05


@pytest.mark.parametrize("family", ATTENTIVE)
def test_loras_are_told_apart_from_inside(family: str, base_of: Any):
    """One of query and key moves attention; one of value does not, and unlike a prompt shrinks nothing."""
    seen = {}
    for part in ("query-key", "value-mlp"):
        subject = tuned(base_of(family), Lora(2, part=part))
        with torch.no_grad():
            for name, p in subject.model.named_parameters():
                if "lora_B" in name:
                    p.mul_(4)
        rows = forward.tokenize(subject, CORPUS)
        seen[part] = t.trace(subject, rows), t.by_layer(subject, rows)
    whole, alone = seen["query-key"]
    assert whole.change[0].min() > 1e-3
    assert alone.change.min() > 1e-3
    whole, alone = seen["value-mlp"]
    assert whole.worst[0].max() <= 1e-6
    assert alone.change.max() <= 1e-6
    assert whole.residual[0].max() > 1e-3  # the output changes all the same, and by no bias
    assert whole.shares.shape[-1] == 0
    assert whole.mass.max() == 0
    first, residual = float(whole.change[0].max()), float(whole.residual[0].max())
    told = maths.signature(first, alone.change.max(axis=1), residual, 0.0, 0, 1e-5, inside=False, elsewhere="")
    assert "it is no prompt" in told


@pytest.mark.parametrize(("family", "kind"), [("llama", Prefix), ("gpt2", Prompt), ("bert", Prompt), ("opt", Prefix)])
def test_reductions_equal_those_of_whole_maps(family: str, kind: Any, base_of: Any):
    """The slow reference: transformers' own maps of both passes, an example at a time, all layers kept."""
    subject = tuned(base_of(family), some(kind, 3))
    rows = forward.tokenize(subject, CORPUS)
    got, plain = t.trace(subject, rows), bare(subject)
    change, mass, shares = [], [], []
    for s in (subject, plain):
        s.base.config._attn_implementation = "eager"
    for row in rows:
        ids = torch.tensor([row])
        n, p = len(row), 3
        with torch.inference_mode():
            maps = forward.backbone(subject, ids, torch.ones_like(ids), output_attentions=True).attentions
            positions = {"position_ids": torch.arange(p, p + n)[None]}
            old = forward.backbone(plain, ids, torch.ones_like(ids), output_attentions=True, **positions).attentions
        now = torch.stack([m[0, :, -n:] for m in maps]).double()
        before = torch.stack([m[0] for m in old]).double()
        text = now[..., p:] / now[..., p:].sum(dim=-1, keepdim=True)
        moved = (text - before).abs().sum(dim=-1) / 2
        change.append(moved[:, :, 1:] if subject.anatomy.causal else moved)
        mass.append(now[..., :p].sum(dim=-1))
        shares.append(now[..., :p])
    assert np.allclose(got.change, torch.cat(change, dim=-1).mean(dim=-1), atol=1e-6)
    assert np.allclose(got.worst, torch.cat(change, dim=-1).amax(dim=-1), atol=1e-6)
    every = torch.cat(mass, dim=-1)
    assert np.allclose(got.mass, every.mean(dim=-1), atol=1e-6)
    assert np.allclose(got.shares, torch.cat(shares, dim=2).mean(dim=2), atol=1e-6)
    for at, q in enumerate((0.1, 0.5, 0.9)):
        below = (every < torch.as_tensor(got.quantiles[at])[..., None] - 1 / t.BINS).double().mean(dim=-1)
        above = (every > torch.as_tensor(got.quantiles[at])[..., None] + 1 / t.BINS).double().mean(dim=-1)
        assert (below <= q + 1e-9).all()
        assert (above <= 1 - q + 1e-9).all()
    words = [w for row in rows for w in row]
    by_word = every.mean(dim=(0, 1)).numpy()
    for token in set(words):
        assert got.tokens[token] == pytest.approx(by_word[[w == token for w in words]].mean(), abs=1e-6)


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("bert", Prompt),
        ("bloom", Prefix),
        ("gemma", Prompt),
        ("mpnet", Prompt),
        ("deberta-v2", Prompt),
        ("modernbert", Prompt),
    ],
)
def test_what_is_seen_does_not_depend_on_the_batch(family: str, kind: Any, base_of: Any):
    subject = tuned(base_of(family), some(kind, 4))
    rows = forward.tokenize(subject, CORPUS)
    whole, sums, plain = t.trace(subject, rows), t.Sums(subject), bare(subject)
    with torch.inference_mode():
        for row in rows:
            sums.add(subject, plain, forward.collate([row], subject.tokenizer.pad_token_id))
    each = sums.result()
    for key in ("change", "worst", "mass", "quantiles", "shares", "gram", "cosine", "dropped"):
        assert np.allclose(getattr(whole, key), getattr(each, key), atol=2e-5), key


@pytest.mark.parametrize(
    ("family", "recipe"),
    [
        ("llama", Prefix(4)),
        ("bert", Prompt(4)),
        ("bloom", Prefix(4)),
        ("gpt2", Lora(2)),
        ("mpnet", Lora(2)),
        ("deberta-v2", Lora(2)),
        ("modernbert", Lora(2)),
        ("xlm-roberta", Lora(2)),
    ],
)
def test_one_layer_at_a_time(family: str, recipe: Recipe, base_of: Any):
    """On everywhere is as it is, on nowhere is the base, on in one layer lies between; and nothing is left behind."""
    subject = tuned(base_of(family), recipe)
    batch = padded(subject, "right")
    before, config = subject.fingerprint, subject.base.config._attn_implementation
    with torch.inference_mode():
        z = forward.logits(subject, batch)
        with t.acting(subject, (0, 1)):
            assert torch.allclose(forward.logits(subject, batch), z, atol=1e-6)
        with t.acting(subject, ()):
            none = forward.logits(subject, batch)
        with t.acting(subject, (0,)):
            one = forward.logits(subject, batch)
        assert (none - z).abs().max() > 1e-3
        assert (one - none).abs().max() > 1e-4
        # A soft-prompted encoder answers at the prompt's own first token: what the text sees last no longer matters.
        assert (one - z).abs().max() > 1e-4 or (family, recipe.name) == ("bert", "prompt")
        if family in ("llama", "bloom"):  # they know distances alone, so the base needs no shift
            got = forward.backbone(bare(subject), batch.ids, batch.mask).last_hidden_state
            head = forward.live_head(subject)
            assert torch.allclose(forward.at_last(got, batch.mask) @ head.weight.T, none, atol=1e-5)
        with pytest.raises(ZeroDivisionError), t.acting(subject, ()):
            raise ZeroDivisionError
    assert (subject.fingerprint, subject.base.config._attn_implementation) == (before, config)


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("llama", Prefix),
        ("bert", Prompt),
        ("bloom", Prompt),
        ("mpnet", Prompt),
        ("deberta-v2", Prompt),
        ("modernbert", Prompt),
    ],
)
def test_frozen_attention_on_the_prompt_is_the_same_for_every_text(family: str, kind: Any, base_of: Any):
    """Every row of the text has the given shares, the rest keeps its proportions; as it was, shares differ (control)."""
    subject = tuned(base_of(family), some(kind, 3))
    batch, shares = padded(subject, "right"), t.trace(subject, forward.tokenize(subject, CORPUS)).shares
    n, seen = batch.mask.shape[1], {}

    def look(layer: int, weights: Any, values: Any) -> None:
        seen[layer] = weights[:, :, -n:].clone()

    def off() -> float:
        return max(float((seen[i][..., :3] - torch.as_tensor(shares[i])[None, :, None]).abs().max()) for i in seen)

    with torch.inference_mode():
        with tapped(subject, look):
            forward.logits(subject, batch)
        plain, first = dict(seen), off()
        with t.frozen(subject, shares), tapped(subject, look):
            forward.logits(subject, batch)
    assert first > 1e-3
    assert off() < 1e-6
    assert all(torch.allclose(w.sum(dim=-1), torch.ones(()), atol=1e-5) for w in seen.values())
    then, now = plain[0][..., 3:], seen[0][..., 3:]
    same = then / then.sum(dim=-1, keepdim=True) - now / now.sum(dim=-1, keepdim=True)
    assert same.abs().max() < 1e-5


def test_a_tap_is_gone_after_an_exception(base_of: Any):
    for family in ("llama", "bloom"):
        subject = tuned(base_of(family), Prompt(2))
        before, config = subject.fingerprint, subject.base.config._attn_implementation
        with pytest.raises(ZeroDivisionError), tapped(subject, lambda *_: 1 // 0):  # type: ignore[arg-type]
            forward.logits(subject, padded(subject, "right"))
        assert (subject.fingerprint, subject.base.config._attn_implementation) == (before, config)


def test_a_model_copied_inside_a_tap_goes_on(base_of: Any):
    subject = tuned(base_of("llama"), Prompt(2))
    with tapped(subject, lambda *_: None):
        copied = bare(subject)
    batch = padded(subject, "right")
    got = forward.backbone(copied, batch.ids, batch.mask).last_hidden_state
    want = forward.backbone(bare(subject), batch.ids, batch.mask).last_hidden_state
    assert torch.allclose(got, want, atol=1e-5)


def test_a_pass_that_ran_out_of_memory_is_not_counted(base_of: Any, monkeypatch: pytest.MonkeyPatch):
    subject = tuned(base_of("llama"), some(Prompt, 3))
    rows = forward.tokenize(subject, CORPUS)
    whole, failures = t.trace(subject, rows), iter([False, True] + [False] * 99)
    reduced = t.Sums._reduced

    def failing(*args: Any) -> Any:
        if next(failures):
            raise torch.OutOfMemoryError
        return reduced(*args)

    monkeypatch.setattr(t.Sums, "_reduced", failing)
    again = t.trace(subject, rows)
    assert again.rows == whole.rows
    assert np.allclose(again.mass, whole.mass, atol=1e-6)
    assert np.allclose(again.change, whole.change, atol=1e-6)


def test_what_cannot_be_compared_is_nan_and_not_0(base_of: Any):
    """One token sees itself alone, and one bias has no other to be like."""
    subject = tuned(base_of("llama"), Prompt(2))
    one = forward.tokenize(subject, CORPUS.take(np.array([2])))
    got = t.trace(subject, one)
    assert np.isnan(got.change).all()
    assert np.isnan(got.cosine).all()
    assert np.isfinite(got.mass).all()
    two = forward.tokenize(subject, CORPUS.take(np.array([0])))
    assert np.isfinite(t.trace(subject, two).change).all()


def test_a_sharp_head_is_compared_all_the_same(base_of: Any):
    """Rows that look at one token alone, to the last bit, are not taken for rows that can see no other."""
    subject = tuned(base_of("llama"), some(Prompt, 3))
    plain = t.trace(subject, forward.tokenize(subject, CORPUS)).dropped
    with torch.no_grad():
        for name, p in subject.model.named_parameters():
            if "q_proj" in name:
                p.mul_(400)
    sharp = t.trace(subject, forward.tokenize(subject, CORPUS))
    assert plain.max() == 0
    assert sharp.dropped.max() > 0  # all on the prompt: not compared, and said so
    assert sharp.worst[0][~np.isnan(sharp.worst[0])].max() <= 1e-4


def test_a_state_space_model_has_nothing_to_look_at(base_of: Any):
    from trueup.subject.template import Template

    template = Template("{text}", ("good", "bad"))
    subject = fresh(str(base_of("mamba")), Prompt(2), CORPUS.classes, template=template, device="cpu")
    with pytest.raises(Unsupported, match="state-space"):
        t.trace(subject, forward.tokenize(subject, CORPUS))


def test_the_rank_of_a_subspace_is_found():
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(3, 8))
    rows = rng.normal(size=(50, 3)) @ basis
    assert maths.rank(rows.T @ rows) == 3
    assert maths.rank(np.zeros((8, 8))) == 0
    assert maths.participation(np.eye(8)) == pytest.approx(8)
