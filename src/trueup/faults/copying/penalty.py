"""The trivial rival of a repair: a penalty on the logits of answers that the demonstrations show."""

from __future__ import annotations

import numpy as np

from trueup.corpus.corpus import Corpus
from trueup.faults.copying import maths
from trueup.faults.copying.judging import Asked, Judged, answered, judged
from trueup.run.answers import Answers

PENALTIES = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Nats taken off the shown answers' logits by the trivial rival."""


def penalty_for(told: Asked, queries: Corpus) -> float:
    """The trivial rival: the penalty (nats) on the logits of shown answers that brings wrong copies nearest to chance and loses no
    accuracy; 0 where there is none."""
    base = judged(told, queries)
    best, nearest = 0.0, abs(base.excess)
    for nats in PENALTIES:
        j = with_penalty(told, queries, nats)
        if j.no_worse(base) and abs(j.excess) < nearest:
            best, nearest = nats, abs(j.excess)
    return best


def with_penalty(told: Asked, queries: Corpus, nats: float) -> Judged:
    """How queries are answered under a penalty on shown answers' logits."""
    table: dict[str, np.ndarray] = {}
    for mode, t in told.items():
        others = t.draws.others
        against = None if others is None or t.other is None else penalised(t.other, others.shown, nats)
        table |= answered(mode, t.draws, queries.label, penalised(t.got, t.draws.shown, nats), against)
    return Judged(table)


def penalised(got: Answers, shown: np.ndarray, penalty: float) -> np.ndarray:
    """(n,) the answers under a penalty on those shown."""
    answer = maths.penalised(got.logits, got.other, shown, penalty)
    # Longer answers than one token go on as the model would; those it changes are counted by their first.
    same = maths.penalised(got.logits, got.other, shown, 0.0) == answer
    return np.where(same, got.answer, answer)
