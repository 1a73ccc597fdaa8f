"""The terminal tables fit 80 columns and show text from data as text."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from report_cases import comparison, heat, report, with_before
from rich.cells import cell_len
from rich.console import Console

from trueup.faults.fault import Chart, Measure, Series
from trueup.report.bundle import Report
from trueup.report.table import findings_table, sparklines

NAN = float("nan")


def shown(given: Report, width: int = 80) -> str:
    out = io.StringIO()
    Console(width=width, file=out, force_terminal=False, color_system=None).print(findings_table(given))
    return out.getvalue()


def test_says_the_essentials() -> None:
    text = shown(report())
    for part in ("repaired", "no gain", "clear", "found", "▲ better", "▼ worse", "= unclear", "no measurable gain"):
        assert part in text
    assert "−0.260 [−0.320, −0.200]" in text
    assert "The batch was halved" in text


def test_a_map_changes_nothing_in_the_terminal() -> None:
    plain = with_before(comparison(after=None), charts=())
    mapped = with_before(plain, charts=(heat({"layer 0": [0.1, NAN, -1.0]}),))
    assert shown(report(mapped, examples={})) == shown(report(plain, examples={}))


def test_lines_are_drawn_as_blocks_on_one_scale() -> None:
    line = Chart("c", "Risk", "line", "x", "y", "Read.", (Series("all", [0.0, 1.0, 2.0], [0.0, 0.5, 1.0]),))
    flat = replace(line, series=(Series("all", [0.0, 1.0, 2.0], [0.5, 0.5, NAN]),))
    given = comparison()
    assert given.after is not None
    both = replace(given, before=replace(given.before, charts=(line,)), after=replace(given.after, charts=(flat,)))
    assert sparklines(both) == ["Risk  ▁▅█ → ▅▅   0 to 1"]
    assert sparklines(replace(both, after=None)) == ["Risk  ▁▅█  0 to 1"]
    assert "▁▅█" in shown(report(both))
    bars = replace(both, before=replace(given.before, charts=(replace(line, kind="bar"),)), after=None)
    assert sparklines(bars) == []
    many = Series("all", [float(i) for i in range(101)], [float(i) for i in range(101)])
    long = replace(both, before=replace(given.before, charts=(replace(line, series=(many,)),)), after=None)
    (row,) = sparklines(long)
    assert "▁" in row
    assert "█" in row, "thinned, with both ends"
    assert len(row) < 80


def measures(title: str, value: float) -> dict[str, Measure]:
    return {"lean": Measure(value, value, value, "unit", "lower", title)}


@pytest.mark.parametrize(
    "case",
    [
        report(),
        report(with_before(comparison(), measures=measures("averyveryverylongnamewithoutanyspace" * 5, -123456.789))),
        report(with_before(comparison(), provenance={"title": "長い名前の欠陥" * 20})),
        report(with_before(comparison(), severity=NAN, low=NAN, high=NAN, measures=measures("nan", NAN))),
        report(comparison(before=-999999.25, after=-123456.125, remedy="word " * 200)),
        report(comparison(), notes=["x" * 500], title="y" * 500),
    ],
    ids=["plain", "long", "wide", "nan", "large", "notes"],
)
def test_fits_80_columns(case: Report) -> None:
    lines = shown(case).splitlines()
    assert len(lines) > 10
    assert max(cell_len(line) for line in lines) <= 80


def test_hostile_text_is_text() -> None:
    evil = "[bold red]x[/] \x1b[2J [link=http://evil]y[/link] [/nonsense]"
    text = shown(report(with_before(comparison(after=None), sentence=evil, provenance={"title": evil}), notes=[evil]))
    assert "\x1b" not in text
    assert "[bold red]x[/]" in text
    assert "[link=http://evil]y[/link]" in text.replace("\n", "")


def test_no_comparison_at_all() -> None:
    assert "nothing" in shown(Report("nothing", {}, ()))
