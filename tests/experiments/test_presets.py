"""The experiments that ship as sweeps: each can be read, and says what it would do without a hub or a network."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from trueup.cli import main
from trueup.cli.bench import Preset
from trueup.experiments import keys
from trueup.experiments.presets import HEADLINES, file_of
from trueup.sweeps.plan import cells_of


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRUEUP_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("size", list(Preset))
@pytest.mark.parametrize("name", HEADLINES)
def test_a_preset_is_a_sweep_over_seeds_or_tasks(name, size):
    cells = cells_of(file_of(name, size, make=False))
    assert len(cells) >= 3
    assert {c.steps[-1] for c in cells} == {"methods"}
    assert {tuple(c.settings["faults"]) for c in cells} == {(name,)}
    hubs = {c.settings["model"] for c in cells if not str(c.settings["model"]).startswith("embedded:")}
    assert (len(hubs) > 1) == (size == "paper")


def test_the_papers_copying_is_of_18_tasks():
    tasks = {c.settings["data"] for c in cells_of(file_of("copying", "paper", make=False))}
    assert len(tasks) == 18
    assert all(t.startswith("task:") for t in tasks)


@pytest.mark.parametrize("name", HEADLINES)
def test_the_papers_cells_are_listed_without_a_hub(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SystemExit) as end:
        main(["bench", name, "--preset", "paper", "--list", "-o", str(tmp_path / "out")])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert f"{len(cells_of(file_of(name, 'paper', make=False)))} cells" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["examples", "representation"])
def test_what_is_checked_and_repeats_no_paper(name, tmp_path, capsys):
    cells = cells_of(file_of(name, "small", make=False))
    assert {c.steps for c in cells} == {("tune", "check")}
    assert len({(tuple(c.settings["faults"]), c.settings["seed"]) for c in cells}) > 1
    with pytest.raises(SystemExit) as end:
        main(["bench", name, "--preset", "paper", "--list", "-o", str(tmp_path / "out")])
    assert end.value.code == 2
    assert "no preset 'paper'" in capsys.readouterr().err


def test_what_a_preset_makes_is_there_when_it_is_listed(tmp_path, capsys):
    """Texts that the next run would make are no reason to call a cell unusable."""
    for _ in range(2):
        with pytest.raises(SystemExit) as end:
            main(["bench", "examples", "--list", "-o", str(tmp_path / "out")])
        assert end.value.code == 0
    said = capsys.readouterr().out
    assert said.count("Making recall.csv") == 1
    recall = next(line for line in said.splitlines() if line.endswith("rigidity_recall"))
    assert recall.startswith("to do")


def test_the_mamba_is_made_once_and_whole(tmp_path, monkeypatch):
    made = []
    real = keys.trained
    monkeypatch.setattr(keys, "trained", lambda: made.append(1) or real(steps=2))
    for _ in range(2):
        keys.make(tmp_path / "it")
    assert made == [1]
    assert (tmp_path / "it" / "mamba" / "config.json").is_file()
    from trueup.corpus.read import read

    corpus = read(tmp_path / "it" / "keys.csv", split="split", answers=True)
    assert {p: int((corpus.split == p).sum()) for p in keys.SPLIT} == keys.SPLIT
    answer = {t.rsplit("key", 1)[1]: corpus.classes[y] for t, y in zip(corpus.text, corpus.label, strict=True)}
    assert all(a == keys.ANSWERS[int(k) % len(keys.ANSWERS)] for k, a in answer.items()), "a key has one answer"
    assert len(set(corpus.text)) == len(corpus) == keys.PAIRS
    assert np.diff([keys.known(k) for k in range(len(keys.KEYS))]).min() > 0


def test_a_killed_making_leaves_nothing(tmp_path, monkeypatch):
    def killed():
        raise KeyboardInterrupt

    monkeypatch.setattr(keys, "trained", killed)
    with pytest.raises(KeyboardInterrupt):
        keys.make(tmp_path / "it")
    assert not (tmp_path / "it").exists()


def test_a_slip_in_the_preset_is_a_sentence(capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "captum", raising=False)  # another test may have read it
    with pytest.raises(SystemExit) as end:
        main(["bench", "copying", "--preset", "smal", "-o", "out"])
    assert end.value.code == 2
    assert "small" in capsys.readouterr().err
    assert "captum" not in sys.modules
