"""HyPA's claim about a repair: inside the model, the attribute is less used, or less present, than before."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trueup.faults.confounding import inside
from trueup.faults.confounding.evidence import Evidence, Variant
from trueup.faults.confounding.mixes import differences
from trueup.faults.fault import Chart, Difference
from trueup.measure import lean
from trueup.run.concept import gradients_of
from trueup.run.predict import hidden_states
from trueup.subject.subject import Subject

DERIVED = 200
"""The most calibration examples on which use by layer is measured: each costs a backward pass for each group."""


@dataclass(frozen=True)
class Claim:
    """Whether the attribute is less used or less present after a repair: a sentence, a table for the card, and a chart."""

    sentence: str
    table: str
    chart: Chart


def claimed(e: Evidence, variant: Variant, resamples: int) -> Claim:
    """Test HyPA's claim on the calibration examples that chose nothing: paired differences at the output and in every layer."""
    assert variant.change is not None
    repaired = variant.change.on(e.subject)
    rows = ~e.choosing
    # Where a last layer learnt from these examples, its predictions for them are out of fold.
    columns_of_sides = [e.columns(p, rows) for p in (e.own.probability, variant.held)]
    states = [hidden_states(s, e.held) for s in (e.subject, repaired)]
    label, group, cluster = (columns_of_sides[0][k] for k in ("label", "group", "cluster"))
    insides = [inside.inside(states[0][rows], label, group, cluster, columns_of_sides[0]["judges"], e.seed)]
    # A repair of the last layer alone changes no hidden state.
    same = np.array_equal(states[0], states[1])
    insides += (
        insides
        if same
        else [inside.inside(states[1][rows], label, group, cluster, columns_of_sides[0]["judges"], e.seed)]
    )
    used = differences(
        columns_of_sides[0], columns_of_sides[1], e.mixes, None, ("use",), resamples=resamples, seed=e.seed
    )["use"]
    probe = inside.moved_probe(
        insides[0].hit, insides[1].hit, cluster, (insides[0].distance == insides[1].distance).all(axis=0)
    )
    present = probe[-1]
    distance = inside.jackknife(insides[1].distance - insides[0].distance)
    uses = _uses(e, (e.subject, repaired), states)
    was, now, carried = (inside.jackknife(u) for u in (*uses, uses[1] - uses[0]))
    before, after = (float(np.nanmean(f.hit[:, -1])) for f in insides)
    words = " and ".join(
        f"{'' if d.high < 0 else 'not measurably '}less {name}" for name, d in (("used", used), ("present", present))
    )
    fell = ", ".join(
        f"{what} fell {_layers([k for k, d in enumerate(ds) if d.high < 0])}"
        for what, ds in (("the probe", probe), ("the groups' distance", distance), ("what reaches the answer", carried))
    )
    sentence = (
        f"Inside the attribute is {words}: how far the group moves the mean prediction at a given label changed by "
        f"{used.value:+.3f} [{used.low:+.3f}, {used.high:+.3f}], and a probe reads it from the last states with a balanced "
        f"accuracy of {before:.3f} before and {after:.3f} after ({present.value:+.3f} [{present.low:+.3f}, {present.high:+.3f}]). "
        f"By layer, 0 to {len(probe) - 1}, {fell}."
    )

    def cell(d: Difference) -> str:
        return f"{d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"

    lines = "\n".join(
        f"| {k} | {cell(p)} | {cell(d)} | {w.value:+.3f} | {n.value:+.3f} | {cell(c)} |"
        for k, (p, d, w, n, c) in enumerate(zip(probe, distance, was, now, carried, strict=True))
    )
    table = (
        "Inside, by layer (0: the embeddings), on the same examples, in pairs. Less present is what the probe (balanced accuracy) "
        "and the distance between groups (standard deviations) say; used is how many logits the favoured class gains when the "
        "layer's states move by what tells the groups apart at a given label, to first order (TCAV, arXiv 1711.11279), along "
        "directions learnt on the examples that choose.\n\n"
        "| layer | change of the probe [95%] | change of the distance [95%] | used before | after | change [95%] |\n"
        "|---|---|---|---|---|---|\n" + lines
    )
    return Claim(sentence, table, inside.chart_of_use(was, now))


def _layers(found: Sequence[int]) -> str:
    """The layers as text, with neighbouring ones joined into ranges."""
    runs = [[k for _, k in g] for _, g in itertools.groupby(enumerate(found), lambda pair: pair[1] - pair[0])]
    return f"at {', '.join(f'{r[0]} to {r[-1]}' if len(r) > 1 else str(r[0]) for r in runs)}" if runs else "nowhere"


def _uses(e: Evidence, subjects: Sequence[Subject], states: Sequence[NDArray]) -> list[NDArray]:
    """How far each layer carries the attribute into the answer, before and after (`inside.used`).

    It is measured on at most `DERIVED` examples that chose nothing. The examples that choose give what separates the groups, and
    they give the head starts of the original subject, which define what counts as leaning.
    """
    label = np.searchsorted(e.there, e.held.label)
    chose = np.flatnonzero(e.choosing)
    rng = np.random.default_rng(np.random.SeedSequence([e.seed, 15]))
    some = np.sort(rng.permutation(np.flatnonzero(~e.choosing))[:DERIVED])

    def rows(of: NDArray, which: NDArray) -> inside.Rows:
        return inside.Rows(of, label[which], e.held_group[which], e.held.cluster[which])

    own_scores = lean.centred(e.own.logits[chose][:, e.there])
    answers = np.zeros((len(e.code), e.classes))
    answers[:, e.there] = inside.toward(
        lean.head_starts(own_scores, label[chose], e.held_group[chose], (len(e.there), len(e.code)))
    )
    return [
        inside.used(rows(g, some), rows(h[chose], chose), e.seed)
        for g, h in zip(gradients_of(subjects, e.held.take(some), answers), states, strict=True)
    ]
