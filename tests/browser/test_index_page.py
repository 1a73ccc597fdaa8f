"""The page of a sweep in a browser: it opens clean, sorts, and finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from browser_cases import Opened
from report_cases import comparison

from trueup.report.index import Entry, page

Show = Callable[..., Opened]


@pytest.fixture(scope="module")
def source() -> str:
    made = [
        Entry("b", "cells/b/report/report.html", {"seed": "10"}, {"tilt": comparison("tilt", before=0.3, after=None)}, seconds=3),
        Entry("a", "cells/a/report/report.html", {"seed": "9"}, {"tilt": comparison("tilt", before=0.5, after=None)}, seconds=20),
        Entry("c", "cells/c/report/report.html", {"seed": "1"}, {"tilt": comparison("tilt", before=0.02, after=None)}, seconds=100),
        Entry("d", "cells/d/cell.json", {"seed": "2"}, error="Nothing was there.", seconds=1),
    ]  # fmt: skip
    return page("night", made)


def names(seen: Any) -> list[str]:
    return seen.evaluate(
        "[...document.querySelector('.matrix').tBodies[0].rows].filter(r => r.checkVisibility()).map(r => r.cells[0].textContent)"
    )


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_opens_without_a_word_and_asks_for_nothing(show: Show, source: str, theme: str) -> None:
    seen = show(source, color_scheme=theme)
    seen.page.wait_for_timeout(200)
    assert (seen.said, seen.dialogs, seen.asked) == ([], [], [seen.address])
    light = seen.page.evaluate("parseInt(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]) > 128")
    assert light == (theme == "light")


def test_a_column_sorts_up_and_down(show: Show, source: str) -> None:
    seen = show(source).page
    assert names(seen) == ["b", "a", "c", "d"]
    for column, order in (("Cell", "abcd"), ("seed", "cdab"), ("CPU seconds", "dbac"), ("Tilt", "dabc")):
        button = seen.locator("thead button", has_text=column)
        button.click()
        assert names(seen) == list(order), column
        assert seen.locator("th[aria-sort]").count() == 1
        button.click()
        assert names(seen) == list(reversed(order)), column


def test_words_and_outcomes_find_cells(show: Show, source: str) -> None:
    seen = show(source).page
    told = seen.locator(".find output")
    assert told.inner_text() == "4 cells"
    seen.locator("input[name=words]").fill("nothing there")
    assert (names(seen), told.inner_text()) == (["d"], "1 of 4 cells")
    seen.locator("input[name=words]").fill("")
    seen.locator("select").select_option("failed")
    assert names(seen) == ["d"]
    seen.locator("select").select_option("found")
    assert sorted(names(seen)) == ["a", "b"]
    seen.keyboard.press("Enter")
    assert seen.url.startswith("file:"), "the form goes nowhere"
