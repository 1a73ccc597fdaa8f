"""Heads of one logit: a sigmoid over one number is two classes, read, repaired and saved as such."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from scipy.special import expit

from trueup.corpus.corpus import Corpus
from trueup.errors import Unsupported
from trueup.faults.adapter_remedy import with_head
from trueup.faults.overconfidence.confidence_head import null_remedy
from trueup.faults.rigidity import Rigidity
from trueup.run import forward
from trueup.run.predict import predict
from trueup.subject import adapter as files
from trueup.subject.load import load
from trueup.subject.quiet import quiet
from trueup.subject.subject import Head, Subject

TOLERANCE = 1e-5
TEXT = ["good cat sat", "bad", "the cat bad good mat sat on the good dog", "poor film"]


def corpus(classes: tuple[str, ...]) -> Corpus:
    return Corpus(TEXT, np.arange(4) % 2, classes, np.array(["test"] * 4))


@pytest.fixture(
    scope="module", params=[("bert", True), ("llama", False)], ids=lambda p: f"{p[0]}-{'lora' * p[1] or 'bare'}"
)
def case(
    request: pytest.FixtureRequest, base_of: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any, Subject]:
    """The folder of a classifier of one logit, the plain model, and the subject; with a LoRA that keeps its head, or without."""
    family, adapted = request.param
    whole, folder = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("adapter")
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        net = transformers.AutoModelForSequenceClassification.from_pretrained(
            base_of(family), num_labels=1, problem_type="multi_label_classification", id2label={0: "spam"}
        )
        torch.nn.init.normal_((net.classifier if family == "bert" else net.score).weight)
        net.eval().save_pretrained(whole)
        transformers.AutoTokenizer.from_pretrained(base_of(family)).save_pretrained(whole)
        if adapted:
            net = peft.get_peft_model(net, peft.LoraConfig(task_type="SEQ_CLS", r=2, init_lora_weights=False)).eval()
            net.save_pretrained(str(folder))
    names = ("not spam", "spam") if adapted else None
    return whole, net, load(str(whole), str(folder) if adapted else None, classes=names, max_length=32, device="cpu")


def plain(net: Any, subject: Subject) -> np.ndarray:
    with torch.no_grad():
        return np.concatenate(
            [
                net(input_ids=torch.tensor([r])).logits.numpy()
                for r in forward.tokenize(subject, corpus(subject.classes))
            ]
        )


def test_it_is_two_classes(case: tuple[Path, Any, Subject]):
    _, net, subject = case
    assert (subject.sigmoid, subject.classes) == (True, ("not spam", "spam"))
    out, z = predict(subject, corpus(subject.classes)), plain(net, subject)[:, 0]
    assert np.abs(out.probability[:, 1] - expit(z)).max() <= TOLERANCE
    assert (out.predicted == (z > 0)).all()
    assert len(set(out.predicted)) == 2, "both are given, so the comparison means something"
    assert any(
        "whose sigmoid was read as the probability of 'spam' against 'not spam'" in t for t in subject.source.told
    )


def test_live_it_is_the_same(case: tuple[Path, Any, Subject]):
    whole, net, subject = case
    same = load(
        net, tokenizer=transformers.AutoTokenizer.from_pretrained(whole), classes=subject.classes, max_length=32
    )
    assert same.sigmoid
    own = predict(subject, corpus(subject.classes)).logits
    assert np.abs(predict(same, corpus(subject.classes)).logits - own).max() <= TOLERANCE


def test_a_confidence_head_loads_with_plain_peft(case: tuple[Path, Any, Subject], tmp_path: Path):
    whole, _, subject = case
    remedy = null_remedy(subject)
    remedy.save(tmp_path / "saved")
    with quiet():
        net = transformers.AutoModelForSequenceClassification.from_pretrained(
            whole, num_labels=2, ignore_mismatched_sizes=True
        )
        theirs = peft.PeftModel.from_pretrained(net, str(tmp_path / "saved")).eval()
    assert np.abs(plain(theirs, subject) - predict(subject, corpus(subject.classes)).logits).max() <= TOLERANCE


def test_another_last_layer_is_saved_as_one_row(case: tuple[Path, Any, Subject], tmp_path: Path):
    whole, _, subject = case
    own, g = subject.own_head(), torch.Generator().manual_seed(2)
    biased = subject.head_layer().bias is not None
    head = Head(own.weight + torch.randn(own.weight.shape, generator=g), own.bias + biased * torch.tensor([0.3, -0.2]))
    wanted = predict(replace(subject, head=head), corpus(subject.classes)).probability
    remedy = with_head("confounding", subject, head, {"describe": "Another last layer."})
    with remedy.on(subject) as worn:
        assert np.abs(predict(worn, corpus(subject.classes)).probability - wanted).max() <= TOLERANCE
    remedy.save(tmp_path / "saved")
    assert "num_labels=1" in (tmp_path / "saved" / "README.md").read_text()
    assert "label = (out[:, 0] > 0).long()" in (tmp_path / "saved" / "README.md").read_text()
    with quiet():
        net = transformers.AutoModelForSequenceClassification.from_pretrained(whole, num_labels=1)
        theirs = peft.PeftModel.from_pretrained(net, str(tmp_path / "saved")).eval()
    assert np.abs(expit(plain(theirs, subject)[:, 0]) - wanted[:, 1]).max() <= TOLERANCE
    assert np.abs(wanted - predict(subject, corpus(subject.classes)).probability).max() > 0.01, (
        "the control: it is another"
    )


def test_what_would_train_two_logits_beside_it_says_no(case: tuple[Path, Any, Subject]):
    _, _, subject = case
    if subject.peft_config is not None:
        assert "one logit" in str(Rigidity().applies_to(subject, corpus(subject.classes)))
    assert files.in_place(replace(subject, sigmoid=False), subject.own_head()).weight.shape[0] == 2, "the control"


def test_a_regression_is_refused(base_of: Any):
    tokenizer = transformers.AutoTokenizer.from_pretrained(base_of("bert"))
    with quiet():
        net = transformers.AutoModelForSequenceClassification.from_pretrained(
            base_of("bert"), num_labels=1, problem_type="regression"
        )
    with pytest.raises(Unsupported, match=r"gives 1 number and no choice between classes \(a regression\)"):
        load(net, tokenizer=tokenizer)
