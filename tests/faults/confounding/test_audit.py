"""The audit: what it calls confounded, what its numbers mean, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trueup.corpus import mix
from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput
from trueup.faults.confounding import Confounding
from trueup.faults.confounding.audit import COLUMNS, TITLES, coupled_otherwise, coupling, mixes, statistics, use
from trueup.faults.confounding.planted import corpus_of as planted_corpus
from trueup.faults.confounding.planted import planted
from trueup.faults.confounding.repair import evidence
from trueup.measure import shift
from trueup.run.predict import Session, predict, within
from trueup.subject.recipe import Lora, fresh
from trueup.subject.tiny import make_base

from .cases import corpus_of, fitted

FAULT = Confounding(resamples=60)


@pytest.fixture(scope="module")
def cases():
    return {case: planted(case) for case in ("planted", "healthy", "sham")}


@pytest.fixture(scope="module")
def found(cases):
    return {case: FAULT.audit(s, c.part("test"), seed=0) for case, (s, c) in cases.items()}


def without(corpus: Corpus, label: int, site: str, keep: int) -> Corpus:
    """The corpus with only the first `keep` examples of one cell."""
    cell = np.flatnonzero((corpus.label == label) & (corpus.attributes["site"] == site))
    return corpus.take(np.setdiff1d(np.arange(len(corpus)), cell[keep:]))


def renamed(corpus: Corpus, site: list[str]) -> Corpus:
    return replace(corpus, attributes={"site": np.array(site)})


# -------------------------------------------------------------------------------------------------------- the verdict


def test_only_the_planted_classifier_is_called_confounded(found):
    assert found["planted"].severity > 0.15
    assert abs(found["healthy"].severity) < 0.02
    assert abs(found["sham"].severity) < 0.07
    assert found["sham"].low < 0 < found["sham"].high
    assert [found[c].found for c in ("planted", "healthy", "sham")] == [True, False, False]
    assert found["planted"].measures["use"].value > 4 * found["sham"].measures["use"].value
    assert found["planted"].measures["slope"].low > 0.05
    assert abs(found["sham"].measures["slope"].value) < 0.05


def test_the_group_is_present_in_all_and_used_in_one(found):
    """Presence is not use: the word stands in every text, so a probe finds it in the healthy classifier as well."""
    for f in found.values():
        assert f.measures["present"].value > 0.95
        assert f.details["chance of the probe"] == pytest.approx(0.5, abs=0.15)


def test_a_finding_says_what_it_counted(found, cases):
    f, test = found["planted"], cases["planted"][1].part("test")
    assert f.details["groups"] == ["calm", "loud"]
    assert np.sum(f.details["cells"]) == len(test)
    p = [[((test.label == y) & (test.attributes["site"] == z)).sum() for z in ("calm", "loud")] for y in (0, 1)]
    assert f.details["cells"] == p
    assert f.details["alpha"] == pytest.approx(p[1][1] / (p[0][1] + p[1][1]) / (p[1][0] / (p[0][0] + p[1][0])))
    assert f"{f.details['alpha']:.3g} times as frequent among site=loud as among site=calm" in f.sentence
    assert f.severity == pytest.approx(f.measures["auprc"].value - f.measures["auprc_mirrored"].value)
    assert all(m.low <= m.value <= m.high for k, m in f.measures.items())


def test_examples_are_the_surest_errors_that_follow_the_shortcut(found, cases):
    rows = FAULT.examples(cases["planted"][1].part("test"), found["planted"], None)
    assert 0 < len(rows) <= 100
    assert rows[0]["follows the shortcut"] is True
    assert (rows[0]["site"], rows[0]["predicted"]) in (("loud", "positive"), ("calm", "negative"))
    follows = [r["follows the shortcut"] for r in rows]
    assert follows == sorted(follows, reverse=True)
    assert all(r["label"] != r["predicted"] for r in rows if r["follows the shortcut"])


# ------------------------------------------------------------------------------------------------ weights and samples


def test_draws_of_the_sampler_average_to_the_audit_s_curve(cases, found):
    subject, corpus = cases["planted"]
    test = corpus.part("test")
    p = predict(subject, test).probability
    said = dict(zip(test.text, p, strict=True))
    own = shift.joint(test.label, mix.group_index(test, "site"), 2, 2)
    chart = next(c for c in found["planted"].charts if c.key == "shift")
    curve = dict(zip(chart.series[0].x, chart.series[0].y, strict=True))
    means = {}
    for log_alpha in (min(curve), 0.0, max(curve)):
        table = shift.table_at(own, 10**log_alpha)
        drawn = [mix.draw(test, "site", table, 140, seed=i, fewest=5) for i in range(150)]
        values = [shift.auprc(np.array([said[t] for t in d.text]), d.label) for d in drawn]
        nearest = min(curve, key=lambda x, a=log_alpha: abs(x - a))
        means[nearest] = (np.mean(values), 4 * np.std(values) / np.sqrt(len(values)))
    for at, (mean, error) in means.items():
        # A draw of 140 flatters average precision by about its prevalence / size, so by less than 0.015.
        assert curve[at] == pytest.approx(mean, abs=error + 0.015)
    ends = sorted(means)
    assert abs(curve[ends[0]] - means[ends[-1]][0]) > 0.1, "the control: another coupling's draws do not"


def test_compare_is_paired_and_exact(found):
    got = FAULT.compare(found["sham"], found["planted"], seed=0)
    for key, d in got.items():
        before, after = (
            found[c].severity if key == "severity" else found[c].measures[key].value for c in ("sham", "planted")
        )
        assert d.value == pytest.approx(after - before, abs=1e-12), key
    assert set(got) == {"severity", *TITLES}
    assert got["severity"].low > 0.05
    same = FAULT.compare(found["planted"], found["planted"], seed=0)
    assert all((d.value, d.low, d.high) == (0, 0, 0) for d in same.values())
    # Paired: the interval of a difference of two classifiers that agree is narrower than either's own.
    near = replace(found["planted"], samples={**found["planted"].samples})
    p = 0.99 * near.samples["probability"] + np.array([[0.01, 0.0]])
    near.samples["probability"] = p  # type: ignore[index]
    d = FAULT.compare(found["planted"], near, seed=0)["severity"]
    assert d.high - d.low < 0.1 * (found["planted"].high - found["planted"].low)


# ------------------------------------------------------------------------------------------------------------- knobs


def test_the_alpha_knob_sets_the_coupling_of_the_training(cases, found):
    subject, corpus = cases["planted"]
    test = corpus.part("test")
    severity = {}
    for alpha in (1.0, 2.0, 5.0, 10.0):
        f = replace(FAULT, alpha=alpha, resamples=10).audit(subject, test, seed=0)
        assert f.details["alpha"] == pytest.approx(alpha)
        severity[alpha] = f.severity
    assert severity[1.0] == pytest.approx(0, abs=1e-9)
    assert list(severity.values()) == sorted(severity.values())
    assert severity[5.0] == pytest.approx(found["planted"].severity, abs=0.01)
    f = replace(FAULT, alpha=0.2, resamples=10).audit(subject, test, seed=0)
    assert f.severity == pytest.approx(-severity[5.0]), "the other polarity"


def test_compare_minds_the_alpha_knob(cases):
    fault = replace(FAULT, alpha=2.0, resamples=10)
    a, b = (fault.audit(cases[c][0], cases["planted"][1].part("test"), seed=0) for c in ("planted", "sham"))
    assert fault.compare(a, b, seed=0)["severity"].value == pytest.approx(b.severity - a.severity)


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"resamples": 9}, "resamples is 9; give 10 or more"),
        ({"threshold": 0.0}, "threshold is 0.0; give a number between 0 and 1"),
        ({"threshold": 1.0}, "threshold is 1.0; give a number between 0 and 1"),
        ({"alpha": -1.0}, "alpha is -1.0; give a ratio above 0"),
    ],
)
def test_knobs_out_of_range(knobs, says):
    with pytest.raises(BadInput, match=says):
        Confounding(**knobs)


# ---------------------------------------------------------------------------------------- the coupling of the training


def odds(table: np.ndarray) -> float:
    return float(table[1, 1] * table[0, 0] / (table[0, 1] * table[1, 0]))


def with_test(corpus: Corpus, rates: tuple[float, float]) -> Corpus:
    """The corpus with test examples of which the sites have these shares of the positive class."""
    other = planted_corpus(rates, seed=5)
    a, b = corpus.split != "test", other.split == "test"
    return Corpus(
        [*np.array(corpus.text, dtype=object)[a], *np.array(other.text, dtype=object)[b]],
        np.concatenate([corpus.label[a], other.label[b]]), corpus.classes, np.concatenate([corpus.split[a], other.split[b]]),
        attributes={"site": np.concatenate([corpus.attributes["site"][a], other.attributes["site"][b]])}, name=corpus.name,
    )  # fmt: skip


@pytest.mark.parametrize("rates", [(0.3, 0.3), (0.5, 0.1)], ids=["balanced", "reversed"])
def test_a_shortcut_is_found_on_examples_that_do_not_have_it(cases, found, rates):
    """What training did counts: the examined examples are weighted to its coupling."""
    subject, corpus = cases["planted"]
    moved = with_test(corpus, rates)
    with within(Session()) as here:
        blind = FAULT.audit(subject, moved.part("test"), seed=0)
        seeing = FAULT.prepared(subject, moved, seed=0).audit(subject, moved.part("test"), seed=0)
    assert not blind.found
    assert seeing.found
    assert seeing.severity == pytest.approx(found["planted"].severity, abs=0.08)
    assert seeing.sentence.startswith("As in the training examples, 'positive' is")
    assert any("couple the label and 'site' otherwise than the training examples" in n for n in here.notes)
    weak = rates == (0.3, 0.3)
    assert any("hardly go together in these data" in n for n in here.notes) == weak, "said of the blind audit"
    # The differences are of the same tables.
    after = FAULT.prepared(cases["sham"][0], moved, seed=0).audit(cases["sham"][0], moved.part("test"), seed=0)
    assert FAULT.compare(seeing, after, seed=0)["severity"].value == pytest.approx(after.severity - seeing.severity)


def test_where_training_and_test_go_together_alike_the_examples_are_taken_as_they_are(cases, found):
    for case in ("planted", "healthy", "sham"):
        subject, corpus = cases[case]
        ready = FAULT.prepared(subject, corpus, seed=0)
        f = ready.audit(subject, corpus.part("test"), seed=0)
        assert (f.severity, f.low, f.high, f.sentence) == (
            found[case].severity, found[case].low, found[case].high, found[case].sentence,
        )  # fmt: skip
        assert "trained" not in ready.knobs()


def test_a_training_split_that_is_coupled_less_hides_nothing(cases, found):
    """An adapter from elsewhere need not have learnt from what is called ``train``: the stronger coupling is reversed."""
    subject, corpus = cases["planted"]
    cell = 2 * corpus.label + (corpus.attributes["site"] == "loud")
    few = min(((corpus.split == "train") & (cell == c)).sum() for c in range(4))
    dropped = np.concatenate([np.flatnonzero((corpus.split == "train") & (cell == c))[few:] for c in range(4)])
    even = corpus.take(np.setdiff1d(np.arange(len(corpus)), dropped))
    f = FAULT.prepared(subject, even, seed=0).audit(subject, even.part("test"), seed=0)
    assert f.sentence == found["planted"].sentence


def test_a_group_that_training_did_not_have_is_neutral(cases):
    examined = np.array([[900.0, 900, 900], [100, 100, 100]])
    trained = np.array([[9800.0, 8200, 0], [200, 1800, 0]])
    assert coupled_otherwise(examined, trained)
    label = np.repeat([0, 0, 0, 1, 1, 1], examined.ravel().astype(int))
    group = np.repeat([0, 1, 2, 0, 1, 2], examined.ravel().astype(int))
    here = coupling(label, group, 2, 3, trained=trained)
    rate = here[1] / here.sum(axis=0)
    assert rate[0] < 0.5 * rate[2]
    assert rate[1] > 1.5 * rate[2]
    assert rate[2] == pytest.approx(0.1, abs=0.01), "as often as anywhere"
    assert not coupled_otherwise(examined, np.array([[9800.0, 0, 0], [200, 0, 0]])), "one group is no coupling"
    assert not coupled_otherwise(examined, np.zeros((2, 3))), "nor is none"


def test_training_at_other_sites_than_the_examined_says_nothing_of_them(cases, found):
    subject, corpus = cases["planted"]
    site = [
        s if part == "test" else f"{s} clinic" for s, part in zip(corpus.attributes["site"], corpus.split, strict=True)
    ]
    alone = renamed(corpus, ["clinic" if part == "train" else s for s, part in zip(site, corpus.split, strict=True)])
    f = FAULT.prepared(subject, alone, seed=0).audit(subject, alone.part("test"), seed=0)
    assert f.severity == found["planted"].severity
    with pytest.raises(BadInput, match="not seen before: 'calm', 'loud'"):
        FAULT.prepared(subject, renamed(corpus, site), seed=0)


def test_the_repair_moves_its_examples_where_the_audit_moved_its_own(cases):
    """Calibration examples too few to show that they are coupled otherwise are weighted all the same."""
    subject, corpus = cases["planted"]
    moved = with_test(corpus, (0.3, 0.3))
    held = np.flatnonzero(moved.split == "calibration")
    cell = 2 * moved.label[held] + (moved.attributes["site"][held] == "loud")
    few = np.concatenate([held[cell == c][:12] for c in range(4)])
    small = moved.take(np.sort(np.concatenate([np.flatnonzero(moved.split != "calibration"), few])))
    ready = FAULT.prepared(subject, small, seed=0)
    finding = ready.audit(subject, small.part("test"), seed=0)
    assert finding.details["of training"]
    e = evidence(subject, small, "site", 0.0, 0, of_training=True)
    there, here = np.array(finding.details["here"]), e.mixes.here  # of other margins, so alpha differs
    assert odds(here) == pytest.approx(odds(there))
    assert odds(here) > 5
    assert shift.alpha_of(evidence(subject, small, "site", 0.0, 0).mixes.here) == pytest.approx(1), "the control"


def test_training_without_one_cell_still_has_a_coupling(cases):
    """The strongest shortcut of all: no positive example at one site in training."""
    subject, corpus = cases["planted"]
    gone = (corpus.split == "train") & (corpus.label == 1) & (corpus.attributes["site"] == "calm")
    whole = corpus.take(~gone)
    f = FAULT.prepared(subject, whole, seed=0).audit(subject, whole.part("test"), seed=0)
    assert 20 < f.details["alpha"] < 200
    many = coupling(np.tile([0, 1], 200), np.repeat([0, 1], 200), 2, 2, trained=np.array([[1e5, 1e5], [0, 1e5]]))
    assert shift.alpha_of(many) < 200, "however many the others are"
    assert f.found


def test_a_mirror_that_these_margins_do_not_allow_is_named(cases):
    subject, corpus = cases["planted"]
    test = corpus.part("test")
    cell = 2 * test.label + (test.attributes["site"] == "loud")
    rng = np.random.default_rng(0)
    # P(y=1) = P(z=1) = 0.6 at alpha 4: a quarter is not feasible.
    sizes = shift.table_at(np.outer([0.4, 0.6], [0.4, 0.6]), 4.0).ravel() * 300
    rows = np.concatenate([rng.choice(np.flatnonzero(cell == c), round(n), replace=True) for c, n in enumerate(sizes)])
    f = FAULT.audit(subject, test.take(np.sort(rows)), seed=0)
    assert "(the odds ratio turned round: alpha 0.4" in f.sentence
    assert "odds ratio" not in FAULT.audit(subject, test, seed=0).sentence


def test_values_that_only_the_examined_examples_have(cases):
    subject, corpus = cases["planted"]
    site = corpus.attributes["site"].copy()
    site[np.flatnonzero(corpus.split == "test")[:200]] = "new"
    with pytest.raises(BadInput, match=r"has values that were not seen before: 'new'\. Known are 'calm', 'loud'"):
        FAULT.prepared(subject, renamed(corpus, list(site)), seed=0)
    everywhere = corpus.attributes["site"].copy()
    everywhere[::4] = "new"
    assert FAULT.prepared(subject, renamed(corpus, list(everywhere)), seed=0).trained is not None
    elsewhere = corpus.attributes["site"].copy()
    elsewhere[np.flatnonzero(corpus.split != "test")[:200]] = "old"
    with within(Session()) as here:
        FAULT.prepared(subject, renamed(corpus, list(elsewhere)), seed=0)
    assert here.notes == ["No examined example has site 'old', so nothing is said about it."]


def test_groups_lie_apart_where_the_features_tell_them(found, cases):
    measure = found["planted"].measures["distance"]
    chance = float(measure.unit.rpartition(" ")[2])
    assert measure.low > 2 * chance
    assert measure.low < measure.value < measure.high
    _, corpus = cases["planted"]
    rng = np.random.default_rng(0)
    dealt = renamed(corpus, [("calm", "loud")[i] for i in rng.integers(0, 2, len(corpus))])
    none = FAULT.audit(cases["planted"][0], dealt.part("test"), seed=0).measures["distance"]
    assert none.low < float(none.unit.rpartition(" ")[2]) < none.high


# ------------------------------------------------------------------------------------------- more classes and groups


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(make_base("bert", tmp_path_factory.mktemp("bases") / "bert"))


@pytest.mark.parametrize(("classes", "groups"), [(3, 3), (2, 3), (3, 2)])
def test_more_than_two_classes_or_groups(base, classes, groups):
    coupled = corpus_of(classes, groups, 0.6)
    sick = fitted(fresh(base, Lora(2), coupled.classes, max_length=16, device="cpu"), coupled)
    well = fitted(
        fresh(base, Lora(2), coupled.classes, max_length=16, device="cpu"), corpus_of(classes, groups, 0.0, 1)
    )
    a, b = (FAULT.audit(s, coupled.part("test"), seed=0) for s in (sick, well))
    assert a.details["alpha"] is None
    assert a.found
    assert not b.found
    assert a.severity > 0.15 > 0.08 > abs(b.severity)
    assert len(a.details["groups"]) == groups
    chart = next(c for c in a.charts if c.key == "shift")
    assert (chart.series[0].x[0], chart.series[0].x[-1]) == (-1, 1)
    assert chart.series[0].y[-1] == pytest.approx(a.measures["auprc"].value)
    assert chart.series[0].y[0] == pytest.approx(a.measures["auprc_mirrored"].value, abs=1e-6)
    assert f"({groups} values)" in a.sentence
    with pytest.raises(BadInput, match="alpha goes with two classes and two groups"):
        replace(FAULT, alpha=2.0).audit(sick, coupled.part("test"), seed=0)


def test_a_class_of_the_head_without_examples_takes_no_part(cases, base):
    corpus = corpus_of(2, 2, 0.6)
    three = replace(corpus, classes=(*corpus.classes, "class 2"))
    two_head = fitted(fresh(base, Lora(2), corpus.classes, max_length=16, device="cpu"), corpus)
    three_head = fitted(fresh(base, Lora(2), three.classes, max_length=16, device="cpu"), three)
    a, b = (FAULT.audit(s, corpus.part("test"), seed=0) for s in (two_head, three_head))
    assert b.details["classes"] == list(corpus.classes)
    assert b.details["alpha"] == pytest.approx(a.details["alpha"])
    assert b.severity == pytest.approx(a.severity, abs=0.02)


def test_many_classes_of_the_head_without_examples_are_no_empty_cells(base):
    corpus = corpus_of(2, 2, 0.6)
    six = replace(corpus, classes=(*corpus.classes, *(f"class {i}" for i in range(2, 6))))
    subject = fitted(fresh(base, Lora(2), six.classes, max_length=16, device="cpu"), six)
    assert FAULT.audit(subject, corpus.part("test"), seed=0).details["classes"] == list(corpus.classes)


# ---------------------------------------------------------------------------------------------------------- measures


def synthetic(n: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    z = rng.integers(0, 2, n)
    return (rng.random(n) < np.array([0.1, 0.5])[z]).astype(np.int64), z


def sure(of: np.ndarray, classes: int = 2) -> np.ndarray:
    return np.eye(classes)[of]


@pytest.mark.parametrize("way", ["more", "less"])
def test_every_measure_is_better_in_its_own_direction(way):
    """A classifier that knows the label against one that knows the group: `better` must point from the second to the first."""
    label, group = synthetic()
    group = group if way == "more" else 1 - group
    stats = statistics(mixes(shift.joint(label, group, 2, 2)))
    guess = group if way == "more" else 1 - group
    right = {k: f(sure(label), label, label, group) for k, f in stats.items()}
    shortcut = {k: f(sure(guess), guess, label, group) for k, f in stats.items()}
    assert right["severity"] == pytest.approx(0)
    assert shortcut["severity"] > 0.1
    for key, (_, _, better) in TITLES.items():
        if key == "use":
            continue  # below: an honest classifier's predictions move with the label, which `use` holds
        assert (right[key] - shortcut[key]) * (1 if better == "higher" else -1) > 0, key


def test_use_is_0_for_predictions_without_the_group_and_1_for_the_group_itself():
    label, group = synthetic()
    p = np.random.default_rng(1).random(len(label))[:, None]
    assert use(np.full((len(label), 2), 0.5), label, label, group) == 0
    assert use(sure(label), label, label, group) == 0
    assert use(sure(group), group, label, group) == pytest.approx(1)
    assert use(sure(1 - group), group, label, group) == pytest.approx(1)
    assert use(np.concatenate([p, 1 - p], axis=1), label, label, group) < 0.05
    half = 0.5 * sure(group) + 0.25
    assert use(half, group, label, group) == pytest.approx(0.5)
    weight = np.random.default_rng(2).integers(0, 3, len(label))
    drawn = np.repeat(np.arange(len(label)), weight)
    q = 0.3 * sure(label) + 0.7 * np.concatenate([p, 1 - p], axis=1)
    assert use(q, label, label, group, weight=weight) == pytest.approx(
        use(q[drawn], label[drawn], label[drawn], group[drawn])
    )


def test_use_takes_the_largest_distance_of_three_groups():
    label, group = np.repeat([0, 1], 30), np.tile([0, 1, 2], 20)
    p = np.array([[1.0, 0, 0], [0.5, 0.5, 0], [0.0, 0.5, 0.5]])[group]
    assert use(p, group, label, group) == pytest.approx(1)
    assert use(p[:, [0, 1]] * (group < 2)[:, None] + (group == 2)[:, None] * 0.5, group, label, group) == pytest.approx(
        0.5
    )


def test_every_statistic_takes_weights_as_repeated_rows(found):
    s = found["planted"].samples
    weight = np.random.default_rng(0).integers(0, 3, len(s["label"]))
    drawn = np.repeat(np.arange(len(weight)), weight)
    stats = statistics(mixes(shift.joint(s["label"], s["group"], 2, 2)))
    for key, f in stats.items():
        a, b = f(*(s[k] for k in COLUMNS), weight=weight), f(*(s[k][drawn] for k in COLUMNS))
        assert a == pytest.approx(b, abs=1e-9), key


# --------------------------------------------------------------------------------------------------------- bad input


def _twin(c: Corpus) -> Corpus:
    return renamed(c, [f"site of {c.classes[y]}" for y in c.label])


def _ids(c: Corpus) -> Corpus:
    return renamed(c, [f"row {i // 30}" for i in range(len(c))])


BAD = {
    "constant": (lambda c: renamed(c, ["calm"] * len(c)), ("is 'calm' in every example", "--confounder COLUMN")),
    "identical": (_twin, ("is the label under another name", "no measurement can tell the two apart")),
    "settles": (
        lambda c: renamed(c, [f"{c.classes[y]} {i % 2}" for i, y in enumerate(c.label)]),
        ("settles the label", "one label only"),
    ),
    "too many": (
        lambda c: renamed(c, [f"row {i}" for i in range(len(c))]),
        ("1000 different values in 1000 examples", "as an id has"),
    ),
    "rare": (_ids, ("cells have fewer than 10", "merge or drop rare values of 'site'")),
    "small cell": (lambda c: without(c, 1, "calm", 9), ("Only 9 of the", "label 'positive' and site 'calm'", "1 of 4 cells")),
    "one label": (lambda c: c.take(c.label == 0), ("the label 'negative'",)),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_data_that_cannot_carry_an_audit(cases, name):
    subject, corpus = cases["planted"]
    make, says = BAD[name]
    with pytest.raises(BadInput) as e:
        FAULT.audit(subject, make(corpus.part("test")), seed=0)
    for part in says:
        assert part in str(e.value)
    assert str(e.value).rstrip()[-1] in ".?)`", str(e.value)
    assert "'planted confounding'" in str(e.value)


def test_ten_examples_in_a_cell_are_enough(cases):
    subject, corpus = cases["planted"]
    assert FAULT.audit(subject, without(corpus.part("test"), 1, "calm", 10), seed=0).found


def test_a_column_that_is_not_there(cases):
    subject, corpus = cases["planted"]
    with pytest.raises(BadInput, match=r"no attribute 'sit'\. Did you mean 'site'\? Its attributes are 'site'"):
        replace(FAULT, attribute="sit").audit(subject, corpus.part("test"), seed=0)
    bare = replace(corpus, attributes={})
    assert "--confounder COLUMN" in str(FAULT.applies_to(subject, bare))
    assert FAULT.applies_to(subject, corpus) is None
    assert "one class" in str(FAULT.applies_to(replace(subject, classes=("a",)), corpus))


def test_a_coupling_that_the_margins_do_not_allow(cases):
    subject, corpus = cases["planted"]
    # Most examples are positive and most are loud, so a positive cannot be rare among the loud.
    test = without(without(corpus.part("test"), 0, "calm", 100), 0, "loud", 60)
    with pytest.raises(
        BadInput, match=r"alpha is 0\.2, and these margins .* allow alpha above 0\.4.*; give one of these"
    ):
        replace(FAULT, alpha=0.2).audit(subject, test, seed=0)
    assert replace(FAULT, alpha=0.9).audit(subject, test, seed=0).details["alpha"] == pytest.approx(0.9)


def test_of_two_columns_the_first_is_examined_and_a_note_names_the_other(cases, found):
    subject, corpus = cases["planted"]
    test = corpus.part("test")
    other = np.array(["odd", "even"])[np.arange(len(test)) % 2]
    two = replace(test, attributes={"site": test.attributes["site"], "parity": other})
    with within(Session()) as now:
        f = FAULT.audit(subject, two, seed=0)
    assert f.details["attribute"] == "site"
    assert f.severity == found["planted"].severity
    assert now.notes == [
        "confounding examined the column 'site'. For 'parity' run again with --set confounding.attribute=parity."
    ]
    with within(Session()) as now:
        f = replace(FAULT, attribute="parity").audit(subject, two, seed=0)
    assert f.details["attribute"] == "parity"
    assert len(now.notes) == 1
    assert "'parity' hardly go together in these data" in now.notes[0], "which it never had to do with"
    assert not f.found, "the control: a column that says nothing"
