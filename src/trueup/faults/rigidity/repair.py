"""Finding -> Remedy: the smallest adapter that closes the gap, a prompt tuned anew before any weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from trueup.corpus.corpus import Corpus
from trueup.faults.adapted import Adapted, adapted
from trueup.faults.fault import Finding, NoRemedy
from trueup.faults.rigidity.audit import PROMPTS, WEIGHTS, References, limited, rates, score
from trueup.faults.rigidity.contest import Entrant, ladder, on, trained
from trueup.measure import bootstrap
from trueup.run.predict import predict
from trueup.run.train import Training
from trueup.subject import adapter as files
from trueup.subject.subject import Subject

NEAR = 0.01
"""Accuracy that some hundred calibration examples cannot tell: the smallest adapter this near to the best is taken."""


def repair(
    subject: Subject, corpus: Corpus, finding: Finding, refs: References, *, epochs: int, tries: int, most: int,
    resamples: int, seed: int,
) -> Adapted | NoRemedy:  # fmt: skip
    """Search upward from the subject's own size; choose on ``calibration``; never look at ``test``.

    Candidates are the adapters of the contest, then LoRAs of query, key and value in all layers at growing rank, for as
    long as one rung is better than the one below it. Of those within `NEAR` of the best, a prompt comes before weights and
    a small one before a large one. It must be better than the subject with the whole paired interval.
    """
    if not refs.entrants:
        return NoRemedy("It adapts weights already, so there is no gap that smaller or other weights would close.")
    corpus = limited(corpus.relabel(subject.classes), most, seed)
    held = corpus.part("calibration")
    found = list(refs.entrants.values())
    below = max(score(e).accuracy for e in found if e.rival.kind in WEIGHTS)
    for rival in ladder(subject, refs.size):
        rung = trained(subject, corpus, rival, rates=rates(tries), training=Training(epochs=epochs), seed=seed)
        found.append(rung)
        if score(rung).accuracy <= below + NEAR:
            break
        below = score(rung).accuracy
    found.sort(key=lambda e: (e.rival.kind not in PROMPTS, e.rival.size))
    best = max(score(e).accuracy for e in found)
    chosen = next(e for e in found if score(e).accuracy >= best - NEAR)
    own = (predict(subject, held).predicted == held.label).astype(float)
    new = (predict(on(subject, chosen), held).predicted == held.label).astype(float)

    def accuracy(right: np.ndarray, weight: np.ndarray | None = None) -> float:
        return float(np.average(right, weights=weight))

    gain = bootstrap.paired(accuracy, [own], [new], seed, resamples)
    rows = [_row(e, e is chosen) for e in found]
    about = f"{gain.value:+.1%} [{gain.low:+.1%}, {gain.high:+.1%}] on calibration examples"
    name = _name(chosen)
    if gain.low <= 0:
        return NoRemedy(
            f"No repair: of {len(found)} adapters tuned anew, prompts and weights, the smallest of the best ({name}) is not "
            f"measurably better: {about}.",
            {"candidates": rows},
        )
    settings, tensors = _with_base(subject, chosen)
    card = {
        "describe": f"{name[0].upper()}{name[1:]}, the smallest adapter that closes the gap, in place of one of {refs.size:,}: "
        f"{about}.",
        "table": _markdown(rows, refs), "candidates": rows, "seed": seed, "pair": corpus.second is not None,
        "examples": {"train": len(corpus.part("train")), "calibration": len(held)},
        "gain": [gain.value, gain.low, gain.high],
    }  # fmt: skip
    return adapted("rigidity", subject, settings, tensors, card)


def null_remedy(subject: Subject) -> Adapted:
    """The subject's own adapter in place of itself."""
    return adapted("rigidity", subject, *files.adapter_of(subject), {"describe": "Changes nothing."})


def _with_base(subject: Subject, entrant: Entrant) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    return dict(entrant.settings) | {"inference_mode": True}, entrant.tensors


def _name(e: Entrant) -> str:
    where = getattr(e.rival.recipe, "layers", ())
    rank = getattr(e.rival.recipe, "rank", None)
    if rank is None:
        return f"a {e.rival.kind} tuned anew ({e.rival.size:,} trained numbers)"
    layers = f" in {len(where)} layer{'s' * (len(where) > 1)}" if where else " in all layers"
    return f"a {e.rival.kind} of rank {rank}{layers} ({e.rival.size:,} trained numbers)"


def _row(e: Entrant, chosen: bool) -> dict[str, Any]:
    kept = score(e)
    return {
        "title": _name(e), "size": e.rival.size, "learning rate": e.lr, "accuracy": kept.accuracy, "nll": kept.nll,
        "chosen": chosen,
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
        "Each was trained with the same number of learning rates, of which calibration examples chose one; the figures are on "
        "these examples, and so a little optimistic.\n\n"
        "| adapter | trained numbers | learning rate | accuracy | NLL |\n|---|---|---|---|---|\n" + "\n".join(lines)
    )
