"""Finding -> Remedy: the smallest adapter that closes the gap, a prompt tuned anew before any weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from trueup.errors import BadInput
from trueup.faults.adapter_remedy import Adapted, adapted
from trueup.faults.fault import Finding, NoRemedy
from trueup.faults.rigidity.audit import PROMPTS, WEIGHTS, References, points, rates
from trueup.faults.rigidity.contest import Team, ladder, on, team
from trueup.measure import bootstrap
from trueup.run.predict import predict, session
from trueup.run.train import Training
from trueup.subject import adapter as files
from trueup.subject.subject import Subject

NEAR = 0.01
"""Accuracy that some hundred examples cannot tell: the smallest adapter this near to the best is taken."""


def repair(
    subject: Subject,
    refs: References,
    finding: Finding,
    *,
    epochs: int,
    tries: int,
    seeds: int,
    resamples: int,
    seed: int,
) -> Adapted | NoRemedy:
    """Search upward from the subject's own size; choose on one half of ``calibration``, judge on the other, by clusters.

    Where weights are needed, candidates are the weights of the contest, then LoRAs of query, key and value in all layers at
    growing rank, for as long as one rung is better than the one below it. Where only this prompt is under-tuned, they are the
    contest's prompts. Of those within `NEAR` of the best mean accuracy over seeds the smallest is taken, and of its seeds the
    one with the lowest NLL. On the other half that one must be better than the subject with the whole paired interval.
    """
    if not refs.entrants:
        return NoRemedy("It adapts weights already, so there is no gap that other weights were seen to close.")
    weak = finding.measures.get("under_tuned")
    if not finding.found and not (weak and weak.low > finding.threshold):
        return NoRemedy(
            f"Weights are not clearly more right than a prompt of equal size and effort ({finding.severity:+.1%} "
            f"[{finding.low:+.1%}, {finding.high:+.1%}], threshold {finding.threshold:.1%}), and this prompt is not clearly "
            "under-tuned, so there is nothing to repair."
        )
    found = [e for k, e in refs.entrants.items() if k in (WEIGHTS if finding.found else PROMPTS)]
    below = max(e.kept.accuracy for e in found)
    for rival in ladder(subject, refs.size) if finding.found else ():
        try:
            rung = team(
                subject,
                refs.corpus,
                rival,
                rates=rates(tries),
                training=Training(epochs=epochs),
                seeds=seeds,
                seed=seed,
            )
        except BadInput as e:
            session().note(f"The search for the smallest LoRA ended at rank {getattr(rival.recipe, 'rank', 1)}: {e}")
            break
        found.append(rung)
        if rung.kept.accuracy <= below + NEAR:
            break
        below = rung.kept.accuracy
    found.sort(key=lambda e: e.rival.size)
    best = max(e.kept.accuracy for e in found)
    chosen = next(e for e in found if e.kept.accuracy >= best - NEAR)
    handed = chosen.handed
    subject_right, repaired_right = (
        predict(s, refs.held).predicted == refs.held.label for s in (subject, on(subject, handed))
    )

    gain = bootstrap.paired(
        bootstrap.Share(np.asarray), [subject_right], [repaired_right], seed, resamples, cluster=refs.held.cluster
    )
    rows = [_row(e, e is chosen) for e in found]
    about = f"{points(gain)} on {len(subject_right)} calibration examples that were not used for choosing"
    name = _name(chosen)
    if gain.low <= 0:
        return NoRemedy(
            f"Of {len(found)} kinds of adapters tuned anew the smallest of the best ({name}) is not "
            f"measurably better: {about}.",
            {"candidates": rows},
        )
    card = {
        "describe": f"{name[0].upper()}{name[1:]} in place of an adapter of {refs.size:,}. It is the smallest within "
        f"{100 * NEAR:g} point of the best of {len(found)} kinds, the best of its {len(chosen.members)} seeds, and gains {about}.",
        "table": _markdown(rows, refs), "candidates": rows, "seed": seed, "pair": refs.corpus.second is not None,
        "examples": {"train": len(refs.corpus.part("train")), "chosen on": len(refs.corpus.part("calibration")),
                     "judged on": len(subject_right)},
        "gain": [gain.value, gain.low, gain.high],
    }  # fmt: skip
    return adapted("rigidity", subject, handed.settings, handed.tensors, card)


def null_remedy(subject: Subject) -> Adapted:
    """The subject's own adapter in place of itself."""
    return adapted("rigidity", subject, *files.adapter_of(subject), {"describe": "Changes nothing."})


def _name(e: Team) -> str:
    where = getattr(e.rival.recipe, "layers", ())
    rank = getattr(e.rival.recipe, "rank", None)
    if rank is None:
        return f"a {e.rival.kind} tuned anew ({e.rival.size:,} trained numbers)"
    layers = f" in {len(where)} layer{'s' * (len(where) > 1)}" if where else " in all layers"
    return f"a {e.rival.kind} of rank {rank}{layers} ({e.rival.size:,} trained numbers)"


def _row(e: Team, chosen: bool) -> dict[str, Any]:
    best_attempt = e.kept
    return {
        "title": _name(e), "size": e.rival.size, "learning rate": best_attempt.lr, "epochs": best_attempt.epochs,
        "seeds": len(e.members), "accuracy": best_attempt.accuracy, "nll": best_attempt.nll, "chosen": chosen,
    }  # fmt: skip


def _markdown(rows: list[dict[str, Any]], refs: References) -> str:
    """The card's table of what was tried."""
    lines = [f"| this adapter as it was | {refs.size:,} | | {refs.own:.1%} | |"]
    lines += [
        f"| {r['title']}{' (chosen)' if r['chosen'] else ''} | {r['size']:,} | {r['learning rate']:.1e} | {r['accuracy']:.1%} | "
        f"{r['nll']:.3f} |"
        for r in rows
    ]
    return (
        "Each was trained for as long as it improved, at learning rates of which one half of the calibration examples chose one, "
        "from several seeds; the figures are means over seeds on that half, and so a little optimistic.\n\n"
        "| adapter | trained numbers | learning rate | accuracy | NLL |\n|---|---|---|---|---|\n" + "\n".join(lines)
    )
