"""Attributions of all layers in one climb, against plain autograd: one layer, one point, one whole prompt at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import Tensor

from drawn_weights import move
from trueup.errors import BadInput, Unavailable, Unsupported
from trueup.run import forward, integrated_gradients
from trueup.run.forward import Row
from trueup.run.integrated_gradients import (
    Quadrature,
    Refined,
    attribute,
    gauss_legendre,
    heads_replaced,
    last_units,
    midpoint,
    scaled_at_last,
    towards_zero,
)
from trueup.run.predict import Session, within
from trueup.subject import adapter as files
from trueup.subject.anatomy import FAMILIES
from trueup.subject.load import load
from trueup.subject.new_adapter import Lora, Prefix, Prompt, PTuning, Recipe, fresh
from trueup.subject.subject import Subject
from trueup.subject.swap_adapter import wear
from trueup.subject.template import Template
from trueup.subject.units import Part, head_width, layers_of, projection_of

CAUSAL = [f for f, a in FAMILIES.items() if a.causal]
ROWS = [Row(ids) for ids in ([5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [9, 10, 4, 12, 13, 14], [6, 7])]
RECIPES: dict[str, Recipe] = {"lora": Lora(2), "prompt": Prompt(4), "p-tuning": PTuning(3, 16), "prefix": Prefix(2)}
TOLERANCE = 1e-5
V = torch.randn(32, generator=torch.Generator().manual_seed(3))


def readout(h: Tensor, i: int) -> Tensor:
    """Curved, and another function for each prompt, so that a wrong prompt, row or point shows."""
    return torch.tanh(h @ V * 0.1 * (i + 1)) + 0.01 * h.square().sum(-1)


def bare(base: Path) -> Subject:
    return load(str(base), template="say {text} now", verbaliser=["good", "bad"], max_length=32, device="cpu")


def adapted(base: Path, recipe: Recipe) -> Subject:
    subject = fresh(str(base), recipe, ("a", "b"), template=Template("say {text} now", ("good", "bad")), device="cpu")
    move(subject.model)
    return subject


def apart(a: Any, b: Any) -> float:
    """The largest difference, relative to the largest value."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    assert np.isfinite(b).all()
    return float(np.abs(a - b).max() / np.abs(b).max())


def alone(
    subject: Subject, row: Row, i: int, layer: int, change: Callable[[Tensor], Tensor], part: Part = "down"
) -> Tensor:
    """(): the readout of one unpadded prompt whose units (units,) at the last position of one layer are changed."""
    return together(subject, row, i, {layer: change}, part)


def together(
    subject: Subject, row: Row, i: int, changes: Mapping[int, Callable[[Tensor], Tensor]], part: Part = "down"
) -> Tensor:
    """(): as `alone`, in several layers."""

    def hook(change: Callable[[Tensor], Tensor]) -> Any:
        def put(_: Any, inputs: tuple[Tensor, ...]) -> Tensor:
            flat = inputs[0].reshape(-1, inputs[0].shape[-1])
            return torch.cat([flat[:-1], change(flat[-1])[None]]).reshape(inputs[0].shape)

        return put

    handles = [
        projection_of(subject, at, part)[1].register_forward_pre_hook(hook(change)) for at, change in changes.items()
    ]
    try:
        ids = torch.tensor([row])
        h = forward.backbone(subject, ids, torch.ones_like(ids)).last_hidden_state[0, -1:]
    finally:
        for handle in handles:
            handle.remove()
    return readout(h, i)[0]


def slowly(subject: Subject, rows: Sequence[Row], rule: Quadrature) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, whole and floor by plain autograd."""
    values, whole, floor = [], [], []
    for i, row in enumerate(rows):
        for layer in range(len(layers_of(subject))):
            total = torch.zeros(())
            for a, weight in zip(rule.nodes, rule.weights, strict=True):
                held: list[Tensor] = []

                def leaf(w: Tensor, a: float = a, held: list[Tensor] = held) -> Tensor:
                    held += [w.detach(), (w.detach() * a).requires_grad_()]
                    return held[1]

                f = alone(subject, row, i, layer, leaf)
                (slope,) = torch.autograd.grad(f, held[1])
                total = total + weight * slope * held[0]
            values.append(total.detach().numpy())
            with torch.no_grad():
                floor.append(float(alone(subject, row, i, layer, torch.zeros_like)))
        with torch.no_grad():
            whole.append(float(alone(subject, row, i, 0, lambda w: w)))
    shape = (len(rows), len(layers_of(subject)))
    return np.stack(values).reshape(*shape, -1), np.array(whole), np.array(floor).reshape(shape)


SIX = gauss_legendre()


def check(subject: Subject, rule: Quadrature = SIX) -> integrated_gradients.Attribution:
    """Equal to the slow way, and the subject is as it was."""
    before, flags = subject.fingerprint, [p.requires_grad for p in subject.model.parameters()]
    got = attribute(subject, ROWS, readout, rule)
    assert subject.fingerprint == before
    assert [p.requires_grad for p in subject.model.parameters()] == flags
    assert all(p.grad is None for p in subject.model.parameters())
    values, whole, floor = slowly(subject, ROWS, rule)
    assert (got.points == len(rule.nodes)).all()
    assert got.values.dtype == np.float32
    assert np.abs(values).max(axis=(0, 2)).min() > 1e-3, "no layer is silent"
    assert apart(got.values, values) <= TOLERANCE
    assert apart(got.whole, whole) <= TOLERANCE
    assert apart(got.floor, floor) <= TOLERANCE
    assert np.allclose(got.gap, np.abs(values.sum(2) - (whole[:, None] - floor)), atol=1e-4)
    # What would have shown: another prompt, another layer.
    assert apart(got.values[::-1], values) > 0.01
    assert apart(got.values[:, ::-1], values) > 0.01
    return got


# --------------------------------------------------------------------------------------------------------- exactness


@pytest.mark.parametrize("family", CAUSAL)
def test_attributions_are_those_of_plain_autograd(family: str, base_of: Any):
    check(bare(base_of(family)))


@pytest.mark.parametrize("family", ["gpt2", "bloom", "llama", "gemma3_text", "opt", "gpt_neox", "mamba", "mamba2"])
@pytest.mark.parametrize("kind", RECIPES)
def test_with_an_adapter(family: str, kind: str, base_of: Any):
    if kind == "prefix" and not FAMILIES[family].prefix:
        return
    subject = adapted(base_of(family), RECIPES[kind])
    assert any(p.requires_grad for p in subject.model.parameters())
    got = check(subject, gauss_legendre(3))
    assert apart(got.values, attribute(bare(base_of(family)), ROWS, readout, gauss_legendre(3)).values) > 0.01


@pytest.mark.parametrize("family", ["gpt2", "llama", "mamba"])
def test_units_are_what_goes_into_an_ia3_projection(family: str, base_of: Any):
    subject = bare(base_of(family))
    name = projection_of(subject, 1)[0]
    config = peft.IA3Config(target_modules=[name], feedforward_modules=[name], task_type="CAUSAL_LM")
    wide = last_units(subject, ROWS).shape[2]
    vector = torch.rand(1, wide, generator=torch.Generator().manual_seed(2)) * 2
    worn = wear(subject, files.settings_of(subject, config), {f"base_model.model.{name}.ia3_l": vector})
    check(worn, gauss_legendre(3))
    assert np.array_equal(last_units(worn, ROWS)[:, 1], last_units(subject, ROWS)[:, 1])


@pytest.mark.parametrize("family", ["gemma3_text", "mistral"])
def test_a_window_shorter_than_the_prompt(family: str, base_of: Any, tmp_path: Path):
    narrow = shutil.copytree(base_of(family), tmp_path / family)
    config = json.loads((narrow / "config.json").read_text())
    (narrow / "config.json").write_text(json.dumps(config | {"sliding_window": 3}))
    got = check(bare(narrow), gauss_legendre(3))
    wide = attribute(bare(base_of(family)), ROWS, readout, gauss_legendre(3))
    longest = np.array([len(r) > 3 for r in ROWS])
    assert apart(got.values[~longest], wide.values[~longest]) <= TOLERANCE
    assert apart(got.values[longest], wide.values[longest]) > 1e-3, "the window matters"
    prefixed = adapted(narrow, Prefix(2))
    check(prefixed, gauss_legendre(3))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text", "gpt_neox", "opt"])
def test_eager_attention_is_the_same(family: str, base_of: Any):
    subject = bare(base_of(family))
    plain = attribute(subject, ROWS, readout)
    subject.base.set_attn_implementation("eager")  # type: ignore[operator]
    assert apart(attribute(subject, ROWS, readout).values, plain.values) <= TOLERANCE


def test_a_readout_in_words(base_of: Any):
    """A shift of probabilities, as copying asks for, through the language-model head."""
    subject = bare(base_of("llama"))
    head = subject.head_layer()

    def shift(h: Tensor, i: int) -> Tensor:
        p = head(h).softmax(-1)
        return p[:, [4 + i, 9]].amax(1) - p[:, 5]

    got = attribute(subject, ROWS, shift, gauss_legendre(20))
    assert got.gap.max() <= 1e-3 * np.abs(got.whole[:, None] - got.floor).max(), "the maximum bends the path"


# ------------------------------------------------------------------------------------------------------ completeness


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "mamba"])
def test_a_good_rule_is_complete_and_a_left_sum_is_not(family: str, base_of: Any):
    subject = bare(base_of(family))
    left = Quadrature(tuple(i / 20 for i in range(20)), (1 / 20,) * 20)
    good, middle, bad = (attribute(subject, ROWS, readout, q).gap.max() for q in (gauss_legendre(20), midpoint(), left))
    assert good <= 1e-5
    assert good <= middle
    assert bad > 10 * max(middle, 1e-5)


def saturating(subject: Subject, layer: int) -> Subject:
    """One layer's units fill the residual stream, as those of SmolLM2's layer 0 do: what follows bends near a = 0."""
    with torch.no_grad():
        projection_of(subject, layer)[1].weight.mul_(3000)  # type: ignore[operator, union-attr]
    return subject


@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_the_default_is_complete_where_units_saturate_and_a_fixed_rule_is_not(family: str, base_of: Any):
    subject = saturating(bare(base_of(family)), 0)
    got = attribute(subject, ROWS, readout)
    assert got.gap.shape == got.points.shape == (len(ROWS), len(layers_of(subject)))
    assert got.gap.max() <= Refined().tolerance
    assert attribute(subject, ROWS, readout, gauss_legendre()).gap[:, 0].max() > 10 * Refined().tolerance, "the control"
    assert got.points[:, 0].max() > Refined().start
    # The others are not refined for its sake, and no path for the sake of another prompt's.
    tame = attribute(subject, ROWS, readout, towards_zero())
    assert (got.points == Refined().start)[tame.gap <= Refined().tolerance].all()
    for points in set(got.points.ravel().tolist()):
        there = got.points == points
        assert (
            apart(got.values[there], attribute(subject, ROWS, readout, towards_zero(points)).values[there]) <= TOLERANCE
        )
    one = attribute(subject, ROWS[2:3], lambda h, _: readout(h, 2))
    assert np.array_equal(one.points, got.points[2:3])
    assert apart(one.values, got.values[2:3]) <= TOLERANCE


@pytest.mark.parametrize("family", ["gpt2", "mamba"])
def test_another_baseline_is_complete_from_there(family: str, base_of: Any):
    subject = bare(base_of(family))
    units = last_units(subject, ROWS)
    got = attribute(subject, ROWS, readout, baseline=units.mean(axis=0))
    assert got.gap.max() <= 1e-4
    assert apart(got.floor, attribute(subject, ROWS, readout).floor) > 1e-3, "the control: it begins elsewhere"
    nowhere = attribute(subject, ROWS[:1], readout, baseline=units[0])
    assert np.abs(nowhere.values).max() < 1e-6
    assert np.allclose(nowhere.floor, nowhere.whole[:, None], atol=1e-5)
    with pytest.raises(BadInput, match="The baseline is "):
        attribute(subject, ROWS, readout, baseline=units[0, :, :3])


def test_a_wrong_path_or_a_missing_factor_is_noticed(base_of: Any):
    """The control: what the equality and the completeness are worth."""
    subject = bare(base_of("gpt2"))
    rule = gauss_legendre(20)
    got = attribute(subject, ROWS, readout, rule)
    drop = got.whole[:, None] - got.floor
    # The factor w left out.
    slopes = got.values / np.where(last_units(subject, ROWS) == 0, 1, last_units(subject, ROWS))
    assert np.abs(slopes.sum(2) - drop).max() > 100 * got.gap.max()
    # A path that scales the gradient's point alone: the gradient at the end, not along the way.
    end = attribute(subject, ROWS, readout, Quadrature((1.0,), (1.0,)))
    assert end.gap.max() > 100 * got.gap.max()
    # All positions scaled, not the last alone.
    whole = []
    for i, row in enumerate(ROWS):
        handle = projection_of(subject, 0)[1].register_forward_pre_hook(lambda _, x: (x[0] * 0,))
        ids = torch.tensor([row])
        with torch.no_grad():
            whole.append(float(readout(subject.base.base_model(ids).last_hidden_state[0, -1:], i)))  # type: ignore[operator]
        handle.remove()
    longer = [i for i, r in enumerate(ROWS) if len(r) > 1]
    assert np.abs(np.array(whole) - got.floor[:, 0])[longer].max() > 100 * got.gap.max()
    assert np.allclose(np.array(whole)[1], got.floor[1, 0], atol=1e-5), "one token is all positions"


def test_rules_integrate_polynomials():
    for rule, degree in ((gauss_legendre(), 11), (gauss_legendre(1), 1), (midpoint(), 1)):
        assert abs(sum(rule.weights) - 1) <= 1e-12
        got = sum(w * x**degree for x, w in zip(rule.nodes, rule.weights, strict=True))
        assert abs(got - 1 / (degree + 1)) <= 1e-12
        assert all(0 < x < 1 for x in rule.nodes)
    assert (len(gauss_legendre().nodes), len(midpoint().nodes)) == (6, 20)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mamba"])
def test_captum_says_the_same(family: str, base_of: Any):
    """captum's own path and quadrature; its layer form takes baselines of inputs only, so the units are its input here."""
    captum = pytest.importorskip("captum.attr")
    subject = bare(base_of(family))
    got, units = attribute(subject, ROWS, readout, gauss_legendre()), last_units(subject, ROWS)
    for i, row in enumerate(ROWS[:3]):
        for layer in range(len(layers_of(subject))):

            def f(w: Tensor, i: int = i, row: Row = row, layer: int = layer) -> Tensor:
                return torch.stack([alone(subject, row, i, layer, lambda _, v=v: v) for v in w])

            w = torch.as_tensor(units[i, layer])[None]
            theirs = captum.IntegratedGradients(f).attribute(w, torch.zeros_like(w), n_steps=6, method="gausslegendre")
            assert apart(got.values[i, layer], theirs[0].detach().numpy()) <= TOLERANCE


# ------------------------------------------------------------------------------------------- activations, candidates


@pytest.mark.parametrize("family", CAUSAL)
def test_last_units_and_scaled_candidates(family: str, base_of: Any):
    subject = bare(base_of(family))
    before, units = subject.fingerprint, last_units(subject, ROWS)
    assert units.dtype == np.float32
    g = torch.Generator().manual_seed(4)
    wide = units.shape[2]
    some = [torch.rand(wide, generator=g) for _ in range(4)]
    candidates = [{1: some[0]}, {0: torch.tensor(0.0)}, {1: torch.tensor(0.0)}, {0: (some[1] > 0.5).float()},
                  {1: torch.tensor(1.0)}, {1: some[2], 0: some[3]}]  # fmt: skip
    got = scaled_at_last(subject, ROWS, readout, candidates)
    assert subject.fingerprint == before
    with torch.no_grad():
        for i, row in enumerate(ROWS):
            seen: list[Tensor] = []
            for layer in range(2):
                alone(subject, row, i, layer, lambda w, seen=seen: (seen.append(w.clone()), w)[1])
            assert apart(units[i], torch.stack(seen)) <= TOLERANCE
            theirs = [
                float(together(subject, row, i, {at: lambda w, s=s: w * s for at, s in c.items()})) for c in candidates
            ]
            assert np.abs(got[i] - theirs).max() <= TOLERANCE * np.abs(theirs).max()
    full = attribute(subject, ROWS, readout, gauss_legendre(1))
    assert np.allclose(got[:, 1:3], full.floor, atol=1e-4)
    assert np.allclose(got[:, 4], full.whole, atol=1e-4)
    assert np.abs(np.diff(got, axis=1)).max(axis=0).min() > 1e-3, "the candidates differ"


ATTENTION = [f for f in CAUSAL if FAMILIES[f].kind == "decoder"]


@pytest.mark.parametrize("family", ATTENTION)
def test_heads_scaled_and_replaced_are_those_of_slow_passes(family: str, base_of: Any, monkeypatch: pytest.MonkeyPatch):
    subject = bare(base_of(family))
    before, given = subject.fingerprint, last_units(subject, ROWS, "mixer_out")
    wide, instead = head_width(subject), given[::-1].mean(axis=0) + 0.3
    heads = given.shape[2] // wide

    def put(w: Tensor, layer: int, head: int) -> Tensor:
        w = w.clone()
        w[head * wide : (head + 1) * wide] = torch.as_tensor(instead[layer])[head * wide : (head + 1) * wide]
        return w

    off = torch.ones(heads * wide)
    off[wide : 2 * wide] = 0
    candidates = [{1: off}, {0: off, 1: 0.5 * off}]
    got, scaled = (
        heads_replaced(subject, ROWS, readout, instead),
        scaled_at_last(subject, ROWS, readout, candidates, "mixer_out"),
    )
    assert got.shape == (len(ROWS), 2, heads)
    with torch.no_grad():
        for i, row in enumerate(ROWS):
            plain, seen = float(alone(subject, row, i, 0, lambda w: w)), []
            theirs = np.empty((2, heads))
            for at in range(2):
                alone(subject, row, i, at, lambda w, seen=seen: (seen.append(w.clone()), w)[1], "mixer_out")
                for h in range(heads):
                    change = float(alone(subject, row, i, at, lambda w, a=at, h=h: put(w, a, h), "mixer_out")) - plain
                    theirs[at, h] = change
            assert apart(given[i], torch.stack(seen)) <= TOLERANCE
            assert np.abs(got[i] - theirs).max() <= TOLERANCE * max(abs(plain), 1)
            slow = [
                float(together(subject, row, i, {at: lambda w, s=s: w * s for at, s in c.items()}, "mixer_out"))
                for c in candidates
            ]
            assert np.abs(scaled[i] - slow).max() <= TOLERANCE * max(np.abs(slow).max(), 1)
    assert np.abs(got).max(axis=0).min() > 1e-3, "no head is silent"
    assert np.abs(got[:, :, ::-1] - got).max() > 1e-3, "the control: another head"
    monkeypatch.setattr(integrated_gradients, "ROWS", heads)  # a layer at a time
    assert np.abs(heads_replaced(subject, ROWS, readout, instead) - got).max() <= TOLERANCE * np.abs(got).max()
    assert subject.fingerprint == before


def test_a_model_without_attention_has_no_heads_to_replace(base_of: Any):
    with pytest.raises(Unsupported, match="has no attention heads"):
        heads_replaced(bare(base_of("mamba")), ROWS, readout, np.zeros((2, 8), np.float32))


def test_a_candidate_for_a_layer_that_is_not_there(base_of: Any):
    for at in (2, -1):
        with pytest.raises(BadInput, match=r"There is no layer -?\d: the model has layers 0 to 1\."):
            scaled_at_last(bare(base_of("gpt2")), ROWS, readout, [{at: torch.tensor(0.0)}])


def test_points_towards_zero_serve_where_the_slope_is_steep_there():
    def error(rule: Quadrature, f: Callable[[float], float], whole: float) -> float:
        return abs(sum(w * f(a) for a, w in zip(rule.nodes, rule.weights, strict=True)) - whole)

    for whole, f in ((2.0, lambda a: a**-0.5), (1 / 3, lambda a: a * a), (2 / 3, lambda a: a**0.5)):
        assert error(towards_zero(8), f, whole) < 1e-12
    assert error(gauss_legendre(8), lambda a: a**-0.5, 2.0) > 0.05


def test_a_candidate_of_no_layer(base_of: Any):
    with pytest.raises(BadInput, match=r"scales no layer; name at least one\."):
        scaled_at_last(bare(base_of("gpt2")), ROWS, readout, [{}])


def test_a_readout_of_several_numbers(base_of: Any):
    subject, both = bare(base_of("llama")), [{1: torch.tensor(0.5)}, {0: torch.tensor(0.0)}]
    one = scaled_at_last(subject, ROWS, readout, both)
    two = scaled_at_last(subject, ROWS, lambda h, i: torch.stack([readout(h, i), 2 * readout(h, i)], dim=1), both)
    assert two.shape == (len(ROWS), 2, 2)
    assert np.allclose(two[..., 0], one)
    assert np.allclose(two[..., 1], 2 * one)


# --------------------------------------------------------------------------------------------- batches, left behind


@pytest.mark.parametrize("family", ["gpt2", "bloom", "gemma3_text", "mamba2"])
def test_a_prompt_does_not_depend_on_its_batch(family: str, base_of: Any, monkeypatch: pytest.MonkeyPatch):
    subject, sizes = bare(base_of(family)), []
    joined = attribute(subject, ROWS, readout, gauss_legendre())
    plain = integrated_gradients.collate
    monkeypatch.setattr(
        integrated_gradients, "collate", lambda rows, pad: (sizes.append(len(rows)), plain(rows, pad))[1]
    )
    for most in (1, 2 * 2 * 6):
        sizes.clear()
        monkeypatch.setattr(integrated_gradients, "ROWS", most)
        split = attribute(subject, ROWS, readout, gauss_legendre())
        assert sum(sizes) == len(ROWS)
        assert max(sizes) == max(1, most // 12)
        assert apart(split.values, joined.values) <= TOLERANCE
        got = scaled_at_last(subject, ROWS, readout, [{1: torch.tensor(0.0)}, {0: torch.tensor(0.0)}])
        assert np.allclose(got[:, ::-1], joined.floor, atol=1e-5)


def test_batches_halve_when_memory_runs_out(base_of: Any, monkeypatch: pytest.MonkeyPatch):
    subject, plain, current = bare(base_of("gpt2")), integrated_gradients._record, Session()
    expected, before = attribute(subject, ROWS, readout), subject.fingerprint

    def tight(subject: Subject, batch: forward.Batch) -> Any:
        if len(batch.ids) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(subject, batch)

    monkeypatch.setattr(integrated_gradients, "_record", tight)
    most = 2
    with within(current):
        assert apart(attribute(subject, ROWS, readout).values, expected.values) <= TOLERANCE
    assert current.notes == ["Memory ran out; batches were halved to 2 prompts."]
    most = 0
    with pytest.raises(Unavailable, match=r"One prompt of 1 tokens does not fit in memory; .*\."):
        attribute(subject, ROWS, readout)
    assert subject.fingerprint == before


def test_gradients_are_taken_where_gradients_are_off(base_of: Any):
    subject = bare(base_of("gpt2"))
    expected = attribute(subject, ROWS, readout).values
    with torch.no_grad():
        assert np.array_equal(attribute(subject, ROWS, readout).values, expected)
    with torch.inference_mode():
        assert np.array_equal(attribute(subject, ROWS, readout).values, expected)


class Called(Exception):
    """What a broken readout raises."""


@pytest.mark.parametrize("family", ["gpt2", "mamba"])
def test_no_parameter_asks_for_a_gradient_meanwhile(family: str, base_of: Any):
    """Else every climb would keep what the gradients of all weights need."""
    subject, wanted = adapted(base_of(family), RECIPES["lora"]), []

    def asking(h: Tensor, i: int) -> Tensor:
        wanted.extend(p.requires_grad for p in subject.model.parameters())
        return readout(h, i)

    attribute(subject, ROWS, asking)
    assert wanted
    assert not any(wanted)
    assert any(p.requires_grad for p in subject.model.parameters())


@pytest.mark.parametrize("family", ["gpt2", "mamba"])
def test_no_trace_is_left_also_after_a_failure(family: str, base_of: Any):
    subject = adapted(base_of(family), RECIPES["lora"])
    expected = attribute(subject, ROWS, readout).values
    subject.model.train()
    before = subject.fingerprint
    assert np.array_equal(attribute(subject, ROWS, readout).values, expected), "in eval mode all the same"

    def broken(h: Tensor, i: int) -> Tensor:
        if len(h) > 1:
            raise Called
        return h.sum(-1)

    with pytest.raises(Called):
        attribute(subject, ROWS, broken)
    calls: list[int] = []

    def midway(*_: Any) -> None:
        calls.append(1)
        if len(calls) > 2:  # in a climb, and in the full pass
            raise Called

    handle = layers_of(subject)[1].register_forward_hook(midway)
    with pytest.raises(Called):
        attribute(subject, ROWS, readout)
    with pytest.raises(Called):
        attribute(subject, ROWS, readout)
    handle.remove()
    assert subject.fingerprint == before


# --------------------------------------------------------------------------------------------------------- refusals


def test_an_encoder_is_refused(base_of: Any):
    subject = fresh(str(base_of("bert")), Lora(2), ("a", "b"), device="cpu")
    for run in (lambda: attribute(subject, ROWS, readout), lambda: last_units(subject, ROWS),
                lambda: scaled_at_last(subject, ROWS, readout, [])):  # fmt: skip
        with pytest.raises(Unsupported, match=r"'bert' is an encoder.*give a causal model instead\."):
            run()


def test_an_attention_without_masks_is_refused(base_of: Any, monkeypatch: pytest.MonkeyPatch):
    subject = bare(base_of("llama"))
    monkeypatch.setattr(subject.base.config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(Unsupported, match=r"'flash_attention_2' takes no mask.*attn_implementation='sdpa'\."):
        attribute(subject, ROWS, readout)


def test_bounded_time_steps_are_refused(base_of: Any, monkeypatch: pytest.MonkeyPatch):
    subject = bare(base_of("mamba2"))
    monkeypatch.setattr(subject.base.config, "time_step_limit", (0.0, 0.1))
    with pytest.raises(Unsupported, match=r"bounds its time steps.*without time_step_limit\."):
        attribute(subject, ROWS, readout)


def test_an_unknown_ending_of_the_backbone_is_refused(base_of: Any, monkeypatch: pytest.MonkeyPatch):
    subject = bare(base_of("llama"))
    plain = forward.backbone

    def doubled(*args: Any, **options: Any) -> Any:
        out = plain(*args, **options)
        out.last_hidden_state = out.last_hidden_state * 2
        return out

    monkeypatch.setattr(integrated_gradients, "backbone", doubled)
    with pytest.raises(
        Unsupported, match=r"'llama' does not give what the model itself gives: the final hidden states"
    ):
        attribute(subject, ROWS, readout)


def behind(self: Any, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    return torch.cat([self.keys.roll(1, 2), keys], dim=2), torch.cat([self.values, values], dim=2)


def lost(self: Any, *_: Any, **__: Any) -> Tensor:
    return (self.recurrent * 0).repeat_interleave(self.rows, dim=0).as_subclass(integrated_gradients._Unwritten)


@pytest.mark.parametrize(
    ("family", "what", "changed"),
    [
        *((f, "_Shared.update", behind) for f in ("llama", "gpt2", "bloom")),
        *((f, "_State.get_recurrent_state", lost) for f in ("mamba", "mamba2")),
    ],
)  # fmt: skip
def test_a_library_that_changes_underneath_is_refused_and_gives_no_number(
    family: str, what: str, changed: Any, base_of: Any, monkeypatch: pytest.MonkeyPatch
):
    subject = bare(base_of(family))
    attribute(subject, ROWS, readout)
    owner, name = what.split(".")
    monkeypatch.setattr(getattr(integrated_gradients, owner), name, changed)
    for run in (
        lambda: attribute(subject, ROWS, readout),
        lambda: scaled_at_last(subject, ROWS, readout, [{0: torch.tensor(0.5)}]),
    ):
        with pytest.raises(Unsupported, match=r"does not give what the model itself gives: .*constraints\.txt"):
            run()


def test_a_layer_without_a_memory_is_refused(base_of: Any, monkeypatch: pytest.MonkeyPatch):
    subject = bare(base_of("llama"))
    monkeypatch.setattr(integrated_gradients.past, "named", lambda arguments: [])
    with pytest.raises(Unsupported, match=r"'llama' do not take the keys and values of earlier tokens in one argument"):
        attribute(subject, ROWS, readout)


def test_an_empty_prompt_is_refused(base_of: Any):
    with pytest.raises(BadInput, match=r"A prompt has no token"):
        attribute(bare(base_of("gpt2")), [Row([5]), Row([])], readout)
