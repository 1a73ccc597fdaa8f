"""Scaled units on the live model: equal to scaled columns of the down projection, and gone after the block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput
from trueup.run.edit import scaled
from trueup.run.predict import Session, predict, within
from trueup.store.cache import Memo
from trueup.subject.anatomy import FAMILIES
from trueup.subject.load import load
from trueup.subject.subject import Subject
from trueup.subject.units import projection_of

CAUSAL = [f for f, a in FAMILIES.items() if a.causal]
TEXT = ["good cat sat", "bad", "the cat bad good mat sat on the good dog", "very loud film it was"]


def corpus() -> Corpus:
    return Corpus(TEXT, np.arange(len(TEXT)) % 2, ("a", "b"), np.array(["test"] * len(TEXT)))


def bare(base: Path) -> Subject:
    return load(str(base), template="say {text} now", verbaliser=["good", "bad"], max_length=32, device="cpu")


def some_scales(subject: Subject, layers: tuple[int, ...] = (0, 1)) -> dict[int, torch.Tensor]:
    g = torch.Generator().manual_seed(2)
    fused = type(projection_of(subject, 0)[1]).__name__ == "Conv1D"
    wide = projection_of(subject, 0)[1].weight.shape[0 if fused else 1]  # type: ignore[union-attr, index]
    return {at: torch.rand(wide, generator=g) * 2 * (torch.rand(wide, generator=g) > 0.3) for at in layers}


@pytest.mark.parametrize("family", CAUSAL)
def test_scaled_units_are_scaled_columns(family: str, base_of: Any):
    subject = bare(base_of(family))
    before, plain, scales = subject.fingerprint, predict(subject, corpus()).logits, some_scales(subject)
    with scaled(subject, scales) as inside:
        got = predict(inside, corpus()).logits
    assert subject.fingerprint == before
    assert np.array_equal(predict(subject, corpus()).logits, plain)
    assert np.abs(got - plain).max() > 1e-3
    with scaled(subject, {1: scales[1]}):
        assert np.abs(predict(subject, corpus()).logits - got).max() > 1e-3
    for at, s in scales.items():
        module = projection_of(subject, at)[1]
        fused = type(module).__name__ == "Conv1D"
        module.weight.data = module.weight.data * (s[:, None] if fused else s)  # type: ignore[operator]
    assert np.abs(predict(subject, corpus()).logits - got).max() <= 1e-5


def test_nothing_is_left_after_an_exception(base_of: Any):
    subject = bare(base_of("gpt2"))
    before, scales = subject.fingerprint, some_scales(subject)

    def broken() -> None:
        with scaled(subject, scales):
            assert subject.fingerprint != before
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            broken()
        assert subject.fingerprint == before


def test_a_memory_does_not_take_one_scaling_for_another(base_of: Any, tmp_path: Path):
    """The same weights and the same number of hooks: to a memory of finished passes it would be the same model."""
    subject = bare(base_of("gpt2"))
    scales = some_scales(subject)
    with within(Session(memo=Memo(tmp_path))):
        plain = predict(subject, corpus()).logits
        with scaled(subject, scales):
            once = predict(subject, corpus()).logits
        with scaled(subject, {at: s * 0.5 for at, s in scales.items()}):
            half = predict(subject, corpus()).logits
        assert np.array_equal(predict(subject, corpus()).logits, plain)
    assert np.abs(once - half).max() > 1e-3
    assert np.abs(once - plain).max() > 1e-3


def test_scales_that_do_not_fit_are_refused(base_of: Any):
    subject = bare(base_of("gpt2"))
    before, scales = subject.fingerprint, some_scales(subject)
    with pytest.raises(BadInput, match=r"There is no layer 2: the model has layers 0 to 1\. Give one of these\."):
        scaled(subject, scales | {2: scales[0]}).__enter__()
    with pytest.raises(BadInput, match=r"Layer 1 has 128 units, and the scales are \(127,\); give one per unit\."):
        scaled(subject, scales | {1: scales[1][1:]}).__enter__()
    assert subject.fingerprint == before
    with scaled(subject, {}) as same:
        assert same.fingerprint == before
