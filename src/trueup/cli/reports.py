"""The output of a finished check: its text, its files for a CI system, and its exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trueup.cli.options import Gate
from trueup.cli.printing import say, show
from trueup.errors import visible


def exit_code(done: Any, fail_on: Gate) -> int:
    """The exit code of a report. Crashes, and requested faults that were not examined, are reported on standard error."""
    from trueup.report.bundle import crash_file

    for fault, why in done.unexamined.items():
        say(f"trueup: {fault} was not examined: {why}", file=sys.stderr)
    if done.crashes:
        say(
            f"trueup: this is an error of trueup. Please report it with {', '.join(map(crash_file, done.crashes))} in the output "
            "folder, which holds the traceback. The rest of the report stands.",
            file=sys.stderr,
        )
        return 3
    return int(any_fails(done.comparisons, fail_on)) or 2 * bool(done.unexamined)


def any_fails(comparisons: Iterable[Any], fail_on: Gate) -> bool:
    from trueup.report import ci

    return any(ci.fails(c, fail_on.value) for c in comparisons)


def tell(done: Any, out: Path, quiet: bool, as_json: bool) -> None:
    if as_json:
        text = (Path(out) / "findings.json").read_text(encoding="utf-8")
        # Control characters, which a terminal would obey, are written as JSON escapes. The values stay the same.
        escapes = {ord(c): f"\\u{ord(c):04x}" for c in set(text) if visible(c) != c}
        print(text.translate(escapes), end="")
    elif not quiet:
        print_report(done, out)


def print_report(done: Any, out: Path) -> None:
    from trueup.report.table import findings_table

    show(findings_table(done))
    say(f"Report: {Path(out) / 'report.html'}")
    for c in done.comparisons:
        if c.adapter:
            say(f"Repaired adapter: {Path(out) / c.adapter}")


def write_junit(done: Any, fail_on: Gate, file: Path | None) -> None:
    if file is not None:
        from trueup.report import ci
        from trueup.store.atomic import refuse_file, write_text

        refuse_file(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, ci.junit(done, fail_on.value))
