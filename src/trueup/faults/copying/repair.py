"""Finding -> Remedy: the feed-forward units (or attention heads) behind wrong copies, scaled down as a plain IA3 (or LoRA)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trueup.corpus.clusters import in_order
from trueup.corpus.corpus import Corpus
from trueup.corpus.prompt import MODES, Draws, Mode
from trueup.errors import BadInput, Unsupported, did_you_mean, listing
from trueup.faults.adapter_remedy import Adapted, adapted
from trueup.faults.copying import maths
from trueup.faults.copying.audit import TITLES, Told, asked, columns, scored, some, statistics
from trueup.faults.copying.harm import Bystander, bystanders
from trueup.faults.copying.proxy import proxy as counting
from trueup.faults.fault import (
    Alternative,
    Chart,
    Difference,
    Finding,
    Method,
    NoRemedy,
    Remedy,
    Series,
    as_differences,
    dearer,
)
from trueup.measure import bootstrap
from trueup.measure.folds import folds
from trueup.run import forward, prompts
from trueup.run.answers import Answers
from trueup.run.attention_heads import prefix_matching, repeated
from trueup.run.edit import scaled
from trueup.run.integrated_gradients import attribute, heads_replaced, last_units, scaled_at_last
from trueup.run.predict import collect_rows, session
from trueup.run.prompts import Row
from trueup.subject.subject import Subject
from trueup.subject.units import Part, head_width, layers_of, scales_as_adapter, width_of

EXPLAINED = 24
"""Prompts whose answers are attributed, of each kind."""
SCREENED, JUDGED, CONFIRMED = 80, 120, 200
"""Most calibration queries on which all candidates are screened, the best of them are judged, and the winner is put to the
test. No cluster has a query in two of these."""
GUARDED = 100
"""Fewest queries on which what a repair may cost is told: a twentieth of fewer cannot be told from none."""
FINALISTS = 3
"""Candidates that are judged in full, beside the published choice."""
GLANCED, CHECKED, ALLOWED, OPEN = 20, 80, 0.05, 0.03
"""Queries of each task in which copying is right: on so many all candidates are screened, and on so many the best are judged. How
much accuracy a candidate may lose on the first. And what some hundred queries leave open of a cost: the upper end of its interval
may lie so far above what may be paid."""
SHARES = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1)
"""The published grid: shares of a layer's units that are pruned."""
COUNTS = (1, 4, 16, 64, 256, 1024)
"""Ours: numbers of units, taken from all layers together."""
FACTORS = (0.0, 0.5)
"""What the units are multiplied by: 0 is published, 0.5 ours."""
PENALTIES = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Nats taken off the shown answers' logits by the trivial rival."""
ON_TEST = ("severity", "accuracy", "accuracy_never")
"""What `methods` tells of each: wrong copies above chance, accuracy where demonstrations are drawn freely, and where they never
show the right answer."""
COMPLETE = 0.05
"""Completeness error that attributions may have, in probability; layers above it are left alone."""

Scales = Mapping[int, Tensor]
Asked = Mapping[Mode, Told]


OWN, PROXY, REPEATED = "the task itself", "counting vowels", "repeated random tokens"
"""On what units and heads are found, as the table, the card and the sentence call it."""
UNITS, HEADS = "units", "heads"
"""What may be scaled, as `--take` names it."""
INDUCTION, FUNCTION = "induction", "function-vector"
KINDS: Mapping[str, str] = {
    INDUCTION: "How much attention a head gives, at a token that stood before, to what followed it there.",
    FUNCTION: "By how much a head makes the right answer likelier when it says what it says after proper demonstrations.",
}
"""The kinds of attention heads that stand as rivals beside the units, and what their scores say."""
LOOKS_BACK = 3.0
"""An induction head attends to what followed a token before at least so many times as even attention would."""
BINS = 64
"""Columns of the map of units."""


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


@dataclass(frozen=True, eq=False)
class Candidate:
    """Units to scale, or whole heads.

    Attributes:
        scales: layer -> factors (units,), or of what the layer's heads give. source: on what the units or heads were found.
        part: the projection whose input is scaled. wide: inputs that are scaled together, those of a head; 1 for units.
    """

    family: str
    title: str
    scales: Scales
    source: str
    part: Part = "down"
    wide: int = 1

    @property
    def units(self) -> int:
        """How many inputs of projections are scaled: one for each unit, `wide` for each head."""
        return sum(int((s != 1).sum()) for s in self.scales.values())

    @property
    def what(self) -> str:
        """What is scaled, in words."""
        if self.part == "down":
            return f"{self.units} feed-forward units"
        count = self.units // self.wide
        return f"{count} attention head{'s' * (count > 1)} ({self.units} inputs of the output projection)"


AS_IT_IS = Candidate("none", "as it is", {}, "")
"""No unit is scaled."""


@dataclass(frozen=True, eq=False)
class Judged:
    """How queries were answered: per mode (n,) right, copied and expected; nan where they could not be asked so."""

    columns: Mapping[str, np.ndarray]

    def mean(self, what: str, mode: Mode = "free") -> float:
        return float(np.nanmean(self.columns[f"{what}_{mode}"]))

    @property
    def modes(self) -> list[Mode]:
        return [m for m in MODES if not np.isnan(self.columns[f"right_{m}"]).all()]

    @property
    def excess(self) -> float:
        return self.mean("copied") - self.mean("expected")

    def loss(self, base: Judged) -> float:
        """The most accuracy that may have been lost where demonstrations are drawn freely (`maths.most_lost`)."""
        return maths.most_lost(base.columns["right_free"], self.columns["right_free"])

    @property
    def mixture(self) -> float:
        """Accuracy over the three ways of drawing that there are, each counting the same."""
        return float(np.mean([self.mean("right", m) for m in self.modes]))

    def no_worse(self, base: Judged) -> bool:
        """No accuracy is lost where demonstrations are drawn freely, nor over all ways of drawing."""
        return self.mean("right") >= base.mean("right") and self.mixture >= base.mixture


def repair(
    subject: Subject, corpus: Corpus, finding: Finding, *, seed: int, resamples: int, max_cost: float, take: str,
    proxy: bool = True, task: bool = True, protocol: maths.Protocol = maths.RECONSTRUCTED,
) -> Remedy | NoRemedy:  # fmt: skip
    """Units are found on prompts of the pool and on a proxy task, and chosen on the calibration split, of which three parts do
    three things.

    On the first every candidate is screened with its units scaled at the last position alone, which costs one pass for all of
    them. On the second the best are judged with the units scaled everywhere, as an adapter does it, and the one that brings
    wrong copies nearest to chance (below it a model shuns what it is shown) without losing accuracy wins. On the third, which
    chose nothing, that one is put to the test: wrong copies above chance fall beyond their paired interval, and by more than
    those of the best of as many random candidates, picked in the same way; and what accuracy can have been lost, here and in any
    task in which copying is right (first, last or largest of a list), is at most `max_cost` and what few queries leave open
    (`OPEN`).

    Whole attention heads, of which the field says that they copy, are rivals at equal size (`rivals`): judged beside the best
    units on the second part, and handed over in their place where they come nearer to chance and lose no accuracy against them.

    Args:
        proxy: units found on counting vowels are candidates, as published. task: those found on the subject's own prompts are.
        protocol: how either are scored. max_cost: accuracy that a repair may cost, a share of queries.
        take: ``units`` or ``heads`` to take what came nearest to chance of these, whatever it costs; empty for the rule.

    Raises:
        BadInput: there are too few calibration queries, or `take` is nothing that was tried. Unsupported: the subject's adapter
            takes no scales, or `proxy` alone is asked of a subject that cannot write its answers.
    """
    if not finding.found:
        return NoRemedy(
            f"Wrong copies above chance, {finding.severity:+.1%} [{finding.low:+.1%}, {finding.high:+.1%}], are not clearly more "
            f"than the threshold of {finding.threshold:.1%}, so there is nothing to repair."
        )
    if subject.quantised:
        raise Unsupported(
            "The repair reads and scales the weights of single units, and this base keeps its weights in fewer bits. Give the base "
            "in full (leave --quantize out), or in --dtype bfloat16."
        )
    if take not in ("", UNITS, HEADS):
        raise BadInput(
            f"No repair '{take}' of copying is tried.{did_you_mean(take, (UNITS, HEADS))} Give --take {UNITS} or --take {HEADS}."
        )
    corpus = corpus.relabel(subject.classes)
    queries = corpus.part("calibration")
    if (least := len(np.unique(queries.cluster))) < 2 * GUARDED:
        raise BadInput(
            f"'{corpus.name}' has {least} calibration queries of different texts, and a repair of copying needs "
            f"{2 * GUARDED}: half of them to find it, half to test it. Give more pairs, or a larger calibration split."
        )
    # What cannot be saved is refused now and not after the search.
    scales_as_adapter(subject, {0: torch.full((width_of(subject, 0),), 0.5)})
    found, heads = explained(subject, corpus, seed=seed, proxy=proxy, task=task, protocol=protocol)
    return choose(subject, queries, found, heads, seed=seed, resamples=resamples, max_cost=max_cost, take=take)


def explained(
    subject: Subject, corpus: Corpus, *, seed: int, proxy: bool, task: bool, protocol: maths.Protocol
) -> tuple[list[Attributed], Heads | None]:
    """Units and heads that may copy, found on the prompts of the pool, on the proxy task, or on both."""
    found = [attributed(subject, corpus.part("train"), seed, OWN, protocol)] if task else []
    try:
        found += [attributed(*counting(subject, seed=seed), seed, PROXY, protocol)] if proxy else []
    except Unsupported as e:
        if not task:
            raise
        session().note(f"copying: units were looked for on the task itself alone, and not on a proxy as published. {e}")
    heads = (
        heads_of(subject, corpus.part("train"), seed, OWN)
        if task
        else heads_of(*counting(subject, seed=seed), seed, PROXY)
    )
    return found, heads


def parted(queries: Corpus, seed: int) -> tuple[Corpus, Corpus, Corpus]:
    """A quarter of the clusters to screen, a quarter to judge and half to confirm, each cut to its most."""
    fold = folds(np.zeros(len(queries)), 4, seed=np.random.SeedSequence([seed, 13]), cluster=queries.cluster)
    of = (fold == 0, fold == 1, fold > 1)
    first, second, third = (
        some(queries.take(rows), most, seed) for rows, most in zip(of, (SCREENED, JUDGED, CONFIRMED), strict=True)
    )
    return first, second, third


def choose(
    subject: Subject, queries: Corpus, found: Sequence[Attributed], heads: Heads | None = None, *, seed: int, resamples: int,
    max_cost: float = 0.02, take: str = "",
) -> Adapted | NoRemedy:  # fmt: skip
    """The repair that calibration `queries` choose among the candidates that follow from attributions, and their rivals."""
    c = contest(subject, queries, found, heads, seed=seed, resamples=resamples, max_cost=max_cost)
    if c is None:
        return NoRemedy("In no layer do the attributions of units add up, so none can be told to copy.")
    first, second, third = c.parts
    made, units, whole, won, unscaled = c.made, c.units, c.whole, c.heads, c.unscaled
    rows, best, rival, chances = units.rows, units.best, None, random_like(made, seed)
    if won is not None and heads is not None:
        rows, rival = [*rows, *won.rows[1:]], won.best or won.nearest
        if take != UNITS and (take == HEADS or won.beats(units)):
            best, rival, made = won.best, units.best or units.nearest, [*made, *whole]
            chances += other_heads(whole, heads, seed)
        if take:
            best = best or (won if take == HEADS else units).nearest
    elif take == HEADS:
        raise BadInput(
            f"No attention heads of this model were tried, so --take {HEADS} has none to take. Leave it out, or give {UNITS}."
        )
    elif take:
        best = best or units.nearest
    about: dict[str, Any] = {
        "candidates": rows, "screened": len(made), "completeness gap": max(float(f.gap[f.sound].max(initial=0.0)) for f in found),
        "prompts explained": sum(len(f.rows) for f in found),
        "queries": {"screened": len(first), "judged": len(second), "confirmed": len(third)},
        "heads": {} if heads is None else {kind: int((score > 0).sum()) for kind, score in heads.score.items()},
    }  # fmt: skip
    if best is None:
        also = f" and {len(whole)} to scale attention heads" if whole else ""
        return NoRemedy(
            f"Of {len(made)} ways to scale units{also}, none lowers wrong copies on calibration queries without losing accuracy.",
            about,
        )
    plainly = ask(subject, third, seed)
    base = judged(plainly, third)
    others = list(bystanders(subject, "calibration", seed=seed, most=GUARDED))
    before = beside(others, seed)
    chance = c.of_chance(subject, chances, seed, resamples).best
    about["units from"] = best.source
    where_found = next((f for f in found if f.source == best.source), found[0])
    told = [row_of(AS_IT_IS, base, base, third, seed, resamples)]
    with scaled(subject, best.scales, best.part):
        got = judged(ask(subject, third, seed), third)
        lost = {
            name: maths.most_lost(a, b) for (name, *_), a, b in zip(others, before, beside(others, seed), strict=True)
        }
    row = row_of(best, base, got, third, seed, resamples) | {"elsewhere": -max(lost.values(), default=0.0)}
    told.append(row)
    against = base
    if chance is not None:
        chance = replace(chance, title=f"the best of {len(chances)} random candidates")
        with scaled(subject, chance.scales, chance.part):
            against = judged(ask(subject, third, seed), third)
        told.append(row_of(chance, base, against, third, seed, resamples))
    if rival is not None:
        with scaled(subject, rival.scales, rival.part):
            there = judged(ask(subject, third, seed), third)
        told.append(row_of(replace(rival, title=f"rival: {rival.title}"), base, there, third, seed, resamples))
    nats = _penalty(unscaled, second)
    penalised = replace(AS_IT_IS, title=f"rival: a penalty on shown answers' logits, {nats:g} nats")
    penalty = row_of(penalised, base, _with_penalty(plainly, third, nats), third, seed, resamples)
    about |= {
        "confirmed": [*told, penalty],
        "controls": _controls(subject, first, best, where_found, heads, seed, resamples),
    }
    points = frontier(row, told[-1] if rival is not None else None, best.part, penalty)
    about["frontier"] = [asdict(a) for a in points]
    better = row_of(AS_IT_IS, against, got, third, seed, resamples)
    moved = f"{row['change']:+.1%} [{row['low']:+.1%}, {row['high']:+.1%}]"
    lost[""] = got.loss(base)
    worst = max(lost, key=lost.__getitem__)
    most = lost[worst]
    if not take and not row["high"] < 0:
        return NoRemedy(
            f"Of {len(made)} ways to scale units the best, {best.title}, is not confirmed by {len(third)} queries that chose "
            f"nothing: wrong copies above chance change by {moved}.", about, points,
        )  # fmt: skip
    if not take and not better["high"] < 0:
        return NoRemedy(
            f"Scaling {best.what} lowers wrong copies ({moved}), but not measurably more than the best of as many random "
            f"candidates does ({better['change']:+.1%} [{better['low']:+.1%}, {better['high']:+.1%}] between them).", about, points,
        )  # fmt: skip
    if not take and dearer(most, max_cost + OPEN):
        return NoRemedy(
            f"Scaling {best.what} lowers wrong copies ({moved}), but up to {most:.1%} of accuracy may be lost "
            f"{f'on {worst!r}, whose answer stands in the query' if worst else 'here'}, and at most {max_cost + OPEN:.1%} are "
            f"allowed: the budget of {max_cost:.1%} and what some {GUARDED} queries leave open. Raise the budget (--max-cost "
            f"{math.ceil(100 * (most - OPEN)) / 100:g}), or take it all the same (--take {points[0].key}).",
            about, points, True,
        )  # fmt: skip
    layers = sorted(best.scales)
    where = f"layer {layers[0]}" if len(layers) == 1 else f"{len(layers)} layers"
    says = (
        f"Scales {best.what} of {where} ({best.title}, {'units' if best.part == 'down' else 'heads'} found on {best.source}): on "
        f"{len(third)} calibration queries that were not used for choosing, wrong copies above chance change by {moved} and "
        f"accuracy by {row['accuracy change']:+.1%}; a penalty on shown answers "
        f"changes them by {penalty['change']:+.1%} and {penalty['accuracy change']:+.1%}."
    )
    about["table"] = _markdown(rows, about["confirmed"], about["controls"])
    settings, tensors = scales_as_adapter(subject, best.scales, best.part)
    picture = unit_map(where_found.contrasted, best.scales)
    if best.part == "mixer_out":
        assert heads is not None
        picture = head_map(heads.score[best.family], best.family, best.scales)
    return adapted("copying", subject, settings, tensors, {"describe": says, **about}, pictures=(picture,))


def frontier(
    row: Mapping[str, Any], rival: Mapping[str, Any] | None, part: Part, penalty: Mapping[str, Any]
) -> tuple[Alternative, ...]:
    """What the chosen repair, the other kind of inputs and the penalty gain (wrong copies above chance taken away) and cost
    (accuracy where demonstrations are drawn freely), on queries that chose nothing; the chosen one first."""

    def point(key: str, r: Mapping[str, Any], chosen: bool, saveable: bool) -> Alternative:
        return Alternative(
            key, r["title"], -r["change"], -r["high"], -r["low"], -r["accuracy change"], -r["accuracy high"],
            -r["accuracy low"], chosen, saveable,
        )  # fmt: skip

    own, other = (UNITS, HEADS) if part == "down" else (HEADS, UNITS)
    points = [point(own, row, True, True)]
    if rival is not None:
        points.append(point(other, rival, False, True))
    return (*points, point("penalty", penalty, False, False))


@dataclass(frozen=True, eq=False)
class Won:
    """What came of judging candidates.

    Attributes:
        best: None where all lose accuracy or lower nothing. got: how it answered.
        nearest: the judged one that came nearest to chance, whatever it cost. rows: the table of those judged, as it is first.
        every: the judged ones.
    """

    best: Candidate | None
    got: Judged | None
    nearest: Candidate
    every: list[Candidate]
    rows: list[dict[str, Any]]

    def beats(self, other: Won) -> bool:
        """It comes nearer to chance and loses no accuracy against the other: a model made blind to its demonstrations copies
        nothing either."""
        if self.got is None or other.got is None:
            return self.got is not None
        return abs(self.got.excess) < abs(other.got.excess) and self.got.no_worse(other.got)


@dataclass(frozen=True, eq=False)
class Contest:
    """What calibration queries say of all candidates.

    Attributes:
        parts: the queries that screened, judged, and chose nothing. unscaled: the second of them asked of the model as it is.
        made, units: ways to scale units, and what came of them. whole, heads: the same of attention heads; None without any.
    """

    parts: tuple[Corpus, Corpus, Corpus]
    unscaled: Asked
    made: list[Candidate]
    units: Won
    whole: list[Candidate]
    heads: Won | None

    def of_chance(self, subject: Subject, chances: Sequence[Candidate], seed: int, resamples: int) -> Won:
        """What the same choice makes of candidates that were drawn at random."""
        first, second, _ = self.parts
        return winner(subject, chances, first, second, self.unscaled, [], _Check([], 0.0, seed), seed, resamples)


def contest(
    subject: Subject, queries: Corpus, found: Sequence[Attributed], heads: Heads | None, *, seed: int, resamples: int,
    max_cost: float,
) -> Contest | None:  # fmt: skip
    """The candidates that follow from attributions, and heads at equal size, judged; None where no attributions add up."""
    first, second, third = parted(queries, seed)
    made = [c for f in found for c in candidates(f)]
    if not made:
        return None
    glance = list(bystanders(subject, "calibration", seed=seed, most=GLANCED, skip=GUARDED))
    check = _Check(
        list(bystanders(subject, "calibration", seed=seed, most=CHECKED, skip=GUARDED)), max_cost + OPEN, seed
    )
    unscaled = ask(subject, second, seed)
    units = winner(subject, made, first, second, unscaled, glance, check, seed, resamples)
    whole = rivals(heads, (units.best or units.nearest).units)
    won = winner(subject, whole, first, second, unscaled, glance, check, seed, resamples) if whole else None
    return Contest((first, second, third), unscaled, made, units, whole, won)


class _Check:
    """Whether a candidate that is live loses no more than is allowed in any task in which copying is right, as far as its queries
    tell. None of them confirms the winner."""

    def __init__(self, others: Sequence[Bystander], allowed: float, seed: int) -> None:
        self.others, self.allowed, self.seed = others, allowed, seed
        self.before = beside(others, seed)

    def passed(self) -> bool:
        after = beside(self.others, self.seed)
        return all(float((a - b).mean()) <= self.allowed for a, b in zip(self.before, after, strict=True))


def winner(
    subject: Subject, made: Sequence[Candidate], first: Corpus, second: Corpus, unscaled: Asked, others: Sequence[Bystander],
    check: _Check, seed: int, resamples: int,
) -> Won:  # fmt: skip
    """The candidate that the first queries screen and the second choose, of those that `check` passes where there are any.

    `unscaled`: the second queries asked of the model as it is. `others`: tasks on which all candidates are screened.
    """
    plain, screened = screen(subject, first, made, seed)
    base = judged(unscaled, second)
    rows = [row_of(AS_IT_IS, base, base, second, seed, resamples)]
    able: list[tuple[Judged, Candidate]] = []
    sparing: list[tuple[Judged, Candidate]] = []
    every: list[tuple[Judged, Candidate]] = []
    other = elsewhere(others, made, seed)
    for i in finalists(made, plain, screened, other):
        with scaled(subject, made[i].scales, made[i].part):
            got = judged(ask(subject, second, seed), second)
            spares = check.passed()
        rows.append(row_of(made[i], base, got, second, seed, resamples) | {"spares other tasks": spares})
        every.append((got, made[i]))
        # Heads that lose where copying is right must not take the place of units that a repair can be made of.
        lost = made[i].part == "mixer_out" and other[i] < -ALLOWED
        if abs(got.excess) < abs(base.excess) and got.no_worse(base) and not lost:
            able.append(every[-1])
            sparing += [every[-1]] * spares
    # Below chance is a fault as well: a model that shuns what it is shown.
    got, best = min(sparing or able, key=lambda k: abs(k[0].excess), default=(None, None))
    return Won(best, got, min(every, key=lambda k: abs(k[0].excess))[1], [c for _, c in every], rows)


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
    own = np.array([place[y] for _, y in shots.pool])[draws.index]
    shuffled = rng.permutation(own.ravel()).reshape(own.shape)
    mean = last_units(subject, prompts.rows(subject, queries.text, draws), "mixer_out").mean(axis=0)
    logits_of = forward.reader(subject)

    def right(hidden: Tensor, i: int) -> Tensor:
        return torch.softmax(logits_of(hidden.float()), dim=1)[:, int(queries.label[i])]

    return heads_replaced(subject, prompts.rows(subject, queries.text, draws, shuffled), right, mean).mean(axis=0)


def rivals(heads: Heads | None, units: int) -> list[Candidate]:
    """For each kind of heads the best, so many that about `units` inputs are scaled, at least one head: at 0 and halved."""
    made: list[Candidate] = []
    for kind, score in ({} if heads is None else heads.score).items():
        assert heads is not None
        count = min(max(1, round(units / heads.wide)), int((score > 0).sum()))
        for factor in FACTORS if count else ():
            title = f"{kind}: the top {count} heads of all layers at {factor:g}"
            scales = heads_scaled(score, count, heads.wide, factor)
            source = REPEATED if kind == INDUCTION else heads.source
            made.append(Candidate(kind, title, scales, source, "mixer_out", heads.wide))
    return made


def heads_scaled(score: np.ndarray, count: int, wide: int, factor: float) -> Scales:
    """The `count` highest of (layers, heads), each with all of its `wide` inputs."""
    best = zip(*np.unravel_index(maths.top(score.ravel(), count), score.shape), strict=True)
    inputs = [(int(at), int(h) * wide + k) for at, h in best for k in range(wide)]
    return scales_of(inputs, score.shape[1] * wide, factor)


def random_like(made: Sequence[Candidate], seed: int) -> list[Candidate]:
    """For every candidate one with as many units of the same layers, drawn at random, scaled alike."""
    rng = np.random.default_rng(seed)
    return [
        Candidate(
            c.family, "random units", {
                at: torch.ones(len(s)).scatter(0, torch.as_tensor(rng.permutation(len(s))[: int((s != 1).sum())]), float(s.min()))
                for at, s in c.scales.items()
            }, "nothing",
        )
        for c in made
    ]  # fmt: skip


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


def unit_map(score: np.ndarray, scales: Scales) -> Chart:
    """Layers by bins of neighbouring units: in each bin the score (layers, units) that is farthest from 0."""
    depth, units = score.shape
    bins = np.array_split(np.arange(units), min(units, BINS))
    columns = [float(b[0]) for b in bins]
    rows = []
    for layer in range(depth):
        cells = [float(score[layer, b][np.abs(score[layer, b]).argmax()]) for b in bins]
        scaled_here = " (scaled)" if layer in scales else ""
        rows.append(Series(f"layer {layer}{scaled_here}", columns, cells))
    return Chart(
        "units", "Which units copy", "heat", "unit", "layer",
        "What a feed-forward unit adds to the probability of a shown answer where that is wrong, less what it adds to one that is "
        "right: in each cell the strongest of its units. The repair scales units of the rows that say so.",
        tuple(rows), value_title="added probability of a wrong copy",
    )  # fmt: skip


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
        said = np.where(shown, plain[:, : shown.shape[1]], -np.inf).argmax(axis=1)

        def readout(hidden: Tensor, i: int) -> Tensor:
            there, same = torch.as_tensor(shown[i], device=hidden.device), first == first[int(gold[i])]
            asked = maths.Question(there, int(gold[i]), int(said[i]), same, right=mode == "always")
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


def ask(subject: Subject, queries: Corpus, seed: int) -> Asked:
    """The queries asked in all three ways."""
    return {m: asked(subject, queries, m, seed) for m in MODES}


def judged(told: Asked, queries: Corpus) -> Judged:
    """How the queries were answered under each kind of draw."""
    kept: dict[str, np.ndarray] = {}
    for mode, t in told.items():
        other = None if t.other is None else t.other.answer
        kept |= _columns(mode, t.draws, queries.label, t.got.answer, other)
    return Judged(kept)


def _columns(
    mode: Mode, draws: Draws, gold: np.ndarray, answer: np.ndarray, other: np.ndarray | None
) -> dict[str, np.ndarray]:
    values, able = scored(draws, gold, answer, other), draws.possible
    return {f"{what}_{mode}": np.where(able, values[what], np.nan) for what in ("right", "copied", "expected")}


def candidates(found: Attributed) -> list[Candidate]:
    """The published grid (the top share of one layer at 0), the same halved, and ours (the top units of all layers, at 0
    or halved). At 0 a layer's units can take copies below chance, and answers that were right to copy with them."""
    depth, units = found.active.shape
    made, published = [], found.published
    for layer in np.flatnonzero(found.sound).tolist():
        for count, share in {max(1, round(s * units)): s for s in SHARES}.items():
            pairs = [(layer, int(u)) for u in maths.top(published[layer], count)]
            for factor in FACTORS:
                family = "softened" if factor else "published"
                title = f"{family}: the top {share:.1%} of layer {layer} at {factor:g}"
                made.append(Candidate(family, title, scales_of(pairs, units, factor), found.source))
    score = np.where(found.sound[:, None], found.contrasted, -np.inf)
    order = np.argsort(-score, axis=None, kind="stable")
    positive = int((score > 0).sum())
    for count in (c for c in COUNTS if c <= min(positive, depth * units // 8)):
        layer, unit = np.unravel_index(order[:count], (depth, units))
        for factor in FACTORS:
            scales = scales_of(list(zip(layer.tolist(), unit.tolist(), strict=True)), units, factor)
            title = f"contrasted: the top {count} units of all layers at {factor:g}"
            made.append(Candidate("contrasted", title, scales, found.source))
    return made


def screen(
    subject: Subject, queries: Corpus, made: Sequence[Candidate], seed: int, modes: Sequence[Mode] = MODES
) -> tuple[Judged, list[Judged]]:
    """The queries asked in these ways of the plain model, and of every candidate scaled at the last position alone.

    Answers are told by their first tokens, among the classes.
    """
    logits_of, first = forward.reader(subject), np.array(subject.verbaliser_ids())
    every = [replace(made[0], scales={min(made[0].scales): torch.tensor(1.0)}), *made]
    kept: list[dict[str, np.ndarray]] = [{} for _ in every]

    def said(draws: Draws) -> np.ndarray:
        """(n, 1 + c) the classes answered, -1 where there is no such prompt."""
        able, answer = np.flatnonzero(draws.possible), np.full((len(queries), len(kept)), -1)
        if len(able):
            rows = prompts.rows(subject, queries.take(able).text, draws.take(able))
            parts: tuple[Part, ...] = tuple(dict.fromkeys(c.part for c in every))
            for part in parts:
                here = [i for i, c in enumerate(every) if c.part == part]
                logits = scaled_at_last(
                    subject, rows, lambda h, _: logits_of(h.float()), [every[i].scales for i in here], part
                )
                for c, choice in zip(here, logits.argmax(axis=2).T, strict=True):
                    answer[able, c] = maths.by_token(first, choice, queries.label[able], draws.shown[able])
        return answer

    for mode in modes:
        draws = prompts.drawn(subject, queries, mode=mode, seed=seed)
        given = [said(draws), *([] if draws.others is None else [said(draws.others)])]
        for c in range(len(kept)):
            answer, other = given[0][:, c], given[-1][:, c] if len(given) > 1 else None
            kept[c] |= _columns(mode, draws, queries.label, answer, other)
    return Judged(kept[0]), [Judged(k) for k in kept[1:]]


def elsewhere(others: Sequence[Bystander], made: Sequence[Candidate], seed: int) -> np.ndarray:
    """(c,) change of accuracy of the task in which copying is right that suffers most, with a candidate's units scaled at the
    last position; nan where none of these tasks can be asked."""
    changes = []
    for _, able, queries in others:
        plain, got = screen(able, queries, made, seed, ("free",))
        changes.append([j.mean("right") - plain.mean("right") for j in got])
    return np.min(changes, axis=0) if changes else np.full(len(made), np.nan)


def beside(others: Sequence[Bystander], seed: int) -> list[np.ndarray]:
    """For each task in which copying is right, (n,) whether the live model as it is now answers right."""
    return [
        (asked(able, queries, "free", seed).got.answer == queries.label).astype(float) for _, able, queries in others
    ]


def finalists(made: Sequence[Candidate], plain: Judged, screened: Sequence[Judged], other: np.ndarray) -> list[int]:
    """The published choice (best accuracy where the right answer is never shown) of either source of units, and ours: wrong
    copies nearest to chance among those that lose no accuracy here or elsewhere, else the best accuracy over all ways of
    drawing. Of attention heads the best of each kind, in that order."""

    def ours(i: int) -> tuple[float, float]:
        j, able = screened[i], screened[i].no_worse(plain) and not other[i] < -ALLOWED
        return (float(not able), abs(j.excess) if able else -j.mixture)

    theirs: dict[str, int] = {}
    for i in sorted(range(len(made)), key=lambda i: -screened[i].mean("right", "never")):
        if made[i].family == "published":
            theirs.setdefault(made[i].source, i)
    in_order = sorted(range(len(made)), key=ours)
    kinds: dict[str, int] = {}
    for i in in_order:
        if made[i].part == "mixer_out":
            kinds.setdefault(made[i].family, i)
    units = [i for i in in_order if made[i].part == "down"][:FINALISTS]
    return list(dict.fromkeys([*theirs.values(), *units, *kinds.values()]))


def _controls(
    subject: Subject, queries: Corpus, best: Candidate, found: Attributed, heads: Heads | None, seed: int, resamples: int
) -> list[dict[str, Any]]:  # fmt: skip
    """The chosen units, and as many others of the same layers, at the last position: the most active, and the lowest scores.

    Of heads it is as many of all layers with the lowest scores."""
    factor = min(float(s.min()) for s in best.scales.values())
    if best.part == "mixer_out":
        assert heads is not None
        lowest = heads_scaled(-heads.score[best.family], best.units // best.wide, best.wide, factor)
        made = [
            replace(best, title="the chosen heads"),
            replace(best, title="the heads with the lowest scores", scales=lowest),
        ]
        plain, got = screen(subject, queries, made, seed)
        return [row_of(c, plain, j, queries, seed, resamples) for c, j in zip(made, got, strict=True)]
    units = found.active.shape[1]
    counts = {at: int((s != 1).sum()) for at, s in best.scales.items()}

    def others(title: str, score: np.ndarray) -> Candidate:
        pairs = [(at, int(u)) for at, n in counts.items() for u in maths.top(score[at].astype(float), n)]
        return Candidate("control", title, scales_of(pairs, units, factor), best.source)

    made = [
        replace(best, title="the chosen units"),
        others("the most active units", found.active),
        others("the lowest scores", -found.contrasted),
    ]
    plain, got = screen(subject, queries, made, seed)
    return [row_of(c, plain, j, queries, seed, resamples) for c, j in zip(made, got, strict=True)]


def methods(
    subject: Subject, corpus: Corpus, *, seed: int, resamples: int, max_cost: float, proxy: bool, task: bool
) -> list[Method]:
    """On ``test``: the published choice of units from either source, ours, heads of each kind at equal size, the penalty on shown
    answers, and units drawn at random, all chosen on ``calibration`` as in `repair`.

    Raises: as `repair`; Unsupported where no attributions add up.
    """
    corpus = corpus.relabel(subject.classes)
    found, heads = explained(subject, corpus, seed=seed, proxy=proxy, task=task, protocol=maths.RECONSTRUCTED)
    c = contest(subject, corpus.part("calibration"), found, heads, seed=seed, resamples=resamples, max_cost=max_cost)
    if c is None:
        raise Unsupported("In no layer do the attributions of units add up, so none can be told to copy.")
    test, _ = in_order(corpus.part("test"))
    own = c.units.best or c.units.nearest
    tried = {f"published, on {x.source}": x for x in c.units.every if x.family == "published" and x is not own}
    tried["units"] = own
    if c.heads is not None:
        judged_heads = [*([c.heads.best] if c.heads.best else []), *c.heads.every]
        tried |= {x.family: x for x in reversed(judged_heads)}  # the best, where it is one of its kind, comes last
    chance = c.of_chance(subject, random_like(c.made, seed), seed, resamples)
    tried["random"] = replace(chance.best or chance.nearest, title="the best of as many random candidates")
    won = c.heads if c.heads is not None and c.heads.beats(c.units) else c.units
    chosen = next((k for k, x in tried.items() if x is won.best), None)
    answers = {"": columns(subject, test, seed)}
    for key, x in tried.items():
        with scaled(subject, x.scales, x.part):
            answers[key] = columns(subject, test, seed)
        session().progress("methods on the test queries", len(answers) - 1, len(tried))
    nats = _penalty(c.unscaled, c.parts[1])
    answers["penalty"] = columns(subject, test, seed, lambda got, shown: _penalised(got, shown, nats))
    tried["penalty"] = replace(AS_IT_IS, title=f"a penalty of {nats:g} nats on shown answers", source="the task itself")
    told = {k: list(of.values()) for k, of in answers.items()}
    wanted = {k: s[0] for k, s in statistics(answers[""]).items() if k in ON_TEST}

    def apart(a: str, b: str) -> dict[str, Difference]:
        sides = (told[a], told[b])
        return as_differences(bootstrap.paired_many(wanted, *sides, seed, resamples, cluster=test.cluster))

    return [
        Method(
            key, x.title, "baseline" if key in ("random", "penalty") else _SOURCES.get(x.family, "ours"), x.source,
            {k: f(*told[key]) for k, f in wanted.items()}, apart("", key),
            {} if chosen in (None, key) else apart(chosen, key), key == chosen, key != "penalty", key == "random",
        )
        for key, x in tried.items()
    ]  # fmt: skip


_SOURCES = {
    "published": "arXiv 2410.01288",
    INDUCTION: "arXiv 2209.11895",
    FUNCTION: "arXiv 2310.15213",
}


def row_of(tried: Candidate, base: Judged, got: Judged, queries: Corpus, seed: int, resamples: int) -> dict[str, Any]:
    """One line of the table: accuracy in each mode, wrong copies above chance, and their paired change."""

    excess = bootstrap.Share(lambda copied, expected: copied, less=lambda copied, expected: expected)
    there = ~np.isnan(base.columns["copied_free"])

    def of(j: Judged) -> list[np.ndarray]:
        return [j.columns["copied_free"][there], j.columns["expected_free"][there]]

    d = bootstrap.paired(excess, of(base), of(got), seed, resamples, cluster=queries.cluster[there])
    right = {m: got.mean("right", m) for m in got.modes}
    was, now = ([j.columns["right_free"][there]] for j in (base, got))
    a = bootstrap.paired(bootstrap.Share(np.asarray), was, now, seed, resamples, cluster=queries.cluster[there])
    return {
        "title": tried.title, "units": tried.units, "units from": tried.source, **{f"accuracy {m}": v for m, v in right.items()},
        "accuracy change": a.value, "accuracy low": a.low, "accuracy high": a.high,
        "severity": got.excess, "change": d.value, "low": d.low, "high": d.high,
    }  # fmt: skip


def _markdown(
    judged: Sequence[Mapping[str, Any]], confirmed: Sequence[Mapping[str, Any]], controls: Sequence[Mapping[str, Any]]
) -> str:
    """The card's tables of what was tried."""

    def lines(rows: Sequence[Mapping[str, Any]]) -> str:
        modes: list[Mode] = [m for m in MODES if f"accuracy {m}" in rows[0]]
        head = [
            "what", "inputs scaled", "found on", *(f"accuracy, {TITLES[m]}" for m in modes), "copies above chance", "change [95%]",
        ]  # fmt: skip
        body = [
            [r["title"], str(r["units"]), r["units from"], *(format(r["accuracy " + m], ".3f") for m in modes),
             f"{r['severity']:+.3f}", f"{r['change']:+.3f} [{r['low']:+.3f}, {r['high']:+.3f}]"]
            for r in rows
        ]  # fmt: skip
        return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *body])

    return (
        "On calibration queries that were not used for choosing:\n\n" + lines(confirmed)
        + "\n\nOn the queries that were used for choosing among these, so the intervals are optimistic:\n\n" + lines(judged)
        + "\n\nAs many others of the same kind, scaled at the last token alone:\n\n" + lines(controls)
    )  # fmt: skip


def _penalty(told: Asked, queries: Corpus) -> float:
    """The trivial rival: the penalty (nats) on the logits of shown answers that brings wrong copies nearest to chance and loses no
    accuracy; 0 where there is none."""
    base = judged(told, queries)
    best, nearest = 0.0, abs(base.excess)
    for nats in PENALTIES:
        j = _with_penalty(told, queries, nats)
        if j.no_worse(base) and abs(j.excess) < nearest:
            best, nearest = nats, abs(j.excess)
    return best


def _with_penalty(told: Asked, queries: Corpus, nats: float) -> Judged:
    """How queries are answered under a penalty on shown answers' logits."""
    kept: dict[str, np.ndarray] = {}
    for mode, t in told.items():
        others = t.draws.others
        against = None if others is None or t.other is None else _penalised(t.other, others.shown, nats)
        kept |= _columns(mode, t.draws, queries.label, _penalised(t.got, t.draws.shown, nats), against)
    return Judged(kept)


def _penalised(got: Answers, shown: np.ndarray, penalty: float) -> np.ndarray:
    """(n,) the answers under a penalty on those shown."""
    answer = maths.penalised(got.logits, got.other, shown, penalty)
    # Longer answers than one token go on as the model would; those it changes are counted by their first.
    same = maths.penalised(got.logits, got.other, shown, 0.0) == answer
    return np.where(same, got.answer, answer)


def scales_of(pairs: Sequence[tuple[int, int]], units: int, factor: float) -> dict[int, Tensor]:
    made: dict[int, Tensor] = {}
    for layer, unit in pairs:
        made.setdefault(layer, torch.ones(units))[unit] = factor
    return made


def null_remedy(subject: Subject) -> Adapted:
    """The adapter that multiplies one layer's units by 1."""
    settings, tensors = scales_as_adapter(subject, {0: torch.ones(width_of(subject, 0))})
    return adapted("copying", subject, settings, tensors, {"describe": "Scales nothing."})
