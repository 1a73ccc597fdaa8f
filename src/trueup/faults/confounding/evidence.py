"""What repairs of a confounded classifier learn from, and the form that every way to repair has.

Every family is tried on the same footing: it learns from the ``train`` and ``calibration`` splits, says what each of its
variants predicts on ``calibration`` (out of fold where it learnt from it), and a rule picks one variant.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar, TypeVarTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trueup.corpus.corpus import Corpus
from trueup.faults.confounding import maths
from trueup.faults.confounding.maths import Basis, PromptVector
from trueup.faults.confounding.mixes import Mixes, columns, judges
from trueup.measure import lean, shift
from trueup.run.predict import Outputs, predict
from trueup.run.tangent import Tangent, expand
from trueup.run.train import Training
from trueup.subject.subject import Head, Subject
from trueup.subject.swap_adapter import wear, with_prompt

T = TypeVar("T")
Args = TypeVarTuple("Args")

CONTROL = "control"
"""The source of a family that is tried to show what must not help."""


@dataclass(frozen=True)
class Knobs:
    """What prompt arithmetic leaves open: HyPA's values are not known.

    Attributes:
        l_y: coefficient of the task's own vector: P = P0 + l_Y tau_Y - l_Z tau_Z.
        l_z: tried coefficients of the confounder. The first is 0, and 1 is among them.
        ridge: of every tangent fit, in units of the mean squared gradient. Larger ones shorten tau_Z and leave more of z in place.
        at_start: prompts are linearised at the one that training started from, P0, where it is kept; else at the tuned one.
    """

    l_y: float = 1.0
    l_z: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
    ridge: float = 1e-3
    at_start: bool = True


@dataclass(frozen=True, eq=False)
class Change:
    """What a repair changes: the prompt (m, w), the last layer, or the whole adapter as PEFT's files hold it."""

    prompt: NDArray | None = None
    head: Head | None = None
    adapter: tuple[dict[str, Any], dict[str, Tensor]] | None = None

    def on(self, subject: Subject) -> Subject:
        """Another subject with the change; `subject` and its live model stay as they are."""
        if self.prompt is not None:
            subject = wear(subject, *with_prompt(subject, torch.as_tensor(self.prompt, dtype=torch.float32)))
        if self.adapter is not None:
            subject = wear(subject, *self.adapter)
        if self.head is not None:
            here = Head(self.head.weight.to(subject.device), self.head.bias.to(subject.device))
            subject = replace(subject, head=here)
        return subject


@dataclass(frozen=True, eq=False)
class Variant:
    """One setting of a family.

    Attributes:
        name: the setting, for the table. held: (n, C) class probabilities on the calibration examples.
        predict: corpus -> (n, C). change: what to save; None for a function that no adapter computes.
    """

    name: str
    held: NDArray
    predict: Callable[[Corpus], NDArray]
    change: Change | None


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the families learn from.

    Attributes:
        train, held: corpora of the ``train`` and ``calibration`` splits; train_group, held_group their groups.
        sampled: rows of `train` on which tangent prompts are fitted: each costs a backward pass. All else learns from all of it.
        mixes: the tables of the calibration examples. code: (G, C) what the shortcut alone says of each group.
        choosing: (n,) bool: the calibration examples that choose settings and families, by clusters. The others judge the one
            that was chosen.
        prompt, start: the subject's prompt and the one it started from; None where there is none.
        training, lr: how adapters are trained again.
    """

    subject: Subject
    train: Corpus
    held: Corpus
    train_group: NDArray
    held_group: NDArray
    mixes: Mixes
    code: NDArray
    choosing: NDArray
    prompt: NDArray | None
    start: NDArray | None
    training: Training
    lr: float
    seed: int
    sampled: NDArray
    knobs: Knobs = Knobs()

    @property
    def classes(self) -> int:
        return len(self.subject.classes)

    def balance(self, label: NDArray, group: NDArray) -> NDArray:
        """(n,) weights under which label and group are independent, with the margins of the calibration examples."""
        return shift.reweighted(np.searchsorted(self.there, label), group, self.mixes.balanced)

    @property
    def there(self) -> NDArray[np.int64]:
        """The classes that the calibration examples have. Others of the head take no part: their precision does not exist."""
        return np.unique(self.held.label)

    def columns(self, probability: NDArray, rows: NDArray) -> dict[str, NDArray]:
        """What `mixes.statistics` asks for, of some calibration examples that get these class probabilities (n, C)."""
        return self.columns_of(probability[rows], self.held.label[rows], self.held_group[rows], self.held.cluster[rows])

    def columns_of(self, probability: NDArray, label: NDArray, group: NDArray, cluster: NDArray) -> dict[str, NDArray]:
        """The same of any examples (n,) whose classes are `there`."""
        logits = np.log(np.maximum(probability[:, self.there], 1e-300))
        return columns(logits, np.searchsorted(self.there, label), group) | {
            "cluster": cluster, "judges": judges(cluster, self.seed),
        }  # fmt: skip

    def once(self, make: Callable[[Evidence, *Args], T], *args: *Args) -> T:
        """`make` of this evidence and `args`, made once for all families that ask for it. Corpora are told apart by fingerprint."""
        key = (make, *(a.fingerprint if isinstance(a, Corpus) else a for a in args))
        if key not in self._made:
            self._made[key] = make(self, *args)
        return self._made[key]

    @cached_property
    def _made(self) -> dict[tuple[Any, ...], Any]:
        return {}

    def tangent(self, at: NDArray) -> tuple[Tangent, Basis]:
        """The training examples to first order at a prompt, and the basis of their gradients."""
        t = expand(self.subject, self.train.take(self.sampled), at)
        return t, maths.basis(t.rows, len(t), t.gradient.shape[1], t.at.size)

    @cached_property
    def _tangent_at_anchor(self) -> tuple[Tangent, Basis]:
        return self.tangent(self.anchor)

    @property
    def anchor(self) -> NDArray:
        """Where prompts are linearised (`Knobs.at_start`)."""
        anchor = self.start if self.start is not None and self.knobs.at_start else self.prompt
        assert anchor is not None
        return anchor

    @property
    def task(self) -> PromptVector:
        """P0 + l_Y tau_Y, with tau_Y = P_Y - P0: the subject's own prompt where l_Y is 1, as without a start."""
        assert self.prompt is not None
        if self.start is None or self.knobs.l_y == 1:
            return PromptVector(self.prompt)
        return PromptVector(self.start) + self.knobs.l_y * PromptVector.between(self.start, self.prompt)

    def confounder(self, at: NDArray, *, balanced: bool, target: NDArray | None = None) -> PromptVector:
        """The tangent prompt at `at`, on the training examples: of the shortcut, or of other classes `target` (n,)."""
        at_anchor = at is self.anchor
        # The anchors serve several families; the steps of `Relinearised` are passed once.
        t, b = self._tangent_at_anchor if at_anchor else self.tangent(at)
        group, label = self.train_group[self.sampled], self.train.label[self.sampled]
        goal = self.code[group] if target is None else target[self.sampled]
        weight = self.balance(label, group) if balanced else None
        change, _ = maths.tangent_fit(b, t.margins, goal, self.knobs.ridge, weight=weight)
        return PromptVector(change.reshape(t.at.shape))

    @property
    def coded(self) -> Corpus:
        """The training examples under labels that the shortcut alone would give: drawn where it leaves several open."""
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, 8]))
        below = self.code[self.train_group].cumsum(axis=1) < 1 - rng.random((len(self.train), 1))
        return replace(self.train, label=below[:, :-1].sum(axis=1))

    @cached_property
    def tau_z(self) -> PromptVector:
        """The tangent confounder prompt at the anchor, as published: examples count equally."""
        return self.confounder(self.anchor, balanced=False)

    @cached_property
    def own(self) -> Outputs:
        """What the subject as it is says about the calibration examples."""
        return predict(self.subject, self.held)

    def variant(self, name: str, change: Change) -> Variant:
        """A variant that an adapter can carry."""

        def run(corpus: Corpus) -> NDArray:
            return predict(change.on(self.subject), corpus).probability

        return Variant(name, run(self.held), run, change)


class Family(ABC):
    """A way to repair, with its variants. `costly` ones train an adapter again."""

    key: str
    title: str
    source: str
    costly: bool = False

    @abstractmethod
    def possible(self, e: Evidence) -> bool:
        """Whether the family goes with this subject."""

    @abstractmethod
    def variants(self, e: Evidence) -> list[Variant]:
        """Every setting tried."""

    def choose(self, e: Evidence, variants: Sequence[Variant]) -> int:
        """The variant with the best AUPRC over all mixes of the calibration examples."""
        return int(np.argmax([score(e, v.held, "level") for v in variants]))

    def flipped(self, e: Evidence, chosen: int) -> Variant | None:
        """The control of what was chosen, with the polarity of the shortcut turned round: it must not help as well."""
        return None


def score(e: Evidence, probability: NDArray, what: str) -> float:
    """AUPRC of the calibration examples that choose: ``here``, ``balanced``, or ``level``, the mean over all mixes."""
    held = e.columns(probability, e.choosing)
    ranked, label, group = lean.margins(held["score"]), held["label"], held["group"]
    if what == "here":
        return shift.auprc(ranked, label)
    tables = e.mixes.tables if what == "level" else (e.mixes.balanced,)
    return float(np.mean([shift.auprc_at(ranked, label, group, t) for t in tables]))
