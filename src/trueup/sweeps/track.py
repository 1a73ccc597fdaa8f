"""Logs the results of a cell to an experiment tracker: one run for each cell."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal

from trueup.errors import Unavailable
from trueup.report.bundle import Report
from trueup.report.words import state_of
from trueup.sweeps.cell import Record
from trueup.sweeps.plan import Cell, word

Tracker = Literal["trackio", "mlflow"]


def available(tracker: Tracker) -> None:
    """Raises Unavailable where the tracker's package is not installed."""
    import importlib

    try:
        importlib.import_module(tracker)
    except ImportError as e:
        raise Unavailable(f"--track {tracker} needs its package, which is not installed: pip install {tracker}.") from e


def track(tracker: Tracker, project: str, cell: Cell, record: Record, report: Report | None) -> None:
    """Log one run with the name of the cell in `project`. The tracker's environment variables set the server and the login.

    Raises whatever the tracker raises.
    """
    settings = {k: word(v) for k, v in cell.settings.items()}
    numbers, words = dict(metrics(record, report)), dict(outcomes(record, report))
    if tracker == "trackio":
        import trackio

        run = trackio.init(project=project, name=cell.name, config=settings | words, embed=False)
        run.log(numbers)
        run.finish()
        return
    import mlflow

    mlflow.set_experiment(project)
    with mlflow.start_run(run_name=cell.name):
        mlflow.log_params(settings)
        mlflow.set_tags(words)
        mlflow.log_metrics(numbers)


def metrics(record: Record, report: Report | None) -> Iterator[tuple[str, float]]:
    """Every finite number with a path: ``confounding/severity``, ``.../low``, ``.../high``; ``.../after``; ``.../difference``
    where a repair was made; ``.../measures/KEY``; ``training/test_accuracy``; ``cpu_seconds``."""
    numbers: dict[str, float] = {
        "cpu_seconds": record.cpu_seconds,
        **{f"training/{k}": v for k, v in record.tuned.items()},
    }
    for c in report.comparisons if report is not None else ():
        fault = c.before.fault
        numbers |= {
            f"{fault}/severity": c.before.severity,
            f"{fault}/low": c.before.low,
            f"{fault}/high": c.before.high,
        }
        numbers |= {f"{fault}/measures/{k}": m.value for k, m in c.before.measures.items()}
        if c.after is not None:
            numbers |= {
                f"{fault}/after": c.after.severity,
                f"{fault}/after_low": c.after.low,
                f"{fault}/after_high": c.after.high,
            }
        if (d := c.differences.get("severity")) is not None:
            numbers |= {
                f"{fault}/difference": d.value,
                f"{fault}/difference_low": d.low,
                f"{fault}/difference_high": d.high,
            }
    yield from ((k, float(v)) for k, v in numbers.items() if math.isfinite(v))


def outcomes(record: Record, report: Report | None) -> Mapping[str, str]:
    """The results that are words: the state of the cell, the outcome of each fault, and the error of a cell that failed."""
    tags = {"trueup.state": record.state, "trueup.version": record.version}
    tags |= {"trueup.error": record.error[:500]} if record.error else {}
    return tags | {f"{c.before.fault}.outcome": state_of(c) for c in (report.comparisons if report is not None else ())}
