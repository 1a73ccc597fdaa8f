"""The page of a sweep: whole, small, safe, and in the same words as the reports."""

from __future__ import annotations

import re

from report_cases import EVIL, NAN, Page, comparison

from trueup.faults.fault import Difference
from trueup.report import words
from trueup.report.index import MOST_BYTES, Entry, page


def entries(n: int = 3) -> list[Entry]:
    made = []
    for i in range(n):
        c = comparison("tilt", before=0.1 + 0.2 * (i % 3), after=(0.05, None)[i % 2])
        d = comparison("lean", before=0.02 * (i % 4), after=None)
        made.append(
            Entry(
                f"adapter-{i}_seed={i % 5}", f"cells/adapter-{i}_seed={i % 5}/report/report.html",
                {"adapter": f"runs/adapter-{i}/checkpoint-best", "seed": str(i % 5)}, {"tilt": c, "lean": d},
                {"tilt": Difference(0.1 - 0.1 * (i % 3), 0.02 - 0.1 * (i % 3), 0.18 - 0.1 * (i % 3), NAN)},
                seconds=10.0 + i, accuracy=0.5 + 0.001 * i,
            )
        )  # fmt: skip
    return made


def test_a_thousand_cells_stay_below_two_megabytes():
    source = page("night", entries(1000))
    assert len(source.encode()) < MOST_BYTES
    assert source.count("<tr>") == 1001
    assert "1,000 cells, 1,000 of them examined." in source


def test_each_cell_has_its_link_its_words_and_its_change():
    made = entries()
    source = page("night", made, waiting=2, against="last")
    read = Page(source)
    assert [a["href"] for a in read.all("a")] == ["#content", *(e.link for e in made)]
    for e in made:
        for f, c in e.faults.items():
            assert words.parts(c.before)[1] in source
            assert f'data-o="{words.state_of(c)}"' in source
            if f in e.changes:
                assert words.interval(e.changes[f], sign=True) in source
    assert "2 more were not run yet" in source
    assert re.search(r'since worse">\+0\.100 \[\+0\.020, \+0\.180\]', source)
    assert re.search(r'since ">0\.000 \[', source), "a change whose interval holds 0 is neither better nor worse"
    assert re.search(r'since better">−0\.100', source)
    assert "Since the earlier run 1 got worse beyond chance, and 1 better." in source


def test_a_cell_that_failed_says_why_and_the_columns_stay_in_step():
    made = [*entries(2), Entry("broken", "cells/broken/cell.json", error="There is no file 'x'.", seconds=1.0)]
    source = page("night", made)
    assert "3 cells, 2 of them examined, 1 failed." in source
    assert 'colspan="2"' in source
    assert "There is no file &#39;x&#39;." in source


def test_nothing_is_fetched_and_hostile_text_is_text():
    evil = [
        Entry(EVIL, "cells/x/report/report.html", {EVIL: EVIL}, {"tilt": comparison("tilt")}, {}, "", 1.0),
        Entry("broken", "", {}, {}, {}, EVIL),
    ]
    source = page(EVIL, evil, against=EVIL)
    read = Page(source)
    assert len(read.scripts) == 1
    assert not {t for t, _ in read.elements} & {"link", "img", "iframe", "object", "embed", "base"}
    assert not [k for _, a in read.elements for k in a if k.startswith("on")]
    csp = next(a["content"] for a in read.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert csp is not None
    assert csp.startswith("default-src 'none'; script-src 'sha256-")
    assert read.text.count("<script>alert(1)</script>") >= 5


def test_a_sweep_without_a_finding_is_a_page_too():
    assert "0 cells" in page("empty", [], waiting=4)
    assert "Test accuracy" in page("tuned", [Entry("a", "cells/a/cell.json", accuracy=0.75)])
