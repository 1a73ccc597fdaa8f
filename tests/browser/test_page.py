"""The page as a reader meets it: it opens clean from disk, its sliders and filters work, and data stays text."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import pytest
from browser_cases import Opened
from report_cases import evil_report, report, sliding

from trueup.report import html

Show = Callable[..., Opened]
MIX, COVERAGE = "#fault-1-chart-1-at", "#fault-1-chart-2-at"
TABLE = "#fault-1-examples"


@pytest.fixture(scope="module")
def sliders() -> str:
    return html.page(sliding())


@pytest.fixture(scope="module")
def hostile() -> str:
    return html.page(evil_report())


def readout(page: Any, chart: int) -> list[list[str]]:
    """What stands under a slider, row by row: repair, value, refused."""
    rows = page.locator(f"[data-slider=fault-1-chart-{chart}] tbody tr").all()
    return [[c.inner_text().strip() for c in row.locator("th, td.num").all()] for row in rows]


def shown(page: Any) -> list[list[str]]:
    """The cells of the example rows that can be seen, in their order, without the badge of what the repair moved."""
    return page.evaluate(
        "selector => [...document.querySelector(selector).tBodies[0].rows].filter(r => r.checkVisibility()).map(r => [...r.cells]"
        ".map(c => [...c.childNodes].filter(n => n.className !== 'moved fixed' && n.className !== 'moved broken')"
        ".map(n => n.textContent).join('').trim()))",
        TABLE,
    )


def chip(page: Any, text: str) -> Any:
    return page.locator(".chips button", has_text=text)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("which", ["all kinds of charts", "sliders", "hostile"])
def test_it_opens_without_a_word_and_asks_for_nothing(
    show: Show, sliders: str, hostile: str, which: str, theme: str
) -> None:
    source = {"sliders": sliders, "hostile": hostile}.get(which) or html.page(report())
    seen = show(source, color_scheme=theme)
    seen.page.wait_for_timeout(200)
    assert (seen.said, seen.dialogs, seen.asked) == ([], [], [seen.address])
    assert seen.page.locator(".canvas svg").count() == seen.page.locator(".canvas").count() > 0
    light = seen.page.evaluate("parseInt(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]) > 128")
    assert light == (theme == "light")


def test_the_slider_of_a_mix_changes_the_numbers(show: Show, sliders: str) -> None:
    page = show(sliders).page
    assert readout(page, 1) == [["before", "0.600 [0.580, 0.620]"], ["after", "0.800 [0.780, 0.820]"]]
    rule = page.locator("#fault-1-chart-1 svg .mark-rule.layer_0_marks line")
    left = rule.bounding_box()["x"]
    page.locator(MIX).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert readout(page, 1) == [["before", "0.700 [0.680, 0.720]"], ["after", "0.900 [0.880, 0.920]"]]
    assert page.locator(f"output[for={MIX[1:]}]").inner_text() == "10"
    told = page.locator(MIX).get_attribute("aria-valuetext")
    assert told == "10; before the repair 0.700 [0.680, 0.720]; after the repair 0.900 [0.880, 0.920]"
    page.wait_for_function("([x, line]) => line.getBoundingClientRect().x > x + 50", arg=[left, rule.element_handle()])
    frame = page.locator("#fault-1-chart-1 svg .background").first.bounding_box()
    assert rule.bounding_box()["x"] == pytest.approx(frame["x"] + frame["width"], abs=3)
    page.keyboard.press("Home")
    assert readout(page, 1)[0] == ["before", "0.500 [0.480, 0.520]"]


def test_the_slider_of_a_coverage_says_and_shows_what_is_refused(show: Show, sliders: str) -> None:
    page = show(sliders).page
    assert readout(page, 2) == [["before", "0.240", "40 of 200"], ["after", "0.160", "40 of 200"]]
    page.locator(COVERAGE).fill("9")  # the tenth point: one half answered
    assert readout(page, 2) == [["before", "0.150", "100 of 200"], ["after", "0.100", "100 of 200"]]
    page.get_by_role("button", name="Show the refused before the repair").click()
    assert {float(r[4]) < 0.5 for r in shown(page)} == {True}
    assert len(shown(page)) == 20
    assert chip(page, "refused before").get_attribute("aria-pressed") == "true"
    assert page.evaluate("document.activeElement.id") == "fault-1-chart-2-before"
    page.get_by_role("button", name="Show the refused after the repair").click()
    assert len(shown(page)) == 16  # below 1 - 0.5 - 0.1, by the other column
    assert {float(r[6]) < 0.4 for r in shown(page)} == {True}
    # The table follows the slider.
    page.locator(COVERAGE).fill("19")
    assert shown(page) == []
    assert chip(page, "refused after").inner_text().split()[-1] == "0"


def test_filters_choose_and_combine(show: Show, sliders: str) -> None:
    page = show(sliders).page
    assert len(shown(page)) == 40
    chip(page, "copied").click()
    assert {r[3] for r in shown(page)} == {"yes"}
    chip(page, "changed by the repair").click()
    rows = shown(page)
    assert {r[3] for r in rows} == {"yes"}
    assert all(r[2] != r[5] for r in rows)
    chip(page, "copied").click()
    chip(page, "changed by the repair").click()
    assert len(shown(page)) == 40
    chip(page, "errors, most confident first").click()
    rows = shown(page)
    assert all(r[1] != r[2] for r in rows)
    sure = [float(r[4]) for r in rows]
    assert sure == sorted(sure, reverse=True)
    for name in ("errors", "copied", "changed by the repair", "fixed by the repair"):
        told = int(chip(page, name).locator(".count").inner_text())
        assert told > 0
    count = page.locator("#fault-1 .filter output")
    assert count.inner_text() == f"{len(rows)} of 40 shown, sorted by confidence"
    page.get_by_label("Show rows with").fill("BENT line")
    assert {"bent" in r[0] for r in shown(page)} == {True}
    assert 0 < len(shown(page)) < len(rows)


def test_columns_sort_by_keyboard_and_back(show: Show, sliders: str) -> None:
    page = show(sliders).page
    first = shown(page)
    head = page.locator(f"{TABLE} th", has_text=re.compile("^confidence$"))
    head.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert [float(r[4]) for r in shown(page)] == sorted((float(r[4]) for r in first), reverse=True)
    page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") is None
    assert shown(page) == first
    text = page.locator(f"{TABLE} th", has_text="text").get_by_role("button")
    text.click()
    assert [r[0] for r in shown(page)][:3] == ["line 0 is bent", "line 1 is plumb", "line 2 is plumb"]
    assert [r[0] for r in shown(page)][-1] == "line 39 is plumb"


def test_everything_is_reached_by_the_tab_key(show: Show, sliders: str) -> None:
    page = show(sliders).page
    reached = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("(e => e.id || e.dataset.inside || e.className || e.tagName)(document.activeElement)")
        )
    assert {"skip", MIX[1:], COVERAGE[1:], "fault-1-chart-2-before", "fault-1-filter", "examples"} <= reached


ATTACK = "<script>alert('run')</script><img src=x onerror=\"alert('run')\">"


def test_a_script_in_the_data_does_not_run(show: Show, hostile: str) -> None:
    for settings in ({}, {"bypass_csp": True}):  # the escaping alone, and under the policy
        seen = show(hostile, **settings)
        for slider in seen.page.locator("input[type=range]").all():
            slider.press("ArrowRight")
        for button in seen.page.locator(".filter button, th button").all():
            button.click()
        seen.page.wait_for_timeout(200)
        assert (seen.said, seen.dialogs, seen.asked) == ([], [], [seen.address])
        assert seen.page.locator("img").count() == 0
        assert "<script>alert(1)</script>" in seen.page.locator("h1").inner_text()


def test_were_the_escaping_to_slip_the_policy_would_hold(show: Show, sliders: str) -> None:
    slipped = sliders.replace('<main id="content"', f'{ATTACK}<main id="content"')
    held = show(slipped)
    assert held.dialogs == []
    assert any("Content Security Policy" in m for m in held.said)
    # The control: without the policy this test would notice.
    assert show(slipped, bypass_csp=True).dialogs == ["run", "run"]


def test_without_scripts_the_numbers_are_there(show: Show, sliders: str) -> None:
    page = show(sliders, wait=False, java_script_enabled=False).page
    assert page.locator("[data-slider]").first.is_hidden()
    assert page.locator("#fault-1 .filter").is_hidden()
    assert page.locator(f"{TABLE} tbody tr").count() == 40
    page.locator("summary", has_text="Numbers of this chart").first.click()
    assert page.get_by_text("[0.580, 0.620]").is_visible()


def test_on_paper_the_controls_are_gone_and_the_numbers_stay(show: Show, sliders: str) -> None:
    page = show(sliders, color_scheme="dark").page
    page.emulate_media(media="print", color_scheme="dark")
    assert page.locator(MIX).is_hidden()
    assert page.locator("#fault-1 .filter").is_hidden()
    assert readout(page, 1)[0] == ["before", "0.600 [0.580, 0.620]"]
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert len(shown(page)) == 10, "ten examples on paper, of forty"
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = false; })")
    paper = page.pdf()
    assert paper.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", paper)) <= 6


@pytest.mark.parametrize("width", [340, 390, 768, 1600])
def test_no_width_scrolls_sideways(show: Show, sliders: str, width: int) -> None:
    page = show(sliders, viewport={"width": width, "height": 800}).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_thumb_stands_under_the_rule(show: Show, sliders: str) -> None:
    page = show(sliders).page
    for width in (1100, 500):
        page.set_viewport_size({"width": width, "height": 800})
        page.wait_for_timeout(300)
        frame = page.locator("#fault-1-chart-1 svg .background").first.bounding_box()
        thumb = page.locator(MIX).bounding_box()
        assert thumb["x"] + 8 == pytest.approx(frame["x"], abs=1)
        assert thumb["width"] - 16 == pytest.approx(frame["width"], abs=1)


@pytest.mark.parametrize("width", [340, 390, 1400])
def test_the_slider_stays_inside_its_panel(show: Show, sliders: str, width: int) -> None:
    page = show(sliders, viewport={"width": width, "height": 800}).page
    for box in page.locator("[data-slider]").all():
        panel, thumb = box.bounding_box(), box.locator("input").bounding_box()
        assert panel["x"] + 8 <= thumb["x"]
        assert thumb["x"] + thumb["width"] <= panel["x"] + panel["width"] - 8


def test_in_a_notebook_s_frame_it_works_too(show: Show) -> None:
    seen = show(f"<!doctype html><title>notebook</title>{sliding()._repr_html_()}", wait=False)
    seen.page.locator("summary", has_text="Open the whole page").click()
    frame = seen.page.frame_locator("iframe")
    first = frame.locator(".canvas.drawn svg").first
    first.wait_for()
    assert first.bounding_box()["width"] > 300, "drawn when it was seen, not at a width of 0 in the folded frame"
    frame.locator("summary", has_text="1 more chart").click()
    frame.locator(".canvas.drawn").nth(1).wait_for()
    frame.locator(COVERAGE).press("End")
    assert frame.locator("[data-refused]").first.inner_text() == "0 of 200"
    assert [m for m in seen.said if "error" in m] == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("which", ["all kinds of charts", "sliders"])
def test_axe_finds_nothing_serious(show: Show, sliders: str, which: str, theme: str) -> None:
    """With `TRUEUP_AXE` naming axe-core's axe.min.js (`npm pack axe-core`); it is no part of this project."""
    axe = os.environ.get("TRUEUP_AXE")
    if not axe:
        pytest.skip("Accessibility was not checked: TRUEUP_AXE names no axe.min.js (npm pack axe-core).")
    page = show(sliders if which == "sliders" else html.page(report()), color_scheme=theme, bypass_csp=True).page
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    page.add_script_tag(path=axe)
    found = page.evaluate("axe.run(document).then(r => r.violations.map(v => [v.id, v.impact, v.nodes[0].html]))")
    assert found == []


PHONE, DESK = {"width": 390, "height": 844}, {"width": 1400, "height": 1000}
WIDE = """() => [...document.querySelectorAll('main *, header *')]
  .filter(e => e.checkVisibility() && !e.closest('svg, pre, .tall, .hidden, .cards thead'))
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName + '.' + e.className).slice(0, 5)"""


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize("which", ["all kinds of charts", "sliders", "hostile"])
def test_nothing_lies_beyond_the_edge(
    show: Show, sliders: str, hostile: str, which: str, size: dict, theme: str
) -> None:
    source = {"sliders": sliders, "hostile": hostile}.get(which) or html.page(report())
    page = show(source, viewport=size, color_scheme=theme).page
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    assert page.evaluate(WIDE) == []
    # The control: something too wide is seen.
    page.evaluate("document.querySelector('main').insertAdjacentHTML('beforeend', '<p id=wide>x</p>')")
    page.evaluate("document.getElementById('wide').style.width = '1500px'")
    page.evaluate("document.getElementById('wide').style.maxWidth = 'none'")
    assert page.evaluate(WIDE) == ["P."]


def test_on_a_phone_a_measure_is_a_card_with_all_its_numbers(show: Show) -> None:
    page = show(html.page(report()), viewport=PHONE).page
    card = page.locator("#fault-1 table.cards tbody tr").first
    for label in ("Before", "After", "Paired difference", "Change"):
        box = card.locator(f"td[data-label='{label}']").bounding_box()
        assert 0 <= box["x"] < box["x"] + box["width"] <= PHONE["width"], label
    assert page.evaluate("getComputedStyle(document.querySelector('.cards thead')).position") == "absolute"
    wide = show(html.page(report()), viewport=DESK).page
    assert wide.evaluate("getComputedStyle(document.querySelector('.cards thead')).position") == "static"


def test_the_first_picture_is_near_the_top_and_the_rest_is_folded(show: Show, sliders: str) -> None:
    page = show(sliders, viewport=DESK, unfold=False).page
    first = page.locator("svg[role=img]").first.bounding_box()
    assert first["y"] + first["height"] < 1000
    assert page.locator("#fault-1-chart-1.drawn").count() == 1
    assert page.locator("#fault-1-chart-2.drawn").count() == 0
    folded = page.evaluate("document.documentElement.scrollHeight")
    page.locator("#fault-1 summary", has_text="1 more chart").click()
    page.locator("#fault-1-chart-2.drawn svg").first.wait_for()
    assert page.evaluate("document.documentElement.scrollHeight") > folded


def test_what_the_repair_fixed_and_broke_comes_first(show: Show, sliders: str) -> None:
    page = show(sliders).page
    badges = page.locator(f"{TABLE} tbody tr").evaluate_all(
        "rows => rows.map(r => r.querySelector('.moved')?.textContent ?? '')"
    )
    assert badges == sorted(badges, key=["✓ fixed", "✕ broken", ""].index)
    assert {"✓ fixed", ""} <= set(badges)
