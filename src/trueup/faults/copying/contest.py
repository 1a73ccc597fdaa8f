"""Candidates against each other on calibration queries: all are screened, the best are judged, and one wins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trueup.corpus.corpus import Corpus
from trueup.faults.copying.attribution import Attributed
from trueup.faults.copying.audit import some
from trueup.faults.copying.candidates import AS_IT_IS, Candidate, candidates
from trueup.faults.copying.harm import Bystander, bystanders
from trueup.faults.copying.heads import Heads, rivals
from trueup.faults.copying.judging import Asked, Judged, ask, beside, elsewhere, judged, row_of, screen
from trueup.measure.folds import folds
from trueup.run.edit import scaled
from trueup.subject.subject import Subject

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


def parted(queries: Corpus, seed: int) -> tuple[Corpus, Corpus, Corpus]:
    """A quarter of the clusters to screen, a quarter to judge and half to confirm, each cut to its most."""
    fold = folds(np.zeros(len(queries)), 4, seed=np.random.SeedSequence([seed, 13]), cluster=queries.cluster)
    of = (fold == 0, fold == 1, fold > 1)
    first, second, third = (
        some(queries.take(rows), most, seed) for rows, most in zip(of, (SCREENED, JUDGED, CONFIRMED), strict=True)
    )
    return first, second, third


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
        return winner(subject, chances, first, second, self.unscaled, [], Check([], 0.0, seed), seed, resamples)


def contest(
    subject: Subject, queries: Corpus, found: Sequence[Attributed], heads: Heads | None, *, seed: int, resamples: int,
    max_cost: float,
) -> Contest | None:  # fmt: skip
    """The candidates that follow from attributions, and heads at equal size, judged; None where no attributions add up."""
    first, second, third = parted(queries, seed)
    proposed = [c for f in found for c in candidates(f)]
    if not proposed:
        return None
    glance = list(bystanders(subject, "calibration", seed=seed, most=GLANCED, skip=GUARDED))
    check = Check(
        list(bystanders(subject, "calibration", seed=seed, most=CHECKED, skip=GUARDED)), max_cost + OPEN, seed
    )
    unscaled = ask(subject, second, seed)
    units = winner(subject, proposed, first, second, unscaled, glance, check, seed, resamples)
    whole = rivals(heads, (units.best or units.nearest).units)
    won = winner(subject, whole, first, second, unscaled, glance, check, seed, resamples) if whole else None
    return Contest((first, second, third), unscaled, proposed, units, whole, won)


class Check:
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
    check: Check, seed: int, resamples: int,
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
            judgement = judged(ask(subject, second, seed), second)
            spares = check.passed()
        rows.append(row_of(made[i], base, judgement, second, seed, resamples) | {"spares other tasks": spares})
        every.append((judgement, made[i]))
        # Heads that lose where copying is right must not take the place of units that a repair can be made of.
        lost = made[i].part == "mixer_out" and other[i] < -ALLOWED
        if abs(judgement.excess) < abs(base.excess) and judgement.no_worse(base) and not lost:
            able.append(every[-1])
            sparing += [every[-1]] * spares
    # Below chance is a fault as well: a model that shuns what it is shown.
    judgement, best = min(sparing or able, key=lambda k: abs(k[0].excess), default=(None, None))
    return Won(best, judgement, min(every, key=lambda k: abs(k[0].excess))[1], [c for _, c in every], rows)


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
