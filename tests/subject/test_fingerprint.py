"""The fingerprint of a model is of all that it computes with: also of what an adapter holds beside its tensors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from trueup.corpus.corpus import Corpus
from trueup.run.predict import Session, predict, within
from trueup.store.cache import Memo
from trueup.subject import adapter as files
from trueup.subject.load import load
from trueup.subject.new_adapter import Lora, Prefix, Prompt, PTuning, fresh
from trueup.subject.quiet import quiet
from trueup.subject.subject import Source, Subject, body_fingerprint, model_fingerprint
from trueup.subject.swap_adapter import wear
from trueup.subject.template import Template

CLASSES = ("no", "yes")
CORPUS = Corpus(["good cat sat", "bad"], np.array([0, 1]), CLASSES, np.array(["test"] * 2))


def lora(base: Path) -> Subject:
    """A LoRA that does something, at scale 2."""
    subject = fresh(str(base), Lora(4, alpha=8), CLASSES, max_length=16, device="cpu")
    with torch.no_grad():
        for n, p in subject.model.named_parameters():
            if "lora_B" in n:
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)) * 0.3)
    return subject


@pytest.mark.parametrize("settings", [{"lora_alpha": 4}, {"use_rslora": True}, {"alpha_pattern": {"query": 3}}])
def test_another_scale_is_another_model(settings: dict[str, Any], base_of: Callable[[str], Path], tmp_path: Path):
    subject = lora(base_of("bert"))
    own, tensors = files.adapter_of(subject)
    same, other = wear(subject, own, tensors), wear(subject, own | settings, tensors)
    assert all(torch.equal(a, b) for a, b in zip(same.model.parameters(), other.model.parameters(), strict=True))
    assert model_fingerprint(same.model) != model_fingerprint(other.model)
    assert same.fingerprint != other.fingerprint
    # What is remembered of the one is not said of the other.
    with within(Session(Memo(tmp_path))):
        a, b = predict(same, CORPUS).logits, predict(other, CORPUS).logits
    assert np.abs(a - b).max() > 1e-4


@pytest.mark.parametrize("recipe", [Lora(2), Prompt(3), Prefix(2), PTuning(2, 8)], ids=lambda r: r.name)
def test_it_is_one_over_load_save_and_reload(recipe: Any, base_of: Callable[[str], Path], tmp_path: Path):
    made = fresh(str(base_of("bert")), recipe, CLASSES, max_length=16, device="cpu")
    (tmp_path / "a").mkdir()
    files.save_tuned(made, tmp_path / "a")
    first = load(str(base_of("bert")), str(tmp_path / "a"), device="cpu")
    (tmp_path / "b").mkdir()
    files.save_tuned(first, tmp_path / "b")
    again, saved = (load(str(base_of("bert")), str(tmp_path / x), device="cpu") for x in "ab")
    assert model_fingerprint(again.model) == model_fingerprint(first.model)
    assert model_fingerprint(saved.model) == model_fingerprint(first.model)


def test_which_adapter_is_on_is_part_of_it(base_of: Callable[[str], Path]):
    with quiet():
        net = transformers.AutoModelForSequenceClassification.from_pretrained(base_of("bert"), num_labels=2)
        config = peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
        model = peft.get_peft_model(net, config).eval()
        model.add_adapter("second", config)
    model.eval()
    for p in model.parameters():
        p.requires_grad_(False)

    def now() -> str:
        for p in model.parameters():
            p.requires_grad_(False)
        return model_fingerprint(model)

    own = now()
    model.set_adapter("second")
    assert now() != own
    model.set_adapter("default")
    assert now() == own
    with model.disable_adapter():
        assert now() != own
    assert now() == own
    model.merge_adapter()  # B is 0: not one weight moves
    assert now() != own
    model.unmerge_adapter()
    assert now() == own


def test_what_only_the_config_says_is_part_of_it(base_of: Callable[[str], Path], tmp_path: Path):
    """Two and four heads have the same weights."""
    subject = lora(base_of("bert"))
    folder = Path(shutil.copytree(base_of("bert"), tmp_path / "bert"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": config["num_attention_heads"] * 2}))
    other, same = lora(folder), lora(Path(shutil.copytree(base_of("bert"), tmp_path / "elsewhere")))
    assert all(torch.equal(a, b) for a, b in zip(subject.model.parameters(), other.model.parameters(), strict=True))
    assert model_fingerprint(subject.model) != model_fingerprint(other.model)
    assert body_fingerprint(subject) != body_fingerprint(other)
    assert model_fingerprint(subject.model) == model_fingerprint(same.model)
    assert body_fingerprint(subject) == body_fingerprint(same)


def test_the_body_is_all_but_the_head_and_the_modes(base_of: Callable[[str], Path]):
    subject = lora(base_of("bert"))
    own = body_fingerprint(subject)
    subject.model.train()
    with torch.no_grad():
        subject.head_layer().weight.add_(1)
    assert body_fingerprint(subject) == own
    with torch.no_grad():
        subject.base.get_input_embeddings().weight[7].add_(1e-3)
    assert body_fingerprint(subject) != own


def test_a_head_that_is_the_embeddings_is_body(base_of: Callable[[str], Path]):
    """A decoder that answers with a word may read out by the very weights that read in."""
    words = Template("{text} is", ("good", "bad"))
    subject = fresh(str(base_of("gpt2")), Prompt(2), CLASSES, template=words, device="cpu")
    own = body_fingerprint(subject)
    assert subject.head_layer().weight is subject.base.get_input_embeddings().weight  # tied, as GPT-2 is
    with torch.no_grad():
        subject.head_layer().weight[7].add_(1e-3)
    assert body_fingerprint(subject) != own


def test_a_prompt_that_is_off_is_another_model(base_of: Callable[[str], Path]):
    words = Template("{text} is", ("good", "bad"))
    model = fresh(str(base_of("gpt2")), Prompt(2), CLASSES, template=words, device="cpu").model
    own = model_fingerprint(model)
    with model.disable_adapter():
        assert model_fingerprint(model) != own
    assert model_fingerprint(model) == own


def test_a_whole_module_that_an_adapter_keeps_may_have_numbers_of_its_own(base_of: Callable[[str], Path]):
    """Attention layers call a number their scaling, and PEFT's wrapper of a module passes such names on."""
    with quiet():
        net = transformers.AutoModelForSequenceClassification.from_pretrained(base_of("bert"), num_labels=2)
        net.classifier.scaling = 0.5
        config = peft.LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"], task_type="SEQ_CLS")
        model = peft.get_peft_model(net, config).eval()
    assert model_fingerprint(model) == model_fingerprint(model)


def test_what_the_user_allowed_is_carried_and_is_no_part_of_it(base_of: Callable[[str], Path]):
    plain = load_with(base_of("bert"))
    assert not plain.source.allow_pickle
    assert not plain.source.trust_remote_code
    allowed = load_with(base_of("bert"), allow_pickle=True, trust_remote_code=True)
    assert allowed.source.allow_pickle
    assert allowed.source.trust_remote_code
    assert allowed.fingerprint == plain.fingerprint
    assert allowed.source == plain.source
    assert replace(plain, source=Source("another")).fingerprint != plain.fingerprint
    made = fresh(str(base_of("bert")), Lora(2), CLASSES, device="cpu", allow_pickle=True)
    assert made.source.allow_pickle
    assert not made.source.trust_remote_code


def load_with(base: Path, **options: Any) -> Subject:
    return load(str(base.parent / "classifier"), device="cpu", **options)


@pytest.fixture(autouse=True)
def _classifier(base_of: Callable[[str], Path]):
    """A finished classifier beside the base."""
    folder = base_of("bert").parent / "classifier"
    if not folder.exists():
        with quiet():
            net = transformers.AutoModelForSequenceClassification.from_pretrained(base_of("bert"), num_labels=2)
            net.save_pretrained(folder)
            transformers.AutoTokenizer.from_pretrained(base_of("bert")).save_pretrained(folder)
