"""What feed-forward units add to wrong copies: integrated gradients of prompts that show the right answer, or do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trueup.corpus.corpus import Corpus
from trueup.corpus.prompt import Mode
from trueup.errors import BadInput, listing
from trueup.faults.copying import maths
from trueup.run import forward, prompts
from trueup.run.integrated_gradients import attribute, last_units
from trueup.run.predict import collect_rows, session
from trueup.run.prompts import Row
from trueup.subject.subject import Subject

EXPLAINED = 24
"""Prompts whose answers are attributed, of each kind."""
COMPLETE = 0.05
"""Completeness error that attributions may have, in probability; layers above it are left alone."""
OWN, PROXY, REPEATED = "the task itself", "counting vowels", "repeated random tokens"
"""On what units and heads are found, as the table, the card and the sentence call it."""


@dataclass(frozen=True, eq=False)
class Attributed:
    """What the units add to copying, on prompts of the pool.

    Attributes:
        wrong: (n, layers, units) towards a shown answer where the right one is not shown. right: (m, layers, units)
            towards the right one where it is shown; m may be 0.
        active: (layers, units) mean absolute activation.
        sound: (layers,) bool: the attributions add up. gap: (layers,) completeness error, in probability, of the
            worst tenth of the prompts.
        rows, gold, shown: the prompts of `wrong`, their right answers (n,), and what they show (n, C).
        source: what the prompts ask for. protocol: how units are scored.
    """

    wrong: np.ndarray
    right: np.ndarray
    active: np.ndarray
    sound: np.ndarray
    gap: np.ndarray
    rows: Sequence[Row]
    gold: np.ndarray
    shown: np.ndarray
    source: str
    protocol: maths.Protocol

    @property
    def published(self) -> np.ndarray:
        """(layers, units) mean over prompts of the min-max scaled attribution: the published score."""
        return self.protocol.normalise(self.wrong).mean(axis=0)

    @property
    def contrasted(self) -> np.ndarray:
        """(layers, units), in probability: what a unit adds to copying when that is wrong, less when it is right."""
        wrong = self.wrong.mean(axis=0, dtype=np.float64)
        return wrong - self.right.mean(axis=0, dtype=np.float64) if len(self.right) else wrong


def attributed(
    subject: Subject, train: Corpus, seed: int, source: str, protocol: maths.Protocol = maths.RECONSTRUCTED
) -> Attributed:
    """Integrated gradients of the protocol's target on every layer's units, for prompts about pairs of `train`."""
    train = train.relabel(subject.classes)
    logits_of, first = forward.reader(subject), torch.tensor(subject.verbaliser_ids(), device=subject.device)

    def explained(mode: Mode) -> tuple[list[Row], np.ndarray, np.ndarray, Callable[[Tensor, int], Tensor]]:
        draws = prompts.drawn(subject, train, mode=mode, seed=seed)
        able = np.flatnonzero(draws.possible)
        able = np.sort(np.random.default_rng(seed).permutation(able)[:EXPLAINED])
        rows = prompts.rows(subject, train.take(able).text, draws.take(able))
        gold, shown = train.label[able], draws.shown[able]
        plain = collect_rows(subject, rows, forward.logits, "logits") if rows else np.empty(shown.shape)
        most_likely = np.where(shown, plain[:, : shown.shape[1]], -np.inf).argmax(axis=1)

        def readout(hidden: Tensor, i: int) -> Tensor:
            shown_here, same = torch.as_tensor(shown[i], device=hidden.device), first == first[int(gold[i])]
            asked = maths.Question(shown_here, int(gold[i]), int(most_likely[i]), same, right=mode == "always")
            return protocol.target(logits_of(hidden.float()), asked)

        return rows, gold, shown, readout

    rows, gold, shown, readout = explained("never")
    if not rows:
        raise BadInput(
            f"'{train.name}' has no {subject.shots.number if subject.shots else 0} pairs whose answers differ from a query's; "
            "give pairs with more than one answer, or lower --shots."
        )
    held, _, _, towards = explained("always")
    units = last_units(subject, rows)
    baseline = protocol.baseline(units)
    wrong = attribute(subject, rows, readout, baseline=baseline)
    right = attribute(subject, held, towards, baseline=baseline) if held else None
    gap = np.concatenate([a.gap for a in (wrong, right) if a is not None])
    gap = np.quantile(gap, 0.9, axis=0)
    if (gap > COMPLETE).any():
        session().note(
            f"On {source} the attributions of layer {listing([str(i) for i in np.flatnonzero(gap > COMPLETE)])} do not add up "
            f"(they miss {gap.max():.2f} of probability: without these units the "
            "model breaks down), so none of their units is considered."
        )
    none = np.empty((0, *wrong.values.shape[1:]), np.float32)
    return Attributed(
        wrong.values, none if right is None else right.values, np.abs(units).mean(axis=0), gap <= COMPLETE, gap, rows, gold,
        shown, source, protocol,
    )  # fmt: skip
