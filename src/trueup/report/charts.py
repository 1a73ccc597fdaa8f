"""A finding's charts for the page: Vega-Lite specifications, tables of their numbers, and a sentence about what each shows."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from trueup.faults.fault import Chart, Finding
from trueup.report import heat, slide, words
from trueup.report.points import distinct, finite, is_number, name, thin

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"
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


def charts_of(
    where: str, before: Finding, after: Finding | None, into: dict[str, Any], points: int
) -> list[dict[str, Any]]:
    pictures = {c.key: c for f in (after, before) if f for c in f.charts}
    order = dict.fromkeys(c.key for f in (before, after) if f for c in f.charts)
    entries = []
    for key in order:
        chart = pictures[key]
        parts_of_chart = [
            (w, c) for w, f in (("before", before), ("after", after)) if f for c in f.charts if c.key == key
        ]
        chart_id = f"{where}-chart-{len(entries) + 1}"
        if chart.kind == "heat":
            entries.append(_map(chart_id, chart, parts_of_chart, into, points))
            continue
        data, thinned = _rows(parts_of_chart, points)
        slider = slide.slider(chart, data)
        if any(r["y"] is not None for r in data):
            into[chart_id] = _spec(chart, data, len({s.name for _, c in parts_of_chart for s in c.series}), slider)
        several_series = len({r["series"] for r in data}) > 1
        entries.append(
            _about(chart_id, chart, thinned)
            | {
                "conclusion": words.clean(conclusion(parts_of_chart), 600),
                "drawn": chart_id in into,
                "slider": slider,
                "key": [w for w, _ in parts_of_chart],
                "bands": any(r["low"] is not None for r in data),
                "many": several_series,
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
    return entries


def _about(spot: str, chart: Chart, thinned: bool) -> dict[str, Any]:
    """The texts and flags that the page shows for a chart of any kind."""
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
    """One or two sentences about a chart of lines or bars, from its first series before and after the repair."""
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
    quantity = words.clean(chart.y_title, 80)
    if chart.kind == "bar":
        return f"{at(places[0])[:1].upper()}{at(places[0])[1:]}: {told(places[0])} ({quantity})."
    sentence = ""
    if chart.here is not None:
        nearest = min(places, key=lambda x: abs(x - chart.here))
        sentence = f"For the test texts as they are (here), {quantity}: {told(nearest)}. "
    if chart.slider is not None and chart.slider.column:  # where few texts are answered, a line is noise
        start = chart.slider.start
        nearest = min(places, key=lambda x: abs(x - start))
        return f"{sentence}At {at(nearest)}: {told(nearest)}."
    if len(lines) == 2:
        farthest = max(places, key=lambda x: abs(lines["after"][x] - lines["before"][x]))
        return f"{sentence}The largest change is at {at(farthest)}: {told(farthest)}."
    (v,) = lines.values()
    low, high = min(places, key=lambda x: v[x]), max(places, key=lambda x: v[x])
    return f"{sentence}It goes from {words.number(v[low])} at {at(low)} to {words.number(v[high])} at {at(high)}."


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
    """The chart's points as rows, and whether any series was thinned: evenly, to `points` points, with both its ends."""
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
    """The Vega-Lite specification: before and after in one frame, distinguished by colour and by shape.

    With a slider, two layers show its position, from the data sets ``at`` and ``picked``, and ``usermeta`` holds the texts that
    the page's script shows.
    """
    import altair as alt

    when = [w for w in ("before", "after") if any(r["when"] == w for r in data)]
    names = list(dict.fromkeys(r["series"] for r in data))
    kind = "nominal" if isinstance(data[0]["x"], str) else "quantitative"
    line_width = 60 // len({r["x"] for r in data})
    places = list(dict.fromkeys(r["x"] for r in data))
    # Names with the same beginning are cut to the same text, and bars with one name would be stacked, so names are made distinct.
    label_of_name = (
        dict(zip(places, distinct(_lines(p, line_width) for p in places), strict=True)) if kind == "nominal" else {}
    )
    data = [
        {k: v for k, v in r.items() if k != "cut"}
        | {"line": f"{r['when']} · {r['series']}", "x": label_of_name.get(r["x"], r["x"])}
        | ({"name": r["x"]} if label_of_name else {})
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
            legend=None,  # the page draws this legend in its own font
        ),
        tooltip=[
            alt.Tooltip(field="when", type="nominal", title="repair"),
            alt.Tooltip(field="series", type="nominal", title="series"),
            alt.Tooltip(
                field="name" if label_of_name else "x",
                type=kind,
                title=words.clean(chart.x_title, 60),
                format="" if label_of_name else ".4~g",
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
    has_intervals = any(r["low"] is not None and r["high"] is not None for r in data)
    interval_encoding = {"y": alt.Y(field="low", type="quantitative", axis=y_axis), "y2": alt.Y2(field="high")}
    if chart.kind == "bar":
        side = alt.XOffset(field="line", type="nominal", sort=list(dict.fromkeys(r["line"] for r in data)))
        opacity = {"opacity": _by_series(names, [1.0, 0.65, 0.4, 0.25])} if series > 1 else {}
        layers.append(base.mark_bar(cornerRadiusEnd=2).encode(y=y.stack(None), xOffset=side, **opacity))
        if len(data) <= 16:
            end = alt.Y(field="high" if has_intervals else "y", type="quantitative", axis=y_axis)
            value = alt.Text(field="y", type="quantitative", format=".3~g")
            layers.append(
                base.mark_text(dy=-7, fontSize=11, font=_FONT, aria=False)
                .encode(y=end, xOffset=side, text=value, color=alt.value("var(--ink)"))
            )  # fmt: skip
        if has_intervals:
            layers.append(
                base.mark_rule(strokeWidth=1.5).encode(**interval_encoding, xOffset=side, color=alt.value("var(--ink)"))
            )
    else:
        if has_intervals:
            layers.append(
                base.mark_area(opacity=0.16, aria=False).encode(
                    **interval_encoding, detail=alt.Detail(field="line", type="nominal")
                )
            )
        if series > 1:
            dashes = [[1, 0], [7, 3], [2, 2], [9, 3, 2, 3], [4, 4]]
            scale = alt.Scale(domain=names, range=[dashes[i % 5] for i in range(len(names))])
            dash = alt.StrokeDash(field="series", type="nominal", scale=scale, legend=alt.Legend(symbolSize=400))
        else:
            scale = alt.Scale(domain=when, range=[_DASH[w] for w in when])
            dash = alt.StrokeDash(field="when", type="nominal", scale=scale, legend=None)
        most_points = max(sum(r["line"] == name for r in data) for name in {r["line"] for r in data})
        line = base.encode(y=y, detail=alt.Detail(field="line", type="nominal"))
        layers.append(line.mark_line(strokeWidth=2.25).encode(strokeDash=dash))
        if most_points <= 40:
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
    """A name broken into at most three lines of about `across` characters, so that names on an axis are not cut."""
    return "\n".join(textwrap.wrap(text, max(10, across), max_lines=3, placeholder="…"))


def _decades(x: list[float]) -> list[float]:
    """1, 2 and 5 times each power of ten, within the range of `x`."""
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
