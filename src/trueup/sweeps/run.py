"""A sweep from its file to its page: finds the unfinished cells, runs them, and writes the table and page of all results."""

from __future__ import annotations

import functools
import json
import multiprocessing
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import trueup
from trueup.errors import BadInput, TrueupError, Unavailable, it_or_them, listing
from trueup.faults.fault import Difference
from trueup.given import checked
from trueup.report import bundle, index
from trueup.report.bundle import Report
from trueup.run.engine import Engine, Here, Lost, Processes
from trueup.store import atomic, inputs
from trueup.sweeps import cell as cells
from trueup.sweeps import lock, plan, results
from trueup.sweeps import track as trackers
from trueup.sweeps.homes import homes, settle
from trueup.sweeps.plan import Cell
from trueup.sweeps.track import Tracker

PLAN, TABLE, PAGE = "sweep.json", "results.parquet", "index.html"
UNUSABLE = "unusable"
NAMED = 10
"""The most reasons that are given why cells cannot be run."""

Told = Callable[[cells.Record, int, int], None]
"""Called when a cell has finished, with its record, its number in the order of finishing, and the total."""


@dataclass(frozen=True)
class Swept:
    """The results of a sweep.

    Attributes:
        out: the folder. cells: the cells of the sweep, or of the requested part. records: name -> record, for the cells that were
            begun. reports: name -> report, for the cells that were examined.
    """

    out: Path
    cells: Sequence[Cell]
    records: Mapping[str, cells.Record]
    reports: Mapping[str, Report]

    @property
    def failed(self) -> list[cells.Record]:
        return [r for r in self.records.values() if r.state == "failed"]

    @property
    def unexamined(self) -> dict[str, dict[str, str]]:
        """Name of a cell -> `Report.unexamined`, for the cells in which a requested fault was not examined."""
        return {name: missed for name, report in self.reports.items() if (missed := report.unexamined)}

    @property
    def waiting(self) -> list[str]:
        """Names of the cells that neither finished nor failed."""
        return [c.name for c in self.cells if (r := self.records.get(c.name)) is None or r.state == "begun"]


@checked
def sweep(
    file: str | Path, out: str | Path, *, engine: Engine | None = None, part: str = "", only_failed: bool = False,
    collect: Sequence[str | Path] = (), baseline: str | Path | None = None, track: Tracker | None = None,
    told: Told = lambda record, number, total: None, note: Callable[[str], None] = lambda sentence: None,
) -> Swept:  # fmt: skip
    """Run the cells of a sweep that are not finished, and write `out`/results.parquet and `out`/index.html.

    A finished cell is run again only if its settings, its files or the version of trueup changed. A new name of the cell makes no
    difference. Cells that failed are run again. A sweep that was stopped continues where it stopped.

    Args:
        file: the sweep file (`trueup.sweeps.plan`). out: the folder of the sweep. engine: where the cells run; default: in this
            process.
        part: ``i/n`` runs only this part of the cells. Other runs do the other parts, in the same folder or in folders of their
            own. `collect` then writes the table and the page.
        only_failed: run only cells that failed before.
        collect: run nothing. Take the finished cells from these folders (`out` can be one of them), and write the table and the
            page.
        baseline: the folder of an earlier sweep, with whose cells (of equal settings or names) the results are compared. Default:
            the earlier results in `out`.
        track: also log the findings of each cell to this tracker, as a run of a project with the name of the file. If the tracker
            fails, `note` is called and the cell is not affected.
        told: called as each cell finishes. note: called with a sentence for each problem outside the cells, and for cells in the
            folder that are not in the file.

    Raises:
        BadInput: the file cannot be used, another sweep writes to `out`, or the collected results are of another version of trueup.
    """
    if isinstance(engine, Processes) and multiprocessing.parent_process() is not None:
        raise BadInput(
            "A sweep was begun by a process that another sweep started: the workers of a script without a guard import it. "
            "Put the call under `if __name__ == '__main__':`."
        )
    out = inputs.path_of(out)
    baseline_folder = _usable(out, part, baseline)
    for folder in collect:
        _sweep_of(Path(folder))
    all_cells = plan.cells_of(file, out)
    own_cells = plan.shard(all_cells, part) if part else all_cells
    if track is not None:
        trackers.available(track)
    with lock.writing(out, part):
        if not part:
            atomic.write_json(out / PLAN, {"version": trueup.__version__, "cells": [asdict(c) for c in all_cells]})
        settle(own_cells, all_cells, out)
        earlier_folders = _before(own_cells, all_cells, out, baseline_folder)
        if collect:
            _collected(own_cells, all_cells, out, [Path(f) for f in collect])
        else:
            finished = (
                told
                if track is None
                else _tracking(track, Path(file).stem, {c.name: c for c in own_cells}, out, told, note)
            )
            _done(own_cells, out, engine or Here(), only_failed, earlier_folders, finished)
        swept = _read(own_cells, out)
        if not part:
            write(swept, earlier_folders, title=Path(file).stem, against=str(baseline_folder or "the run before"))
        if lock.alone(out):
            shutil.rmtree(cells.bases_of(out), ignore_errors=True)
    for folder in dict.fromkeys(Path(f) for f in (out, *collect)):
        _tell_leftover(all_cells, folder, note)
    return swept


def left(
    file: str | Path, out: str | Path, *, part: str = "", baseline: str | Path | None = None,
    note: Callable[[str], None] = lambda sentence: None,
) -> list[tuple[Cell, str]]:  # fmt: skip
    """Every cell, or those of a part, with its state: ``done``, ``failed``, ``begun``, ``changed``, ``damaged`` or ``to do``.

    The state is `UNUSABLE` for a cell that has to be run and cannot, because of a wrong name in its settings; `note` is called with
    the reason. Nothing is written. The arguments and errors are those of `sweep`.
    """
    out = inputs.path_of(out)
    _usable(out, part, baseline)
    all_cells = plan.cells_of(file, out)
    folder_of_cell = homes(all_cells, out).of
    states = [
        (cell, _state(cell, out, folder_of_cell.get(cell.name)))
        for cell in (plan.shard(all_cells, part) if part else all_cells)
    ]
    slips = {cell.name: slip for cell, state in states if state not in ("done", "failed") and (slip := _slip(cell))}
    names_by_slip: dict[str, list[str]] = {}
    for name, slip in slips.items():
        names_by_slip.setdefault(slip, []).append(name)
    for slip, names in list(names_by_slip.items())[:NAMED]:
        note(f"The cell{'s' * (len(names) > 1)} {listing(names, 3)} cannot be run here: {slip}")
    if unnamed := sum(map(len, list(names_by_slip.values())[NAMED:])):
        note(f"{unnamed} more cannot be run here.")
    _tell_leftover(all_cells, out, note)
    return [(cell, UNUSABLE if cell.name in slips else state) for cell, state in states]


def _slip(cell: Cell) -> str:
    """The error in the names of a cell's settings; empty where there is none, or where only a hub cannot be reached."""
    try:
        cells.check(cell)
    except Unavailable:
        return ""
    except TrueupError as e:
        return str(e)
    return ""


def _tell_leftover(asked: Sequence[Cell], out: Path, note: Callable[[str], None]) -> None:
    if folders := homes(asked, out).leftover:
        leftover = (
            f"{len(folders)} cells that are none of the file's"
            if len(folders) > 1
            else "a cell that is none of the file's"
        )
        note(
            f"'{out}' holds {leftover}: {listing(folders, 3)}. The page and the table leave {it_or_them(folders)} out. Put the "
            "settings back into the file, or delete what is not needed any more."
        )


def _state(cell: Cell, out: Path, folder: str | None) -> str:
    if folder is None:
        return "to do"
    record, stamps = cells.read(out, folder), cells.stamps_of(cell)
    if record is None:
        return "to do"
    if record.state == "failed" or record.crash:
        return "failed"
    if not cells.current(record, cell, stamps):
        return "changed"
    intact = record.state != "done" or cells.finished(cell, out / cells.CELLS / folder, record, stamps)
    return record.state if intact else "damaged"


def work(cell: Cell, out: Path, before: Mapping[str, Path]) -> cells.Record:
    """Run one cell, on any machine, and store its change since its folder in `before`."""
    record = cells.run(cell, out)
    if record.state == "done":
        results.change_of(out, cell.name, before[cell.name])
    return record


def _done(
    mine: Sequence[Cell], out: Path, engine: Engine, only_failed: bool, before: Mapping[str, Path], told: Told
) -> None:
    from trueup.subject.checkpoint import keeping_base

    states = [_state(cell, out, cell.name) for cell in mine]
    cells_to_run = [c for c, s in zip(mine, states, strict=True) if s == "failed" or (s != "done" and not only_failed)]
    piece = functools.partial(work, out=out, before=before)
    for number, (i, result) in enumerate(
        engine.each(piece, cells_to_run, [_base(c) for c in cells_to_run], keeping_base), 1
    ):
        record = result
        if isinstance(result, Lost):
            record = cells.lost(cells_to_run[i], out, f"The cell was begun and not finished: {result.why}.")
        told(record, number, len(cells_to_run))


def _base(cell: Cell) -> str:
    """A word for each cell: cells with the same word use the same base model in memory."""
    keys = ("model", "revision", "device", "dtype", "quantize", "device_map", "template", "verbaliser", "shots")
    return json.dumps([cell.settings.get(k) for k in keys])


def _before(mine: Sequence[Cell], asked: Sequence[Cell], out: Path, earlier: Path | None) -> dict[str, Path]:
    """Name of a cell -> the folder of the earlier cell that it is compared with, which need not exist."""
    if earlier is None:
        return {c.name: out / cells.PREVIOUS / c.name for c in mine}
    folder_of_cell = homes(asked, earlier).of
    return {c.name: earlier / cells.CELLS / folder_of_cell.get(c.name, c.name) for c in mine}


def _usable(out: Path, part: str, baseline: str | Path | None) -> Path | None:
    """The folder of the baseline, or None. All arguments except the sweep's file are checked, before anything is read.

    Raises:
        BadInput: `out` is a file, or holds something else than a sweep; there is no such part; the baseline is no sweep, or `out`.
    """
    if part:
        plan.part_of(part)
    if baseline is not None:
        _sweep_of(Path(baseline))
        if Path(baseline).resolve() == out.resolve():
            raise BadInput(
                f"'{out}' cannot be its own baseline. Leave --baseline out: what changed in a cell since is told anyway."
            )
    atomic.refuse_other(out)
    try:
        names = {p.name for p in out.iterdir()} if out.is_dir() else set()
    except OSError as e:
        raise BadInput(f"'{out}' cannot be read ({e.strerror or e}). Give a folder that you may read and write.") from e
    is_sweep = any(n in (PLAN, cells.CELLS) or n.startswith(".writing") for n in names)
    if names and (not is_sweep or (cells.CELLS in names and not (out / cells.CELLS).is_dir())):
        raise BadInput(f"The folder '{out}' holds something that is no sweep. Give another folder, or an empty one.")
    return None if baseline is None else Path(baseline)


def _sweep_of(folder: Path) -> None:
    if not (folder / cells.CELLS).is_dir():
        raise BadInput(
            f"'{folder}' is no folder of a sweep: there is no '{cells.CELLS}' in it.{inputs.near(folder, f'*/{cells.CELLS}')} Give "
            "one that `trueup sweep -o` wrote."
        )


def _collected(mine: Sequence[Cell], asked: Sequence[Cell], out: Path, folders: Sequence[Path]) -> None:
    """Copy the cells that the parts of a sweep finished in other folders to `out`.

    Raises:
        BadInput: a cell there is of another version of trueup, or of other settings.
    """
    other_versions: dict[str, list[str]] = {}
    folders_of_cells = {
        folder: homes(asked, folder).of for folder in dict.fromkeys(f.resolve() for f in (out, *folders))
    }
    for cell in mine:
        stamps = cells.stamps_of(cell)
        candidates: list[tuple[tuple[bool, bool, float, bool], Path]] = []
        for folder, names in folders_of_cells.items():
            if cell.name not in names:
                continue
            record, at = cells.read(folder, names[cell.name]), folder / cells.CELLS / names[cell.name]
            if record is None or record.state == "begun":
                continue
            if record.asked == cell.asked and record.version == trueup.__version__:
                # Preferred in this order: made from the present files, done, newest, and in `out` itself.
                files_current, age = inputs.same(record.inputs, stamps), (at / cells.RECORD).stat().st_mtime
                candidates.append(((files_current, record.state == "done", age, folder == out.resolve()), at))
            elif folder == out.resolve():
                continue  # it is replaced by the cell of a part
            elif record.version != trueup.__version__:
                other_versions.setdefault(record.version, []).append(str(at))
            else:
                raise BadInput(
                    f"'{at}' was made for other settings than the file has now. Run the part again: it does only what has changed."
                )
        if not candidates:
            continue
        best_folder, target = max(candidates)[1], out.resolve() / cells.CELLS / cell.name
        if best_folder != target:
            cells.aside(out, cell.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(best_folder, partial, ignore=shutil.ignore_patterns(".*"))
            partial.rename(target)
    if other_versions:
        version, names = next(iter(other_versions.items()))
        raise BadInput(
            f"{sum(map(len, other_versions.values()))} cells were made by trueup {version}, and this is {trueup.__version__}: "
            f"{listing(names, 3)}. Run the sweep again with this one; it does those cells anew."
        )


def _tracking(
    track: Tracker, project: str, asked: Mapping[str, Cell], out: Path, told: Told, note: Callable[[str], None]
) -> Told:
    """A function that calls `told` and then the tracker, until the tracker has failed once."""
    failed = False

    def finished(record: cells.Record, number: int, total: int) -> None:
        nonlocal failed
        told(record, number, total)
        folder = out / cells.CELLS / record.name / cells.REPORT
        if failed:
            return
        try:
            trackers.track(track, project, asked[record.name], record, bundle.read(folder) if folder.is_dir() else None)
        except Exception as e:  # whatever the tracker raises
            failed = True
            message = " ".join(str(e).split())[:200]
            note(f"{track} took no results ({type(e).__name__}: {message}). They are in '{out}' all the same.")

    return finished


def _read(mine: Sequence[Cell], out: Path) -> Swept:
    records = {c.name: r for c in mine if (r := cells.read(out, c.name)) is not None and r.asked == c.asked}
    reports: dict[str, Report] = {}
    for name, record in records.items():
        folder = out / cells.CELLS / name / cells.REPORT
        if record.state == "done" and folder.is_dir():
            try:
                reports[name] = bundle.read(folder)
            except TrueupError as e:
                records[name] = replace(record, state="failed", error=str(e))
    return Swept(out, mine, records, reports)


def write(swept: Swept, before: Mapping[str, Path], *, title: str, against: str) -> None:
    """Write the table and the page of the finished cells, with their change since the folders `before`, named `against`."""
    rows, entries = [], []
    varying, unexamined = _varying(swept.cells), swept.unexamined
    out = swept.out
    any_earlier = False
    for cell in swept.cells:
        record = swept.records.get(cell.name)
        if record is None or record.state == "begun":
            continue
        report = swept.reports.get(cell.name)
        earlier_folder = before[cell.name]
        change = (
            results.change_of(out, cell.name, earlier_folder) if report is not None and earlier_folder.is_dir() else {}
        )
        any_earlier |= bool(change)
        rows += list(results.rows(cell, record, report, change))
        link = f"{cells.CELLS}/{cell.name}/"
        entries.append(
            index.Entry(
                cell.name,
                link + ("report/report.html" if report is not None else cells.CRASH if record.crash else cells.RECORD),
                {k: plan.word(cell.settings[k]) for k in varying if k in cell.settings},
                {c.before.fault: c for c in (report.comparisons if report is not None else ())},
                {f: Difference(d["value"], d["low"], d["high"], float("nan")) for f, d in change.items()},
                record.error,
                record.cpu_seconds,
                record.tuned.get("test_accuracy", float("nan")),
                unexamined.get(cell.name, {}),
            )
        )
    against = against if any_earlier else ""
    results.write(rows, out / TABLE)
    atomic.write_text(out / PAGE, index.page(title, entries, waiting=len(swept.waiting), against=against))


def _varying(found: Sequence[Cell]) -> list[str]:
    """The settings in which cells differ."""
    keys = dict.fromkeys(k for c in found for k in c.settings)
    return [k for k in keys if len({json.dumps(c.settings.get(k), sort_keys=True) for c in found}) > 1]
