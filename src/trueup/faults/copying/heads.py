"""Attention heads of which the field says that they copy or carry a task: rivals of the units, at equal size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from trueup.corpus.corpus import Corpus
from trueup.errors import Unsupported
from trueup.faults.copying import maths
from trueup.faults.copying.attribution import EXPLAINED, REPEATED
from trueup.faults.copying.candidates import FACTORS, Candidate, Scales, scales_of
from trueup.faults.fault import (
    Chart,
    Series,
)
from trueup.run import forward, prompts
from trueup.run.attention_heads import prefix_matching, repeated
from trueup.run.integrated_gradients import heads_replaced, last_units
from trueup.run.predict import session
from trueup.subject.subject import Subject
from trueup.subject.units import head_width, layers_of, scales_as_adapter, width_of

INDUCTION, FUNCTION = "induction", "function-vector"
KINDS: Mapping[str, str] = {
    INDUCTION: "How much attention a head gives, at a token that stood before, to what followed it there.",
    FUNCTION: "By how much a head makes the right answer likelier when it says what it says after proper demonstrations.",
}
"""The kinds of attention heads that stand as rivals beside the units, and what their scores say."""
LOOKS_BACK = 3.0
"""An induction head attends to what followed a token before at least so many times as even attention would."""


@dataclass(frozen=True, eq=False)
class Heads:
    """What attention heads do, as the field tells heads that copy or carry a task.

    Attributes:
        score: kind -> (layers, heads), 0 for a head that is none of that kind. ``induction``: the prefix-matching score
            (`run.attention_heads`). ``function-vector``: the average indirect effect (`indirect_effect`), in probability.
        wide: numbers that one head gives. source: what the prompts of the indirect effect ask for.
    """

    score: Mapping[str, np.ndarray]
    wide: int
    source: str


def heads_of(subject: Subject, train: Corpus, seed: int, source: str) -> Heads | None:
    """The attention heads that may copy; None where the model has none, or none whose scales could be saved."""
    if subject.anatomy.kind == "state-space":
        return None
    if why := subject.anatomy.lacks.get("attention") or subject.anatomy.lacks.get("mixer_out"):
        session().note(
            f"copying: attention heads were not tried beside the units, because they were not discovered: {why}."
        )
        return None
    wide, depth = head_width(subject), len(layers_of(subject))
    try:
        every = {at: torch.full((width_of(subject, at, "mixer_out"),), 0.5) for at in range(depth)}
        scales_as_adapter(subject, every, "mixer_out")
    except Unsupported as e:
        session().note(f"copying: attention heads were not tried beside the units. {e}")
        return None
    look, even = prefix_matching(subject, repeated(subject, seed))
    effect = indirect_effect(subject, train, seed)
    score = {INDUCTION: np.where(look >= LOOKS_BACK * even, look, 0.0), FUNCTION: np.maximum(effect, 0.0)}
    return Heads(score, wide, source)


def indirect_effect(subject: Subject, train: Corpus, seed: int) -> np.ndarray:
    """(layers, heads), in probability: by how much a head, given what it says after proper demonstrations, makes the right
    answer likelier after demonstrations whose answers are shuffled.

    The average indirect effect of Todd et al. 2024 (arXiv 2310.15213, eqs. 3 to 5), by which they tell function-vector heads:
    each head's mean over proper prompts, at the last token, is put in its place there. Exact patching, no approximation.
    Departures: the one task is the subject's own; answers are shuffled over all of the prompts, so that one demonstration is
    shuffled as well; and the probability is among the answers' first tokens.
    """
    train = train.relabel(subject.classes)
    draws, shots = prompts.drawn(subject, train, seed=seed), prompts.pool_of(subject)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 37]))
    able = np.sort(rng.permutation(np.flatnonzero(draws.possible))[:EXPLAINED])
    draws, queries = draws.take(able), train.take(able)
    place = {c: i for i, c in enumerate(subject.classes)}
    answer_of_demonstration = np.array([place[y] for _, y in shots.pool])[draws.index]
    shuffled = rng.permutation(answer_of_demonstration.ravel()).reshape(answer_of_demonstration.shape)
    mean = last_units(subject, prompts.rows(subject, queries.text, draws), "mixer_out").mean(axis=0)
    logits_of = forward.reader(subject)

    def right(hidden: Tensor, i: int) -> Tensor:
        return torch.softmax(logits_of(hidden.float()), dim=1)[:, int(queries.label[i])]

    return heads_replaced(subject, prompts.rows(subject, queries.text, draws, shuffled), right, mean).mean(axis=0)


def rivals(heads: Heads | None, units: int) -> list[Candidate]:
    """For each kind of heads the best, so many that about `units` inputs are scaled, at least one head: at 0 and halved."""
    proposed: list[Candidate] = []
    for kind, score in ({} if heads is None else heads.score).items():
        assert heads is not None
        count = min(max(1, round(units / heads.wide)), int((score > 0).sum()))
        for factor in FACTORS if count else ():
            title = f"{kind}: the top {count} heads of all layers at {factor:g}"
            scales = heads_scaled(score, count, heads.wide, factor)
            source = REPEATED if kind == INDUCTION else heads.source
            proposed.append(Candidate(kind, title, scales, source, "mixer_out", heads.wide))
    return proposed


def heads_scaled(score: np.ndarray, count: int, wide: int, factor: float) -> Scales:
    """The `count` highest of (layers, heads), each with all of its `wide` inputs."""
    best = zip(*np.unravel_index(maths.top(score.ravel(), count), score.shape), strict=True)
    inputs = [(int(at), int(h) * wide + k) for at, h in best for k in range(wide)]
    return scales_of(inputs, score.shape[1] * wide, factor)


def other_heads(made: Sequence[Candidate], heads: Heads, seed: int) -> list[Candidate]:
    """For every candidate one with as many heads that it leaves alone, of all layers, drawn at random, scaled alike.

    Heads are few, so that draws among all of them would be the candidate itself too often."""
    rng, drawn = np.random.default_rng(seed), []
    for c in made:
        score = rng.random(heads.score[c.family].shape)
        for at, s in c.scales.items():
            score[at, (s.numpy() != 1)[:: c.wide]] = 0.0
        count = min(c.units // c.wide, int((score > 0).sum()))
        factor = min(float(s.min()) for s in c.scales.values())
        if count:
            scales = heads_scaled(score, count, c.wide, factor)
            drawn.append(replace(c, title="random heads", source="nothing", scales=scales))
    return drawn


def head_map(score: np.ndarray, kind: str, scales: Scales) -> Chart:
    """Layers by heads of one score (layers, heads)."""
    rows = [
        Series(f"layer {at}{' (scaled)' * (at in scales)}", [float(h) for h in range(score.shape[1])], line.tolist())
        for at, line in enumerate(score)
    ]
    return Chart(
        "heads", f"Which {kind} heads there are", "heat", "head", "layer",
        f"{KINDS[kind]} The repair scales heads of the rows that say so.",
        tuple(rows), value_title="score",
    )  # fmt: skip
