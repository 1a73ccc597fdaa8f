"""The laws of `trueup.faults.fault`, as functions of a fault. Each returns in silence or raises AssertionError."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binom

from trueup.corpus.corpus import Corpus
from trueup.errors import Unsupported
from trueup.experiments.verdicts import worlds
from trueup.faults.fault import Fault, Finding, Remedy
from trueup.measure.worlds import Rates, rates
from trueup.run import forward
from trueup.run import predict as predicting
from trueup.run.predict import Session, predict, within
from trueup.store import atomic
from trueup.store.cache import Memo
from trueup.subject.subject import Subject

from . import respelt

LAWS: list[Callable[[Fault], None]] = []


def law(f: Callable[[Fault], None]) -> Callable[[Fault], None]:
    LAWS.append(f)
    return f


@functools.cache
def prepared(fault: Fault, case: str) -> Fault:
    """The fault with what it compares with on this case, learnt once for all laws, or taken from `trainings` (conftest.py)."""
    subject, corpus = fault.planted(case)  # type: ignore[arg-type]
    with within(Session(trainings)):
        return fault.prepared(subject, corpus, seed=0)


trainings: Memo | None = None


@functools.cache
def _severity(fault: Fault, case: str) -> Finding:
    subject, corpus = fault.planted(case)  # type: ignore[arg-type]
    return prepared(fault, case).audit(subject, corpus.part("test"), seed=0)


@functools.cache
def _remedy(fault: Fault):
    subject, corpus = fault.planted("planted")
    finding = fault.audit(subject, corpus.part("test"), seed=0)
    remedy = fault.repair(subject, corpus, finding, seed=0)
    assert isinstance(remedy, Remedy), f"no remedy on the planted case: {remedy}"
    return subject, corpus, finding, remedy


def _same(a: Finding, b: Finding) -> bool:
    plain = json.dumps(a.as_dict(), sort_keys=True, default=str) == json.dumps(b.as_dict(), sort_keys=True, default=str)
    alike = (np.array_equal(v, b.samples[k], equal_nan=v.dtype.kind == "f") for k, v in a.samples.items())
    return plain and all(alike)


@law
def same_seed_same_finding(fault: Fault) -> None:
    fault = prepared(fault, "planted")
    subject, corpus = fault.planted("planted")
    test = corpus.part("test")
    assert _same(fault.audit(subject, test, seed=3), fault.audit(subject, test, seed=3))


@law
def threads_and_batches_change_a_finding_by_rounding_alone(fault: Fault) -> None:
    """Severity and interval by at most 1e-3, in the fault's unit, with two threads and in batches of an eighth."""
    fault = prepared(fault, "planted")
    subject, corpus = fault.planted("planted")
    test, threads = corpus.part("test"), torch.get_num_threads()
    plain = fault.audit(subject, test, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predicting, "TOKENS", predicting.TOKENS // 8)
        torch.set_num_threads(2)
        try:
            other = fault.audit(subject, test, seed=0)
        finally:
            torch.set_num_threads(threads)
    assert other.verdict == plain.verdict
    np.testing.assert_allclose(
        [other.severity, other.low, other.high], [plain.severity, plain.low, plain.high], rtol=0, atol=1e-3
    )


@law
def an_audit_leaves_the_subject_untouched(fault: Fault) -> None:
    fault = prepared(fault, "planted")
    subject, corpus = fault.planted("planted")
    next(iter(subject.model.children())).train()  # a state of its own, not only the usual one
    before = subject.fingerprint
    fault.audit(subject, corpus.part("test"), seed=0)
    assert subject.fingerprint == before


@law
def what_is_prepared_leaves_the_subject_untouched_and_never_reads_test(fault: Fault) -> None:
    subject, corpus = fault.planted("planted")
    before = subject.fingerprint
    turned = np.where(corpus.split == "test", (corpus.label + 1) % len(corpus.classes), corpus.label)
    poisoned = fault.prepared(subject, replace(corpus, label=turned), seed=0)
    assert subject.fingerprint == before
    test = corpus.part("test")
    assert _same(prepared(fault, "planted").audit(subject, test, seed=0), poisoned.audit(subject, test, seed=0))


@law
def planted_scores_above_healthy_and_sham(fault: Fault) -> None:
    found = {case: _severity(fault, case) for case in ("planted", "healthy", "sham")}
    assert found["planted"].low > found["healthy"].high
    assert found["planted"].low > found["sham"].high
    assert [found[c].found for c in ("planted", "healthy", "sham")] == [True, False, False]


@law
def a_remedy_comes_off_bit_for_bit(fault: Fault) -> None:
    fault = prepared(fault, "planted")
    subject, _, _, remedy = _remedy(fault)
    before = subject.fingerprint
    with remedy.on(subject):
        pass
    assert subject.fingerprint == before


@law
def a_remedy_comes_off_after_an_exception(fault: Fault) -> None:
    fault = prepared(fault, "planted")
    subject, _, _, remedy = _remedy(fault)
    before = subject.fingerprint
    try:
        with remedy.on(subject):
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert subject.fingerprint == before


@law
def a_remedy_lowers_severity_on_held_out_data(fault: Fault) -> None:
    fault = prepared(fault, "planted")
    subject, corpus, before, remedy = _remedy(fault)
    with remedy.on(subject) as repaired:
        after = fault.audit(repaired, corpus.part("test"), seed=0)
    change = fault.compare(before, after, seed=0)["severity"]
    assert change.high < 0, change
    assert np.isclose(change.value, after.severity - before.severity)


@law
def a_null_remedy_changes_nothing(fault: Fault) -> None:
    subject, corpus = fault.planted("planted")
    test = corpus.part("test")
    before = predict(subject, test)
    with fault.null(subject).on(subject) as same:
        after = predict(same, test)
    assert np.array_equal(before.predicted, after.predicted)
    assert np.allclose(before.confidence, after.confidence, atol=1e-9)


@law
def a_finding_survives_json(fault: Fault) -> None:
    fault = prepared(fault, "planted")
    subject, corpus = fault.planted("planted")
    finding = fault.audit(subject, corpus.part("test"), seed=0)
    back = Finding.from_dict(json.loads(json.dumps(finding.as_dict())), finding.samples)
    assert _same(finding, back)


@law
def a_remedy_survives_save_and_read(fault: Fault) -> None:
    fault = prepared(fault, "planted")
    subject, corpus, _, remedy = _remedy(fault)
    test = corpus.part("test")
    with tempfile.TemporaryDirectory() as folder:
        back = fault.read(remedy.save(Path(folder) / "remedy"), subject)
        atomic.verify(Path(folder) / "remedy")
    with remedy.on(subject) as a, back.on(subject) as b:
        x, y = predict(a, test), predict(b, test)
    assert back.describe() == remedy.describe()
    assert repr(remedy) == f"{type(remedy).__name__}: {remedy.describe()}", "no tensors in a notebook"
    assert np.array_equal(x.logits, y.logits)
    assert np.array_equal(x.confidence, y.confidence)


@law
def the_saved_remedy_is_a_plain_peft_adapter(fault: Fault) -> None:
    fault = prepared(fault, "planted")
    import peft
    import transformers

    subject, corpus, _, remedy = _remedy(fault)
    few = corpus.part("test").take(np.arange(40))
    with tempfile.TemporaryDirectory() as folder:
        saved = remedy.save(Path(folder) / "remedy")
        with remedy.on(subject) as repaired:
            ours = predict(repaired, few).logits
        saved_for = json.loads((saved / "adapter_config.json").read_text())["task_type"]
        if saved_for == "CAUSAL_LM":
            base = transformers.AutoModelForCausalLM.from_pretrained(subject.source.base)
        else:
            base = transformers.AutoModelForSequenceClassification.from_pretrained(
                subject.source.base, num_labels=ours.shape[1], ignore_mismatched_sizes=True
            )
        model = peft.PeftModel.from_pretrained(base, str(saved)).eval()
    ids = forward.tokenize(subject, few)
    words = subject.verbaliser_ids() if saved_for == "CAUSAL_LM" else None
    with torch.no_grad():
        each = [model(input_ids=torch.tensor([row])).logits.numpy() for row in ids]
    plain = np.concatenate([z if words is None else z[:, -1, words] for z in each])
    assert np.abs(plain - ours).max() <= 1e-5 * max(1.0, np.abs(ours).max())


@law
def an_unknown_architecture_is_discovered_or_refused_by_name(fault: Fault) -> None:
    from transformers import OlmoConfig, PerceiverConfig

    from trueup.subject.discover import anatomy_of

    with pytest.raises(Unsupported, match="'perceiver' has no linear last layer"):
        anatomy_of(PerceiverConfig(), words=False)
    assert anatomy_of(OlmoConfig(num_hidden_layers=2), words=True).down == "mlp.down_proj", (
        "the control: one that is discovered"
    )
    # And the fault itself must be able to say no: a subject with one class has nothing to be wrong about.
    subject, corpus = fault.planted("healthy")
    assert fault.applies_to(replace(subject, classes=subject.classes[:1]), corpus) is not None


TOGETHER = {"judges", "probed"}
"""Samples that are of all examined examples together: which of them judge, and what a probe that the others taught says."""


@law
def an_example_does_not_depend_on_its_neighbours(fault: Fault) -> None:
    fault = prepared(fault, "planted")
    subject, corpus = fault.planted("planted")
    test = corpus.part("test")
    whole = fault.audit(subject, test, seed=0)
    half = np.arange(len(test)) % 2 == 0
    part = fault.audit(subject, test.take(half), seed=0)
    for k in part.samples.keys() - TOGETHER:
        v = part.samples[k]
        assert np.allclose(np.asarray(whole.samples[k])[half].astype(float), v.astype(float), atol=1e-5), k


# ------------------------------------------------------------------------------------------- however the question is asked


def _unmoved(
    fault: Fault, subject: Subject, corpus: Corpus, *, reverse: bool = False, ends: float | None = None
) -> None:
    """What an audit says of the planted case, it says of this one too: the same word and, but for rounding, the same numbers."""
    was = _severity(fault, "planted")
    ready = respelt.learnt(fault, prepared(fault, "planted"), subject, corpus, reverse=reverse)
    now = ready.audit(subject, corpus.part("test"), seed=0)
    assert now.verdict == was.verdict
    assert now.measures.keys() == was.measures.keys()
    said = [{"severity": (f.severity, f.low, f.high)} for f in (was, now)]
    for numbers, f in zip(said, (was, now), strict=True):
        numbers |= {k: (m.value, m.low, m.high) for k, m in f.measures.items()}
    for key, numbers in said[0].items():
        apart = np.abs(np.subtract(numbers, said[1][key])) / np.array([ROUNDING, ends or ROUNDING, ends or ROUNDING])
        assert not apart.max() > numbers[2] - numbers[1], (key, numbers, said[1][key])


ROUNDING = 1e-6
"""Of an interval's width."""


@law
def names_of_classes_have_no_say(fault: Fault) -> None:
    _unmoved(fault, *respelt.with_names(*fault.planted("planted")))


@law
def the_order_of_classes_has_no_say(fault: Fault) -> None:
    _unmoved(fault, *respelt.in_reverse(*fault.planted("planted")), reverse=True)


@law
def names_of_groups_have_no_say(fault: Fault) -> None:
    subject, corpus = fault.planted("planted")
    _unmoved(fault, subject, respelt.regrouped(corpus))


@law
def the_order_of_rows_has_no_say(fault: Fault) -> None:
    subject, corpus = fault.planted("planted")
    order = np.random.default_rng(1).permutation(len(corpus))
    _unmoved(fault, subject, corpus.take(order))


@law
def a_constant_on_all_logits_has_no_say(fault: Fault) -> None:
    subject, corpus = fault.planted("planted")
    # In float32 a constant costs logits their last bits, so that near ties change places in some resample.
    _unmoved(fault, respelt.with_constant(subject), corpus, ends=1e-2)


@law
def rows_that_are_repeated_say_nothing_new(fault: Fault) -> None:
    was = _severity(fault, "planted")
    subject, corpus = fault.planted("planted")
    twice = corpus.take(np.repeat(np.arange(len(corpus)), 2))
    ready = respelt.learnt(fault, prepared(fault, "planted"), subject, twice)
    now = ready.audit(subject, twice.part("test"), seed=0)
    assert now.verdict == was.verdict
    assert abs(now.severity - was.severity) <= 1e-3 * (was.high - was.low), (was.severity, now.severity)
    assert now.high - now.low >= 0.9 * (was.high - was.low), (was.low, was.high, now.low, now.high)


# ------------------------------------------------------------------------------------------ nothing is found where nothing is

DRAWS = {60: (2, 1), 200: (1, 1), 1000: (1, 4), 4000: (1, 8)}
"""By the number of independent clusters: how many data sets are drawn of each world without the fault that is looked at, and
at which stride through these worlds."""


@law
def nothing_is_found_where_nothing_is(fault: Fault) -> None:
    """A Bayes-optimal, unconfounded, non-copying model is never found, at any n; and the same eyes see a fault."""
    subject, corpus = fault.planted("healthy")
    test = corpus.part("test")
    few_rows = prepared(fault, "healthy").audit(subject, test.take(np.arange(0, len(test), 4)), seed=0)
    assert [few_rows.found, _severity(fault, "healthy").found] == [False, False]
    assert _severity(fault, "planted").found, "the control"
    own = [w for w in worlds() if w.fault == fault.name]
    innocent, guilty = ([w for w in own if w.kind == kind] for kind in ("null", "fault"))
    few, many = Rates(), Rates()
    for n, (runs, step) in DRAWS.items():
        for world in innocent[::step]:
            got = rates(world, n, runs, 3)
            few, many = (few + got, many) if n < 1000 else (few, many + got)
    assert few.words["found"] <= binom.ppf(0.995, few.runs, 0.01), "an interval holds the truth in 95%, and not in all"
    assert not many.words["found"], "with 1,000 clusters and more, chance is no excuse"
    # Their true severities, which `rates` would ask for, are simulated at length and not needed here.
    verdicts = [w.judge(w.draw(np.random.default_rng([3, 1000]), 1000), 3).verdict for w in guilty]
    assert verdicts.count("found") >= 0.8 * len(guilty), "the control"
