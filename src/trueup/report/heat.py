"""Maps of cells (layer by head): before and after as two panels of the same rows, columns and colours.

The colour is a theme colour of the page with an opacity by value. So it fits a light and a dark theme, its lightness alone
shows the value, and nothing is drawn again when the reader changes the theme.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trueup.faults.fault import Chart
from trueup.report import words
from trueup.report.points import distinct, finite, name, thin

MOST_SIDE = 100
"""The most rows and columns that are drawn: a browser lays out one element per cell."""

_NARROW = 40
"""With at most this many columns, the two panels are side by side."""

_CROSS = "M-0.5,-0.5L0.5,0.5M0.5,-0.5L-0.5,0.5"
_LEGEND = 220
"""Width of the legend's ramp in pixels."""


@dataclass(frozen=True)
class Map:
    """The panels of one chart on common rows and columns, and their common scale.

    Attributes:
        panels: ``before`` and/or ``after`` -> its cells, row by row; None where there is no value.
        domain: the values from weakest through 0 to strongest: [0, high], [low, 0] or [low, 0, high].
        strength: opacity of the colour at each value of `domain`, 0 to 1: proportional to its distance from 0.
        thinned: rows or columns were left out.
    """

    rows: list[str]
    columns: list[str]
    panels: dict[str, list[list[float | None]]]
    domain: list[float]
    strength: list[float]
    thinned: bool

    @property
    def drawn(self) -> bool:
        """True when any cell has a value."""
        return any(v is not None for cells in self.panels.values() for row in cells for v in row)

    @property
    def holes(self) -> bool:
        """True when any cell has none."""
        return any(v is None for cells in self.panels.values() for row in cells for v in row)


def arrange(drawn: Sequence[tuple[str, Chart]], most: int) -> Map:
    """The charts of one key, before and after, on one grid of at most `most` rows and columns, and one scale.

    A row or column that only one of them has is kept, and has no values in the other.
    """
    most = min(most, MOST_SIDE)
    cells: dict[str, dict[tuple[str, str], float | None]] = {}
    rows: dict[str, None] = {}
    columns: dict[str, None] = {}
    for when, chart in drawn:
        cells[when] = {}
        for row, s in zip(distinct(words.clean(s.name, 80) for s in chart.series), chart.series, strict=True):
            places = distinct(name(x) for x in s.x)
            cells[when].update({(row, p): finite(y) for p, y in zip(places, s.y, strict=False)})
            rows[row] = None
            columns.update(dict.fromkeys(places))
    keep_rows = [list(rows)[i] for i in thin(len(rows), most)]
    keep_columns = [list(columns)[i] for i in thin(len(columns), most)]
    panels = {w: [[c.get((r, p)) for p in keep_columns] for r in keep_rows] for w, c in cells.items()}
    values = [v for panel in panels.values() for row in panel for v in row if v is not None]
    low, high = _short(min([0.0, *values])), _short(max([0.0, *values]))
    if low == high:  # all 0: any scale shows it, but a scale needs two ends
        high = 1.0
    domain = [low] * (low < 0) + [0.0] + [high] * (high > 0)
    largest = max(abs(v) for v in domain)
    strength = [abs(v) / largest for v in domain]
    thinned = len(keep_rows) < len(rows) or len(keep_columns) < len(columns)
    return Map(keep_rows, keep_columns, panels, domain, strength, thinned)


def shown(heat: Map, chart: Chart, spot: str) -> dict[str, Any]:
    """The parts of `heat` that the page shows besides the pictures: panels with the numbers of the table, and the legend."""
    return {
        "wide": len(heat.columns) > _NARROW,
        "columns": heat.columns,
        "panels": [
            {
                "id": f"{spot}-{when}",
                "when": when,
                "rows": [
                    (row, ["n/a" if v is None else words.number(v) for v in line])
                    for row, line in zip(heat.rows, cells, strict=True)
                ],
            }
            for when, cells in heat.panels.items()
        ],
        "value_title": words.clean(chart.value_title, 120),
        "holes": heat.holes,
        "legend": _legend(heat),
    }


def specs(heat: Map, chart: Chart, spot: str, theme: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """One Vega-Lite specification per panel, by the id of the element it is drawn in; none when no cell has a value."""
    if not heat.drawn:
        return {}
    return {f"{spot}-{when}": _spec(heat, chart, when, theme) for when in heat.panels}


def _short(x: float) -> float:
    """`x` with four digits, as the tooltip shows it: long fractions would take most of the page's size."""
    return float(f"{x:.4g}")


def _legend(heat: Map) -> dict[str, Any]:
    """The ramp as stops of a gradient, in per cent of its width, with the numbers under it.

    The colour changes at 0, so there are two stops at 0: one of strength 0 for each side.
    """
    low, high = heat.domain[0], heat.domain[-1]
    stops = []
    marks = []
    for value, strength in zip(heat.domain, heat.strength, strict=True):
        at = round(100 * (value - low) / (high - low), 2)
        sides = (["below"] if low < 0 and value <= 0 else []) + (["above"] if high > 0 and value >= 0 else [])
        stops += [{"at": at, "side": side, "strength": round(strength, 3)} for side in sides]
        if value in (low, high) or 20 <= at <= 80:  # a 0 near an end would cover the number at that end
            anchor = "start" if value == low else "end" if value == high else "middle"
            marks.append({"at": at, "anchor": anchor, "text": words.number(value)})
    return {"width": _LEGEND, "stops": stops, "marks": marks}


def _spec(heat: Map, chart: Chart, when: str, theme: Mapping[str, Any]) -> dict[str, Any]:
    import altair as alt

    step = max(6, min(24, 480 // len(heat.rows)))
    x_title, y_title = words.clean(chart.x_title, 120), words.clean(chart.y_title, 120)
    # One datum per row; the columns' names are looked up by position, so that they are written once and not per cell.
    values = [
        {"when": when, "row": row, "values": [None if v is None else _short(v) for v in line]}
        for row, line in zip(heat.rows, heat.panels[when], strict=True)
    ]
    column_names = alt.Data(values=[{"at": i, "column": c} for i, c in enumerate(heat.columns)])
    axis_style: dict[str, Any] = {
        "ticks": False,
        "domain": False,
        "grid": False,
        "labelOverlap": True,
        "labelSeparation": 4,
    }
    base = alt.Chart().encode(
        x=alt.X(
            field="column",
            type="nominal",
            scale=alt.Scale(domain=heat.columns),
            axis=alt.Axis(title=x_title, labelAngle=0, labelLimit=90, **axis_style),
        ),
        y=alt.Y(
            field="row",
            type="nominal",
            scale=alt.Scale(domain=heat.rows),
            axis=alt.Axis(title=y_title, labelLimit=110, **axis_style),
        ),
        tooltip=[
            alt.Tooltip(field="when", type="nominal", title="repair"),
            alt.Tooltip(field="row", type="nominal", title=words.clean(chart.y_title, 60) or "row"),
            alt.Tooltip(field="column", type="nominal", title=words.clean(chart.x_title, 60) or "column"),
            alt.Tooltip(field="told", type="nominal", title=words.clean(chart.value_title, 60) or "value"),
        ],
    )
    gap = 1 if step >= 10 and len(heat.columns) <= _NARROW else 0
    # Hidden from screen readers, which would read thousands of cells: the table below holds the same numbers.
    cells = (
        base.mark_rect(stroke="var(--paper)", strokeWidth=gap, aria=False)
        .transform_filter("isValid(datum.value)")
        .encode(
            fill=alt.condition("datum.value < 0", alt.value("var(--heat-below)"), alt.value("var(--heat-above)")),
            fillOpacity=alt.FillOpacity(
                field="value",
                type="quantitative",
                scale=alt.Scale(domain=heat.domain, range=heat.strength),
                legend=None,  # the page draws one for both panels
            ),
        )
    )
    layers: list[alt.Chart] = [cells]
    if heat.holes:
        holes = base.transform_filter("!isValid(datum.value)")
        layers.append(holes.mark_rect(fill="var(--paper)", stroke="var(--paper)", strokeWidth=gap, aria=False))
        layers.append(
            holes.mark_point(shape=_CROSS, size=min(64, step * step / 4), stroke="var(--muted)", filled=False,
                             strokeWidth=1, opacity=0.8, aria=False)
        )  # fmt: skip
    picture = (
        alt.layer(*layers, data=alt.Data(values=values))
        .transform_calculate(at="sequence(length(datum.values))")
        .transform_flatten(["values", "at"], ["value", "at"])
        .transform_calculate(told="isValid(datum.value) ? format(datum.value, '.4~g') : 'no value'")
        .transform_lookup("at", from_=alt.LookupData(data=column_names, key="at", fields=["column"]))
        .properties(
            width="container",
            height=step * len(heat.rows),
            view=alt.ViewBackground(fill="var(--heat-zero)"),
            description=f"{words.clean(chart.title, 160)}, {when}. {words.clean(chart.reading, 600)}",
            autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
        )
    )
    spec = picture.to_dict(validate=False)
    spec.pop("$schema", None)
    spec["config"] = theme
    return spec
