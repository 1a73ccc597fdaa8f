"""What is read off texts: each cue on texts that have it and on texts that have not; scripts without spaces; other columns."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from trueup.corpus import cues as made
from trueup.corpus.corpus import Corpus
from trueup.corpus.read import read


def corpus_of(texts: list[str], second: list[str] | None = None) -> Corpus:
    return Corpus(texts, np.zeros(len(texts), np.int64), ("a", "b"), np.full(len(texts), "test"), second)


def value(name: str, texts: list[str], second: list[str] | None = None) -> list[str]:
    corpus = corpus_of(texts, second)
    (cue,) = [c for c in made.cues(corpus) if c.name == name]
    return cue.of(corpus).tolist()


@pytest.mark.parametrize(
    ("name", "has", "lacks"),
    [
        ("a link", "see https://x.org now", "see x.org now"),
        ("a mention", "thanks @united", "mail a@b.org"),
        ("a hashtag", "#pats win", "no 1"),
        ("an emoji", "well \U0001f600", "well"),
        ("an emoji", "well :-)", "note: (this)"),
        ("a digit", "in 1999", "in May"),
        ("a word in capitals", "this is GREAT", "This is I"),
        ("a letter drawn out", "sooo good", "good"),
        ("a full stop at the end", "It ends. ", "It ends"),
        ("markup", "a<br />b", "a < b"),
        ("a line break", "a\nb", "a b\n"),
    ],
)
def test_a_surface_cue_tells_texts_apart(name, has, lacks):
    assert value(name, [has, lacks]) == ["there", "not there"]


def test_numbers_are_parted_at_their_median():
    assert value("length in words", ["a", "a b", "a b c", "a b c d"]) == ["up to 2.5"] * 2 + ["above 2.5"] * 2


def test_a_number_that_most_texts_share_still_makes_two_groups():
    """More than half have the largest number: no text lies above the median."""
    name = "percent of the second text's words that stand in the first"
    firsts, seconds = ["a b"] * 5, ["a", "b", "a b", "c", "c a"]
    assert value(name, firsts, seconds) == ["100 or more"] * 3 + ["below 100"] * 2
    assert value("length in words", ["a", "a", "a", "a b"]) == ["up to 1"] * 3 + ["above 1"]


def test_a_column_of_numbers_that_most_rows_share_still_makes_groups(tmp_path):
    for shared, groups in ((100, {"100", "below 100"}), (0, {"up to 0", "above 0"})):
        path = tmp_path / f"{shared}.csv"
        rows = [("text", "label", "score")]
        rows += [(f"text {i}", "ab"[i % 2], 50 + i % 12 if i % 5 == 0 else shared) for i in range(200)]
        with open(path, "w", newline="") as f:
            csv.writer(f).writerows(rows)
        assert set(read(path, others=True).others["score"]) == groups


def test_pairs_have_the_known_heuristics_of_inference():
    first = ["the doctor saw the actor", "the doctor saw the actor"]
    second = ["the actor saw the doctor", "nobody didn't sleep"]
    assert value("every word of the second text in the first", first, second) == ["there", "not there"]
    assert value("a negation in the second text", first, second) == ["not there", "there"]
    assert value("percent of the second text's words that stand in the first", first, second) == [
        "above 50",
        "up to 50",
    ]
    assert not [c for c in made.cues(corpus_of(first)) if c.kind == "pair"]


def test_words_and_phrases_are_those_that_enough_texts_have_and_lack():
    corpus = corpus_of(["good film here", "good film there", "bad film", "the film"])
    found = made.phrases(corpus, 2)
    assert [c.name for c in found] == ['the word "good"', 'the phrase "good film"']
    assert [v.tolist() for v in made.table(corpus, found)] == [["there", "there", "not there", "not there"]] * 2
    assert all((c.of(corpus) == v).all() for c, v in zip(found, made.table(corpus, found), strict=True))


@pytest.mark.parametrize(
    "texts",
    [["这部电影很好看", "这部电影不好看", "我很喜欢这个", "服务不好"], ["หนังเรื่องนี้ดีมาก", "หนังเรื่องนี้แย่", "ดีมาก", "แย่"]],
)
def test_a_script_without_spaces_is_read_by_characters(texts):
    corpus = corpus_of(texts)
    assert made.unsegmented(texts)
    assert "length in characters" in [c.name for c in made.cues(corpus)]
    names = [c.name for c in made.phrases(corpus, 2)]
    assert any(n.startswith("the character") for n in names)
    assert any(n.startswith("the phrase") for n in names)
    assert not made.unsegmented(["a film of some kind", "une histoire très drôle", "фильм хороший"])


def test_columns_that_nobody_named_come_as_groups_and_ids_do_not(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "data.csv"
    with open(path, "w", newline="") as f:
        rows = [("text", "label", "id", "row", "year", "site", "constant", "city")]
        cities = [*"abcdefghijkl"]
        rows += [
            (
                f"text {i}",
                "ab"[i % 2],
                f"x{i}",
                i,
                1990 + int(rng.integers(0, 30)),
                "AB"[int(rng.random() < 0.3)],
                1,
                cities[i % 12],
            )
            for i in range(200)
        ]
        csv.writer(f).writerows(rows)
    corpus = read(path, others=True)
    assert set(corpus.others) == {"year", "site", "city"}
    years = np.unique(corpus.others["year"])
    assert len(years) == 3
    assert any(y.startswith("above") for y in years)
    assert set(corpus.others["site"]) == {"A", "B"}
    assert len(np.unique(corpus.others["city"])) == 8
    assert len(corpus.part("test").others["site"]) == len(corpus.part("test"))
    assert not read(path).others
    assert set(read(path, others=True, attributes=("site",), limit=100).others) == {"year", "city"}
