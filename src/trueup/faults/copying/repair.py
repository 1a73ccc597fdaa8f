"""Finding -> Remedy: the feed-forward units (or attention heads) behind wrong copies, scaled down as a plain IA3 (or LoRA)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from trueup.corpus.corpus import Corpus
from trueup.corpus.prompt import MODES, Mode
from trueup.errors import BadInput, Unsupported, did_you_mean
from trueup.faults.adapter_remedy import Adapted, adapted
from trueup.faults.copying import maths
from trueup.faults.copying.attribution import OWN, PROXY, Attributed, attributed
from trueup.faults.copying.audit import TITLES
from trueup.faults.copying.candidates import AS_IT_IS, Candidate, random_like, scales_of, unit_map
from trueup.faults.copying.contest import GUARDED, OPEN, Contest, contest
from trueup.faults.copying.harm import bystanders
from trueup.faults.copying.heads import Heads, head_map, heads_of, heads_scaled, other_heads
from trueup.faults.copying.judging import Judged, ask, beside, judged, row_of, screen
from trueup.faults.copying.penalty import penalty_for, with_penalty
from trueup.faults.copying.proxy import proxy as counting
from trueup.faults.fault import (
    Alternative,
    Finding,
    NoRemedy,
    Remedy,
    dearer,
)
from trueup.run.edit import scaled
from trueup.run.predict import session
from trueup.subject.subject import Subject
from trueup.subject.units import Part, scales_as_adapter, width_of

UNITS, HEADS = "units", "heads"
"""What may be scaled, as `--take` names it."""


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


def choose(
    subject: Subject, queries: Corpus, found: Sequence[Attributed], heads: Heads | None = None, *, seed: int, resamples: int,
    max_cost: float = 0.02, take: str = "",
) -> Adapted | NoRemedy:  # fmt: skip
    """The repair that calibration `queries` choose among the candidates that follow from attributions, and their rivals."""
    c = contest(subject, queries, found, heads, seed=seed, resamples=resamples, max_cost=max_cost)
    if c is None:
        return NoRemedy("In no layer do the attributions of units add up, so none can be told to copy.")
    chosen = _chosen(c, heads, take, seed)
    about: dict[str, Any] = {
        "candidates": chosen.rows, "screened": len(chosen.made),
        "completeness gap": max(float(f.gap[f.sound].max(initial=0.0)) for f in found),
        "prompts explained": sum(len(f.rows) for f in found),
        "queries": dict(zip(("screened", "judged", "confirmed"), map(len, c.parts), strict=True)),
        "heads": {} if heads is None else {kind: int((score > 0).sum()) for kind, score in heads.score.items()},
    }  # fmt: skip
    best = chosen.best
    if best is None:
        also = f" and {len(c.whole)} to scale attention heads" if c.whole else ""
        return NoRemedy(
            f"Of {len(c.made)} ways to scale units{also}, none lowers wrong copies on calibration queries without losing accuracy.",
            about,
        )
    proof = _proof(subject, c, chosen, best, seed=seed, resamples=resamples)
    where_found = next((f for f in found if f.source == best.source), found[0])
    points = frontier(proof.row, proof.rival, best.part, proof.penalty)
    about |= {
        "units from": best.source, "confirmed": proof.rows,
        "controls": _controls(subject, c.parts[0], best, where_found, heads, seed, resamples),
        "frontier": [asdict(a) for a in points],
    }  # fmt: skip
    if not take and (refused := _refused(proof, best, c, chosen, max_cost, points[0].key)):
        why, too_dear = refused
        return NoRemedy(why, about, points, too_dear)
    about["table"] = _markdown(chosen.rows, proof.rows, about["controls"])
    settings, tensors = scales_as_adapter(subject, best.scales, best.part)
    if best.part == "mixer_out":
        assert heads is not None
        picture = head_map(heads.score[best.family], best.family, best.scales)
    else:
        picture = unit_map(where_found.contrasted, best.scales)
    says = _says(best, proof, len(c.parts[2]))
    return adapted("copying", subject, settings, tensors, {"describe": says, **about}, pictures=(picture,))


@dataclass(frozen=True, eq=False)
class _Chosen:
    """What is put to the test.

    Attributes:
        best: the candidate; None where all lose accuracy or lower nothing. rival: the best of the other kind of inputs, where any
            was tried. chances: candidates drawn at random, to be chosen among in the same way. made: all that were tried of the
            kinds that `best` comes from. rows: the table of those judged.
    """

    best: Candidate | None
    rival: Candidate | None
    chances: list[Candidate]
    made: list[Candidate]
    rows: list[dict[str, Any]]


def _chosen(c: Contest, heads: Heads | None, take: str, seed: int) -> _Chosen:
    """Units, or heads where they come nearer to chance without losing accuracy against them, or what `take` names."""
    units, won, chances = c.units, c.heads, random_like(c.made, seed)
    if won is None or heads is None:
        if take == HEADS:
            raise BadInput(
                f"No attention heads of this model were tried, so --take {HEADS} has none to take. Leave it out, or give {UNITS}."
            )
        return _Chosen(units.best or (units.nearest if take else None), None, chances, c.made, units.rows)
    rows = [*units.rows, *won.rows[1:]]
    if take != UNITS and (take == HEADS or won.beats(units)):
        best, rival, tried = won.best, units.best or units.nearest, [*c.made, *c.whole]
        chances = [*chances, *other_heads(c.whole, heads, seed)]
    else:
        best, rival, tried = units.best, won.best or won.nearest, c.made
    if take:
        best = best or (won if take == HEADS else units).nearest
    return _Chosen(best, rival, chances, tried, rows)


@dataclass(frozen=True, eq=False)
class _Proof:
    """What queries that chose nothing say of the chosen candidate.

    Attributes:
        row: the candidate. chance: the same against the best of as many random candidates. rival: the other kind of inputs.
            penalty: the trivial rival. rows: the table of all of them, as it is first.
        lost: the most accuracy that may have been lost, by task in which copying is right, and on these queries as "".
    """

    row: dict[str, Any]
    chance: dict[str, Any]
    rival: dict[str, Any] | None
    penalty: dict[str, Any]
    rows: list[dict[str, Any]]
    lost: dict[str, float]

    @property
    def moved(self) -> str:
        return f"{self.row['change']:+.1%} [{self.row['low']:+.1%}, {self.row['high']:+.1%}]"


def _proof(subject: Subject, c: Contest, chosen: _Chosen, best: Candidate, *, seed: int, resamples: int) -> _Proof:
    """Ask the third part of the queries, and the tasks in which copying is right, with and without what was chosen."""
    third = c.parts[2]
    plainly = ask(subject, third, seed)
    base = judged(plainly, third)
    others = list(bystanders(subject, "calibration", seed=seed, most=GUARDED))
    before = beside(others, seed)
    drawn = c.of_chance(subject, chosen.chances, seed, resamples).best

    def row(tried: Candidate, got: Judged, against: Judged = base) -> dict[str, Any]:
        return row_of(tried, against, got, third, seed, resamples)

    def live(tried: Candidate) -> Judged:
        with scaled(subject, tried.scales, tried.part):
            return judged(ask(subject, third, seed), third)

    with scaled(subject, best.scales, best.part):
        got = judged(ask(subject, third, seed), third)
        lost = {
            name: maths.most_lost(a, b) for (name, *_), a, b in zip(others, before, beside(others, seed), strict=True)
        }
    own = row(best, got) | {"elsewhere": -max(lost.values(), default=0.0)}
    rows = [row(AS_IT_IS, base), own]
    by_chance = base
    if drawn is not None:
        by_chance = live(drawn)
        rows.append(row(replace(drawn, title=f"the best of {len(chosen.chances)} random candidates"), by_chance))
    rival = None
    if (tried := chosen.rival) is not None:
        rival = row(replace(tried, title=f"rival: {tried.title}"), live(tried))
        rows.append(rival)
    nats = penalty_for(c.unscaled, c.parts[1])
    penalised = replace(AS_IT_IS, title=f"rival: a penalty on shown answers' logits, {nats:g} nats")
    penalty = row(penalised, with_penalty(plainly, third, nats))
    return _Proof(own, row(AS_IT_IS, got, by_chance), rival, penalty, [*rows, penalty], lost | {"": got.loss(base)})


def _refused(
    proof: _Proof, best: Candidate, c: Contest, chosen: _Chosen, max_cost: float, key: str
) -> tuple[str, bool] | None:
    """Why what was chosen is no repair, and whether that is its cost; None where it is one. `key`: what `--take` calls it."""
    if not proof.row["high"] < 0:
        return (
            f"Of {len(chosen.made)} ways to scale units the best, {best.title}, is not confirmed by {len(c.parts[2])} queries that "
            f"chose nothing: wrong copies above chance change by {proof.moved}."
        ), False  # fmt: skip
    if not proof.chance["high"] < 0:
        return (
            f"Scaling {best.what} lowers wrong copies ({proof.moved}), but not measurably more than the best of as many random "
            f"candidates does ({proof.chance['change']:+.1%} [{proof.chance['low']:+.1%}, {proof.chance['high']:+.1%}] between "
            "them)."
        ), False  # fmt: skip
    worst = max(proof.lost, key=proof.lost.__getitem__)
    most = proof.lost[worst]
    if not dearer(most, max_cost + OPEN):
        return None
    return (
        f"Scaling {best.what} lowers wrong copies ({proof.moved}), but up to {most:.1%} of accuracy may be lost "
        f"{f'on {worst!r}, whose answer stands in the query' if worst else 'here'}, and at most {max_cost + OPEN:.1%} are "
        f"allowed: the budget of {max_cost:.1%} and what some {GUARDED} queries leave open. Raise the budget (--max-cost "
        f"{math.ceil(100 * (most - OPEN)) / 100:g}), or take it all the same (--take {key})."
    ), True  # fmt: skip


def _says(best: Candidate, proof: _Proof, confirmed: int) -> str:
    """What the repair does, and what `confirmed` queries say of it."""
    layers = sorted(best.scales)
    where = f"layer {layers[0]}" if len(layers) == 1 else f"{len(layers)} layers"
    return (
        f"Scales {best.what} of {where} ({best.title}, {'units' if best.part == 'down' else 'heads'} found on {best.source}): on "
        f"{confirmed} calibration queries that were not used for choosing, wrong copies above chance change by {proof.moved} and "
        f"accuracy by {proof.row['accuracy change']:+.1%}; a penalty on shown answers changes them by "
        f"{proof.penalty['change']:+.1%} and {proof.penalty['accuracy change']:+.1%}."
    )


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

    title, other_title = (UNITS, HEADS) if part == "down" else (HEADS, UNITS)
    points = [point(title, row, True, True)]
    if rival is not None:
        points.append(point(other_title, rival, False, True))
    return (*points, point("penalty", penalty, False, False))


def _controls(
    subject: Subject, queries: Corpus, best: Candidate, found: Attributed, heads: Heads | None, seed: int, resamples: int
) -> list[dict[str, Any]]:  # fmt: skip
    """The chosen units, and as many others of the same layers, at the last position: the most active, and the lowest scores.

    Of heads it is as many of all layers with the lowest scores."""
    factor = min(float(s.min()) for s in best.scales.values())
    if best.part == "mixer_out":
        assert heads is not None
        lowest = heads_scaled(-heads.score[best.family], best.units // best.wide, best.wide, factor)
        controls = [
            replace(best, title="the chosen heads"),
            replace(best, title="the heads with the lowest scores", scales=lowest),
        ]
        plain, with_controls = screen(subject, queries, controls, seed)
        return [row_of(c, plain, j, queries, seed, resamples) for c, j in zip(controls, with_controls, strict=True)]
    units = found.active.shape[1]
    counts = {at: int((s != 1).sum()) for at, s in best.scales.items()}

    def others(title: str, score: np.ndarray) -> Candidate:
        pairs = [(at, int(u)) for at, n in counts.items() for u in maths.top(score[at].astype(float), n)]
        return Candidate("control", title, scales_of(pairs, units, factor), best.source)

    controls = [
        replace(best, title="the chosen units"),
        others("the most active units", found.active),
        others("the lowest scores", -found.contrasted),
    ]
    plain, with_controls = screen(subject, queries, controls, seed)
    return [row_of(c, plain, j, queries, seed, resamples) for c, j in zip(controls, with_controls, strict=True)]


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


def null_remedy(subject: Subject) -> Adapted:
    """The adapter that multiplies one layer's units by 1."""
    settings, tensors = scales_as_adapter(subject, {0: torch.ones(width_of(subject, 0))})
    return adapted("copying", subject, settings, tensors, {"describe": "Scales nothing."})
