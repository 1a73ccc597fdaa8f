"""The report in a terminal: tables that fit 80 columns."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trueup.faults.confounding.leads import Lead, Scouted
from trueup.faults.fault import Comparison, Measure
from trueup.report import words
from trueup.report.bundle import Report
from trueup.report.words import verdict

__all__ = ["findings_table", "verdict"]

SPARKS = 12
"""Most points of a line drawn as blocks."""
_BLOCKS = "▁▂▃▄▅▆▇█"

_STYLE = {
    "repaired": "bold green",
    "clear": "green",
    "undecided": "yellow",
    "found": "bold red",
    "reduced": "bold yellow",
    "trade-off": "bold yellow",
    "no gain": "bold red",
    "made worse": "bold red",
    "not measured": "yellow",
    "not examined": "yellow",
    "better": "green",
    "worse": "bold red",
    "changed": "bold yellow",
}


SEARCHED = "Search for shortcuts (exploratory)"
TOLD = 3
"""The most columns of a search that the terminal describes in a sentence."""
OTHERS = 5
"""The most repairs that the terminal lists of those that were tried and not taken. The page lists all."""


def findings_table(report: Report) -> RenderableType:
    """The whole report for a terminal of 80 columns or more.

    First comes a table with one row per fault (headline before and after, verdict). Then each fault has its verdict in a
    sentence, its measures with the paired difference and whether it got better (only where the interval excludes 0), and the
    cost of the repair. Text from data is shown as text: markup and escape sequences in it have no effect.
    """
    parts: list[RenderableType] = [_text(report.title, "bold", 200)]
    parts += [_text(f"Warning: {w}", "bold red", 600) for w in report.warnings]
    parts.append(_summary(report))
    for comparison in report.comparisons:
        parts += _fault(comparison)
    if report.shortcuts is not None:
        parts += searched(report.shortcuts)
    if report.notes:
        parts += [Text(""), Text("Notes", "bold"), *(_text(f"• {n}", "", 600) for n in report.notes)]
    return Group(*parts)


def searched(found: Scouted) -> list[RenderableType]:
    """A check's search for columns (no confounder was named): what it tried and found, and the next step."""
    parts: list[RenderableType] = [
        Text(""),
        _text(SEARCHED, "bold underline"),
        _text(words.search_sentence(found), "", 1600),
    ]
    if found.leads:
        parts.append(leads_table(found.leads))
        parts += [_text(f"{x.rank}. {x.sentence}", "", 600) for x in found.leads[:TOLD]]
        sentence, command = words.go_on(found)
        parts.append(_text(sentence, "", 600))
        if command:  # on one line of any length, so that it can be copied
            parts.append(Text(command, no_wrap=True, overflow="ignore"))
    elif found.unproven:
        parts += [_text("The strongest that are not proven:", ""), leads_table(found.unproven)]
    return parts


def leads_table(leads: Sequence[Lead]) -> Table:
    """Scouted columns, one a row."""
    table = _table()
    table.add_column("", width=3, justify="right")
    table.add_column("column", overflow="fold", ratio=1)
    table.add_column("lean, AUPRC lost", width=22, overflow="fold")
    table.add_column("q", width=7, justify="right", overflow="fold")
    for x in leads:
        table.add_row(str(x.rank or "–"), _text(x.name), words.lean(x), words.rate(x.q))
    return table


def _summary(report: Report) -> Table:
    table = _table()
    cells = [(words.interval(c.before), words.interval(c.after) if c.after else "–") for c in report.comparisons]
    longest = [min(22, max(len(text) for text in column)) for column in zip(*cells, strict=True)] or [0, 0]
    table.add_column("fault", overflow="fold", ratio=1)
    table.add_column("severity before", width=max(15, longest[0]), overflow="fold")
    table.add_column("after", width=max(5, longest[1]), overflow="fold")
    table.add_column("verdict", width=12, overflow="fold")
    for c, (before, after) in zip(report.comparisons, cells, strict=True):
        table.add_row(_text(words.title_of(c.before)), before, after, _styled(words.state_of(c)))
    return table


def _fault(comparison: Comparison) -> list[RenderableType]:
    parts: list[RenderableType] = [
        Text(""),
        _text(words.title_of(comparison.before), "bold underline"),
        _text(verdict(comparison), "", 2000),
    ]
    measures = words.rows(comparison)
    if measures:
        table = _table()
        table.add_column("measure", overflow="fold", ratio=1)
        if comparison.after is None:
            table.add_column("value", width=24, overflow="fold")
        else:
            table.add_column("before", width=8, justify="right", overflow="fold")
            table.add_column("after", width=8, justify="right", overflow="fold")
            table.add_column("paired difference", width=23, overflow="fold")
            table.add_column("", width=10, overflow="fold")
        shown = [r for r in measures if comparison.after is None or r.change not in ("same", "no clear change")]
        for row in shown:
            if comparison.after is None:
                table.add_row(_text(row.title), words.interval(row.before) if row.before else "–")
            else:
                table.add_row(_text(row.title), _value(row.before), _value(row.after), *_outcome(row))
        parts += [table] * bool(shown)
        if hidden_count := len(measures) - len(shown):
            hidden_text = "1 measure" if hidden_count == 1 else f"{hidden_count} measures"
            parts.append(
                _text(f"{hidden_text} did not change measurably; the page has {'it' if hidden_count == 1 else 'them'}.")
            )
    parts += [_text(line) for line in sparklines(comparison)]
    if comparison.after is not None:
        parts.append(_text(words.harm_sentence(comparison), "", 1000))
        harm = words.harm_rows(comparison)
        if harm:
            table = _table()
            table.add_column("side effect", overflow="fold", ratio=1)
            table.add_column("paired difference", width=23, overflow="fold")
            table.add_column("", width=10, overflow="fold")
            for row in harm:
                table.add_row(_text(row.title), *_outcome(row))
            parts.append(table)
        if comparison.remedy:
            parts.append(_text(f"Repair: {comparison.remedy}", "", 600))
    parts += _others(comparison)
    return parts


def changes_table(changes: Sequence[tuple[Comparison, bool]]) -> RenderableType:
    """Two checks in a table: a row for each fault, then the measures whose change has an interval that excludes 0.

    `changes`: a comparison of the first audits of both checks, and whether its differences are paired, for each fault.
    """
    table = _then_and_now("severity of")
    parts: list[RenderableType] = [table]
    for c, paired in changes:
        assert c.after is not None
        d = c.differences["severity"]
        word = words.change(d, "lower")
        table.add_row(
            _text(words.title_of(c.before)), words.number(c.before.severity), words.number(c.after.severity),
            words.interval(d, sign=True), Text(words.MARK[word], _STYLE.get(word, "dim")),
        )  # fmt: skip
        paired_or_not = "the same test texts, paired" if paired else "other test texts: two independent estimates"
        rows = [r for r in words.rows(c) if r.difference is not None]
        changed_rows = [r for r in rows if r.difference is not None and words.decided(r.difference)]
        parts += [Text(""), _text(f"{words.title_of(c.before)}: {paired_or_not}.")]
        if changed_rows:
            measures_table = _then_and_now("measure")
            for row in changed_rows:
                measures_table.add_row(_text(row.title), _value(row.before), _value(row.after), *_outcome(row))
            parts.append(measures_table)
        if len(rows) > len(changed_rows):
            parts.append(_text(f"{len(rows) - len(changed_rows)} measures did not change measurably."))
    return Group(*parts)


def _then_and_now(what: str) -> Table:
    table = _table()
    table.add_column(what, overflow="fold", ratio=1)
    table.add_column("then", width=8, justify="right", overflow="fold")
    table.add_column("now", width=8, justify="right", overflow="fold")
    table.add_column("difference [95%]", width=23, overflow="fold")
    table.add_column("", width=10, overflow="fold")
    return table


def _others(comparison: Comparison) -> list[RenderableType]:
    """The other repairs that help and can be saved as an adapter, with gain and cost: at most `OTHERS` of them."""
    tried = [a for a in comparison.alternatives if a.saveable and not a.chosen and a.gain_low > 0][:OTHERS]
    if not tried:
        return []
    table = _table()
    table.add_column("another repair: --take ...", overflow="fold", ratio=1)
    table.add_column("gain", width=23, overflow="fold")
    table.add_column("points of accuracy lost", width=24, overflow="fold")
    for a in tried:
        table.add_row(_text(a.key), *map(" ".join, words.price(a)))
    return [table]


def sparklines(comparison: Comparison) -> list[str]:
    """The first line of each line chart as a row of blocks, before and after on one scale; at most 80 columns wide."""
    after = {c.key: c for c in comparison.after.charts} if comparison.after is not None else {}
    lines = []
    for chart in comparison.before.charts:
        before_and_after = [c for c in (chart, after.get(chart.key)) if c is not None and c.kind == "line" and c.series]
        rows = [_thinned(c.series[0].y) for c in before_and_after]
        ends = [y for row in rows for y in row if math.isfinite(y)]
        if not before_and_after or len(rows[0]) < 3 or not ends:
            continue
        low, high = min(ends), max(ends)
        drawn = " → ".join(_spark(row, low, high) for row in rows)
        lines.append(f"{words.clean(chart.title, 34)}  {drawn}  {words.number(low)} to {words.number(high)}")
    return lines


def _thinned(values: Sequence[float]) -> list[float]:
    """At most `SPARKS` values, evenly spaced, the first and the last among them."""
    last, most = len(values) - 1, min(len(values), SPARKS)
    chosen_values = (values[round(i * last / max(1, most - 1))] for i in range(most))
    return [math.nan if y is None else float(y) for y in chosen_values]


def _spark(values: list[float], low: float, high: float) -> str:
    top = len(_BLOCKS) - 1
    return "".join(
        _BLOCKS[round((y - low) / (high - low) * top) if high > low else 0] if math.isfinite(y) else " " for y in values
    )


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False, padding=(0, 1), show_edge=False, header_style="dim")


def _value(m: Measure | None) -> str:
    return words.parts(m)[0] if m else "–"


def _outcome(row: words.Row) -> tuple[str, Text]:
    if row.difference is None:
        return "–", Text("")
    return words.interval(row.difference, sign=True), Text(words.MARK[row.change], _STYLE.get(row.change, "dim"))


def _styled(state: words.State) -> Text:
    return Text(state, _STYLE[state])


def _text(text: object, style: str = "", limit: int = 120) -> Text:
    return Text(words.clean(text, limit).replace("\t", " "), style)
