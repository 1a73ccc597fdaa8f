"""The command ``trueup sweep``, which runs many jobs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from trueup.cli.exits import CODES, refuse_several, sentences
from trueup.cli.options import FailOn, Gate, Out, Quiet
from trueup.cli.printing import say
from trueup.cli.progress import progress_bars
from trueup.cli.reports import any_fails
from trueup.errors import BadInput, did_you_mean


class EngineName(StrEnum):
    """Where the cells of a sweep run."""

    local = "local"
    ray = "ray"


class TrackerName(StrEnum):
    """Experiment trackers to which a sweep can log its findings."""

    trackio = "trackio"
    mlflow = "mlflow"


ListCells = Annotated[
    bool,
    typer.Option("--list", help="Run nothing. Print each cell with its state and cost."),
]
Workers = Annotated[int, typer.Option("--workers", min=1, help="The number of processes that run cells in parallel.")]
Shard = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Run only part I of N, such as 2/8, in a job array. --collect then joins the parts.",
    ),
]
Only = Annotated[str | None, typer.Option("--only", metavar="failed", help="Run only the cells that failed before.")]
Collect = Annotated[
    list[Path] | None,
    typer.Option("--collect", metavar="DIR", help="Run nothing. Join the results of the parts in DIR. Repeatable."),
]
EngineOption = Annotated[
    EngineName, typer.Option("--engine", help="Where the cells run: on this machine, or on a Ray cluster.")
]
Address = Annotated[str, typer.Option("--address", help="Ray: the address of the cluster.")]
Gpus = Annotated[
    float, typer.Option("--gpus-per-cell", min=0.0, help="Ray: the GPUs for each cell; with 0.5, two cells share one.")
]


SWEEP_CODES = (
    CODES.replace("no fault was found", "no fault was found in any cell")
    .replace("a fault was found", "a fault was found in some cell")
    .replace("the input cannot be used", "the input of the sweep, or of a cell, cannot be used")
)


def sweep(
    file: Annotated[
        Path, typer.Argument(metavar="FILE.yaml", help="The sweep file: defaults, matrix, include, exclude, steps.")
    ],
    out: Out,
    list_: ListCells = False, workers: Workers = 1, shard: Shard = None, only: Only = None, collect: Collect = None,
    baseline: Annotated[
        Path | None,
        typer.Option("--baseline", metavar="DIR", help="An earlier sweep to compare with. Default: the last one in OUT."),
    ] = None,
    engine: EngineOption = EngineName.local, address: Address = "auto", gpus: Gpus = 0.0,
    track: Annotated[
        TrackerName | None, typer.Option("--track", help="Also log the findings to this tracker, which must be installed.")
    ] = None,
    quiet: Quiet = False, fail_on: FailOn = Gate.found,
) -> None:  # fmt: skip
    """Tune or check many adapters, data sets and seeds (cells), with one table and one page for all.

    The same command continues a sweep that was interrupted.

    Example: trueup sweep night.yaml -o out-all --workers 4
    """
    with sentences():
        from trueup.run.engine import Here, Processes, Ray
        from trueup.sweeps import plan, run

        refuse_several("A sweep", "It starts processes of its own: give --workers, or --shard.")
        if shard is not None:  # an empty string, from a variable that is not set, is an error and not the whole sweep
            plan.part_of(shard)
        if only not in (None, "failed"):
            raise BadInput(
                f"--only takes the word 'failed', and '{only}' was given.{did_you_mean(only, ['failed'])} Give that, or leave it "
                "out."
            )
        if engine is EngineName.local and (gpus or address != "auto"):
            raise BadInput("--address and --gpus-per-cell go with --engine ray; add it, or leave them out.")
        if engine is EngineName.ray and workers != 1:
            raise BadInput(
                "--workers goes with this machine's processes; on a Ray cluster each free core takes a cell. Leave it out."
            )
        if collect and (only or shard or workers != 1 or engine is EngineName.ray or list_):
            raise BadInput(
                "--collect runs nothing and joins all parts, so --list, --only, --shard, --workers and --engine do not go with it. "
                "Leave them out."
            )

        def note(sentence: str) -> None:
            say(f"trueup: {sentence}", file=sys.stderr)

        if list_:
            _print_cells(run.left(file, out, part=shard or "", baseline=baseline, note=note))
            return
        sweep_engine = Ray(address, gpus) if engine is EngineName.ray else Processes(workers) if workers > 1 else Here()
        with progress_bars(quiet) as progress:

            def told(record: Any, number: int, total: int) -> None:
                progress("cells", number, total)
                if not quiet:
                    say(f"{number}/{total}  {_cell_line(out, record)}", flush=True)

            swept = run.sweep(
                file, out, engine=sweep_engine, part=shard or "", only_failed=only == "failed", collect=collect or (),
                baseline=baseline, track=None if track is None else track.value, told=told, note=note,
            )  # fmt: skip
        if not quiet and not shard:
            say(f"Page: {out / run.PAGE}\nTable: {out / run.TABLE}")
        raise typer.Exit(_swept(swept, fail_on))


def _print_cells(cells: Sequence[tuple[Any, str]]) -> None:
    from trueup.sweeps import cost
    from trueup.sweeps.run import UNUSABLE

    total, unknown, usable = 0.0, 0, sum(state != UNUSABLE for _, state in cells)
    for cell, state in cells:
        if state == UNUSABLE:
            say(f"{state:8}  {'':>10}  {cell.name}")
            continue
        seconds = cost.seconds(cell)
        total, unknown = total + (seconds or 0.0), unknown + (seconds is None)
        say(f"{state:8}  {_about(seconds):>10}  {cell.name}")
    parts = [f"some {_about(total)} of one core"] * (unknown < usable)
    parts += [f"{unknown} of unknown cost"] * bool(unknown)
    parts += [f"{len(cells) - usable} that cannot be run here"] * (usable < len(cells))
    say(f"{len(cells)} cell{'s' * (len(cells) != 1)}: {', '.join(parts)}.")


def _about(seconds: float | None) -> str:
    """A cost with two digits, because it is an estimate."""
    if seconds is None:
        return "?"
    for unit, size in (("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= size:
            return f"{float(f'{seconds / size:.2g}'):g} {unit}"
    return "1 s"


def _cell_line(out: Path, record: Any) -> str:
    """The result of a cell in one line."""
    from trueup.report import bundle
    from trueup.report.words import interval, state_of
    from trueup.sweeps import cell

    parts = []
    if record.state == "failed":
        parts.append(f"failed: {record.error}")
    if record.tuned:
        parts.append(f"accuracy {record.tuned['test_accuracy']:.3f}")
    folder = out / cell.CELLS / record.name / cell.REPORT
    if record.state == "done" and folder.is_dir():
        parts += [f"{c.before.fault} {state_of(c)} {interval(c.before)}" for c in bundle.read(folder).comparisons]
    return f"{record.name}: {'; '.join(parts)} ({record.cpu_seconds:.0f} s)"


def _swept(done: Any, fail_on: Gate) -> int:
    """The exit code of a sweep. Failures are reported on standard error."""
    failed = done.failed
    for record in failed[:10]:
        say(f"trueup: the cell '{record.name}' failed: {record.error}", file=sys.stderr)
    if len(failed) > 10:
        say(f"trueup: {len(failed) - 10} more cells failed; the page names them.", file=sys.stderr)
    unexamined = [(name, fault, why) for name, faults in done.unexamined.items() for fault, why in faults.items()]
    for name, fault, why in unexamined[:10]:
        say(f"trueup: in the cell '{name}' {fault} was not examined: {why}", file=sys.stderr)
    if len(unexamined) > 10:
        say(f"trueup: {len(unexamined) - 10} more were not examined; the page names them.", file=sys.stderr)
    if waiting := done.waiting:
        say(f"trueup: {len(waiting)} of {len(done.cells)} cells were not run, such as '{waiting[0]}'.", file=sys.stderr)
    if any(r.crash for r in done.records.values()):
        return 3
    if failed or unexamined or waiting:
        return 2
    return int(any_fails((c for report in done.reports.values() for c in report.comparisons), fail_on))
