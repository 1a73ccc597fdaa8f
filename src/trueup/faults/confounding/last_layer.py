"""Repairs that fit the last layer again: DFR with balancing weights, DFR as published, LEACE, and back-door adjustment."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from trueup.corpus.corpus import Corpus
from trueup.faults.confounding import maths
from trueup.faults.confounding.arithmetic import Relinearised
from trueup.faults.confounding.evidence import Change, Evidence, Family, Variant
from trueup.measure.calibration import softmax
from trueup.measure.folds import folds
from trueup.run.heads import fit_heads, fit_sparse
from trueup.run.predict import predict
from trueup.subject.subject import Head

STRENGTHS = (1e-3, 1e-2, 1e-1)
"""The values of scikit-learn's C that are tried for a last layer. Features are standardised."""
SPARSE, SUBSAMPLES = (1.0, 0.3, 0.1, 0.03), 10
"""For DFR as published: the values of scikit-learn's C under an L1 penalty, and the number of balanced subsamples to average."""
FOLDS = 5

Layer = tuple[NDArray, NDArray]
"""A last layer: (C, d) weights and (C,) biases."""


@dataclass(frozen=True, eq=False)
class Points:
    """The data that a last layer is fitted to: features, labels and groups of the ``train`` split (x) and of ``calibration`` (z).

    Attributes:
        kept: (F, n) bool: the calibration examples that each of F fits may learn from.
    """

    x: NDArray
    z: NDArray
    label_x: NDArray
    label_z: NDArray
    group_x: NDArray
    group_z: NDArray
    kept: NDArray[np.bool_]

    @property
    def features(self) -> NDArray:
        """The features of all examples, training examples first."""
        return np.concatenate([self.x, self.z])

    @property
    def label(self) -> NDArray:
        return np.concatenate([self.label_x, self.label_z])

    @property
    def group(self) -> NDArray:
        return np.concatenate([self.group_x, self.group_z])

    @property
    def rows(self) -> NDArray[np.bool_]:
        """(F, N) bool: the examples that each fit learns from, which are all training examples and the kept calibration ones."""
        return np.concatenate([np.ones((len(self.kept), len(self.x)), bool), self.kept], axis=1)


class LastLayer(Family):
    """A family that fits the last layer again on features of train and calibration."""

    def possible(self, e: Evidence) -> bool:
        return bool(e.subject.anatomy.head)

    def prompt(self, e: Evidence) -> NDArray | None:
        """The prompt with which the features are computed; None for the subject's own."""
        return None

    @abstractmethod
    def fits(self, e: Evidence, p: Points) -> list[tuple[str, list[Layer]]]:
        """For each setting, its name and a layer for each of the F fits."""

    def variants(self, e: Evidence) -> list[Variant]:
        prompt = self.prompt(e)
        x, z = (e.once(_features, which, prompt is not None) for which in ("train", "held"))
        cell = e.held.label * len(e.code) + e.held_group
        fold = folds(cell, FOLDS, seed=np.random.SeedSequence([e.seed, 6]), cluster=e.held.cluster)
        # The fit of each fold learns from the calibration examples of the other folds, and the last fit learns from all.
        in_training = np.arange(FOLDS + 1)[:, None] != fold
        found = []
        for name, layers in self.fits(
            e, Points(x, z, e.train.label, e.held.label, e.train_group, e.held_group, in_training)
        ):
            held = np.empty((len(z), e.classes))
            *crossed, whole = layers
            for (weight, bias), rest in zip(crossed, in_training, strict=False):
                held[~rest] = softmax(z[~rest] @ weight.T + bias)
            change = Change(prompt=prompt, head=Head(*(torch.as_tensor(t, dtype=torch.float32) for t in whole)))

            def run(corpus: Corpus, change: Change = change) -> NDArray:
                return predict(change.on(e.subject), corpus).probability

            found.append(Variant(name, held, run, change))
        return found


def _features(e: Evidence, which: str, relinearised: bool) -> NDArray:
    change = Change(prompt=relinearised_prompt(e) if relinearised else None)
    return predict(change.on(e.subject), getattr(e, which)).features.astype(np.float64)


def relinearised_prompt(e: Evidence) -> NDArray:
    """The prompt (m, w) that `Relinearised` chooses."""
    steps = Relinearised()
    found = steps.variants(e)
    change = found[steps.choose(e, found)].change
    assert change is not None
    assert change.prompt is not None
    return change.prompt


def _biased(e: Evidence) -> bool:
    return e.subject.template is None and e.subject.head_layer().bias is not None


class Reweighted(LastLayer):
    """Deep feature reweighting (DFR) with weights that make label and group independent. Ours, after arXiv 2204.02937."""

    key, title, source = "dfr", "last layer again, weighted to balance", "trueup, after arXiv 2204.02937"

    def fits(self, e: Evidence, p: Points) -> list[tuple[str, list[Layer]]]:
        on_held = np.zeros(p.kept.shape)
        for f, k in enumerate(p.kept):
            on_held[f, k] = e.balance(p.label_z[k], p.group_z[k])
        on_train = np.tile(e.balance(p.label_x, p.group_x), (len(p.kept), 1))
        on_both = np.concatenate([on_train, on_held], axis=1)
        found = []
        for strength in STRENGTHS:
            for where, (features, label, rows, weight) in {
                "train and calibration": (p.features, p.label, p.rows, on_both),
                "calibration": (p.z, p.label_z, p.kept, on_held),
            }.items():
                fit = fit_heads(features, label, e.classes, rows, strength=strength, weight=weight, biased=_biased(e))
                found.append((f"C = {strength:g}, {where}", [(w, b) for w, b, _ in fit]))
        return found


class ReweightedAfterPrompt(Reweighted):
    """`Reweighted` on the features of the re-linearised prompt, so that prompt and last layer change together."""

    key, title, source = "relinearised-dfr", "re-linearised hybrid prompt, then its last layer again", "trueup"

    def possible(self, e: Evidence) -> bool:
        # For a model that answers with words, one adapter cannot hold both a prompt and a last layer.
        return super().possible(e) and e.prompt is not None and e.subject.template is None

    def prompt(self, e: Evidence) -> NDArray:
        return relinearised_prompt(e)


class PublishedReweighted(LastLayer):
    """DFR as published (Kirichenko et al.).

    It is fitted on calibration examples alone, under an L1 penalty. The fits on several subsamples, which have equally many
    examples of each (label, group) cell, are averaged. The accuracy of the worst cell chooses C.
    """

    key, title, source = "dfr-published", "last layer again, as published (DFR)", "arXiv 2204.02937"

    def fits(self, e: Evidence, p: Points) -> list[tuple[str, list[Layer]]]:
        by_fold = [self._subsampled(e, p.z[k], p.label_z[k], p.group_z[k]) for k in p.kept]
        return [(f"C = {s:g}", [at[i] for at in by_fold]) for i, s in enumerate(SPARSE)]

    def _subsampled(self, e: Evidence, z: NDArray, label: NDArray, group: NDArray) -> list[Layer]:
        """The averaged layer at each C of `SPARSE`; all use the same subsamples."""
        cell = label * len(e.code) + group
        rows = [np.flatnonzero(cell == c) for c in np.unique(cell)]
        least = min(map(len, rows))
        rng = np.random.default_rng(np.random.SeedSequence([e.seed, 14]))
        found = []
        for _ in range(SUBSAMPLES):
            some = np.concatenate([rng.permutation(r)[:least] for r in rows])
            found.append(fit_sparse(z[some], label[some], e.classes, SPARSE[::-1], biased=_biased(e))[::-1])
        return [tuple(np.mean(part, axis=0) for part in zip(*at, strict=True)) for at in zip(*found, strict=True)]  # type: ignore[misc]

    def choose(self, e: Evidence, variants: Sequence[Variant]) -> int:
        cell = (e.held.label * len(e.code) + e.held_group)[e.choosing]
        right = [(v.held.argmax(axis=1) == e.held.label)[e.choosing] for v in variants]
        return int(np.argmax([min(r[cell == c].mean() for c in np.unique(cell)) for r in right]))


class Erased(LastLayer):
    """The subject's own last layer, and newly fitted ones, on features from which LEACE erased the group (Belrose et al.)."""

    key, title, source = "leace", "attribute erased before the last layer (LEACE)", "arXiv 2306.03819"

    def fits(self, e: Evidence, p: Points) -> list[tuple[str, list[Layer]]]:
        by_fold = [self._behind(e, p, k) for k in p.kept]
        names = ("own last layer", *(f"C = {s:g}" for s in STRENGTHS))
        return [(name, [at[i] for at in by_fold]) for i, name in enumerate(names)]

    def _behind(self, e: Evidence, p: Points, k: NDArray[np.bool_]) -> list[Layer]:
        features, label = np.concatenate([p.x, p.z[k]]), np.concatenate([p.label_x, p.label_z[k]])
        group = np.concatenate([p.group_x, p.group_z[k]])
        weight = np.concatenate([e.balance(p.label_x, p.group_x), e.balance(p.label_z[k], p.group_z[k])])
        a, c = maths.leace(features, np.eye(int(group.max()) + 1)[group], weight=weight)
        shape = (len(STRENGTHS), len(features))
        anew = fit_heads(
            features @ a.T + c, label, e.classes, np.ones(shape, bool), strength=STRENGTHS,
            weight=np.broadcast_to(weight, shape), biased=_biased(e),
        )  # fmt: skip
        own_head = e.subject.own_head()
        before = own_head.weight.numpy().astype(np.float64), own_head.bias.numpy().astype(np.float64)
        heads = [maths.through(w, b, a, c) for w, b in (before, *(fit[:2] for fit in anew))]
        return heads if _biased(e) else [(w, np.zeros_like(b)) for w, b in heads]


class BackDoor(LastLayer):
    """The back-door adjustment in its linear form.

    A layer is fitted to the features and the groups together. The groups' contribution to the logits is then replaced by its mean.
    For two classes this ranks examples nearly as sum_z P(z) P(y | x, z) does. As probabilities its outputs are an approximation.
    """

    key, title = "backdoor", "back-door adjustment of the last layer"
    source = "Pearl 2009, section 3.3; of the logits"

    def fits(self, e: Evidence, p: Points) -> list[tuple[str, list[Layer]]]:
        one_hot = np.eye(int(p.group.max()) + 1)[p.group]
        found = []
        for strength in STRENGTHS:
            fit = fit_heads(p.features, p.label, e.classes, p.rows, strength=strength, extra=one_hot, biased=_biased(e))
            # sum_z P(z) P(y | x, z) is not a linear layer, but the mean of the logits over P(z) is one.
            layers = [
                (w, b + of_group @ one_hot[k].mean(axis=0) * _biased(e))
                for (w, b, of_group), k in zip(fit, p.rows, strict=True)
            ]
            found.append((f"C = {strength:g}", layers))
        return found
