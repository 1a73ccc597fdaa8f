import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trueup.corpus.corpus import Corpus
from trueup.corpus.mix import ALPHAS, counts, draw, group_index, groups_of, shift
from trueup.errors import BadInput
from trueup.measure.shift import alpha_of, auprc, auprc_at, coupled_as, joint, table_at


def corpus_of(table, *, names=None, seed=0):
    """A corpus with these counts of (label, group), in random order; texts are their numbers."""
    table = np.asarray(table)
    label, group = (np.repeat(i.ravel(), table.ravel()) for i in np.indices(table.shape))
    order = np.random.default_rng(seed).permutation(label.size)
    label, group = label[order], group[order]
    names = np.array(names or [f"site{g}" for g in range(table.shape[1])])
    classes = tuple(f"class{c}" for c in range(table.shape[0]))
    text = [f"text {i}" for i in range(label.size)]
    return Corpus(text, label, classes, np.full(label.size, "train", dtype="U11"), None, {"site": names[group]}, "toy")


def cells(corpus, groups=("site0", "site1")):
    return counts(corpus, "site", groups)


# ---------------------------------------------------------------------------------------------------------------------
# Groups


def test_groups_are_sorted_and_counted():
    corpus = corpus_of([[3, 4, 5], [6, 7, 8]], names=["b", "a", "c"])
    assert groups_of(corpus, "site") == ("a", "b", "c")
    assert counts(corpus, "site", ("a", "b", "c")).tolist() == [[4, 3, 5], [7, 6, 8]]
    index = group_index(corpus, "site")
    assert [("a", "b", "c")[i] for i in index] == corpus.attributes["site"].tolist()
    assert (group_index(corpus, "site", ("c", "b", "a")) == 2 - index).all()


def with_site(values, label, classes=("no", "yes")):
    n = len(values)
    return Corpus(
        [f"t{i}" for i in range(n)],
        np.array(label),
        classes,
        np.full(n, "test"),
        None,
        {"site": np.array(values)},
        "toy",
    )


@pytest.mark.parametrize(
    ("corpus", "said"),
    [
        (
            with_site(["a"] * 6, [0, 1] * 3),
            r"is 'a' in every example, .* name another column with `--confounder COLUMN`",
        ),
        (with_site(["n", "n", "y", "y"] * 2, [0, 0, 1, 1] * 2), r"is the label under another name, .* add examples"),
        (with_site(list("abcabcabc"), [0, 0, 1] * 3), r"settles the label: each of its values occurs with one label"),
        (
            with_site(list("aaabbb" * 2), [0, 2, 0, 1, 1, 1] * 2, ("x", "y", "z")),
            r"is settled by the label: each label",
        ),
        (with_site(list("abcdefgh"), [0, 1] * 4), r"in 8 examples, as an id has; merge or drop rare values, or name"),
        (
            with_site(["0.5", "-2", "1e3", "4", "5", "6.25", "7", "8"], [0, 1] * 4),
            r"as an id has; cut its numbers into a few",
        ),
        (
            with_site(list("abcdefghaa"), [0, 1, 0, 1, 2, 3, 0, 1, 3, 2], tuple("wxyz")),
            r"has 8 different values in 10 examples",
        ),
        (
            with_site(list("abcdabcdab"), [0, 1, 2, 3, 1, 1, 2, 3, 0, 2], tuple("wxyz")),
            r"has 4 values, and 10 of the 16 combinations of label and value have no example; merge or drop rare",
        ),
        (with_site([], np.array([], int)), r"has no examples; give"),
    ],
)
def test_what_cannot_be_told_from_the_label_is_refused(corpus, said):
    with pytest.raises(BadInput, match=said):
        groups_of(corpus, "site")


def test_one_empty_cell_is_not_yet_a_tie():
    assert groups_of(with_site(["a", "a", "b", "a", "b", "a"], [0, 1, 0, 1, 0, 1]), "site") == ("a", "b")


def test_a_missing_attribute_is_a_sentence():
    with pytest.raises(
        BadInput, match=r"no attribute 'sites'\. Did you mean 'site'\? .* are 'site'; name .*--confounder"
    ):
        groups_of(corpus_of([[2, 2], [2, 2]]), "sites")
    with pytest.raises(
        BadInput, match=r"read without attributes; name a column of the data with `--confounder COLUMN`"
    ):
        group_index(Corpus(["a"], np.array([0]), ("x",), np.array(["test"])), "site")


def test_an_unseen_value_is_named_and_a_constant_part_is_fine_with_known_groups():
    test = with_site(["a", "new", "a"], [0, 1, 1])
    with pytest.raises(BadInput, match=r"not seen before: 'new'\. Known are 'a', 'b'; drop"):
        group_index(test, "site", ("a", "b"))
    assert group_index(with_site(["b", "b"], [0, 1]), "site", ("a", "b")).tolist() == [1, 1]


# ---------------------------------------------------------------------------------------------------------------------
# Draws


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10_000), st.integers(2, 4), st.integers(2, 4), st.integers(1, 300), st.sampled_from([0.2, 1.0, 20.0])
)
def test_cells_and_margins_are_next_to_the_table(seed, classes, groups, size, evenness):
    table = np.random.default_rng(seed).dirichlet(np.full(classes * groups, evenness)).reshape(classes, groups)
    corpus = corpus_of(np.full((classes, groups), 300))
    sample = draw(corpus, "site", 7 * table, size, seed=seed, fewest=0)
    found = counts(sample, "site", groups_of(corpus, "site"))
    assert len(sample) == len(set(sample.text)) == found.sum() == size
    for have, want in ((found, size * table), *((found.sum(axis=a), size * table.sum(axis=a)) for a in (0, 1))):
        assert (np.abs(have - want) < 1 + 1e-6).all()


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 19), st.integers(1, 19), st.floats(0.05, 20))
def test_whole_margins_never_move(ones, second, alpha):
    free = np.outer([20 - ones, ones], [20 - second, second]) / 400
    try:
        table = table_at(free, alpha)
    except BadInput:
        return
    found = cells(draw(corpus_of([[210, 210], [210, 210]]), "site", table, 200, seed=0, fewest=0))
    assert found.sum(axis=1).tolist() == [200 - 10 * ones, 10 * ones]
    assert found.sum(axis=0).tolist() == [200 - 10 * second, 10 * second]


def test_ties_do_not_move_margins():  # where largest remainders of the cells would give a row both
    found = cells(draw(corpus_of([[9, 9], [9, 9]]), "site", np.full((2, 2), 1), 6, seed=0, fewest=0))
    assert found.sum(axis=0).tolist() == found.sum(axis=1).tolist() == [3, 3]


def test_draws_are_shuffled_and_the_same_for_the_same_seed():
    corpus = corpus_of([[200, 200], [200, 200]])
    one, same, other = (draw(corpus, "site", np.ones((2, 2)), 100, seed=s) for s in (1, 1, 2))
    assert list(one.text) == list(same.text) != list(other.text)
    runs = np.count_nonzero(np.diff(one.label)) + 1
    assert 30 < runs < 70  # sorted labels would have 2
    assert corpus.text[0] == "text 0"


def test_every_example_is_as_likely_as_its_cell():
    corpus = corpus_of([[20, 20], [20, 20]])
    seen = np.zeros(80)
    for s in range(300):
        for t in draw(corpus, "site", [[4, 2], [2, 2]], 20, seed=s, fewest=1).text:
            seen[int(t.split()[1])] += 1
    place = corpus.label * 2 + group_index(corpus, "site")
    expected = np.array([8, 4, 4, 4])[place] / 20 * 300
    assert np.abs(seen - expected).max() < 5 * np.sqrt(expected.max())


def test_a_cell_that_would_be_too_small_is_named_with_what_would_do():
    corpus = corpus_of([[500, 500], [500, 500]])
    table = table_at(np.outer([0.7, 0.3], [0.5, 0.5]), 10)
    with pytest.raises(BadInput) as e:
        draw(corpus, "site", table, 100, seed=0)
    said = str(e.value)
    assert "Of 100 examples 3 would be of class 'class1' with site 'site0', where 10 are the fewest" in said
    assert "with 100 examples alpha can be 0.5 to 2, and" in said
    assert "at this coupling 367 to 1057 examples can be drawn" in said
    free = np.outer([0.7, 0.3], [0.5, 0.5])
    for size in (367, 1057):
        assert len(draw(corpus, "site", table, size, seed=0)) == size
    for alpha in (0.5, 2):
        draw(corpus, "site", table_at(free, alpha), 100, seed=0)
    with pytest.raises(BadInput):
        draw(corpus, "site", table_at(free, 2.3), 100, seed=0)


def test_a_cell_that_is_short_is_named_with_what_would_do():
    corpus = corpus_of([[500, 500], [500, 40]])
    with pytest.raises(BadInput) as e:
        draw(corpus, "site", table_at(np.outer([0.7, 0.3], [0.5, 0.5]), 1), 400, seed=0)
    said = str(e.value)
    assert "'toy' has 40 examples of class 'class1' with site 'site1' to draw from, and 60 are needed for 400." in said
    assert "at this coupling 67 to 266 examples can be drawn" in said
    assert "with 400 examples alpha can be 0.089 to 0.5" in said


def test_three_groups_are_told_sizes_alone_and_hopeless_ones_to_bring_more():
    corpus = corpus_of([[50, 50, 50], [50, 50, 12]])
    with pytest.raises(
        BadInput, match=r"'site2' to draw from.*at this coupling 60 to 72 examples can be drawn; change"
    ):
        draw(corpus, "site", np.ones((2, 3)), 120, seed=0)
    have = counts(corpus, "site", groups_of(corpus, "site"))
    tilt = coupled_as(have, 1 / have)
    assert len(draw(corpus, "site", tilt, 70, seed=0, fewest=5)) == 70
    with pytest.raises(BadInput, match=r"No coupling at this size .* give more examples"):
        draw(corpus_of([[50, 50], [50, 5]]), "site", np.ones((2, 2)), 400, seed=0)


def test_a_table_of_another_shape_and_a_size_of_none_are_refused():
    corpus = corpus_of([[20, 20], [20, 20]])
    with pytest.raises(BadInput, match=r"shape \(2, 3\); 'toy' has 2 classes and 2 values .* give one of 2 x 2"):
        draw(corpus, "site", np.ones((2, 3)), 40, seed=0)
    with pytest.raises(BadInput, match="give the mass"):
        draw(corpus, "site", [[1, 1], [1, -1]], 40, seed=0)
    with pytest.raises(BadInput, match="give a size"):
        draw(corpus, "site", np.ones((2, 2)), 0, seed=0)


@pytest.mark.parametrize("alpha", [0.2, 5])
def test_the_mean_over_draws_is_what_reweighting_the_pool_gives(alpha):
    corpus = corpus_of([[700, 900], [800, 600]])
    group = group_index(corpus, "site")
    rng = np.random.default_rng(0)
    score = corpus.label + 1.5 * group + rng.normal(size=len(corpus))
    p = np.stack([-score, score], axis=1)
    target = table_at(np.outer([0.7, 0.3], [0.5, 0.5]), alpha)
    drawn = []
    for s in range(150):
        rows = np.array([int(t.split()[1]) for t in draw(corpus, "site", target, 600, seed=s).text])
        drawn.append(auprc(p[rows], corpus.label[rows]))
    whole = auprc_at(p, corpus.label, group, target)
    assert np.mean(drawn) == pytest.approx(whole, abs=0.01)
    assert abs(auprc(p, corpus.label) - whole) > 0.05  # the pool as it is gives another number


# ---------------------------------------------------------------------------------------------------------------------
# The protocol


BIG = corpus_of([[1200, 1500], [1300, 1100]])


def test_the_training_of_the_protocol():
    made = shift(BIG, "site", alpha_train=5, seed=0)
    assert made.groups == ("site0", "site1")
    assert made.table == pytest.approx(np.array([[0.45, 0.25], [0.05, 0.25]]))
    assert cells(made.train).tolist() == [[450, 250], [50, 250]]
    assert cells(made.train.part("train")).tolist() == [[360, 200], [40, 200]]  # p0, p1 = .1, .5
    assert cells(made.train.part("calibration")).tolist() == [[90, 50], [10, 50]]
    assert tuple(made.tests) == ALPHAS
    assert not made.dropped


def test_margins_stay_texts_are_apart_and_alpha_is_as_asked():
    made = shift(BIG, "site", alpha_train=5, draws=3, seed=0)
    seen = set(made.train.text)
    assert len(seen) == 1000
    for alpha, draws in made.tests.items():
        assert len(draws) == 3
        assert len({tuple(sorted(d.text)) for d in draws}) == 3
        for d in draws:
            found = cells(d)
            assert found.sum(axis=1).tolist() == [700, 300]
            assert found.sum(axis=0).tolist() == [500, 500]
            assert alpha_of(found) == pytest.approx(alpha, rel=0.02)
            assert set(d.split) == {"test"}
            assert len(set(d.text)) == 1000
            assert not seen & set(d.text)


def test_the_grid_is_symmetric_about_one():
    logs = np.log10(ALPHAS)
    assert logs == pytest.approx(-logs[::-1])
    assert np.diff(logs) == pytest.approx(0.25)
    assert 1.0 in ALPHAS


def test_the_same_seed_gives_the_same_draws_whatever_the_grid():
    one = shift(BIG, "site", alpha_train=5, alphas=[0.2, 1, 5], draws=2, seed=3)
    two = shift(BIG, "site", alpha_train=5, alphas=[1], draws=1, seed=3)
    assert list(one.train.text) == list(two.train.text)
    assert list(one.tests[1][0].text) == list(two.tests[1][0].text)
    other = shift(BIG, "site", alpha_train=5, alphas=[1], draws=1, seed=4)
    assert list(other.tests[1][0].text) != list(two.tests[1][0].text)


def test_settings_that_cannot_be_drawn_are_dropped_with_the_reason():
    made = shift(BIG, "site", alpha_train=1, sizes=(400, 100, 200), alphas=[0.01, 0.1, 1, 10, -2], seed=0)
    assert tuple(made.tests) == (1.0,)
    assert sorted(made.dropped) == [-2, 0.01, 0.1, 10]
    assert "5 would be of class 'class1' with site 'site1', where 10 are the fewest" in made.dropped[0.1]
    assert "alpha above 0" in made.dropped[-2]
    few = corpus_of([[1200, 1500], [1300, 280]])
    made = shift(few, "site", alpha_train=0.2, alphas=[0.2, 5], seed=0)
    assert tuple(made.tests) == (0.2,)
    assert "has 230 examples of class 'class1' with site 'site1' to draw from, and 250 are needed" in made.dropped[5]


def test_equal_texts_are_used_once():
    twice = Corpus(
        [*BIG.text, *(t + "  " for t in BIG.text)],
        np.tile(BIG.label, 2),
        BIG.classes,
        np.tile(BIG.split, 2),
        None,
        {"site": np.tile(BIG.attributes["site"], 2)},
        "toy",
    )
    one, two = (shift(c, "site", alpha_train=5, alphas=[1], draws=1, seed=0) for c in (BIG, twice))
    assert list(one.train.text) == list(two.train.text)
    assert list(one.tests[1][0].text) == list(two.tests[1][0].text)


def test_other_shares():
    made = shift(BIG, "site", alpha_train=2, positive=0.4, share=0.25, sizes=(400, 100, 400), alphas=[0.5, 2], seed=1)
    for sample in (made.train, *(d for draws in made.tests.values() for d in draws)):
        table = joint(sample.label, group_index(sample, "site", made.groups), 2, 2)
        assert table.sum(axis=1) == pytest.approx([0.6, 0.4])
        assert table.sum(axis=0) == pytest.approx([0.75, 0.25])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: shift(corpus_of([[9, 9], [9, 9], [9, 9]]), "site", alpha_train=5, seed=0),
            "3 classes, .* give `draw`",
        ),
        (lambda: shift(corpus_of([[9] * 3] * 2), "site", alpha_train=5, seed=0), "3 values of 'site', .* give `draw`"),
        (lambda: shift(BIG, "site", alpha_train=5, positive=1.2, seed=0), "positive is 1.2; give"),
        (lambda: shift(BIG, "site", alpha_train=5, share=0, seed=0), "share is 0; give"),
        (lambda: shift(BIG, "site", alpha_train=5, sizes=(800, 0, 10), seed=0), "give a size"),
        (lambda: shift(BIG, "site", alpha_train=5, draws=0, seed=0), "give at least 1"),
        (lambda: shift(BIG, "site", alpha_train=5, alphas=[-1], seed=0), r"no test is left\. At alpha -1: .*; give"),
        (lambda: shift(BIG, "site", alpha_train=9, positive=0.7, seed=0), "allow alpha above .*; give"),
        (
            lambda: shift(corpus_of([[400, 400], [400, 200]]), "site", alpha_train=5, seed=0),
            "For training and calibration: 'toy' has 200 .* give more",
        ),
        (
            lambda: shift(corpus_of([[460, 260], [60, 260]]), "site", alpha_train=5, seed=0),
            "no test is left. At alpha 1: 'toy' has 10 .* give more",
        ),
    ],
)
def test_the_protocol_refuses(call, said):
    with pytest.raises(BadInput, match=said):
        call()
