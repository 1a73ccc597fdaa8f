"""The repairs: what they reach, what they may look at, and that each is an adapter that plain PEFT loads."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import asdict, replace

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import save_file
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from trueup.errors import BadInput, Unsupported
from trueup.faults.adapter_remedy import Adapted
from trueup.faults.confounding import Confounding, arithmetic
from trueup.faults.confounding import repair as R
from trueup.faults.confounding.arithmetic import (
    Flipped,
    FunctionForm,
    Hybrid,
    LoraArithmetic,
    Relinearised,
    TangentBoth,
    TangentInside,
    TaskPrompt,
    Under,
    as_published,
    by_balanced_slice,
)
from trueup.faults.confounding.candidates import FAMILIES
from trueup.faults.confounding.claim import _layers, claimed
from trueup.faults.confounding.evidence import Change, Evidence, Knobs, Variant, start_of
from trueup.faults.confounding.last_layer import (
    STRENGTHS,
    BackDoor,
    Points,
    PublishedReweighted,
    _features,
)
from trueup.faults.confounding.maths import PromptVector, shortcut
from trueup.faults.confounding.planted import planted
from trueup.faults.confounding.retrained import BalancedSampling, GroupRobust, ImportanceWeighted
from trueup.faults.fault import Difference, NoRemedy, dearer
from trueup.measure.shift import joint
from trueup.run import forward
from trueup.run.heads import fit_head
from trueup.run.predict import Session, predict, within
from trueup.run.train import Training, train
from trueup.subject import adapter as files
from trueup.subject.beside import CARD
from trueup.subject.load import load
from trueup.subject.new_adapter import Lora, Prompt, fresh, prompt_embeddings
from trueup.subject.subject import Head, Source
from trueup.subject.swap_adapter import wear, with_prompt
from trueup.subject.template import Template
from trueup.subject.tiny import make_base

from .cases import corpus_of, fitted

FAULT = Confounding(resamples=60)
DEAR = replace(FAULT, max_cost=0.5)
"""Of these small cases a shortcut less costs more than two points of accuracy as the data are."""
COSTLY = {f.key for f in FAMILIES if f.costly}


@pytest.fixture(scope="module")
def case():
    return planted("planted")


@pytest.fixture(scope="module")
def finding(case):
    return FAULT.audit(case[0], case[1].part("test"), seed=0)


@pytest.fixture(scope="module")
def remedy(case, finding):
    got = FAULT.repair(*case, finding, seed=0)
    assert isinstance(got, Adapted)
    return got


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {f: str(make_base(f, folder / f)) for f in ("bert", "gpt2")}


@pytest.fixture(scope="module")
def tuned(case, tmp_path_factory):
    """The planted prompt as a tuned one: moved from its P0, saved with it, and loaded again."""
    subject, _ = case
    folder = tmp_path_factory.mktemp("tuned")
    start = prompt_embeddings(subject)
    assert start is not None
    noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
    settings, tensors = with_prompt(subject, start + 0.1 * noise)
    moved = wear(subject, settings, tensors)
    files.save_tuned(moved, folder, start=start)
    card = {"classes": list(subject.classes), "max_length": 32, "tuned": {"training": {"epochs": 1, "lr": 0.01}}}
    (folder / CARD).write_text(json.dumps(card))
    return load(subject.source.base, str(folder), device="cpu"), start.numpy()


def same(a: Adapted, b: Adapted) -> bool:
    return a.tensors.keys() == b.tensors.keys() and all(torch.equal(a.tensors[k], b.tensors[k]) for k in a.tensors)


def offer_of(row) -> R.Offer:
    """The offer of which a card keeps this row."""
    family = next(f for f in FAMILIES if f.key == row["key"])
    change = Change() if row["saveable"] or "no better than its flip" in row else None
    variant = Variant(row["variant"], np.empty(0), lambda corpus: np.empty(0), change)
    kept = [row[k] for k in ("chose lean before", "chose lean", "level before", "level", "chose cost", "flip")]
    return R.Offer(family, variant, *kept, refused=row.get("refused", ""))


def moved_of(row) -> R.Moved:
    """What a card says of the examples that chose nothing; its p-values are not kept."""
    lean, level = (
        Difference(*(row[k] for k in keys), 1.0)
        for keys in (("severity", "low", "high"), ("gain", "gain low", "gain high"))
    )
    return R.Moved(lean, level, Difference(-row["cost"], -row["cost high"], -row["cost low"], 1.0))


def level(remedy: Adapted, key: str) -> float:
    return next(r["level"] for r in remedy.card["candidates"] if r["key"] == key)


# ----------------------------------------------------------------------------------------------------- what it reaches


def test_the_lean_is_more_than_halved_and_accuracy_nearly_kept(case, finding, remedy):
    subject, corpus = case
    with remedy.on(subject) as repaired:
        after = FAULT.audit(repaired, corpus.part("test"), seed=0)
    change = FAULT.compare(finding, after, seed=0)
    assert abs(after.severity) < 0.5 * finding.severity
    assert change["severity"].high < 0
    assert change["level"].low > 0
    assert change["use"].high < 0
    assert after.measures["use"].value < 0.5 * finding.measures["use"].value
    assert after.measures["accuracy"].value > finding.measures["accuracy"].value - 0.05


def test_the_flipped_polarity_does_not_help(remedy):
    keys = {r["key"] for r in remedy.card["candidates"]}
    assert {"flipped", "hybrid-one", "relinearised", "function", "dfr", "leace", "backdoor"} <= keys
    assert not keys & COSTLY
    assert level(remedy, "flipped") <= level(remedy, "hybrid-one")
    row = next(r for r in remedy.card["candidates"] if r["key"] == "flipped")
    assert row["saveable"] is False
    assert remedy.card["chosen"] != "flipped"


def test_the_winner_is_chosen_on_one_half_within_its_price_and_confirmed_on_the_other(case, remedy):
    rows = remedy.card["candidates"]
    won = next(r for r in rows if r["key"] == remedy.card["chosen"])
    offers = [offer_of(r) for r in rows]
    best = R.best_of(offers, 0.02)
    assert best is not None
    assert best.key == won["key"]
    assert won["chose cost"] <= 0.02
    assert won["high"] < 0 < won["gain"]
    able = [o for o in offers if o.helps and o.saveable and o.cost <= 0.02]
    near = [o for o in able if o.level >= max(o.level for o in able) - R.NEAR]
    assert won["chose lean"] == min(o.lean for o in near)
    assert len(near) < len(rows), "the control: not every family is near"
    e = R.evidence(*case, "site", 0.0, 0)
    chose, judged = (set(e.held.cluster[m]) for m in (e.choosing, ~e.choosing))
    assert not chose & judged
    assert f"{won['severity']:+.3f} [{won['low']:+.3f}, {won['high']:+.3f}]" in remedy.describe()
    assert f"On {int((~e.choosing).sum())} calibration examples that were not used for choosing" in remedy.describe()


def test_a_cost_of_just_the_budget_is_within_it(remedy):
    """Seen: 2.0% of accuracy was refused as "above the budget of 2.0%", by the rounding of a difference."""
    assert 0.77 - 0.75 > 0.02, "as floats"
    offers = [replace(offer_of(r), cost=0.77 - 0.75) for r in remedy.card["candidates"]]
    assert R.best_of(offers, 0.02) is not None
    assert not dearer(0.77 - 0.75, 0.02)
    assert dearer(0.0201, 0.02), "the control"
    assert R.best_of([replace(o, cost=0.0201) for o in offers], 0.02) is None


def test_a_winner_that_is_not_confirmed_is_told_why(remedy):
    """Seen: "do not confirm it: the lean moved by -0.108 [-0.156, -0.050]", which is a clear fall; AUPRC had not risen."""
    rows = remedy.card["candidates"]
    won = next(r for r in rows if r["key"] == remedy.card["chosen"])
    winner = offer_of(won)
    offers, moved = [winner], {winner.key: replace(moved_of(won), level=Difference(-0.008, -0.052, 0.032, 1.0))}
    lean = f"{won['severity']:+.3f} [{won['low']:+.3f}, {won['high']:+.3f}]"
    said, dear = R.why_none(offers, moved, winner, 0.02)
    assert said.endswith(
        f"the lean moved by {lean}, but AUPRC over all couplings, which has to rise, by -0.008 [-0.052, +0.032]."
    )
    assert not dear
    lean_open = replace(moved[winner.key], lean=replace(moved[winner.key].lean, high=0.01))
    said, _ = R.why_none(offers, {winner.key: lean_open}, winner, 0.02)
    assert said.endswith(f"{lean.rsplit(',', 1)[0]}, +0.010], which is no clear fall.")


def test_a_dear_repair_that_works_is_told_where_the_best_within_the_budget_fails(remedy):
    """Seen on tweets: "Of 4 repairs back-door adjustment was the best ... no clear fall", while another, at 6.7 points of accuracy,
    took away .298 of .382 and was not named."""
    rows = [r for r in remedy.card["candidates"] if r["key"] in ("dfr", "leace")]
    cheap, dear = (replace(offer_of(r), lean_before=0.3, lean=0.1, level_before=0.5, level=0.9) for r in rows)
    dear, falls = replace(dear, cost=0.067), moved_of(rows[1])
    assert falls.helps
    open_ = replace(falls, lean=Difference(-0.02, -0.13, 0.06, 0.6))
    said, too_dear = R.why_none([cheap, dear], {cheap.key: open_, dear.key: falls}, cheap, 0.02)
    assert too_dear
    assert said.startswith(
        "Within the budget of 2.0% of accuracy, the best repair on the calibration examples used for choosing"
    )
    assert f"choosing was {cheap.title}. The others do not confirm it" in said
    assert "-0.020 [-0.130, +0.060], which is no clear fall." in said
    assert f"{dear.title[1:]} would lower the lean ({falls.lean.value:+.3f}" in said
    assert "above the budget of 2.0% of accuracy as the data are: 6.7%. Raise" in said
    assert f"(--max-cost 0.07), or take it by name (--take {dear.key})" in said
    said, too_dear = R.why_none([cheap, dear], {cheap.key: open_, dear.key: open_}, cheap, 0.02)
    assert not too_dear, "the control: nothing works there"
    assert said.endswith("which is no clear fall.")


def test_the_frontier_says_what_each_repair_gains_and_costs(remedy):
    points = remedy.card["frontier"]
    assert [p["key"] for p in points if p["chosen"]] == [remedy.card["chosen"]]
    assert "flipped" not in {p["key"] for p in points}, "a control is no repair"
    assert [p["gain"] for p in points] == sorted((p["gain"] for p in points), reverse=True)
    assert all(p["gain_low"] <= p["gain"] <= p["gain_high"] for p in points)
    assert all(p["cost_low"] <= p["cost"] <= p["cost_high"] for p in points)
    assert [asdict(a) for a in remedy.alternatives()] == points


def test_where_nothing_lies_within_the_budget_it_is_a_trade_off_and_one_can_be_taken_by_name(case, finding, remedy):
    family = next(f for f in FAMILIES if f.key == "dfr")
    offer = R.Offer(
        family, Variant("C = 1", np.empty(0), lambda corpus: np.empty(0), Change()), 0.2, 0.1, 0.8, 0.9, 0.05
    )
    assert R.best_of([offer], 0.02) is None
    assert R.best_of([offer], 0.05) is offer
    helps = R.Moved(
        Difference(-0.1, -0.15, -0.05, 0.0), Difference(0.1, 0.05, 0.15, 0.0), Difference(-0.05, -0.08, -0.02, 0.0)
    )
    why, too_dear = R.why_none([offer], {"dfr": helps}, None, 0.02)
    assert too_dear
    assert why.startswith(
        f"{family.title[0].upper()}{family.title[1:]} would lower the lean (-0.100 [-0.150, -0.050]) at a cost"
    )
    assert "(--max-cost 0.05), or take it by name (--take dfr)" in why
    dearest = replace(offer, family=next(f for f in FAMILIES if f.key == "leace"), cost=0.09)
    why, too_dear = R.why_none([dearest, offer], {"dfr": helps, "leace": helps}, None, 0.02)
    assert too_dear
    assert f"'{family.title}' it costs least" in why
    assert not R.why_none([replace(offer, lean=0.3)], {"dfr": helps}, None, 0.02)[1], (
        "the control: one that does not help is not dear"
    )
    chance = replace(helps, lean=Difference(-0.1, -0.25, 0.05, 0.2))
    why, too_dear = R.why_none([offer], {"dfr": chance}, None, 0.02)
    assert not too_dear, "a dear repair that other examples do not bear out is no trade-off"
    assert why.startswith("No repair lies within the budget of 2.0% of accuracy.")
    assert why.endswith("-0.100 [-0.250, +0.050], which is no clear fall.")
    got = replace(FAULT, take="leace").repair(*case, finding, seed=0)
    assert isinstance(got, Adapted)
    assert got.card["chosen"] == "leace" != remedy.card["chosen"]
    with pytest.raises(BadInput, match=r"No repair 'leac' was tried.* Did you mean 'leace'"):
        replace(FAULT, take="leac").repair(*case, finding, seed=0)


# ------------------------------------------------------------------------------------------------ what it may look at


def test_a_repair_never_looks_at_test(case, finding, remedy):
    subject, corpus = case
    test = corpus.split == "test"
    spoilt = replace(
        corpus,
        text=["trap" if t else x for x, t in zip(corpus.text, test, strict=True)],
        label=np.where(test, 1 - corpus.label, corpus.label),
        attributes={"site": np.where(test, "nowhere", corpus.attributes["site"])},
    )
    again = FAULT.repair(subject, spoilt, finding, seed=0)
    assert isinstance(again, Adapted)
    assert same(again, remedy), "also: the same seed gives the same remedy"
    assert again.card == remedy.card


def test_what_it_may_look_at_does_count(case, finding, remedy):
    subject, corpus = case
    rng = np.random.default_rng(0)
    some = (corpus.split == "calibration") & (rng.random(len(corpus)) < 0.15)
    got = FAULT.repair(subject, replace(corpus, label=np.where(some, 1 - corpus.label, corpus.label)), finding, seed=0)
    assert isinstance(got, NoRemedy) or not same(got, remedy)


# ----------------------------------------------------------------------------------------------------- no repair, and why


def test_nothing_found_nothing_repaired():
    subject, corpus = planted("sham")
    found = FAULT.audit(subject, corpus.part("test"), seed=0)
    got = FAULT.repair(subject, corpus, found, seed=0)
    assert isinstance(got, NoRemedy)
    assert got.reason.startswith(f"The lean of {found.severity:.3f}")
    assert "nothing to repair" in got.reason


def test_a_repaired_last_layer_is_not_repaired_again(case, finding):
    subject, corpus = case
    got = FAULT.repair(replace(subject, head=subject.own_head()), corpus, finding, seed=0)
    assert isinstance(got, NoRemedy)
    assert "already carries a repaired last layer" in got.reason


def test_when_no_family_helps_it_says_how_near_the_best_came(case, finding, monkeypatch):
    class Still(Flipped):
        key, title, source = "still", "nothing at all", "a test"

        def variants(self, e):
            return [e.variant("as it is", Change(prompt=e.prompt))]

    # The flipped control is no repair, so it neither counts nor comes best.
    monkeypatch.setattr(R, "FAMILIES", (Flipped(), Still()))
    got = FAULT.repair(*case, finding, seed=0)
    assert isinstance(got, NoRemedy)
    assert got.reason.startswith("Of 1 repairs none lowered the lean")
    assert "(the best, nothing at all: lean " in got.reason
    assert [r["key"] for r in got.tried["candidates"]] == ["flipped", "still"]
    monkeypatch.setattr(R, "FAMILIES", (Flipped(), FunctionForm(), Still()))
    got = FAULT.repair(*case, finding, seed=0)
    assert isinstance(got, NoRemedy)
    assert got.reason == (
        "'hybrid arithmetic on the function' helped, but no adapter computes it; no other of 2 repairs did."
    )
    monkeypatch.setattr(R, "FAMILIES", (Flipped(),))
    got = FAULT.repair(*case, finding, seed=0)
    assert isinstance(got, NoRemedy)
    assert got.reason == "No family of repairs goes with this subject."


def test_a_winner_that_cannot_be_saved_costs_the_repair_nothing(case, finding, remedy, monkeypatch):
    """The control: `remedy` is what wins when all can be saved, and it takes another last layer."""
    assert any("classifier" in k for k in remedy.tensors)
    assert remedy.card["chosen"] in ("relinearised-dfr", "dfr", "leace", "backdoor")

    def refuse(*_):
        raise Unsupported("The head cannot be replaced.")

    monkeypatch.setattr(files, "adapter_with_head", refuse)
    with within(Session()) as now:
        got = replace(FAULT, max_cost=1.0).repair(*case, finding, seed=0)
    others = ("relinearised", "hybrid-one", "hybrid-balanced", "hybrid-control", "tangent-tangent")
    if isinstance(got, Adapted):
        assert got.card["chosen"] in others
        rows = got.card["candidates"]
        won = next(r for r in rows if r["key"] == got.card["chosen"])
        assert got.describe().startswith(f"{won['title'][0].upper()}{won['title'][1:]} ({won['variant']})")
    else:  # what prompts alone do here is confirmed on some machines and just not on others
        rows = got.tried["candidates"]
        assert any(f"for choosing was {r['title']}." in got.reason for r in rows if r["key"] in others)
        assert "The others do not confirm it" in got.reason
    refused = {r["key"]: r["refused"] for r in rows if "refused" in r}
    assert refused
    assert set(refused.values()) == {"The head cannot be replaced."}
    assert not any(r["saveable"] for r in rows if "refused" in r)
    assert sum("was passed over, because it cannot be saved: The head" in n for n in now.notes) == len(refused)
    # With no other family left, the reason is told.
    monkeypatch.setattr(R, "FAMILIES", tuple(f for f in FAMILIES if f.key == "dfr"))
    none = replace(FAULT, max_cost=1.0).repair(*case, finding, seed=0)
    assert isinstance(none, NoRemedy)
    assert "helped and cannot be saved: The head cannot be replaced." in none.reason


def test_the_back_door_adjustment_is_near_the_mean_over_groups(case):
    """Oracle: sum_z P(z) P(y | x, z). The control: the layer without its part for the group answers for a group that is none."""
    subject, corpus = case
    e = R.evidence(subject, corpus, "site", 0.0, 0)
    rng = np.random.default_rng(0)
    rows = np.flatnonzero((e.held_group == 1) | (rng.random(len(e.held)) < 0.11))
    group, held = e.held_group[rows], e.held.take(rows)
    e = replace(e, held=held, held_group=group, train=held, train_group=group)
    variant = BackDoor().variants(e)[-1]
    x, one_hot = predict(subject, held).features.astype(float), np.eye(2)[group]
    twice = [np.concatenate([v, v]) for v in (x, one_hot)]
    w, b, of_group = fit_head(
        twice[0], np.concatenate([held.label] * 2), 2, strength=STRENGTHS[-1], extra=twice[1]
    )  # fmt: skip
    each = [softmax(x @ w.T + b + of_group[:, z], axis=1)[:, 1] for z in (0, 1)]
    wanted = (1 - group.mean()) * each[0] + group.mean() * each[1]
    assert np.abs(each[1] - each[0]).mean() > 0.1
    assert np.abs(variant.predict(held)[:, 1] - wanted).mean() < 0.01
    assert np.abs(softmax(x @ w.T + b, axis=1)[:, 1] - wanted).mean() > 0.03


def test_less_used_and_less_present_are_said_only_when_their_intervals_say_so(case, remedy):
    subject, corpus = case
    e, own = R.evidence(subject, corpus, "site", 0.0, 0), subject.own_head()
    assert "the attribute is less used and not measurably less present" in remedy.describe(), (
        "the features are the same"
    )
    few = np.arange(0, len(e.held), 5)  # so few that chance moves what is used
    e = replace(e, held=e.held.take(few), held_group=e.held_group[few], choosing=e.choosing[few])
    rng, by_eye = np.random.default_rng(0), 0
    for _ in range(8):
        noise = torch.tensor(rng.normal(size=own.weight.shape), dtype=torch.float32)
        said = claimed(e, e.variant("noise", Change(head=Head(own.weight + 0.1 * noise, own.bias))), 100).sentence
        found = re.search(r"given label changed by ([-+.\d]+) \[[-+.\d]+, ([-+.\d]+)\]", said)
        assert found is not None, said
        fell = found.group(2).startswith("-")
        assert ("is less used" in said) == fell, said
        assert ("is not measurably less used" in said) == (not fell), said
        by_eye += found.group(1).startswith("-") and not fell
    assert by_eye, "the control: a fall that the interval does not bear out"
    assert "is not measurably less used" in claimed(e, e.variant("as it is", Change()), 100).sentence


@pytest.mark.parametrize("split", ["train", "calibration"])
def test_a_cell_too_small_to_repair_is_named(case, finding, split):
    subject, corpus = case
    cell = (corpus.split == split) & (corpus.label == 1) & (corpus.attributes["site"] == "calm")
    few = corpus.take(np.setdiff1d(np.arange(len(corpus)), np.flatnonzero(cell)[9:]))
    with pytest.raises(
        BadInput, match=f"The {split} split .* has 9 examples with label 'positive' and site 'calm'; .* 10 in"
    ):
        FAULT.repair(subject, few, finding, seed=0)


# ---------------------------------------------------------------------------------------------------------------- P0


def moved_to(subject, adapter):
    return replace(subject, source=replace(subject.source, adapter=str(adapter)))


def test_a_start_that_is_missing_or_of_another_shape_is_noted(tuned, tmp_path):
    subject, start = tuned
    with within(Session()) as now:
        assert np.array_equal(start_of(subject), start)
    assert now.notes == []
    with within(Session()) as now:
        assert start_of(moved_to(subject, tmp_path)) is None
    assert now.notes == [
        "The prompt that the adapter started from (P0) is not kept beside it, so prompts were linearised at the tuned prompt."
    ]
    save_file({"prompt_embeddings": torch.zeros(7, 32)}, str(tmp_path / files.P0))
    with within(Session()) as now:
        assert start_of(moved_to(subject, tmp_path)) is None
    assert len(now.notes) == 1
    assert now.notes[0].startswith("p0.safetensors holds a prompt of (7, 32) where the adapter's has (4, 32)")
    (tmp_path / files.P0).write_bytes(b"damaged")
    with within(Session()) as now:
        assert start_of(moved_to(subject, tmp_path)) is None
    assert len(now.notes) == 1


def test_the_repair_works_without_a_start(remedy):
    assert remedy.card["anchor"] == "the tuned prompt"


def test_with_a_start_the_arithmetic_is_anchored_there(tuned, case, monkeypatch):
    subject, start = tuned
    _, corpus = case
    e = R.evidence(subject, corpus, "site", 0.0, 0)
    assert e.start is not None
    assert e.prompt is not None
    assert np.array_equal(e.anchor, start)
    assert not np.allclose(e.prompt, start)
    assert e.training == Training(epochs=1, lr=0.01)
    at = []
    tangent = Evidence.tangent
    monkeypatch.setattr(Evidence, "tangent", lambda self, p: at.append(p) or tangent(self, p))
    hybrid = Hybrid(by_balanced_slice, "hybrid-balanced").variants(e)
    assert len(at) == 1
    assert at[0] is e.start
    # Coefficient 0 is the task prompt's own prediction, bit for bit; the others are not.
    own = predict(subject, e.held).probability
    assert hybrid[0].name == "l_Z = 0"
    assert np.array_equal(hybrid[0].held, own)
    assert hybrid[0].change is not None
    assert np.array_equal(hybrid[0].change.prompt, e.prompt)
    assert all(not np.array_equal(v.held, own) for v in hybrid[1:])
    # The weight form at l_Z = 1 is P_Y - tau_Z.
    tau = e.confounder(e.anchor, balanced=False)
    assert np.array_equal(hybrid[3].change.prompt, e.prompt - tau.value)
    assert np.allclose(FunctionForm().variants(e)[0].held, own, atol=1e-6)


def test_the_knobs_of_the_arithmetic_are_its_coefficients_and_its_anchor(tuned, case):
    subject, start = tuned
    knobs = Knobs(0.5, Confounding(l_z="3,0.5").coefficients, 1e-3)
    assert knobs.l_z == (0.0, 0.5, 1.0, 3.0)
    e = R.evidence(subject, case[1], "site", 0.0, 0, knobs)
    assert e.prompt is not None
    for variant, c in zip(Hybrid(by_balanced_slice).variants(e), knobs.l_z, strict=True):
        assert variant.name == f"l_Z = {c:g}"
        assert variant.change is not None
        want = start + 0.5 * (e.prompt.astype(np.float64) - start) - c * e.tau_z.value
        np.testing.assert_allclose(variant.change.prompt, want, atol=1e-12)
    elsewhere = R.evidence(subject, case[1], "site", 0.0, 0, Knobs(at_start=False))
    assert elsewhere.anchor is elsewhere.prompt
    assert not np.allclose(elsewhere.tau_z.value, e.tau_z.value)
    stiff = R.evidence(subject, case[1], "site", 0.0, 0, Knobs(ridge=10.0))
    assert stiff.tau_z.norm < 0.5 * e.tau_z.norm
    # Without P0 the prompt's own vector is not known.
    with (
        within(Session()),
        pytest.raises(BadInput, match=r"l_y is 0\.5.*Leave the setting at 1, or tune the prompt with"),
    ):
        R.evidence(case[0], case[1], "site", 0.0, 0, knobs)


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"l_z": "1;2"}, "l_z is '1;2'; give numbers of 0 or more"), ({"l_z": "-1"}, "l_z is '-1'"), ({"l_z": "inf"}, "'inf'"),
        ({"anchor": "strat"}, "anchor is 'strat'. Did you mean 'start'"), ({"ridge": 0.0}, "ridge is 0.0; give a number above 0"),
    ],
)  # fmt: skip
def test_knobs_that_cannot_be_used_are_said(knobs, says):
    with pytest.raises(BadInput, match=re.escape(says)):
        Confounding(**knobs)


def test_inside_the_linearised_model_the_arithmetic_is_linear(tuned, case):
    """Log odds at l_Z lie on one line: f(x; P0) + J [tau_Y - l_Z tau_Z]. The control: those of the prompts themselves do not."""
    e = R.evidence(tuned[0], case[1], "site", 0.0, 0, Knobs(l_z=(0.0, 1.0, 2.0)))

    def bend(variants) -> float:
        odds = [np.log(v.held[:, 1]) - np.log(v.held[:, 0]) for v in variants]
        return float(np.abs(odds[2] - 2 * odds[1] + odds[0]).max() / np.abs(odds[2] - odds[0]).max())

    assert bend(TangentInside().variants(e)) < 1e-6
    assert bend(TangentBoth().variants(e)) > 1e-3


def test_only_tangent_fits_learn_from_a_sample(tuned, case, monkeypatch):
    monkeypatch.setattr("trueup.faults.confounding.evidence.FIT", 60)
    subject, _ = tuned
    e = R.evidence(subject, case[1], "site", 0.0, 0)
    assert len(e.train) == (case[1].split == "train").sum() > 60
    assert len(e.sampled) == 60
    assert len(e.tangent(e.anchor)[0]) == 60
    assert all(
        len(e.train) == o.rows
        for family in (GroupRobust(), ImportanceWeighted(), BalancedSampling())
        for _, o in family.objectives(e)
    )
    assert len(e.coded) == len(e.train)
    assert len(e.once(_features, "train", False)) == len(e.train)


def test_an_arithmetic_that_its_flip_matches_is_not_offered(case, finding, monkeypatch):
    """A change that does not depend on the sign of l_Z says nothing of the shortcut. The control: one that does is offered."""

    class Blind(Hybrid):
        def at(self, e, coefficient):
            return super().at(e, abs(coefficient))

    def tried_with(family):
        monkeypatch.setattr(R, "FAMILIES", (family,))
        with within(Session()) as now:
            got = DEAR.repair(*case, finding, seed=0)
        table = got.tried["candidates"] if isinstance(got, NoRemedy) else got.card["candidates"]
        return got, table[0], now.notes

    got, row, notes = tried_with(Blind(by_balanced_slice, "blind", "blind arithmetic"))
    assert row["flip"] == row["chose lean"] < row["chose lean before"]
    assert not row["saveable"]
    assert isinstance(got, NoRemedy)
    assert any("'blind arithmetic' is not offered: with the shortcut's polarity turned round" in n for n in notes)
    got, row, notes = tried_with(Hybrid(by_balanced_slice, "hybrid-balanced", "hybrid arithmetic"))
    assert row["flip"] > row["chose lean"]
    assert row["saveable"]
    assert not any("is not offered" in n for n in notes)


def test_dfr_as_published_is_the_mean_of_sparse_heads_on_balanced_subsamples(case):
    e = R.evidence(*case, "site", 0.0, 0)
    family = PublishedReweighted()
    x, z = (e.once(_features, which, False) for which in ("train", "held"))
    every = np.ones((1, len(z)), bool)
    points = Points(x, z, e.train.label, e.held.label, e.train_group, e.held_group, every)
    (((w, _),),) = [layers for name, layers in family.fits(e, points) if name == "C = 0.1"]
    cell = e.held.label * 2 + e.held_group
    least, rng = np.bincount(cell).min(), np.random.default_rng(np.random.SeedSequence([0, 14]))
    want = np.zeros(z.shape[1])
    for _ in range(10):
        some = np.concatenate([rng.permutation(np.flatnonzero(cell == c))[:least] for c in range(4)])
        spread = z[some].std(axis=0) + 1e-6
        rows = (z[some] - z[some].mean(axis=0)) / spread
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            one = LogisticRegression(
                penalty="l1", C=0.1, solver="liblinear", random_state=0, tol=1e-10, max_iter=100_000
            ).fit(rows, e.held.label[some])
        assert (one.coef_ == 0).any()
        want += one.coef_[0] / spread / 10
    np.testing.assert_allclose(w[1] - w[0], want, rtol=0, atol=1e-4 * np.abs(want).max())
    variants = family.variants(e)
    chosen = variants[family.choose(e, variants)]
    own, there = (R.leans(e, e.columns(p, e.choosing)) for p in (e.own.probability, chosen.held))
    assert there < 0.5 * own


def test_a_confounder_prompt_of_zero_changes_nothing(tuned, case, monkeypatch):
    subject, _ = tuned
    e = R.evidence(subject, case[1], "site", 0.0, 0)
    assert e.prompt is not None
    zero = PromptVector(np.zeros(e.prompt.shape))
    monkeypatch.setattr(Evidence, "confounder", lambda self, at, **_: zero)
    own = predict(subject, e.held).probability
    for variant in (*Hybrid(as_published).variants(e), *Flipped().variants(e), *Relinearised().variants(e)):
        assert np.array_equal(variant.held, own), variant.name
    assert all(np.allclose(v.held, own, atol=1e-6) for v in FunctionForm().variants(e))


@pytest.mark.parametrize(
    ("training", "says"),
    [
        ({"epochs": "four"}, "holds \"four\" for 'tuned.training.epochs', which is a whole number, 1 or above"),
        ({"lr": [1]}, "holds [1] for 'tuned.training.lr', which is a number"),
        ({"batch": 8.5}, "holds 8.5 for 'tuned.training.batch', which is a whole number"),
        ({"patience": None}, "holds null for 'tuned.training.patience', which is a whole number"),
        ({"epochs": 0}, "holds 0 for 'tuned.training.epochs', which is a whole number, 1 or above"),
        ({"clip": True}, "holds true for 'tuned.training.clip', which is a number"),
        ({"lr": 0}, "key 'tuned.training': The training's lr is 0; give a number above 0"),
    ],
)  # fmt: skip
def test_a_training_that_was_edited_by_hand_is_refused_by_file_and_key(tuned, case, tmp_path, training, says):
    subject, corpus = tuned[0], case[1]
    (tmp_path / CARD).write_text(json.dumps({"tuned": {"training": training}}))
    with pytest.raises(BadInput) as refused:
        R.evidence(moved_to(subject, tmp_path), corpus, "site", 0.0, 0)
    assert str(refused.value).startswith(f"'{tmp_path / CARD}'")
    assert says in str(refused.value)


# -------------------------------------------------------------------------------------------------- trained again, LoRA


def test_every_family_of_a_prompt_with_its_start(tuned, case, monkeypatch):
    monkeypatch.setattr("trueup.faults.confounding.evidence.FIT", 100)
    monkeypatch.setattr(arithmetic, "STEPS", 1)
    subject, _ = tuned
    _, corpus = case
    found = FAULT.audit(subject, corpus.part("test"), seed=0)
    got = replace(FAULT, retrain=True).repair(subject, corpus, found, seed=0)
    assert isinstance(got, Adapted)
    table = {r["key"]: r for r in got.card["candidates"]}
    assert set(table) == {f.key for f in FAMILIES} - {"lora-arithmetic"}
    assert got.card["anchor"] == "P0"
    assert all(np.isfinite([r["level"], r["severity"], r["low"], r["high"]]).all() for r in table.values())
    assert table["group-dro"]["severity"] != table["resampled"]["severity"]
    assert "| layer | change of the probe [95%] |" in got.card["table"]
    assert re.search(
        r"By layer, 0 to \d+, the probe fell .+, the groups' distance fell .+, what reaches the answer fell",
        got.describe(),
    )
    assert [_layers(k) for k in ([], [3], [0, 1, 2, 4, 6, 7])] == ["nowhere", "at 3", "at 0 to 2, 4, 6 to 7"]
    assert [c.key for c in got.charts()] == ["use_by_layer"]


@pytest.mark.parametrize("how", ["frozen", "balanced"])
def test_arithmetic_under_another_head_is_arithmetic_on_a_prompt_tuned_under_it(tuned, case, tmp_path, how):
    subject, corpus = tuned[0], case[1]
    e = R.evidence(subject, corpus, "site", 0.0, 0)
    family = Under(Hybrid(by_balanced_slice, "hybrid-balanced", "hybrid arithmetic"), how == "balanced")
    assert family.possible(e)
    assert (family.key, family.title) == (f"hybrid-balanced@{how}", f"hybrid arithmetic, under a {how} head")
    variants, plain = family.variants(e), Under(TaskPrompt(), how == "balanced").variants(e)
    there = family._there(e)
    # The head is the one fitted at P0, and training has not moved it.
    at_start = Change(prompt=e.start).on(subject)
    weight = e.balance(e.train.label, e.train_group) if how == "balanced" else None
    w, b, _ = fit_head(
        predict(at_start, e.train).features.astype(float), e.train.label, 2, strength=0.01, weight=weight
    )
    head = variants[0].change.head
    np.testing.assert_allclose(head.weight.numpy(), w, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(head.bias.numpy(), b, rtol=1e-4, atol=1e-5)
    assert not np.allclose(head.weight.numpy(), subject.own_head().weight.numpy(), atol=1e-3), "the control"
    # The prompt is tuned, and at l_Z = 0 it is what the arithmetic begins with.
    assert np.abs(there.prompt - e.start).max() > 1e-3
    assert np.array_equal(variants[0].held, plain[0].held)
    assert not np.allclose(variants[-1].held, plain[0].held, atol=1e-3)
    # From the subject as it is, prompt and head together are the same, also as a plain PEFT adapter.
    for v in (variants[0], variants[-1]):
        np.testing.assert_allclose(predict(v.change.on(subject), e.held).probability, v.held, atol=1e-6)
    got = R.remedy_of(subject, variants[-1].change, {"describe": "Arithmetic under another head."})
    plain_peft(got, subject, corpus, tmp_path)
    assert not Under(TaskPrompt(), how == "balanced").possible(replace(e, start=None)), "P0 is not known"


def test_a_balanced_head_leans_less_than_a_frozen_one(tuned, case):
    e = R.evidence(tuned[0], case[1], "site", 0.0, 0)
    lean = {
        how: R.leans(e, e.columns(Under(TaskPrompt(), how == "balanced").variants(e)[0].held, e.choosing))  # type: ignore[arg-type]
        for how in ("frozen", "balanced")
    }
    assert lean["balanced"] < lean["frozen"]


@pytest.fixture(scope="module")
def lora(bases, tmp_path_factory):
    """A confounded LoRA subject with a card that asks for one epoch, and its corpus."""
    corpus = corpus_of(2, 2, 0.6)
    subject = fitted(fresh(bases["bert"], Lora(2), corpus.classes, max_length=16, device="cpu", seed=1), corpus)
    folder = tmp_path_factory.mktemp("lora")
    (folder / CARD).write_text(json.dumps({"tuned": {"training": {"epochs": 1}}}))
    return moved_to(subject, folder), corpus


def test_every_family_of_a_lora(lora):
    subject, corpus = lora
    found = FAULT.audit(subject, corpus.part("test"), seed=0)
    assert found.found
    got = replace(DEAR, retrain=True).repair(subject, corpus, found, seed=0)
    assert isinstance(got, Adapted)
    keys = {r["key"] for r in got.card["candidates"]}
    assert keys == {
        "dfr-published",
        "dfr",
        "leace",
        "backdoor",
        "lora-arithmetic",
        "group-dro",
        "resampled",
        "weighted",
    }
    assert got.card["anchor"] is None
    with got.on(subject) as repaired:
        after = FAULT.audit(repaired, corpus.part("test"), seed=0)
    assert abs(after.severity) < 0.5 * found.severity


def test_lora_arithmetic_at_0_is_the_subject_and_survives_saving(lora, tmp_path):
    subject, corpus = lora
    e = R.evidence(subject, corpus, "site", 0.0, 0)
    variants = LoraArithmetic().variants(e)
    own = predict(subject, e.held).probability
    assert np.allclose(variants[0].held, own, atol=1e-6)
    assert not np.allclose(variants[-1].held, own, atol=1e-3)
    got = R.remedy_of(subject, variants[-1].change, {"describe": "LoRA arithmetic."})
    plain_peft(got, subject, corpus, tmp_path)
    assert got.settings["r"] == 4


def test_lora_arithmetic_is_for_plain_loras_alone(lora, bases, tuned):
    subject, corpus = lora
    e = R.evidence(subject, corpus, "site", 0.0, 0)
    assert LoraArithmetic().possible(e)

    def with_(**settings):
        net = transformers.AutoModelForSequenceClassification.from_pretrained(bases["bert"], num_labels=2)
        config = peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS", **settings)
        return replace(e, subject=replace(subject, model=peft.get_peft_model(net, config).eval()))

    assert LoraArithmetic().possible(with_(use_rslora=True))
    for settings in ({"use_dora": True}, {"rank_pattern": {"query": 4}}, {"bias": "lora_only"}):
        assert not LoraArithmetic().possible(with_(**settings)), settings
    assert not LoraArithmetic().possible(replace(e, subject=tuned[0]))


@pytest.mark.parametrize("where", [{"target_modules": r".*attention\.output\.dense"},
                                   {"target_modules": ["query", "key", "value"], "layers_to_transform": [1]}])  # fmt: skip
def test_no_lora_arithmetic_where_a_new_lora_would_change_other_layers(bases, where):
    """PEFT allows a pattern for target_modules and a choice of layers, which a recipe cannot hold."""
    corpus = corpus_of(2, 2, 0.6)
    net = transformers.AutoModelForSequenceClassification.from_pretrained(bases["bert"], num_labels=2)
    config = peft.LoraConfig(r=2, task_type="SEQ_CLS", **where)
    like = fresh(bases["bert"], Lora(2), corpus.classes, max_length=16, device="cpu")
    subject = fitted(replace(like, model=peft.get_peft_model(net, config).eval()), corpus)
    e = replace(R.evidence(subject, corpus, "site", 0.0, 0), training=Training(epochs=1))
    assert not LoraArithmetic().possible(e)


# ------------------------------------------------------------------------------------------- the adapter that is written


def plain_peft(remedy: Adapted, subject, corpus, folder, *, words=()) -> None:
    """The saved remedy, loaded by PEFT alone, one text at a time, gives the repaired subject's logits; read back too."""
    few = corpus.part("test").take(np.arange(20))
    saved = remedy.save(folder / "remedy")
    with remedy.on(subject) as repaired:
        ours = predict(repaired, few).logits[:, : len(subject.classes)]
    back = FAULT.read(saved, subject)
    assert back.describe() == remedy.describe()
    with back.on(subject) as repaired:
        assert np.array_equal(predict(repaired, few).logits[:, : len(subject.classes)], ours)
    cls = transformers.AutoModelForCausalLM if words else transformers.AutoModelForSequenceClassification
    base = cls.from_pretrained(subject.source.base, **({} if words else {"num_labels": len(subject.classes)}))
    model = peft.PeftModel.from_pretrained(base, str(saved)).eval()
    with torch.no_grad():
        said = [model(input_ids=torch.tensor([row])).logits[0] for row in forward.tokenize(subject, few)]
    plain = torch.stack([z[-1, list(words)] if words else z for z in said]).numpy()
    assert np.abs(plain - ours).max() <= 2e-5 * max(1.0, np.abs(ours).max())


@pytest.mark.parametrize("kind", ["chosen", "prompt", "null"])
def test_the_remedy_of_a_prompt_is_a_plain_adapter(case, remedy, kind, tmp_path):
    subject, corpus = case
    if kind == "prompt":
        soft = prompt_embeddings(subject)
        remedy = R.remedy_of(subject, Change(prompt=soft.numpy() + 0.3), {"describe": "Another prompt."})
        with remedy.on(subject) as repaired:
            assert torch.equal(prompt_embeddings(repaired), soft + 0.3)
        assert torch.equal(prompt_embeddings(subject), soft), "the subject's own prompt stays"
    if kind == "null":
        remedy = FAULT.null(subject)
    plain_peft(remedy, subject, corpus, tmp_path)
    card = (tmp_path / "remedy" / "README.md").read_text()
    assert "AutoModelForSequenceClassification" in card
    assert ("What was tried" in card) == (kind == "chosen")
    assert ("on calibration examples that were not used for choosing" in card) == (kind == "chosen")


@pytest.mark.parametrize("bare", [False, True])
def test_a_lora_and_a_bare_classifier_get_another_last_layer(lora, bases, bare, tmp_path):
    subject, corpus = lora
    if bare:
        folder = tmp_path / "base"
        made = fresh(bases["bert"], Prompt(2), corpus.classes, max_length=16, device="cpu")
        net = transformers.AutoModelForSequenceClassification.from_pretrained(bases["bert"], num_labels=2).eval()
        subject = fitted(replace(made, model=net, source=Source(str(folder))), corpus)
        net.save_pretrained(folder)
        made.tokenizer.save_pretrained(folder)
        assert subject.peft_config is None
    found = FAULT.audit(subject, corpus.part("test"), seed=0)
    got = DEAR.repair(subject, corpus, found, seed=0)
    assert isinstance(got, Adapted)
    assert got.card["chosen"] in ("dfr", "leace", "backdoor")
    with got.on(subject) as repaired:
        after = FAULT.audit(repaired, corpus.part("test"), seed=0)
    assert abs(after.severity) < 0.5 * found.severity
    plain_peft(got, subject, corpus, tmp_path)


def test_three_classes_and_three_groups_are_repaired(bases, tmp_path):
    corpus = corpus_of(3, 3, 0.5, sizes=(("train", 400), ("calibration", 500), ("test", 400)))
    subject = fitted(fresh(bases["bert"], Prompt(3), corpus.classes, max_length=16, device="cpu"), corpus)
    found = FAULT.audit(subject, corpus.part("test"), seed=0)
    got = DEAR.repair(subject, corpus, found, seed=0)
    assert isinstance(got, Adapted)
    with got.on(subject) as repaired:
        after = FAULT.audit(repaired, corpus.part("test"), seed=0)
    assert abs(after.severity) < 0.5 * found.severity
    plain_peft(got, subject, corpus, tmp_path)


@pytest.fixture(scope="module")
def left_out(bases):
    """Three classes and two groups, where the third class goes with neither."""
    corpus = corpus_of(3, 2, 0.6, sizes=(("train", 400), ("calibration", 500), ("test", 60)))
    subject = fitted(fresh(bases["bert"], Prompt(3), corpus.classes, max_length=16, device="cpu", seed=0), corpus)
    return R.evidence(subject, corpus, "site", 0.0, 0)


def test_a_class_that_goes_with_no_group_stays_in_the_tangent_fit(left_out):
    e = left_out
    table = joint(e.train.label, e.train_group, 3, 2)
    assert 2 not in shortcut(table)
    assert np.allclose(e.code.sum(axis=1), 1)
    assert e.code.shape == (2, 3)
    own = e.own.probability[:, 2].mean()
    assert own > 0.1
    moved = Flipped().variants(e)[0].held[:, 2].mean()
    published = replace(e, code=np.eye(3)[shortcut(table)])
    without = Flipped().variants(published)[0].held[:, 2].mean()
    assert without < 0.1 * own, "the control: a prompt of the published coding says the third class never"
    assert abs(moved - own) < 0.3 * own


def test_labels_that_the_shortcut_would_give_hold_every_class_too(left_out):
    e = left_out
    drawn = e.coded
    assert drawn.text == e.train.text
    for z in (0, 1):
        share = np.bincount(drawn.label[e.train_group == z], minlength=3) / (e.train_group == z).sum()
        assert np.abs(share - e.code[z]).max() < 0.1
    assert np.array_equal(e.coded.label, drawn.label)
    published = replace(e, code=np.eye(3)[[1, 0]])
    assert np.array_equal(published.coded.label, np.array([1, 0])[e.train_group]), "one class leaves nothing to draw"


TEMPLATE = Template("{text} it is", ("bad", "good"))


@pytest.fixture(scope="module", params=["lora", "prompt"])
def causal(request, bases):
    """A tiny causal model that answers with a word, trained on confounded texts, and its corpus."""
    corpus = corpus_of(2, 2, 0.7, sizes=(("train", 240), ("calibration", 300), ("test", 700)))
    recipe, lr = (Lora(4, 16), 2e-2) if request.param == "lora" else (Prompt(4), 1e-1)
    subject = fresh(bases["gpt2"], recipe, corpus.classes, template=TEMPLATE, max_length=24, device="cpu")
    train(subject, corpus.part("train"), Training(epochs=5), lr=lr, seed=0)
    for p in subject.model.parameters():
        p.requires_grad_(False)
    return subject, corpus


def test_a_causal_subject_with_a_verbaliser_is_repaired_as_a_sequence_classifier(causal, tmp_path):
    subject, corpus = causal
    found = FAULT.audit(subject, corpus.part("test"), seed=0)
    assert found.severity > 0.05, "the control: it is confounded"
    e = R.evidence(subject, corpus, "site", 0.0, 0)
    dfr = next(f for f in FAMILIES if f.key == "dfr")
    variants = dfr.variants(e)
    chosen = variants[dfr.choose(e, variants)]
    got = R.remedy_of(subject, chosen.change, {"describe": "DFR."})
    assert got.settings["task_type"] == "SEQ_CLS"
    assert got.head is not None
    plain_peft(got, subject, corpus, tmp_path)
    with got.on(subject) as repaired:
        after = FAULT.audit(repaired, corpus.part("test"), seed=0)
    assert FAULT.compare(found, after, seed=0)["severity"].high < 0
    assert "AutoModelForSequenceClassification" in (tmp_path / "remedy" / "README.md").read_text()


def test_a_verbaliser_subject_with_a_prompt_keeps_a_causal_adapter(causal, tmp_path):
    subject, corpus = causal
    e = R.evidence(subject, corpus, "site", 0.0, 0)
    if subject.source.peft_type != "PROMPT_TUNING":
        assert not any(f.possible(e) for f in FAMILIES if f.key in ("relinearised", "hybrid-one", "function"))
        return
    change = Hybrid(as_published).variants(e)[3].change
    got = R.remedy_of(subject, change, {"describe": "Another prompt."})
    assert got.settings["task_type"] == "CAUSAL_LM"
    assert got.head is None
    plain_peft(got, subject, corpus, tmp_path, words=subject.verbaliser_ids())
    card = (tmp_path / "remedy" / "README.md").read_text()
    assert "AutoModelForCausalLM" in card
    assert "['bad', 'good']" in card
    # A user may go on from it: the loader finds the template in the card.
    back = load(subject.source.base, str(tmp_path / "remedy"), device="cpu")
    assert back.template == TEMPLATE
    assert back.classes == subject.classes
    few = corpus.part("test").take(np.arange(20))
    with got.on(subject) as repaired:
        assert np.allclose(predict(back, few).logits, predict(repaired, few).logits, atol=1e-5)


def test_a_head_that_some_classes_never_need(case, bases):
    """A class of the head without examples: the audit leaves it out, and so does the repair."""
    corpus = corpus_of(2, 2, 0.6)
    three = replace(corpus, classes=(*corpus.classes, "class 2"))
    subject = fitted(fresh(bases["bert"], Lora(2), three.classes, max_length=16, device="cpu"), three)
    found = FAULT.audit(subject, corpus.part("test"), seed=0)
    got = DEAR.repair(subject, corpus, found, seed=0)
    assert isinstance(got, Adapted)
    with got.on(subject) as repaired:
        after = FAULT.audit(repaired, corpus.part("test"), seed=0)
    assert abs(after.severity) < 0.5 * found.severity


def test_a_remedy_refuses_another_model(case, remedy, bases):
    subject, _ = case
    other = fresh(bases["bert"], Prompt(4), subject.classes, max_length=32, device="cpu", seed=3)
    with (
        pytest.raises(BadInput, match=r"made for another model or adapter .*trueup repair confounding"),
        remedy.on(other),
    ):
        pass
    with remedy.on(subject):
        pass


def test_a_folder_that_holds_no_repair_of_confounding(case, remedy, tmp_path):
    subject, _ = case
    saved = remedy.save(tmp_path / "remedy")
    assert FAULT.read(saved, subject).describe() == remedy.describe()
    card = json.loads((saved / CARD).read_text())
    (saved / CARD).write_text(json.dumps(card | {"repairs": "overconfidence"}))
    with pytest.raises(BadInput, match="holds no repair of confounding"):
        FAULT.read(saved, subject)
    again = remedy.save(tmp_path / "again")
    weights = again / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\1\2\3\4")
    with pytest.raises(BadInput):
        FAULT.read(again, subject)


def test_a_change_of_the_head_goes_with_the_subject_s_device(case):
    subject, _ = case
    own = subject.own_head()
    changed = Change(head=Head(own.weight + 1, own.bias)).on(subject)
    assert changed.head is not None
    assert subject.head is None
    assert torch.equal(changed.head.weight, own.weight + 1)
    assert Change().on(subject) is subject
