"""One cell of a sweep: its steps, their results, and its record in ``cell.json``."""

from __future__ import annotations

import os
import platform
import shutil
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import trueup
from trueup.corpus.read import SHIPPED
from trueup.errors import BadInput, TrueupError, out_of_memory
from trueup.run import memory
from trueup.store import atomic, inputs
from trueup.sweeps.plan import READ, Cell

CELLS, PREVIOUS, RECORD = "cells", "previous", "cell.json"
ADAPTER, REPORT, CRASH = "adapter", "report", "crash.txt"
PACKAGES = ("torch", "transformers", "peft", "scikit-learn", "numpy", "scipy")

State = Literal["begun", "done", "failed"]


@dataclass(frozen=True)
class Record:
    """The contents of a cell's ``cell.json``.

    Attributes:
        name: name of the cell's folder. asked: its steps and settings. state: ``begun`` while it runs, and after it was killed.
        inputs: stamps of the files that it reads (`trueup.store.inputs.stamps`). version: of trueup. versions: of other packages.
        error: why it failed, as a sentence. crash: trueup itself failed, in the cell or in one of its faults.
        tuned: accuracies after training. seconds, cpu_seconds: time of the run that finished it. peak_bytes: the most memory
            that its process held. host: the machine on which it ran.
    """

    name: str
    asked: Mapping[str, Any]
    state: State = "begun"
    inputs: inputs.Stamps = field(default_factory=dict)
    version: str = trueup.__version__
    versions: Mapping[str, str] = field(default_factory=dict)
    error: str = ""
    crash: bool = False
    tuned: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    host: str = ""


def read(out: Path, name: str, within: str = CELLS) -> Record | None:
    """The record of a cell; None where it was never begun, or its record cannot be read. Unknown fields are ignored."""
    import json

    try:
        data = json.loads((out / within / name / RECORD).read_text(encoding="utf-8"))
        record = replace(Record(**{k: v for k, v in data.items() if k in Record.__dataclass_fields__}), name=name)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    mappings_ok = all(isinstance(m, dict) for m in (record.asked, record.inputs, record.versions, record.tuned))
    stamps_ok = mappings_ok and all(
        isinstance(s, list) and len(s) == 3 for f in record.inputs.values() for s in f.values()
    )
    return record if stamps_ok and record.state in ("begun", "done", "failed") else None


def finished(cell: Cell, folder: Path, record: Record | None, stamps: inputs.Stamps) -> bool:
    """Whether the cell needs no run: its record is current, no fault of it crashed, and its adapter and report are complete."""
    if record is None or record.state != "done" or record.crash or not current(record, cell, stamps):
        return False
    try:
        if cell.tuned:
            atomic.verify(folder / ADAPTER, contents=False)
        if cell.steps[-1] != "tune":
            atomic.verify(folder / REPORT, contents=False)
    except BadInput:
        return False
    return True


def stamps_of(cell: Cell) -> inputs.Stamps:
    """The stamps of the files that a cell reads."""
    return inputs.stamps([v for k in READ if (v := cell.settings.get(k)) is not None])


def current(record: Record | None, cell: Cell, stamps: inputs.Stamps) -> bool:
    """Whether a record is of this cell with its present steps and settings, by this version of trueup, from the same files."""
    return (
        record is not None
        and record.asked == cell.asked
        and record.version == trueup.__version__
        and inputs.same(record.inputs, stamps)
    )


def run(cell: Cell, out: Path) -> Record:
    """Run the steps of a cell that are not done, and write its record.

    A cell that was killed continues where it stopped. Results of another version, of other files or of other settings are moved to
    ``previous``, so that the page can show what changed. An error is written into the record and returned, not raised; an
    interrupt is raised.
    """
    try:
        return _run(cell, out)
    except OSError as e:
        problem = _unwritable(e.filename or str(out / CELLS / cell.name), e)
        return Record(cell.name, cell.asked, "failed", error=problem, host=platform.node())


def _run(cell: Cell, out: Path) -> Record:
    folder = out / CELLS / cell.name
    stamps, earlier = stamps_of(cell), read(out, cell.name)
    if finished(cell, folder, earlier, stamps):
        assert earlier is not None
        return earlier
    if not current(earlier, cell, stamps):
        aside(out, cell.name)
    elif earlier is not None and earlier.state == "done":  # a fault crashed, or a file is missing or damaged
        shutil.rmtree(folder / REPORT, ignore_errors=True)
        if cell.tuned and not (folder / ADAPTER / atomic.MANIFEST).is_file():
            shutil.rmtree(folder / ADAPTER, ignore_errors=True)
    record = Record(
        cell.name, cell.asked, inputs=stamps, versions={p: version(p) for p in PACKAGES} | {"python": platform.python_version()},
        host=platform.node(),
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CRASH).unlink(missing_ok=True)
    atomic.write_json(folder / RECORD, asdict(record))
    memory.reset_peak()
    start, cpu_start = time.perf_counter(), time.process_time()
    try:
        result = _steps(cell, folder, out)
    except Exception as e:
        result = _failed(e, folder)
    except BaseException as e:  # a panic of a library written in Rust is not an Exception
        if isinstance(e, KeyboardInterrupt | SystemExit | GeneratorExit):
            raise
        result = _failed(e, folder)
    record = replace(
        record, **result, seconds=round(time.perf_counter() - start, 3), cpu_seconds=round(time.process_time() - cpu_start, 3),
        peak_bytes=memory.peak(),
    )  # fmt: skip
    for leftover in folder.glob(".*.partial"):  # leftovers of a run that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    atomic.write_json(folder / RECORD, asdict(record))
    return record


def _steps(cell: Cell, folder: Path, out: Path) -> dict[str, Any]:
    from trueup.report import bundle
    from trueup.story import run_job
    from trueup.sweeps import cost
    from trueup.tuning import tune

    check(cell)
    cost.fits(cell)
    tuned: dict[str, float] = {}
    adapter = folder / ADAPTER
    if cell.tuned:
        if not adapter.is_dir():
            tune(cell.tune_job(), adapter)
        tuned = _training(adapter)
    job, report = cell.job(str(adapter)), folder / REPORT
    if job is None:
        return {"state": "done", "tuned": tuned}
    report_of_job = bundle.read(report) if report.is_dir() else run_job(job, report, bases=bases_of(out))
    return {"state": "done", "tuned": tuned, "crash": bool(report_of_job.crashes)}


def bases_of(out: Path) -> Path:
    """The folder of the passes that cells share, until the sweep is done."""
    return out / ".bases"


def _training(adapter: Path) -> dict[str, float]:
    from trueup.subject.beside import read_card

    tuned = read_card(adapter)["tuned"]
    best_epoch = tuned["history"]["best_epoch"]
    return {
        "test_accuracy": tuned["test_accuracy"],
        "validation_accuracy": tuned["history"]["validation_accuracy"][best_epoch],
    }


def check(cell: Cell) -> None:
    """Check all names in the settings of a cell before its first step, so that no training is spent on a check that cannot run.

    Raises:
        TrueupError: a file that the cell reads is not on this machine, or as `trueup.prepare.check_names`.
    """
    from trueup.prepare import check_names
    from trueup.tuning import check_tuning

    _there(cell)
    if cell.tuned:
        check_tuning(cell.tune_job())
    if (job := cell.job()) is not None:
        check_names(job, fresh=cell.tuned)


def _there(cell: Cell) -> None:
    """Raises BadInput where a file that the cell reads is not on this machine."""
    for key in (k for k in READ if k != "model"):  # a missing base is reported where it is loaded
        name = cell.settings.get(key)
        if name is None or name.startswith((*SHIPPED, "task:")) or inputs.path_of(name).exists():
            continue
        if Path(name).suffix or name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise BadInput(
                f"{platform.node()} has no {key} '{name}' (seen from '{os.getcwd()}').{inputs.near(name, '*')} Give a path "
                "that every worker has, on a file system that they share."
            )


def _failed(e: BaseException, folder: Path) -> dict[str, Any]:
    if out_of_memory(e):
        message = "Memory ran out. Lower max_length or limit, take a smaller model, or run fewer workers at once."
        return {"state": "failed", "error": message}
    if isinstance(e, TrueupError):
        return {"state": "failed", "error": str(e)}
    if isinstance(e, OSError) and e.strerror:
        return {"state": "failed", "error": _unwritable(e.filename or "A file", e)}
    atomic.write_text(folder / CRASH, "".join(traceback.format_exception(e)))
    message = " ".join(str(e).split())[:200]
    return {
        "state": "failed", "crash": True,
        "error": f"trueup crashed ({type(e).__name__}: {message}). Please report it with {CRASH}, which lies in the cell's folder.",
    }  # fmt: skip


def _unwritable(file: str, e: OSError) -> str:
    return (
        f"'{file}' cannot be read or written ({e.strerror or e}). Put that right, then run the same command again: it does what "
        "is left."
    )


def lost(cell: Cell, out: Path, why: str) -> Record:
    """The record of a cell whose worker ended before it did."""
    folder = out / CELLS / cell.name
    begun_record = read(out, cell.name)
    record = replace(begun_record or Record(cell.name, cell.asked, inputs=stamps_of(cell)), state="failed", error=why)
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_json(folder / RECORD, asdict(record))
    return record


def aside(out: Path, name: str) -> None:
    """Move a cell with a report to ``previous``; delete a failed cell, or one without a report."""
    folder, previous = out / CELLS / name, out / PREVIOUS / name
    if not folder.exists():
        return
    record = read(out, name)
    if (record is not None and record.state == "failed") or not (folder / REPORT / atomic.MANIFEST).is_file():
        shutil.rmtree(folder)
        return
    previous.parent.mkdir(parents=True, exist_ok=True)
    if previous.exists():
        shutil.rmtree(previous)
    os.rename(folder, previous)
