"""The reduced bench: what an audit says of answerers that copy or do not, with exact binomial limits."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from trueup.faults.copying import maths
from trueup.faults.copying.worlds import FAULT, NULL, WORLDS, blame
from trueup.measure.worlds import rates

SURE = 1e-4
KNOWN = (
    "guess, 10 answers, 8 shots", "constant, 4 answers, 4 shots", "shown, 10 answers, 8 shots",
    "fixed demonstrations: guess, 10 answers, 4 shots", "fixed demonstrations: skilled, 26 answers, 4 shots",
)  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_who_does_not_copy_is_hardly_ever_found_and_the_interval_holds(name: str):
    world = next(w for w in WORLDS if w.name == name)
    got = rates(world, 300, 60, seed=0)
    assert got.words["found"] <= binom.ppf(1 - SURE, got.runs, 0.025)
    below, held, above = got.held["severity"]
    assert held >= binom.ppf(SURE, below + held + above, 0.92)


@pytest.mark.parametrize("name", FAULT)
def test_who_copies_in_one_query_of_ten_is_found(name: str):
    world = next(w for w in WORLDS if w.name == name)
    got = rates(world, 1000, 12, seed=0)
    assert got.words["found"] >= binom.ppf(SURE, got.runs, 0.8)


def test_a_model_that_must_say_what_it_sees_copies_only_until_the_answers_are_named():
    """The control: without naming them, and without asking whether the right answer was shown, it looks like copying."""
    asked = NULL["shown, 10 answers, 8 shots"].draw(np.random.default_rng(0), 4000)
    draws, gold = asked.draws, asked.gold
    plain = maths.copies(asked.given, gold, draws.shown) - maths.expected(asked.given, gold, draws.chance)
    shown = draws.shown[np.arange(len(gold)), gold]
    assert plain[shown].max() == 0
    assert plain[~shown].mean() > 0.3
    once = maths.copies(asked.named, gold, draws.shown) - maths.expected(asked.named, gold, draws.chance)
    assert abs(maths.blamed(plain, shown, once).mean()) < 0.02


def test_one_who_always_says_an_answer_of_the_fixed_demonstrations_is_never_blamed():
    """The control: against the chance of drawn ones, of which the fixed are one draw for all queries, it would be."""
    asked = NULL["fixed demonstrations: constant, 10 answers, 4 shots"].draw(np.random.default_rng(0), 2000)
    draws, gold = asked.draws, asked.gold
    assert len(np.unique(draws.index, axis=0)) == 1
    assert draws.others is not None
    assert np.array_equal(draws.shown[np.arange(2000), gold], draws.others.shown[np.arange(2000), gold]), (
        "the right answer stands in both or in neither"
    )
    assert (blame(asked) == 0).all()
    assert (maths.copies(asked.given, gold, draws.shown) - maths.expected(asked.given, gold, draws.chance)).mean() > 0.3


def test_where_copies_cannot_stand_out_nothing_is_clear():
    world = next(w for w in WORLDS if w.name == "guess, 2 answers, 1 shots")
    assert rates(world, 300, 5, seed=0).words["undecided"] == 5
