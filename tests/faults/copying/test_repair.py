"""The repair: which units are found, what it may cost, when it is refused, and that it is a plain adapter."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from trueup import story
from trueup.corpus.prompt import MODES
from trueup.errors import BadInput, Unsupported
from trueup.faults.adapter_remedy import Adapted
from trueup.faults.copying import Copying, maths
from trueup.faults.copying import contest as contests
from trueup.faults.copying import repair as R
from trueup.faults.copying.attribution import COMPLETE, EXPLAINED, OWN, PROXY, Attributed, attributed
from trueup.faults.copying.candidates import Candidate, candidates, random_like, scales_of, unit_map
from trueup.faults.copying.contest import GUARDED, Check, parted
from trueup.faults.copying.judging import Judged, ask, judged
from trueup.faults.copying.penalty import PENALTIES, penalty_for, with_penalty
from trueup.faults.copying.planted import LAYER, UNITS
from trueup.faults.copying.proxy import proxy
from trueup.faults.fault import NoRemedy
from trueup.run.answers import answers
from trueup.run.edit import scaled
from trueup.run.predict import Session, within
from trueup.run.prompts import drawn, rows, with_pool
from trueup.subject import adapter as files
from trueup.subject.beside import CARD
from trueup.subject.load import load
from trueup.subject.new_adapter import Lora, Prompt, fresh
from trueup.subject.quiet import quiet
from trueup.subject.subject import Subject
from trueup.subject.template import Template
from trueup.subject.units import width_of

from .cases import PLANTED, counting, said_by_the_card, scales, unit_of

FAULT = Copying(resamples=60)


@pytest.fixture(scope="module")
def case():
    return FAULT.planted("planted")


@pytest.fixture(scope="module")
def finding(case):
    return FAULT.audit(case[0], case[1].part("test"), seed=0)


@pytest.fixture(scope="module")
def found(case):
    return attributed(case[0], case[1].part("train"), 0, OWN)


@pytest.fixture(scope="module")
def remedy(case, finding):
    got = FAULT.repair(*case, finding, seed=0)
    assert isinstance(got, Adapted)
    return got


@pytest.fixture(scope="module")
def saved(remedy, tmp_path_factory):
    return remedy.save(tmp_path_factory.mktemp("remedy") / "copying")


def worn(case, recipe: Any) -> Subject:
    """The planted base under a fresh adapter, asked with the same demonstrations."""
    subject, corpus = case
    words = Template("{text} {label}", tuple(corpus.classes))
    got = fresh(subject.source.base, recipe, corpus.classes, template=words, max_length=200, device="cpu")
    return with_pool(replace(got, template=subject.template), corpus.part("train"))


# ------------------------------------------------------------------------------------------------- which units


def test_the_planted_units_are_ranked_first(found):
    best = np.argsort(-found.contrasted, axis=None)[: len(UNITS)]
    assert {(int(a), int(b)) for a, b in zip(*np.unravel_index(best, found.contrasted.shape), strict=True)} == PLANTED
    assert set(np.argsort(-found.published[LAYER])[: len(UNITS)].tolist()) == set(UNITS)
    rest = np.delete(found.contrasted.ravel(), best)
    assert found.contrasted.ravel()[best].min() > 100 * rest.max(), "by far"
    assert rest.min() < -0.1, "the control: units that know the answer are pushed to the end"


def test_attributions_are_complete_and_of_what_they_say(case, found):
    assert np.max(found.gap) <= COMPLETE
    assert len(found.rows) == len(found.gold) == len(found.shown) == len(found.wrong) == EXPLAINED
    assert not found.shown[np.arange(len(found.gold)), found.gold].any()
    assert ((found.published >= 0) & (found.published <= 1)).all()
    # In the healthy model, whose layers are as wide, no unit stands out.
    subject, corpus = FAULT.planted("healthy")
    healthy = attributed(subject, corpus.part("train"), 0, OWN)
    assert healthy.contrasted.max() < 0.2 * found.contrasted.max()


def test_without_the_planted_units_nothing_is_copied_and_without_others_all_is(case, finding):
    subject, corpus = case
    test = corpus.part("test")
    with scaled(subject, scales(subject, sorted(PLANTED))):
        assert FAULT.audit(subject, test, seed=0).severity == 0
    rng = np.random.default_rng(0)
    every = [(layer, u) for layer in range(2) for u in range(width_of(subject, layer)) if (layer, u) not in PLANTED]
    for _ in range(3):
        some = [every[i] for i in rng.choice(len(every), len(PLANTED), replace=False)]
        with scaled(subject, scales(subject, some)):
            assert FAULT.audit(subject, test, seed=0).severity > 0.7 * finding.severity


def test_every_choice_of_the_published_grid_is_tried_halved_as_well(found):
    made = candidates(found)
    pairs = list(itertools.pairwise(made))
    grid = [(a, b) for a, b in pairs if a.family == "published"]
    assert grid
    for whole, half in grid:
        assert half.family == "softened"
        assert half.scales.keys() == whole.scales.keys()
        for at, scale in whole.scales.items():
            assert set(scale.tolist()) == {0.0, 1.0}
            assert torch.equal(half.scales[at], (1 + scale) / 2)


# ------------------------------------------------------------------------------------------------- the proxy


@pytest.fixture(scope="module")
def carried():
    return counting(True)


def best_units(found: Attributed, count: int = len(UNITS)) -> set[int]:
    return set(np.argsort(-found.published[LAYER])[:count].tolist())


def test_units_found_on_counting_vowels_are_those_of_the_task_where_both_share_them(carried):
    here, there = (attributed(*proxy(case[0], seed=0), 0, PROXY) for case in (carried, counting(False)))
    five = {unit_of(i) for i in range(5)}
    assert best_units(here, 5) == five
    assert set(UNITS) < five
    # The control: where numbers are copied by units of their own, the proxy finds these first.
    assert best_units(there, 4) < {unit_of(i) for i in range(4, 9)}
    assert not here.shown[np.arange(len(here.gold)), here.gold].any()


@pytest.mark.parametrize("share", [True, False])
def test_the_published_protocol_repairs_what_the_proxy_shares(share: bool, monkeypatch):
    # By units alone: whatever is copied comes through the one head of a layer, which scaling blinds.
    monkeypatch.setattr(R, "heads_of", lambda *_: None)
    subject, corpus = counting(share)
    fault = Copying(resamples=60, units_from="proxy")
    before = fault.audit(subject, corpus.part("test"), seed=0)
    assert before.found
    got = fault.repair(subject, corpus, before, seed=0)
    after = before
    if isinstance(got, Adapted):
        assert {r["units from"] for r in got.card["candidates"]} == {"", PROXY}
        assert got.card["units from"] == PROXY
        assert "units found on counting vowels" in got.describe()
        with got.on(subject) as repaired:
            after = fault.audit(repaired, corpus.part("test"), seed=0)
    if share:
        assert after.severity < 0.2 * before.severity
    else:
        assert after.severity > 0.5 * before.severity, "the control: other units, and little is carried over"


def test_every_row_says_where_its_units_come_from(carried):
    subject, corpus = carried
    got = FAULT.repair(subject, corpus, FAULT.audit(subject, corpus.part("test"), seed=0), seed=0)
    assert isinstance(got, Adapted)
    rows = got.card["candidates"]
    assert {r["units from"] for r in rows[1:]} == {OWN, PROXY}, "the published choice of either is judged"
    assert got.card["units from"] in got.describe()
    assert "| inputs scaled | found on |" in got.card["table"]
    assert got.card["prompts explained"] == 2 * EXPLAINED


def test_a_tokenizer_without_numbers_looks_on_the_task_alone_and_says_so(case, finding):
    with within(Session()) as current:
        got = FAULT.repair(*case, finding, seed=0)
    assert isinstance(got, Adapted)
    assert {r["units from"] for r in got.card["candidates"][1:]} == {OWN}
    assert any("not on a proxy as published. The model cannot be asked to count vowels" in n for n in current.notes)
    with pytest.raises(Unsupported, match="The model cannot be asked to count vowels"):
        Copying(resamples=60, units_from="proxy").repair(*case, finding, seed=0)
    with within(Session()) as current:
        Copying(resamples=60, units_from="task").repair(*case, finding, seed=0)
    assert not any("proxy" in n for n in current.notes)
    with pytest.raises(BadInput, match=r"copying\.units_from is 'proxi'\. Did you mean 'proxy'\?"):
        Copying(units_from="proxi")


@pytest.mark.parametrize(
    "protocol",
    [
        maths.Protocol(target=maths.copied),
        maths.Protocol(baseline=maths.at_mean),
        maths.Protocol(normalise=maths.over_model),
    ],
)
def test_what_the_paper_leaves_open_can_be_chosen(case, found, protocol):
    other = attributed(case[0], case[1].part("train"), 0, OWN, protocol)
    assert not np.allclose(other.published, found.published)
    assert best_units(other) == set(UNITS), "here all readings find the planted units"
    assert np.max(other.gap) <= COMPLETE


# ------------------------------------------------------------------------------------------------- what it costs


def test_it_stops_the_copying_and_costs_no_accuracy(case, finding, remedy):
    subject, corpus = case
    with remedy.on(subject) as repaired:
        after = FAULT.audit(repaired, corpus.part("test"), seed=0)
    change = FAULT.compare(finding, after, seed=0)
    assert change["severity"].high < 0
    assert after.severity < 0.1 * finding.severity
    assert all(change[f"accuracy{'' if m == 'free' else '_' + m}"].value >= 0 for m in MODES)
    assert change["accuracy"].value > 0.2


def test_a_repair_never_looks_at_test(case, finding, remedy):
    subject, corpus = case
    test = corpus.split == "test"
    spoilt = replace(
        corpus,
        text=["film" if t else x for x, t in zip(corpus.text, test, strict=True)],
        label=np.where(test, (corpus.label + 1) % 4, corpus.label),
    )
    again = FAULT.repair(subject, spoilt, finding, seed=0)
    assert isinstance(again, Adapted)
    assert again.card == remedy.card
    assert all(torch.equal(again.tensors[k], remedy.tensors[k]) for k in remedy.tensors)


@pytest.mark.parametrize("name", ["healthy", "sham"])
def test_where_nothing_is_copied_there_is_no_remedy(name):
    subject, corpus = FAULT.planted(name)
    got = FAULT.repair(subject, corpus, FAULT.audit(subject, corpus.part("test"), seed=0), seed=0)
    assert isinstance(got, NoRemedy)
    assert "so there is nothing to repair" in got.reason
    if (
        name == "sham"
    ):  # its wrong answers come from units as well, so that scaling them does help, against another fault
        return
    # And were it tried all the same, no way to scale units would help.
    found = attributed(subject, corpus.part("train"), 0, OWN)
    got = R.choose(subject, corpus.part("calibration"), [found], seed=0, resamples=60)
    assert isinstance(got, NoRemedy)
    assert got.reason.startswith(f"Of {got.tried['screened']} ways to scale units")
    assert len(got.tried["candidates"]) > 2


def test_a_random_rival_that_does_as_much_refuses_it(case, finding, monkeypatch):
    monkeypatch.setattr(R, "random_like", lambda made, seed: made)
    got = FAULT.repair(*case, finding, seed=0)
    assert isinstance(got, NoRemedy)
    assert "but not measurably more than the best of as many random candidates does" in got.reason
    assert "controls" in got.tried


def test_the_rival_is_the_best_of_as_many_of_the_same_layers_and_sizes(case, found, remedy):
    made = candidates(found)
    rivals = random_like(made, 0)
    assert len(rivals) == len(made) == remedy.card["screened"]
    for a, b in zip(made, rivals, strict=True):
        assert (a.family, a.units) == (b.family, b.units)
        for at, scale in a.scales.items():
            assert sorted(scale.tolist()) == pytest.approx(sorted(b.scales[at].tolist()))
    assert any(
        not torch.equal(a.scales[at], b.scales[at]) for a, b in zip(made, rivals, strict=True) for at in a.scales
    )
    assert len({r["units"] for r in remedy.card["controls"]}) == 1


def test_what_screens_what_judges_and_what_confirms_share_no_query(case):
    queries = case[1].part("calibration")
    first, second, third = parted(queries, 0)
    of = [set(c.cluster.tolist()) for c in (first, second, third)]
    assert not of[0] & of[1]
    assert not of[0] & of[2]
    assert not of[1] & of[2]
    assert len(third) >= GUARDED
    twice = queries.take(np.repeat(np.arange(len(queries)), 2))
    of = [set(c.cluster.tolist()) for c in parted(twice, 0)]
    assert not of[0] & of[2], "a text that stands twice is on one side"


def judged_as(**share: float) -> Judged:
    """100 queries, of which in each mode so many are right, and the rest copies."""
    columns = {}
    for m in MODES:
        right = np.arange(100) < round(100 * share[m])
        columns |= {f"right_{m}": right * 1.0, f"copied_{m}": ~right * 1.0, f"expected_{m}": np.zeros(100)}
    return Judged(columns)


def test_no_worse_asks_the_free_draw_and_the_mixture():
    base = judged_as(free=0.5, never=0.2, always=0.8)
    assert judged_as(free=0.5, never=0.2, always=0.8).no_worse(base)
    assert judged_as(free=0.5, never=0.5, always=0.6).no_worse(base)
    assert not judged_as(free=0.49, never=0.9, always=0.9).no_worse(base), "the published trap"
    assert not judged_as(free=0.6, never=0.3, always=0.5).no_worse(base)


def test_what_loses_accuracy_is_never_kept(case, found):
    """Candidates that stop copying by breaking the model: none is kept, and the planted units beside them are."""
    subject, corpus = case
    queries = corpus.part("calibration")
    width = found.active.shape[1]
    knowing = [(LAYER, u) for u in range(width)]
    broken = replace(found, wrong=np.zeros_like(found.wrong), right=np.zeros_like(found.right))
    mute = Candidate("published", "every unit of the layer", scales_of(knowing, width, 0.0), OWN)
    good = Candidate("contrasted", "the planted units", scales_of(sorted(PLANTED), width, 0.0), OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contests, "candidates", lambda _: [mute])
        got = R.choose(subject, queries, [broken], seed=0, resamples=60)
        assert isinstance(got, NoRemedy)
        row = got.tried["candidates"][1]
        assert row["high"] < 0, "it would have stopped the copying"
        assert row["accuracy change"] < 0
        patch.setattr(contests, "candidates", lambda _: [mute, good])
        got = R.choose(subject, queries, [broken], seed=0, resamples=60)
        assert isinstance(got, Adapted)
        assert "the planted units" in got.describe()


def test_of_candidates_that_help_one_that_spares_other_tasks_is_taken(case, found, monkeypatch):
    """Though the other comes nearer to chance; and where none spares them, the nearest is put to the test and priced."""
    subject, corpus = case
    queries, width = corpus.part("calibration"), found.active.shape[1]
    nearest = Candidate("contrasted", "all of them", scales_of(sorted(PLANTED), width, 0.0), OWN)
    gentler = Candidate("contrasted", "the same, quartered", scales_of(sorted(PLANTED), width, 0.25), OWN)
    monkeypatch.setattr(contests, "candidates", lambda _: [nearest, gentler])

    def chosen(spares: Callable[[], bool]) -> str:
        monkeypatch.setattr(Check, "passed", lambda self: spares() if self.allowed else True)
        got = R.choose(subject, queries, [found], seed=0, resamples=60)
        rows = got.card["candidates"] if isinstance(got, Adapted) else got.tried["candidates"]
        told = {r["title"]: (abs(r["severity"]), r["spares other tasks"]) for r in rows[1:]}
        assert told["all of them"][0] < told["the same, quartered"][0], "the control: it does come nearer"
        return got.describe() if isinstance(got, Adapted) else got.reason

    assert "all of them" in chosen(lambda: True)
    assert "all of them" in chosen(lambda: False)
    live: list[float] = []

    @contextlib.contextmanager
    def recorded(subject, scales, part="down"):
        live.append(min(float(s.min()) for s in scales.values()))
        with scaled(subject, scales, part):
            yield subject

    monkeypatch.setattr(contests, "scaled", recorded)
    assert "quartered" in chosen(lambda: live[-1] == 0.25)


def test_the_penalty_is_chosen_on_other_queries_than_it_is_judged_on(case, remedy):
    subject, corpus = case
    _, second, third = parted(corpus.part("calibration"), 0)
    told = ask(subject, second, 0)
    nats, base = penalty_for(told, second), judged(told, second)
    able = {n: with_penalty(told, second, n) for n in PENALTIES}
    able = {n: j for n, j in able.items() if j.no_worse(base)}
    assert nats > 0, "the control: a penalty helps here"
    assert abs(able[nats].excess) == min(abs(j.excess) for j in able.values()) < abs(base.excess)
    row = next(r for r in remedy.card["confirmed"] if "penalty" in r["title"])
    assert row["title"] == f"rival: a penalty on shown answers' logits, {nats:g} nats"
    there = with_penalty(ask(subject, third, 0), third, nats)
    assert row["severity"] == pytest.approx(there.excess)
    assert with_penalty(told, second, 0.0).excess == pytest.approx(base.excess)


def test_too_few_calibration_queries_is_a_sentence(case, finding):
    subject, corpus = case
    few = corpus.take(np.flatnonzero((corpus.split != "calibration") | (np.arange(len(corpus)) < 240 + 9)))
    with pytest.raises(
        BadInput, match="has 9 calibration queries of different texts, and a repair of copying needs 200"
    ):
        FAULT.repair(subject, few, finding, seed=0)


# ------------------------------------------------------------------------------------------------- the adapter


def test_it_is_a_small_ia3_that_plain_peft_loads(case, remedy, saved):
    subject, corpus = case
    config = json.loads((saved / "adapter_config.json").read_text())
    assert (config["peft_type"], config["task_type"]) == ("IA3", "CAUSAL_LM")
    assert (saved / "adapter_model.safetensors").stat().st_size < 4096
    (key,) = remedy.tensors
    assert {(LAYER, int(u)) for u in (remedy.tensors[key].flatten() != 1).nonzero()} == PLANTED
    with quiet():
        base = transformers.AutoModelForCausalLM.from_pretrained(subject.source.base)
        model = peft.PeftModel.from_pretrained(base, str(saved)).eval()
    few = corpus.part("test").take(np.arange(10))
    asked = rows(subject, few.text, drawn(subject, few))
    with remedy.on(subject) as repaired:
        ours = answers(repaired, asked)
    words = subject.verbaliser_ids()
    with torch.no_grad():
        plain = np.stack([model(input_ids=torch.tensor([list(r)])).logits[0, -1, words].numpy() for r in asked])
    assert np.allclose(plain, ours.logits, atol=1e-4)
    assert not np.allclose(answers(subject, asked).logits, ours.logits, atol=1e-2), "the control"


def code_of(card: str) -> str:
    found = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert found is not None
    return found.group(1)


def test_the_lines_of_the_card_answer_as_trueup_does(case, remedy, saved):
    subject, corpus = case
    few = corpus.part("test").take(np.arange(12))
    d = drawn(subject, few)
    with remedy.on(subject) as repaired:
        ours = answers(repaired, rows(subject, few.text, d)).answer
    card = (saved / "README.md").read_text()
    assert "trueup cuts" not in card
    for query, index, answer in zip(few.text, d.index, ours, strict=True):
        assert said_by_the_card(code_of(card), subject, saved, query, index).split()[0] == corpus.classes[answer]
    assert len(set(ours.tolist())) > 1


def test_the_card_keeps_no_pair_of_the_users(case, saved):
    texts = "".join(p.read_text() for p in saved.iterdir() if p.suffix in (".json", ".md"))
    assert not any(t in texts for t, _ in case[0].shots.pool)
    assert json.loads((saved / CARD).read_text())["template"]["shots"] == {"number": 4}


def test_a_saved_remedy_is_asked_with_demonstrations_by_itself(case, remedy, saved):
    subject, corpus = case
    again = load(subject.source.base, adapter=str(saved), device="cpu")
    assert again.shots is not None
    assert (again.shots.number, again.template.text) == (4, subject.template.text)
    again, test = with_pool(again, corpus.part("train")), corpus.part("test")
    with remedy.on(subject) as repaired:
        a, b = (FAULT.audit(s, test, seed=0) for s in (repaired, again))
    assert np.array_equal(a.samples["answer_free"], b.samples["answer_free"])
    assert load(subject.source.base, adapter=str(saved), shots=2, device="cpu").shots.number == 2
    # And it goes on from there: nothing is copied any more, so there is nothing to repair.
    assert isinstance(FAULT.repair(again, corpus, b, seed=0), NoRemedy)


def test_a_lora_gets_one_lora_with_both(case):
    subject, corpus = worn(case, Lora(2)), case[1]
    with torch.no_grad():
        for name, p in subject.model.named_parameters():
            if "lora" in name:
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))) * 0.01)
    before = FAULT.audit(subject, corpus.part("test"), seed=0)
    assert before.found, "the control: it copies with its LoRA on"
    got = FAULT.repair(subject, corpus, before, seed=0)
    assert isinstance(got, Adapted)
    assert got.settings["peft_type"] in ("LORA", peft.PeftType.LORA)
    own = files.adapter_of(subject)[1]
    assert set(own) <= set(got.tensors)
    with got.on(subject) as repaired:
        after = FAULT.audit(repaired, corpus.part("test"), seed=0)
    assert after.severity < 0.2 * before.severity


def test_a_soft_prompt_gets_a_sentence(case, monkeypatch):
    subject, corpus = worn(case, Prompt(2)), case[1]
    report = story.check(subject, corpus, [FAULT], seed=0)
    (c,) = report.comparisons
    assert c.after is None
    assert c.remedy.startswith("PEFT keeps a prompt " if c.before.found else "Wrong copies above chance, ")
    assert c.remedy.endswith(".")
    if c.before.found:
        assert "give the base without its prompt, or a LoRA" in c.remedy


def test_the_map_shows_the_strongest_unit_of_each_bin():
    score = np.zeros((3, 130))
    score[1, 77], score[2, 5], score[2, 4] = 0.4, -0.3, 0.2
    chart = unit_map(score, {1: torch.ones(130)})
    assert chart.kind == "heat"
    assert [s.name for s in chart.series] == ["layer 0", "layer 1 (scaled)", "layer 2"]
    assert len(chart.series[0].x) == len(chart.series[0].y) == 64
    assert max(chart.series[1].y) == 0.4
    at = chart.series[1].y.index(0.4)
    assert chart.series[1].x[at] <= 77 < chart.series[1].x[at + 1]
    assert min(chart.series[2].y) == -0.3  # the farthest from 0 of its bin, not the largest
    assert set(chart.series[0].y) == {0.0}


def test_the_repair_brings_its_map(remedy):
    (chart,) = remedy.charts()
    assert chart.key == "units"
    assert any("(scaled)" in s.name for s in chart.series)
