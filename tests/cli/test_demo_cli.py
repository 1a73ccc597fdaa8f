"""The demo hides the shortcut that it says, and the commands it prints do what it did."""

from __future__ import annotations

import csv
import shlex
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from cli_cases import CLASSES, reviews, trueup

from trueup import demo
from trueup.corpus.corpus import Corpus

SOURCES = ("imdb", "rotten_tomatoes")


@pytest.fixture
def small(world: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The demo on a tiny base and made-up reviews of two sources, each told by a word of its own."""
    rng = np.random.default_rng(0)
    rows = [(text, label, SOURCES[int(rng.integers(2))]) for text, label in reviews(6000)]
    texts = [f"{'calm' if source == 'imdb' else 'loud'} {text} {i}" for i, (text, _, source) in enumerate(rows)]
    corpus = Corpus(
        texts, np.array([CLASSES.index(label) for _, label, _ in rows]), CLASSES, np.array(["test"] * len(rows)),
        attributes={demo.COLUMN: np.array([source for *_, source in rows])},
    )  # fmt: skip
    monkeypatch.setattr(demo, "read", lambda *_, **__: corpus)
    monkeypatch.setattr(demo, "MODEL", str(world / "bert"))
    monkeypatch.setattr(demo, "TRAINING", {"lr": 0.01, "epochs": 4})
    return here


def test_what_it_prints_does_what_it_did(small: Path) -> None:
    said = trueup("demo", "-o", "shown here", "--texts", 2000)
    assert said.code == 0, said.err
    with open("shown here/data/reviews.csv", encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    cells = Counter((r["source"], r["label"]) for r in rows)
    assert sum(cells.values()) == 2000
    assert cells == {
        (SOURCES[0], "positive"): 250, (SOURCES[0], "negative"): 750,
        (SOURCES[1], "positive"): 750, (SOURCES[1], "negative"): 250,
    }  # fmt: skip
    assert "Confounding" in said.out
    assert "Overconfidence" in said.out
    tune, check, onward = (line.strip() for line in said.out.splitlines() if line.strip().startswith("trueup "))
    for command, made, same in ((tune, "adapter", "adapter"), (check, "report", "report/confounding")):
        *words, flag, out = shlex.split(command)[1:]
        assert (flag, out) == ("-o", f"shown here/{made}")
        again = trueup(*words, "-o", f"by-hand/{made}")
        assert again.code in (0, 1), again.err
        weights = "adapter_model.safetensors"
        assert Path(f"by-hand/{same}/{weights}").read_bytes() == Path(f"shown here/{same}/{weights}").read_bytes()
    went_on = trueup(*shlex.split(onward)[1:])
    assert went_on.code in (0, 1), went_on.err
    assert "Overconfidence" in went_on.out


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_demo_that_was_stopped_goes_on(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in ("tune", "run_job"):
        with monkeypatch.context() as patched:
            patched.setattr(demo, step, interrupted)
            assert trueup("demo", "-o", "shown", "--texts", 2000).code == 130
    assert {p.name for p in Path("shown").iterdir()} == {"data", "adapter"}
    kept = Path("shown/adapter/adapter_model.safetensors").stat().st_mtime_ns
    with monkeypatch.context() as patched:
        patched.setattr(demo, "tune", interrupted)
        said = trueup("demo", "-o", "shown", "--texts", 2000)
    assert said.code == 0, said.err
    assert "there already" in said.out
    assert Path("shown/adapter/adapter_model.safetensors").stat().st_mtime_ns == kept
    assert Path("shown/report/report.html").is_file()
    done = trueup("demo", "-o", "shown", "--texts", 2000)
    assert done.code == 2
    assert "not empty" in done.err


@pytest.mark.parametrize("other", ["texts", "adapter"])
def test_another_demo_is_not_gone_on_with(other: str, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of other texts, its data are not these; with a damaged adapter, the adapter is made again."""
    with monkeypatch.context() as patched:
        patched.setattr(demo, "run_job", interrupted)
        assert trueup("demo", "-o", "shown", "--texts", 2000).code == 130
    if other == "texts":
        said = trueup("demo", "-o", "shown", "--texts", 1500)
        assert said.code == 2
        assert "not empty" in said.err
        assert len(Path("shown/data/reviews.csv").read_text(encoding="utf-8").splitlines()) == 2001
        return
    Path("shown/adapter/adapter_model.safetensors").write_bytes(b"")
    said = trueup("demo", "-o", "shown", "--texts", 2000)
    assert said.code == 0, said.err
    assert "there already" not in said.out


def test_too_many_reviews_are_refused_before_anything_is_written(small: Path) -> None:
    said = trueup("demo", "-o", "shown", "--texts", 100000)
    assert said.code == 2
    assert "can be drawn" in said.err
    assert not Path("shown").exists()


def test_a_folder_with_something_in_it_is_left_alone(small: Path) -> None:
    Path("mine/data").mkdir(parents=True)
    Path("mine/data/precious.txt").write_text("mine")
    said = trueup("demo", "-o", "mine", "--texts", 2000)
    assert said.code == 2
    assert "exists and is not empty" in said.err
    assert "--force" in said.err
    assert [p.name for p in Path("mine").rglob("*.*")] == ["precious.txt"]
