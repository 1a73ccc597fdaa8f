"""Which rows belong together: by text, by a column, through each other; and nothing hangs on the rows' order."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trueup.corpus.clusters import in_order, repeated
from trueup.corpus.corpus import Corpus
from trueup.corpus.read import read
from trueup.corpus.row_clusters import clusters
from trueup.errors import BadInput


def partition(ids) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(np.asarray(ids) == i).tolist()) for i in np.unique(ids)}


def slow(texts, value) -> set[frozenset[int]]:
    """Union-find, the long way: join rows until nothing changes."""
    own = list(range(len(texts)))
    for _ in texts:
        for i, a in enumerate(texts):
            for j, b in enumerate(texts):
                if a == b or (value[i] and value[i] == value[j]):
                    own[i] = own[j] = min(own[i], own[j])
    return partition(own)


def test_equal_texts_but_for_white_space_and_case_are_one():
    assert partition(clusters(["A film", "a  FILM ", "another", "Straße", "STRASSE"])) == {
        frozenset({0, 1}), frozenset({2}), frozenset({3, 4}),
    }  # fmt: skip


def test_pairs_are_one_only_when_both_texts_are():
    assert partition(clusters(["a", "a", "A"], ["x", "y", "X"])) == {frozenset({0, 2}), frozenset({1})}


def test_rows_are_joined_through_each_other():
    """1 and 2 share a text, 2 and 3 an author: all three are one, though 1 and 3 share nothing."""
    assert partition(clusters(["t", "t", "u", "v"], value=["ann", "bob", "bob", "eve"])) == {
        frozenset({0, 1, 2}), frozenset({3}),
    }  # fmt: skip


def test_rows_without_a_value_do_not_belong_together():
    assert len(np.unique(clusters(["a", "b", "c"], value=["", "", "x"]))) == 3


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["", "1", "2", "3", "4"])), min_size=1, max_size=12)
)
def test_against_a_slow_union_find(rows):
    texts, value = zip(*rows, strict=True)
    got = clusters(texts, value=value)
    assert partition(got) == slow(texts, value)
    assert sorted(np.unique(got)) == list(range(len(np.unique(got))))


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["", "1", "2", "3"])), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
)
def test_a_rows_number_does_not_depend_on_where_it_stands(rows, random):
    order = list(range(len(rows)))
    random.shuffle(order)
    texts, value = zip(*rows, strict=True)
    moved = clusters([texts[i] for i in order], value=[value[i] for i in order])
    assert moved.tolist() == clusters(texts, value=value)[order].tolist()


def corpus(texts, **more) -> Corpus:
    n = len(texts)
    return Corpus(texts, np.arange(n) % 2, ("a", "b"), np.array(["test"] * n), **more)


@given(st.permutations(range(8)))
def test_rows_have_an_order_that_shuffling_does_not_change(order):
    texts, label = list("abcabcaa"), np.array([0, 1, 0, 0, 0, 1, 1, 0])
    site = np.array(["x", "y", "y", "x", "x", "y", "x", "y"])
    whole = Corpus(texts, label, ("no", "yes"), np.array(["test"] * 8), attributes={"site": site})
    moved = whole.take(np.array(order))
    (one, _), (other, place) = in_order(whole), in_order(moved)
    for a, b in ((one.text, other.text), (one.label, other.label), (one.attributes["site"], other.attributes["site"])):
        assert list(a) == list(b)
    assert [other.text[i] for i in place] == moved.text, "and what is found goes back to where its row stood"
    assert other.label[place].tolist() == moved.label.tolist()


def test_a_part_keeps_the_numbers_of_the_whole():
    """Also where the row that joined two others is left out."""
    whole = corpus(["t", "t", "u"], cluster=clusters(["t", "t", "u"], value=["ann", "bob", "bob"]))
    part = whole.take(np.array([0, 2]))
    assert len(np.unique(part.cluster)) == 1
    assert len(np.unique(corpus(part.text).cluster)) == 2, "the control: by their texts alone they are two"
    assert whole.relabel(("b", "a")).cluster.tolist() == whole.cluster.tolist()
    assert len(whole.take(np.array([], dtype=int)).cluster) == 0


def test_repeated_rows_are_told():
    assert repeated(corpus(["a", "b"])) is None
    assert "3 rows of 'corpus' are 2 independent clusters: 1 repeat the text" in str(repeated(corpus(["a", "A", "b"])))
    both = corpus(["a", "a", "b", "c"], cluster=np.array([0, 0, 0, 1]))
    assert "4 rows of 'corpus' are 2 independent clusters: 1 repeat the text of another and 1 more share" in str(
        repeated(both)
    )


def table(path, rows) -> str:
    with open(path, "w", newline="") as f:
        out = csv.DictWriter(f, rows[0])
        out.writeheader()
        out.writerows(rows)
    return str(path)


def by_author(n: int = 60) -> list[dict[str, str]]:
    return [{"text": f"text {i}", "label": "ab"[i % 2], "author": f"w{i // 4}"} for i in range(n)]


def test_an_author_is_never_in_two_splits(tmp_path):
    path = table(tmp_path / "d.csv", by_author())
    got = read(path, cluster="author")
    assert len(np.unique(got.cluster)) == 15
    for i in np.unique(got.cluster):
        assert len(set(got.split[got.cluster == i])) == 1
    rows = read(path)
    assert any(len(set(rows.split[4 * i : 4 * i + 4])) > 1 for i in range(15)), (
        "the control: by text alone authors are torn"
    )


def test_a_single_held_out_part_is_halved_by_clusters(tmp_path):
    rows = [r | {"part": "train" if i < 40 else "test"} for i, r in enumerate(by_author(120))]
    got = read(table(tmp_path / "d.csv", rows), cluster="author", split="part")
    assert {"train", "calibration", "test"} == set(got.split)
    for i in np.unique(got.cluster):
        assert len(set(got.split[got.cluster == i])) == 1


@pytest.mark.parametrize(
    ("column", "says"),
    [
        ("text", "it holds the texts or the labels"),
        ("label", "it holds the texts or the labels"),
        ("same", "every row says 'x'"),
        ("chain", "join all 60 rows into one cluster"),
        ("auhtor", r"no column 'auhtor'\. Did you mean 'author'\?"),
    ],
)
def test_a_column_that_cannot_part_the_rows_is_refused(tmp_path, column, says):
    rows = [r | {"same": "x", "chain": f"c{i // 30}"} for i, r in enumerate(by_author())]
    rows[0]["text"] = rows[59]["text"]  # stands under both values of `chain`
    with pytest.raises(BadInput, match=says):
        read(table(tmp_path / "d.csv", rows), cluster=column)


def test_an_authors_rows_in_two_given_splits_are_refused_unless_allowed(tmp_path):
    rows = [r | {"part": ["train", "dev", "test"][i // 20]} for i, r in enumerate(by_author())]
    rows[0]["author"] = "w14"
    path = table(tmp_path / "d.csv", rows)
    assert len(read(path, split="part")) == 60, "the control: no text is in two splits"
    with pytest.raises(
        BadInput, match=r"1 of 15 clusters .*'train', 'test', 5 rows in all.*leave the split column out"
    ):
        read(path, split="part", cluster="author")
    assert len(read(path, split="part", cluster="author", allow_leak=True)) == 60
