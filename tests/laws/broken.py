"""A fault that breaks every law on purpose. If a law passes on it, the law is no law."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from trueup.corpus.corpus import Corpus
from trueup.faults.fault import Comparison, Difference, Fault, Finding, Remedy
from trueup.faults.overconfidence.planted import planted
from trueup.subject import adapter as files
from trueup.subject.subject import Head, Subject

_count = itertools.count()


@dataclass(frozen=True, eq=False)
class BrokenRemedy(Remedy):
    """Changes the model for good, makes things worse, and saves something else than it does."""

    settings: Any = None
    tensors: Any = None

    @contextlib.contextmanager
    def on(self, subject: Subject) -> Iterator[Subject]:
        with torch.no_grad():
            next(subject.model.parameters()).add_(0.01)
        yield replace(subject, confidence=lambda z: np.random.default_rng(next(_count)).random(len(z)))

    def save(self, folder: Path, comparison: Comparison | None = None) -> Path:
        folder.mkdir(parents=True)
        files.write_adapter(folder, self.settings, self.tensors)
        return folder

    def describe(self) -> str:
        return "Breaks everything."


@dataclass(frozen=True)
class Broken(Fault):
    name: ClassVar[str] = "broken"
    title: ClassVar[str] = "Broken"
    question: ClassVar[str] = "Does a law notice?"
    paper: ClassVar[str] = "none"
    unit: ClassVar[str] = "calls"

    def applies_to(self, subject: Subject, corpus: Corpus) -> str | None:
        return None

    def audit(self, subject: Subject, corpus: Corpus, *, seed: int) -> Finding:
        subject.model.train()
        next(subject.model.parameters()).requires_grad_(True)
        n = float(next(_count))
        # An example's result here depends on what stands beside it.
        samples = {"confidence": np.full(len(corpus), len(corpus) + n), "predicted": np.zeros(len(corpus))}
        return Finding("broken", self.unit, n, n, n, -1.0, "Nonsense.", samples=samples, details={"odd": {1, 2}})

    def repair(self, subject: Subject, corpus: Corpus, finding: Finding, *, seed: int) -> Remedy:
        head = subject.own_head()
        noise = torch.randn(head.weight.shape)
        settings, tensors = files.adapter_with_head(subject, Head(head.weight + noise, head.bias))
        return BrokenRemedy(settings, tensors)

    def compare(self, before: Finding, after: Finding, *, seed: int) -> dict[str, Difference]:
        return {"severity": Difference(1.0, 1.0, 1.0, 0.0)}

    def examples(self, corpus: Corpus, before: Finding, after: Finding | None) -> list[dict[str, str | float | bool]]:
        return []

    def planted(self, case: Any) -> tuple[Subject, Corpus]:
        return planted("planted")

    def read(self, folder: Path, subject: Subject) -> Remedy:
        return BrokenRemedy()

    def null(self, subject: Subject) -> Remedy:
        return BrokenRemedy()
