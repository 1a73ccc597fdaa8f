"""The sentences: what is claimed, and what is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from report_cases import comparison, finding, with_before

from trueup.faults.fault import Difference
from trueup.report import words
from trueup.report.table import verdict
from trueup.report.words import number, state

NAN = float("nan")


def test_found_and_repaired() -> None:
    c = comparison(before=0.31, after=0.05)
    assert state(c) == "repaired"
    assert verdict(c) == (
        "Found and repaired: severity went from 0.310 [0.270, 0.350] to 0.050 [0.010, 0.090], the paired difference "
        "−0.260 [−0.320, −0.200] (share of examples; threshold 0.100)."
    )


def test_found_and_not_repaired_says_no_measurable_gain() -> None:
    c = comparison(before=0.25, after=0.23)
    assert state(c) == "not repaired"
    assert verdict(c).startswith("Found and not repaired, no measurable gain: severity went from 0.250 [0.210, 0.290]")
    assert "−0.020 [−0.080, +0.040] includes 0" in verdict(c)


def test_below_the_threshold_but_the_difference_includes_0_is_no_repair() -> None:
    c = comparison(before=0.31, after=0.05)
    c = replace(c, differences={"lean": Difference(-0.26, -0.6, 0.0, 0.05)})
    assert not c.after.found
    assert state(c) == "not repaired"
    assert "no measurable gain" in verdict(c)


def test_smaller_but_still_found() -> None:
    c = comparison(before=0.5, after=0.3)
    assert state(c) == "reduced"
    assert verdict(c).startswith("Found and reduced, but still above the threshold:")
    assert "no measurable gain" not in verdict(c)


def test_made_worse() -> None:
    c = comparison(before=0.3, after=0.5)
    assert state(c) == "not repaired"
    assert verdict(c).startswith("Found and made worse:")


def test_not_found() -> None:
    below = comparison(before=0.03, after=None)
    assert state(below) == "not found"
    assert verdict(below) == (
        "Not found: severity is 0.030 [−0.010, 0.070] (share of examples; threshold 0.100), and its interval does not "
        "rise above the threshold."
    )
    across = comparison(before=0.12, after=None)
    assert state(across) == "not found"
    assert "reaches across the threshold, so it may be chance; more test examples would tell." in verdict(across)


def test_not_found_but_repaired_all_the_same() -> None:
    c = comparison(before=0.09, after=0.08)
    assert state(c) == "not found"
    assert "A repair was made all the same, no measurable gain: severity went" in verdict(c)


def test_not_found_and_made_worse_all_the_same() -> None:
    c = comparison(before=0.03, after=0.5)
    assert state(c) == "not found"
    assert "A repair was made all the same and made it worse: severity went" in verdict(c)


def test_no_remedy_gives_the_reason() -> None:
    c = comparison(before=0.4, after=None, remedy="No bob was heavy enough")
    assert state(c) == "found"
    assert verdict(c) == (
        "Found, and not repaired: severity is 0.400 [0.360, 0.440] (share of examples; threshold 0.100). "
        "No bob was heavy enough."
    )


def test_nan_is_never_a_verdict() -> None:
    unknown = with_before(comparison(), severity=NAN, low=NAN, high=NAN)
    assert state(unknown) == "not measured"
    assert verdict(unknown).startswith("Not measured: severity is n/a [n/a, n/a]")
    lost = replace(comparison(), after=finding("tilt", NAN))
    assert state(lost) == "not repaired"
    assert "could not be measured" in verdict(lost)
    unpaired = replace(comparison(), differences={"lean": Difference(-0.2, NAN, NAN, NAN)})
    assert state(unpaired) == "not repaired"
    assert "no measurable gain" in verdict(unpaired)


def test_the_headline_difference() -> None:
    c = comparison()
    assert words.headline_difference(c) is c.differences["lean"]
    named = Difference(-0.1, -0.2, -0.05, 0.0)
    assert words.headline_difference(replace(c, differences={**c.differences, "severity": named})) is named
    only = replace(c, differences={"drag": c.differences["drag"]})
    assert words.headline_difference(only) is None
    assert state(only) == "not repaired"
    assert "no paired difference of it is known" in verdict(only)


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
    assert state(still) == "not repaired"
    assert "no measurable gain" in verdict(still)
    assert "the paired difference is exactly 0" in verdict(still)
    assert words.harm_sentence(replace(still, harm={"accuracy": nothing})) == "No harm elsewhere was measured."


def test_harm() -> None:
    assert words.harm_sentence(comparison()) == (
        "The repair cost something elsewhere: drag +0.800 [+0.200, +1.400]. Undecided, as the interval holds 0: accuracy "
        "−0.002 [−0.011, +0.007]."
    )
    calm = replace(comparison(), harm={"accuracy": Difference(-0.002, -0.01, 0.007, 0.6)})
    assert words.harm_sentence(calm) == (
        "No harm elsewhere was measured. Undecided, as the interval holds 0: accuracy −0.002 [−0.010, +0.007]."
    )
    unsure = replace(comparison(), harm={"gate": Difference(-0.05, -0.09, -0.01, 0.01)})
    assert "changed something that should have stayed: gate −0.050" in words.harm_sentence(unsure)
    for key, better in (("accuracy", 1), ("accuracy of last-of-list", 1), ("nll", -1), ("nats per token of text", -1)):
        worse = replace(
            comparison(), harm={key: Difference(-0.05 * better, *sorted((-0.09 * better, -0.01 * better)), 0.01)}
        )
        assert words.harm_sentence(worse).startswith("The repair cost something elsewhere:"), key
    lost = replace(comparison(), harm={"accuracy": Difference(NAN, NAN, NAN, NAN)})
    assert "Not known: accuracy" in words.harm_sentence(lost)
    assert words.harm_sentence(replace(comparison(), harm={})) == "What the repair cost elsewhere was not measured."
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
