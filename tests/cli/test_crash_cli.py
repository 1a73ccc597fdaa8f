"""A crash of one fault, of any kind, costs no other fault its finding, and the exit code says that there was one."""

from __future__ import annotations

import csv
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_cases import FAST, Said, trueup

from trueup.faults.confounding import Confounding
from trueup.faults.fault import NoRemedy
from trueup.faults.overconfidence import Overconfidence
from trueup.report import bundle


class PanicException(BaseException):
    """No Exception, like pyo3's own."""


@pytest.fixture(scope="module")
def data(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world's reviews with a site drawn by dice."""
    file, rng = tmp_path_factory.mktemp("sites") / "data.csv", np.random.default_rng(0)
    with open(world / "data.csv", newline="") as f:
        rows = [{**r, "site": str(rng.integers(2))} for r in csv.DictReader(f)]
    with open(file, "w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


def check(world: Path, data: Path, out: Path, *more: object) -> Said:
    quick = ("--set", "confounding.resamples=20")
    return trueup(
        "check", world / "bert", "--adapter", world / "adapter", "--data", data, "--confounder", "site", "-o", out,
        *FAST, *quick, *more,
    )  # fmt: skip


def crashing(error: BaseException) -> Any:
    def crash(*_: Any, **__: Any) -> Any:
        raise error

    return crash


@pytest.mark.parametrize(
    "error",
    [ValueError("too many values"), KeyError("x"), tarfile.ReadError("odd"), PanicException("index out of range")],
)
@pytest.mark.parametrize("place", ["prepared", "audit", "examples"])
def test_a_crash_of_one_audit_leaves_the_others(
    place: str, error: BaseException, world: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Confounding, place, crashing(error))
    monkeypatch.setattr(Overconfidence, "repair", lambda *_, **__: NoRemedy("not now"))
    said = check(world, data, tmp_path / "out")
    assert said.code == 3, said.err
    report = bundle.read(tmp_path / "out")
    assert [c.before.fault for c in report.comparisons] == ["overconfidence"]
    (note,) = [n for n in report.notes if n.startswith("confounding was not examined: trueup crashed there (")]
    assert type(error).__name__ in note
    assert "crash-confounding.txt" in note
    told = (tmp_path / "out" / "crash-confounding.txt").read_text()
    assert told.startswith("Traceback (most recent call last)")
    assert type(error).__name__ in told
    assert report.crashes == {"confounding": told}
    assert "crash-confounding.txt in the output folder" in said.err
    assert trueup("report", tmp_path / "out").code == 3


@pytest.mark.parametrize("place", ["repair", "compare", "harm", "null"])
def test_a_crash_of_a_repair_leaves_its_finding_and_the_others(
    place: str, world: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Overconfidence, place, crashing(ZeroDivisionError("division by zero")))
    monkeypatch.setattr(Confounding, "repair", lambda *_, **__: NoRemedy("not now"))
    said = check(world, data, tmp_path / "out")
    assert said.code == 3, said.err
    found = json.loads((tmp_path / "out" / "findings.json").read_text())
    by_fault = {c["before"]["fault"]: c for c in found["comparisons"]}
    assert set(by_fault) == {"confounding", "overconfidence"}
    assert "ZeroDivisionError: division by zero" in by_fault["overconfidence"]["remedy"]
    assert by_fault["overconfidence"]["after"] is None
    assert not (tmp_path / "out" / "overconfidence").exists()


def test_a_crash_of_the_only_fault_is_a_crash(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Overconfidence, "audit", crashing(PanicException("called `Option::unwrap()`")))
    said = trueup(
        "check",
        world / "bert",
        "--adapter",
        world / "adapter",
        "--data",
        world / "data.csv",
        "-o",
        tmp_path / "out",
        *FAST,
    )
    assert said.code == 3
    assert "PanicException" in said.err
    assert not (tmp_path / "out").exists()


def test_an_interrupt_is_no_crash(world: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Confounding, "audit", crashing(KeyboardInterrupt()))
    assert check(world, data, tmp_path / "out").code == 130
    assert not (tmp_path / "out").exists()


def test_memory_that_runs_out_in_one_fault_is_a_sentence(
    world: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Confounding, "audit", crashing(MemoryError()))
    monkeypatch.setattr(Overconfidence, "repair", lambda *_, **__: NoRemedy("not now"))
    said = check(world, data, tmp_path / "out")
    assert said.code in (1, 2)
    report = bundle.read(tmp_path / "out")
    assert any(n.startswith("confounding was not examined: Memory ran out.") for n in report.notes)
    assert not report.crashes


def test_a_crash_that_leaves_the_model_changed_ends_the_run(
    world: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def crash(self: Any, subject: Any, *_: Any, **__: Any) -> Any:
        subject.model.register_forward_hook(lambda *_: None)
        raise ValueError("half way")

    monkeypatch.setattr(Confounding, "audit", crash)
    said = check(world, data, tmp_path / "out")
    assert said.code == 3
    assert "half way" in said.err
    assert not (tmp_path / "out").exists()
