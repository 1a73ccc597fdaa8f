"""Every fault x every law; and the broken fault must fail every one of them."""

from __future__ import annotations

import pytest

from trueup.errors import BadInput
from trueup.experiments.verdicts import worlds
from trueup.faults.fault import each_fault
from trueup.faults.rigidity import planted
from trueup.store.cache import Memo

from . import laws
from .broken import Broken
from .laws import LAWS

QUICK = {"resamples": 400} | planted.QUICK
"""No law is about how often is drawn, or how rigidity's adapters are tuned."""


@pytest.fixture(scope="module", autouse=True)
def _remembered(trainings: Memo):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(laws, "trainings", trainings)
        yield


@pytest.mark.parametrize("law", LAWS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("fault", each_fault(), ids=lambda f: f.name)
def test_law_holds(fault, law):
    law(fault(**{k: v for k, v in QUICK.items() if k in fault.knobs()}))


@pytest.mark.parametrize("fault", each_fault(), ids=lambda f: f.name)
def test_every_fault_has_worlds_with_it_and_without_it(fault):
    assert {w.kind for w in worlds() if w.fault == fault.name} == {"null", "fault"}


@pytest.mark.parametrize("law", LAWS, ids=lambda f: f.__name__)
def test_law_can_fail(law):
    with pytest.raises((AssertionError, TypeError, BadInput)):
        law(Broken())
