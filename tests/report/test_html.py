"""The page: whole in one file, under 5 MB, and text from data stays text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_cases import Page, comparison, evil_report, finding, report, with_before

from trueup.faults.fault import Chart, Comparison, Difference, Finding, Measure, Series
from trueup.report import embedded, html
from trueup.report.bundle import Report

NAN = float("nan")


@pytest.fixture(scope="module")
def source() -> str:
    return html.page(report())


@pytest.fixture(scope="module")
def evil_source() -> str:
    return html.page(evil_report())


def test_well_formed_and_small(source: str) -> None:
    page = Page(source)
    assert page.open == []
    assert source.startswith("<!doctype html>")
    assert len(source.encode()) < 5_000_000
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))


def test_every_number_a_reader_needs_is_there(source: str) -> None:
    text = Page(source).text.replace("\u00a0", " ")
    for part in (
        "Found and repaired: severity went from 0.310 [0.270, 0.350]",
        "no measurable gain",
        "▲ better",
        "The repair made other measures worse: drag +0.800 [+0.200, +1.400].",
        "A fair reading lies on the dotted line",
        "The bob is brass",
        "trueup check tiny-gpt2 --data 'my file.csv' -o out",
        "The batch was halved",
        "sha256:ab12",
        "No bob was heavy enough.",
        "example 59: the line was",
        "repaired: The model had the fault.",
    ):
        assert part in text, part
    assert "trade-off: " not in text, "only the words that stand on the page are explained"


def test_nothing_is_fetched(source: str, evil_source: str) -> None:
    for page in (Page(source), Page(evil_source)):
        tags = {t for t, _ in page.elements}
        assert not tags & {"link", "img", "iframe", "object", "embed", "base", "form", "video", "audio", "source"}
        assert not [a for _, a in page.elements if {"src", "srcset", "action", "xlink:href", "style"} & a.keys()]
        outward = [a["href"] for a in page.all("a") if not (a["href"] or "").startswith("#")]
        assert all(h and h.startswith("https://arxiv.org/abs/") for h in outward)
    assert "https://arxiv.org/abs/2401.01234" in [a["href"] for a in Page(source).all("a")]
    style = re.search(r"<style>(.*?)</style>", source, re.DOTALL)
    assert style
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_the_policy_names_exactly_our_scripts(source: str) -> None:
    page = Page(source)
    csp = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert csp
    assert csp.startswith("default-src 'none'")
    run = [text for attrs, text in page.scripts if attrs.get("type") != "application/json"]
    hashes = [base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in run]
    assert re.findall(r"'sha256-([^']+)'", csp) == hashes
    assert "unsafe-eval" not in csp
    assert "'unsafe-inline'" not in csp.split("script-src")[1].split(";")[0]


def test_hostile_text_makes_no_element(evil_source: str) -> None:
    calm, evil = Page(html.page(evil_report("calm"))), Page(evil_source)
    assert len(evil.scripts) == 3
    assert [t for t, _ in evil.elements] == [t for t, _ in calm.elements]
    assert {k for _, a in evil.elements for k in a} == {k for _, a in calm.elements for k in a}
    assert not [k for _, a in evil.elements for k in a if k.startswith("on")]
    ours = evil_source.replace(evil.scripts[1][1], "")  # Vega's own code has such words in its strings
    assert len(ours) < 200_000
    assert not re.search(r"<(script>alert|img)", ours)
    assert evil.text.count("<script>alert(1)</script>") > 20


def test_hostile_text_in_the_embedded_json(evil_source: str) -> None:
    data = next(text for attrs, text in Page(evil_source).scripts if attrs.get("type") == "application/json")
    assert not set("<>&\u2028\u2029") & set(data)
    spec = json.loads(data)["fault-1-chart-1"]
    assert "<script>alert(1)</script>" in json.dumps(spec)
    assert '"url"' not in data
    assert '"$schema"' not in data


def test_templates_in_data_are_not_run(evil_source: str) -> None:
    assert "{{7*7}}" in Page(evil_source).text
    assert "49<" not in evil_source


def test_rtl_and_control_characters() -> None:
    page = html.page(report(comparison(), title="שלום \u202eevil\x00\x1b[31m"))
    assert "שלום �evil��[31m" in page
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", page.split("<script")[0])


def test_huge_strings_are_cut_and_the_page_stays_small() -> None:
    huge = "&" * 3_000_000
    rows = [{f"column {i}": huge[:60_000] for i in range(16)} for _ in range(200)]
    points = list(range(200_000))
    chart = Chart("c", huge, "line", huge, huge, huge, (Series(huge, points, points, points, points),))
    one = finding(sentence=huge, charts=(chart,), details={"x": huge}, provenance={"paper": huge, "y": huge})
    page = html.page(report(Comparison(one, one, huge), examples={"tilt": rows}, notes=[huge]))
    assert len(page.encode()) < 5_000_000
    assert "&amp;…" in page
    assert "Not every point is drawn" in page


def test_nan_everywhere() -> None:
    chart = Chart("c", "t", "line", "x", "y", "r", (Series("s", [0, 1, 2], [NAN, 1.0, NAN], [NAN] * 3, [NAN] * 3),))
    empty = Chart("e", "t", "bar", "x", "y", "r", (Series("s", ["a"], [NAN]),))
    none = Chart("n", "t", "line", "x", "y", "r", ())
    one = finding(severity=NAN, charts=(chart, empty, none), measures={"m": Measure(NAN, NAN, NAN, "u", "lower", "m")})
    c = Comparison(one, one, "r", {"m": Difference(NAN, NAN, NAN, NAN)}, {"h": Difference(NAN, NAN, NAN, NAN)})
    source = html.page(report(c, examples={"tilt": [{"n": NAN}]}))
    page = Page(source)
    assert "Not measured" in page.text
    assert page.text.count("There is nothing to draw") == 2
    data = next(text for attrs, text in page.scripts if attrs.get("type") == "application/json")
    specs = json.loads(data, parse_constant=lambda k: pytest.fail(k))
    assert list(specs) == ["fault-1-chart-1"]


def test_bars_whose_names_begin_alike_are_bars_of_their_own() -> None:
    """A name is wrapped and cut to fit its bar; two that are cut alike must not be stacked on one place."""
    names = [
        f"a long name of a class that differs at its very end only and goes on and on and on and on, number {i}"
        for i in range(6)
    ]
    chart = Chart("c", "t", "bar", "x", "y", "r", (Series("s", names, [0.1 * i for i in range(6)]),))
    source = html.page(report(Comparison(finding(charts=(chart,)), None, "r"), examples={}))
    (spec,) = json.loads(next(t for a, t in Page(source).scripts if a.get("type") == "application/json")).values()
    values = spec["data"]["values"]
    assert len({r["x"] for r in values}) == len({r["name"] for r in values}) == len(names)
    assert spec["layer"][0]["encoding"]["y"]["stack"] is None


def test_each_chart_has_words_and_numbers_beside_it(source: str) -> None:
    page = Page(source)
    specs = json.loads(next(t for a, t in page.scripts if a.get("type") == "application/json"))
    figures = page.all("figure")
    assert len(figures) == len(specs) == 12
    ids = {a.get("id") for _, a in page.elements}
    for figure in figures:
        assert {figure["aria-labelledby"], figure["aria-describedby"]} <= ids
    assert set(specs) <= ids
    assert all(s["description"] for s in specs.values())
    assert page.text.count("Numbers of this chart") == 12


def test_before_and_after_are_in_one_frame(source: str) -> None:
    specs = json.loads(next(t for a, t in Page(source).scripts if a.get("type") == "application/json"))

    def when(spec: dict) -> set[str]:
        return {r["when"] for r in spec["data"]["values"]}

    assert when(specs["fault-1-chart-1"]) == {"before", "after"}
    assert when(specs["fault-4-chart-1"]) == {"before"}
    marks = [layer["mark"]["type"] for layer in specs["fault-1-chart-1"]["layer"]]
    assert marks == ["line", "area", "line", "point"]
    assert specs["fault-1-chart-2"]["layer"][0]["mark"]["type"] == "bar"


def test_the_charts_compile() -> None:
    """Vega-Lite itself accepts every specification, hostile and empty values included, and so does Altair's schema of it."""
    import altair
    import vl_convert

    for given in (report(), evil_report()):
        specs = json.loads(next(t for a, t in Page(html.page(given)).scripts if a.get("type") == "application/json"))
        for spec in specs.values():
            built = {k: v for k, v in spec.items() if k != "config"}
            altair.LayerChart.from_dict(built).to_dict()  # raises where a part of it does not fit
            assert vl_convert.vegalite_to_svg({**spec, "width": 400}).startswith("<svg")


def test_a_page_without_charts_carries_no_chart_code() -> None:
    bare: Finding = replace(finding(), charts=())
    source = html.page(report(Comparison(bare, None, "none")))
    assert len(Page(source).scripts) == 1
    assert len(source) < 100_000


def test_landmarks_and_language(source: str) -> None:
    page = Page(source)
    assert page.all("html")[0]["lang"] == "en"
    assert [len(page.all(t)) for t in ("main", "header", "footer", "h1", "nav")] == [1] * 5
    labels = {a["for"] for a in page.all("label")}
    assert all(a["id"] in labels for a in page.all("input"))
    assert all(a.get("scope") for a in page.all("th"))


def test_too_much_for_one_page_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from trueup.errors import BadInput

    monkeypatch.setattr(html, "MOST_BYTES", 1000)
    with pytest.raises(BadInput, match="fewer faults"):
        html.page(with_no_charts())


def with_no_charts() -> Report:
    return report(with_before(comparison(after=None), charts=()))


def test_examples_may_hold_numpys_own_values_and_no_number() -> None:
    rows = [
        {"text": "plumb", "right": np.bool_(True), "n": np.float64("nan")},
        {"text": "bent", "right": np.bool_(False), "n": 2},
    ]
    page = Page(html.page(report(comparison(), examples={"tilt": rows})))
    assert "yes" in page.text
    assert "n/a" in page.text
    assert "True" not in page.text


def test_the_charts_script_is_put_together_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import vl_convert

    made: list[int] = []
    monkeypatch.setenv("TRUEUP_CACHE", str(tmp_path))
    monkeypatch.setattr(vl_convert, "javascript_bundle", lambda **_: made.append(1) or "let α = 1;")
    once = embedded.vega.__wrapped__
    assert [once(), once()] == ["let α = 1;"] * 2
    assert len(made) == 1
    (file,) = (tmp_path / "scripts").iterdir()
    file.write_bytes(b"damaged")
    assert once() == "let α = 1;"
    assert len(made) == 2
