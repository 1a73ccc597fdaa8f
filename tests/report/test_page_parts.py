"""The parts of the page as data: what is said at the top, what decides, what a chart shows, what the data were, what changed."""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_cases import Page, comparison, finding, mixes, report, sliding, with_before
from rich.console import Console

from trueup.caveats import snapshot
from trueup.corpus.corpus import Corpus
from trueup.faults.confounding import leads
from trueup.faults.fault import Alternative, Chart, Comparison, Difference, Series, Slider
from trueup.report import bundle, charts, examples, glossary, html, words
from trueup.report.bundle import Report
from trueup.report.table import findings_table
from trueup.store.atomic import new_folder
from trueup.story import _short, _since

NAN = float("nan")


def text_of(*comparisons: Comparison, **more) -> str:
    return Page(html.page(report(*comparisons, **more))).text.replace("\u00a0", " ")


def test_a_single_fault_stands_in_the_card_alone_and_several_in_a_list() -> None:
    def lists(*comparisons: Comparison, **more) -> int:
        elements = Page(html.page(report(*comparisons, examples={}, **more))).elements
        return sum(t == "nav" and a.get("aria-label") == "Faults" for t, a in elements)

    assert lists(comparison()) == 0
    assert lists(comparison(), comparison("rust", before=0.03, after=None)) == 1
    assert lists(comparison(), notes=["rust was not examined: It has no bob."]) == 1


def test_a_long_path_is_shortened_in_the_title() -> None:
    places = ("org/adapter", "adapter", "embedded:minilm", "", "/a/b/runs/one", "../runs/one/adapter")
    assert [_short(p) for p in places] == ["org/adapter", "adapter", "embedded:minilm", "", "runs/one", "one/adapter"]


def test_a_key_has_after_only_where_something_was_repaired() -> None:
    audited = comparison(before=0.4, after=None)
    assert "before the repair" not in text_of(audited, comparison("rust", after=None), examples={})
    assert "before the repair" in text_of(audited, comparison("rust"), examples={})


# ---- words


def test_every_state_has_a_sign_a_place_and_a_word_on_the_page() -> None:
    assert set(words.ICON) == set(words.RANK)
    made = {
        "repaired": comparison(), "reduced": comparison(before=0.5, after=0.12), "no gain": comparison(before=0.25, after=0.23),
        "made worse": comparison(before=0.3, after=0.5), "found": comparison(before=0.4, after=None),
        "undecided": comparison(before=0.12, after=None), "clear": comparison(before=0.03, after=None),
        "not measured": with_before(comparison(), severity=NAN, low=NAN, high=NAN),
        "trade-off": comparison(harm={"accuracy": Difference(-0.05, -0.08, -0.02, 0.001)}),
    }  # fmt: skip
    for word, c in made.items():
        assert words.state_of(c) == word
        page = Page(html.page(report(c, examples={})))
        states = [a for t, a in page.elements if t == "span" and str(a.get("class")).startswith("state ")]
        assert {a["class"] for a in states} == {f"state {word.replace(' ', '-')}"}
        assert f"{words.ICON[words.state_of(c)]}{word}" in page.text
        if word not in ("repaired", "found"):
            assert "state repaired" not in html.page(report(c, examples={}))
        assert words.next_steps(c), word
    whole = report(comparison(), examples={}, notes=["rust was not examined: It has no bob."])
    asked = replace(whole, job={**whole.job, "faults": ["tilt", "rust"]})
    assert "not examined" in Page(html.page(asked)).text
    assert "It has no bob." in Page(html.page(asked)).text


def test_what_to_do_next_says_how_many_more_texts() -> None:
    open_ = replace(comparison(before=0.12, after=None), before=finding(severity=0.12, needed=1234))
    counted = with_before(open_, provenance={**open_.before.provenance, "clusters": 800})
    assert words.next_steps(counted) == [
        "To reach a decision, test on about 1,300 independent texts (this check had 800). If the severity is as estimated "
        "here, 80% of such checks decide."
    ]
    assert words.next_steps(open_) == [
        "To reach a decision, test on about 1,300 independent texts. If the severity is as estimated here, 80% of such checks "
        "decide."
    ]
    near = with_before(open_, needed=50_001, provenance={"clusters": 1_000})
    assert words.next_steps(near)[0].startswith(
        "The severity is so close to the threshold that about 51,000 independent texts"
    )
    assert "Decide by the interval" in words.next_steps(near)[0]
    assert "80% of such checks decide" in words.next_steps(with_before(near, needed=50_000))[0]
    doubted = with_before(open_, doubt="There are only 12 clusters")
    assert words.next_steps(doubted) == ["There are only 12 clusters."]
    left = comparison(before=0.5, after=0.12)
    assert left.after is not None
    steps = words.next_steps(replace(left, after=replace(left.after, needed=90)))
    assert steps[0].startswith("Use the repaired adapter if what is left over is acceptable")
    assert steps[-1].startswith("To reach a decision, test on about 90 independent texts.")
    assert words.next_steps(comparison()) == ["Use the repaired adapter."]
    dear = comparison(
        after=None, too_dear=True, alternatives=(Alternative("dfr", "again", 0.2, 0.1, 0.3, 0.05, 0.02, 0.08),)
    )
    assert words.next_steps(dear) == [
        "To get a repair, allow a higher cost with --max-cost (now 0.02).",
        "Or take another repair from the table below, such as --take dfr.",
    ]


def test_gained_cost_and_left_over() -> None:
    gained, cost, left = words.to_decide(comparison())
    assert (gained.title, gained.value, gained.range, gained.change) == (
        "Gained",
        "+0.260",
        "[+0.200, +0.320]",
        "better",
    )
    assert (cost.title, cost.value, cost.change) == ("Cost", "−0.2", "no clear change")
    assert "Inconclusive" in cost.text
    assert (left.title, left.value, left.change) == ("Left over", "0.050", "clear")
    assert "the whole interval lies within it" in left.text
    still = words.to_decide(replace(comparison(), differences={"severity": Difference(0.0, 0.0, 0.0, 1.0)}))
    assert still[0].text == "Before and after are the same"
    assert words.to_decide(comparison(after=None)) == []
    assert words.to_decide(replace(comparison(), differences={})) == []


def test_accuracy_at_the_top() -> None:
    from trueup.faults.fault import Measure

    def of(value: float) -> Measure:
        return Measure(value, value - 0.02, value + 0.02, "share", "higher", "accuracy")

    was, now = finding(measures={"accuracy": of(0.792)}), finding(severity=0.05, measures={"accuracy": of(0.78)})
    c = replace(comparison(), before=was, after=now)
    assert words.accuracy_line(c) == "Overall accuracy 79.2% to 78.0%: no clear change."
    worse = replace(c, harm={"accuracy": Difference(-0.012, -0.018, -0.004, 0.01)})
    assert words.accuracy_line(worse) == "Overall accuracy 79.2% to 78.0%: worse."
    dear = replace(c, harm={"accuracy": Difference(-0.03, -0.06, 0.001, 0.05)})
    assert words.accuracy_line(dear) == (
        "Overall accuracy 79.2% to 78.0%: 3.0 points lost, against a budget of 2; the interval includes zero."
    )
    assert words.accuracy_line(replace(c, after=None)) == "Overall accuracy 79.2%."
    assert words.accuracy_line(comparison()) == ""


def test_a_p_value_at_the_floor_of_its_resamples_is_at_most_that() -> None:
    assert words.p_value(2 / 1001, 1000) == words.p_value(0.0004, 1000) == "p ≤ 0.002"
    assert words.p_value(0.0021, 1000) == "p = 0.002"
    assert words.p_value(0.0004) == "p < 0.001"
    assert words.p_value(0.04, 10) == "p ≤ 0.2"
    drawn = with_before(comparison(), provenance={**finding().provenance, "resamples": 1000})
    assert "p ≤ 0.002" in text_of(drawn)
    assert "p < 0.001" in text_of(comparison())


# ---- charts


def line(y: list[float], **more) -> Chart:
    return Chart("c", "t", "line", "share answered", "errors", "r", (Series("s", [0.0, 0.5, 1.0], y),), **more)


def test_a_caption_says_what_the_chart_shows() -> None:
    two = [("before", line([0.1, 0.2, 0.6], here=1.0)), ("after", line([0.1, 0.15, 0.3], here=1.0))]
    assert charts.conclusion(two) == (
        "For the test texts as they are (here), errors: 0.600 before, 0.300 after. The largest change is at share answered 1: "
        "0.600 before, 0.300 after."
    )
    assert charts.conclusion(two[:1]) == (
        "For the test texts as they are (here), errors: 0.600. It goes from 0.100 at share answered 0 to 0.600 at share answered 1."
    )
    same = [("before", two[0][1]), ("after", two[0][1])]
    assert charts.conclusion(same) == "Before and after the repair are the same: one lies on the other."
    bars = Chart("b", "t", "bar", "why", "AUPRC lost", "r", (Series("s", ["leaning", "floor"], [0.2, 0.1]),))
    after = replace(bars, series=(Series("s", ["leaning", "floor"], [0.05, 0.1]),))
    assert charts.conclusion([("before", bars), ("after", after)]) == "Leaning: 0.200 before, 0.050 after (AUPRC lost)."
    empty = line([NAN, NAN, NAN], here=1.0)
    assert charts.conclusion([("before", empty)]) == charts.conclusion([]) == ""
    part = Slider("Share answered", 0.6, examples=100, column="confidence")
    refusing = [(when, replace(c, slider=part)) for when, c in two]
    assert charts.conclusion(refusing) == (
        "For the test texts as they are (here), errors: 0.600 before, 0.300 after. At share answered 0.5: 0.200 before, 0.150 "
        "after."
    ), "where few texts are answered the largest change is noise"
    log = mixes(0.5)
    assert "times as frequent 0.1 " in charts.conclusion([("before", replace(log, here=0.0))])


def test_here_is_marked_and_the_chart_that_has_it_is_the_main_one() -> None:
    plain, marked = line([0.1, 0.2, 0.6]), replace(line([0.1, 0.2, 0.6], here=0.5), key="d", title="marked")
    page = html.page(report(comparison(after=None, before=0.3), examples={}))
    assert '"text":"here"' not in page
    c = Comparison(finding(charts=(plain, marked)), None, "r")
    page = html.page(report(c, examples={}))
    assert page.count('"text":"here"') == 1
    assert page.index(">marked<") < page.index("1 more chart")
    with again(report(c, examples={})) as back:
        assert back.comparisons[0].before.charts[1].here == 0.5


@contextmanager
def again(given: Report) -> Iterator[Report]:
    """The report, written and read again."""
    with tempfile.TemporaryDirectory() as kept:
        with new_folder(Path(kept) / "out") as folder:
            bundle.write(given, folder)
        yield bundle.read(Path(kept) / "out")


# ---- examples


def test_fixed_comes_first_then_broken_and_the_column_and_its_words_are_marked() -> None:
    rows = [
        {"text": "as it was", "site": "north", "label": "a", "predicted": "a", "predicted after": "a"},
        {"text": "to be broken", "site": "south", "label": "a", "predicted": "a", "predicted after": "b"},
        {"text": "From North, northern and north again", "site": "north", "label": "a", "predicted": "b", "predicted after": "a"},
    ]  # fmt: skip
    shown = examples.shown(rows, 100, (), "site")
    assert shown is not None
    assert [r["moved"] for r in shown["rows"]] == ["fixed", "broken", ""]
    text, site = shown["rows"][0]["cells"][:2]
    assert [p for p, marked in text["parts"] if marked] == ["North", "north"]
    assert "".join(p for p, _ in text["parts"]) == rows[2]["text"]
    assert site["mark"] is True
    assert not any(c["mark"] for c in examples.shown(rows, 100)["rows"][0]["cells"]), "the control: no column is named"  # type: ignore[index]
    long = examples.shown([{"text": "x" * 900, "label": "a"}], 100)
    assert long is not None
    assert long["rows"][0]["cells"][0]["text"].endswith("…")


def test_marks_open_no_element_of_the_datas_own() -> None:
    evil = "<b>north</b>"
    rows = [{"text": f"{evil} & <i>", "site": evil, "label": "a"}]
    page = Page(html.page(report(comparison(), examples={"tilt": rows})))
    assert not {"b", "i"} & {t for t, _ in page.elements}
    assert evil in page.text


# ---- glossary, data, previous run


def test_each_measure_of_the_faults_has_a_word_in_the_glossary() -> None:
    from trueup.faults.confounding.mixes import TITLES
    from trueup.faults.overconfidence.audit import MEASURES

    titles = [f"{t[0]} {t[1]}" for t in TITLES.values()] + [f"{m[1]} {m[2]}" for m in MEASURES.values()]
    assert [t for t in titles if not glossary.explained(t)] == []
    assert glossary.explained("a thing of no kind") == ""
    assert [t for t, _ in glossary.used(["AUPRC on the examples as they are"])] == ["AUPRC"]
    assert all(re.search(r"[.!?]$", told) for _, told in glossary.TERMS.values())
    assert "Glossary" in text_of(sliding().comparisons[0])


def corpus() -> Corpus:
    n = 60
    return Corpus(
        [f"text {i}" + " long" * (100 if i == 59 else 0) for i in range(n)], np.arange(n) % 2, ("no", "yes"),
        np.array(["train"] * 30 + ["calibration"] * 10 + ["test"] * 20), attributes={"site": np.array(["n", "s", "n"] * 20)},
    )  # fmt: skip


def test_the_snapshot_counts_every_row_once_and_shows_three_texts() -> None:
    c = corpus()
    data = snapshot(c)
    assert data["splits"] == ["train", "calibration", "test"]
    assert sum(sum(r[2:]) for r in data["rows"]) == len(c)
    for label, site, *counts in data["rows"]:
        for split, count in zip(data["splits"], counts, strict=True):
            own = (c.split == split) & (c.attributes["site"] == site) & (c.label == c.classes.index(label))
            assert count == own.sum()
    assert len(data["samples"]) == 3
    assert {s["label"] for s in data["samples"]} == {"no", "yes"}
    text = text_of(comparison(), data=data)
    assert "Rows of each class, by split" in text
    assert data["samples"][0]["text"] in text
    many = replace(c, attributes={"site": np.array([str(i) for i in range(60)])})
    assert (len(snapshot(many)["rows"]), snapshot(many)["more"]) == (24, 36)
    assert "36 more combinations are not shown" in text_of(comparison(), data=snapshot(many))
    with again(report(comparison(), data=data)) as back:
        assert back == report(comparison(), data=data)


def test_what_changed_since_the_previous_run_is_said_with_a_link() -> None:
    then = report(comparison(before=0.5, after=None), examples={}, provenance={"data fingerprint": "other data"})
    now = report(comparison(), comparison("rust"), examples={})
    previous = _since(then, now)
    assert [c["fault"] for c in previous["changes"]] == ["tilt"]
    assert (previous["changes"][0]["then"], previous["changes"][0]["now"]) == ("found", "repaired")
    assert previous["changes"][0]["difference"]["value"] == pytest.approx(0.31 - 0.5)
    page = Page(html.page(replace(now, previous=previous)))
    assert "previous.html" in [a["href"] for a in page.all("a")]
    assert "found, now repaired" in page.text
    assert "other test texts" in page.text
    assert "previous.html" not in html.page(now), "the control: there was none"


def test_what_an_adapter_is_used_by_stands_at_the_top_only_where_it_helped() -> None:
    used = replace(comparison(), usage='python tilt/predict.py "A text"', consequence="This reading hangs.")
    text = text_of(used, examples={})
    assert 'python tilt/predict.py "A text"' in text
    assert text.index("This reading hangs.") < text.index("Gained")
    idle = replace(comparison(before=0.25, after=0.23), usage='python tilt/predict.py "A text"')
    assert "predict.py" not in text_of(idle, examples={})
    assert "Use the repaired adapter" not in text_of(comparison(after=None), examples={})


def test_a_fault_that_was_not_examined_is_a_row_and_no_note() -> None:
    given = report(comparison(), examples={}, notes=["rust was not examined: It has no bob.", "The batch was halved."])
    page = Page(html.page(given))
    assert page.text.count("It has no bob.") == 1
    assert "was not examined:" not in page.text
    assert "The batch was halved." in page.text
    assert [a for t, a in page.elements if t == "span" and a.get("class") == "state not-examined"]


# ---- a search for columns that nobody named


def _found(named: int) -> leads.Scouted:
    one = leads.Lead(
        1 if named else 0, 'the word "loud"', "word", ("not there", "there"), ("bad", "good"), 0.2, 0.11, 0.29, 0.003, 0.25,
        (300, 150), (0.9, 0.8), 2.5, examples=({"group": "there", "text": "loud <b>", "label": "bad", "predicted": "good"},),
    )  # fmt: skip
    return leads.Scouted(
        (one,) if named else (), () if named else (one,), named, {"word": 12, "surface": 3}, 2, 7, 400, 450, 0.05, 0.12, None,
        onward="trueup check m --confounder scout:1 -o OUT" if named else "",
    )  # fmt: skip


def test_a_search_says_what_it_tried_and_is_no_verdict() -> None:
    text = text_of(comparison(), shortcuts=_found(2))
    assert "No column was named that should not matter, so trueup searched for shortcuts. 15 derived columns" in text
    assert "This is a search and no verdict." in text
    assert 'the word "loud"' in text
    assert f"{words.number(0.2)} [{words.number(0.11)}, {words.number(0.29)}]" in text
    assert "loud <b>" in text
    assert "trueup check m --confounder scout:1 -o OUT" in text
    said = terminal(comparison(), shortcuts=_found(2))
    assert "Search for shortcuts (exploratory)" in said
    assert "scout:1 is the first of them, scout:2 the second. To examine and repair the first: trueup check m" in said
    long = f"trueup check m --verbaliser ' neg, pos' {'--set knob=value ' * 9}-o OUT"
    out = io.StringIO()
    Console(width=60, file=out).print(
        findings_table(report(comparison(), shortcuts=replace(_found(2), onward=long))), crop=False
    )
    assert long in out.getvalue().splitlines(), "a command to copy stays in one line, whatever the terminal's width"
    without = replace(_found(1), onward="")
    assert "give confounder='scout:1' to trueup.check" in terminal(comparison(), shortcuts=without)


def test_a_search_that_found_nothing_is_no_all_clear() -> None:
    for said in (text_of(comparison(), shortcuts=_found(0)), terminal(comparison(), shortcuts=_found(0))):
        assert "7 were judged on 450 independent test examples, and none have a lean above 0.05" in said
        assert "the search finds a lean of 0.12 in 80% of cases. This does not prove that there is no shortcut" in said
        assert "not proven" in said
        assert "scout:1" not in said
    unjudged = terminal(comparison(), shortcuts=replace(_found(0), judged=0, smallest=np.nan, unproven=()))
    assert "No column was judged on the test examples" in unjudged
    assert "have a lean above" not in unjudged, "of none there is nothing to say"
    for nothing in (text_of(comparison()), terminal(comparison())):
        assert "shortcuts" not in nothing


def terminal(*comparisons: Comparison, **more) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(findings_table(report(*comparisons, **more)))
    return " ".join(console.export_text().split())
