"""Finding -> Remedy: every family on calibration examples, the best within its price, and a test of that one on others."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trueup.corpus import mix
from trueup.corpus.corpus import Corpus
from trueup.corpus.mix import FEWEST
from trueup.errors import BadInput, Unsupported, did_you_mean, it_or_them, listing
from trueup.faults.adapter_remedy import Adapted, adapted, read_adapted, with_head
from trueup.faults.confounding import inside, maths
from trueup.faults.confounding.audit import attribute_of
from trueup.faults.confounding.candidates import FAMILIES
from trueup.faults.confounding.evidence import CONTROL, Change, Evidence, Knobs, Variant, score
from trueup.faults.confounding.mixes import (
    COLUMNS,
    differences,
    mixes,
    nominal,
    statistics,
)
from trueup.faults.fault import Alternative, Chart, Difference, Finding, Method, NoRemedy, dearer
from trueup.measure import lean
from trueup.measure.folds import folds
from trueup.run.concept import gradients_of
from trueup.run.predict import hidden_states, predict, session
from trueup.run.train import Training
from trueup.subject import adapter as files
from trueup.subject.checkpoint import adapter_folder
from trueup.subject.new_adapter import prompt_embeddings, recipe_of
from trueup.subject.subject import Subject
from trueup.subject.swap_adapter import with_prompt

FIT = 1000
"""Most training examples that a tangent prompt is fitted on: each costs a forward and a backward pass at each step."""
NEAR = 0.01
"""Difference in AUPRC over all mixes that some hundred calibration examples cannot tell."""
DERIVED = 200
"""Most calibration examples on which use by layer is told: each costs a backward pass for each group."""
SCREENED = 10
"""Of a bootstrap whose intervals are not read: `methods` tells those of test examples."""
ON_TEST = ("severity", "level", "auprc_against", "accuracy")
"""What `methods` tells of each: the lean, AUPRC over all mixes, AUPRC under the coupling turned round, accuracy as the data are."""
RESAMPLES = 300
"""Of the bootstrap that judges the families on calibration examples."""


def repair(
    subject: Subject,
    corpus: Corpus,
    finding: Finding,
    *,
    attribute: str,
    coupling: float,
    retrain: bool,
    max_cost: float,
    take: str,
    knobs: Knobs,
    resamples: int,
    seed: int,
) -> Adapted | NoRemedy:
    """Learn on ``train`` and ``calibration``; choose on one half of the calibration clusters, confirm on the other.

    A family can be chosen when, on the half that chooses, the lean falls, AUPRC over all mixes rises, and accuracy as the data
    are falls by at most `max_cost`; of those within `NEAR` of the best AUPRC over all mixes, the one whose lean is nearest to
    0. That one alone is put to the test: on the half that chose nothing its lean has to fall with the whole paired interval. So
    a repair that does nothing is stated in at most 2.5% of runs, however many were tried. ``test`` is never looked at.

    Args:
        take: the key of a family to take instead of the one that the rule would choose.

    Raises:
        BadInput: a (label, group) cell of a split has fewer than 10 examples, or `take` is no family that was tried.
    """
    corpus = corpus.relabel(subject.classes)
    attribute = attribute_of(corpus, attribute)
    if subject.head is not None:
        return NoRemedy("The subject already carries a repaired last layer; repair the adapter it was made from.")
    if not finding.found:
        return NoRemedy(
            f"The lean of {finding.severity:.3f} [{finding.low:.3f}, {finding.high:.3f}] is not clearly above the threshold of "
            f"{finding.threshold:g}, so there is nothing to repair."
        )
    e = evidence(subject, corpus, attribute, coupling, seed, knobs)
    table, variants = tried(e, retrain=retrain, resamples=min(resamples, RESAMPLES), seed=seed)
    about = {
        "candidates": table, "table": _markdown(table), "attribute": attribute,
        "groups": finding.details["groups"], "seed": seed, "max_cost": max_cost,
        "anchor": None if e.prompt is None else ("P0" if e.anchor is e.start else "the tuned prompt"), "arithmetic": asdict(knobs),
        "examples": {"train": len(e.train), "chose": int(e.choosing.sum()), "judged": int((~e.choosing).sum())},
        "pair": corpus.second is not None,
    }  # fmt: skip
    row = taken(table, take) if take else best_of(table, max_cost)
    while row is not None:
        try:
            change = variants[row["key"]].change
            assert change is not None
            remedy_of(subject, change, about | {"describe": ""})
            break
        except Unsupported as why:
            row["saveable"], row["refused"] = False, str(why)
            session().note(f"The repair '{row['title']}' was passed over, because it cannot be saved: {why}")
            row = None if take else best_of(table, max_cost)
    if row is None or not (take or (row["high"] < 0 < row["gain"] and not dearer(row["cost low"], max_cost))):
        why, too_dear = why_none(table, row, max_cost)
        return NoRemedy(why, about, frontier(table), too_dear)
    row["chosen"] = True
    about["frontier"] = [asdict(a) for a in frontier(table)]
    claim = _inside(e, variants[row["key"]], min(resamples, RESAMPLES))
    describe = (
        f"{row['title'][0].upper()}{row['title'][1:]} ({row['variant']}): on {about['examples']['judged']} calibration examples "
        f"that chose nothing, the lean on '{attribute}' moved by {row['severity']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}], "
        f"AUPRC over all mixes by {row['gain']:+.3f} [{row['gain low']:+.3f}, {row['gain high']:+.3f}], and accuracy as the data "
        f"are by {-row['cost']:+.1%} [{-row['cost high']:+.1%}, {-row['cost low']:+.1%}]. "
        f"{claim.sentence}"
    )
    change = variants[row["key"]].change
    assert change is not None
    told = {"describe": describe, "chosen": row["key"], "table": f"{about['table']}\n\n{claim.table}"}
    return replace(remedy_of(subject, change, about | told), pictures=(claim.chart,))


def frontier(table: list[dict[str, Any]]) -> tuple[Alternative, ...]:
    """What each repair gains (lean taken away) and costs (accuracy as the data are), on examples that chose nothing; best gain
    first."""
    return tuple(
        Alternative(
            r["key"], r["title"], -r["severity"], -r["high"], -r["low"], r["cost"], r["cost low"], r["cost high"],
            r.get("chosen", False), r["saveable"],
        )
        for r in sorted(table, key=lambda r: r["severity"]) if r["source"] != CONTROL
    )  # fmt: skip


def taken(table: list[dict[str, Any]], key: str) -> dict[str, Any] | None:
    """The row that was asked for. Raises BadInput where there is none that an adapter can carry."""
    row = {r["key"]: r for r in table if r["source"] != CONTROL and r["saveable"]}
    if key not in row:
        raise BadInput(
            f"No repair '{key}' was tried that an adapter can carry.{did_you_mean(key, row)} There is {listing(row)}."
        )
    return row[key]


def best_of(table: list[dict[str, Any]], max_cost: float) -> dict[str, Any] | None:
    """By the half that chooses: of those that help within the budget and within `NEAR` of the best AUPRC over all mixes, the one
    whose lean is nearest to 0."""
    able = [r for r in table if _helps(r) and r["saveable"] and not dearer(r["chose cost"], max_cost)]
    best = max((r["level"] for r in able), default=0.0)
    return min((r for r in able if r["level"] >= best - NEAR), key=lambda r: r["chose lean"], default=None)


def _helps(row: Mapping[str, Any]) -> bool:
    """Whether, on the half that chooses, the lean fell and AUPRC over all mixes rose."""
    return (
        row["source"] != CONTROL
        and not row.get("no better than its flip")
        and row["chose lean"] < row["chose lean before"]
        and row["level"] > row["level before"]
    )


def why_none(table: list[dict[str, Any]], row: Mapping[str, Any] | None, max_cost: float) -> tuple[str, bool]:
    """Why no repair is handed over, as a sentence; and whether that is its price."""
    repairs = [r for r in table if r["source"] != CONTROL]
    helped = [r for r in repairs if _helps(r)]
    dear = [r for r in helped if r["saveable"] and dearer(r["chose cost"], max_cost)]
    functions = [r for r in helped if not r["saveable"] and "refused" not in r]
    if row is not None and row["high"] < 0 < row["gain"]:
        dear = [dict(row) | {"chose cost": row["cost"]}]
    elif row is not None:
        moved = f"{row['severity']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        gain = f"{row['gain']:+.3f} [{row['gain low']:+.3f}, {row['gain high']:+.3f}]"
        said = (
            f"Of {len(repairs)} repairs {row['title']} was the best on the calibration examples that choose, and those that chose "
            "nothing do not confirm it: "
            + (
                f"the lean moved by {moved}, but AUPRC over all mixes, which has to rise, by {gain}."
                if row["high"] < 0
                else f"the lean moved by {moved}, which is no clear fall."
            )
        )
        return said, False
    if dear:
        least = min(dear, key=lambda r: r["chose cost"])
        said = (
            f"{listing([r['title'] for r in dear])} would lower the lean at a cost above the budget of {max_cost:.1%} of "
            f"accuracy as the data are (the least, {least['title']}: {least['chose cost']:.1%}). Raise the budget "
            f"(--max-cost {math.ceil(100 * least['chose cost']) / 100:g}), or take one by name (--take {least['key']})."
        )
        return said[0].upper() + said[1:], True
    if refused := [r for r in repairs if "refused" in r]:
        said = (
            f"{listing([r['title'] for r in refused])} helped and cannot be saved: {refused[0]['refused'].rstrip('.')}."
        )
        return said, False
    if functions:
        named = [r["title"] for r in functions]
        said = f"{listing(named)} helped, but no adapter computes {it_or_them(named)}; no other of {len(repairs)} repairs did."
        return said, False
    if not repairs:
        return "No family of repairs goes with this subject.", False
    best = max(repairs, key=lambda r: r["level"])
    said = (
        f"Of {len(repairs)} repairs none lowered the lean on calibration examples and raised AUPRC over all mixes (the best, "
        f"{best['title']}: lean {best['chose lean before']:.3f} before and {best['chose lean']:.3f} after)."
    )
    return said, False


def _markdown(table: list[dict[str, Any]]) -> str:
    """The card's table of what was tried."""
    rows = "\n".join(
        f"| {r['title']} | {r['variant']} | {r['severity']:+.3f} [{r['low']:+.3f}, {r['high']:+.3f}] | "
        f"{r['gain']:+.3f} [{r['gain low']:+.3f}, {r['gain high']:+.3f}] | "
        f"{r['cost']:+.1%} [{r['cost low']:+.1%}, {r['cost high']:+.1%}] |"
        for r in sorted(table, key=lambda r: -r["gain"])
    )
    return (
        "Paired differences to the adapter as it was, on calibration examples that chose nothing: of the lean, of the mean AUPRC "
        "over mixes from one coupling to its reverse, and the accuracy lost as the data are. Settings and the winner were chosen "
        "on the other calibration examples; intervals of those that were not chosen are not adjusted for their number.\n\n"
        "| repair | setting | change of the lean [95%] | change of AUPRC, all mixes [95%] | accuracy lost [95%] |\n"
        "|---|---|---|---|---|\n" + rows
    )


@dataclass(frozen=True)
class _Claim:
    """Whether the attribute is less used or less present after a repair: in a sentence, a table of the card, and a chart."""

    sentence: str
    table: str
    chart: Chart


def _inside(e: Evidence, variant: Variant, resamples: int) -> _Claim:
    """HyPA's claim, asked on the calibration examples that chose nothing: paired, at the answer and in every layer."""
    assert variant.change is not None
    repaired = variant.change.on(e.subject)
    rows = ~e.choosing
    # What a last layer that learnt from these examples says of them is out of fold.
    sides = [e.columns(p, rows) for p in (e.own.probability, variant.held)]
    states = [hidden_states(s, e.held) for s in (e.subject, repaired)]
    label, group, cluster = (sides[0][k] for k in ("label", "group", "cluster"))
    found = [inside.inside(states[0][rows], label, group, cluster, sides[0]["judges"], e.seed)]
    # A repair of the last layer alone moves no state.
    same = np.array_equal(states[0], states[1])
    found += found if same else [inside.inside(states[1][rows], label, group, cluster, sides[0]["judges"], e.seed)]
    used = differences(sides[0], sides[1], e.mixes, None, ("use",), resamples=resamples, seed=e.seed)["use"]
    probe = inside.moved_probe(found[0].hit, found[1].hit, cluster)
    present = probe[-1]
    distance = inside.jackknife(found[1].distance - found[0].distance)
    uses = _uses(e, (e.subject, repaired), states)
    was, now, carried = (inside.jackknife(u) for u in (*uses, uses[1] - uses[0]))
    before, after = (float(np.nanmean(f.hit[:, -1])) for f in found)
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
    return _Claim(sentence, table, inside.chart_of_use(was, now))


def _layers(found: Sequence[int]) -> str:
    """At which layers, neighbours together."""
    runs = [[k for _, k in g] for _, g in itertools.groupby(enumerate(found), lambda pair: pair[1] - pair[0])]
    return f"at {', '.join(f'{r[0]} to {r[-1]}' if len(r) > 1 else str(r[0]) for r in runs)}" if runs else "nowhere"


def _uses(e: Evidence, subjects: Sequence[Subject], states: Sequence[NDArray]) -> list[NDArray]:
    """How far each layer carries the attribute into the answer, before and after (`inside.used`): on at most `DERIVED` examples
    that chose nothing. What tells the groups apart is learnt on those that choose, and so is what counts as leaning, of the subject
    as it was."""
    label = np.searchsorted(e.there, e.held.label)
    chose = np.flatnonzero(e.choosing)
    rng = np.random.default_rng(np.random.SeedSequence([e.seed, 15]))
    some = np.sort(rng.permutation(np.flatnonzero(~e.choosing))[:DERIVED])

    def rows(of: NDArray, which: NDArray) -> inside.Rows:
        return inside.Rows(of, label[which], e.held_group[which], e.held.cluster[which])

    own = lean.centred(e.own.logits[chose][:, e.there])
    answers = np.zeros((len(e.code), e.classes))
    answers[:, e.there] = inside.toward(
        lean.head_starts(own, label[chose], e.held_group[chose], (len(e.there), len(e.code)))
    )
    return [
        inside.used(rows(g, some), rows(h[chose], chose), e.seed)
        for g, h in zip(gradients_of(subjects, e.held.take(some), answers), states, strict=True)
    ]


def evidence(
    subject: Subject,
    corpus: Corpus,
    attribute: str,
    coupling: float,
    seed: int,
    knobs: Knobs = Knobs(),  # noqa: B008
) -> Evidence:
    """What the families learn from: all training examples (tangent fits: at most `FIT`), all calibration examples, the prompt and
    its start."""
    # What must not be looked at is not even in hand.
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
        )  # first: its pass serves every prediction of these examples, and the claim needs the states
    z_train, z_held = (mix.group_index(c, attribute, groups) for c in (tuned_on, held))
    fitted_to, cells = (mix.counts(parts[k], attribute, groups) for k in ("train", "calibration"))
    choosing = folds(np.zeros(len(held)), 2, seed=np.random.SeedSequence([seed, 12]), cluster=held.cluster) == 0
    there = np.unique(held.label)
    direction, strength, _ = nominal(cells[there], fitted_to[there], coupling)
    if direction.shape != (2, 2):
        own = lean.centred(predict(subject, held).logits[choosing][:, there])
        label = np.searchsorted(there, held.label[choosing])
        direction = lean.head_starts(own, label, z_held[choosing], direction.shape)
    m = mixes(cells[there], direction, strength)
    prompt = start = None
    if subject.soft_prompted:
        soft = prompt_embeddings(subject)
        assert soft is not None
        prompt, start = soft.float().numpy(), start_of(subject)
        if knobs.l_y != 1 and start is None:
            raise BadInput(
                f"The knob confounding.l_y is {knobs.l_y:g}, and the prompt that the adapter started from (P0) is not kept "
                "beside it, so its own vector is not known. Leave the knob at 1, or tune the prompt with `trueup tune prompt`, "
                "which keeps P0."
            )
    training, recipe = training_of(subject), recipe_of(subject)
    return Evidence(
        subject, tuned_on, held, z_train, z_held, m, maths.coding(fitted_to / fitted_to.sum()), choosing, prompt, start, training,
        training.lr or (recipe.lr if recipe is not None else 1e-3), seed, sampled, knobs,
    )  # fmt: skip


def training_of(subject: Subject) -> Training:
    """How the adapter was trained, from the card in the folder it was tuned into; the usual way where nothing says so.

    Raises:
        BadInput: the card says something that no training can begin with.
    """
    folder = adapter_folder(subject.source.adapter)
    known = (files.read_card(folder).get("tuned") or {}).get("training") or {}
    try:
        return Training(**{k: v for k, v in known.items() if k in Training.__dataclass_fields__})
    except BadInput as e:
        raise BadInput(f"'{folder}/{files.CARD}', key 'tuned.training': {e} Correct it, or delete the key.") from e


def start_of(subject: Subject) -> NDArray | None:
    """P0 of a tuned prompt, from the folder it was tuned into; None, with a note, where it is not kept or does not fit."""
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


def tried(e: Evidence, *, retrain: bool, resamples: int, seed: int) -> tuple[list[dict[str, Any]], dict[str, Variant]]:
    """Every possible family's chosen variant: what the choosing half says of it (``chose``, ``level``), and, with paired
    intervals, what the other does; and the variants by the family's key."""
    possible = [f for f in FAMILIES if f.possible(e) and (retrain or not f.costly)]
    before = e.own.probability
    table: list[dict[str, Any]] = []
    kept: dict[str, Variant] = {}
    chose, judging = e.choosing, ~e.choosing
    own = {k: e.columns(before, rows) for k, rows in (("chose", chose), ("judged", judging))}
    leant = leans(e, own["chose"])
    for i, family in enumerate(possible):
        try:
            variants = family.variants(e)
        except (BadInput, Unsupported) as refused:
            session().note(f"The repair '{family.title}' was not tried: {refused}")
            continue
        chosen = family.choose(e, variants)
        variant, flip = variants[chosen], family.flipped(e, chosen)
        there, here = (e.columns(variant.held, rows) for rows in (chose, judging))
        d = differences(
            own["judged"], here, e.mixes, None, ("severity", "level", "accuracy"), resamples=resamples, seed=seed
        )
        table.append({
            "key": family.key, "title": family.title, "source": family.source, "variant": variant.name,
            "saveable": variant.change is not None, "flip": None if flip is None else leans(e, e.columns(flip.held, chose)),
            "level before": score(e, before, "level"), "level": score(e, variant.held, "level"),
            "chose lean before": leant, "chose lean": leans(e, there),
            "chose cost": _right(own["chose"]) - _right(there),
            "severity": d["severity"].value, "low": d["severity"].low, "high": d["severity"].high,
            "gain": d["level"].value, "gain low": d["level"].low, "gain high": d["level"].high,
            "cost": -d["accuracy"].value, "cost low": -d["accuracy"].high, "cost high": -d["accuracy"].low,
        })  # fmt: skip
        if (flip_lean := table[-1]["flip"]) is not None and flip_lean <= table[-1]["chose lean"] < leant:
            table[-1] |= {"saveable": False, "no better than its flip": True}
            session().note(
                f"The repair '{family.title}' is not offered: with the shortcut's polarity turned round, which must not help, the "
                f"lean falls as far ({flip_lean:.3f} against {table[-1]['chose lean']:.3f}, from {leant:.3f})."
            )
        kept[family.key] = variant
        session().progress("trying repairs", i + 1, len(possible))
    return table, kept


def methods(
    subject: Subject, corpus: Corpus, *, attribute: str, coupling: float, retrain: bool, max_cost: float, knobs: Knobs,
    resamples: int, seed: int,
) -> list[Method]:  # fmt: skip
    """Every family on ``test``: learnt and set as in `repair`, judged along the mixes of the calibration examples.

    Raises: as `repair`; Unsupported where the last layer is repaired already.
    """
    corpus = corpus.relabel(subject.classes)
    attribute = attribute_of(corpus, attribute)
    if subject.head is not None:
        raise Unsupported(
            "The subject already carries a repaired last layer; compare methods on the adapter it was made from."
        )
    e = evidence(subject, corpus, attribute, coupling, seed, knobs)
    table, variants = tried(e, retrain=retrain, resamples=SCREENED, seed=seed)
    test = corpus.part("test")
    group = mix.group_index(test, attribute, mix.groups_of(corpus.take(corpus.split != "test"), attribute))
    if missing := set(np.unique(test.label)) ^ set(e.there):
        raise BadInput(
            f"Test and calibration examples are not of the same classes ({listing([test.classes[c] for c in sorted(missing)])} "
            "stands in one alone). Give more rows, or a split in which both have all."
        )

    def sampled(probability: NDArray) -> dict[str, NDArray]:
        return e.columns_of(probability, test.label, group, test.cluster)

    own = sampled(predict(subject, test).probability)
    under = {key: sampled(v.predict(test)) for key, v in variants.items()}
    row = best_of(table, max_cost)
    chosen = None if row is None else row["key"]

    def apart(a: dict[str, NDArray], b: dict[str, NDArray]) -> dict[str, Difference]:
        return differences(a, b, e.mixes, None, ON_TEST, resamples=resamples, seed=seed)

    found = []
    for r in table:
        here = under[r["key"]]
        now = statistics(here, e.mixes, own=False)
        found.append(
            Method(
                r["key"], r["title"], r["source"], r["variant"],
                {k: float(now[k](*(here[c] for c in COLUMNS))) for k in ON_TEST}, apart(own, here),
                {} if chosen in (None, r["key"]) else apart(under[chosen], here), r["key"] == chosen,
                variants[r["key"]].change is not None, r["source"] == CONTROL,
            )
        )  # fmt: skip
        session().progress("methods on the test examples", len(found), len(table))
    return found


def leans(e: Evidence, samples: Mapping[str, NDArray]) -> float:
    """|lean| of some calibration examples."""
    return statistics(samples, e.mixes, own=False)["severity"](*(samples[k] for k in COLUMNS))


def _right(samples: Mapping[str, NDArray]) -> float:
    return float((samples["predicted"] == samples["label"]).mean())


def remedy_of(subject: Subject, change: Change, card: Mapping[str, Any]) -> Adapted:
    """The change as an adapter."""
    if change.prompt is not None and change.head is not None:
        settings, tensors = files.adapter_with_head(
            replace(change, head=None).on(subject), files.in_place(subject, change.head)
        )
        return adapted("confounding", subject, settings, tensors, card)
    if change.prompt is not None:
        settings, tensors = with_prompt(subject, torch.as_tensor(change.prompt, dtype=torch.float32))
        return adapted("confounding", subject, settings, tensors, card)
    if change.adapter is not None:
        return adapted("confounding", subject, *change.adapter, card)
    head = change.head if change.head is not None else subject.own_head()
    return with_head("confounding", subject, head, card)


def null_remedy(subject: Subject) -> Adapted:
    """The subject's own adapter, put on again: changes nothing."""
    return remedy_of(replace(subject, head=None), Change(), {"describe": "Changes nothing."})


def read_remedy(folder: Path, subject: Subject) -> Adapted:
    """The remedy that was saved to `folder`."""
    return read_adapted("confounding", folder, subject)
