"""`trueup bench`: a whole tiny run, and what cannot be run."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_cases import trueup


def test_bench_prints_and_writes_its_table(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trueup.experiments import rigidity

    for name, n in (("TRAIN", 500), ("VALIDATION", 32), ("TEST", 32)):
        monkeypatch.setattr(rigidity, name, n)
    words = ("bench", "rigidity", "--seeds", 1, "--width", 8, "--steps", 0.001, "-o", "out")
    said = trueup(*words)
    assert said.code == 0, said.err
    assert {p.name for p in (here / "out").iterdir()} == {"manifest.json", "rigidity.json", "rigidity.md"}
    assert (here / "out" / "rigidity.md").read_text().strip() in said.out
    assert "| 4 | 4 x 4 heads, width 8 | double histogram | LoRA of MLP, rank 1 | 320 | 92.4% |" in said.out
    taken = trueup(*words)
    assert (taken.code, taken.out) == (2, "")
    assert "--force" in taken.err


def test_one_experiment_is_run_as_published(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trueup.experiments import rigidity

    for name, n in (("VALIDATION", 32), ("TEST", 32)):
        monkeypatch.setattr(rigidity, name, n)
    said = trueup("bench", "rigidity", "--paper", "--only", 1, "--seeds", 1, "--steps", 0.0001, "-o", "out")
    assert said.code == 0, said.err
    table = (here / "out" / "rigidity.md").read_text()
    assert "as published" in table.splitlines()[0]
    assert "| 1 | 1 x 1 heads, width 96 | descending | prefix, 1 slot | 96 | 0.0% |" in table
    assert sum(line.startswith("| 1 |") for line in table.splitlines()) == 4


def test_the_verdicts_of_one_fault_are_put_to_the_test(here: Path) -> None:
    words = ("bench", "verdicts", "--fault", "rigidity", "--runs", 3, "--sizes", "60", "-o", "out")
    said = trueup(*words)
    assert said.code == 0, said.err
    assert {p.name for p in (here / "out").iterdir()} == {"manifest.json", "verdicts.json", "verdicts.md"}
    assert (here / "out" / "verdicts.md").read_text().strip() in said.out
    assert "| rigidity | equal, no seed noise | 0% / " in said.out
    assert "copying" not in said.out


def test_speed_that_is_not_equal_is_an_error(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trueup.experiments import speed

    for difference, code in ((0.0, 0), (1.0, 3)):
        row = speed.Row("a sum", "one by one", 2.0, "at once", 1.0, difference)
        monkeypatch.setattr(speed, "CASES", {"sum": (lambda row=row: iter([row]),)})
        said = trueup("bench", "speed", "-o", f"out{code}")
        assert said.code == code, said.err
        assert ("the results differ, so there is no ratio: a sum" in said.err) == bool(code)
        assert ("2 x" in said.out) == (not code)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("bench", "speed", "--only", "head", "-o", "out"), "Did you mean 'heads'?"),
        (("bench", "transfer", "--source", "first-of-lists", "-o", "out"), "Did you mean 'first-of-list'?"),
        (("bench", "transfer", "--model", "embedded:smolm2", "-o", "out"), "Did you mean 'smollm2'?"),
        (("bench", "curve", "--task", "embedded:tweet", "-o", "out"), "Did you mean 'tweets'?"),
        (("bench", "curve", "--model", "embedded:minlm", "-o", "out"), "Did you mean 'minilm'?"),
        (("bench", "curve", "--seeds", 1, "-o", "out"), "--seeds"),
        (("bench", "examples", "--preset", "paper", "-o", "out"), "no preset 'paper'"),
        (("bench", "rigidty", "-o", "out"), "rigidity"),
        (("bench", "verdicts", "--sizes", "60,many", "-o", "out"), "--sizes 60,0"),
        (("bench", "verdicts", "--sizes", "20", "-o", "out"), "fewer clusters decide nothing"),
        (("bench", "verdicts", "--fault", "rigidty", "-o", "out"), "Did you mean 'rigidity'?"),
        (("bench", "verdicts", "--runs", 0, "-o", "out"), "--runs"),
        (("bench", "rigidity", "--seeds", 0, "-o", "out"), "--seeds"),
        (("bench", "rigidity", "--steps", 0, "-o", "out"), "--steps"),
        (
            ("bench", "rigidity", "--only", 5, "-o", "out"),
            "There is no experiment 5. Give --only with one of 1, 2, 3, 4.",
        ),
        (("bench", "rigidity"), "--out"),
    ],
)
def test_what_cannot_be_run_is_one_sentence(words: tuple[object, ...], sentence: str, here: Path) -> None:
    said = trueup(*words)
    assert said.code == 2
    assert sentence in said.err
    assert "Traceback" not in said.err
    assert said.err.count("\n") == 1
    assert list(here.iterdir()) == []
