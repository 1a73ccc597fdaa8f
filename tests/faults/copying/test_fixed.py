"""A prompt of the user's own, whose demonstrations never change: found, repaired, and not blamed for what it says anyway."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trueup.errors import BadInput
from trueup.faults.adapter_remedy import Adapted
from trueup.faults.copying import Copying
from trueup.faults.copying import repair as R
from trueup.faults.copying.candidates import Candidate, scales_of
from trueup.run.predict import Session, within
from trueup.run.prompts import with_pool
from trueup.subject.load import load

FAULT = Copying(resamples=60, units_from="task")


def with_demos(name: str, shown: tuple[int, ...] = (0, 0, 1)):
    """A planted case under fixed demonstrations of these answers, which are pairs of its pool; and its corpus."""
    subject, corpus = FAULT.planted(name)
    train = corpus.part("train")
    rows = [int(np.flatnonzero(train.label == c)[i]) for i, c in enumerate(shown)]
    demos = [(train.text[i], train.classes[train.label[i]]) for i in rows]
    return with_pool(subject, train, demos), corpus


@pytest.fixture(scope="module")
def case():
    return with_demos("planted")


@pytest.fixture(scope="module")
def finding(case):
    return FAULT.audit(case[0], case[1].part("test"), seed=0)


def test_who_copies_is_found_and_who_does_not_is_not(finding):
    assert finding.found
    assert finding.sentence.startswith("With 3 fixed demonstrations it is right on")
    subject, corpus = with_demos("healthy")
    healthy = FAULT.audit(subject, corpus.part("test"), seed=0)
    assert not healthy.found
    assert healthy.severity == 0


def test_the_ways_of_drawing_are_the_queries_by_whether_the_right_answer_is_shown(case, finding):
    corpus = case[1]
    s, test = finding.samples, corpus.part("test")
    there = np.isin(test.label, [0, 1])
    assert np.array_equal(s["shown"][s["asked_free"] > 0], there[s["asked_free"] > 0])
    assert np.array_equal(s["asked_always"] > 0, there)
    assert np.array_equal(s["asked_never"] > 0, ~there)
    for m, rows in (("always", there), ("never", ~there)):
        assert np.array_equal(s[f"answer_{m}"][rows], s["answer_free"][rows])
    assert finding.measures["accuracy_always"].value > finding.measures["accuracy_never"].value


def test_an_answer_given_anyway_is_no_copy():
    """The healthy model asked for wrong answers: it says those the prompt shows, and would say them whatever it shows."""
    subject, corpus = with_demos("healthy")
    turned = replace(corpus, label=(corpus.label + 1) % 4)
    f = FAULT.audit(subject, turned.part("test"), seed=0)
    assert f.measures["copying"].value > 0.3
    assert f.severity == 0
    assert not f.found


def test_a_repair_is_chosen_for_the_prompt_as_it_is(case, finding, monkeypatch):
    subject, corpus = case
    # One unit is behind what this prompt has copied, and 4 random ones of 40 hit it too often to be a control.
    deaf = Candidate("published", "another unit", scales_of([(0, 0)], 40, 0.0), "nothing")
    monkeypatch.setattr(R, "random_like", lambda made, seed: [deaf])
    got = FAULT.repair(subject, corpus, finding, seed=0)
    assert isinstance(got, Adapted)
    with got.on(subject) as repaired:
        after = FAULT.audit(repaired, corpus.part("test"), seed=0)
    assert after.severity < 0.2 * finding.severity
    assert after.measures["accuracy"].value > finding.measures["accuracy"].value


def test_the_card_knows_the_header_and_no_pair(case, tmp_path):
    subject, _ = case
    subject = replace(subject, template=replace(subject.template, header="the film\n"))
    folder = FAULT.null(subject).save(tmp_path / "null")
    card = (folder / "README.md").read_text()
    assert "shown = 'the film\\n' + \"\".join(" in card
    assert subject.shots.pool[0][0] not in card
    again = load(subject.source.base, adapter=str(folder), device="cpu")
    assert (again.template.header, again.shots.number, again.shots.pool) == ("the film\n", 3, ())


def test_without_other_demonstrations_there_is_no_chance_to_compare_with(case):
    subject, corpus = case
    demos = subject.shots.pool[: subject.shots.fixed]
    alone = with_pool(subject, corpus.take(np.flatnonzero(corpus.split == "none")), demos)
    with pytest.raises(BadInput, match="3 demonstrations need 3 pairs to draw from, and there are 0"):
        FAULT.audit(alone, corpus.part("test"), seed=0)
    # Others that cannot show the right answer as the prompt does: a note says what is missing.
    train = corpus.part("train")
    some = with_pool(subject, train.take(np.flatnonzero(train.label != 0)), demos)
    with within(Session()) as current:
        f = FAULT.audit(some, corpus.part("test"), seed=0)
    assert any("so what chance is cannot be told for them" in n for n in current.notes)
    lone = (corpus.part("test").label == 0) & (f.samples["asked_free"] > 0)
    assert not (f.samples["copied_free"] - f.samples["expected_free"])[lone].any()
