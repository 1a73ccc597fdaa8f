"""The fault on planted cases: the verdict, what is chosen on what, the repair, and what is refused."""

from __future__ import annotations

import copy
import functools
import json
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch

from abilities import prefixes
from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput
from trueup.faults.adapter_remedy import Adapted
from trueup.faults.fault import Finding, NoRemedy
from trueup.faults.rigidity import Rigidity, maths, planted
from trueup.faults.rigidity.audit import WEIGHTS, _on_attention, rates, seeds_of, silent
from trueup.faults.rigidity.contest import WORTH
from trueup.measure.bootstrap import Estimate
from trueup.run.predict import Session, within
from trueup.run.train import Training, train
from trueup.store.cache import Memo
from trueup.subject.new_adapter import Lora, Prefix, PTuning, Recipe, fresh
from trueup.subject.quiet import quiet
from trueup.subject.subject import Subject
from trueup.subject.template import Shots, Template
from trueup.subject.tiny import kept_base

QUICK = Rigidity(**planted.QUICK, resamples=200)
COMPARED_WITH_NOTHING = "rigidity compared it with nothing"


@functools.cache
def case(name: planted.Case) -> tuple[Subject, Corpus, Rigidity, Finding]:
    subject, corpus = planted.planted(name)
    fault = QUICK.prepared(subject, corpus, seed=0)
    return subject, corpus, fault, fault.audit(subject, corpus.part("test"), seed=0)


@pytest.fixture(scope="module", autouse=True)
def _remembered(trainings: Memo):
    """Trainings that several tests ask for are done once."""
    with within(Session(trainings)):
        yield


def worn(recipe: Recipe, name: planted.Case = "planted") -> tuple[Subject, Corpus]:
    """The planted base with an adapter of another kind, tuned for a moment."""
    _, corpus = planted.planted(name)
    subject = fresh(str(planted._base()), recipe, corpus.classes, max_length=32, device="cpu", seed=0)
    part = corpus.part("train").take(np.arange(120))
    train(subject, part, Training(epochs=1), lr=1e-2, seed=0)
    for p in subject.model.parameters():
        p.requires_grad_(False)
    return subject, corpus


def test_weights_are_needed_where_a_prompt_cannot_look():
    _, _, fault, finding = case("planted")
    assert finding.found
    assert finding.details["verdict"] == "weights needed"
    assert "Weights are needed" in finding.sentence
    assert "needs new attention patterns" in finding.sentence
    contest = finding.details["contest"]
    weights, prompt = (seeds_of(finding.samples, contest[f"best {k}"]) for k in ("weights", "prompt"))
    assert len(weights) == len(prompt) == 3
    assert finding.severity == pytest.approx(float(weights.mean() - prompt.mean()))
    assert finding.measures["query_key_lora_gap"].low > fault.threshold
    assert finding.measures["accuracy_query_key_lora"].value > finding.measures["accuracy"].value + 0.1
    assert finding.provenance["seeds"] == 3
    assert finding.details["inside"]["layer 0: largest total variation"] < 1e-5
    assert "does what a prompt can" in finding.details["signature"]
    json.dumps(finding.as_dict(), allow_nan=False)
    assert [c.kind for c in finding.charts] == ["bar", "heat", "heat", "line"]


@pytest.mark.parametrize(
    ("gap", "apart", "needs"),
    [
        ((0.6, 0.5, 0.7), (0.3, 0.2, 0.4), True),
        ((0.6, 0.5, 0.7), (0.0, -0.01, 0.01), False),  # both kinds of LoRA learn the task
        ((0.6, 0.5, 0.7), (-0.3, -0.4, -0.2), False),
        ((0.05, 0.01, 0.09), (0.3, 0.2, 0.4), False),
        ((0.6, 0.5, 0.7), None, False),
    ],
)
def test_new_attention_patterns_are_needed_only_where_values_do_not_do_it(gap, apart, needs):
    known = Estimate(*apart, 0.95) if apart else None
    said = _on_attention(Estimate(*gap, 0.95), known, 0.03)
    assert ("so the task needs new attention patterns" in said) == needs
    assert ("not shown" in said) != needs


def test_a_prompt_suffices_where_weights_do_no_better():
    _, _, _, finding = case("healthy")
    assert finding.verdict == "clear"
    assert finding.details["verdict"] == "prompt suffices"
    assert "A prompt suffices" in finding.sentence
    sham = case("sham")[-1]
    assert not sham.found, "a coin: what differs between seeds is chance"
    assert sham.low < 0.01


@prefixes
def test_every_kind_has_one_size_and_one_effort():
    _, _, fault, _ = case("planted")
    assert fault.learnt is not None
    learnt = fault.learnt
    assert set(learnt.entrants) == {"prompt", "prefix", "query-key LoRA", "value-MLP LoRA"}
    assert {len(e.members) for e in learnt.entrants.values()} == {3}
    for e in learnt.entrants.values():
        once = {a.lr: a.nll for a in e.tried if a.epochs == QUICK.epochs}
        lrs = sorted(once)
        known = [once[lr] for lr in lrs]
        assert len(lrs) > 1, "one rate says nothing of its neighbours"
        at = int(np.argmin(known))
        inner = known[1] if at == 0 else known[-2]
        assert at not in (0, len(lrs) - 1) or inner - known[at] <= WORTH, "no best rate on an edge that still falls"
        assert max(a.epochs for a in e.tried) <= 4 * QUICK.epochs
    assert all(0.7 < e.rival.size / learnt.size < 1.5 for e in learnt.entrants.values())
    assert learnt.best(WEIGHTS) == min(WEIGHTS, key=lambda k: learnt.entrants[k].kept.nll)
    assert rates(3) == pytest.approx((1 / 3, 1, 3))
    assert rates(1) == (1.0,)


def test_nothing_is_learnt_or_chosen_on_the_test_split():
    subject, corpus, fault, finding = case("planted")
    wrong = np.where(corpus.split == "test", 1 - corpus.label, corpus.label)
    poisoned = replace(corpus, label=wrong)
    again = QUICK.prepared(subject, poisoned, seed=0)
    assert again.learnt is not None
    assert fault.learnt is not None
    for kind, entrant in fault.learnt.entrants.items():
        other = again.learnt.entrants[kind]
        for a, b in zip(entrant.members, other.members, strict=True):
            assert all(torch.equal(v, b.tensors[k]) for k, v in a.tensors.items())
    a, b = (f.repair(subject, c, finding, seed=0) for f, c in ((fault, corpus), (again, poisoned)))
    assert isinstance(a, Adapted)
    assert isinstance(b, Adapted)
    assert a.describe() == b.describe()
    # The control: labels of the half that judges do matter.
    held = replace(fault.learnt.held, label=1 - fault.learnt.held.label)
    assert isinstance(
        replace(fault, learnt=replace(fault.learnt, held=held)).repair(subject, corpus, finding, seed=0), NoRemedy
    )


def test_the_repair_is_the_smallest_that_closes_the_gap():
    subject, corpus, fault, finding = case("planted")
    remedy = fault.repair(subject, corpus, finding, seed=0)
    assert isinstance(remedy, Adapted)
    rows = remedy.card["candidates"]
    chosen = next(r for r in rows if r["chosen"])
    best = max(r["accuracy"] for r in rows)
    assert chosen["accuracy"] >= best - 0.01
    assert all(r["accuracy"] < best - 0.01 for r in rows[: rows.index(chosen)])
    assert "(chosen)" in remedy.card["table"]
    with remedy.on(subject) as repaired:
        after = fault.audit(repaired, corpus.part("test"), seed=0)
    assert after.severity < 0.5 * finding.severity
    change = fault.compare(finding, after, seed=0)
    assert change["severity"].value == pytest.approx(after.severity - finding.severity)
    assert change["severity"].high < 0
    assert change["accuracy"].low > 0.1
    assert after.details["verdict"] is None
    assert "re-aims attention" in after.details["signature"]


def test_no_repair_where_nothing_is_better():
    subject, corpus, fault, finding = case("healthy")
    answer = fault.repair(subject, corpus, finding, seed=0)
    assert isinstance(answer, NoRemedy)
    assert "so there is nothing to repair" in answer.reason
    # Were it found all the same, no weights would be better than what is there.
    as_found = replace(finding, severity=0.5, low=0.4, high=0.6)
    answer = fault.repair(subject, corpus, as_found, seed=0)
    assert isinstance(answer, NoRemedy)
    assert "not measurably better" in answer.reason
    assert len(answer.tried["candidates"]) >= 3


def test_a_prompt_that_was_only_badly_tuned_is_tuned_anew():
    """It falls short of weights, and so would not a better prompt: no rigidity, and the repair is a prompt."""
    subject, corpus = planted.planted("healthy")
    with torch.no_grad():
        subject.head_layer().weight.mul_(-1)
    fault = QUICK.prepared(subject, corpus, seed=0)
    assert fault.learnt is not None
    finding = fault.audit(subject, corpus.part("test"), seed=0)
    assert not finding.found
    assert finding.details["verdict"] == "prompt suffices"
    assert finding.measures["under_tuned"].low > 0.5
    assert finding.measures["this_prompt"].low > 0.5
    assert "It is under-tuned: the same kind and effort gains" in finding.sentence
    remedy = fault.repair(subject, corpus, finding, seed=0)
    assert isinstance(remedy, Adapted)
    assert remedy.settings["peft_type"] in ("PROMPT_TUNING", "PREFIX_TUNING")


@pytest.mark.parametrize("recipe", [Prefix(4), PTuning(8, 16)], ids=lambda r: r.name)
def test_prefixes_and_p_tuning_are_examined(recipe: Recipe):
    subject, corpus = worn(recipe)
    with within(Session()) as session:
        fault = QUICK.prepared(subject, corpus, seed=0)
    assert not [n for n in session.notes if COMPARED_WITH_NOTHING in n]
    finding = fault.audit(subject, corpus.part("test"), seed=0)
    assert finding.details["verdict"] == "weights needed"
    assert finding.details["inside"]["layer 0: largest total variation"] < 1e-5
    said = finding.details["what this prompt says"]["nearest tokens"] if isinstance(recipe, Prefix) else None
    assert said is None or "no rows to compare" in said or "prefix" in said.lower()
    assert sum(silent(subject).values()) == pytest.approx(1, abs=1e-3)


def test_an_adapter_of_weights_has_no_prompt_for_a_bottleneck():
    subject, corpus = worn(Lora(2))
    with within(Session()) as session:
        fault = QUICK.prepared(subject, corpus, seed=0)
    assert [n for n in session.notes if COMPARED_WITH_NOTHING in n]
    assert fault.learnt is not None
    assert not fault.learnt.entrants  # nothing was trained
    finding = fault.audit(subject, corpus.part("test"), seed=0)
    assert (finding.severity, finding.low, finding.high, finding.found) == (0, 0, 0, False)
    assert finding.details["verdict"] is None
    assert "adapts weights already" in finding.sentence
    assert [c.key for c in finding.charts] == ["contest", "change", "push"]
    assert isinstance(fault.repair(subject, corpus, finding, seed=0), NoRemedy)


def test_an_encoder_answers_from_its_prompt():
    from trueup.faults.confounding.planted import FREE, corpus_of, subject_for

    corpus = corpus_of(FREE, seed=2)
    subject = subject_for(corpus.part("train"))
    fault = replace(QUICK, most=200, epochs=1).prepared(subject, corpus, seed=0)
    finding = fault.audit(subject, corpus.part("test"), seed=0)
    assert finding.details["inside"]["layer 0: largest total variation"] < 1e-5
    assert "right_frozen" not in finding.samples  # a prompt that reads the text cannot be made a constant
    assert "Made a constant" not in finding.sentence
    assert "looks at the text by its own trained query" in finding.details["signature"]
    assert [c.key for c in finding.charts] == ["contest", "mass", "change"]
    json.dumps(finding.as_dict(), allow_nan=False)


def test_the_halves_of_calibration_do_not_meet():
    _, corpus, fault, _ = case("planted")
    learnt = fault.learnt
    assert learnt is not None
    chosen, held = learnt.corpus.part("calibration"), learnt.held
    assert len(chosen) + len(held) == len(corpus.part("calibration"))
    whole = sorted(zip(corpus.part("calibration").text, corpus.part("calibration").label.tolist(), strict=True))
    both = [*zip(chosen.text, chosen.label.tolist(), strict=True), *zip(held.text, held.label.tolist(), strict=True)]
    assert sorted(both) == whole


@prefixes
def test_one_kind_that_cannot_be_trained_is_left_out(monkeypatch: pytest.MonkeyPatch):
    from trueup.faults.rigidity import audit

    subject, corpus = planted.planted("planted")
    plain = audit.team

    def broken(*args, **options):
        if args[2].kind in diverging:
            raise BadInput("No learning rate tried trains it.")
        return plain(*args, **options)

    monkeypatch.setattr(audit, "team", broken)
    diverging = {"prefix"}
    fault = QUICK.prepared(subject, corpus, seed=0)
    assert fault.learnt is not None
    assert set(fault.learnt.entrants) == {"prompt", "query-key LoRA", "value-MLP LoRA"}
    assert "No learning rate" in fault.learnt.left_out["prefix"]
    diverging = set(WEIGHTS)
    with pytest.raises(BadInput, match="nothing to compare the prompt with"):
        QUICK.prepared(subject, corpus, seed=0)


def test_a_half_precision_prompt_is_not_called_wrongly_wired():
    """Deeper layers of two half-precision passes differ by rounding alone; the first one decides."""
    subject, corpus, fault, _ = case("planted")
    half = replace(subject, model=copy.deepcopy(subject.model).to(torch.bfloat16))
    finding = fault.audit(half, corpus.part("test").take(np.arange(40)), seed=0)
    assert "wiring is wrong" not in finding.details["signature"]
    told = functools.partial(
        maths.signature, residual=0.0, mass=0.5, virtual=4, tolerance=5e-3, inside=False, elsewhere=""
    )
    assert "does what a prompt can" in told(first=0.001, change=np.array([0.001, 0.02]))
    assert "wiring is wrong" in told(first=0.02, change=np.array([0.02, 0.02]))
    assert "also changes embed_tokens" in maths.signature(
        0.1, np.ones(2), 1.0, 0.0, 0, 1e-5, inside=False, elsewhere="embed_tokens"
    )


def test_an_audit_that_was_not_prepared_says_so():
    subject, corpus = planted.planted("planted")
    with pytest.raises(BadInput, match=r"prepared\(subject, corpus, seed=0\)"):
        Rigidity().audit(subject, corpus.part("test"), seed=0)


def test_too_few_examples():
    subject, corpus, fault, _ = case("planted")
    with pytest.raises(BadInput, match="at least 20"):
        fault.audit(subject, corpus.part("test").take(np.arange(19)), seed=0)
    for bad, said in (
        (corpus.part("train"), "0 calibration examples"),
        (corpus.take(~((corpus.split == "test") & (np.cumsum(corpus.split == "test") > 5))), "5 test examples"),
        (corpus.take(corpus.split != "train"), "no train"),
    ):
        with pytest.raises(BadInput, match=said):
            QUICK.prepared(subject, bad, seed=0)


def test_what_it_is_not_for():
    subject, corpus = planted.planted("planted")

    def reason(changed: Subject) -> str:
        return Rigidity().applies_to(changed, corpus) or ""

    assert reason(subject) == ""
    template = Template("{text}", ("good", "bad"))
    mamba = fresh(str(kept_base("mamba")), Lora(2), corpus.classes, template=template, device="cpu")
    assert "state-space" in reason(mamba)
    assert "no adapter" in reason(replace(subject, model=subject.base))
    assert "demonstrations" in reason(replace(subject, template=replace(template, shots=Shots(2))))
    assert "one class" in reason(replace(subject, classes=("yes",)))
    with quiet():
        net = peft.get_peft_model(
            fresh(str(planted._base()), Lora(2), corpus.classes, device="cpu").model.unload(),
            peft.IA3Config(task_type=peft.TaskType.SEQ_CLS),
        )
    scaled = replace(subject, model=net, source=replace(subject.source, peft_type="IA3"))
    assert "IA3" in reason(scaled)


@pytest.mark.parametrize(
    ("knob", "value"),
    [("tries", 0), ("tries", 2000), ("seeds", 2), ("epochs", 0), ("most", 5), ("threshold", 1.0), ("resamples", 3)],
)
def test_bad_knobs_are_named(knob: str, value: float):
    with pytest.raises(BadInput, match=rf"rigidity\.{knob}"):
        Rigidity(**{knob: value})  # type: ignore[arg-type]


def test_what_was_learnt_is_no_knob():
    assert set(Rigidity.knobs()) == {"threshold", "epochs", "tries", "seeds", "most", "resamples"}
