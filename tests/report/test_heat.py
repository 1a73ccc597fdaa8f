"""Maps of cells: before and after on one grid and one scale, empty cells seen as such, names shown as text."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from report_cases import Page, comparison, finding, heat, report

from trueup.faults.fault import Chart, Comparison, Finding
from trueup.report import html
from trueup.report.heat import MOST_SIDE, arrange

NAN = float("nan")
EVIL = "</script><img src=x onerror=alert(1)>\"'`{{7*7}}<b>layer</b>"
BEFORE = heat({"layer 0": [0.1, 0.2, 0.8], "layer 1": [0.0, NAN, 0.3]})
AFTER = heat({"layer 0": [0.1, 0.1, 0.2], "layer 1": [0.0, 0.1, 1.2]})


def draw(before: Chart, after: Chart | None = None) -> tuple[Page, dict[str, Any]]:
    """The page of a report with this one chart, and its specifications."""
    a = replace(finding(), charts=(before,))
    b = replace(finding(), charts=(after,)) if after else None
    page = Page(html.page(report(Comparison(a, b, "r"), examples={})))
    data = [t for attrs, t in page.scripts if attrs.get("type") == "application/json"]
    return page, json.loads(data[0], parse_constant=lambda k: pytest.fail(k)) if data else {}


def scale(spec: dict[str, Any]) -> dict[str, Any]:
    return spec["layer"][0]["encoding"]["fillOpacity"]["scale"]


def cells(spec: dict[str, Any]) -> list[list[float | None]]:
    return [row["values"] for row in spec["data"]["values"]]


def rects(spec: dict[str, Any]) -> int:
    """How many cells Vega-Lite itself draws with a colour of their own strength."""
    import vl_convert

    scene = vl_convert.vegalite_to_scenegraph({**spec, "width": 300})["scenegraph"]
    found = 0

    def walk(node: dict[str, Any]) -> None:
        nonlocal found
        if node.get("marktype") == "rect":
            found += sum("fillOpacity" in i for i in node["items"])
        for item in node.get("items", ()):
            walk(item)

    walk(scene)
    return found


def test_the_finding_round_trips() -> None:
    given = replace(finding(), charts=(BEFORE,), samples={})
    back = Finding.from_dict(given.as_dict())
    assert repr(back) == repr(given)  # NaN differs from itself
    old = given.as_dict()
    for chart in old["charts"]:
        del chart["value_title"]
    assert Finding.from_dict(old).charts[0] == replace(back.charts[0], value_title="")


def test_both_panels_share_rows_columns_and_scale() -> None:
    page, specs = draw(BEFORE, AFTER)
    assert list(specs) == ["fault-1-chart-1-before", "fault-1-chart-1-after"]
    assert set(specs) <= {a.get("id") for _, a in page.elements}
    before, after = specs.values()
    assert scale(before) == scale(after) == {"domain": [0.0, 1.2], "range": [0.0, 1.0]}
    for axis, names in (("x", ["0", "1", "2"]), ("y", ["layer 0", "layer 1"])):
        assert [s["layer"][0]["encoding"][axis]["scale"]["domain"] for s in (before, after)] == [names] * 2
    assert cells(before) == [[0.1, 0.2, 0.8], [0.0, None, 0.3]]
    assert [rects(before), rects(after)] == [5, 6]
    assert [a.get("class") for a in page.all("p")].count("when") == 2
    assert "share of the weight" in page.text


def test_one_finding_only_has_its_own_scale_and_no_headings() -> None:
    page, specs = draw(BEFORE)
    assert list(specs) == ["fault-1-chart-1-before"]
    assert scale(specs["fault-1-chart-1-before"])["domain"] == [0.0, 0.8]
    assert "when" not in [a.get("class") for a in page.all("p")]


@pytest.mark.parametrize("empty", [NAN, None, float("inf")])
def test_an_empty_cell_is_marked_and_counts_for_nothing(empty: Any) -> None:
    page, specs = draw(heat({"layer 0": [0.1, empty, 0.5]}))
    (spec,) = specs.values()
    assert cells(spec) == [[0.1, None, 0.5]]
    assert [layer["mark"]["type"] for layer in spec["layer"]] == ["rect", "rect", "point"]
    assert rects(spec) == 2
    assert "no value" in page.text
    assert "n/a" in page.text

    page, specs = draw(heat({"layer 0": [0.1, 0.2, 0.5]}))
    (spec,) = specs.values()
    assert [layer["mark"]["type"] for layer in spec["layer"]] == ["rect"]
    assert rects(spec) == 3
    assert "no value" not in page.text


@pytest.mark.parametrize(
    ("values", "domain", "strength"),
    [
        ([-0.5, 0.0, 1.0], [-0.5, 0.0, 1.0], [0.5, 0.0, 1.0]),
        ([-2.0, 0.5, 1.0], [-2.0, 0.0, 1.0], [1.0, 0.0, 0.5]),
        ([-2.0, -1.0, -0.5], [-2.0, 0.0], [1.0, 0.0]),
        ([0.5, 1.0, 4.0], [0.0, 4.0], [0.0, 1.0]),
        ([0.0, 0.0, 0.0], [0.0, 1.0], [0.0, 1.0]),
    ],
)
def test_the_scale_starts_at_zero_and_diverges_there(
    values: list[float], domain: list[float], strength: list[float]
) -> None:
    page, specs = draw(heat({"layer 0": values}))
    assert scale(next(iter(specs.values()))) == {"domain": domain, "range": strength}
    sides = ["below"] * 2 * (domain[0] < 0) + ["above"] * 2 * (domain[-1] > 0)
    assert [a["class"] for a in page.all("stop")] == sides
    assert max(float(a["stop-opacity"] or "nan") for a in page.all("stop")) == 1


def test_nothing_to_draw() -> None:
    for chart in (heat({"layer 0": [NAN] * 3}), heat({}), heat({"layer 0": []}, [])):
        page, specs = draw(chart, chart)
        assert specs == {}
        assert "There is nothing to draw" in page.text


def test_what_only_one_panel_has_is_empty_in_the_other() -> None:
    _, specs = draw(heat({"a": [1.0, 2.0]}, ["x", "y"]), heat({"b": [3.0, 4.0]}, ["y", "z"]))
    before, after = specs.values()
    assert cells(before) == [[1.0, 2.0, None], [None, None, None]]
    assert cells(after) == [[None, None, None], [None, 3.0, 4.0]]


def test_hostile_names_are_text() -> None:
    def given(text: str) -> Chart:
        return heat({text: [0.1, NAN], "b": [-0.2, 0.3]}, [text, "b"], title=text, value_title=text, x_title=text)

    calm, _ = draw(given("calm"), given("calm"))
    evil, specs = draw(given(EVIL), given(EVIL))
    assert [t for t, _ in evil.elements] == [t for t, _ in calm.elements]
    assert evil.text.count(EVIL) > 8
    for spec in specs.values():
        assert spec["data"]["values"][0]["row"] == EVIL
        assert rects(spec) == 3


def test_rows_of_one_name_do_not_fall_together() -> None:
    long = "model.layers." * 20
    chart = heat({long + "0": [1.0, 2.0], long + "1": [3.0, 4.0]}, ["u", "u"])
    arranged = arrange([("before", chart)], 300)
    assert len(set(arranged.rows)) == 2
    assert arranged.columns == ["u", "u (2)"]
    assert arranged.panels == {"before": [[1.0, 2.0], [3.0, 4.0]]}


def test_the_table_holds_the_same_numbers_in_rows_and_columns() -> None:
    page, _ = draw(BEFORE, AFTER)
    tables = [a for a in page.all("table") if a.get("class") == "cells"]
    assert len(tables) == 2
    assert len(page.all("caption")) == 3  # the measures have one too
    assert "before: share of the weight; across: head" in page.text
    assert all(a.get("scope") for a in page.all("th"))
    assert "0.800" in page.text


def test_the_screen_reader_is_spared_the_cells_but_told_the_chart() -> None:
    page, specs = draw(BEFORE, AFTER)
    for spec in specs.values():
        assert "A strong colour says" in spec["description"]
        assert all(layer["mark"]["aria"] is False for layer in spec["layer"])
    ramp = next(a for a in page.all("svg") if a.get("role") == "img" and a.get("class") == "ramp")
    assert ramp["aria-label"] == "Colours from 0 to 1.200"


def test_a_hundred_by_a_hundred_stays_small_and_more_is_thinned() -> None:
    def square(n: int, seed: int) -> Chart:
        values = np.random.default_rng(seed).random((n, n))
        return heat({f"layer {i}": [float(v) for v in row] for i, row in enumerate(values)}, range(n))

    plain = html.page(report(comparison(), examples={}))
    a, b = (replace(finding(), charts=(square(100, s),)) for s in (1, 2))
    page = html.page(report(Comparison(a, b, "r"), examples={}))
    assert len(page) - len(plain) < 600_000
    assert "Not every point is drawn" not in page

    wide, specs = draw(square(250, 3))
    assert "Not every point is drawn" in wide.text
    (spec,) = specs.values()
    assert [len(cells(spec)), len(cells(spec)[0])] == [MOST_SIDE] * 2
    rows = [r["row"] for r in spec["data"]["values"]]
    assert (rows[0], rows[-1]) == ("layer 0", "layer 249")
