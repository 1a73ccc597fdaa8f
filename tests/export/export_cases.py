"""Small repairs of each kind, as `Remedy.save` writes them."""

from __future__ import annotations

from pathlib import Path

import torch

from trueup.faults import loading
from trueup.faults.adapter_remedy import adapted
from trueup.faults.overconfidence.confidence_head import confidence_head, with_rows
from trueup.measure import confidence_scores
from trueup.subject.load import load
from trueup.subject.new_adapter import Lora, fresh
from trueup.subject.subject import Head, Subject
from trueup.subject.template import Template
from trueup.subject.tiny import make_base
from trueup.subject.units import scales_as_adapter, width_of

CLASSES = ("low", "middle", "high")
TEXTS = ["good cat sat", "bad", "the cat bad good mat sat on the good dog", "very loud film it was", "trap fine poor"]


def shaken(subject: Subject) -> Subject:
    """With noise on all weights of the adapter, a trained head's too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in subject.model.named_parameters():
            if any(part in name for part in ("lora_", "modules_to_save", "prompt_encoder")):
                p += torch.randn(p.shape, generator=generator) * 0.2
    return subject


def classifier(family: str, folder: Path, recipe: object = None) -> Subject:
    base = make_base(family, folder / f"base-{family}")
    return shaken(fresh(str(base), recipe or Lora(2), CLASSES, max_length=32, seed=1))  # type: ignore[arg-type]


def confidence(family: str, folder: Path) -> tuple[Subject, Path]:
    """A repair of overconfidence with a row of its own: what `Remedy.save` writes, and the subject it was made for."""
    subject = classifier(family, folder)
    own = subject.own_head()
    generator = torch.Generator().manual_seed(1)
    extra = Head(torch.randn(1, own.weight.shape[1], generator=generator), torch.zeros(1))
    score = confidence_scores.Calibrated(confidence_scores.ShrunkProbe(3, 0.8, (0.1, -0.2, 0.3)), 0.9, 0.2)
    told = [{"risk": 0.05, "threshold": 0.7, "coverage": 0.4, "accepted": 40, "of": 100},
            {"risk": 0.01, "threshold": None, "coverage": 0.0, "accepted": 0, "of": 100}]  # fmt: skip
    about = loading.facts(subject) | {"describe": "For a test.", "delta": 0.05, "abstention": told}
    remedy = confidence_head(subject, with_rows(subject, extra), score, about)
    return subject, remedy.save(folder / f"out-{family}" / "overconfidence")


def scaled(family: str, folder: Path, *, lora: bool = False, factor: float = 0.0) -> tuple[Subject, Path]:
    """A repair of copying: two units of one layer and one of another scaled, as IA3 or inside a LoRA."""
    base = make_base(family, folder / f"base-{family}")
    if lora:
        words = Template("say {text} now", ("good", "bad", "cat"))
        subject = shaken(fresh(str(base), Lora(2), CLASSES, template=words, max_length=32, seed=1))
    else:
        subject = load(str(base), shots=2, device="cpu")
    scales = {0: torch.ones(width_of(subject, 0)), 1: torch.ones(width_of(subject, 1))}
    scales[0][[1, 5]], scales[1][3] = factor, factor
    remedy = adapted("copying", subject, *scales_as_adapter(subject, scales), {"describe": "For a test."})
    return subject, remedy.save(folder / f"out-{family}-{lora}" / "copying")
