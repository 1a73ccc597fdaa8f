"""``predict.py`` beside a saved adapter, run as a user would: in a process that knows no trueup, it says what trueup says."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from drawn_weights import move
from trueup.corpus.corpus import Corpus
from trueup.faults import predict_script
from trueup.faults.adapter_remedy import Adapted, adapted, with_head
from trueup.faults.loading import facts
from trueup.faults.overconfidence.confidence_head import ConfidenceHead, confidence_head, with_rows
from trueup.measure.confidence_scores import Calibrated, ResponseLogOdds, ShrunkProbe
from trueup.run.predict import predict
from trueup.subject import adapter as files
from trueup.subject.new_adapter import Lora, fresh
from trueup.subject.subject import Head, Subject
from trueup.subject.template import Template

CLASSES = ("no", 'the "yes"', "maybe`")
TEXT = ["good cat sat", "the bad dog was loud", "a calm film"]
SECOND = ["poor film", "the mat", "the cat was loud"]


def moved(subject: Subject) -> Subject:
    """The subject with a drawn adapter and head, so that no two texts are answered alike."""
    move(subject.model, 0.5, seed=3)
    return subject


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The script with the arguments `words`, in a folder and a process from which trueup cannot be imported."""
    blocked = folder.parent / "blocked"
    blocked.mkdir(exist_ok=True)
    (blocked / "trueup.py").write_text("raise SystemExit('predict.py imports trueup')\n")
    env = {**os.environ, "PYTHONPATH": str(blocked), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(folder / "predict.py"), *words],
        capture_output=True,
        text=True,
        env=env,
        cwd=folder.parent,
        timeout=240,
    )


def check(remedy: Adapted | ConfidenceHead, subject: Subject, folder: Path, second: list[str] | None = None) -> None:
    saved = remedy.save(folder / "remedy")
    corpus = Corpus(TEXT, np.arange(3) % 3, CLASSES, np.array(["test"] * 3), second=second)
    with remedy.on(subject) as repaired:
        ours = predict(repaired, corpus)
    words = TEXT if second is None else [w for pair in zip(TEXT, second, strict=True) for w in pair]
    done = run(saved, *words)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [t["text"] for t in told] == TEXT
    assert [t["label"] for t in told] == [CLASSES[i] for i in ours.predicted]
    assert np.allclose([t["confidence"] for t in told], ours.confidence, atol=2e-5)
    assert np.ptp(ours.confidence) > 1e-3, "the control: the texts are told apart"


def test_a_confidence_that_is_an_extra_output(base_of: Callable[[str], Path], tmp_path: Path):
    subject = moved(fresh(str(base_of("bert")), Lora(2), CLASSES, max_length=14, device="cpu"))
    own = subject.own_head()
    extra = Head(torch.randn(1, own.weight.shape[1], generator=torch.Generator().manual_seed(0)), torch.zeros(1))
    score = Calibrated(ShrunkProbe(3, 0.7, (0.1, -0.2, 0.3)), 0.9, -0.1)
    about = facts(subject) | {"describe": "It says.", "promise": "Promised."}
    remedy = confidence_head(subject, with_rows(subject, extra), score, about)
    check(remedy, subject, tmp_path)
    card = (tmp_path / "remedy" / "README.md").read_text()
    warning = '> **What does not work:** `pipeline("text-classification")`.'
    assert 0 < card.index(warning) < card.index("It says. Promised.")
    assert "an extra output that is no class" in card
    assert 'id2label={0: "no", 1: "the \\"yes\\"", 2: "maybe\\u0060", 3: "no class: for the confidence 1"}' in card


@pytest.mark.parametrize("pair", [False, True])
def test_a_classifier(pair: bool, base_of: Callable[[str], Path], tmp_path: Path):
    subject = moved(fresh(str(base_of("gpt2")), Lora(2), CLASSES, max_length=14, device="cpu"))
    own = subject.own_head()
    head = Head(own.weight.flip(0) * 2, own.bias)
    remedy = with_head("confounding", subject, head, {"describe": "Another head.", "pair": pair})
    check(remedy, subject, tmp_path, SECOND if pair else None)
    assert remedy.usage("confounding") == 'python confounding/predict.py "A text to classify"'


def test_a_model_that_answers_with_words_and_what_is_too_long(base_of: Callable[[str], Path], tmp_path: Path):
    template = Template("the {text} it", ("bad", "good", "cat"))
    subject = moved(fresh(str(base_of("gpt2")), Lora(2), CLASSES, template=template, max_length=14, device="cpu"))
    check(adapted("confounding", subject, *files.adapter_of(subject), {"describe": "The same."}), subject, tmp_path)
    done = run(tmp_path / "remedy", "good cat " * 20)
    assert done.returncode == 1
    assert "A prompt has more than 14 tokens; shorten this text" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_embedded_base_is_asked_for(base_of: Callable[[str], Path], tmp_path: Path):
    subject = fresh(str(base_of("bert")), Lora(2), CLASSES, max_length=14, device="cpu")
    about = facts(subject) | {"base": "embedded:minilm"}
    text = predict_script.script(about, CLASSES, load="pass", inputs="inputs = {}", read="label = confidence = 0")
    ast.parse(text)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "predict.py").write_text(text)
    done = run(tmp_path / "x", "a text")
    assert done.returncode == 1
    assert "Name it with --base" in done.stderr
    assert 'trueup.fetch("embedded:minilm")' in predict_script.usage("x", about)


@pytest.mark.parametrize("name", ['"', "\\", "a\nb", "`" * 3, "\u202eb", "{0}", "'''", '"""'])
def test_a_class_name_is_a_literal_whatever_it_holds(name: str):
    about = {"base": name, "max_length": 8, "shape": {"text": "x"}}
    text = predict_script.script(about, (name, "b"), load="pass", inputs="inputs = 0", read="label = confidence = 0")
    found = {t.id: ast.literal_eval(n.value) for n in ast.parse(text).body if isinstance(n, ast.Assign)
             for t in n.targets if isinstance(t, ast.Name) and t.id in ("BASE", "CLASSES")}  # fmt: skip
    assert found == {"BASE": name, "CLASSES": [name, "b"]}


def test_without_a_gain_nothing_is_certified(base_of: Callable[[str], Path], tmp_path: Path):
    from dataclasses import replace

    from trueup.faults.fault import Comparison, Difference, Finding

    subject = moved(fresh(str(base_of("bert")), Lora(2), CLASSES, max_length=14, device="cpu"))
    about = {"describe": "It says.", "promise": "With 95% certainty.", "delta": 0.05, "abstention": [
        {"risk": 0.1, "threshold": 0.9, "coverage": 0.5, "accepted": 50, "of": 100}]}  # fmt: skip
    remedy = confidence_head(
        subject, with_rows(subject, None), Calibrated(ResponseLogOdds(3), 0.5, 0.0), facts(subject) | about
    )
    found = Finding("overconfidence", "share", 0.1, 0.05, 0.15, 0.02, "Found.")
    same = Comparison(found, found, "It says.", {"severity": Difference(0.0, -0.1, 0.1, 0.9)})
    card = (remedy.save(tmp_path / "kept", same) / "README.md").read_text()
    assert "certainty" not in card
    assert "When to trust it" not in card
    assert "abstention" not in (tmp_path / "kept" / "trueup.json").read_text()
    gained = replace(same, differences={"severity": Difference(-0.1, -0.2, -0.05, 0.001)})
    card = (remedy.save(tmp_path / "gained", gained) / "README.md").read_text()
    assert "With 95% certainty." in card
    assert "When to trust it" in card
