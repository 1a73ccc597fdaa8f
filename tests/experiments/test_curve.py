"""Accuracy against trained numbers: the planted task needs another attention pattern, and its curve says so."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from trueup.errors import BadInput
from trueup.experiments import animals, curve
from trueup.faults.rigidity.contest import UNEQUAL
from trueup.faults.rigidity.planted import _base, planted

SETTINGS = {"model": None, "tasks": ("planted",), "sizes": (384,), "seeds": 2, "epochs": 8}


@pytest.fixture
def task(monkeypatch):
    made = {case: planted(case)[1] for case in ("planted", "healthy")}
    monkeypatch.setattr(curve, "corpus_of", lambda task, settings: made[task])
    monkeypatch.setattr(curve, "TRIES", 1)
    return curve.Settings(**SETTINGS | {"model": str(_base()), "tasks": ("planted", "healthy")})


def test_weights_are_ahead_where_attention_has_to_change_and_nowhere_else(task, tmp_path):
    got = curve.run(tmp_path / "out", task, say=lambda s: None)
    rows = {r["task"]: r for r in got["rows"]}
    assert rows["planted"]["gaps"]["query-key LoRA"][1] > 0.1
    assert rows["healthy"]["gaps"]["weights"][1] < 0.03, "the control: a prompt can do it"
    for row in rows.values():
        for entrant in row["entrants"].values():
            assert max(entrant["numbers"] / 384, 384 / entrant["numbers"]) <= UNEQUAL
            assert entrant["seeds"] == 2
    assert json.loads((tmp_path / "out" / "curve.json").read_text())["rows"] == got["rows"]


def test_the_gap_is_between_the_kinds_that_calibration_prefers():
    right = {
        "prompt": [[1, 0] * 50],
        "prefix": [[1] * 100],
        "query-key LoRA": [[1] * 100],
        "value-MLP LoRA": [[0] * 100],
    }
    nll = {"prompt": 0.1, "prefix": 0.9, "query-key LoRA": 0.2, "value-MLP LoRA": 0.3}
    entrants = {k: {"right": r * 2, "nll": nll[k], "growing": False} for k, r in right.items()}
    got = curve.judged(entrants, np.arange(100))
    assert got["gaps"]["weights"][0] == 0.5, "the prefix is better on test, and calibration chose the prompt"
    assert got["gaps"]["value-MLP LoRA"][0] == -0.5
    assert got["gaps"]["weights"][1] > 0.3
    assert "right" not in got["entrants"]["prompt"]
    alone = curve.judged({"query-key LoRA": entrants["query-key LoRA"]}, np.arange(100))
    assert alone["gaps"] == {}, "no prompt to be held against"


def test_only_the_text_tells_the_answer_of_recall():
    corpus = animals.recall({"train": 1500, "calibration": 300, "test": 600})
    assert len(set(corpus.text)) == 2400
    for text, y in zip(corpus.text, corpus.label, strict=True):
        colour = re.search(r"(\w+)\?$", text)[1]
        assert f"{colour} {animals.ANIMALS[y]} " in text
        assert sum(f" {animal} " in f" {text}" for animal in animals.ANIMALS) == animals.TOLD
    asked = np.array([animals.COLOURS.index(re.search(r"(\w+)\?$", t)[1]) for t in corpus.text])
    for c in range(4):  # neither the asked colour nor the place in the text gives the animal away
        shares = np.bincount(corpus.label[asked == c], minlength=4) / (asked == c).sum()
        assert shares.max() < 0.32


def test_settings_that_compare_nothing_are_told():
    for wrong in ({"tasks": ()}, {"sizes": ()}, {"sizes": (0,)}, {"seeds": 1}):
        with pytest.raises(BadInput, match="two seeds or more"):
            curve.Settings(**wrong)


def test_the_table_has_a_line_for_each_task_and_size():
    kinds = curve.KINDS[:3]
    entrants = {k: {"right": [[1, 0, 1, 1]] * 2, "nll": 0.1, "growing": k == "prompt", "numbers": 100} for k in kinds}
    tasks = ["recall", "embedded:x"]
    rows = [
        {"task": t, "size": s, "test": 4} | curve.judged(entrants, np.arange(4)) for s in (100, 4000) for t in tasks
    ]
    settings = {"tasks": tasks, "model": "embedded:m", "train": 8, "max_length": 24, "seeds": 2}
    text = curve.table({"rows": rows, "settings": settings})
    body = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    assert [line[:2] for line in body] == [
        ["| recall", "100"], ["| recall", "4,000"], ["| x", "100"], ["| x", "4,000"]
    ]  # fmt: skip
    assert body[0][2].startswith("75.0%")
    assert body[0][2].endswith("*"), "still improving"
    assert not body[0][3].endswith("*")
    assert body[0][5] == "", "no value-MLP LoRA of that size"
