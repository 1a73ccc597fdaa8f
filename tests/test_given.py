"""A wrong type in Python is a sentence that names the argument, at every public function, and not a traceback."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

import trueup
from trueup.errors import BadInput, OutOfMemory, TrueupError, out_of_memory
from trueup.given import checked

FRAME = pd.DataFrame({"text": ["a", "b"], "label": ["x", "y"]})
VALUES: dict[str, Any] = {
    "a whole number": 3, "a negative number": -1, "a fraction": 0.5, "a word": "no:such", "a list": ["a", "b"], "a dict": {"a": 1},
    "a frame": FRAME, "a number of numpy": np.float32(0.3), "an array": np.arange(3), "bytes": b"x", "an object": object(),
    "None": None, "True": True, "nan": float("nan"), "a path": Path("./none"), "a tuple": (1, 2), "a set": {1},
}  # fmt: skip
NOTHING: dict[str, Any] = {"model": "embedded:nope", "data": FRAME}
PUBLIC: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "load": (trueup.load, {"model": "embedded:nope"}),
    "read": (trueup.read, {"source": FRAME}),
    "check": (trueup.check, NOTHING),
    "audit": (trueup.audit, NOTHING),
    "repair": (trueup.repair, {**NOTHING, "fault": "overconfidence"}),
    "scout": (trueup.scout, NOTHING),
    "compare": (trueup.compare, {"old": "none", "new": "none"}),
    "export": (trueup.export, {"repair": "none", "form": "merged", "out": "out"}),
    "fetch": (trueup.fetch, {"name": "embedded:nope"}),
    "sweep": (trueup.sweep, {"file": "none.yaml", "out": "out"}),
    "run_job": (trueup.run_job, {"job": trueup.Job("embedded:nope", "none.csv"), "out": "out"}),
    "run_scout": (trueup.run_scout, {"job": trueup.Job("embedded:nope", "none.csv"), "out": "out"}),
    "tune": (trueup.tune, {"job": None, "out": "out"}),
    "faults_of": (trueup.faults_of, {}),
    "Guard.read": (trueup.Guard.read, {"folder": "none"}),
    "Report.open": (trueup.Report.open, {"folder": "none"}),
    "Overconfidence": (trueup.Overconfidence, {}),
    "Confounding": (trueup.Confounding, {}),
    "Copying": (trueup.Copying, {}),
    "Rigidity": (trueup.Rigidity, {}),
    "Processes": (trueup.Processes, {"workers": 1}),
    "Ray": (trueup.Ray, {}),
    "Job": (trueup.Job, {"model": "m", "data": "d"}),
    "TuneJob": (trueup.TuneJob, {"model": "m", "data": "d", "recipe": None}),
}


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA: 2 GiB"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
    ids=["Python", "torch", "torch's words"],
)  # fmt: skip
def test_memory_that_runs_out_is_one_error_whatever_it_is_called(error: Exception) -> None:
    def fails() -> None:
        raise error

    with pytest.raises(OutOfMemory, match=r"Lower --max-length or --limit") as caught:
        checked(fails)()
    assert caught.value.__cause__ is error
    assert out_of_memory(caught.value)


def test_another_error_stays_what_it_is() -> None:
    def fails() -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        checked(fails)()


@pytest.mark.parametrize("name", PUBLIC)
def test_no_value_of_any_argument_is_a_traceback(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    function, given = PUBLIC[name]
    refused = 0
    for argument in inspect.signature(function).parameters:
        if argument in ("progress", "told", "note", "options"):
            continue
        for what, value in VALUES.items():
            try:
                function(**{**given, argument: value})
            except TrueupError:
                refused += 1
            except Exception as e:
                pytest.fail(f"{name}({argument}={what}) raised {type(e).__name__}: {e}")
    assert refused > 10
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: trueup.check("m", FRAME, confonder="site"), "no argument 'confonder'. Did you mean 'confounder'?"),
        (lambda: trueup.audit("m", FRAME, confonder="site"), "no argument 'confonder'. Did you mean 'confounder'?"),
        (lambda: trueup.audit("m", FRAME, repair=True), "trueup.audit has no argument 'repair'"),
        (lambda: trueup.repair("m", FRAME, "copying", repair=False), "trueup.repair has no argument 'repair'"),
        (lambda: trueup.repair("m", FRAME), r"trueup.repair: missing .* 'fault'.*\(model, data, fault, adapter, "),
        (lambda: trueup.TuneJob("m", "d", "lora"), r"'recipe' is 'lora' \(str\).* trueup.subject.kinds .*'Lora\(\)'"),  # type: ignore[arg-type]
        (lambda: trueup.load("m", shots="four"), r"'shots' is 'four' \(str\), which is not a whole number or None"),
        (lambda: trueup.read(FRAME, text=3), r"'text' is 3 \(int\), which is not a word"),
        (lambda: trueup.read(), "missing a required argument: 'source'"),
        (lambda: trueup.Report.open(FRAME), "which is not a word or a path"),
        (lambda: trueup.run_job("job", "out"), r"'job' is 'job' \(str\), which is not a trueup.Job"),
        (lambda: trueup.Overconfidence(threshold="0.1"), r"overconfidence.threshold is a number, such as 0.02, but '0.1'"),
        (lambda: trueup.Confounding(attribute=None), "confounding.attribute is a word"),
        (lambda: trueup.Rigidity(epochs=2.5), "rigidity.epochs is a whole number"),
        (lambda: trueup.Processes("two"), r"'workers' is 'two' \(str\), which is not a whole number"),
    ],
)  # fmt: skip
def test_the_sentence_says_what_was_given_and_what_is_needed(call: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        call()


def test_what_fits_is_kept_and_arrays_of_names_are_lists() -> None:
    @checked
    def names(of: str | list[str], classes: Any = None, count: int = 0) -> Any:
        return of, classes, count

    assert names("a", count=np.int64(3)) == ("a", None, 3)  # type: ignore[arg-type]
    got = trueup.Job("m", "d", classes=np.array(["b", "a"]), confounder=["site"], limit=np.int64(5))  # type: ignore[arg-type]
    assert (got.classes, got.confounder, got.limit) == (("b", "a"), ("site",), 5)
    several = [
        ("b", "a"),
        np.array(["b", "a"]),
        pd.Series(["b", "a"]),
        pl.Series(["b", "a"]),
        {0: "b", 1: "a"}.values(),
        {"b": 0, "a": 1}.keys(),
    ]
    for given in several:
        assert trueup.Job("m", "d", classes=given).classes == ("b", "a")  # type: ignore[arg-type]
    assert trueup.Overconfidence(threshold=np.float64(0.5), folds=np.int64(3)) == trueup.Overconfidence(
        threshold=0.5, folds=3
    )
    assert inspect.signature(trueup.load).parameters["shots"].annotation == "int | None"
    assert "limit" in inspect.signature(trueup.audit).parameters
