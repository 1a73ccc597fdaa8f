"""The sentences: what is claimed, and what is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from report_cases import comparison, finding, with_before

from trueup.faults.fault import Difference, Measure
from trueup.report import words
from trueup.report.table import verdict
from trueup.report.words import number, state_of

NAN = float("nan")


def test_found_and_repaired() -> None:
    c = comparison(before=0.31, after=0.05)
    assert state_of(c) == "repaired"
    assert verdict(c) == (
        "Found and repaired: severity went from 0.310 [0.270, 0.350] to 0.050 [0.010, 0.090], the paired difference "
        "−0.260 [−0.320, −0.200] (share of examples; threshold 0.100)."
    )


def test_without_a_gain_nothing_is_called_repaired() -> None:
    c = comparison(before=0.25, after=0.23)
    assert state_of(c) == "no gain"
    assert verdict(c).startswith(
        "Found, and the repair brought no measurable gain: severity went from 0.250 [0.210, 0.290]"
    )
    assert "−0.020 [−0.080, +0.040] includes 0" in verdict(c)
    below = comparison(before=0.31, after=0.05)
    below = replace(below, differences={"severity": Difference(-0.26, -0.6, 0.0, 0.05)})
    assert below.after.verdict == "clear", "below the threshold, and still no gain that was shown"
    assert state_of(below) == "no gain"


@pytest.mark.parametrize(("after", "second"), [(0.3, "found"), (0.12, "undecided")])
def test_a_gain_that_does_not_clear_is_reduced(after: float, second: str) -> None:
    c = comparison(before=0.5, after=after)
    assert c.after.verdict == second
    assert state_of(c) == "reduced"
    assert verdict(c).startswith("Found and reduced, and not clear yet:")
    assert "no measurable gain" not in verdict(c)


def test_a_gain_that_costs_more_than_the_budget_is_a_trade_off() -> None:
    c = comparison(before=0.31, after=0.05)
    dear = replace(c, harm={"accuracy": Difference(-0.021, -0.04, -0.002, 0.03)})
    assert state_of(dear) == "trade-off"
    assert verdict(dear).startswith("A trade-off: the repair costs more accuracy than the budget of 2 points: severity")
    assert state_of(replace(dear, budget=0.05)) == "repaired", "the user sets the budget"
    assert state_of(replace(dear, harm={"accuracy": Difference(0.1, 0.05, 0.15, 0.0)})) == "repaired", (
        "a gain costs nothing"
    )


def test_made_worse() -> None:
    c = comparison(before=0.3, after=0.5)
    assert state_of(c) == "made worse"
    assert verdict(c).startswith("Made worse by the repair: severity went")
    harmless = comparison(before=0.03, after=0.05, differences={"severity": Difference(0.02, 0.01, 0.03, 0.01)})
    assert state_of(harmless) == "clear", "worse, and still nothing to be found"


def test_clear_and_undecided() -> None:
    below = comparison(before=0.03, after=None, remedy="Nothing to repair.")
    assert state_of(below) == "clear"
    assert verdict(below) == (
        "Clear: severity is 0.030 [−0.010, 0.070] (share of examples; threshold 0.100), and its whole interval lies below the "
        "threshold. Nothing to repair."
    )
    across = comparison(before=0.12, after=None, remedy="Nothing to repair.")
    assert state_of(across) == "undecided"
    assert "and its interval includes the threshold. Nothing to repair." in verdict(across)
    counted = with_before(across, needed=1234)
    assert (
        "includes the threshold. If the severity is as estimated, 80% of such checks decide with about 1,300 independent "
        "examples. Nothing" in verdict(counted)
    )


def test_a_doubt_decides_nothing_whatever_the_interval_says() -> None:
    c = with_before(comparison(before=0.4, after=None, remedy=""), doubt="There are only 12 independent clusters")
    assert state_of(c) == "undecided"
    assert verdict(c) == (
        "Undecided: severity is 0.400 [0.360, 0.440] (share of examples; threshold 0.100). There are only 12 independent "
        "clusters."
    )


@pytest.mark.parametrize(("clusters", "told"), [(18, True), (29, True), (30, False), (200, False)])
def test_a_doubt_asks_for_more_examples_only_where_more_would_decide(clusters: int, told: bool) -> None:
    c = comparison(before=0.4, after=None, remedy="")
    c = with_before(c, doubt="It cannot be told from chance", needed=30, provenance={"clusters": clusters})
    assert (
        "If the severity is as estimated, 80% of such checks decide with about 30 independent examples." in verdict(c)
    ) == told


def test_what_was_not_found_and_repaired_all_the_same() -> None:
    c = comparison(before=0.03, after=0.02)
    assert state_of(c) == "clear"
    assert "We tried a repair. It did not help: severity went" in verdict(c)
    unsure = comparison(before=0.12, after=0.02)
    assert state_of(unsure) == "repaired"
    assert verdict(unsure).startswith("Undecided and repaired: severity went from")
    worse = comparison(before=0.03, after=0.5)
    assert state_of(worse) == "made worse"


def test_no_remedy_gives_the_reason() -> None:
    c = comparison(before=0.4, after=None, remedy="No bob was heavy enough")
    assert state_of(c) == "found"
    assert verdict(c) == (
        "Found: severity is 0.400 [0.360, 0.440] (share of examples; threshold 0.100), and its whole interval lies above the "
        "threshold. No bob was heavy enough."
    )


def test_nan_is_never_a_verdict() -> None:
    unknown = with_before(comparison(), severity=NAN, low=NAN, high=NAN)
    assert state_of(unknown) == "not measured"
    assert verdict(unknown).startswith("Not measured: severity is n/a [n/a, n/a]")
    lost = replace(comparison(), after=finding("tilt", NAN))
    assert state_of(lost) == "no gain"
    assert "could not be measured" in verdict(lost)
    unpaired = replace(comparison(), differences={"severity": Difference(-0.2, NAN, NAN, NAN)})
    assert state_of(unpaired) == "no gain"
    assert "no paired difference of it is known" in verdict(unpaired)
    only = replace(comparison(), differences={"drag": comparison().differences["drag"]})
    assert state_of(only) == "no gain"
    assert "no paired difference of it is known" in verdict(only)


def test_of_a_signed_number_nearer_to_0_is_better() -> None:
    def marked(before: float, after: float, half: float = 0.01) -> str:
        start, end = (Measure(v, v - half, v + half, "", "zero", "lean") for v in (before, after))
        d = after - before
        c = replace(
            comparison(),
            before=finding(measures={"lean": start}),
            after=finding(measures={"lean": end}),
            differences={"lean": Difference(d, d - half, d + half, 0.01)},
        )
        return words.rows(c)[0].change

    assert (marked(0.3, 0.1), marked(-0.3, -0.1), marked(0.3, -0.1)) == ("better",) * 3
    assert (marked(0.1, 0.3), marked(-0.1, -0.3), marked(0.1, -0.3)) == ("worse",) * 3
    assert marked(0.3, 0.295) == "no clear change"


@pytest.mark.parametrize(
    ("low", "high", "better", "expected"),
    [
        (0.1, 0.3, "higher", "better"),
        (0.1, 0.3, "lower", "worse"),
        (-0.3, -0.1, "lower", "better"),
        (-0.3, -0.1, "higher", "worse"),
        (-0.1, 0.3, "higher", "no clear change"),
        (0.0, 0.3, "higher", "no clear change"),
        (0.1, 0.3, None, "changed"),
        (NAN, 0.3, "higher", "unknown"),
    ],
)
def test_change(low: float, high: float, better: str | None, expected: str) -> None:
    assert words.change(Difference(0.1, low, high, 0.5), better) == expected


def test_an_exact_nothing_is_called_the_same() -> None:
    nothing = Difference(0.0, 0.0, 0.0, 1.0)
    assert words.change(nothing, "higher") == words.change(nothing, None) == "same"
    assert words.MARK["same"] == "= same"
    still = replace(comparison(), differences={"severity": nothing})
    assert state_of(still) == "no gain"
    assert "no measurable gain" in verdict(still)
    assert "the paired difference is exactly 0" in verdict(still)
    assert words.harm_sentence(replace(still, harm={"accuracy": nothing})) == "No side effect was measured."


def test_harm() -> None:
    assert words.harm_sentence(comparison()) == (
        "The repair made other measures worse: drag +0.800 [+0.200, +1.400]. Inconclusive, the interval includes zero: accuracy "
        "−0.002 [−0.011, +0.007]."
    )
    calm = replace(comparison(), harm={"accuracy": Difference(-0.002, -0.01, 0.007, 0.6)})
    assert words.harm_sentence(calm) == (
        "No side effect was measured. Inconclusive, the interval includes zero: accuracy −0.002 [−0.010, +0.007]."
    )
    unsure = replace(comparison(), harm={"gate": Difference(-0.05, -0.09, -0.01, 0.01)})
    assert "changed what it should not change: gate −0.050" in words.harm_sentence(unsure)
    for key, better in (("accuracy", 1), ("accuracy of last-of-list", 1), ("nll", -1), ("nats per token of text", -1)):
        worse = replace(
            comparison(), harm={key: Difference(-0.05 * better, *sorted((-0.09 * better, -0.01 * better)), 0.01)}
        )
        assert words.harm_sentence(worse).startswith("The repair made other measures worse:"), key
    lost = replace(comparison(), harm={"accuracy": Difference(NAN, NAN, NAN, NAN)})
    assert "Not known: accuracy" in words.harm_sentence(lost)
    assert words.harm_sentence(replace(comparison(), harm={})) == "The side effects of the repair were not measured."
    assert words.harm_sentence(comparison(after=None)) == ""


@pytest.mark.parametrize(
    ("x", "shown"),
    [
        (0, "0"), (0.31, "0.310"), (-0.05, "−0.050"), (12.5, "12.50"), (345.6, "345.6"), (3, "3"), (12345.6, "12,346"),
        (0.0001, "1.0e-04"), (NAN, "n/a"), (float("inf"), "∞"), (float("-inf"), "−∞"), (2e9, "2.0e+09"),
    ],
)  # fmt: skip
def test_number(x: float, shown: str) -> None:
    assert number(x) == shown


def test_interval_has_decimals_throughout_or_not_at_all() -> None:
    assert words.interval(Difference(12.5, 11.0, 14.0, 0.1)) == "12.50 [11.00, 14.00]"
    assert words.interval(Difference(3.0, 1.0, 5.0, 0.1), sign=True) == "+3 [+1, +5]"


def test_clean_cuts_and_disarms() -> None:
    assert words.clean("a" * 50, 10) == "a" * 10 + "…"
    assert words.clean("\x1b[31mred\u202e\x07\x00\ud800") == "�[31mred����"
    assert words.clean("two\nlines שלום") == "two\nlines שלום"


def test_repaired_is_said_only_where_the_whole_interval_after_lies_within_the_threshold() -> None:
    """The demo of an earlier version: 0.074 [0.041, 0.108] against a threshold of 0.050 is a reduction and not a repair."""
    left = replace(finding(severity=0.074), low=0.041, high=0.108, threshold=0.05)
    within = replace(finding(severity=0.03), low=0.012, high=0.049, threshold=0.05)
    before = replace(finding(severity=0.21), threshold=0.05)
    gain = {"severity": Difference(-0.14, -0.2, -0.1, 0.001)}
    for after, word in ((left, "reduced"), (within, "repaired"), (replace(within, high=0.0501), "reduced")):
        c = replace(comparison(), before=before, after=after, differences=gain)
        assert state_of(c) == c.outcome == word
    assert state_of(None) == "not examined"


def test_every_word_has_a_meaning_a_sign_and_a_rank() -> None:
    assert set(words.MEANING) == set(words.ICON) == set(words.RANK)
    assert all(m.endswith(".") and len(m.split()) <= 20 for m in words.MEANING.values())
