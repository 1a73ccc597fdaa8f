"""The report as one self-contained page: opens from disk, loads nothing, runs only the scripts it was written with.

Everything from data passes `words.clean` (cut, no control characters) and then jinja's autoescape or `_json`. A content
security policy names the page's own scripts by hash, so that a slip in the escaping still runs nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import shlex
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import resources
from importlib.metadata import version as release
from typing import Any

import numpy as np

from trueup.faults.confounding.leads import Scouted
from trueup.faults.fault import Chart, Comparison, Difference, Finding, Measure, Method
from trueup.report import examples, glossary, heat, slide, words
from trueup.report.contents import Contents
from trueup.report.points import distinct, finite, is_number, name, thin
from trueup.report.values import plain, untag
from trueup.store.cache import Memo, cache_folder

MOST_BYTES = 5_000_000
MOST_POINTS = 300

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"
_ARXIV = re.compile(r"(?:arXiv:?\s*|https?://arxiv\.org/(?:abs|pdf)/)(\d{4}\.\d{4,5})", re.IGNORECASE)
_UNEXAMINED = re.compile(r"([a-z][a-z0-9_]*) was not examined: (.+)", re.DOTALL)
"""A note about a fault, which is a row of the page and no note there."""
_DASH = {"before": [5, 3], "after": [1, 0]}
_SHAPE = {"before": "square", "after": "circle"}
_THEME: dict[str, Any] = {
    "background": None,
    "font": _FONT,
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--muted)",
        "titleColor": "var(--muted)",
        "titleFontWeight": "normal",
        "titlePadding": 10,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "gridColor": "var(--line)",
        "domainColor": "var(--rule)",
        "tickColor": "var(--rule)",
        "labelLimit": 160,
        "titleLimit": 400,
    },
    "legend": {
        "orient": "top",
        "title": None,
        "labelColor": "var(--ink)",
        "labelFontSize": 12,
        "labelLimit": 220,
        "symbolStrokeWidth": 2,
        "symbolFillColor": "var(--muted)",
        "symbolStrokeColor": "var(--muted)",
        "columns": 4,
    },
}


def page(report: Contents) -> str:
    """The whole HTML page, under 5 MB: long cells and dense charts are thinned until it is, and the page says so.

    Raises:
        BadInput: it does not fit even so (the report holds far too many faults or charts).
    """
    from trueup.errors import BadInput

    for cell, points in ((400, MOST_POINTS), (160, 120), (60, 40), (24, 12)):
        html = _render(report, cell, points)
        if len(html.encode("utf-8")) < MOST_BYTES:
            return html
    raise BadInput("The report does not fit into one page of 5 MB: check fewer faults in one go.")


def _render(report: Contents, cell: int, points: int) -> str:
    from altair.utils.schemapi import debug_mode
    from markupsafe import Markup

    charts: dict[str, Any] = {}
    # Altair holds every part of a chart against its schema as it is built, at half the time of a page; a test does that here.
    with debug_mode(False):
        faults = [
            _fault(f"fault-{i}", c, report.examples.get(c.before.fault, ()), charts, cell, points)
            for i, c in enumerate(report.comparisons, 1)
        ]
    noted = (m for n in report.notes if (m := _UNEXAMINED.fullmatch(n)))
    missing = {m[1]: m[2] for m in noted} | report.unexamined
    code = asset("page.js")
    states = {words.state_of(c) for c in report.comparisons}
    scripts = [inline(_vega()), inline(code)] if charts else [inline(code)]
    return template("page.html.jinja").render(
        title=words.clean(report.title, 200),
        top=_top(report, faults),
        faults=faults,
        unexamined=[
            (words.clean(k.replace("_", " "), 80), words.clean(v[:1].upper() + v[1:], 600)) for k, v in missing.items()
        ],
        meanings=[(s, words.MEANING[s]) for s in words.RANK if s in {*states, *(["not examined"] * bool(missing))}],
        shortcuts=_search(report.shortcuts),
        data=_data(report.data),
        previous=_previous(report.previous),
        notes=[words.clean(n, 1000) for n in report.notes if not _UNEXAMINED.fullmatch(n)],
        warnings=[words.clean(w, 1000) for w in report.warnings],
        terms=glossary.used(_metrics(report)),
        provenance=_pairs({k: v for k, v in report.provenance.items() if k != "command"} | _peak(report)),
        command=_command(report.provenance.get("command")),
        job=_pretty(report.job, 20_000) if report.job else "",
        csp=policy(scripts),
        css=Markup(asset("page.css")),
        charts=Markup(_json(charts)) if charts else None,
        scripts=[Markup(s) for s in scripts],
    )


def _search(found: Scouted | None) -> dict[str, Any] | None:
    """What a check's search for columns that nobody named found, and how to go on."""
    if found is None:
        return None
    onward, command = words.go_on(found)
    return {
        "sentence": words.clean(words.search_sentence(found), 2000), "named": bool(found.leads),
        "more": found.named - len(found.leads), "rows": [words.lead(x) for x in found.leads or found.unproven],
        "next": onward, "command": command,
    }  # fmt: skip


def _peak(report: Contents) -> dict[str, str]:
    return {"peak memory": f"{peak / 1e6:,.0f} MB"} if (peak := report.run.get("peak_bytes", 0)) else {}


# ---- what the template shows


def _top(report: Contents, faults: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The card at the top: the fault that wants attention most, which adapters to use, and what to do next."""
    order = sorted(range(len(faults)), key=lambda i: words.RANK.index(words.state_of(report.comparisons[i])))
    if not order:
        return None
    first, told = report.comparisons[order[0]], faults[order[0]]
    said = (first.consequence or first.before.sentence, words.happened(first), words.accuracy_line(first))
    return {
        "fault": told,
        "of": len(faults),
        "said": [_hold(words.clean(t, 1000)) for t in said if t],
        "use": [
            {"title": faults[i]["title"], "folder": faults[i]["adapter"], "code": words.clean(c.usage, 2000)}
            for i in order
            if (c := report.comparisons[i]).adapter and c.outcome in ("repaired", "reduced", "trade-off", "clear", "undecided")
        ],
        "next": [(faults[i]["title"], [_hold(t) for t in words.next_steps(report.comparisons[i])]) for i in order],
    }  # fmt: skip


def _data(data: Mapping[str, Any]) -> dict[str, Any] | None:
    """The snapshot of the data, as text."""
    if not data.get("rows"):
        return None
    splits = [words.clean(x, 40) for x in data.get("splits", ())]
    attributes = [words.clean(x, 80) for x in data.get("attributes", ())]
    rows = [[f"{x:,}" if isinstance(x, int) else words.clean(x, 80) for x in row] for row in data["rows"]]
    samples = [[(words.clean(k, 80), words.clean(v, 300)) for k, v in one.items()] for one in data.get("samples", ())]
    return {
        "names": ["class", *attributes], "splits": splits, "rows": rows, "more": int(data.get("more") or 0),
        "samples": samples, "totals": [f"{sum(r[i - len(splits)] for r in data['rows']):,}" for i in range(len(splits))],
    }  # fmt: skip


def _previous(previous: Mapping[str, Any]) -> dict[str, Any] | None:
    """What changed since the check that this one replaced."""
    if not previous.get("page"):
        return None
    rows = []
    for change in previous.get("changes", ()):
        d = Difference(**change["difference"])
        kind = words.change(d, "lower")
        rows.append({
            "title": words.clean(change["title"], 120),
            "then": words.clean(change["then"], 40), "now": words.clean(change["now"], 40),
            "difference": words.interval(d, sign=True), "mark": words.MARK[kind], "class": kind.replace(" ", "-"),
            "how": "the same test texts, paired" if change["paired"] else "other test texts",
        })  # fmt: skip
    return {"page": words.clean(previous["page"], 200), "rows": rows}


def _metrics(report: Contents) -> list[str]:
    """The titles and units that the page shows, for its glossary."""
    told = ["severity", "threshold", "interval", *(["paired"] if any(c.after for c in report.comparisons) else [])]
    for c in report.comparisons:
        told += [c.before.unit, *(m.title for m in c.before.measures.values()), *(x.x_title for x in c.before.charts)]
    return told


def _fault(
    spot: str, c: Comparison, table: Sequence[Mapping[str, Any]], charts: dict[str, Any], cell: int, points: int
) -> dict[str, Any]:
    before, after = c.before, c.after
    state = words.state_of(c)
    known = {**(after.provenance if after else {}), **before.provenance}
    resamples = known.get("resamples") if isinstance(known.get("resamples"), int) else None
    pictures = _charts(spot, before, after, charts, points)
    # What the audited examples are can be seen only where the chart marks it.
    main = next((p for p in pictures if p["here"]), pictures[0] if pictures else None)
    sliders = [{**p["slider"], "id": p["id"]} for p in pictures if p["slider"]]
    rows = [_row(r, resamples) for r in words.rows(c)]
    wanted = [k for k in known.get("headline") or () if any(r["key"] == k for r in rows)] or [r["key"] for r in rows]
    about = ("title", "question", "paper", "departures", "headline")
    return {
        "id": spot,
        "title": words.title_of(before),
        "question": words.clean(known.get("question") or "", 400),
        "state": state,
        "state_class": state.replace(" ", "-"),
        "icon": words.ICON[state],
        "short": _hold(words.in_short(c)),
        "verdict": _hold(words.verdict(c)),
        "sentences": [(when, words.clean(f.sentence, 1000)) for when, f in (("Before", before), ("After", after)) if f],
        "remedy": words.clean(c.remedy, 1000),
        "repaired": after is not None,
        "adapter": words.clean(c.adapter, 200) if c.adapter else None,
        "decide": words.to_decide(c),
        "strip": _strip(before, after),
        "headline": [r for k in wanted[:3] for r in rows if r["key"] == k],
        "rows": rows,
        "harm": [_row(r, resamples) for r in words.harm_rows(c)],
        "harm_sentence": _hold(words.harm_sentence(c)),
        "frontier": _frontier(c),
        "methods": _methods(c),
        "main": main,
        "charts": [p for p in pictures if p is not main],
        "examples": examples.shown(table, cell, sliders, str(before.details.get("attribute") or "")),
        "paper": _paper(known.get("paper")),
        "departures": _sentences(known.get("departures")),
        "details": [
            (when, _pretty(f.details, 6000)) for when, f in (("Before", before), ("After", after)) if f and f.details
        ],
        "provenance": _pairs({k: v for k, v in known.items() if k not in about}),
    }


def _hold(sentence: str) -> str:
    """Intervals kept on one line, by no-break spaces."""
    return re.sub(r"\[[^\[\]]{1,40}\]", lambda m: m[0].replace(" ", "\u00a0"), sentence)


def _row(row: words.Row, resamples: int | None) -> dict[str, Any]:
    def cell(item: Measure | Difference | None, sign: bool = False) -> dict[str, str] | None:
        return item and dict(zip(("value", "range"), words.parts(item, sign=sign), strict=True))

    d = row.difference
    better = {"zero": "nearer to 0 is better"}.get(row.better or "", f"{row.better} is better" if row.better else "")
    return {
        "key": row.key,
        "title": row.title,
        "told": glossary.explained(row.title) or glossary.explained(row.unit),
        "unit": row.unit,
        "better": better,
        "before": cell(row.before),
        "after": cell(row.after),
        "difference": cell(d, True),
        "p": words.p_value(d.p, resamples) if d else "",
        "mark": words.MARK[row.change] if d else "",
        "class": row.change.replace(" ", "-"),
    }


def _strip(before: Finding, after: Finding | None) -> dict[str, Any] | None:
    """The headline as a picture: where the intervals lie on one scale, in per cent of its width."""
    found = [("before", before)] + ([("after", after)] if after else [])
    shown = [(w, f) for w, f in found if all(map(math.isfinite, (f.severity, f.low, f.high)))]
    marks = [x for _, f in shown for x in (f.low, f.high, f.severity)]
    if not shown or not math.isfinite(before.threshold):
        return None
    low, high = min(0.0, before.threshold, *marks), max(before.threshold, *marks)
    width = (high - low) or 1.0

    def at(x: float) -> float:
        return round(3 + 94 * (x - low) / width, 2)

    lines = [
        {
            "when": w,
            "low": at(f.low),
            "high": at(f.high),
            "at": at(f.severity),
            "y": 28 + 20 * i,
            "text": words.interval(f),
        }
        for i, (w, f) in enumerate(shown)
    ]
    said = "; ".join(f"{w} {words.interval(f)}" for w, f in shown)
    return {
        "lines": lines,
        "threshold": at(before.threshold),
        "height": 20 * len(lines) + 18,
        "anchor": "start" if at(before.threshold) < 30 else "end" if at(before.threshold) > 70 else "middle",
        "alt": f"Severity on one scale: {said}; threshold {words.number(before.threshold)}.",
        "threshold_text": words.number(before.threshold),
        "unit": words.clean(before.unit, 120),
    }


def _methods(c: Comparison) -> dict[str, Any] | None:
    """Every method on the test examples, in the order that they were tried."""
    if not c.methods:
        return None
    keys = list(c.methods[0].values)
    titles = {k: c.before.measures[k].title if k in c.before.measures else k.replace("_", " ") for k in keys}

    def cell(m: Method, k: str) -> tuple[str, tuple[str, str]]:
        d = m.differences.get(k)
        return words.number(m.values[k]), words.parts(d, sign=True) if d else ("", "")

    return {
        "titles": [words.clean(titles[k], 80) for k in keys],
        "rows": [
            {
                "title": words.clean(m.title, 160), "source": words.clean(m.source, 80), "setting": words.clean(m.setting, 80),
                "chosen": m.chosen, "cells": [cell(m, k) for k in keys],
            }
            for m in c.methods
        ],
    }  # fmt: skip


def _frontier(c: Comparison) -> dict[str, Any] | None:
    """What the repairs that were tried gain and cost, as a picture (in per cent of its width and height) and a table."""
    tried = [
        a
        for a in c.alternatives
        if all(map(math.isfinite, (a.gain, a.gain_low, a.gain_high, a.cost, a.cost_low, a.cost_high)))
    ]
    if not tried:
        return None
    across = _scale([c.budget, 0.0, *(x for a in tried for x in (a.cost, a.cost_low, a.cost_high))])
    up = _scale([0.0, *(x for a in tried for x in (a.gain, a.gain_low, a.gain_high))])
    points = []
    for i, a in enumerate(tried, 1):
        gain, cost = words.price(a)
        points.append({
            "number": i, "title": words.clean(a.title, 160), "key": words.clean(a.key, 60), "gain": gain, "cost": cost,
            "x": across(a.cost), "left": across(a.cost_low), "right": across(a.cost_high),
            "y": 100 - up(a.gain), "bottom": 100 - up(a.gain_low), "top": 100 - up(a.gain_high),
            "chosen": a.chosen, "saveable": a.saveable,
        })  # fmt: skip
    most, best = (max(max(getattr(a, k) for a in tried), 0.0) for k in ("cost_high", "gain_high"))
    return {
        "points": points,
        "budget": across(c.budget),
        "nothing": 100 - up(0.0),
        "right": {"at": across(most), "text": f"{100 * most:+.1f} points lost"},
        "top": {"at": 100 - up(best), "text": f"{words.number(best, sign=True)} gained"},
        "budget_text": f"{100 * c.budget:.3g}",
        "unit": words.clean(c.before.unit, 120),
        "alt": f"{len(tried)} repairs by what they gain and what they cost; the table below has the numbers.",
    }


def _scale(values: Sequence[float]) -> Callable[[float], float]:
    """Where a value lies between the smallest and the largest of `values`, in per cent, with a margin of 4 on both sides."""
    low, high = min(values), max(values)
    width = (high - low) or 1.0
    return lambda x: round(4 + 92 * (x - low) / width, 2)


def _paper(text: Any) -> dict[str, str] | None:
    if not text:
        return None
    shown = words.clean(text, 600)
    number = _ARXIV.search(shown)
    return {"text": shown, "href": f"https://arxiv.org/abs/{number[1]}" if number else ""}


def _sentences(value: Any) -> list[str]:
    items = [value] if isinstance(value, str) else value if isinstance(value, Sequence) else []
    return [words.clean(v, 1000) for v in items if v]


def _pairs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(words.clean(k, 80), words.clean(_told(v), 600)) for k, v in list(values.items())[:60]]


def _told(value: Any) -> str:
    """Lists and tables of plain values as a reader writes them; what is nested deeper as JSON."""
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, Mapping | list | tuple) and not value):
        return "none"
    if isinstance(value, list | tuple) and not any(isinstance(v, Mapping | list | tuple) for v in value):
        return ", ".join(_told(v) for v in value)
    if isinstance(value, Mapping) and not any(isinstance(v, Mapping | list | tuple) for v in value.values()):
        return ", ".join(f"{k} {_told(v)}" for k, v in value.items())
    return _dump(value)


def _pretty(value: Any, limit: int) -> str:
    return words.clean(_dump(value, indent=2), limit)


def _dump(value: Any, indent: int | None = None) -> str:
    """Readable JSON of anything; NaN stands as NaN."""
    return json.dumps(json.loads(json.dumps(plain(value)), object_hook=untag), ensure_ascii=False, indent=indent)


def _command(value: Any) -> str:
    if isinstance(value, list | tuple):
        value = shlex.join(str(v) for v in value)
    return words.clean(value or "", 4000)


# ---- charts


def _charts(
    where: str, before: Finding, after: Finding | None, into: dict[str, Any], points: int
) -> list[dict[str, Any]]:
    pictures = {c.key: c for f in (after, before) if f for c in f.charts}
    order = dict.fromkeys(c.key for f in (before, after) if f for c in f.charts)
    shown = []
    for key in order:
        chart = pictures[key]
        drawn = [(w, c) for w, f in (("before", before), ("after", after)) if f for c in f.charts if c.key == key]
        spot = f"{where}-chart-{len(shown) + 1}"
        if chart.kind == "heat":
            shown.append(_map(spot, chart, drawn, into, points))
            continue
        data, thinned = _rows(drawn, points)
        slider = slide.slider(chart, data)
        if any(r["y"] is not None for r in data):
            into[spot] = _spec(chart, data, len({s.name for _, c in drawn for s in c.series}), slider)
        many = len({r["series"] for r in data}) > 1
        shown.append(
            _about(spot, chart, thinned)
            | {
                "conclusion": words.clean(conclusion(drawn), 600),
                "drawn": spot in into,
                "slider": slider,
                "key": [w for w, _ in drawn],
                "bands": any(r["low"] is not None for r in data),
                "many": many,
                "rows": [
                    {
                        "when": r["when"],
                        "series": r["series"],
                        "x": r["x"] if isinstance(r["x"], str) else words.number(r["x"]),
                        "y": "n/a" if r["y"] is None else words.number(r["y"]),
                        "range": ""
                        if r["low"] is None or r["high"] is None
                        else f"[{words.number(r['low'])}, {words.number(r['high'])}]",
                    }
                    for r in data
                ],
            }
        )
    return shown


def _about(spot: str, chart: Chart, thinned: bool) -> dict[str, Any]:
    """What the page says of a chart of any kind."""
    return {
        "id": spot,
        "kind": chart.kind,
        "title": words.clean(chart.title, 160),
        "reading": words.clean(chart.reading, 600),
        "conclusion": "",
        "here": chart.here is not None,
        "diagonal": chart.diagonal,
        "thinned": thinned,
        "x_title": words.clean(chart.x_title, 120),
        "y_title": words.clean(chart.y_title, 120),
    }


def conclusion(drawn: Sequence[tuple[str, Chart]]) -> str:
    """What a chart of lines or bars shows, in a sentence or two, read off its first series before and after the repair."""
    charts = {when: c for when, c in drawn if c.series}
    first = charts.get("before") or charts.get("after")
    if first is None or first.kind == "heat":
        return ""
    if len(charts) == 2 and charts["before"].series == charts["after"].series:
        return "Before and after the repair are the same: one lies on the other."

    def values(chart: Chart) -> dict[Any, float]:
        s = chart.series[0]
        return {x: float(y) for x, y in zip(s.x, s.y, strict=False) if y is not None and math.isfinite(y)}

    def at(place: Any) -> str:
        x = slide.place(chart, place) if is_number(place) else None
        text = name(place) if x is None else f"{x:.3g}" if abs(x) < 1 else f"{x:.4g}"
        return f"{words.clean(chart.x_title, 80).partition(':')[0]} {text}" if is_number(place) else text

    def told(place: Any) -> str:
        shown = [
            f"{words.number(v[place])} {when}" if len(lines) > 1 else words.number(v[place])
            for when, v in lines.items()
        ]
        return ", ".join(shown)

    chart, lines = first, {when: v for when, c in charts.items() if (v := values(c))}
    places = [x for x in next(iter(lines.values()), {}) if all(x in v for v in lines.values())]
    if not places:
        return ""
    what = words.clean(chart.y_title, 80)
    if chart.kind == "bar":
        return f"{at(places[0])[:1].upper()}{at(places[0])[1:]}: {told(places[0])} ({what})."
    said = ""
    if chart.here is not None:
        near = min(places, key=lambda x: abs(x - chart.here))
        said = f"For the test texts as they are (here), {what}: {told(near)}. "
    if chart.slider is not None and chart.slider.column:  # where few texts are answered, a line is noise
        start = chart.slider.start
        near = min(places, key=lambda x: abs(x - start))
        return f"{said}At {at(near)}: {told(near)}."
    if len(lines) == 2:
        far = max(places, key=lambda x: abs(lines["after"][x] - lines["before"][x]))
        return f"{said}The largest change is at {at(far)}: {told(far)}."
    (v,) = lines.values()
    low, high = min(places, key=lambda x: v[x]), max(places, key=lambda x: v[x])
    return f"{said}It goes from {words.number(v[low])} at {at(low)} to {words.number(v[high])} at {at(high)}."


def _map(
    spot: str, chart: Chart, drawn: Sequence[tuple[str, Chart]], into: dict[str, Any], points: int
) -> dict[str, Any]:
    arranged = heat.arrange(drawn, points)
    specs = heat.specs(arranged, chart, spot, _THEME)
    into |= specs
    return (
        _about(spot, chart, arranged.thinned)
        | {"drawn": bool(specs), "slider": None}
        | heat.shown(arranged, chart, spot)
    )


def _rows(drawn: Sequence[tuple[str, Chart]], points: int) -> tuple[list[dict[str, Any]], bool]:
    """The chart's points as rows; a series with more than `points` of them is thinned evenly, its ends kept."""
    data: list[dict[str, Any]] = []
    thinned = False
    text = any(c.kind == "bar" or any(not is_number(x) for s in c.series for x in s.x) for _, c in drawn)
    for when, chart in drawn:
        for s in chart.series:
            n = min(len(s.x), len(s.y))
            thinned |= n > points
            places = distinct(name(x) for x in s.x) if text else []
            for i in thin(n, points):
                x = s.x[i]
                data.append(
                    {
                        "when": when,
                        "series": words.clean(s.name, 80),
                        "x": places[i] if text else slide.place(chart, finite(x)),
                        "y": finite(s.y[i]),
                        "low": finite(s.low[i]) if s.low is not None else None,
                        "high": finite(s.high[i]) if s.high is not None else None,
                        "cut": finite(s.cut[i]) if s.cut is not None else None,
                    }
                )
    return [r for r in data if r["x"] is not None], thinned


def _spec(chart: Chart, data: list[dict[str, Any]], series: int, slider: dict[str, Any] | None) -> dict[str, Any]:
    """The Vega-Lite specification: before and after in one frame, told apart by colour and by shape.

    With a slider, two layers show where it stands, from the data sets ``at`` and ``picked``, and ``usermeta`` tells the
    page's script what it says.
    """
    import altair as alt

    when = [w for w in ("before", "after") if any(r["when"] == w for r in data)]
    names = list(dict.fromkeys(r["series"] for r in data))
    kind = "nominal" if isinstance(data[0]["x"], str) else "quantitative"
    across = 60 // len({r["x"] for r in data})
    places = list(dict.fromkeys(r["x"] for r in data))
    # Names that begin alike are cut alike, and bars of one name would be stacked.
    wrapped = dict(zip(places, distinct(_lines(p, across) for p in places), strict=True)) if kind == "nominal" else {}
    data = [
        {k: v for k, v in r.items() if k != "cut"}
        | {"line": f"{r['when']} · {r['series']}", "x": wrapped.get(r["x"], r["x"])}
        | ({"name": r["x"]} if wrapped else {})
        for r in data
    ]
    sort = list(dict.fromkeys(r["x"] for r in data)) if kind == "nominal" else alt.Undefined
    title = textwrap.wrap(words.clean(chart.x_title, 120), 44, break_on_hyphens=False) or ""
    x_axis = alt.Axis(title=title, grid=False, labelAngle=0, labelOverlap=True, tickCount=6)
    if chart.log10 and kind == "quantitative":
        x_axis.values = _decades([r["x"] for r in data])
    if kind == "nominal":
        x_axis.labelExpr = "split(datum.label, '\\n')"
    y_axis = alt.Axis(title=words.clean(chart.y_title, 120), tickCount=5)
    zero = chart.kind == "bar"
    if zero:
        scale = alt.Scale(paddingInner=0.4, paddingOuter=0.3)
    else:
        logs: dict[str, Any] = {"type": "log", "nice": False} if chart.log10 else {"zero": False}
        scale = alt.Scale(**logs) if kind == "quantitative" else alt.Scale()
    base = alt.Chart().encode(
        x=alt.X(
            field="x",
            type=kind,
            sort=sort,
            axis=x_axis,
            scale=scale,
        ),
        color=alt.Color(
            field="when",
            type="nominal",
            scale=alt.Scale(domain=when, range=[f"var(--{w})" for w in when]),
            legend=None,  # the page draws this one, in its own type
        ),
        tooltip=[
            alt.Tooltip(field="when", type="nominal", title="repair"),
            alt.Tooltip(field="series", type="nominal", title="series"),
            alt.Tooltip(
                field="name" if wrapped else "x",
                type=kind,
                title=words.clean(chart.x_title, 60),
                format="" if wrapped else ".4~g",
            ),
            alt.Tooltip(field="y", type="quantitative", title=words.clean(chart.y_title, 60), format=".4~g"),
        ],
    )
    y = alt.Y(field="y", type="quantitative", axis=y_axis, scale=alt.Scale(zero=zero))
    layers: list[alt.Chart] = []
    if chart.diagonal and kind == "quantitative":
        ends = [v for r in data for v in (r["x"], r["y"]) if v is not None]
        low, high = min(ends), max(ends)
        if low >= 0 and high <= 1:
            low, high = 0.0, 1.0
        guide = [{"x": low, "y": low}, {"x": high, "y": high}]
        layers.append(
            alt.Chart(alt.Data(values=guide))
            .mark_line(color="var(--rule)", strokeDash=[2, 4], strokeWidth=1.5, aria=False)
            .encode(x=alt.X(field="x", type="quantitative"), y=alt.Y(field="y", type="quantitative"))
        )
    ranged = any(r["low"] is not None and r["high"] is not None for r in data)
    ends_of = {"y": alt.Y(field="low", type="quantitative", axis=y_axis), "y2": alt.Y2(field="high")}
    if chart.kind == "bar":
        side = alt.XOffset(field="line", type="nominal", sort=list(dict.fromkeys(r["line"] for r in data)))
        fade = {"opacity": _by_series(names, [1.0, 0.65, 0.4, 0.25])} if series > 1 else {}
        layers.append(base.mark_bar(cornerRadiusEnd=2).encode(y=y.stack(None), xOffset=side, **fade))
        if len(data) <= 16:
            end = alt.Y(field="high" if ranged else "y", type="quantitative", axis=y_axis)
            value = alt.Text(field="y", type="quantitative", format=".3~g")
            layers.append(
                base.mark_text(dy=-7, fontSize=11, font=_FONT, aria=False)
                .encode(y=end, xOffset=side, text=value, color=alt.value("var(--ink)"))
            )  # fmt: skip
        if ranged:
            layers.append(
                base.mark_rule(strokeWidth=1.5).encode(**ends_of, xOffset=side, color=alt.value("var(--ink)"))
            )
    else:
        if ranged:
            layers.append(
                base.mark_area(opacity=0.16, aria=False).encode(
                    **ends_of, detail=alt.Detail(field="line", type="nominal")
                )
            )
        if series > 1:
            dashes = [[1, 0], [7, 3], [2, 2], [9, 3, 2, 3], [4, 4]]
            scale = alt.Scale(domain=names, range=[dashes[i % 5] for i in range(len(names))])
            dash = alt.StrokeDash(field="series", type="nominal", scale=scale, legend=alt.Legend(symbolSize=400))
        else:
            scale = alt.Scale(domain=when, range=[_DASH[w] for w in when])
            dash = alt.StrokeDash(field="when", type="nominal", scale=scale, legend=None)
        most = max(sum(r["line"] == name for r in data) for name in {r["line"] for r in data})
        line = base.encode(y=y, detail=alt.Detail(field="line", type="nominal"))
        layers.append(line.mark_line(strokeWidth=2.25).encode(strokeDash=dash))
        if most <= 40:
            shape = alt.Shape(field="when", type="nominal", scale=_shapes(when), legend=None)
            layers.append(line.mark_point(size=44, filled=True, opacity=1).encode(shape=shape))
        if chart.here is not None and kind == "quantitative" and (spot_x := slide.place(chart, chart.here)) is not None:
            mark = alt.Chart(alt.InlineData(values=[{"x": spot_x, "text": "here"}]))
            place = alt.X(field="x", type=kind)
            layers.insert(0, mark.mark_rule(color="var(--muted)", strokeDash=[2, 3], aria=False).encode(x=place))
            layers.append(
                mark.mark_text(color="var(--muted)", y=0, dy=-6, fontSize=12, font=_FONT, aria=False)
                .encode(x=place, text=alt.Text(field="text", type="nominal"))
            )  # fmt: skip
        if slider:
            at = slider["stops"][slider["start"]][0]
            rule = alt.Chart(alt.InlineData(values=[{"x": at}], name="at"))
            layers.insert(0, rule.mark_rule(color="var(--ink)", aria=False).encode(x=alt.X(field="x", type=kind)))
            picked = base.properties(data=alt.InlineData(values=slider["picked"], name="picked"))
            layers.append(
                picked.mark_point(size=110, filled=True, opacity=1, stroke="var(--paper)", strokeWidth=2, aria=False)
                .encode(y=y, shape=alt.Shape(field="when", type="nominal", legend=None, scale=_shapes(when)))
            )  # fmt: skip
    picture = alt.layer(*layers, data=alt.Data(values=data)).properties(
        width="container",
        height=280,
        description=f"{words.clean(chart.title, 160)}. {words.clean(chart.reading, 600)}",
        autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
    )
    spec = picture.to_dict(validate=False)
    spec.pop("$schema", None)
    spec["config"] = _THEME
    if slider:
        spec["usermeta"] = {"slider": {k: slider[k] for k in ("stops", "lines")}}
    return spec


def _lines(text: str, across: int) -> str:
    """A name broken into at most three lines of some `across` characters, so that names on an axis stay whole."""
    return "\n".join(textwrap.wrap(text, max(10, across), max_lines=3, placeholder="…"))


def _decades(x: list[float]) -> list[float]:
    """1, 2 and 5 times each power of ten within reach of `x`."""
    low, high = min(x), max(x)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    places = [float(f"{m}e{p}") for p in powers for m in (1, 2, 5)]
    return [v for v in places if low * 0.999 <= v <= high * 1.001]


def _shapes(when: list[str]) -> Any:
    import altair as alt

    return alt.Scale(domain=when, range=[_SHAPE[w] for w in when])


def _by_series(names: list[str], steps: list[float]) -> Any:
    import altair as alt

    return alt.Opacity(
        field="series",
        type="ordinal",
        scale=alt.Scale(domain=names, range=[steps[min(i, len(steps) - 1)] for i in range(len(names))]),
    )


# ---- what goes inside <script>


def _json(value: Any) -> str:
    """JSON for a script element: no character that could end the element, a comment, or a line of script."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def inline(code: str) -> str:
    """Our own script, so that the HTML parser sees no end of the element inside it."""
    code = code.replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(r"<(?=/script|!--)", r"\\x3c", code, flags=re.IGNORECASE)


def policy(scripts: Sequence[str]) -> str:
    hashes = (base64.b64encode(hashlib.sha256(s.encode("utf-8")).digest()).decode() for s in scripts)
    allowed = " ".join(f"'sha256-{h}'" for h in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


@cache
def _vega() -> str:
    """Vega, Vega-Lite and vega-embed in one script: the Vega-Lite version that Altair writes for, if it is there.

    Kept in the cache folder: putting it together takes two seconds.
    """
    import altair as alt
    import vl_convert

    wanted = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    version = {"vl_version": wanted} if wanted in vl_convert.get_vegalite_versions() else {}
    kept, key = Memo(cache_folder() / "scripts"), f"vl-convert {release('vl-convert-python')}, {version}"
    if (known := kept.get(key)) is not None:
        return known["script"].tobytes().decode()
    script = vl_convert.javascript_bundle(**version)
    kept.put(key, {"script": np.frombuffer(script.encode(), np.uint8)})
    return script


@cache
def template(name: str) -> Any:
    """A page's template: everything that it shows is escaped, and a name that it does not know is an error."""
    import jinja2

    env = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return env.from_string(asset(name))


def asset(name: str) -> str:
    return resources.files("trueup.report").joinpath(name).read_text(encoding="utf-8")
