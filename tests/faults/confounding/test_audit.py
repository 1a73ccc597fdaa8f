"""The audit: what it calls confounded, what its numbers mean, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trueup.corpus import mix
from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput
from trueup.faults.confounding import Confounding
from trueup.faults.confounding.mixes import COLUMNS, TITLES, columns, judges, mixes, nominal, rates, statistics
from trueup.faults.confounding.planted import corpus_of as planted_corpus
from trueup.faults.confounding.planted import planted
from trueup.measure import lean, shift
from trueup.run.predict import Session, predict, within
from trueup.subject.new_adapter import Lora, fresh
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
    assert found["planted"].severity > 0.1
    assert found["healthy"].severity < 0.05
    assert found["sham"].severity < 0.05
    for case in ("healthy", "sham"):
        lean_of = found[case].measures["lean"]
        assert lean_of.low < 0 < lean_of.high
        assert found[case].low == 0
    assert [found[c].found for c in ("planted", "healthy", "sham")] == [True, False, False]
    assert found["planted"].measures["use"].low > 0.1
    assert found["sham"].measures["use"].low < 0 < found["sham"].measures["use"].high


def test_the_severity_is_the_size_of_the_lean_and_the_sentence_says_which_way(found):
    for f in found.values():
        of = f.measures["lean"]
        assert f.severity == abs(of.value)
        assert f.high == max(abs(of.low), abs(of.high))
        assert of.value == pytest.approx(f.measures["drop"].value - f.measures["floor"].value)
        gap = f.measures["auprc_towards"].value - f.measures["auprc_against"].value
        assert f.measures["drop"].value == pytest.approx(gap, abs=1e-9)
    assert (
        "favours 'negative' where site is calm, 'positive' where site is loud, with the coupling"
        in found["planted"].sentence
    )
    assert "No group has a head start" in found["sham"].sentence
    bars = next(c for c in found["planted"].charts if c.key == "lean").series[0]
    assert bars.y == [found["planted"].measures[k].value for k in ("lean", "floor")]


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
    assert f.details["strength"] == pytest.approx(3), "nothing is known of training"
    assert f.details["favoured"] == ["negative", "positive"]
    assert f.provenance["clusters"] == len(np.unique(test.cluster)) < len(test), "some texts are equal"
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
    f = found["planted"]
    cells = np.array(f.details["cells"])
    free = np.outer(cells.sum(axis=1), cells.sum(axis=0))
    chart = next(c for c in found["planted"].charts if c.key == "shift")
    curve = dict(zip(chart.series[0].x, chart.series[0].y, strict=True))
    means = {}
    for log_alpha in (min(curve), 0.0, max(curve)):
        table = shift.coupled_as(free, [[10**log_alpha, 1], [1, 10**log_alpha]])
        drawn = [mix.draw(test, "site", table, 140, seed=i, fewest=1) for i in range(150)]
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
    assert set(got) == {"severity", "present", "distance", *TITLES} - {"false_positive_gap"}, (
        "of two classes it is the other gap"
    )
    assert got["severity"].low > 0.05
    same = FAULT.compare(found["planted"], found["planted"], seed=0)
    assert all((d.value, d.low, d.high) == (0, 0, 0) for d in same.values())
    # Paired: the interval of a difference of two classifiers that agree is narrower than either's own.
    near = replace(found["planted"], samples={**found["planted"].samples})
    noise = np.random.default_rng(0).normal(size=near.samples["score"].shape)
    near.samples["score"] = near.samples["score"] + 0.01 * noise  # type: ignore[index]
    d = FAULT.compare(found["planted"], near, seed=0)["severity"]
    assert d.high - d.low < 0.1 * (found["planted"].high - found["planted"].low)


# ------------------------------------------------------------------------------------------------------------- knobs


def test_the_coupling_knob_sets_how_strongly_the_lean_is_told(cases, found):
    subject, corpus = cases["planted"]
    severity = {}
    for coupling in (1.5, 3.0, 5.0):
        f = replace(FAULT, coupling=coupling, resamples=10).audit(subject, corpus.part("test"), seed=0)
        assert f.details["strength"] == coupling
        severity[coupling] = f.severity
    assert list(severity.values()) == sorted(severity.values())
    assert severity[3.0] == found["planted"].severity


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"resamples": 9}, "resamples is 9; give 10 or more"),
        ({"threshold": 0.0}, "threshold is 0.0; give a number between 0 and 1"),
        ({"threshold": 1.0}, "threshold is 1.0; give a number between 0 and 1"),
        ({"coupling": 1.0}, "coupling is 1.0; give a ratio above 1"),
        ({"coupling": -3.0}, "coupling is -3.0; give a ratio above 1"),
        ({"max_cost": 2.0}, "max_cost is 2.0; give a share of examples"),
    ],
)
def test_knobs_out_of_range(knobs, says):
    with pytest.raises(BadInput, match=says):
        Confounding(**knobs)


# ---------------------------------------------------------------------------------------- the coupling of the training


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
    """Whatever the mix of the examined examples, the lean is told at the same coupling."""
    subject, corpus = cases["planted"]
    moved = with_test(corpus, rates)
    blind = FAULT.audit(subject, moved.part("test"), seed=0)
    seeing = FAULT.prepared(subject, moved, seed=0).audit(subject, moved.part("test"), seed=0)
    assert blind.found
    assert seeing.found
    own = found["planted"].measures["lean"]
    assert seeing.measures["lean"].low < own.high
    assert own.low < seeing.measures["lean"].high
    assert "with the coupling of the training examples" in seeing.sentence
    assert seeing.details["coupled as"] == "training"
    well = FAULT.prepared(cases["sham"][0], moved, seed=0).audit(cases["sham"][0], moved.part("test"), seed=0)
    assert not well.found, "the control"


def test_the_training_s_coupling_is_told_where_it_is_strong_and_tamed_where_it_is_extreme():
    even = np.array([[100.0, 100], [100, 100]])
    assert nominal(even, None, 0.0)[1:] == (lean.NOMINAL, "examined")
    direction, strength, whose = nominal(even, np.array([[400.0, 100], [100, 400]]), 0.0)
    assert (strength, whose) == (pytest.approx(4), "training")
    assert direction[0, 0] > 0 > direction[0, 1]
    assert nominal(even, np.array([[300.0, 200], [200, 300]]), 0.0)[1] == lean.NOMINAL, "a weak one"
    assert nominal(even, np.array([[9e5, 10], [10, 9e5]]), 0.0)[1] == 5
    assert nominal(even, np.array([[400.0, 100], [100, 400]]), 2.5)[1] == 2.5
    assert nominal(np.array([[10.0, 90], [90, 10]]), None, 0.0)[0][0, 0] < 0
    elsewhere = nominal(np.array([[10.0, 90], [90, 10]]), np.zeros((2, 2)), 0.0)
    assert elsewhere[2] == "examined", "training at other sites says nothing of these"
    assert elsewhere[0][0, 0] < 0


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


def test_training_without_one_cell_still_has_a_coupling(cases):
    """The strongest shortcut of all: no positive example at one site in training."""
    subject, corpus = cases["planted"]
    gone = (corpus.split == "train") & (corpus.label == 1) & (corpus.attributes["site"] == "calm")
    whole = corpus.take(~gone)
    f = FAULT.prepared(subject, whole, seed=0).audit(subject, whole.part("test"), seed=0)
    assert f.details["strength"] == 5
    assert f.found


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
    assert measure.low > 0.2
    _, corpus = cases["planted"]
    rng = np.random.default_rng(0)
    dealt = renamed(corpus, [("calm", "loud")[i] for i in rng.integers(0, 2, len(corpus))])
    none = FAULT.audit(cases["planted"][0], dealt.part("test"), seed=0)
    assert none.measures["distance"].low < 0 < none.measures["distance"].high
    for key in ("use", "true_positive_gap", "lean", "floor"):
        assert none.measures[key].low <= 0 <= none.measures[key].high, f"{key} of a column drawn by dice"


# ------------------------------------------------------------------------------------------------------ no spelling counts


def test_no_name_no_order_and_no_common_constant_changes_the_verdict():
    """Swapping classes or groups, shuffling rows and adding a constant to all logits of a row, on the numbers themselves."""
    label, group = synthetic(600)
    rng = np.random.default_rng(3)
    for classes, groups in ((2, 2), (3, 3)):
        y, z = (label + rng.integers(0, 2, 600) * (classes > 2)), (group + rng.integers(0, 2, 600) * (groups > 2))
        logits = (
            rng.normal(size=(600, classes))
            + 1.2 * np.eye(classes)[y]
            + 0.8 * np.eye(max(classes, groups))[z][:, :classes]
        )

        def told(logits, y, z, order=slice(None), shape=(classes, groups)):
            cluster = np.arange(600)[order]
            samples = columns(logits[order], y[order], z[order]) | {"cluster": cluster, "judges": judges(cluster, 0)}
            cells = np.zeros(shape)
            np.add.at(cells, (y, z), 1)
            direction, strength, _ = nominal(cells, None, 0.0)
            f = statistics(samples, mixes(cells, direction, strength))
            shares = {
                f"{k}, {end}": getattr(e, end)
                for k, e in rates(samples, shape).items()
                for end in ("low", "value", "high")
            }
            return shares | {k: f[k](*(samples[c] for c in COLUMNS)) for k in ("severity", "floor", "use", "auprc")}

        as_is = told(logits, y, z)
        assert as_is["severity"] > 0.02
        turned = rng.permutation(classes)
        others = {
            "classes": told(logits[:, np.argsort(turned)], turned[y], z), "groups": told(logits, y, rng.permutation(groups)[z]),
            "rows": told(logits, y, z, rng.permutation(600)), "constant": told(logits + 50 * rng.normal(size=(600, 1)), y, z),
        }  # fmt: skip
        for what, other in others.items():
            assert other == pytest.approx(as_is, abs=1e-9), what


def test_swapped_classes_and_groups_give_the_same_finding(cases, found):
    subject, corpus = cases["planted"]
    test = corpus.part("test")
    other = renamed(test, [{"calm": "z", "loud": "a"}[s] for s in test.attributes["site"]])
    f = FAULT.audit(subject, other, seed=0)
    assert (f.severity, f.low, f.high) == pytest.approx(
        (found["planted"].severity, found["planted"].low, found["planted"].high)
    )
    order = np.random.default_rng(0).permutation(len(test))
    shuffled = FAULT.audit(subject, test.take(order), seed=0)
    assert (shuffled.severity, shuffled.low, shuffled.high) == pytest.approx((f.severity, f.low, f.high))


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
    assert a.found
    assert not b.found
    assert a.severity > 0.08 > 0.05 > b.severity
    assert len(a.details["groups"]) == groups
    chart = next(c for c in a.charts if c.key == "shift")
    ends = (chart.series[0].x[0], chart.series[0].x[-1])
    assert ends == pytest.approx((-np.log10(5), np.log10(5)))


def test_a_class_of_the_head_without_examples_takes_no_part(cases, base):
    corpus = corpus_of(2, 2, 0.6)
    three = replace(corpus, classes=(*corpus.classes, "class 2"))
    two_head = fitted(fresh(base, Lora(2), corpus.classes, max_length=16, device="cpu"), corpus)
    three_head = fitted(fresh(base, Lora(2), three.classes, max_length=16, device="cpu"), three)
    a, b = (FAULT.audit(s, corpus.part("test"), seed=0) for s in (two_head, three_head))
    assert b.details["classes"] == list(corpus.classes)
    assert b.details["strength"] == pytest.approx(a.details["strength"])
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


def of(logits: np.ndarray, label: np.ndarray, group: np.ndarray):
    """The statistics of a two-class classifier, and its columns."""
    cluster = np.arange(len(label))
    samples = columns(logits, label, group) | {"cluster": cluster, "judges": judges(cluster, 0)}
    cells = np.zeros((2, 2))
    np.add.at(cells, (label, group), 1)
    direction, strength, _ = nominal(cells, None, 0.0)
    return statistics(samples, mixes(cells, direction, strength)), [samples[k] for k in COLUMNS]


@pytest.mark.parametrize("way", ["more", "less"])
def test_every_measure_is_better_in_its_own_direction(way):
    """A classifier that knows the label against one that knows the group: `better` must point from the second to the first."""
    label, group = synthetic()
    group = group if way == "more" else 1 - group
    guess = group if way == "more" else 1 - group
    noise = np.random.default_rng(0).normal(size=(len(label), 2))
    right, shortcut = (
        {k: f(*c) for k, f in stats.items()}
        for stats, c in (of(6 * sure(what) + 0.1 * noise, label, group) for what in (label, guess))
    )
    assert right["severity"] == pytest.approx(0, abs=1e-6)
    assert shortcut["severity"] > 0.1
    for key, (_, _, better) in TITLES.items():
        if key != "floor" and key in right:
            assert (right[key] - shortcut[key]) * (1 if better == "higher" else -1) > 0, key


def test_every_statistic_takes_weights_as_repeated_rows(found):
    s = found["planted"].samples
    weight = np.random.default_rng(0).integers(0, 3, len(s["label"]))
    drawn = np.repeat(np.arange(len(weight)), weight)
    m = mixes(np.array(found["planted"].details["cells"]), np.array(found["planted"].details["coupling"]), 3.0)
    stats = statistics(s, m)
    for key in set(stats) - {"use", "worst_group_accuracy", "true_positive_gap", "false_positive_gap"}:  # in test_gaps
        a, b = stats[key](*(s[k] for k in COLUMNS), weight=weight), statistics(
            {k: v[drawn] for k, v in s.items()}, m
        )[key](*(s[k][drawn] for k in COLUMNS))  # fmt: skip
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
