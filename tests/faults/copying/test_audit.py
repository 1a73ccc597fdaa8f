"""The audit: the three cases' numbers, the causal test, and what cannot be asked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trueup.errors import BadInput
from trueup.faults.copying import Copying
from trueup.faults.copying import audit as A
from trueup.faults.copying.audit import TITLES
from trueup.faults.copying.maths import by_swap
from trueup.faults.fault import Finding
from trueup.measure.accuracy import wilson
from trueup.run.answers import answers
from trueup.run.prompts import drawn, header, rows, with_pool
from trueup.subject.anatomy import FAMILIES
from trueup.subject.load import load

from .cases import unique

FAULT = Copying(resamples=60)
CASES = ("planted", "healthy", "sham")


@pytest.fixture(scope="module")
def cases():
    return {c: FAULT.planted(c) for c in CASES}


@pytest.fixture(scope="module")
def found(cases):
    return {c: FAULT.audit(s, corpus.part("test"), seed=0) for c, (s, corpus) in cases.items()}


def value(finding: Finding, key: str) -> float:
    return finding.measures[key].value


def test_the_three_cases(found):
    planted, healthy, sham = (found[c] for c in CASES)
    assert [found[c].found for c in CASES] == [True, False, False]
    assert planted.low > 0.05
    assert (value(healthy, "accuracy"), healthy.severity) == (1.0, 0.0)
    n = healthy.provenance["clusters"]
    assert healthy.high == pytest.approx(wilson(0, n)[1]), "none of so many says no more than that"
    # The sham is as often wrong, and nearly every wrong answer is shown; chance alone explains it.
    assert value(sham, "copying") > value(planted, "copying")
    assert value(sham, "copying") > 0.4
    assert sham.low <= 0 <= sham.high
    assert "nearly every wrong answer stands among them anyway" in sham.doubt
    assert planted.doubt == healthy.doubt == ""


def test_severity_is_what_no_ignorance_excuses(found):
    """Where the right answer was shown the query as it is counts, elsewhere the one with all answers named."""
    for f in found.values():
        s = f.samples
        shown, plain, named = s["shown"], *(s[f"copied_{k}"] - s[f"expected_{k}"] for k in ("free", "named"))
        assert f.severity == pytest.approx(np.where(shown, plain, named).mean())
        assert f.low <= f.severity <= f.high
        assert value(f, "excess_shown") == pytest.approx(plain[shown].mean())
        if not shown.all():
            assert value(f, "excess_hidden") == pytest.approx(plain[~shown].mean())
            assert value(f, "excess_named") == pytest.approx(named[~shown].mean())
        for m in ("never", "always"):
            assert f.measures[f"copying_{m}"].title.endswith(TITLES[m])


def test_what_the_demonstrations_show_decides_what_the_planted_one_gets_right(found):
    planted, healthy, sham = (found[c] for c in CASES)
    by_mode = [value(planted, k) for k in ("accuracy_never", "accuracy", "accuracy_always")]
    assert by_mode == sorted(by_mode)
    assert by_mode[2] - by_mode[0] > 0.4
    assert len({value(sham, k) for k in ("accuracy_never", "accuracy", "accuracy_always")}) == 1
    assert value(healthy, "accuracy_never") == 1.0


def test_a_copy_follows_when_the_shown_answer_is_exchanged(cases, found):
    assert value(found["planted"], "follow") > value(found["planted"], "follow_expected")
    assert value(found["planted"], "follow") > 0.8
    (subject, corpus), planted = cases["planted"], found["planted"].samples
    test = corpus.part("test")
    spare = ~drawn(subject, test, seed=0).shown
    spare[np.arange(len(test)), test.label] = False
    assert np.array_equal(planted["swapped"], planted["copied_free"] * spare.any(axis=1))
    assert planted["swapped"].mean() > 0.2
    assert not planted["followed"][planted["swapped"] == 0].any()
    # Two answers leave none to exchange for, and the healthy one copies nothing.
    assert "follow" not in found["sham"].measures
    assert "follow" not in found["healthy"].measures


def test_without_copying_units_no_wrong_answer_follows(cases):
    """The healthy model, asked for other answers than it knows: always wrong, often shown, and never moved."""
    subject, corpus = cases["healthy"]
    turned = replace(corpus, label=(corpus.label + 1) % 4)
    f = FAULT.audit(with_pool(subject, turned.part("train")), turned.part("test"), seed=0)
    assert (value(f, "accuracy"), f.found) == (0.0, False)
    assert value(f, "copying") > 0.4
    assert f.samples["swapped"].sum() > 50
    assert value(f, "follow") == 0.0
    assert f.low <= 0 <= f.high
    # The control: the planted one under the same wrong answers is moved.
    subject, corpus = cases["planted"]
    turned = replace(corpus, label=(corpus.label + 1) % 4)
    f = FAULT.audit(with_pool(subject, turned.part("train")), turned.part("test"), seed=0)
    assert value(f, "follow") > 0.3


def test_many_answers_are_not_named_and_demonstrations_that_do_not_fit_are_refused(cases):
    subject, corpus = unique(cases["planted"])
    f = FAULT.audit(subject, corpus.part("test"), seed=0)
    assert not f.details["named"]
    assert f.severity == pytest.approx((f.samples["copied_free"] - f.samples["expected_free"]).mean())
    with pytest.raises(BadInput, match="There are 90 answers, and a prompt's first line names at most 30"):
        header(corpus.classes)
    assert header(("a", " b")) == "The answer is one of: a, b.\n"
    subject, corpus = cases["planted"]
    pool = (("the\ncat", "amber"), *subject.shots.pool[1:])
    broken = replace(subject, template=replace(subject.template, shots=replace(subject.shots, pool=pool)))
    with pytest.raises(BadInput, match="1 of 240 demonstrations do not fit the template"):
        FAULT.audit(broken, corpus.part("test"), seed=0)


def test_the_chance_of_following_is_that_of_a_model_that_does_not_look():
    rng = np.random.default_rng(0)
    spare = rng.random((4000, 6)) < 0.5
    spare[:, 0] = True
    answer = rng.integers(-1, 6, 4000)
    instead = np.array([rng.choice(np.flatnonzero(s)) for s in spare])
    followed, expected = by_swap(answer, instead, spare)
    assert followed.mean() == pytest.approx(expected.mean(), abs=0.02)
    assert expected.mean() > 0.1
    looked, _ = by_swap(instead, instead, spare)
    assert looked.mean() == 1


def test_the_columns_are_what_the_answers_say(cases, found):
    subject, corpus = cases["planted"]
    test, s = corpus.part("test"), found["planted"].samples
    d = drawn(subject, test, seed=0)
    said = answers(subject, rows(subject, test.text, d)).answer
    assert np.array_equal(s["answer_free"], said)
    shown = d.shown[np.arange(len(said)), said]
    assert np.array_equal(s["copied_free"], (said != test.label) & shown)
    assert np.array_equal(s["right_free"], said == test.label)
    assert np.allclose(s["expected_free"], np.where(said != test.label, d.chance[np.arange(len(said)), said], 0))


def test_the_charts_go_as_far_as_there_are_pairs_and_room(cases, found):
    assert list(found["planted"].charts[0].series[0].x) == [0, 1, 2, 4, 8, 16]
    none = {s.name: s.y[0] for s in found["planted"].charts[0].series}
    assert (none["copied"], none["copied by chance"]) == (0, 0), "without demonstrations there is nothing to copy"
    subject, corpus = cases["planted"]
    test = corpus.part("test").take(np.arange(20))
    few = FAULT.audit(with_pool(subject, corpus.part("train").take(np.arange(6))), test, seed=0)
    assert list(few.charts[0].series[0].x) == [0, 1, 2, 4]
    # Four demonstrations of five words fit, eight do not: the chart ends, and the audit stands.
    short = FAULT.audit(replace(subject, max_length=26), test, seed=0)
    assert list(short.charts[0].series[0].x) == [0, 1, 2, 4]
    whole = FAULT.audit(subject, test, seed=0)
    assert short.severity == pytest.approx(whole.measures["excess_shown"].value), "no room to name the answers"
    with pytest.raises(BadInput, match="at most 3 of them fit"):
        FAULT.audit(replace(subject, max_length=24), test, seed=0)


def test_examples_show_the_copies_least_expected_first(cases, found):
    test, f = cases["planted"][1].part("test"), found["planted"]
    shown = FAULT.examples(test, f, None)
    assert 0 < len(shown) <= 200
    copies = int(f.samples["copied_free"].sum())
    assert [r["copied"] for r in shown[:copies]] == [True] * min(copies, len(shown))
    place = {t: i for i, t in enumerate(test.text)}
    expected = [f.samples["expected_free"][place[r["text"]]] for r in shown if r["copied"]]
    assert expected == sorted(expected)
    assert all(r["label"] != r["answered"] for r in shown if r["copied"])
    after = replace(f, samples={**f.samples, "answer_free": np.full(len(test), -1)})
    assert {r["answered after"] for r in FAULT.examples(test, f, after)} == {"(something else)"}


# ----------------------------------------------------------------------------------------------- what cannot be asked


def test_where_no_right_answer_can_be_shown_its_measures_are_missing(cases, found):
    subject, corpus = unique(cases["planted"])
    f = FAULT.audit(subject, corpus.part("test"), seed=0)
    assert not f.samples["asked_always"].any()
    assert not any(k.endswith("_always") for k in f.measures)
    assert "accuracy_never" in f.measures
    assert len(f.charts[1].series[0].x) == 2
    assert Finding.from_dict(f.as_dict(), f.samples).severity == f.severity
    assert set(FAULT.compare(f, f, seed=0)) == {k for k in ("severity", *f.measures) if not k.startswith("follow")}
    assert "accuracy_always" in found["planted"].measures, "the control"


def test_to_whom_it_applies(cases):
    subject, corpus = cases["planted"]
    assert FAULT.applies_to(subject, corpus) is None
    says = {
        "is an encoder": replace(subject, anatomy=FAMILIES["bert"]),
        "not asked with demonstrations": replace(subject, template=None),
        "asked with 0 demonstrations": replace(
            subject, template=replace(subject.template, shots=replace(subject.shots, number=0))
        ),
        "There is one answer": replace(subject, classes=subject.classes[:1]),
    }
    for words, other in says.items():
        assert words in (FAULT.applies_to(other, corpus) or "")


def test_bad_input_is_a_sentence(cases):
    subject, corpus = cases["planted"]
    test = corpus.part("test")
    bare = load(subject.source.base, shots=4, template="{text} {label}", device="cpu")
    with pytest.raises(BadInput, match="no pairs to take demonstrations from"):
        FAULT.audit(bare, test, seed=0)
    with pytest.raises(BadInput, match="no pairs to take demonstrations from"):
        FAULT.audit(replace(subject, template=None), test, seed=0)
    with pytest.raises(BadInput, match="gives 9 queries to examine; copying needs at least 10"):
        FAULT.audit(subject, test.take(np.arange(9)), seed=0)
    assert FAULT.audit(subject, test.take(np.arange(10)), seed=0).found in (True, False)
    with pytest.raises(BadInput, match="4 demonstrations need 4 pairs to draw from, and there are 3"):
        FAULT.audit(with_pool(subject, corpus.part("train").take(np.arange(3))), test, seed=0)
    with pytest.raises(BadInput, match="labels that the classifier's head does not know"):
        FAULT.audit(subject, replace(test, classes=("w", "x", "y", "z")), seed=0)
    with pytest.raises(BadInput, match=r"copying\.resamples"):
        Copying(resamples=2)
    with pytest.raises(BadInput, match=r"copying\.threshold"):
        Copying(threshold=1.0)


# ------------------------------------------------------------------------------------------------------ task vectors


def test_the_layer_of_the_task_vectors_is_chosen_on_the_pool_and_tried_on_the_queries(cases, monkeypatch):
    """A layer that is best on the queries and not on the pool is not chosen."""
    subject, corpus = cases["planted"]
    test, seen = corpus.part("test"), []

    def given(_, queries, seed, layers):
        seen.append((list(queries.text), layers))
        pool = queries.name == "pool"
        share = np.array([0.2, 0.6, 0.4]) if pool else np.array([0.9, 0.5, 0.9])  # of layers 1, 2 and 3
        right = (np.arange(len(queries))[:, None] < share * len(queries)).astype(float)
        return right[:, [i - 1 for i in layers]], np.ones(len(queries), bool)

    monkeypatch.setattr(A, "vectors", given)
    monkeypatch.setattr(A, "layers_of", lambda _: [None] * 4)
    f = FAULT.audit(subject, test, seed=0)
    assert f.details["task vector of layer"] == 2
    assert f.measures["task_vector"].value == pytest.approx(0.5)
    (dev, every), (tried, one) = seen
    assert (list(every), one) == ([1, 2, 3], [2])
    assert set(dev) <= {x for x, _ in subject.shots.pool}
    assert not set(dev) & set(test.text)
    assert FAULT.compare(f, f, seed=0)["task_vector"].value == 0
    assert set(tried) == set(test.text)


def test_the_pairs_that_choose_the_layer_are_drawn_from_the_whole_pool(cases, monkeypatch):
    """A pool sorted by its answers: those of every answer are among them, about as often as in the pool."""
    subject, corpus = cases["planted"]
    train, seen = corpus.part("train"), []
    train = train.take(np.argsort(train.label, kind="stable"))
    plain = A.vectors
    monkeypatch.setattr(
        A, "vectors", lambda s, queries, *rest: (seen.append(queries.label), plain(s, queries, *rest))[1]
    )
    A.task_vectors(with_pool(subject, train), corpus.part("test"), 0)
    assert len(seen[0]) == A.VECTORS
    share = np.bincount(seen[0], minlength=4) / A.VECTORS
    assert np.abs(share - np.bincount(train.label, minlength=4) / len(train)).max() < 0.15
    first = np.sort(np.random.default_rng(0).permutation(len(train))[:60])[: A.VECTORS]
    assert np.bincount(train.label[first], minlength=4)[3] == 0, "the control: the first of a sorted sample"


def test_a_task_vector_works_where_the_model_keeps_the_task_and_not_the_query(cases, found):
    """The planted model answers by the query's own key, which a vector of another query takes away."""
    for case in ("planted", "healthy"):
        assert found[case].measures["task_vector"].value < 0.5
        assert found[case].measures["accuracy"].value > found[case].measures["task_vector"].value
    subject, corpus = cases["healthy"]
    alike = corpus.take(np.flatnonzero(corpus.label == 1))
    alike = replace(alike, split=np.where(np.arange(len(alike)) % 2, "train", "test"))
    got = A.task_vectors(with_pool(subject, alike.part("train")), alike.part("test"), 0)
    assert got.columns["vector"].sum() == got.columns["vector_asked"].sum(), "the control: all queries have one answer"
