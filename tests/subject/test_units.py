"""Scaled units as adapters: equal to scaled columns of the down projection, also as files that plain PEFT loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from torch import Tensor

from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput, Unsupported
from trueup.run import forward
from trueup.run.attention import tapped
from trueup.run.edit import scaled
from trueup.run.predict import predict
from trueup.subject import adapter as files
from trueup.subject.anatomy import FAMILIES
from trueup.subject.load import load
from trueup.subject.new_adapter import Lora, Prefix, Prompt, PTuning, fresh
from trueup.subject.quiet import quiet
from trueup.subject.subject import Subject
from trueup.subject.swap_adapter import wear
from trueup.subject.template import Template
from trueup.subject.tiny import make_tokenizer
from trueup.subject.units import (
    Part,
    head_width,
    layers_of,
    projection_of,
    scales_as_adapter,
    scales_as_ia3,
    scales_as_lora,
)

CAUSAL = [f for f, a in FAMILIES.items() if a.causal]
ATTENTION = [f for f in CAUSAL if FAMILIES[f].kind == "decoder"]
TEMPLATE = Template("say {text} now", ("good", "bad"))
TEXT = ["good cat sat", "bad", "the cat bad good mat sat on the good dog", "very loud film it was"]
TOLERANCE = 1e-5


def corpus() -> Corpus:
    return Corpus(TEXT, np.arange(len(TEXT)) % 2, ("a", "b"), np.array(["test"] * len(TEXT)))


def bare(base: Path) -> Subject:
    return load(str(base), template=TEMPLATE.text, verbaliser=TEMPLATE.words, max_length=32, device="cpu")


def shaken(subject: Subject, seed: int = 1) -> Subject:
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in subject.model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=g) * 0.3)
    return subject


def with_config(base: Path, config: peft.PeftConfig) -> Subject:
    """The base wearing a new random adapter of this config."""
    subject = bare(base)
    config.task_type = "CAUSAL_LM"
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        model = peft.get_peft_model(subject.model, config).eval()
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    return shaken(replace(subject, model=model, source=replace(subject.source, peft_type=kind)))


def weight_of(subject: Subject, layer: int, part: Part = "down") -> Tensor:
    """(out, inputs)"""
    module: Any = projection_of(subject, layer, part)[1]
    module = module.get_base_layer() if hasattr(module, "get_base_layer") else module
    return module.weight.T if type(module).__name__ == "Conv1D" else module.weight


def some_scales(subject: Subject, layers: tuple[int, ...] = (0, 1), seed: int = 2) -> dict[int, Tensor]:
    """Mostly 1; some units off, some half, some more."""
    g, wide = torch.Generator().manual_seed(seed), weight_of(subject, 0).shape[1]
    scales = {}
    for at in layers:
        s = torch.ones(wide)
        some = torch.randperm(wide, generator=g)[: wide // 3]
        s[some] = torch.rand(len(some), generator=g) * 2 * (torch.rand(len(some), generator=g) > 0.5)
        scales[at] = s
    return scales


def by_columns(subject: Subject, scales: dict[int, Tensor], part: Part = "down") -> np.ndarray:
    """Logits with the columns of the base's projections multiplied in place, and put back."""
    kept = {at: weight_of(subject, at, part).detach().clone() for at in scales}
    with torch.no_grad():
        for at, s in scales.items():
            weight_of(subject, at, part).mul_(s)
        got = predict(subject, corpus()).logits
        for at, w in kept.items():
            weight_of(subject, at, part).copy_(w)
    return got


def plain_peft(base: Path, folder: Path, subject: Subject) -> np.ndarray:
    """The adapter in `folder` on a fresh base, loaded and run by PEFT alone: one example at a time, unpadded."""
    words = subject.template is not None
    cls = transformers.AutoModelForCausalLM if words else transformers.AutoModelForSequenceClassification
    with quiet():
        model = peft.PeftModel.from_pretrained(cls.from_pretrained(base), str(folder)).eval()
    got = []
    for ids in forward.tokenize(subject, corpus()):
        with torch.no_grad():
            z = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long)).logits
        got.append((z[0, -1, subject.verbaliser_ids()] if words else z[0]).numpy())
    return np.stack(got)


def apart(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    assert np.isfinite(b).all()
    return float(np.abs(a - b).max() / max(1.0, np.abs(b).max()))


def check(
    subject: Subject, base: Path, folder: Path, scales: dict[int, Tensor], made: Any, expected: np.ndarray,
    part: Part = "down",
) -> None:  # fmt: skip
    """The adapter says what `expected` says: worn, in files with plain PEFT, and as trueup loads those files."""
    settings, tensors = made
    logits = predict(subject, corpus()).logits
    assert apart(expected, logits) > 1e-3, "the scales matter"
    worn = wear(subject, settings, tensors)
    assert apart(predict(worn, corpus()).logits, expected) <= TOLERANCE
    folder.mkdir()
    files.write_adapter(folder, settings, tensors)
    assert apart(plain_peft(base, folder, subject), expected) <= TOLERANCE
    again = files.read_config(folder).to_dict(), files.read_tensors(folder)
    assert apart(predict(wear(subject, *again), corpus()).logits, expected) <= TOLERANCE
    # Scaled units are those of the adapted model, not of the base.
    with scaled(subject, scales, part) as inside:
        assert apart(predict(inside, corpus()).logits, expected) <= TOLERANCE
    assert np.array_equal(predict(subject, corpus()).logits, logits)


def some_heads(subject: Subject, *heads: tuple[int, int, float]) -> dict[int, Tensor]:
    """Whole heads: (layer, head, factor)."""
    wide, scales = head_width(subject), {}
    for at, head, factor in heads:
        own = scales.setdefault(at, torch.ones(weight_of(subject, at, "mixer_out").shape[1]))
        own[head * wide : (head + 1) * wide] = factor
    return scales


# --------------------------------------------------------------------------------------------------- a bare subject


@pytest.mark.parametrize("family", CAUSAL)
def test_an_ia3_is_scaled_columns(family: str, base_of: Any, tmp_path: Path):
    subject = bare(base_of(family))
    before, scales = subject.fingerprint, some_scales(subject)
    expected = by_columns(subject, scales)
    assert subject.fingerprint == before
    made = scales_as_ia3(subject, scales)
    assert subject.fingerprint == before
    check(subject, base_of(family), tmp_path / "ia3", scales, made, expected)
    assert subject.fingerprint == before
    settings, tensors = made
    assert settings["task_type"] == "CAUSAL_LM"
    assert settings["base_model_name_or_path"] == subject.source.base
    assert sum(t.nbytes for t in tensors.values()) == 4 * sum(len(s) for s in scales.values())
    assert {k: v for k, v in scales_as_adapter(subject, scales)[0].items() if k != "peft_type"} == {
        k: v for k, v in settings.items() if k != "peft_type"
    }
    # One layer alone: the other is not named at all.
    one = {1: scales[1]}
    settings, tensors = scales_as_ia3(subject, one)
    assert settings["target_modules"] == settings["feedforward_modules"] == [projection_of(subject, 1)[0]]
    assert len(tensors) == 1
    assert apart(predict(wear(subject, settings, tensors), corpus()).logits, by_columns(subject, one)) <= TOLERANCE


@pytest.mark.parametrize("family", ATTENTION)
def test_a_lora_is_scaled_columns(family: str, base_of: Any, tmp_path: Path):
    subject = bare(base_of(family))
    before, scales = subject.fingerprint, some_scales(subject)
    scales[1] = some_scales(subject, (1,), seed=9)[1]
    scales[1][::2] = 1.0  # another number of units, so another rank
    made = scales_as_lora(subject, scales)
    check(subject, base_of(family), tmp_path / "lora", scales, made, by_columns(subject, scales))
    ranks = {int((s != 1).sum()) for s in scales.values()}
    assert {v.shape[0] for k, v in made[1].items() if "lora_A" in k} == ranks
    assert len(ranks) == 2
    assert subject.fingerprint == before


@pytest.mark.parametrize("family", ATTENTION)
@pytest.mark.parametrize("make", [scales_as_ia3, scales_as_lora])
def test_a_scaled_head_is_scaled_columns_of_what_it_goes_through(family: str, make: Any, base_of: Any, tmp_path: Path):
    subject = bare(base_of(family))
    scales = some_heads(subject, (0, 3, 0.5), (1, 0, 0.0), (1, 2, 0.0))
    before = subject.fingerprint
    made, expected = make(subject, scales, "mixer_out"), by_columns(subject, scales, "mixer_out")
    check(subject, base_of(family), tmp_path / "heads", scales, made, expected, "mixer_out")
    assert subject.fingerprint == before
    assert set(made[0]["target_modules"]) == {projection_of(subject, at, "mixer_out")[0] for at in scales}
    # The control: the same numbers on the neighbouring head are another model.
    other = by_columns(subject, some_heads(subject, (0, 3, 0.5), (1, 1, 0.0), (1, 2, 0.0)), "mixer_out")
    assert apart(other, expected) > 1e-3


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "gemma", "bloom", "gpt_neox"])
def test_the_inputs_of_a_head_are_what_it_attends_to(family: str, base_of: Any):
    """A head made deaf by its own attention weights gives nothing, in its inputs and in no other's."""
    subject = bare(base_of(family))
    wide, given = head_width(subject), []
    hook = projection_of(subject, 1, "mixer_out")[1].register_forward_pre_hook(lambda _, x: given.append(x[0].clone()))

    def deaf(layer: int, weights: Tensor, _: Tensor) -> Tensor | None:
        if layer != 1:
            return None
        weights = weights.clone()
        weights[:, 2] = 0
        return weights

    with tapped(subject, deaf):
        predict(subject, corpus())
    hook.remove()
    heads = given[-1].unflatten(-1, (-1, wide)).abs().amax(dim=(0, 1, 3))
    assert len(heads) == 4
    assert heads[2] == 0
    assert heads[[0, 1, 3]].min() > 1e-4


def test_a_model_without_attention_has_no_heads(base_of: Any):
    with pytest.raises(
        Unsupported, match=r"'mamba' is a state-space model and has no attention heads; scale its units"
    ):
        head_width(bare(base_of("mamba")))
    subject = bare(base_of("gpt2"))
    with pytest.raises(
        BadInput, match=r"Layer 1 has 32 inputs of its heads' projection, and the scales are \(128,\); give one"
    ):
        scales_as_adapter(subject, {1: torch.ones(128)}, "mixer_out")


def test_a_merged_ia3_is_scaled_columns(base_of: Any):
    for family in ("gpt2", "llama", "mamba"):
        subject = bare(base_of(family))
        scales = some_scales(subject)
        expected = by_columns(subject, scales)
        worn = wear(subject, *scales_as_ia3(subject, scales))
        with quiet():
            merged = worn.model.merge_and_unload()
        bare_again = replace(subject, model=merged)
        assert apart(predict(bare_again, corpus()).logits, expected) <= TOLERANCE


def test_a_name_that_ends_like_another_is_another(tmp_path: Path):
    """Twelve layers: what is meant for layer 1 must not reach layer 11."""
    tokenizer = make_tokenizer()
    sizes = {"n_embd": 16, "n_layer": 12, "n_head": 2, "n_positions": 64, "vocab_size": len(tokenizer)}
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.GPT2Config(**sizes, bos_token_id=2, eos_token_id=3, pad_token_id=0)
        transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "deep")
    tokenizer.save_pretrained(tmp_path / "deep")
    subject = bare(tmp_path / "deep")
    scales = some_scales(subject, (1,))
    expected = by_columns(subject, scales)
    for make in (scales_as_ia3, scales_as_lora):
        settings, tensors = make(subject, scales)
        assert len(settings["target_modules"]) == 1
        assert apart(predict(wear(subject, settings, tensors), corpus()).logits, expected) <= TOLERANCE
    both = fresh(str(tmp_path / "deep"), Lora(2), ("a", "b"), template=TEMPLATE, max_length=32, device="cpu")
    check_scaled(shaken(both), scales)


def check_scaled(subject: Subject, scales: dict[int, Tensor]) -> None:
    with scaled(subject, scales) as inside:
        expected = predict(inside, corpus()).logits
    worn = wear(subject, *scales_as_adapter(subject, scales))
    assert apart(predict(worn, corpus()).logits, expected) <= TOLERANCE
    assert apart(predict(subject, corpus()).logits, expected) > 1e-4


# ------------------------------------------------------------------------------------------------ with a LoRA, an IA3


@pytest.mark.parametrize("family", ATTENTION)
def test_scales_join_a_lora_of_other_projections(family: str, base_of: Any, tmp_path: Path):
    subject = shaken(fresh(str(base_of(family)), Lora(2), ("a", "b"), template=TEMPLATE, max_length=32, device="cpu"))
    before, scales = subject.fingerprint, some_scales(subject)
    made = scales_as_adapter(subject, scales)
    assert subject.fingerprint == before
    check(subject, base_of(family), tmp_path / "lora", scales, made, by_columns(subject, scales))
    assert subject.fingerprint == before
    assert made[0]["peft_type"] == "LORA"
    # What the LoRA had stays as it was, bit by bit.
    kept = files.adapter_tensors(subject)
    assert all(torch.equal(made[1][k], v) for k, v in kept.items())
    assert len(made[1]) == len(kept) + 4


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_scales_join_a_lora_of_the_same_projection(family: str, rslora: bool, base_of: Any, tmp_path: Path):
    """Ranks and alphas of their own for some, by patterns that would also reach the names written here."""
    down = FAMILIES[family].down.split(".")[-1]
    config = peft.LoraConfig(
        r=3, lora_alpha=7, target_modules=[down, *FAMILIES[family].lora], use_rslora=rslora, rank_pattern={down: 2},
        alpha_pattern={down: 5}, fan_in_fan_out=family == "gpt2", layers_to_transform=[1],
    )  # fmt: skip
    subject = with_config(base_of(family), config)
    before, scales = subject.fingerprint, some_scales(subject)
    with scaled(subject, scales) as inside:
        expected = predict(inside, corpus()).logits
    made = scales_as_adapter(subject, scales)
    check(subject, base_of(family), tmp_path / "lora", scales, made, expected)
    assert subject.fingerprint == before
    # The control: columns of the base alone are not the units of the sum.
    assert apart(by_columns(subject, scales), expected) > 1e-4
    name = projection_of(subject, 1)[0]
    assert made[0]["rank_pattern"][name] == 2 + int((scales[1] != 1).sum())
    assert set(made[0]["target_modules"]) >= {projection_of(subject, 0)[0], name}
    worn = wear(subject, *made)
    again = scales_as_adapter(worn, {0: torch.full_like(scales[0], 0.5)})
    with scaled(subject, scales), scaled(subject, {0: torch.full_like(scales[0], 0.5)}) as inside:
        assert apart(predict(wear(worn, *again), corpus()).logits, predict(inside, corpus()).logits) <= TOLERANCE


@pytest.mark.parametrize("family", ["gpt2", "llama", "mamba"])
def test_scales_multiply_into_an_ia3(family: str, base_of: Any, tmp_path: Path):
    anatomy, base = FAMILIES[family], base_of(family)
    down = anatomy.down.split(".")[-1]
    where = ["mlp.c_proj"] if family == "gpt2" else [down]
    layer = f"{projection_of(bare(base), 1)[0]}"
    others = [anatomy.lora[0]]
    for targets, inputs in (([*others, *where], where), (others, []), ([*others, layer], [layer])):
        config = peft.IA3Config(
            target_modules=targets, feedforward_modules=inputs, fan_in_fan_out=family == "gpt2", init_ia3_weights=True
        )
        subject = with_config(base, config)
        before, scales = subject.fingerprint, some_scales(subject)
        with scaled(subject, scales) as inside:
            expected = predict(inside, corpus()).logits
        made = scales_as_adapter(subject, scales)
        check(subject, base, tmp_path / str(len(list(tmp_path.iterdir()))), scales, made, expected)
        assert subject.fingerprint == before
        assert made[0]["peft_type"] == "IA3"


def test_a_classifier_keeps_its_head(base_of: Any, tmp_path: Path):
    """Bare, and with a LoRA that brings a head of its own."""
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(5)
        net = transformers.AutoModelForSequenceClassification.from_pretrained(base_of("gpt2"), num_labels=2)
        net.save_pretrained(tmp_path / "base")
        transformers.AutoTokenizer.from_pretrained(base_of("gpt2")).save_pretrained(tmp_path / "base")
    base = tmp_path / "base"
    for subject in (
        load(str(base), classes=["a", "b"], max_length=32, device="cpu"),
        shaken(fresh(str(base), Lora(2), ("a", "b"), max_length=32, device="cpu")),
    ):
        scales = some_scales(subject)
        folder = tmp_path / str(subject.source.peft_type)
        check(subject, base, folder, scales, scales_as_adapter(subject, scales), by_columns(subject, scales))


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("recipe", [Prompt(4), PTuning(3, 16), Prefix(2)], ids=lambda r: r.name)
def test_a_prompt_is_refused(recipe: Any, base_of: Any):
    subject = fresh(str(base_of("gpt2")), recipe, ("a", "b"), template=TEMPLATE, max_length=32, device="cpu")
    for make in (scales_as_adapter, scales_as_ia3, scales_as_lora):
        with pytest.raises(Unsupported, match=r"PEFT keeps a prompt .* give the base without its prompt, or a LoRA\."):
            make(subject, some_scales(subject))


def test_the_other_kind_of_adapter_is_refused(base_of: Any):
    lora = fresh(str(base_of("gpt2")), Lora(2), ("a", "b"), template=TEMPLATE, max_length=32, device="cpu")
    with pytest.raises(Unsupported, match=r"has an adapter of kind LORA; .*`scales_as_adapter`\."):
        scales_as_ia3(lora, some_scales(lora))
    plain = bare(base_of("gpt2"))
    worn = wear(plain, *scales_as_ia3(plain, some_scales(plain)))
    with pytest.raises(Unsupported, match=r"has an adapter of kind IA3; .*`scales_as_adapter`\."):
        scales_as_lora(worn, some_scales(worn))


@pytest.mark.parametrize(
    "more",
    [{"use_dora": True}, {"lora_bias": True}, {"bias": "lora_only"}, {"init_lora_weights": "pissa"},
     {"trainable_token_indices": [5]}],
    ids=lambda m: next(iter(m)),
)  # fmt: skip
def test_a_lora_that_is_more_than_b_times_a_is_refused(more: dict[str, Any], base_of: Any):
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], **more)
    subject = with_config(base_of("llama"), config)
    name = next(iter(more))
    with pytest.raises(Unsupported, match=rf"inside a LoRA with '{name}' set to .* give it without an adapter\."):
        scales_as_adapter(subject, some_scales(subject))


def test_a_lora_on_mamba_is_refused(base_of: Any):
    subject = fresh(str(base_of("mamba")), Lora(2), ("a", "b"), template=TEMPLATE, max_length=32, device="cpu")
    with pytest.raises(Unsupported, match=r"PEFT puts no LoRA on 'mixer\.out_proj' of 'mamba'; .*an IA3 can scale\."):
        scales_as_adapter(subject, some_scales(subject))
    # The control: PEFT does refuse it.
    with pytest.raises(ValueError, match="incompatible with Mamba"), quiet():
        peft.get_peft_model(bare(base_of("mamba")).model, peft.LoraConfig(target_modules=["out_proj"]))


def test_an_ia3_on_outputs_is_refused(base_of: Any):
    config = peft.IA3Config(target_modules=["down_proj"], feedforward_modules=[])
    subject = with_config(base_of("llama"), config)
    with pytest.raises(
        Unsupported, match=r"scales what comes out of .*feedforward_modules name it, or the base without"
    ):
        scales_as_adapter(subject, some_scales(subject))


def test_nothing_to_scale_and_scales_that_do_not_fit_are_refused(base_of: Any):
    subject = bare(base_of("gpt2"))
    scales = some_scales(subject)
    ones = {0: torch.ones_like(scales[0])}
    for make, given in ((scales_as_ia3, {}), (scales_as_lora, {}), (scales_as_lora, ones)):
        with pytest.raises(BadInput, match=r"No unit is scaled, .*give a scale other than 1\."):
            make(subject, given)
    for make in (scales_as_ia3, scales_as_lora):
        with pytest.raises(BadInput, match=r"There is no layer 7: the model has layers 0 to 1\."):
            make(subject, scales | {7: scales[0]})
        with pytest.raises(BadInput, match=r"Layer 0 has 128 units, and the scales are \(64,\); give one per unit\."):
            make(subject, {0: scales[0][:64]})
    null = wear(subject, *scales_as_ia3(subject, ones))
    assert apart(predict(null, corpus()).logits, predict(subject, corpus()).logits) <= 1e-6
    assert len(layers_of(null)) == 2
