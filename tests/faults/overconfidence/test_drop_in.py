"""The repair that keeps the classifier's outputs: one temperature in the last layer, which plain PEFT's softmax shows."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers

from trueup.errors import BadInput
from trueup.faults.fault import NoRemedy
from trueup.faults.overconfidence import Overconfidence
from trueup.faults.overconfidence.confidence_head import ConfidenceHead, read_remedy
from trueup.faults.overconfidence.planted import planted
from trueup.guard import Guard
from trueup.measure.calibration import fit_temperature
from trueup.run.predict import predict
from trueup.subject import adapter as files
from trueup.subject.subject import Head
from trueup.subject.swap_adapter import wear

FAULT = Overconfidence(resamples=300, drop_in=True)


@pytest.fixture(scope="module")
def sharp():
    """A classifier whose logits are six times what its texts bear, and its corpus."""
    subject, corpus = planted("planted")
    own = subject.own_head()
    held = predict(subject, corpus.part("calibration"))
    times = 6 / fit_temperature(held.logits, corpus.part("calibration").label)
    return wear(subject, *files.adapter_with_head(subject, Head(own.weight * times, own.bias * times))), corpus


def test_it_keeps_the_outputs_and_its_softmax_is_the_confidence(sharp, tmp_path: Path):
    subject, corpus = sharp
    remedy = FAULT.repair(subject, corpus, None, seed=0)  # type: ignore[arg-type]
    assert isinstance(remedy, ConfidenceHead)
    assert remedy.card["temperature"] > 2
    assert len(remedy.head.weight) == len(subject.classes)
    test = corpus.part("test")
    before = predict(subject, test)
    with remedy.on(subject) as repaired:
        after = predict(repaired, test)
    assert np.array_equal(before.predicted, after.predicted)
    assert np.allclose(after.logits, before.logits / remedy.card["temperature"], atol=1e-4)
    right = before.predicted == test.label
    assert np.square(after.confidence - right).mean() < np.square(before.confidence - right).mean()
    about = json.loads(str(remedy.guard["about"])) | {
        "abstention": [{"risk": 0.2, "threshold": 0.6}]
    }  # few texts certify none
    folder = replace(remedy, guard={**remedy.guard, "about": np.array(json.dumps(about))}).save(tmp_path / "remedy")
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        subject.source.base, num_labels=len(subject.classes), ignore_mismatched_sizes=True
    )
    model, tok = peft.PeftModel.from_pretrained(base, str(folder)).eval(), subject.tokenizer
    with torch.no_grad():
        plain = [
            model(**tok(t, return_tensors="pt", truncation=True, max_length=subject.max_length))
            .logits.softmax(-1)
            .max()
            for t in test.text[:8]
        ]
    assert np.allclose(plain, after.confidence[:8], atol=1e-5)
    guard = Guard.read(folder)  # as behind any repair of overconfidence
    said = guard(after.logits, after.features)
    assert np.allclose(said.confidence, after.confidence, atol=1e-6)
    assert said.label == [subject.classes[i] for i in after.predicted]
    assert np.array_equal(said.answered, said.confidence >= 0.6)
    with pytest.raises(BadInput, match="not what the guarded model makes of these features"):
        guard(before.logits, before.features)
    card = (folder / "README.md").read_text()
    assert "It is a drop-in" in card
    assert "What does not work" not in card
    with read_remedy(folder, subject).on(subject) as again:
        assert np.allclose(predict(again, test).confidence, after.confidence)


def test_a_guard_stands_behind_it_as_behind_any_repair(sharp, tmp_path: Path):
    subject, corpus = sharp
    remedy = FAULT.repair(subject, corpus, None, seed=0)  # type: ignore[arg-type]
    assert isinstance(remedy, ConfidenceHead)
    # Some threshold, whatever this small case certifies.
    about = json.loads(str(remedy.guard["about"])) | {"abstention": [{"risk": 0.1, "threshold": 0.6}]}
    remedy = replace(remedy, guard={**remedy.guard, "about": np.array(json.dumps(about))})
    with remedy.on(subject) as repaired:
        want = predict(repaired, corpus.part("test"))
    said = Guard.read(remedy.save(tmp_path / "overconfidence"))(want.logits, want.features)
    assert said.label == [subject.classes[i] for i in want.predicted]
    assert np.allclose(said.confidence, want.confidence, atol=1e-5)


def test_where_the_temperature_does_not_help_there_is_no_repair(sharp):
    subject, corpus = sharp
    own, held = subject.own_head(), corpus.part("calibration")
    t = fit_temperature(predict(subject, held).logits, held.label)
    honest = wear(subject, *files.adapter_with_head(subject, Head(own.weight / t, own.bias / t)))
    none = FAULT.repair(honest, corpus, None, seed=0)  # type: ignore[arg-type]
    assert isinstance(none, NoRemedy)
    assert "not measurably better than the softmax response" in none.reason
    assert "certainty" not in none.reason
    assert math.isfinite(none.tried["temperature"])


def test_the_knob_is_true_or_false():
    with pytest.raises(
        BadInput, match=r"overconfidence\.drop_in is true or false, such as False, but .yes. \(str\) was given"
    ):
        replace(FAULT, drop_in="yes")  # type: ignore[arg-type]


def test_the_option_is_the_knob():
    from trueup.cli.jobs import priced

    price = {"max_cost": None, "take": None, "drop_in": True}
    assert priced({}, dict(price), ()) == {"overconfidence": {"drop_in": True}}
    assert priced({}, price | {"drop_in": None}, ()) == {}
    with pytest.raises(BadInput, match="--drop-in goes with the repair of overconfidence"):
        priced({}, price, ("copying",))
