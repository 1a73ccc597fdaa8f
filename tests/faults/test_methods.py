"""Methods compared on the test examples: set by the others alone, told in pairs, and agreeing with the audit and the repair."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trueup.errors import Unsupported
from trueup.faults.confounding import Confounding
from trueup.faults.copying import Copying
from trueup.faults.fault import NoRemedy
from trueup.faults.overconfidence import Overconfidence
from trueup.faults.rigidity import Rigidity
from trueup.run.prompts import with_pool

HEADLINE = {"confounding": "severity", "copying": "severity", "overconfidence": "error_auc"}


@pytest.fixture(scope="module", params=[Confounding, Copying, Overconfidence], ids=lambda f: f.name)
def compared(request):
    fault = request.param(resamples=200)
    subject, corpus = fault.planted("planted")
    if subject.shots is not None and not subject.shots.pool:
        subject = with_pool(subject, corpus.part("train"))
    was = subject.fingerprint
    methods = fault.methods(subject, corpus, seed=0)
    assert subject.fingerprint == was, "methods leave the subject as it is"
    fault = fault.prepared(subject, corpus, seed=0)
    return fault, subject, corpus, fault.audit(subject, corpus.part("test"), seed=0), methods


def test_differences_are_to_what_the_audit_says(compared):
    fault, _, _, finding, methods = compared
    key = HEADLINE[fault.name]
    before = finding.severity if key == "severity" else finding.measures[key].value
    for m in methods:
        assert m.values[key] - m.differences[key].value == pytest.approx(before, abs=1e-9), m.key
        assert m.differences[key].low <= m.differences[key].value <= m.differences[key].high


def test_some_method_helps_and_what_must_not_help_does_not(compared):
    fault, _, _, _, methods = compared
    sign = 1 if fault.name == "overconfidence" else -1
    helped = {m.key: sign * m.differences[HEADLINE[fault.name]].value for m in methods}
    assert max(helped.values()) > 0.02
    assert all(helped[m.key] < max(helped.values()) / 2 for m in methods if m.control)


def test_test_labels_set_nothing(compared):
    fault, subject, corpus, _, methods = compared
    rows = np.flatnonzero(corpus.split == "test")
    label = corpus.label.copy()
    label[rows] = np.random.default_rng(0).permutation(label[rows])
    other = fault.methods(subject, replace(corpus, label=label), seed=0)
    assert [(m.key, m.setting, m.chosen) for m in other] == [(m.key, m.setting, m.chosen) for m in methods]
    assert [m.values for m in other] != [m.values for m in methods], "the control"


def test_the_chosen_method_is_the_one_that_a_repair_takes(compared):
    fault, subject, corpus, finding, methods = compared
    chosen = [m for m in methods if m.chosen]
    assert len(chosen) == 1
    assert chosen[0].behind == {}
    assert all(set(m.behind) == set(m.values) for m in methods if not m.chosen)
    remedy = fault.repair(subject, corpus, finding, seed=0)
    assert not isinstance(remedy, NoRemedy)
    if fault.name == "copying":
        assert chosen[0].title in remedy.describe()
    else:
        assert remedy.card["chosen"] == chosen[0].key


def test_a_fault_without_methods_says_so():
    subject, corpus = Rigidity().planted("healthy")
    with pytest.raises(Unsupported, match="contest"):
        Rigidity().methods(subject, corpus, seed=0)
