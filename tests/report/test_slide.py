"""Sliders and the example table as data: what the page's script will look up, and what each filter chooses."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from report_cases import COVERAGE, Page, finding, mixes, refusing, report, sliding

from trueup.faults.fault import Chart, Comparison, Finding, Series, Slider
from trueup.report import bundle, examples, html, slide
from trueup.store.atomic import new_folder

NAN = float("nan")
LINE = [{"when": "before", "series": "s", "x": x, "y": y, "low": None, "high": None, "cut": None}
        for x, y in ((0.5, 2.0), (1.0, None), (0.1, 1.0), (5.0, 3.0))]  # fmt: skip


def specs(page: Page) -> dict:
    return json.loads(next(t for a, t in page.scripts if a.get("type") == "application/json"))


def test_stops_are_the_measured_points_and_the_start_is_the_nearest() -> None:
    about = slide.slider(mixes(0.5), LINE)
    assert about is not None
    assert about["stops"] == [[0.1, "0.100"], [0.5, "0.500"], [5.0, "5"]]
    assert about["start"] == 1  # 10**0 is nearer to 0.5 than to 5
    assert [p[:3] for p in about["lines"][0]["points"]] == [[0.1, 1.0, "1"], [0.5, 2.0, "2"], [5.0, 3.0, "3"]]
    assert about["picked"][0]["x"] == 0.5


def test_no_slider_where_there_is_nothing_to_slide_over() -> None:
    assert slide.slider(replace(mixes(0.5), slider=None), LINE) is None
    assert slide.slider(replace(mixes(0.5), kind="bar"), LINE) is None
    assert slide.slider(mixes(0.5), LINE[:2]) is None
    assert slide.slider(mixes(0.5), [r | {"x": "a"} for r in LINE]) is None


@pytest.mark.parametrize(("x", "shown"), [(np.log10(5), 5.0), (-1, 0.1), (400, None), (-400, None), (None, None)])
def test_places_on_a_logarithmic_axis(x: float | None, shown: float | None) -> None:
    assert slide.place(mixes(0.5), x) == shown
    assert slide.place(refusing(0.5), x) == x


def test_the_page_holds_the_slider_and_what_it_refuses() -> None:
    page = Page(html.page(sliding()))
    first, second = specs(page).values()
    assert [s[1] for s in first["usermeta"]["slider"]["stops"]] == ["0.100", "0.316", "1", "3.162", "10"]
    before, after = second["usermeta"]["slider"]["lines"]
    assert [before["when"], after["when"]] == ["before", "after"]
    at = COVERAGE.index(0.8)
    assert before["points"][at][3] == "40 of 200"
    assert before["points"][at][4] == pytest.approx(0.2)
    assert after["points"][at][4] == pytest.approx(0.1)
    ranges = [a for a in page.all("input") if a.get("type") == "range"]
    assert [(a["max"], a["value"]) for a in ranges] == [("4", "2"), ("19", "15")]
    labels = {a["for"] for a in page.all("label")}
    assert {a["id"] for a in ranges} <= labels


def test_a_chart_with_a_slider_round_trips(tmp_path) -> None:
    given = sliding()
    with new_folder(tmp_path / "out") as folder:
        bundle.write(given, folder)
    assert bundle.read(tmp_path / "out") == given
    old = finding(charts=(mixes(0.5),)).as_dict()
    for chart in old["charts"]:
        del chart["slider"], chart["log10"]
        for s in chart["series"]:
            del s["cut"]
    back = Finding.from_dict(old).charts[0]
    assert (back.slider, back.log10, back.series[0].cut) == (None, False, None)


def test_hostile_and_empty_values_under_a_slider() -> None:
    evil = "</script><b>"
    line = Series(evil, [0, 1, 400, NAN], [NAN, 1.0, 2.0, 3.0], [NAN] * 4, cut=[NAN, float("inf"), None, 1.0])  # type: ignore[list-item]
    chart = Chart("c", evil, "line", evil, evil, evil, (line, Series("b", [0, 1], [1, 2])), log10=True,
                  slider=Slider(evil, NAN, 10, evil))  # fmt: skip
    page = Page(html.page(report(Comparison(finding(charts=(chart,)), None, ""), examples={"tilt": [{evil: 0.5}]})))
    (spec,) = specs(page).values()
    assert json.dumps(spec["usermeta"], allow_nan=False)
    assert evil in page.text
    assert "b" not in {t for t, _ in page.elements}


def test_the_audits_that_have_sliders_give_what_the_page_needs() -> None:
    from trueup.faults.overconfidence.audit import risk_chart

    rng = np.random.default_rng(0)
    confidence = rng.random(500)
    error = rng.random(500) > confidence
    chart = risk_chart(confidence, ~error)
    assert chart.slider is not None
    assert chart.slider.examples == 500
    line = chart.series[0]
    assert line.cut is not None
    for x, y, cut in zip(line.x, line.y, line.cut, strict=True):
        answered = confidence >= cut
        assert answered.mean() == pytest.approx(float(x))
        assert error[answered].mean() == pytest.approx(y)


# ---- the example table


def table(rows: list[dict], sliders: tuple = ()) -> dict:
    shown = examples.shown(rows, 100, sliders)
    assert shown is not None
    return shown


def chosen(shown: dict) -> dict[str, list[int]]:
    """filter -> the rows it shows."""
    return {
        f["text"]: [i for i, row in enumerate(shown["rows"]) if str(k) in row["inside"].split()]
        for k, f in enumerate(shown["filters"])
    }


def test_filters_are_read_from_the_columns() -> None:
    rows = [
        {"label": "a", "predicted": "b", "copied": True, "confidence": 0.9, "predicted after": "a"},
        {"label": "a", "predicted": "a", "copied": False, "confidence": 0.8, "predicted after": "b"},
        {"label": "b", "predicted": "b", "copied": True, "confidence": 0.7, "predicted after": "b"},
    ]
    shown = table(rows)
    assert chosen(shown) == {
        "errors, most confident first": [0], "copied": [0, 2], "changed by the repair": [0, 1], "fixed by the repair": [0],
        "broken by the repair": [1],
    }  # fmt: skip
    assert [f["count"] for f in shown["filters"]] == [1, 2, 2, 1, 1]
    assert shown["filters"][0]["order"] == 3


def test_right_decides_where_it_is_there() -> None:
    rows = [{"label": "a", "answered": "a", "right": False}, {"label": "a", "answered": "b", "right": True}]
    assert chosen(table(rows)) == {"errors": [0]}


def test_what_chooses_nothing_is_no_filter() -> None:
    rows = [{"label": "a", "predicted": "a", "copied": False, "predicted after": "a", "confidence": 0.1,
             "confidence after": 0.9}]  # fmt: skip
    assert table(rows)["filters"] == []


def test_a_slider_is_a_filter_only_where_its_column_is() -> None:
    lines = [{"when": "before"}, {"when": "after"}]
    about = {"id": "c1", "column": "sure", "lines": lines}
    one = table([{"sure": 0.5}], (about,))["refusing"]
    assert one == [{"id": "c1-before", "slider": "c1", "when": "before", "column": 0}]
    assert len(table([{"sure": 0.5, "sure after": 0.1}], (about,))["refusing"]) == 2
    assert table([{"other": 0.5}], (about,))["refusing"] == []
    assert table([{"": 0.5}], (about | {"column": ""},))["refusing"] == []


def test_numbers_are_kept_exactly_for_sorting() -> None:
    cells = [r["cells"][0] for r in table([{"n": 1 / 3}, {"n": 7}, {"n": NAN}, {"n": None}, {"n": "x"}])["rows"]]
    assert [c["exact"] for c in cells] == [repr(1 / 3), "7.0", None, None, None]
