"""Shortcuts planted in real text under the embedded encoder: a scout finds them, and names none where there is none."""

from __future__ import annotations

import pytest

from trueup.experiments.scout_repairs import WORD, drawn, shares
from trueup.faults.confounding.scout import scout
from trueup.run.heads import warm_start
from trueup.run.predict import Session, within
from trueup.store.cache import Memo
from trueup.subject.new_adapter import Lora, fresh

pytestmark = pytest.mark.slow
SIZES = {"train": 500, "calibration": 400, "test": 400}


def examined(plant: str) -> tuple[list[str], list[float]]:
    """The columns that a scout names under a classifier whose last layer is fitted to the planted training texts, and on which
    share of the test texts each agrees with the plant."""
    corpus, there = drawn(plant, SIZES)
    subject = fresh("embedded:minilm", Lora(), corpus.classes, max_length=24, device="cpu", seed=0)
    warm_start(subject, corpus.part("train"))
    found = scout(subject, corpus, seed=0)
    return [x.name for x in found.leads], shares(found, corpus, there)


@pytest.mark.parametrize(("plant", "least"), [("word", 0.99), ("cluster", 0.75)])
def test_a_plant_in_real_text_is_found(plant, least, tmp_path):
    with within(Session(Memo(tmp_path))):
        names, agree = examined(plant)
        assert max(agree, default=0) >= least, list(zip(names, agree, strict=True))


def test_a_word_that_goes_with_no_label_is_not_named(tmp_path):
    """The control: the same word in as many texts of either class."""
    with within(Session(Memo(tmp_path))):
        names, agree = examined("none")
        assert WORD not in " ".join(names)
        assert max(agree, default=0.5) < 0.75
