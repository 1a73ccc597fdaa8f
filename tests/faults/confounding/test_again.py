"""An adapter trained again starts under the subject's whole head, also where that has a dense layer before the last."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput
from trueup.faults.confounding.retrained import again
from trueup.run.ensemble import committee
from trueup.run.train import Training
from trueup.subject import adapter as files
from trueup.subject import checkpoint as door
from trueup.subject.load import load
from trueup.subject.new_adapter import Lora, Prompt, fresh


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


def test_what_the_user_allowed_at_load_holds_when_it_is_trained_again(base_of: Any, tmp_path: Path):
    """A base that is a pickle loads again for the user who trusted it once, and for nobody else."""
    base = Path(shutil.copytree(base_of("bert"), tmp_path / "base"))
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    (tmp_path / "adapter").mkdir()
    made = fresh(str(base), Lora(2), ("a", "b"), max_length=32, device="cpu", allow_pickle=True)
    files.save_tuned(made, tmp_path / "adapter")
    subject = load(str(base), str(tmp_path / "adapter"), device="cpu", allow_pickle=True)
    again(SimpleNamespace(subject=subject, seed=0, start=None))  # type: ignore[arg-type]
    members = Corpus(["good", "bad"] * 6, np.array([0, 1] * 6), ("a", "b"), np.array(["train"] * 12))
    committee(subject, members, members, members=1, seed=0, training=Training(epochs=1))
    distrusted = replace(subject, source=replace(subject.source, allow_pickle=False))
    with pytest.raises(BadInput, match="as a pickle"):
        again(SimpleNamespace(subject=distrusted, seed=0, start=None))  # type: ignore[arg-type]


@pytest.mark.parametrize("trusted", [False, True])
def test_code_of_its_own_is_run_again_only_for_whom_it_was_run_before(
    trusted: bool, base_of: Any, monkeypatch: pytest.MonkeyPatch
):
    subject = fresh(str(base_of("bert")), Lora(2), ("a", "b"), device="cpu", trust_remote_code=trusted)
    read, asked = door.read_model_config, []
    monkeypatch.setattr(
        door, "read_model_config", lambda *a, **k: asked.append(k["trust_remote_code"]) or read(*a, **k)
    )
    again(SimpleNamespace(subject=subject, seed=0, start=None))  # type: ignore[arg-type]
    assert asked == [trusted]
