"""Which pairs stand before a query, and the chance that an answer is among them: laws, and small pools counted out."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trueup.corpus.prompt import MODES, draw, fixed
from trueup.corpus.row_clusters import same_key
from trueup.errors import BadInput

CLASSES = 4


@st.composite
def cases(draw_from):
    """A pool in which texts may stand twice, queries of which some stand in it, and how many demonstrations."""
    words = [f"{w}{gap}x" for w in "abcdefgh" for gap in (" ", "  ")]
    pool = draw_from(st.lists(st.sampled_from(words), min_size=1, max_size=12))
    answer = np.array(draw_from(st.lists(st.integers(0, CLASSES - 1), min_size=len(pool), max_size=len(pool))))
    query = draw_from(st.lists(st.sampled_from([*words, "new", "\ta x "]), min_size=1, max_size=4))
    gold = np.array(draw_from(st.lists(st.integers(0, CLASSES - 1), min_size=len(query), max_size=len(query))))
    return pool, answer, query, gold, draw_from(st.integers(0, 5)), draw_from(st.integers(0, 9))


def drawn(case, mode, **changes):
    pool, answer, query, gold, number, seed = case
    given = {"number": number, "seed": seed, "mode": mode} | changes
    return draw(pool, answer, query, gold, CLASSES, **given)


def others(pool, answer, query, gold, mode):
    """Rows that may be shown, of which `always` must show one that holds the right answer."""
    keys, (own,) = same_key(pool, None), same_key([query], None)
    return [i for i in range(len(pool)) if keys[i] != own and not (mode == "never" and answer[i] == gold)]


def counted_out(pool, answer, query, gold, number, mode, there=None):
    """(C,) the probability that each answer is shown, by all that can be drawn; None where nothing can. With `there`, by all
    that show the right answer, or do not."""
    free = others(pool, answer, query, gold, mode)
    sets: dict[frozenset, float] = {}
    if mode == "always" and number:
        # One that holds the right answer, then the rest out of all others.
        for first in [i for i in free if answer[i] == gold]:
            for rest in combinations([i for i in free if i != first], number - 1):
                sets[frozenset((first, *rest))] = sets.get(frozenset((first, *rest)), 0) + 1
    else:
        sets = {frozenset(s): 1 for s in combinations(free, number)}
    if not sets:
        return None
    if there is not None:
        sets = {s: w for s, w in sets.items() if any(answer[i] == gold for i in s) == there}
    shown = [sum(w for s, w in sets.items() if any(answer[i] == c for i in s)) for c in range(CLASSES)]
    return np.array(shown) / sum(sets.values())


@given(cases(), st.sampled_from(MODES))
def test_every_draw_keeps_the_laws(case, mode):
    pool, answer, query, gold, number, _ = case
    try:
        d = drawn(case, mode)
    except BadInput:
        assert any(len(others(pool, answer, q, g, "free")) < number for q, g in zip(query, gold, strict=True))
        return
    keys = same_key(pool, None)
    for i, own in enumerate(same_key(query, None)):
        rows = d.index[i].tolist()
        expected = counted_out(pool, answer, query[i], gold[i], number, mode)
        assert d.possible[i] == (expected is not None)
        if expected is None:
            assert set(rows) == {-1}
            assert not d.shown[i].any()
            continue
        assert len(set(rows)) == number, "no demonstration twice"
        assert own not in {keys[j] for j in rows}, "a query is never its own demonstration"
        assert d.shown[i].tolist() == [c in answer[rows] for c in range(CLASSES)]
        if mode == "never":
            assert not d.shown[i, gold[i]]
        if mode == "always" and number:
            assert d.shown[i, gold[i]]
        if mode == "free":
            expected = counted_out(pool, answer, query[i], gold[i], number, mode, bool(d.shown[i, gold[i]]))
        assert np.allclose(d.chance[i], expected)


@given(cases(), st.sampled_from(MODES))
def test_a_draw_does_not_depend_on_the_other_queries(case, mode):
    pool, answer, query, gold, number, seed = case
    try:
        whole = drawn(case, mode)
    except BadInput:
        return
    for i in range(len(query)):
        alone = drawn((pool, answer, query[i : i + 1], gold[i : i + 1], number, seed), mode)
        part = whole.take(np.array([i]))
        for name in ("index", "shown", "chance"):
            assert np.array_equal(getattr(part, name), getattr(alone, name))


@pytest.mark.parametrize("mode", MODES)
def test_chance_is_how_often_an_answer_is_shown_over_many_seeds(mode):
    pool = [f"x{i}" for i in range(9)]
    answer = np.array([0, 0, 0, 0, 1, 1, 1, 2, 3])
    query, gold = ["x0", "new"], np.array([0, 1])
    tries = 3000
    made = [draw(pool, answer, query, gold, 4, number=3, mode=mode, seed=s) for s in range(tries)]
    seen, chance = (np.mean([getattr(d, k) for d in made], axis=0) for k in ("shown", "chance"))
    assert np.abs(seen - chance).max() < 5 * 0.5 / np.sqrt(tries)
    assert np.ptp(chance[:, 1:]) > 0.1, "the control: the answers differ"


def test_seeds_and_modes_draw_different_demonstrations():
    pool, answer = [f"x{i}" for i in range(50)], np.arange(50) % 4
    query, gold = [f"q{i}" for i in range(20)], np.arange(20) % 4
    a, b = (draw(pool, answer, query, gold, 4, number=4, seed=s).index for s in (0, 1))
    again = draw(pool, answer, query, gold, 4, number=4, seed=0).index
    assert np.array_equal(a, again)
    assert (a != b).any(axis=1).all()


def test_the_right_answer_is_in_any_place():
    pool, answer = [f"x{i}" for i in range(50)], np.array([0] + [1] * 49)
    query = [f"q{i}" for i in range(400)]
    d = draw(pool, answer, query, np.zeros(400, int), 2, number=4, mode="always")
    place = np.bincount((d.index == 0).argmax(axis=1), minlength=4)
    assert (d.index == 0).any(axis=1).all()
    assert place.min() > 60


def test_a_right_answer_that_no_other_pair_has_cannot_be_shown():
    pool, answer = ["a", "b", "c", "d"], np.arange(4)
    alone = draw(pool, answer, pool, answer, 4, number=2, mode="always")
    assert not alone.possible.any()
    assert (alone.index == -1).all()
    assert not alone.chance.any()
    # The control: asked about another text, the pair that has the answer can be shown.
    assert draw(pool, answer, ["e"], answer[:1], 4, number=2, mode="always").possible.all()


def test_too_few_other_answers_for_never():
    pool, answer = list("abcdef"), np.array([0, 0, 0, 0, 1, 1])
    d = draw(pool, answer, ["q", "r"], np.array([0, 1]), 2, number=3, mode="never")
    assert d.possible.tolist() == [False, True]


def test_a_pool_too_small_is_said_in_numbers():
    pool, answer = ["a", "b", "b ", "c"], np.array([0, 1, 1, 0])
    draw(pool, answer, ["new"], np.array([0]), 2, number=4)
    draw(pool, answer, ["a"], np.array([0]), 2, number=3)
    with pytest.raises(BadInput, match="5 demonstrations need 5 pairs to draw from, and there are 4"):
        draw(pool, answer, ["new"], np.array([0]), 2, number=5)
    with pytest.raises(BadInput, match="4 demonstrations need 5 pairs to draw from, and there are 4"):
        draw(pool, answer, ["new", " a"], np.array([0, 0]), 2, number=4)
    with pytest.raises(BadInput, match="3 demonstrations need 5 pairs"):
        draw(pool, answer, ["b"], np.array([0]), 2, number=3)


# ------------------------------------------------------------------------------------------- demonstrations that stay


@given(cases())
def test_fixed_demonstrations_are_the_same_for_every_query_that_is_none_of_them(case):
    pool, answer, query, gold, kept, seed = case
    number = min(kept, len(pool))
    twice = max((same_key(pool[number:], None).count(k) for k in same_key(query, None)), default=0)
    if number and len(pool) < 2 * number + twice:
        with pytest.raises(BadInput, match="demonstrations need"):
            fixed(pool, answer, query, gold, CLASSES, number=number, kept=number, seed=seed)
        return
    got = {m: fixed(pool, answer, query, gold, CLASSES, number=number, kept=number, mode=m, seed=seed) for m in MODES}
    own = set(same_key(pool[:number], None))
    apart = np.array([k not in own for k in same_key(query, None)])
    there = np.isin(gold, answer[:number])
    for mode, ask in {"free": apart, "never": apart & ~there, "always": apart & there}.items():
        d = got[mode]
        assert (d.index[ask] == np.arange(number)).all()
        assert np.array_equal(d.shown[ask], np.tile(np.isin(np.arange(CLASSES), answer[:number]), (ask.sum(), 1)))
        if number:
            assert np.array_equal(d.possible, ask)
        others = d.others
        able = others.possible
        assert (others.index[able] >= number).all(), "none of the fixed ones is among the others"
        assert np.array_equal(others.shown[able][np.arange(able.sum()), gold[able]], there[able]), "shown as it was"
        some = np.arange(len(query))[::-1]
        assert np.array_equal(d.take(some).others.index, others.index[some])


def test_more_than_are_fixed_are_refused():
    with pytest.raises(BadInput, match="There are 2 fixed demonstrations, and 3 are asked for"):
        fixed(["a", "b", "c", "d"], np.array([0, 1, 0, 1]), ["x"], np.array([0]), 2, number=3, kept=2)
