"""Rigidity through the command line: found, repaired, and refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_cases import Said, trueup, write_csv

from trueup.faults.rigidity import planted as P
from trueup.store import atomic
from trueup.subject.adapter import save_tuned
from trueup.subject.beside import CARD

QUICK = [word for k, v in (P.QUICK | {"resamples": 100}).items() for word in ("--set", f"rigidity.{k}={v}")]


@pytest.fixture(scope="module")
def sick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base``, its ``prompt`` as an adapter, and ``data.csv``."""
    folder = tmp_path_factory.mktemp("rigidity")
    (folder / "base").symlink_to(P._base())
    subject, corpus = P.planted("planted")
    (folder / "prompt").mkdir()
    save_tuned(subject, folder / "prompt")
    atomic.write_json(folder / "prompt" / CARD, {"classes": list(corpus.classes), "max_length": 32})
    names = [corpus.classes[y] for y in corpus.label]
    write_csv(folder / "data.csv", zip(corpus.text, names, corpus.split, strict=True), ("text", "label", "part"))
    return folder


def words(sick: Path, *more: object, adapter: bool = True) -> list[object]:
    worn = ["--adapter", sick / "prompt"] if adapter else []
    return ["check", sick / "base", *worn, "--data", sick / "data.csv", "--split", "part", *more]


@pytest.fixture(scope="module")
def done(sick: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    out = tmp_path_factory.mktemp("done") / "out"
    return out, trueup(*words(sick, "--fault", "rigidity", *QUICK, "-o", out))


def test_a_check_finds_and_repairs(done: tuple[Path, Said]) -> None:
    out, said = done
    assert (said.err, said.code) == ("", 1)
    told = json.loads((out / "findings.json").read_text())
    (comparison,) = told["comparisons"]
    assert comparison["before"]["details"]["verdict"] == "weights needed"
    assert comparison["after"]["severity"] < comparison["before"]["severity"] / 2
    assert comparison["differences"]["severity"]["high"] < 0
    assert json.loads((out / "rigidity" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert "learnt" not in comparison["before"]["provenance"]["knobs"]
    page = (out / "report.html").read_text()
    assert "Attention on the prompt" in page
    assert "what this prompt says" in page


def test_it_is_examined_on_request_and_a_note_says_so(sick: Path, tmp_path: Path) -> None:
    said = trueup(*words(sick, "--set", "overconfidence.resamples=50", "-o", tmp_path / "out"))
    told = json.loads((tmp_path / "out" / "findings.json").read_text())
    assert "rigidity" not in [c["before"]["fault"] for c in told["comparisons"]]
    assert any("--fault rigidity" in n for n in told["notes"])
    assert said.code in (0, 1)


@pytest.mark.parametrize(
    ("more", "adapter", "sentence"),
    [
        ((), False, "no classification head"),
        (
            ("--template", "{text}", "--verbaliser", "good,bad", "--classes", "yes,no"),
            False,
            "no adapter, so there is nothing to examine",
        ),
        (("--set", "rigidity.tries=0"), True, "rigidity.tries is 0"),
        (("--set", "rigidity.learnt=1"), True, "no setting 'learnt'"),
    ],
)
def test_refused_in_a_sentence(sick: Path, tmp_path: Path, more: tuple, adapter: bool, sentence: str) -> None:
    said = trueup(*words(sick, "--fault", "rigidity", *more, "-o", tmp_path / "out", adapter=adapter))
    assert said.code == 2
    assert sentence in said.err
    assert "Traceback" not in said.err
    assert not (tmp_path / "out").exists()
