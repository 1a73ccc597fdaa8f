"""The reduced bench: what an audit says of classifiers whose lean is known, with exact binomial limits."""

from __future__ import annotations

import pytest
from scipy.stats import binom

from trueup.corpus import mix
from trueup.faults.confounding import mixes
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
