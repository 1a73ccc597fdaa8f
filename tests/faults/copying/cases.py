"""Few-shot subjects for the tests of copying, around the planted ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from trueup.corpus.corpus import Corpus
from trueup.faults.copying.planted import LAYER, UNITS
from trueup.run.prompts import with_pool
from trueup.subject.subject import Subject
from trueup.subject.units import width_of

PLANTED = {(LAYER, u) for u in UNITS}


def scales(subject: Subject, units: list[tuple[int, int]], factor: float = 0.0) -> dict[int, torch.Tensor]:
    made: dict[int, torch.Tensor] = {}
    for layer, unit in units:
        made.setdefault(layer, torch.ones(width_of(subject, layer)))[unit] = factor
    return made


def unique(case: tuple[Subject, Corpus], n: int = 30) -> tuple[Subject, Corpus]:
    """Pairs no two of which have the same answer: an answer that is right can never be shown."""
    subject, _ = case
    words = [w for w in subject.tokenizer.get_vocab() if not w.startswith("[")]
    names = tuple(f"{a} {b}" for a in words for b in words)[: 3 * n]
    text = [f"the key{i % 12} on {a}" for i, a in enumerate(names)]
    corpus = Corpus(text, np.arange(3 * n), names, np.repeat(["train", "calibration", "test"], n), name="unique")
    return with_pool(replace(subject), corpus.part("train")), corpus
