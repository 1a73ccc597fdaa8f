"""The reduced bench: weights against a prompt over seeds, with exact binomial limits."""

from __future__ import annotations

import pytest
from scipy.stats import binom

from trueup.faults.rigidity.worlds import WORLDS
from trueup.measure.worlds import rates

SURE = 1e-4


@pytest.mark.parametrize("world", [w for w in WORLDS if w.kind == "null"], ids=lambda w: w.name)
def test_equal_entrants_are_hardly_ever_found_and_the_interval_holds(world):
    got = rates(world, 300, 300, seed=0)
    assert got.words["found"] <= binom.ppf(1 - SURE, got.runs, 0.025)
    below, held, above = got.held["severity"]
    assert held >= binom.ppf(SURE, below + held + above, 0.92)


@pytest.mark.parametrize("world", [w for w in WORLDS if w.kind == "fault"], ids=lambda w: w.name)
def test_better_weights_are_found(world):
    got = rates(world, 1000, 100, seed=0)
    assert got.words["found"] >= binom.ppf(SURE, got.runs, 0.8)
