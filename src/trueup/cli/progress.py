"""Progress on standard error: bars on a terminal, and a line for each stage elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from trueup.cli.printing import say

EVERY = 60.0
"""Seconds between two lines of a long stage."""


def _lines() -> Callable[[str, int, int], None]:
    """A function that prints a stage as one line, with the time since the start: ``[0:12] trying repairs: 1 of 8``."""
    start, last_shown = time.monotonic(), {}

    def show(stage: str, done: int, total: int) -> None:
        time_now = time.monotonic()
        if stage in last_shown and time_now - last_shown[stage] < EVERY:
            return
        last_shown[stage] = time_now
        minutes, seconds = divmod(int(time_now - start), 60)
        say(f"[{minutes}:{seconds:02}] {stage}: {done:,} of {total:,}", file=sys.stderr, flush=True)

    return show


@contextmanager
def progress_bars(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Progress on standard error, after a note on untested versions. `quiet`: nothing.

    On a terminal each stage has a bar with the remaining time. Elsewhere each stage has a line, and one more each minute, because
    a CI system ends a job without output.
    """
    if quiet:
        yield lambda stage, done, total: None
        return
    if not sys.stderr.isatty():
        yield _after_versions(_lines())
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bars = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=Console(stderr=True), transient=True,
    )  # fmt: skip
    tasks: dict[str, Any] = {}

    def show(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=total)
        bars.update(tasks[stage], completed=done, total=total)

    with bars:
        yield _after_versions(show)


def _after_versions(show: Callable[[str, int, int], None]) -> Callable[[str, int, int], None]:
    """`show`, with a note on untested versions before the first stage. An error before that needs no reading of versions."""
    checked = False

    def first(stage: str, done: int, total: int) -> None:
        nonlocal checked
        if not checked:
            from trueup.versions import untested

            checked = True
            if note := untested():
                say(f"trueup: {note}", file=sys.stderr)
        show(stage, done, total)

    return first
