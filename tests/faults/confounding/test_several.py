"""Several columns that should not matter: each is examined, and each pair; a scout finds the one that nobody named."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import trueup
from trueup.corpus import mix
from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput, Unsupported
from trueup.faults.confounding import Confounding, leads, several
from trueup.faults.confounding.planted import planted
from trueup.faults.confounding.scout import scout, with_columns
from trueup.faults.overconfidence import Overconfidence
from trueup.report.values import plain, untag
from trueup.run.predict import Session, within
from trueup.subject.subject import Subject

FAULT = Confounding(resamples=60)


@pytest.fixture(scope="module")
def case() -> tuple[Subject, Corpus]:
    """The planted classifier, with columns of dice before the one that it leans on."""
    subject, corpus = planted("planted")
    dice = np.random.default_rng(0).choice(["odd", "even"], len(corpus))
    rare = np.where(np.arange(len(corpus)) % 60 == 0, "rare", "usual")
    return subject, replace(corpus, attributes={"dice": dice, "rare": rare, **corpus.attributes})


def test_the_headline_is_what_calibration_examples_say_and_all_are_examined(case):
    subject, corpus = case
    fault = FAULT.prepared(subject, corpus, seed=0)
    assert fault.attribute == "site"
    assert replace(FAULT, attribute="dice").prepared(subject, corpus, seed=0).attribute == "dice"
    with within(Session()) as now:
        found = fault.audit(subject, corpus.part("test"), seed=0)
    assert found.found
    told = {d["attribute"]: d["verdict"] for d in found.details["others"]}
    assert set(told) == {"dice", "dice*site"}
    assert told["dice"] != "found"
    assert told["dice*site"] == "found"
    assert found.details["also found"] == ["dice*site"]
    assert len([n for n in now.notes if n.startswith("Nothing is said about")]) == 3, "rare, and its two pairs"
    lean = found.measures["lean on dice"]
    assert lean.low < 0 < lean.high
    worst = found.measures["worst of dice*site"]
    assert worst.high < found.measures["accuracy"].value
    assert [s.x for s in found.charts[-1].series] == [["site", "dice", "dice*site"]]


def test_of_one_column_nothing_is_added(case):
    subject, corpus = case
    one = replace(corpus, attributes={"site": corpus.attributes["site"]})
    found = FAULT.prepared(subject, one, seed=0).audit(subject, one.part("test"), seed=0)
    assert "others" not in found.details
    both = FAULT.prepared(subject, corpus, seed=0).audit(subject, corpus.part("test"), seed=0)
    assert (found.severity, found.low, found.high) == (both.severity, both.low, both.high)


def test_differences_of_further_columns_are_paired(case):
    subject, corpus = case
    fault = FAULT.prepared(subject, corpus, seed=0)
    found = fault.audit(subject, corpus.part("test"), seed=0)
    same = fault.compare(found, found, seed=0)
    assert {k for k in same if k.startswith("lean on ")} == {"lean on dice", "lean on dice*site"}
    assert all(same[k].value == same[k].low == same[k].high == 0 for k in same if k.startswith("lean on "))


def test_a_repair_against_two_columns_at_once(case):
    subject, corpus = case
    fault = replace(FAULT, attribute="dice*site", max_cost=1.0)
    two = replace(corpus, attributes={k: corpus.attributes[k] for k in ("dice", "site")})
    (c,) = trueup.check(subject, two, fault, seed=0).comparisons
    assert c.after is not None, c.remedy
    assert c.differences["severity"].high < 0
    assert c.differences["lean on site"].high < 0
    assert c.harm["accuracy"].high < 0.05, "its price is told"


def test_two_columns_make_one_of_their_pairs(case):
    corpus = case[1].part("test")
    crossed = mix.column(corpus, "dice*site")
    assert set(crossed) == {"odd, calm", "odd, loud", "even, calm", "even, loud"}
    with pytest.raises(BadInput, match="no attribute 'dice\\*sit'"):
        mix.column(corpus, "dice*sit")
    assert several.pairs(["a", "b", "c"]) == ["a*b", "a*c", "b*c"]


# ---------------------------------------------------------------------------------------------------------- the scout


@pytest.fixture(scope="module")
def hidden(case):
    """The same without its columns, and what a scout finds there."""
    subject, corpus = case
    bare = replace(corpus, attributes={})
    return subject, bare, scout(subject, bare, seed=0)


def test_the_token_that_names_the_site_is_found_where_no_column_does(case, hidden):
    subject, bare, found = hidden
    first = found.leads[0]
    assert first.rank == 1
    assert first.low > 0.05
    names = [x.name for x in found.leads]
    (word,) = {'the word "loud"', 'the word "calm"'} & set(names)
    column = with_columns(subject, bare, [f"scout:{names.index(word) + 1}"], found).attributes[word]
    agrees = (column == "there") == (case[1].attributes["site"] == word[10:-1])
    assert agrees.all(), "it is the true column"
    assert {e["group"] for e in first.examples} == set(first.groups)
    assert first.name in str(found)
    with pytest.raises(BadInput, match=r"There is no column 'scout:0'. There is 'scout:1'"):
        with_columns(subject, bare, ["scout:0"], found)


def test_a_column_of_the_data_is_found_and_dice_are_not(case):
    subject, corpus = case
    found = scout(subject, corpus, seed=0)
    assert "site" in [x.name for x in found.leads] or found.leads[0].name.startswith("the word")
    assert "dice" not in [x.name for x in found.leads]
    assert found.tried["column"] == 3


def test_a_healthy_classifier_has_no_site_to_be_found():
    subject, corpus = planted("sham")
    found = scout(subject, corpus, seed=0)
    assert not {"site", 'the word "loud"', 'the word "calm"'} & {x.name for x in found.leads}
    assert "were tried on" in found.sentence


def test_what_cannot_be_scouted_is_refused(hidden):
    subject, bare, _ = hidden
    with pytest.raises(BadInput, match="needs two classes with 20 independent examples"):
        scout(subject, bare.take(np.arange(0, len(bare), 60)), seed=0)
    with pytest.raises(Unsupported, match="demonstrations"):
        scout(replace(subject, template=type("T", (), {"shots": 4})()), bare)


def test_a_check_that_names_no_column_searches_for_one_in_its_own_pass(hidden):
    subject, bare, found = hidden
    passes: list[tuple[str, int]] = []

    def told(stage: str, done: int, total: int) -> None:
        if done == total:
            passes.append((stage, total))

    with within(Session(progress=told)):
        report = trueup.audit(subject, bare, [Overconfidence(resamples=20), FAULT])
    assert report.shortcuts is not None
    assert [(x.name, x.lean, x.low, x.q) for x in report.shortcuts.leads] == [
        (x.name, x.lean, x.low, x.q) for x in found.leads
    ], "the numbers of scout:1, scout:2 are the scout's"
    read = [s for s, _ in passes if "features" in s]
    assert len(read) == 2, f"calibration and test texts were read once each: {passes}"
    assert all(s.startswith("hidden states and features at layers") for s in read)
    assert report.unexamined == {}
    assert any(n.startswith("confounding was not examined: No column was named") for n in report.notes)
    # Not where a column is named, nor where confounding is not asked for.
    for corpus, faults in (
        (replace(bare, attributes={"dice": _dice(bare)}), [FAULT]),
        (bare, [Overconfidence(resamples=20)]),
    ):
        assert trueup.audit(subject, corpus, faults).shortcuts is None


def _dice(corpus: Corpus) -> np.ndarray:
    return np.random.default_rng(0).choice(["odd", "even"], len(corpus))


def test_a_search_that_cannot_be_made_costs_no_audit(hidden, monkeypatch):
    subject, bare, _ = hidden
    few = bare.take(np.concatenate([np.flatnonzero(bare.split == s)[:60] for s in ("train", "calibration", "test")]))
    few = few.take(~((few.label == 0) & (few.split == "calibration") & (np.arange(len(few)) % 2 == 0)))
    faults = [Overconfidence(resamples=20, folds=2), FAULT]
    report = trueup.audit(subject, few, faults)
    assert report.shortcuts is None
    assert any(n.startswith("No shortcut was searched for. A scout needs two classes with 20") for n in report.notes)
    monkeypatch.setattr("trueup.faults.confounding.search.put_forward", lambda *_: 1 / 0)
    report = trueup.audit(subject, bare, faults)
    assert [c.before.fault for c in report.comparisons] == ["overconfidence"]
    assert any("No shortcut was searched for. trueup crashed there" in n for n in report.notes)
    assert "ZeroDivisionError" in report.crashes["confounding"]


def test_what_a_search_found_goes_into_the_findings_and_back(hidden):
    found = hidden[2]
    kept = json.loads(json.dumps(plain(leads.in_check(found))), object_hook=untag)
    again = leads.read(kept)
    assert leads.in_check(again) == leads.in_check(found)
    assert len(again.leads) == min(len(found.leads), leads.TOLD) > 0
    assert again.sentence == found.sentence
    for spoilt in (
        {"leads": [{}]},
        {"named": "many"},
        {"unproven": 3},
        {"leads": [kept["leads"][0] | {"clusters": [1]}]},
    ):
        with pytest.raises((KeyError, TypeError, ValueError)):
            leads.read(kept | spoilt)
