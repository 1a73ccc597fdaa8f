"""The data that repairs of a confounded classifier learn from (`Evidence`), and the interface of every repair (`Family`).

A family is one kind of repair; a variant is one setting of it. Every family works in the same way. It learns from the ``train``
and ``calibration`` splits. It gives the predictions of each of its variants on ``calibration`` (out of fold where it learnt from
that split). A rule then picks one variant.
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

from trueup.corpus import mix
from trueup.corpus.corpus import Corpus
from trueup.corpus.mix import FEWEST
from trueup.errors import BadInput
from trueup.faults.confounding import maths
from trueup.faults.confounding.maths import Basis, PromptVector
from trueup.faults.confounding.mixes import Mixes, columns, judges, mixes, nominal
from trueup.measure import lean, shift
from trueup.measure.folds import folds
from trueup.run.predict import Outputs, hidden_states, predict, session
from trueup.run.tangent import Tangent, expand
from trueup.run.train import Training
from trueup.subject import adapter as files
from trueup.subject.beside import CARD, read_card
from trueup.subject.checkpoint import adapter_folder
from trueup.subject.new_adapter import prompt_embeddings, recipe_of
from trueup.subject.subject import Head, Subject
from trueup.subject.swap_adapter import wear, with_prompt

T = TypeVar("T")
Args = TypeVarTuple("Args")

FIT = 1000
"""The most training examples that a tangent prompt is fitted on: each costs a forward and a backward pass at each step."""
CONTROL = "control"
"""The `Family.source` of a control: a change that must not help."""


@dataclass(frozen=True)
class Knobs:
    """The free settings of prompt arithmetic. HyPA's values are not known.

    Attributes:
        l_y: coefficient of the task's own vector: P = P0 + l_Y tau_Y - l_Z tau_Z.
        l_z: coefficients of the confounder's vector to try. The first is 0, and 1 is among them.
        ridge: the ridge penalty of every tangent fit, in units of the mean squared gradient. A larger one shortens tau_Z and
            removes less of the confounder z.
        at_start: linearise at P0, the prompt that training started from, where it is kept; otherwise at the tuned prompt.
    """

    l_y: float = 1.0
    l_z: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
    ridge: float = 1e-3
    at_start: bool = True


@dataclass(frozen=True, eq=False)
class Change:
    """What a repair changes: the prompt (m, w), the last layer, or the whole adapter as PEFT's settings and tensors."""

    prompt: NDArray | None = None
    head: Head | None = None
    adapter: tuple[dict[str, Any], dict[str, Tensor]] | None = None

    def on(self, subject: Subject) -> Subject:
        """A new subject with the change; `subject` and its live model stay as they are."""
        if self.prompt is not None:
            subject = wear(subject, *with_prompt(subject, torch.as_tensor(self.prompt, dtype=torch.float32)))
        if self.adapter is not None:
            subject = wear(subject, *self.adapter)
        if self.head is not None:
            moved_head = Head(self.head.weight.to(subject.device), self.head.bias.to(subject.device))
            subject = replace(subject, head=moved_head)
        return subject


@dataclass(frozen=True, eq=False)
class Variant:
    """One setting of a family.

    Attributes:
        name: the setting, for the table. held: (n, C) class probabilities of the calibration examples.
        predict: corpus -> (n, C) class probabilities. change: what to save; None for a function that no adapter computes.
    """

    name: str
    held: NDArray
    predict: Callable[[Corpus], NDArray]
    change: Change | None


@dataclass(frozen=True, eq=False)
class Evidence:
    """The data and settings that the families learn from.

    Attributes:
        train, held: corpora of the ``train`` and ``calibration`` splits. train_group, held_group: the groups of their examples.
        sampled: rows of `train` on which tangent prompts are fitted, because each costs a backward pass. Other fits use all rows.
        mixes: the joint tables of label and group, at the margins of the calibration examples. code: (G, C) the class probabilities
            that the shortcut alone gives in each group.
        choosing: (n,) bool: the calibration examples that choose settings and families. The split is by clusters. The other
            examples judge the chosen one.
        prompt, start: the subject's prompt (P_Y) and the one that its training started from (P0); None where there is none.
        training, lr: settings and learning rate with which adapters are trained again.
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
        """(n,) weights that make label and group independent, with the margins of the calibration examples."""
        return shift.reweighted(np.searchsorted(self.there, label), group, self.mixes.balanced)

    @property
    def there(self) -> NDArray[np.int64]:
        """The classes that the calibration examples have. The head's other classes are left out: their precision does not exist."""
        return np.unique(self.held.label)

    def columns(self, probability: NDArray, rows: NDArray) -> dict[str, NDArray]:
        """The columns that `mixes.statistics` needs, of the calibration examples `rows`. `probability` (n, C) is of all of them."""
        return self.columns_of(probability[rows], self.held.label[rows], self.held_group[rows], self.held.cluster[rows])

    def columns_of(self, probability: NDArray, label: NDArray, group: NDArray, cluster: NDArray) -> dict[str, NDArray]:
        """The same columns of any examples (n,) whose classes are those of `there`."""
        logits = np.log(np.maximum(probability[:, self.there], 1e-300))
        return columns(logits, np.searchsorted(self.there, label), group) | {
            "cluster": cluster, "judges": judges(cluster, self.seed),
        }  # fmt: skip

    def once(self, make: Callable[[Evidence, *Args], T], *args: *Args) -> T:
        """`make(self, *args)`, computed once and shared by all families. A corpus among `args` is identified by its fingerprint."""
        key = (make, *(a.fingerprint if isinstance(a, Corpus) else a for a in args))
        if key not in self._made:
            self._made[key] = make(self, *args)
        return self._made[key]

    @cached_property
    def _made(self) -> dict[tuple[Any, ...], Any]:
        return {}

    def tangent(self, at: NDArray) -> tuple[Tangent, Basis]:
        """The model's first-order expansion at a prompt on the training examples `sampled`, and the basis of its gradients."""
        expansion = expand(self.subject, self.train.take(self.sampled), at)
        return expansion, maths.basis(expansion.rows, len(expansion), expansion.gradient.shape[1], expansion.at.size)

    @cached_property
    def _tangent_at_anchor(self) -> tuple[Tangent, Basis]:
        return self.tangent(self.anchor)

    @property
    def anchor(self) -> NDArray:
        """The prompt at which prompts are linearised (`Knobs.at_start`)."""
        anchor = self.start if self.start is not None and self.knobs.at_start else self.prompt
        assert anchor is not None
        return anchor

    @property
    def task(self) -> PromptVector:
        """P0 + l_Y tau_Y, with tau_Y = P_Y - P0. It is the subject's own prompt where l_Y is 1 or P0 is not known."""
        assert self.prompt is not None
        if self.start is None or self.knobs.l_y == 1:
            return PromptVector(self.prompt)
        return PromptVector(self.start) + self.knobs.l_y * PromptVector.between(self.start, self.prompt)

    def confounder(self, at: NDArray, *, balanced: bool, target: NDArray | None = None) -> PromptVector:
        """The tangent prompt at the prompt `at`, fitted to predict the shortcut's classes (`code`), or the classes `target` (n,).

        `balanced`: the examples are weighted so that label and group are independent.
        """
        at_anchor = at is self.anchor
        # Several families use the expansion at the anchor, so it is kept. Each step of `Relinearised` needs its own only once.
        expansion, gradient_basis = self._tangent_at_anchor if at_anchor else self.tangent(at)
        group, label = self.train_group[self.sampled], self.train.label[self.sampled]
        goal = self.code[group] if target is None else target[self.sampled]
        weight = self.balance(label, group) if balanced else None
        change, _ = maths.tangent_fit(gradient_basis, expansion.margins, goal, self.knobs.ridge, weight=weight)
        return PromptVector(change.reshape(expansion.at.shape))

    @property
    def coded(self) -> Corpus:
        """The training examples with labels that the shortcut alone would give, drawn at random where it allows several."""
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, 8]))
        below = self.code[self.train_group].cumsum(axis=1) < 1 - rng.random((len(self.train), 1))
        return replace(self.train, label=below[:, :-1].sum(axis=1))

    @cached_property
    def tau_z(self) -> PromptVector:
        """The tangent confounder prompt at the anchor, as published: all examples have the same weight."""
        return self.confounder(self.anchor, balanced=False)

    @cached_property
    def own(self) -> Outputs:
        """The unrepaired subject's outputs on the calibration examples."""
        return predict(self.subject, self.held)

    def variant(self, name: str, change: Change) -> Variant:
        """A variant that an adapter can carry."""

        def run(corpus: Corpus) -> NDArray:
            return predict(change.on(self.subject), corpus).probability

        return Variant(name, run(self.held), run, change)


class Family(ABC):
    """A kind of repair, with its variants. `costly` families train an adapter again."""

    key: str
    title: str
    source: str
    costly: bool = False

    @abstractmethod
    def possible(self, e: Evidence) -> bool:
        """Whether the family can be applied to this subject."""

    @abstractmethod
    def variants(self, e: Evidence) -> list[Variant]:
        """Every setting tried."""

    def choose(self, e: Evidence, variants: Sequence[Variant]) -> int:
        """Index of the variant with the best mean AUPRC over all couplings, on the calibration examples that choose."""
        return int(np.argmax([score(e, v.held, "level") for v in variants]))

    def flipped(self, e: Evidence, chosen: int) -> Variant | None:
        """The control of the chosen variant: the same with the polarity of the shortcut reversed. It must not help as much."""
        return None


def score(e: Evidence, probability: NDArray, what: str) -> float:
    """AUPRC of the calibration examples that choose.

    `what`: ``here`` (the examples as they are), ``balanced`` (weighted to no coupling), or ``level`` (the mean over all couplings).
    """
    held = e.columns(probability, e.choosing)
    ranked, label, group = lean.margins(held["score"]), held["label"], held["group"]
    if what == "here":
        return shift.auprc(ranked, label)
    tables = e.mixes.tables if what == "level" else (e.mixes.balanced,)
    return float(np.mean([shift.auprc_at(ranked, label, group, t) for t in tables]))


def evidence(
    subject: Subject,
    corpus: Corpus,
    attribute: str,
    coupling: float,
    seed: int,
    knobs: Knobs = Knobs(),
) -> Evidence:
    """The data that the families learn from.

    It has all training examples (at most `FIT` for tangent fits), all calibration examples, split into a half that chooses and a
    half that judges, and the prompt with its start.

    Raises:
        BadInput: a (label, group) cell of a split has fewer than 10 examples, or `knobs` need a start that is not kept.
    """
    # Test examples are removed first, so that no code below can use them.
    corpus = corpus.take(corpus.split != "test")
    groups = mix.groups_of(corpus, attribute)
    parts = {k: corpus.part(k) for k in ("train", "calibration")}
    for name, part in parts.items():
        cells = mix.counts(part, attribute, groups)
        cells = cells[np.unique(corpus.label)]
        y, z = np.unravel_index(int(cells.argmin()), cells.shape)
        if cells[y, z] < FEWEST:
            label = corpus.classes[np.unique(corpus.label)[y]]
            raise BadInput(
                f"The {name} split of '{corpus.name}' has {cells[y, z]} examples with label '{label}' and {attribute} "
                f"'{groups[z]}'; a repair needs {FEWEST} in every cell. Give more rows, or merge rare values."
            )
    tuned_on = parts["train"]
    sampled = np.sort(np.random.default_rng(np.random.SeedSequence([seed, 7])).permutation(len(tuned_on))[:FIT])
    held = parts["calibration"]
    if session().memo is not None:
        hidden_states(
            subject, held
        )  # first: its pass serves every prediction of these examples, and the claim needs it
    z_train, z_held = (mix.group_index(c, attribute, groups) for c in (tuned_on, held))
    fitted_to, cells = (mix.counts(parts[k], attribute, groups) for k in ("train", "calibration"))
    choosing = folds(np.zeros(len(held)), 2, seed=np.random.SeedSequence([seed, 12]), cluster=held.cluster) == 0
    present_labels = np.unique(held.label)
    direction, strength, _ = nominal(cells[present_labels], fitted_to[present_labels], coupling)
    if direction.shape != (2, 2):
        own_scores = lean.centred(predict(subject, held).logits[choosing][:, present_labels])
        label = np.searchsorted(present_labels, held.label[choosing])
        direction = lean.head_starts(own_scores, label, z_held[choosing], direction.shape)
    held_mixes = mixes(cells[present_labels], direction, strength)
    prompt = start = None
    if subject.soft_prompted:
        soft = prompt_embeddings(subject)
        assert soft is not None
        prompt, start = soft.float().numpy(), start_of(subject)
        if knobs.l_y != 1 and start is None:
            raise BadInput(
                f"The setting confounding.l_y is {knobs.l_y:g}, and the prompt that the adapter started from (P0) is not kept "
                "beside it, so its own vector is not known. Leave the setting at 1, or tune the prompt with `trueup tune prompt`, "
                "which keeps P0."
            )
    training, recipe = training_of(subject), recipe_of(subject)
    return Evidence(
        subject, tuned_on, held, z_train, z_held, held_mixes, maths.coding(fitted_to / fitted_to.sum()), choosing, prompt, start,
        training, training.lr or (recipe.lr if recipe is not None else 1e-3), seed, sampled, knobs,
    )  # fmt: skip


def training_of(subject: Subject) -> Training:
    """The training settings of the adapter, from the card in the folder that it was tuned into; the defaults where it has none.

    Raises:
        BadInput: the card has a setting that training does not accept.
    """
    folder = adapter_folder(subject.source.adapter)
    known = (read_card(folder).get("tuned") or {}).get("training") or {}
    try:
        return Training(**{k: v for k, v in known.items() if k in Training.__dataclass_fields__})
    except BadInput as e:
        raise BadInput(f"'{folder}/{CARD}', key 'tuned.training': {e} Correct it, or delete the key.") from e


def start_of(subject: Subject) -> NDArray | None:
    """P0 of a tuned prompt, from the folder that it was tuned into; None, with a note, where it is absent or has another shape."""
    soft = prompt_embeddings(subject)
    start = files.read_start(adapter_folder(subject.source.adapter))
    if start is None:
        session().note(
            "The prompt that the adapter started from (P0) is not kept beside it, so prompts were linearised at the tuned prompt."
        )
        return None
    assert soft is not None
    if start.shape != soft.shape:
        session().note(
            f"p0.safetensors holds a prompt of {tuple(start.shape)} where the adapter's has {tuple(soft.shape)}; it was left "
            "aside, and prompts were linearised at the tuned prompt."
        )
        return None
    return start.numpy()
