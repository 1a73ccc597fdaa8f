"""An adapter trained again starts under the subject's whole head, also where that has a dense layer before the last."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trueup.faults.confounding.candidates import again
from trueup.subject.recipe import Lora, Prompt, fresh


@pytest.mark.parametrize("family", ["roberta", "distilbert", "bert"])
@pytest.mark.parametrize("recipe", [Lora(2), Prompt(3)])
def test_the_whole_head_is_taken_over(base_of: Any, family: str, recipe: Any):
    subject = fresh(str(base_of(family)), recipe, ("a", "b"), max_length=32, device="cpu", seed=1)
    own = {n: p for n, p in subject.model.named_parameters() if "modules_to_save" in n}
    assert own
    with torch.no_grad():
        for p in own.values():
            p.add_(torch.randn_like(p))
    other = fresh(str(base_of(family)), recipe, ("a", "b"), max_length=32, device="cpu", seed=0)
    assert not any(torch.equal(p, own[n]) for n, p in other.model.named_parameters() if n in own)
    new = again(SimpleNamespace(subject=subject, seed=0, start=None))  # type: ignore[arg-type]
    assert all(torch.equal(p, own[n]) for n, p in new.model.named_parameters() if n in own)
