"""What an adapter changes is what plain PEFT says with the adapter and without it; one that changes nothing is refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import trueup
from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput
from trueup.faults.overconfidence.planted import planted
from trueup.run.adapter_effect import effect
from trueup.subject import adapter as files
from trueup.subject.load import load
from trueup.subject.new_adapter import Lora, Prefix, Prompt, fresh
from trueup.subject.quiet import quiet
from trueup.subject.subject import Subject, model_fingerprint
from trueup.subject.template import Template
from trueup.subject.tiny import make_base

CLASSES = ("a", "b", "c")
TEMPLATE = Template("say {text} now", ("good", "bad", "cat"))
TEXT = ["good cat sat", "bad", "the cat bad good mat sat on the good dog", "very loud film it was"]


def corpus(text: list[str] = TEXT) -> Corpus:
    return Corpus(text, np.arange(len(text)) % 3, CLASSES, np.array(["test"] * len(text)))


def subject_of(family: str, recipe: Any, tmp_path: Any, *, words: bool = False) -> Subject:
    base = make_base(family, tmp_path / family)
    return fresh(str(base), recipe, CLASSES, template=TEMPLATE if words else None, max_length=32, seed=1)


def shaken(subject: Subject, part: str) -> Subject:
    """With noise on the adapter's weights whose name holds `part`."""
    generator = torch.Generator().manual_seed(0)
    for name, p in subject.model.named_parameters():
        if part in name:
            with torch.no_grad():
                p += torch.randn(p.shape, generator=generator) * 0.3
    return subject


def peft_logits(subject: Subject, model: Any) -> np.ndarray:
    said = []
    for text in TEXT:
        asked = text if subject.template is None else subject.template.fill(text)
        with torch.no_grad():
            logits = model(**subject.tokenizer(asked, return_tensors="pt", return_token_type_ids=False)).logits[0]
        said.append((logits if subject.template is None else logits[-1, subject.verbaliser_ids()]).numpy())
    return np.stack(said)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(("recipe", "part"), [(Lora(2), ".lora_B."), (Prompt(4), "prompt"), (Prefix(2), "prompt")])
def test_the_change_is_that_of_plain_peft(family, recipe, part, tmp_path):
    subject = shaken(subject_of(family, recipe, tmp_path, words=True), part)
    before = model_fingerprint(subject.model)
    found = effect(subject, corpus())
    with subject.model.disable_adapter():
        off = peft_logits(subject, subject.model)
    change = np.abs(peft_logits(subject, subject.model) - off).max(axis=1)
    assert found is not None
    assert found.largest == pytest.approx(change.max(), rel=1e-4)
    assert found.typical == pytest.approx(np.median(change), rel=1e-4)
    assert not found.head
    assert model_fingerprint(subject.model) == before


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2"])
def test_a_head_that_the_adapter_brings_is_on_both_sides(family, tmp_path):
    subject = shaken(shaken(subject_of(family, Lora(2), tmp_path), ".lora_B."), "modules_to_save")
    found = effect(subject, corpus())
    layers_off = copy.deepcopy(subject.model)
    for name, p in layers_off.named_parameters():
        if ".lora_B." in name:
            p.data.zero_()
    change = np.abs(peft_logits(subject, subject.model) - peft_logits(subject, layers_off)).max()
    assert found is not None
    assert found.largest == pytest.approx(change, rel=1e-4)
    assert found.head


def test_a_head_alone_is_told_and_not_refused(tmp_path):
    """As trueup's own repairs of a last layer carry it: on a LoRA whose A and B are both 0."""
    subject = shaken(subject_of("bert", Lora(2), tmp_path), "modules_to_save")
    with pytest.raises(BadInput, match=r"changes nothing before the classification head that it brings: every B"):
        effect(subject, corpus())
    for name, p in subject.model.named_parameters():
        if ".lora_A." in name:
            p.data.zero_()
    found = effect(subject, corpus())
    assert found is not None
    assert (found.largest, found.head) == (0.0, True)
    data = replace(corpus(TEXT * 10), split=np.array(["calibration", "test"] * 20))
    for told in (True, False):
        warned = trueup.check(subject, data, "overconfidence", repair=False).warnings
        assert any(w.startswith("The adapter's layers change no logit of 20 test texts") for w in warned) == told
        shaken(shaken(subject, ".lora_A."), ".lora_B.")


@pytest.mark.parametrize("words", [True, False])
def test_an_adapter_that_was_never_trained_is_refused(words, tmp_path):
    with pytest.raises(BadInput, match=r"does nothing: every B of its LoRA is 0, as before the first step"):
        effect(subject_of("gpt2", Lora(2), tmp_path, words=words), corpus())


@pytest.mark.parametrize(("factor", "refused"), [(1.0, True), (0.5, False)])
def test_an_ia3_of_ones_is_refused(factor, refused, tmp_path):
    from trueup.subject.swap_adapter import bare, wear
    from trueup.subject.units import scales_as_ia3

    base = bare(subject_of("llama", Lora(2), tmp_path, words=True))
    settings, tensors = scales_as_ia3(base, {0: torch.full((48,), factor)})
    worn = wear(base, settings, tensors)
    if refused:
        with pytest.raises(BadInput, match=r"no logit of 4 test texts differs.* another prefix.*set_adapter.* merged"):
            effect(worn, corpus())
    else:
        assert effect(worn, corpus()).largest > 0  # type: ignore[union-attr]


def test_without_an_adapter_there_is_nothing_to_say(tmp_path):
    base = make_base("gpt2", tmp_path / "base")
    for options in ({"verbaliser": TEMPLATE.words, "template": TEMPLATE.text}, {"shots": 2}):
        subject = load(str(base), device="cpu", **options)
        if subject.shots is None:
            assert effect(subject, corpus()) is None


def test_weights_that_peft_did_not_load_are_refused_in_a_check(tmp_path):
    subject, data = planted("planted")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    files.save_tuned(shaken(subject, ".lora_B."), adapter)
    weights = load_file(adapter / "adapter_model.safetensors")
    for name in ("right", "other prefix"):
        if name != "right":  # as saved inside a wrapper; the head's names are as they were
            save_file(
                {k.replace(".bert.", ".module.bert."): v for k, v in weights.items()},
                adapter / "adapter_model.safetensors",
            )
        with quiet(), torch.random.fork_rng():
            torch.manual_seed(0)
            net = transformers.AutoModelForSequenceClassification.from_pretrained(subject.source.base, num_labels=2)
            model = peft.PeftModel.from_pretrained(net, str(adapter))
        options: dict[str, Any] = {"tokenizer": subject.tokenizer, "classes": subject.classes, "max_length": 32}
        rows = [{"text": t, "label": data.classes[y]} for t, y in zip(data.text, data.label, strict=True)]
        if name == "right":
            report = trueup.check(model, rows, "overconfidence", repair=False, **options)
            assert any(n.startswith("The adapter changes a logit by ") for n in report.notes)
        else:
            with pytest.raises(
                BadInput,
                match=r"changes nothing before the classification head .* every B of its LoRA is 0, .* another prefix",
            ):
                trueup.check(model, rows, "overconfidence", repair=False, **options)
