"""Finding -> Remedy: every family on calibration examples, and the one whose AUPRC holds best when the mix moves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trueup.corpus import mix
from trueup.corpus.corpus import Corpus
from trueup.corpus.mix import FEWEST
from trueup.errors import BadInput, Unsupported, it_or_them, listing
from trueup.faults.adapted import Adapted, adapted, read_adapted, with_head
from trueup.faults.confounding import maths
from trueup.faults.confounding.audit import attribute_of, coupling, mixes, statistics, use
from trueup.faults.confounding.candidates import CONTROL, FAMILIES, Change, Evidence, Variant, score
from trueup.faults.fault import Finding, NoRemedy
from trueup.measure import bootstrap
from trueup.measure.divergence import decodability
from trueup.run.predict import predict, session
from trueup.run.train import Training
from trueup.subject import adapter as files
from trueup.subject.load import adapter_folder
from trueup.subject.recipe import prompt_embeddings, recipe_of
from trueup.subject.subject import Subject
from trueup.subject.wear import with_prompt

FIT = 1000
"""Most training examples that a tangent prompt is fitted on: each costs a forward and a backward pass at each step."""
NEAR = 0.01
"""Difference in AUPRC over all mixes that some hundred calibration examples cannot tell."""
RESAMPLES = 300
"""Of the bootstrap that compares the families on calibration examples."""


def repair(
    subject: Subject,
    corpus: Corpus,
    finding: Finding,
    *,
    attribute: str,
    alpha: float,
    retrain: bool,
    resamples: int,
    seed: int,
) -> Adapted | NoRemedy:
    """Learn on ``train`` and ``calibration``, choose on ``calibration``; never looks at ``test``.

    A family can win when the drop under a reversed coupling falls, with its whole interval, and AUPRC over all mixes rises;
    of those within `NEAR` of the best, the one whose drop is nearest to 0. What is lost at the data's own coupling is
    stated, not forbidden: where the shortcut did predict, no classifier without it can keep that. A winner that no adapter
    can carry is recorded with the reason, and the next best is taken.

    Raises:
        BadInput: a (label, group) cell of a split has fewer than 10 examples.
    """
    corpus = corpus.relabel(subject.classes)
    attribute = attribute_of(corpus, attribute)
    if subject.head is not None:
        return NoRemedy("The subject already carries a repaired last layer; repair the adapter it was made from.")
    if not finding.found:
        return NoRemedy(
            f"The drop of {finding.severity:.3f} [{finding.low:.3f}, {finding.high:.3f}] is not clearly above the threshold of "
            f"{finding.threshold:g}, so there is nothing to repair."
        )
    e = evidence(subject, corpus, attribute, alpha, seed, of_training=finding.details["of training"])
    resamples = min(resamples, RESAMPLES)
    table, winners = tried(e, retrain=retrain, resamples=resamples, seed=seed)
    about = {
        "candidates": table, "table": _markdown(table), "attribute": attribute, "groups": finding.details["groups"], "seed": seed,
        "anchor": None if e.prompt is None else ("P0" if e.start is not None else "the tuned prompt"),
        "examples": {"train": len(e.train), "calibration": len(e.held)}, "pair": corpus.second is not None,
    }  # fmt: skip
    while winners:
        won = best_of(winners)
        row, variant = won
        change = variant.change
        assert change is not None
        describe = (
            f"{row['title'][0].upper()}{row['title'][1:]} ({row['variant']}): on the calibration examples, which chose it, the "
            f"drop under a reversed coupling of the label and '{attribute}' moved by {row['severity']:+.3f} [{row['low']:+.3f}, "
            f"{row['high']:+.3f}], AUPRC over all mixes from {row['level before']:.3f} to {row['level']:.3f}. "
            f"{_inside(e, variant, resamples)}"
        )
        try:
            return remedy_of(subject, change, about | {"describe": describe, "chosen": row["key"]})
        except Unsupported as why:
            row["saveable"], row["refused"] = False, str(why)
            session().note(f"The repair '{row['title']}' helped and was passed over, because it cannot be saved: {why}")
            winners.remove(won)
    repairs = [r for r in table if r["source"] != CONTROL]
    refused, functions = [r for r in repairs if "refused" in r], [r for r in repairs if _helps(r) and not r["saveable"]]
    best = max(repairs, key=lambda r: r["level"], default=None)
    if refused:
        said = (
            f"{listing([r['title'] for r in refused])} helped and cannot be saved: {refused[0]['refused'].rstrip('.')}"
        )
    elif functions:
        helped = [r["title"] for r in functions]
        said = f"{listing(helped)} helped, but no adapter computes {it_or_them(helped)}; no other of {len(repairs)} repairs did"
    elif best is None:
        said = "no family of repairs goes with this subject"
    else:
        said = (
            f"of {len(repairs)} repairs none lowered the drop on calibration examples with its whole interval and raised AUPRC "
            f"over all mixes (the best, {best['title']}: {best['severity']:+.3f} [{best['low']:+.3f}, {best['high']:+.3f}])"
        )
    return NoRemedy(f"{said[0].upper()}{said[1:]}.", {"candidates": table})


def _markdown(table: list[dict[str, Any]]) -> str:
    """The card's table of what was tried."""
    rows = "\n".join(
        f"| {r['title']} | {r['variant']} | {r['level']:.3f} | {r['here']:.3f} | {r['mirrored']:.3f} | "
        f"{r['severity']:+.3f} [{r['low']:+.3f}, {r['high']:+.3f}] |"
        for r in sorted(table, key=lambda r: -r["level"])
    )
    return (
        "AUPRC on calibration examples weighted to other mixes, and the paired difference of the drop under a reversed "
        "coupling to the adapter as it was. Settings were chosen on these examples, so the intervals are optimistic.\n\n"
        "| repair | setting | all mixes | as here | reversed | change of the drop [95%] |\n|---|---|---|---|---|---|\n"
        + rows
    )


def _helps(row: Mapping[str, Any]) -> bool:
    """Whether the drop fell with its whole interval, and AUPRC over all mixes rose."""
    return row["high"] < 0 and row["gain"] > 0


def _inside(e: Evidence, variant: Variant, resamples: int) -> str:
    """Whether the attribute is less used or less present afterwards, on calibration examples, as a sentence."""
    assert variant.change is not None
    outs = (e.own, predict(variant.change.on(e.subject), e.held))
    # What a last layer that learnt from these examples says of them is out of fold.
    old, new = ([p, p.argmax(axis=1), e.held.label, e.held_group] for p in (e.own.probability, variant.held))
    used, moved = (use(*old), use(*new)), bootstrap.paired(use, old, new, e.seed, resamples)
    (before, chance), (after, _) = (decodability(out.features, e.held_group, e.held.label, seed=e.seed) for out in outs)
    fell = before - after > 0.25 * max(before - chance, 1e-9)
    said = "less used and less present" if fell else "less used, not less present"
    return (
        f"Inside it is {said if moved.high < 0 else 'not measurably less used'}: at a given label the group moves the mean "
        f"prediction by {used[0]:.3f} before and {used[1]:.3f} after ({moved.value:+.3f} [{moved.low:+.3f}, {moved.high:+.3f}]), "
        "and a probe reads it from the last features with a balanced accuracy of "
        f"{before:.3f} before and {after:.3f} after (chance {chance:.3f})."
    )


def evidence(
    subject: Subject, corpus: Corpus, attribute: str, alpha: float, seed: int, *, of_training: bool = False
) -> Evidence:
    """What the families learn from: at most `FIT` training examples, all calibration examples, the prompt and its start.

    `of_training`: the calibration examples are weighted to the coupling of the training examples, as the audit did.
    """
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
    if len(tuned_on) > FIT:
        rng = np.random.default_rng(np.random.SeedSequence([seed, 7]))
        tuned_on = tuned_on.take(np.sort(rng.permutation(len(tuned_on))[:FIT]))
    held = parts["calibration"]
    z_train, z_held = (mix.group_index(c, attribute, groups) for c in (tuned_on, held))
    learnt = mix.counts(parts["train"], attribute, groups) if of_training else None
    m = mixes(coupling(held.label, z_held, len(subject.classes), len(groups), alpha, learnt))
    prompt = start = None
    if subject.soft_prompted:
        soft = prompt_embeddings(subject)
        assert soft is not None
        prompt, start = soft.float().numpy(), start_of(subject)
    training, recipe = training_of(subject), recipe_of(subject)
    return Evidence(
        subject, tuned_on, held, z_train, z_held, m, maths.coding(m.here), prompt, start, training,
        training.lr or (recipe.lr if recipe is not None else 1e-3), seed,
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


def tried(
    e: Evidence, *, retrain: bool, resamples: int, seed: int
) -> tuple[list[dict[str, Any]], list[tuple[dict[str, Any], Variant]]]:
    """Every possible family's chosen variant on the calibration examples as a table, and those that clearly help."""
    possible = [f for f in FAMILIES if f.possible(e) and (retrain or not f.costly)]
    before = e.own.probability
    wanted = {k: statistics(e.mixes)[k] for k in ("severity", "level")}
    table: list[dict[str, Any]] = []
    winners: list[tuple[dict[str, Any], Variant]] = []

    def columns(probability: NDArray) -> list[NDArray]:
        return [probability, probability.argmax(axis=1), e.held.label, e.held_group]

    for i, family in enumerate(possible):
        try:
            variants = family.variants(e)
        except (BadInput, Unsupported) as refused:
            session().note(f"The repair '{family.title}' was not tried: {refused}")
            continue
        variant = variants[family.choose(e, variants)]
        d = bootstrap.paired_many(wanted, columns(before), columns(variant.held), seed, resamples=resamples)
        row = {
            "key": family.key, "title": family.title, "source": family.source, "variant": variant.name,
            "saveable": variant.change is not None, "level before": score(e, before, "level"),
            **{k: score(e, variant.held, k) for k in ("here", "balanced", "mirrored", "level")},
            "severity": d["severity"].value, "low": d["severity"].low, "high": d["severity"].high,
            "gain": d["level"].value, "gain low": d["level"].low,
        }  # fmt: skip
        table.append(row)
        if variant.change is not None and _helps(row):
            winners.append((row, variant))
        session().progress("trying repairs", i + 1, len(possible))
    return table, winners


def best_of(winners: list[tuple[dict[str, Any], Variant]]) -> tuple[dict[str, Any], Variant]:
    """Of those within `NEAR` of the best AUPRC over all mixes, the one whose drop is nearest to 0."""
    best = max(row["level"] for row, _ in winners)
    near = [w for w in winners if w[0]["level"] >= best - NEAR]
    return min(near, key=lambda w: abs(w[0]["here"] - w[0]["mirrored"]))


def remedy_of(subject: Subject, change: Change, card: Mapping[str, Any]) -> Adapted:
    """The change as an adapter."""
    if change.prompt is not None and change.head is not None:
        settings, tensors = files.adapter_with_head(replace(change, head=None).on(subject), change.head)
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
