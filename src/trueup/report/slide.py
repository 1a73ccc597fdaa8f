"""The slider under a line chart: the texts for each of its positions, written here so that the page's script only looks them up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trueup.faults.fault import Chart
from trueup.report import words


def slider(chart: Chart, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The slider of `chart` over its drawn `rows`, for the template and the script; None where the chart has no slider.

    Returns:
        ``stops``: the places [x, as text], ascending. ``start``: the index of the first one shown. ``picked``: the point
        of each line that is nearest to it. ``lines``: per line its repair (``when``), its ``series``, and its points
        [x, y, y as text, refused as text, cut], ascending.
    """
    if chart.slider is None or chart.kind != "line":
        return None
    points_drawn = [r for r in rows if r["y"] is not None and not isinstance(r["x"], str)]
    places = sorted({r["x"] for r in points_drawn})
    if len(places) < 2:
        return None
    lines: dict[tuple[str, str], list[list[Any]]] = {}
    for r in sorted(points_drawn, key=lambda r: r["x"]):
        lines.setdefault((r["when"], r["series"]), []).append(
            [r["x"], r["y"], _value(r), _refused(r["x"], chart.slider.examples), r["cut"]]
        )
    start_place = place(chart, chart.slider.start)
    start = 0 if start_place is None else min(range(len(places)), key=lambda i: abs(places[i] - start_place))
    picked = {key: min(points, key=lambda p: abs(p[0] - places[start])) for key, points in lines.items()}
    return {
        "label": words.clean(chart.slider.label, 160),
        "what": words.clean(chart.y_title, 120),
        "column": chart.slider.column,
        "stops": [[x, words.number(x)] for x in places],
        "start": start,
        "picked": [
            {"when": w, "series": s, "line": f"{w} · {s}", "x": p[0], "y": p[1]} for (w, s), p in picked.items()
        ],
        "lines": [{"when": w, "series": s, "points": p} for (w, s), p in lines.items()],
        "many": len({s for _, s in lines}) > 1,
    }


def place(chart: Chart, x: float | None) -> float | None:
    """The value of `x` on the axis that is drawn; None where it is too large for a logarithmic axis.

    It is rounded to six digits: a power of a logarithm is off in the sixteenth digit, and 5 should read 5.
    """
    if x is None or not chart.log10:
        return x
    return float(f"{10.0**x:.6g}") if abs(x) < 300 else None


def _value(row: Mapping[str, Any]) -> str:
    text = words.number(row["y"])
    ends = [row["low"], row["high"]]
    return text if None in ends else f"{text} [{words.number(ends[0])}, {words.number(ends[1])}]"


def _refused(x: float, examples: int) -> str:
    return f"{round(examples * (1 - x)):,} of {examples:,}" if examples else ""
