"""The report as one self-contained page: it opens from disk, loads nothing, and runs only the scripts that it was written with.

Everything from data passes `words.clean` (cut, no control characters) and then jinja's autoescape or `as_json`. A content
security policy names the page's own scripts by hash, so that no other script runs even after an error in the escaping.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trueup.faults.confounding.leads import Scouted
from trueup.faults.fault import Comparison, Difference, Finding, Measure, Method
from trueup.report import examples, glossary, words
from trueup.report.charts import charts_of
from trueup.report.contents import Contents
from trueup.report.embedded import as_json, asset, inline, policy, template, vega
from trueup.report.values import plain, untag

MOST_BYTES = 5_000_000
MOST_POINTS = 300

_ARXIV = re.compile(r"(?:arXiv:?\s*|https?://arxiv\.org/(?:abs|pdf)/)(\d{4}\.\d{4,5})", re.IGNORECASE)
_UNEXAMINED = re.compile(r"([a-z][a-z0-9_]*) was not examined: (.+)", re.DOTALL)
"""A note that a fault was not examined. The page shows it as a row of the faults and not among the notes."""


def page(report: Contents) -> str:
    """The whole HTML page, under 5 MB: long cells and dense charts are shortened until it fits, and the page says so.

    Raises:
        BadInput: it does not fit even then (the report holds far too many faults or charts).
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
    # Altair checks every part of a chart against its schema, which would take half the time of a page. A test does this instead.
    with debug_mode(False):
        faults = [
            _fault(f"fault-{i}", c, report.examples.get(c.before.fault, ()), charts, cell, points)
            for i, c in enumerate(report.comparisons, 1)
        ]
    unexamined_notes = (m for n in report.notes if (m := _UNEXAMINED.fullmatch(n)))
    reasons = {m[1]: m[2] for m in unexamined_notes} | report.unexamined
    code = asset("page.js")
    states = {words.state_of(c) for c in report.comparisons}
    scripts = [inline(vega()), inline(code)] if charts else [inline(code)]
    return template("page.html.jinja").render(
        title=words.clean(report.title, 200),
        top=_top(report, faults),
        faults=faults,
        unexamined=[
            (words.clean(k.replace("_", " "), 80), words.clean(v[:1].upper() + v[1:], 600)) for k, v in reasons.items()
        ],
        meanings=[(s, words.MEANING[s]) for s in words.RANK if s in {*states, *(["not examined"] * bool(reasons))}],
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
        charts=Markup(as_json(charts)) if charts else None,
        scripts=[Markup(s) for s in scripts],
    )


def _search(found: Scouted | None) -> dict[str, Any] | None:
    """The results of a check's search for columns (no confounder was named), and the next step."""
    if found is None:
        return None
    sentence, command = words.go_on(found)
    return {
        "sentence": words.clean(words.search_sentence(found), 2000), "named": bool(found.leads),
        "more": found.named - len(found.leads), "rows": [words.lead(x) for x in found.leads or found.unproven],
        "next": sentence, "command": command,
    }  # fmt: skip


def _peak(report: Contents) -> dict[str, str]:
    return {"peak memory": f"{peak / 1e6:,.0f} MB"} if (peak := report.run.get("peak_bytes", 0)) else {}


# ---- what the template shows


def _top(report: Contents, faults: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The card at the top: the fault that needs attention most, which adapters to use, and what to do next."""
    order = sorted(range(len(faults)), key=lambda i: words.RANK.index(words.state_of(report.comparisons[i])))
    if not order:
        return None
    first, fault = report.comparisons[order[0]], faults[order[0]]
    sentences = (first.consequence or first.before.sentence, words.happened(first), words.accuracy_line(first))
    return {
        "fault": fault,
        "of": len(faults),
        "said": [_hold(words.clean(t, 1000)) for t in sentences if t],
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
    samples = [
        [(words.clean(k, 80), words.clean(v, 300)) for k, v in sample.items()] for sample in data.get("samples", ())
    ]
    return {
        "names": ["class", *attributes], "splits": splits, "rows": rows, "more": int(data.get("more") or 0),
        "samples": samples, "totals": [f"{sum(r[i - len(splits)] for r in data['rows']):,}" for i in range(len(splits))],
    }  # fmt: skip


def _previous(previous: Mapping[str, Any]) -> dict[str, Any] | None:
    """The changes since the check that this one replaced; None if there was none."""
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
    titles = ["severity", "threshold", "interval", *(["paired"] if any(c.after for c in report.comparisons) else [])]
    for c in report.comparisons:
        titles += [c.before.unit, *(m.title for m in c.before.measures.values()), *(x.x_title for x in c.before.charts)]
    return titles


def _fault(
    spot: str, c: Comparison, table: Sequence[Mapping[str, Any]], charts: dict[str, Any], cell: int, points: int
) -> dict[str, Any]:
    before, after = c.before, c.after
    state = words.state_of(c)
    provenance = {**(after.provenance if after else {}), **before.provenance}
    resamples = provenance.get("resamples") if isinstance(provenance.get("resamples"), int) else None
    pictures = charts_of(spot, before, after, charts, points)
    # The main chart is the first one that marks the values of the audited examples (`here`).
    main_chart = next((p for p in pictures if p["here"]), pictures[0] if pictures else None)
    sliders = [{**p["slider"], "id": p["id"]} for p in pictures if p["slider"]]
    rows = [_row(r, resamples) for r in words.rows(c)]
    headline_keys = [k for k in provenance.get("headline") or () if any(r["key"] == k for r in rows)] or [
        r["key"] for r in rows
    ]
    shown_elsewhere = ("title", "question", "paper", "departures", "headline")
    return {
        "id": spot,
        "title": words.title_of(before),
        "question": words.clean(provenance.get("question") or "", 400),
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
        "headline": [r for k in headline_keys[:3] for r in rows if r["key"] == k],
        "rows": rows,
        "harm": [_row(r, resamples) for r in words.harm_rows(c)],
        "harm_sentence": _hold(words.harm_sentence(c)),
        "frontier": _frontier(c),
        "methods": _methods(c),
        "main": main_chart,
        "charts": [p for p in pictures if p is not main_chart],
        "examples": examples.shown(table, cell, sliders, str(before.details.get("attribute") or "")),
        "paper": _paper(provenance.get("paper")),
        "departures": _sentences(provenance.get("departures")),
        "details": [
            (when, _pretty(f.details, 6000)) for when, f in (("Before", before), ("After", after)) if f and f.details
        ],
        "provenance": _pairs({k: v for k, v in provenance.items() if k not in shown_elsewhere}),
    }


def _hold(sentence: str) -> str:
    """The sentence with no-break spaces in its intervals, so that each stays on one line."""
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
    """The headline as a picture: the positions of the intervals on one scale, in per cent of its width."""
    audits = [("before", before)] + ([("after", after)] if after else [])
    finite_audits = [(w, f) for w, f in audits if all(map(math.isfinite, (f.severity, f.low, f.high)))]
    marks = [x for _, f in finite_audits for x in (f.low, f.high, f.severity)]
    if not finite_audits or not math.isfinite(before.threshold):
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
        for i, (w, f) in enumerate(finite_audits)
    ]
    intervals = "; ".join(f"{w} {words.interval(f)}" for w, f in finite_audits)
    return {
        "lines": lines,
        "threshold": at(before.threshold),
        "height": 20 * len(lines) + 18,
        "anchor": "start" if at(before.threshold) < 30 else "end" if at(before.threshold) > 70 else "middle",
        "alt": f"Severity on one scale: {intervals}; threshold {words.number(before.threshold)}.",
        "threshold_text": words.number(before.threshold),
        "unit": words.clean(before.unit, 120),
    }


def _methods(c: Comparison) -> dict[str, Any] | None:
    """All methods on the test examples, in the order in which they were tried."""
    if not c.methods:
        return None
    keys = list(c.methods[0].values)
    title_of_key = {k: c.before.measures[k].title if k in c.before.measures else k.replace("_", " ") for k in keys}

    def cell(m: Method, k: str) -> tuple[str, tuple[str, str]]:
        d = m.differences.get(k)
        return words.number(m.values[k]), words.parts(d, sign=True) if d else ("", "")

    return {
        "titles": [words.clean(title_of_key[k], 80) for k in keys],
        "rows": [
            {
                "title": words.clean(m.title, 160), "source": words.clean(m.source, 80), "setting": words.clean(m.setting, 80),
                "chosen": m.chosen, "cells": [cell(m, k) for k in keys],
            }
            for m in c.methods
        ],
    }  # fmt: skip


def _frontier(c: Comparison) -> dict[str, Any] | None:
    """Gain and cost of the repairs that were tried, as a picture (in per cent of its width and height) and a table."""
    tried = [
        a
        for a in c.alternatives
        if all(map(math.isfinite, (a.gain, a.gain_low, a.gain_high, a.cost, a.cost_low, a.cost_high)))
    ]
    if not tried:
        return None
    x_scale = _scale([c.budget, 0.0, *(x for a in tried for x in (a.cost, a.cost_low, a.cost_high))])
    y_scale = _scale([0.0, *(x for a in tried for x in (a.gain, a.gain_low, a.gain_high))])
    points = []
    for i, a in enumerate(tried, 1):
        gain, cost = words.price(a)
        points.append({
            "number": i, "title": words.clean(a.title, 160), "key": words.clean(a.key, 60), "gain": gain, "cost": cost,
            "x": x_scale(a.cost), "left": x_scale(a.cost_low), "right": x_scale(a.cost_high),
            "y": 100 - y_scale(a.gain), "bottom": 100 - y_scale(a.gain_low), "top": 100 - y_scale(a.gain_high),
            "chosen": a.chosen, "saveable": a.saveable,
        })  # fmt: skip
    highest_cost, highest_gain = (max(max(getattr(a, k) for a in tried), 0.0) for k in ("cost_high", "gain_high"))
    return {
        "points": points,
        "budget": x_scale(c.budget),
        "nothing": 100 - y_scale(0.0),
        "right": {"at": x_scale(highest_cost), "text": f"{100 * highest_cost:+.1f} points lost"},
        "top": {"at": 100 - y_scale(highest_gain), "text": f"{words.number(highest_gain, sign=True)} gained"},
        "budget_text": f"{100 * c.budget:.3g}",
        "unit": words.clean(c.before.unit, 120),
        "alt": f"{len(tried)} repairs by what they gain and what they cost; the table below has the numbers.",
    }


def _scale(values: Sequence[float]) -> Callable[[float], float]:
    """A function that places a value between the smallest and the largest of `values`, in per cent, with margins of 4."""
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
    """Lists and mappings of plain values as text with commas; values that are nested deeper as JSON."""
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
    """Readable JSON of any value; NaN is written as NaN."""
    return json.dumps(json.loads(json.dumps(plain(value)), object_hook=untag), ensure_ascii=False, indent=indent)


def _command(value: Any) -> str:
    if isinstance(value, list | tuple):
        value = shlex.join(str(v) for v in value)
    return words.clean(value or "", 4000)
