"""What a copy is and what chance makes of it: values worked by hand, and a predictor that looks at no demonstration."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trueup.corpus.prompt import MODES, draw, fixed
from trueup.faults.copying import maths
from trueup.measure.accuracy import wilson

GOLD = np.array([0, 0, 1, 2, 1])
ANSWER = np.array([0, 1, 1, 0, -1])
SHOWN = np.array([[1, 1, 0], [0, 1, 1], [0, 1, 0], [0, 1, 1], [1, 1, 1]], bool)


def test_a_copy_is_wrong_and_shown():
    # right; wrong and shown; right and shown; wrong and not shown; no class at all
    assert maths.copies(ANSWER, GOLD, SHOWN).tolist() == [0, 1, 0, 0, 0]


def test_what_is_expected_is_the_chance_of_a_wrong_answer():
    chance = np.array([[0.9, 0.1, 0.2], [0.3, 0.4, 0.5], [0.6, 0.7, 0.8], [0.25, 0.1, 0.1], [1.0, 1.0, 1.0]])
    assert maths.expected(ANSWER, GOLD, chance).tolist() == [0, 0.4, 0, 0.25, 0]


def test_at_answer_keeps_the_kind_of_its_table():
    assert maths.at_answer(SHOWN, ANSWER).tolist() == [True, True, True, False, False]
    assert maths.at_answer(SHOWN, ANSWER).dtype == bool


def test_a_penalty_moves_answers_away_from_what_is_shown():
    z = np.array([[3.0, 2.0, 0.0], [3.0, 2.0, 0.0], [3.0, 2.0, 0.0], [3.0, 2.0, 0.0]], np.float32)
    other = np.array([-9.0, -9.0, 2.5, 9.0], np.float32)
    shown = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]], bool)
    assert maths.penalised(z, other, shown, 0.0).tolist() == [0, 0, 0, -1]
    assert maths.penalised(z, other, shown, 0.9).tolist() == [0, 0, -1, -1]
    assert maths.penalised(z, other, shown, 1.1).tolist() == [1, 0, -1, -1]
    assert maths.penalised(z, other, shown, 4.0).tolist() == [1, 2, -1, -1]


def question(shown: list[bool], gold: int, said: int = 0, *, right: bool = False) -> maths.Question:
    return maths.Question(torch.tensor(shown), gold, said, torch.arange(len(shown)) == gold, right)


def test_the_shift_towards_a_shown_answer():
    z = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]]))
    shown = [False, True, True, False]
    assert torch.allclose(maths.shift(z, question(shown, 0)), torch.tensor([0.3 - 0.1, 0.1 - 0.7]))
    # Where the right answer is shown it is no rival of itself.
    assert torch.allclose(maths.shift(z, question(shown, 2)), torch.tensor([0.2 - 0.3, 0.1 - 0.1]), atol=1e-6)
    assert torch.allclose(maths.shift(z, question([False] * 4, 3)), torch.tensor([-0.4, -0.1]))
    # Towards the right one: over all others, shown or not.
    assert torch.allclose(maths.shift(z, question(shown, 2, right=True)), torch.tensor([0.3 - 0.4, 0.1 - 0.7]))
    assert torch.allclose(maths.shift(z, question(shown, 3, right=True)), torch.tensor([0.4 - 0.3, 0.1 - 0.7]))
    asked = question(shown, 0)
    maths.shift(z, asked)
    assert asked.shown.tolist() == shown, "what is given is left as it is"


def test_the_other_target_is_the_probability_of_the_one_answer():
    z = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]]))
    assert torch.allclose(maths.copied(z, question([False, True, True, False], 0, said=2)), torch.tensor([0.3, 0.1]))
    assert torch.allclose(maths.copied(z, question([True] * 4, 0, said=2, right=True)), torch.tensor([0.1, 0.7]))


def test_the_shift_has_a_gradient_and_ignores_what_all_logits_share():
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    asked = question([True, True, False, False], 3)
    (slope,) = torch.autograd.grad(maths.shift(z, asked).sum(), z)
    assert torch.allclose(slope.sum(dim=1), torch.zeros(3), atol=1e-6)
    assert (slope[:, 3] < 0).all(), "a surer right answer is less copying"
    assert torch.allclose(maths.shift(z + 5, asked), maths.shift(z, asked), atol=1e-6)


def test_scores_are_scaled_over_a_layer_or_over_the_model():
    x = np.array([[[1.0, 3.0, 2.0], [0.0, 0.0, 0.0]], [[-10.0, 10.0, 0.0], [5.0, 5.0, 6.0]]], np.float32)
    assert maths.over_layer(x).tolist() == [[[0, 1, 0.5], [0, 0, 0]], [[0, 1, 0.5], [0, 0, 1]]]
    assert maths.over_model(x)[1].tolist() == [[0, 1, 0.5], [0.75, 0.75, pytest.approx(0.8)]]
    # In one layer of one prompt both rank alike; it is in the mean over prompts that they differ.
    assert maths.over_layer(x)[0, 0].argsort().tolist() == maths.over_model(x)[0, 0].argsort().tolist()
    assert not np.allclose(maths.over_layer(x).mean(axis=0), maths.over_model(x).mean(axis=0))


def test_where_paths_begin():
    x = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    assert maths.at_zero(x).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert maths.at_mean(x).tolist() == [[3, 4, 5], [6, 7, 8]]


def test_top_breaks_ties_by_place():
    assert maths.top(np.array([1.0, 3.0, 3.0, 2.0, 3.0]), 3).tolist() == [1, 2, 4]


@given(st.integers(0, 2**20), st.integers(2, 6), st.sampled_from(MODES))
def test_a_copy_implies_that_it_was_possible(seed, classes, mode):
    rng = np.random.default_rng(seed)
    pool, answer = [f"x{i}" for i in range(20)], rng.integers(classes, size=20)
    query, gold = [f"q{i}" for i in range(30)], rng.integers(classes, size=30)
    d = draw(pool, answer, query, gold, classes, number=3, mode=mode, seed=seed)
    said = rng.integers(-1, classes, size=30)
    copied, chance = maths.copies(said, gold, d.shown), maths.expected(said, gold, d.chance)
    assert ((chance >= 0) & (chance <= 1 + 1e-12)).all()
    assert (chance[copied == 1] > 0).all()
    assert not copied[said == gold].any()
    assert not chance[said == gold].any()


@pytest.mark.parametrize("mode", MODES)
def test_only_a_predictor_that_looks_at_the_demonstrations_copies_above_chance(mode):
    """Over many draws the excess of any fixed answers is 0, however often these stand among few classes."""
    rng = np.random.default_rng(1)
    pool, answer = [f"x{i}" for i in range(40)], rng.choice(3, 40, p=[0.6, 0.3, 0.1])
    query, gold = [f"q{i}" for i in range(60)], rng.integers(3, size=60)
    # Wrong in the same way whatever is shown: mostly with the class that is shown most often.
    blind = rng.choice(3, 60, p=[0.7, 0.2, 0.1])
    excess, raw, copying = [], [], []
    for seed in range(150):
        d = draw(pool, answer, query, gold, 3, number=4, mode=mode, seed=seed)
        copied = maths.copies(blind, gold, d.shown)
        raw.append(copied.mean())
        excess.append((copied - maths.expected(blind, gold, d.chance)).mean())
        last = answer[d.index[:, -1]]
        copying.append((maths.copies(last, gold, d.shown) - maths.expected(last, gold, d.chance)).mean())
    spread = np.std(excess) / np.sqrt(len(excess))
    assert abs(np.mean(excess)) < 5 * spread
    assert np.mean(raw) > 0.2, "the control: the paper's count of it is high"
    assert np.mean(copying) > 20 * spread, "the control: one that says the last answer again is found"


def test_what_may_have_been_lost_counts_queries_and_not_points():
    n = 100
    right = np.ones(n)
    assert maths.most_lost(right, right) == pytest.approx(0.037, abs=0.001), "none lost of 100 leaves 4% open"
    worse = right.copy()
    worse[:5] = 0
    assert maths.most_lost(right, worse) > 0.1
    few = maths.most_lost(np.ones(20), np.ones(20))
    assert few > 0.15, "nothing lost among 20 says little"
    assert maths.most_lost(worse, right) < 0.05
    # As often as it says: of runs with a true loss of 5%, the end lies below it in at most 2.5%, and a little.
    rng = np.random.default_rng(0)
    below = [maths.most_lost(np.ones(200), (rng.random(200) > 0.05).astype(float)) < 0.05 for _ in range(2000)]
    assert np.mean(below) < 0.04


def test_a_copy_stands_out_by_as_much_as_chance_leaves():
    shown = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 1]], bool)
    chance = np.array([[1.0, 0.4, 0.4], [1.0, 0.5, 0.5], [0.0, 0.9, 0.7]])
    assert maths.visible(shown, np.array([0, 0, 0]), chance) == pytest.approx((0.6 + 0 + 0.2) / 3)


def test_the_severity_of_no_copy_at_all_leaves_what_so_many_queries_can_hide():
    for n in (60, 600):
        e = maths.severity(np.zeros(n), np.ones(n), np.arange(n), seed=0, resamples=50)
        assert (e.value, e.low) == (0, 0)
        assert (1 - e.high) ** n <= 0.025, "the rule of three"
        assert e.high == pytest.approx(wilson(0, n)[1])


def test_a_severity_of_few_copies_is_less_its_chance():
    """3 copies of 90 queries, whose chance was 1 in 10 for a third of them."""
    chance = np.repeat([0.1, 0.0, 0.0], 30)
    blame = (np.arange(90) % 30 == 0) - chance
    e = maths.severity(blame, np.ones(90), np.arange(90), seed=0, resamples=50)
    assert e.value == pytest.approx(0)
    assert -0.034 < e.low < 0 < e.high < 0.07


# ------------------------------------------------------------------------------------- demonstrations that never change


def under_fixed(rule: str, n: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    """(n,) copies, and what `expected_under` gives, of a rule under three fixed demonstrations of ten answers."""
    rng = np.random.default_rng(2)
    answer = np.array([0, 1, 2, *rng.choice(10, 200)])
    gold, query = rng.integers(10, size=n), [f"q{i}" for i in range(n)]
    d = fixed([f"p{i}" for i in range(len(answer))], answer, query, gold, 10, number=3, kept=3, seed=0)
    noise = rng.random(n)

    def say(draws) -> np.ndarray:
        shown_one = answer[draws.index[np.arange(n), rng.integers(3, size=n)]]
        there = draws.shown[np.arange(n), gold]
        return {
            "constant": np.zeros(n, np.int64),
            "guess": rng.integers(10, size=n),
            "right when shown": np.where(there, gold, 1),
            "copies a tenth": np.where(noise < 0.1, shown_one, rng.integers(10, size=n)),
        }[rule]

    own, other = say(d), say(d.others)
    return maths.copies(own, gold, d.shown), maths.expected_under(
        own, other, gold, d.shown, d.others.shown, d.others.possible
    )


@pytest.mark.parametrize("rule", ["constant", "guess", "right when shown"])
def test_who_does_not_copy_has_no_excess_under_fixed_demonstrations(rule):
    copied, expected = under_fixed(rule)
    excess = copied - expected
    assert abs(excess.mean()) <= 4 * excess.std() / np.sqrt(len(excess)) + 1e-12
    if rule == "constant":
        assert copied.mean() > 0.8, "the control: it gives a shown answer nearly always"


def test_who_copies_has_an_excess_under_fixed_demonstrations():
    copied, expected = under_fixed("copies a tenth")
    excess = copied - expected
    # A tenth are copies, of which 3 in 10 would have been right or have stood among the others as well.
    assert excess.mean() > 4 * excess.std() / np.sqrt(len(excess))
    assert 0.04 < excess.mean() < 0.1


def test_drawn_chance_would_blame_who_always_says_the_same():
    """The control: why demonstrations that stay get a null of their own."""
    rng = np.random.default_rng(2)
    answer, gold, n = np.array([0, 1, 2, *rng.choice(10, 200)]), rng.integers(10, size=3000), 3000
    d = draw([f"p{i}" for i in range(len(answer))], answer, [f"q{i}" for i in range(n)], gold, 10, number=3, seed=0)
    shown = np.tile(np.arange(10) < 3, (n, 1))
    constant = np.zeros(n, np.int64)
    assert (maths.copies(constant, gold, shown) - maths.expected(constant, gold, d.chance)).mean() > 0.4


def test_what_is_chance_under_fixed_demonstrations():
    """Six queries with the right answer 0, the fixed demonstrations showing 1 and 2, the others 2 and 3."""
    gold, shown, others = np.zeros(6, int), np.zeros((6, 5), bool), np.zeros((6, 5), bool)
    shown[:, [1, 2]], others[:, [2, 3]] = True, True
    answer, other = np.array([1, 1, 2, 0, 4, 1]), np.array([0, 1, 0, 1, 4, -1])
    able = np.array([True, True, True, True, True, False])
    assert maths.copies(answer, gold, shown).tolist() == [1, 1, 1, 0, 0, 1]
    # A copy; said anyway; the others show it too; said under the others alone; no copy; without others.
    assert maths.expected_under(answer, other, gold, shown, others, able).tolist() == [0, 1, 1, 1, 0, 1]
