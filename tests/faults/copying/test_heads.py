"""Attention heads as rivals of the units: which are found, at what size, when they are handed over, and as what."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from trueup.errors import BadInput, Unsupported
from trueup.faults.adapter_remedy import Adapted
from trueup.faults.copying import Copying
from trueup.faults.copying import heads as heads_module
from trueup.faults.copying import repair as R
from trueup.faults.copying.attribution import OWN, PROXY
from trueup.faults.copying.candidates import AS_IT_IS, Candidate, scales_of
from trueup.faults.copying.contest import Won
from trueup.faults.copying.heads import FUNCTION, INDUCTION, Heads, heads_of, indirect_effect, other_heads, rivals
from trueup.faults.copying.judging import Judged, ask, judged, screen
from trueup.faults.copying.proxy import proxy
from trueup.faults.fault import NoRemedy
from trueup.run.answers import answers
from trueup.run.edit import scaled
from trueup.run.predict import Session, within
from trueup.run.prompts import drawn, rows
from trueup.subject.quiet import quiet

from .cases import HEAD, counting, one_head

FAULT = Copying(resamples=60, units_from="task")
WIDE = 12


@pytest.fixture(scope="module")
def case():
    return one_head()


@pytest.fixture(scope="module")
def finding(case):
    return FAULT.audit(case[0], case[1].part("test"), seed=0)


@pytest.fixture(scope="module")
def heads(case):
    return heads_of(case[0], case[1].part("train"), 0, OWN)


@pytest.fixture(scope="module")
def remedy(case, finding):
    got = FAULT.repair(*case, finding, seed=0)
    assert isinstance(got, Adapted)
    return got


def test_the_head_that_copies_has_the_effect_and_where_none_does_no_head_has(case, heads):
    effect = indirect_effect(case[0], case[1].part("train"), 0)
    assert effect.shape == (2, 4)
    assert effect[HEAD] > 0.2
    assert np.abs(np.delete(effect, HEAD[0] * 4 + HEAD[1])).max() < 1e-3
    assert np.array_equal(heads.score[FUNCTION], np.maximum(effect, 0))
    assert heads.wide == WIDE
    assert not heads.score[INDUCTION].any(), "even attention is no induction head"
    subject, corpus = one_head(copies=False)
    assert np.abs(indirect_effect(subject, corpus.part("train"), 0)).max() < 1e-3


def test_rivals_scale_as_many_inputs_as_the_units(heads):
    for units, count in ((1, 1), (17, 1), (19, 2), (40, 3), (1000, 8)):
        both = Heads({FUNCTION: heads.score[FUNCTION] + 1e-9, INDUCTION: np.zeros((2, 4))}, WIDE, OWN)
        made = rivals(both, units)
        assert [c.units for c in made] == [count * WIDE] * 2
        assert [min(float(s.min()) for s in c.scales.values()) for c in made] == [0.0, 0.5]
        assert all((s.unflatten(0, (4, WIDE)) == s[::WIDE, None]).all() for c in made for s in c.scales.values())
        assert {c.family for c in made} == {FUNCTION}, "a kind of which the model has none has no rival"
        others = other_heads(made, both, 0)
        assert [c.units for c in others] == [min(count, 8 - count) * WIDE] * 2 * (count < 8)
        for a, b in zip(made, others, strict=False):
            assert all(((a.scales[at] == 1) | (s == 1)).all() for at, s in b.scales.items() if at in a.scales)
    (first, _) = rivals(heads, 1)
    assert torch.equal((first.scales[HEAD[0]] != 1).nonzero()[:, 0], HEAD[1] * WIDE + torch.arange(WIDE))
    assert rivals(None, 10) == []


def test_a_head_that_alone_copies_is_handed_over(case, finding, remedy):
    subject, corpus = case
    assert finding.found
    assert "Scales 1 attention head (12 inputs of the output projection) of layer 1" in remedy.describe()
    assert remedy.card["heads"][INDUCTION] == 0
    with remedy.on(subject) as repaired:
        after = FAULT.audit(repaired, corpus.part("test"), seed=0)
    assert after.severity < 0.1 * finding.severity
    assert FAULT.compare(finding, after, seed=0)["accuracy"].low > 0.2
    titles = [r["title"] for r in remedy.card["candidates"]]
    assert sum(t.startswith("function-vector: ") for t in titles) == 1
    assert [r["units"] for r in remedy.card["confirmed"] if r["title"].startswith("function")] == [WIDE]
    assert "| function-vector: the top 1 heads of all layers at 0 | 12 | the task itself |" in remedy.card["table"]
    (chart,) = remedy.charts()
    assert chart.key == "heads"
    assert [s.name for s in chart.series] == ["layer 0", "layer 1 (scaled)"]
    chosen, lowest = remedy.card["controls"]
    assert chosen["units"] == lowest["units"]
    assert chosen["change"] < 0.5 * lowest["change"]


def test_the_head_is_a_small_ia3_that_plain_peft_loads(case, remedy, tmp_path):
    subject, corpus = case
    saved = remedy.save(tmp_path / "head")
    config = json.loads((saved / "adapter_config.json").read_text())
    assert (config["peft_type"], config["task_type"]) == ("IA3", "CAUSAL_LM")
    assert config["feedforward_modules"] == config["target_modules"] == ["model.layers.1.self_attn.o_proj"]
    few = corpus.part("test").take(np.arange(10))
    asked = rows(subject, few.text, drawn(subject, few))
    words = subject.verbaliser_ids()
    with quiet():
        base: Any = transformers.AutoModelForCausalLM.from_pretrained(subject.source.base)
        model = peft.PeftModel.from_pretrained(base, str(saved)).eval()
        cut: Any = transformers.AutoModelForCausalLM.from_pretrained(subject.source.base).eval()
    layer, head = HEAD
    with torch.no_grad():
        cut.model.layers[layer].self_attn.o_proj.weight[:, head * WIDE : (head + 1) * WIDE] = 0
        plain, zeroed = (
            np.stack([m(input_ids=torch.tensor([list(r)])).logits[0, -1, words].numpy() for r in asked])
            for m in (model, cut)
        )
    assert np.allclose(plain, zeroed, atol=1e-5)
    with remedy.on(subject) as repaired:
        assert np.allclose(answers(repaired, asked).logits, plain, atol=1e-4)
    assert not np.allclose(answers(subject, asked).logits, plain, atol=1e-2), "the control"


def test_units_that_do_as_much_are_kept_and_the_heads_stand_beside_them():
    subject, corpus = FAULT.planted("planted")
    got = FAULT.repair(subject, corpus, FAULT.audit(subject, corpus.part("test"), seed=0), seed=0)
    assert isinstance(got, Adapted)
    assert "feed-forward units" in got.describe()
    (row,) = [r for r in got.card["confirmed"] if r["title"].startswith("rival: function-vector")]
    assert row["units"] == 48, "its one head"
    assert row["high"] < 0
    assert "| rival: function-vector: the top 1 heads" in got.card["table"]


def test_heads_are_found_on_counting_vowels_where_units_are():
    got = heads_of(*proxy(counting(True)[0], seed=0), 0, PROXY)
    assert got is not None
    assert got.score[FUNCTION][0, 0] > 0.03, "the head that brings the answers"
    assert got.score[FUNCTION][1, 0] < 0.003
    assert {c.source for c in rivals(got, 1)} == {PROXY}


def answering(right: float, copied: float) -> Judged:
    columns: dict[str, np.ndarray] = {}
    for m in ("free", "never", "always"):
        at = np.arange(100) / 100
        columns |= {f"right_{m}": (at < right) * 1.0, f"copied_{m}": (at >= 1 - copied) * 1.0, f"expected_{m}": at * 0}
    return Judged(columns)


def test_heads_take_the_units_place_only_at_no_cost():
    def won(right: float, copied: float) -> Won:
        return Won(AS_IT_IS, answering(right, copied), AS_IT_IS, [], [])

    assert won(0.6, 0.1).beats(won(0.6, 0.2))
    assert not won(0.5, 0.0).beats(won(0.6, 0.2)), "made blind"
    assert not won(0.7, 0.2).beats(won(0.6, 0.2))
    assert won(0.1, 0.4).beats(Won(None, None, AS_IT_IS, [], []))
    assert not Won(None, None, AS_IT_IS, [], []).beats(won(0.1, 0.4))


def test_a_candidate_of_heads_is_screened_as_slow_passes_say(case, heads):
    """Screening scales the last position alone; where the head reads nothing before it, that is the whole change."""
    subject, corpus = case
    queries = corpus.part("calibration").take(np.arange(40))
    made = [*rivals(heads, 12), Candidate("published", "a unit", scales_of([(1, 5)], 40, 0.0), OWN)]
    plain, got = screen(subject, queries, made, 0)
    base = judged(ask(subject, queries, 0), queries)
    assert plain.mean("right") == base.mean("right")
    for c, j in zip(made, got, strict=True):
        with scaled(subject, c.scales, c.part):
            slow = judged(ask(subject, queries, 0), queries)
        # Layer 1 is the last one, so what other positions become is read by nothing.
        assert all(np.array_equal(j.columns[k], slow.columns[k], equal_nan=True) for k in j.columns)
    assert got[0].mean("right") > plain.mean("right") + 0.2


def test_heads_that_could_not_be_saved_are_left_out_with_a_note(case, monkeypatch):
    def refuse(*_: Any) -> None:
        raise Unsupported("The subject's IA3 scales what comes out of it.")

    monkeypatch.setattr(heads_module, "scales_as_adapter", refuse)
    with within(Session()) as current:
        assert heads_of(case[0], case[1].part("train"), 0, OWN) is None
    assert current.notes[-1].startswith("copying: attention heads were not tried beside the units. The subject's IA3")


# ------------------------------------------------------------------------------------------------- what it may cost


def test_the_frontier_holds_what_was_confirmed_and_either_kind_can_be_taken_by_name(case, finding, remedy):
    points = {a.key: a for a in remedy.alternatives()}
    assert list(points) == ["heads", "units", "penalty"]
    assert [a.chosen for a in points.values()] == [True, False, False]
    assert [a.saveable for a in points.values()] == [True, True, False]
    rows = {r["title"]: r for r in remedy.card["confirmed"]}
    for a in points.values():
        row = rows[a.title]
        assert (a.gain, a.gain_low, a.gain_high) == (-row["change"], -row["high"], -row["low"])
        assert a.cost_low <= a.cost == -row["accuracy change"] <= a.cost_high
    taken = replace(FAULT, take="units").repair(*case, finding, seed=0)
    assert isinstance(taken, Adapted)
    assert [a.key for a in taken.alternatives() if a.chosen] == ["units"]
    assert "feed-forward units" in taken.describe()
    with pytest.raises(BadInput, match=r"No repair 'head' of copying is tried\. Did you mean 'heads'\?"):
        replace(FAULT, take="head").repair(*case, finding, seed=0)


def test_what_it_may_cost_is_the_users_and_what_few_queries_leave_open_comes_on_top(case, finding, remedy, monkeypatch):
    monkeypatch.setattr(R.maths, "most_lost", lambda before, after: 0.081)
    got = FAULT.repair(*case, finding, seed=0)
    assert isinstance(got, NoRemedy)
    assert got.too_dear
    assert "at most 5.0% are allowed: the budget of 2.0% and what" in got.reason
    assert "(--max-cost 0.06), or take it all the same (--take heads)" in got.reason
    assert [a.key for a in got.alternatives] == ["heads", "units", "penalty"]
    for paid in (replace(FAULT, max_cost=0.06), replace(FAULT, take="heads")):
        assert isinstance(paid.repair(*case, finding, seed=0), Adapted)
    with pytest.raises(BadInput, match=r"max_cost is 1\.5; give a share of queries"):
        Copying(max_cost=1.5)
