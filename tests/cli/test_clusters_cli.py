"""`--cluster`, `--allow-leak` and `--fail-on` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from cli_cases import FAST, audit_words, reviews, trueup, write_csv


def first(out: Path) -> dict:
    return json.loads((out / "findings.json").read_text())["comparisons"][0]["before"]


def authors(here: Path, number: int) -> Path:
    """1,200 reviews by `number` authors, in a random order."""
    by = np.random.default_rng(0).permutation(np.arange(1200) % number)
    rows = [(t, label, f"author {a}") for (t, label), a in zip(reviews(1200), by, strict=True)]
    return write_csv(here / f"{number}.csv", rows, ("text", "label", "author"))


def test_few_authors_decide_nothing_and_say_so(world: Path, here: Path) -> None:
    for number, decided in ((60, False), (600, True)):
        words = [*audit_words(world), "--data", authors(here, number), "--cluster", "author", "-o", f"out-{number}"]
        said = trueup(*words)
        assert said.err == ""
        told = first(here / f"out-{number}")
        assert (told["verdict"] == "found") == decided
        assert said.code == int(decided)
        if not decided:
            assert told["verdict"] == "undecided"
            assert "independent clusters" in told["doubt"]
            assert "Undecided" in said.out
            assert trueup("report", f"out-{number}", "--fail-on", "undecided").code == 1
        notes = json.loads((here / f"out-{number}" / "findings.json").read_text())["notes"]
        assert any(f"are {number:,} independent clusters" in n for n in notes)


def test_tuning_keeps_an_author_on_one_side_and_the_check_knows_it(world: Path, here: Path) -> None:
    data, tune = authors(here, 300), ["tune", "lora", world / "bert", "--epochs", 1, "--seed", 0]
    audit = ["audit", "overconfidence", world / "bert", "--data", data, *FAST, "--adapter"]

    def notes(out: str) -> str:
        return " ".join(json.loads((here / out / "findings.json").read_text())["notes"])

    assert trueup(*tune, "--data", data, "--cluster", "author", "-o", "parted").code == 0
    assert trueup(*audit, "parted", "-o", "out").code in (0, 1)
    told = json.loads((here / "out" / "findings.json").read_text())["provenance"]
    assert told["independent clusters of them"]["test"] < told["examples"]["test"] / 3
    assert "another split" not in notes("out")
    # The control: who tuned without the column has trained on rows of the authors that test.
    assert trueup(*tune, "--data", data, "-o", "mixed").code == 0
    assert trueup(*audit, "mixed", "--cluster", "author", "-o", "mixed-out").code in (0, 1)
    assert "another split" in notes("mixed-out")


def test_an_author_on_both_sides_of_a_given_split_is_refused_unless_it_is_allowed(world: Path, here: Path) -> None:
    parts = (["train"] * 3 + ["calibration"] + ["test"]) * 240
    rows = [
        (t, label, f"author {i % 400}", p) for i, ((t, label), p) in enumerate(zip(reviews(1200), parts, strict=True))
    ]
    data = write_csv(here / "data.csv", rows, ("text", "label", "author", "part"))
    words = [*audit_words(world), "--data", data, "--split", "part", "--seed", 0, "-o", "out"]
    assert trueup(*words).code in (0, 1), "the control: no text is in two parts"
    rows = [(*r[:2], f"author {i // 2}", r[3]) for i, r in enumerate(rows)]
    write_csv(here / "data.csv", rows, ("text", "label", "author", "part"))
    said = trueup(*words, "--cluster", "author", "--force")
    assert said.code == 2
    assert "lie in more than one of the given splits" in said.err
    assert "--allow-leak" in said.err
    assert trueup(*words, "--cluster", "author", "--allow-leak", "--force").code in (0, 1)


def test_a_cluster_column_that_is_not_there(world: Path, here: Path) -> None:
    words = [*audit_words(world), "--data", authors(here, 60), "-o", "out"]
    for column, says in (("auther", "Did you mean 'author'?"), ("text", "holds the texts or the labels")):
        said = trueup(*words, "--cluster", column)
        assert (said.code, said.err.count("\n")) == (2, 1)
        assert says in said.err
        assert not (here / "out").exists()
