"""The reduced bench: what an audit says of classifiers whose lean is known, with exact binomial limits."""

from __future__ import annotations

import pytest
from scipy.stats import binom

from trueup.corpus import mix
from trueup.faults.confounding import mixes, several
from trueup.faults.confounding.worlds import WORLDS
from trueup.measure.worlds import rates

SURE = 1e-4
NULLS = ("alike groups, attribute by dice", "a harder group, coupled 3", "4 classes, 3 groups, coupled")
FAULTS = ("head start 1 sd", "against, -1 sd", "1 sd and a harder group")


def test_the_rule_of_cells_is_the_protocol_s():
    assert mixes.FEWEST == mix.FEWEST


@pytest.mark.parametrize("name", NULLS)
def test_no_lean_is_hardly_ever_found_and_intervals_hold(name: str):
    world = next(w for w in WORLDS if w.name == name)
    got = rates(world, 300, 24, seed=0)
    assert got.words["found"] <= binom.ppf(1 - SURE, got.runs, 0.025)
    for key in ("lean", "floor"):
        below, held, above = got.held[key]
        assert held >= binom.ppf(SURE, below + held + above, 0.92), key


@pytest.mark.parametrize("name", FAULTS)
def test_a_lean_is_found_whatever_else_there_is(name: str):
    world = next(w for w in WORLDS if w.name == name)
    got = rates(world, 1000, 12, seed=0)
    assert got.words["found"] >= binom.ppf(SURE, got.runs, 0.8)


def test_too_few_clusters_decide_nothing():
    world = next(w for w in WORLDS if w.name == "every text four times, 1 sd")
    assert rates(world, 20, 3, seed=0).words["undecided"] == 3


def test_intervals_of_several_columns_hold_together(monkeypatch: pytest.MonkeyPatch):
    world = next(w for w in WORLDS if w.name == "leans of 1 sd, 0.6 sd and none, tied columns")
    below, held, above = rates(world, 300, 8, seed=0).held["all together"]
    assert held >= binom.ppf(SURE, below + held + above, 0.95)
    whole = several.measured
    monkeypatch.setattr(several, "measured", lambda *a, **k: whole(*a, **(k | {"level": 0.5})))
    below, held, above = rates(world, 300, 4, seed=0).held["all together"]
    assert below + above > held, "the control: narrower ones do not"
    assert rates(world, 60, 1, seed=0).words["undecided"] == 1, "too few examples of a label in a group"


def test_a_scout_names_what_leans_and_no_dice():
    found = {w.name: w for w in WORLDS if w.fault == "confounding, a scout"}
    assert rates(found["60 columns of dice"], 300, 3, seed=0).words["found"] == 0
    assert rates(found["one of 60 columns leans 1 sd"], 400, 3, seed=0).words["found"] >= 2
