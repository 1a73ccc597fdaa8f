"""The page of a sweep: one line for each cell, one column for each fault, and a link to each cell's own page.

The page is static and in one file, as the page of a report. Its script sorts and filters the rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trueup.faults.fault import Comparison, Difference
from trueup.report import words
from trueup.report.embedded import asset, inline, policy, template

MOST_BYTES = 2_000_000
"""The page of 1,000 cells is smaller than this."""


@dataclass(frozen=True)
class Entry:
    """One cell of a sweep for its page.

    Attributes:
        name: name of the cell. link: address of its page, relative to the index; empty if there is none. settings: column -> value,
            for the settings that differ between cells. faults: fault -> its comparison. changes: fault -> severity now minus
            severity in an earlier run. unexamined: fault -> why there is no finding of it. error: why the cell failed. seconds: CPU
            seconds. accuracy: test accuracy of the adapter that was trained.
    """

    name: str
    link: str = ""
    settings: dict[str, str] = field(default_factory=dict)
    faults: dict[str, Comparison] = field(default_factory=dict)
    changes: dict[str, Difference] = field(default_factory=dict)
    error: str = ""
    seconds: float = math.nan
    accuracy: float = math.nan
    unexamined: dict[str, str] = field(default_factory=dict)


def page(title: str, entries: Sequence[Entry], *, waiting: int = 0, against: str = "") -> str:
    """The whole page.

    Args:
        title: title of the sweep. waiting: number of cells that were not run yet. against: name of the run that `Entry.changes`
            compare with.
    """
    from markupsafe import Markup

    faults = sorted({f for e in entries for f in (*e.faults, *e.unexamined)})
    settings = [k for k in dict.fromkeys(k for e in entries for k in e.settings) if k != "name"]
    code = asset("index.js")
    return template("index.html.jinja").render(
        title=words.clean(title, 200),
        summary=_summary(entries, faults, waiting),
        counts=[_count(f, entries) for f in faults if any(f in e.faults for e in entries)],
        settings=settings,
        faults=[_title(f, entries) for f in faults],
        outcomes=[o for o in words.RANK if any(words.state_of(c) == o for e in entries for c in e.faults.values())],
        trained=any(not math.isnan(e.accuracy) for e in entries),
        rows=[_row(e, faults, settings) for e in entries],
        against=words.clean(against, 200),
        csp=policy([inline(code)]),
        css=Markup(asset("page.css") + asset("index.css")),
        script=Markup(inline(code)),
    )


def _title(fault: str, entries: Sequence[Entry]) -> str:
    return next((words.title_of(e.faults[fault].before) for e in entries if fault in e.faults), fault.capitalize())


def _summary(entries: Sequence[Entry], faults: Sequence[str], waiting: int) -> str:
    failed = sum(bool(e.error) for e in entries)
    examined = sum(bool(e.faults) for e in entries)
    parts = [f"{len(entries):,} cells, {examined:,} of them examined"]
    if failed:
        parts.append(f"{failed:,} failed")
    if waiting:
        parts.append(f"{waiting:,} more were not run yet")
    return f"{', '.join(parts)}."


def _count(fault: str, entries: Sequence[Entry]) -> dict[str, Any]:
    """The number of cells with each outcome, for one fault."""
    states = [words.state_of(e.faults[fault]) for e in entries if fault in e.faults]
    worse = sum(e.changes[fault].low > 0 for e in entries if fault in e.changes)
    better = sum(e.changes[fault].high < 0 for e in entries if fault in e.changes)
    change_sentence = f"Since the earlier run {worse} got worse beyond chance, and {better} better." if any(
        fault in e.changes for e in entries
    ) else ""  # fmt: skip
    return {
        "title": _title(fault, entries), "moved": change_sentence,
        "states": [(o, o.replace(" ", "-"), states.count(o)) for o in words.RANK if o in states],
    }  # fmt: skip


def _row(e: Entry, faults: Sequence[str], settings: Sequence[str]) -> dict[str, Any]:
    return {
        "name": words.clean(e.name, 140), "link": e.link, "error": words.clean(e.error, 400),
        "settings": [(words.clean(e.settings.get(k, ""), 80), _key(e.settings.get(k, ""))) for k in settings],
        "faults": [_cell(e.faults.get(f), e.changes.get(f), e.unexamined.get(f, "")) for f in faults],
        "seconds": "" if math.isnan(e.seconds) else f"{e.seconds:,.{0 if e.seconds >= 10 else 1}f}",
        "accuracy": "" if math.isnan(e.accuracy) else f"{e.accuracy:.3f}",
    }  # fmt: skip


def _key(value: str) -> str:
    """The key by which a setting is sorted: numbers by size."""
    try:
        return repr(float(value))
    except ValueError:
        return words.clean(value, 80).lower()


def _cell(c: Comparison | None, change: Difference | None, missed: str) -> dict[str, Any]:
    if c is None and missed:
        return {"state": "not examined", "class": "not-measured", "text": words.clean(missed, 300), "range": "", "after": "",
                "change": "", "way": "", "key": "05"}  # fmt: skip
    if c is None:
        return {"state": "", "class": "", "text": "", "range": "", "after": "", "change": "", "way": "", "key": "99"}
    state = words.state_of(c)
    value, interval = words.parts(c.before)
    change_text, direction = "", ""
    if change is not None:
        change_text = words.interval(change, sign=True)
        direction = "worse" if change.low > 0 else "better" if change.high < 0 else ""
    severity = c.before.severity if math.isfinite(c.before.severity) else -9.0
    return {
        "state": state, "class": state.replace(" ", "-"), "text": value, "range": interval,
        "after": "" if c.after is None else f" → {words.parts(c.after)[0]}", "change": change_text, "way": direction,
        "key": f"{words.RANK.index(state):02d} {1e6 - 1e3 * severity:012.3f}",
    }  # fmt: skip
