"""Finding -> Remedy: try every family on calibration examples, choose the best within the budget, and test it on others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput, Unsupported, did_you_mean, it_or_them, listing
from trueup.faults.adapter_remedy import Adapted, adapted, read_adapted, with_head
from trueup.faults.confounding.audit import attribute_of
from trueup.faults.confounding.candidates import FAMILIES
from trueup.faults.confounding.claim import Claim, claimed
from trueup.faults.confounding.evidence import CONTROL, Change, Evidence, Family, Knobs, Variant, evidence, score
from trueup.faults.confounding.mixes import COLUMNS, differences, statistics
from trueup.faults.fault import Alternative, Difference, Finding, NoRemedy, dearer
from trueup.run.predict import session
from trueup.subject import adapter as files
from trueup.subject.subject import Subject
from trueup.subject.swap_adapter import with_prompt

NEAR = 0.01
"""A difference in the mean AUPRC over all couplings that a few hundred calibration examples cannot resolve."""
RESAMPLES = 300
"""The most resamples of the bootstrap that judges the families on calibration examples."""


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

    On the half that chooses, a family is eligible if the lean falls, the mean AUPRC over all couplings rises, and accuracy on the
    data as they are falls by at most `max_cost`. Of the eligible families within `NEAR` of the best mean AUPRC, the one with the
    lean nearest to 0 is chosen. Only this one is tested: on the other half, the whole paired interval of its change of the lean has
    to be below 0. So a repair without effect is reported in at most 2.5% of runs, however many were tried. ``test`` is never used.

    Args:
        take: the key of a family to take instead of the one that this rule would choose.

    Raises:
        BadInput: a (label, group) cell of a split has fewer than 10 examples, or `take` is no family that was tried.
    """
    corpus = corpus.relabel(subject.classes)
    attribute, resamples = attribute_of(corpus, attribute), min(resamples, RESAMPLES)
    if subject.head is not None:
        return NoRemedy("The subject already carries a repaired last layer; repair the adapter it was made from.")
    if not finding.found:
        return NoRemedy(
            f"The lean of {finding.severity:.3f} [{finding.low:.3f}, {finding.high:.3f}] is not clearly above the threshold of "
            f"{finding.threshold:g}, so there is nothing to repair."
        )
    split = evidence(subject, corpus, attribute, coupling, seed, knobs)
    offers, winner = choose(split, offered(split, retrain=retrain), max_cost=max_cost, take=take)
    moved = judge(split, offers, resamples=resamples)
    about = {
        "attribute": attribute, "groups": finding.details["groups"], "max_cost": max_cost, "pair": corpus.second is not None,
    }  # fmt: skip
    if winner is None or not (take or confirmed(moved[winner.key], max_cost)):
        why, too_dear = why_none(offers, moved, winner, max_cost)
        return NoRemedy(why, about | _tried(split, offers, moved), frontier(offers, moved), too_dear)
    claim = claimed(split, winner.variant, resamples)
    return tell(split, offers, moved, winner, claim, about)


# ----------------------------------------------------------------------------------------------------------------- choose


@dataclass(frozen=True, eq=False)
class Offer:
    """A family's chosen setting, with its results on the calibration examples that choose.

    Attributes:
        lean_before, lean: |lean|. level_before, level: mean AUPRC over all couplings. cost: accuracy lost on the data as they are.
        flip: |lean| with the polarity of the shortcut reversed, which must not help; None where there is no such control.
        refused: why it could not be made into an adapter; empty where it could, or where this was not tried.
    """

    family: Family
    variant: Variant
    lean_before: float
    lean: float
    level_before: float
    level: float
    cost: float
    flip: float | None = None
    refused: str = ""

    @property
    def key(self) -> str:
        return self.family.key

    @property
    def title(self) -> str:
        return self.family.title

    @property
    def control(self) -> bool:
        """Whether this is a control, which must not help."""
        return self.family.source == CONTROL

    @property
    def flip_matches(self) -> bool:
        """Whether the reversed polarity lowers the lean as much, so that the effect does not come from the shortcut."""
        return self.flip is not None and self.flip <= self.lean < self.lean_before

    @property
    def saveable(self) -> bool:
        return self.variant.change is not None and not self.flip_matches and not self.refused

    @property
    def helps(self) -> bool:
        """Whether the lean falls and the mean AUPRC over all couplings rises; never for a control, or where the flip matches."""
        better = self.lean < self.lean_before and self.level > self.level_before
        return better and not self.control and not self.flip_matches


def offered(e: Evidence, *, retrain: bool) -> list[Offer]:
    """The chosen setting of every family that is possible, and without `retrain` not costly."""
    possible = [f for f in FAMILIES if f.possible(e) and (retrain or not f.costly)]
    offers: list[Offer] = []
    own_columns = e.columns(e.own.probability, e.choosing)
    lean_before, level_before = leans(e, own_columns), score(e, e.own.probability, "level")
    for i, family in enumerate(possible):
        try:
            variants = family.variants(e)
        except (BadInput, Unsupported) as refused:
            session().note(f"The repair '{family.title}' was not tried: {refused}")
            continue
        chosen = family.choose(e, variants)
        variant, control = variants[chosen], family.flipped(e, chosen)
        after = e.columns(variant.held, e.choosing)
        flip = None if control is None else leans(e, e.columns(control.held, e.choosing))
        offer = Offer(
            family, variant, lean_before, leans(e, after), level_before, score(e, variant.held, "level"),
            _accuracy(own_columns) - _accuracy(after), flip,
        )  # fmt: skip
        if offer.flip_matches:
            session().note(
                f"The repair '{family.title}' is not offered: with the shortcut's polarity turned round, which must not help, the "
                f"lean falls as far ({offer.flip:.3f} against {offer.lean:.3f}, from {lean_before:.3f})."
            )
        offers.append(offer)
        session().progress("trying repairs", i + 1, len(possible))
    return offers


def choose(e: Evidence, offers: list[Offer], *, max_cost: float, take: str) -> tuple[list[Offer], Offer | None]:
    """All offers, and the one that the rule chooses or that `take` names, None where none can be made into an adapter.

    Chosen offers that could not be saved are passed over; their `Offer.refused` says why.

    Raises:
        BadInput: `take` names no offer that an adapter can carry.
    """
    winner = taken(offers, take) if take else best_of(offers, max_cost)
    while winner is not None:
        try:
            assert winner.variant.change is not None
            remedy_of(e.subject, winner.variant.change, {"describe": ""})
            break
        except Unsupported as why:
            session().note(f"The repair '{winner.title}' was passed over, because it cannot be saved: {why}")
            offers = [replace(o, refused=str(why)) if o is winner else o for o in offers]
            winner = None if take else best_of(offers, max_cost)
    return offers, winner


def taken(offers: Sequence[Offer], key: str) -> Offer:
    """The offer with this key. Raises BadInput where no offer that an adapter can carry has it."""
    able = {o.key: o for o in offers if not o.control and o.saveable}
    if key not in able:
        raise BadInput(
            f"No repair '{key}' was tried that an adapter can carry.{did_you_mean(key, able)} There is {listing(able)}."
        )
    return able[key]


def best_of(offers: Sequence[Offer], max_cost: float) -> Offer | None:
    """The offer with the smallest lean, of those that help within the budget and can be saved; None where there is none.

    It is within `NEAR` of the best mean AUPRC over all couplings among these.
    """
    able = [o for o in offers if o.helps and o.saveable and not dearer(o.cost, max_cost)]
    best = max((o.level for o in able), default=0.0)
    return min((o for o in able if o.level >= best - NEAR), key=lambda o: o.lean, default=None)


def leans(e: Evidence, samples: Mapping[str, NDArray]) -> float:
    """|lean| of the calibration examples whose columns (`Evidence.columns`) are given."""
    return statistics(samples, e.mixes, own=False)["severity"](*(samples[k] for k in COLUMNS))


def _accuracy(samples: Mapping[str, NDArray]) -> float:
    return float((samples["predicted"] == samples["label"]).mean())


# ------------------------------------------------------------------------------------------------------ judge and certify


@dataclass(frozen=True)
class Moved:
    """Paired differences to the unrepaired subject, on the calibration examples that chose nothing.

    They are of |lean|, of the mean AUPRC over all couplings, and of accuracy on the data as they are.
    """

    lean: Difference
    level: Difference
    accuracy: Difference

    @property
    def helps(self) -> bool:
        """Whether the whole interval of the lean's change is below 0, and the mean AUPRC over all couplings rises."""
        return self.lean.high < 0 < self.level.value


def judge(e: Evidence, offers: Sequence[Offer], *, resamples: int) -> dict[str, Moved]:
    """Key -> the differences that each offer makes, on the calibration examples that chose nothing."""
    own_columns = e.columns(e.own.probability, ~e.choosing)

    def moved(offer: Offer) -> Moved:
        after = e.columns(offer.variant.held, ~e.choosing)
        d = differences(
            own_columns, after, e.mixes, None, ("severity", "level", "accuracy"), resamples=resamples, seed=e.seed
        )
        return Moved(d["severity"], d["level"], d["accuracy"])

    return {o.key: moved(o) for o in offers}


def confirmed(moved: Moved, max_cost: float) -> bool:
    """Whether the examples that chose nothing confirm a choice, and do not show that it costs more than the budget."""
    return moved.helps and not dearer(-moved.accuracy.high, max_cost)


def why_none(
    offers: Sequence[Offer], moved: Mapping[str, Moved], winner: Offer | None, max_cost: float
) -> tuple[str, bool]:
    """A sentence that says why there is no repair, and whether the reason is the budget.

    The reason is the budget where a repair helps on the examples that chose nothing, but costs more.
    """
    repairs = [o for o in offers if not o.control]
    helped = [o for o in repairs if o.helps]
    failed = winner is not None and not moved[winner.key].helps
    if winner is not None and not failed:
        return _too_dear([(winner, -moved[winner.key].accuracy.value)], moved, max_cost), True
    dear = [o for o in helped if o.saveable and dearer(o.cost, max_cost)]
    proven = [(o, o.cost) for o in dear if moved[o.key].helps]
    if winner is not None:
        reason = _unconfirmed(winner, moved[winner.key], f"{max_cost:.1%}" if dear else "")
        return f"{reason} {_too_dear(proven, moved, max_cost)}" if proven else reason, bool(proven)
    if proven:
        return _too_dear(proven, moved, max_cost), True
    if dear:
        best = min(dear, key=lambda o: o.lean)
        return (
            f"No repair lies within the budget of {max_cost:.1%} of accuracy. {_unconfirmed(best, moved[best.key])}",
            False,
        )
    if refused := [o for o in repairs if o.refused]:
        return (
            f"{listing([o.title for o in refused])} helped and cannot be saved: {refused[0].refused.rstrip('.')}."
        ), False
    if functions := [o.title for o in helped if o.variant.change is None]:
        return (
            f"{listing(functions)} helped, but no adapter computes {it_or_them(functions)}; no other of {len(repairs)} repairs did."
        ), False
    if not repairs:
        return "No family of repairs goes with this subject.", False
    best = max(repairs, key=lambda o: o.level)
    return (
        f"Of {len(repairs)} repairs none lowered the lean on calibration examples and raised AUPRC over all couplings (the best, "
        f"{best.title}: lean {best.lean_before:.3f} before and {best.lean:.3f} after)."
    ), False


def _too_dear(dear: Sequence[tuple[Offer, float]], moved: Mapping[str, Moved], max_cost: float) -> str:
    """A sentence about repairs above the budget, given with their costs: what the cheapest does, and how to get it anyway."""
    least, cost = min(dear, key=lambda d: d[1])
    others = "" if len(dear) == 1 else f" Of {listing([o.title for o, _ in dear])} it costs least."
    lean = _interval(moved[least.key].lean)
    return (
        f"{least.title[0].upper()}{least.title[1:]} would lower the lean ({lean}) at a cost above the budget of {max_cost:.1%} of "
        f"accuracy as the data are: {cost:.1%}.{others} Raise the budget (--max-cost {math.ceil(100 * cost) / 100:g}), or take it "
        f"by name (--take {least.key})."
    )


def _unconfirmed(best: Offer, moved: Moved, budget: str = "") -> str:
    """A sentence: the examples that chose nothing do not confirm `best`. `budget`: the budget, where costlier repairs helped."""
    lean = _interval(moved.lean)
    return (
        f"{f'Within the budget of {budget} of accuracy, t' if budget else 'T'}he best repair on the calibration examples used for "
        f"choosing was {best.title}. The others do not confirm it: "
        + (
            f"the lean moved by {lean}, but AUPRC over all couplings, which has to rise, by {_interval(moved.level)}."
            if moved.lean.high < 0
            else f"the lean moved by {lean}, which is no clear fall."
        )
    )


# ------------------------------------------------------------------------------------------------------------------- tell


def tell(
    e: Evidence,
    offers: Sequence[Offer],
    moved: Mapping[str, Moved],
    winner: Offer,
    claim: Claim,
    about: Mapping[str, Any],
) -> Adapted:
    """The winner as an adapter, with its card: what was tried, what changed, and HyPA's claim about the attribute inside."""
    m, tried = moved[winner.key], _tried(e, offers, moved, winner)
    describe = (
        f"{winner.title[0].upper()}{winner.title[1:]} ({winner.variant.name}). On {tried['examples']['judged']} calibration "
        f"examples that were not used for choosing, the lean on '{about['attribute']}' changes by {_interval(m.lean)}, the mean "
        f"AUPRC over all couplings by {_interval(m.level)}, and the accuracy by {_interval(m.accuracy, '+.1%')}. "
        f"{claim.sentence}"
    )
    card = dict(about) | tried | {
        "describe": describe, "chosen": winner.key, "table": f"{tried['table']}\n\n{claim.table}",
        "frontier": [asdict(a) for a in frontier(offers, moved, winner)],
    }  # fmt: skip
    assert winner.variant.change is not None
    return replace(remedy_of(e.subject, winner.variant.change, card), pictures=(claim.chart,))


def _tried(
    e: Evidence, offers: Sequence[Offer], moved: Mapping[str, Moved], winner: Offer | None = None
) -> dict[str, Any]:
    """The part of the card that describes the search for the repair."""
    return {
        "candidates": [_row(o, moved[o.key]) | ({"chosen": True} if o is winner else {}) for o in offers],
        "table": _markdown(offers, moved), "seed": e.seed,
        "anchor": None if e.prompt is None else ("P0" if e.anchor is e.start else "the tuned prompt"),
        "arithmetic": asdict(e.knobs),
        "examples": {"train": len(e.train), "chose": int(e.choosing.sum()), "judged": int((~e.choosing).sum())},
    }  # fmt: skip


def _row(offer: Offer, moved: Moved) -> dict[str, Any]:
    """The card's entry for one offer."""
    cost, gain = _cost(moved), moved.level
    row = {
        "key": offer.key, "title": offer.title, "source": offer.family.source, "variant": offer.variant.name,
        "saveable": offer.saveable, "flip": offer.flip, "level before": offer.level_before, "level": offer.level,
        "chose lean before": offer.lean_before, "chose lean": offer.lean, "chose cost": offer.cost,
        "severity": moved.lean.value, "low": moved.lean.low, "high": moved.lean.high,
        "gain": gain.value, "gain low": gain.low, "gain high": gain.high,
        "cost": cost[0], "cost low": cost[1], "cost high": cost[2],
    }  # fmt: skip
    if offer.flip_matches:
        row["no better than its flip"] = True
    if offer.refused:
        row["refused"] = offer.refused
    return row


def frontier(
    offers: Sequence[Offer], moved: Mapping[str, Moved], winner: Offer | None = None
) -> tuple[Alternative, ...]:
    """The gain (reduction of the lean) and cost (accuracy lost on the data as they are) of each repair, the best gain first.

    Both are measured on the examples that chose nothing.
    """
    return tuple(
        Alternative(
            o.key, o.title, -moved[o.key].lean.value, -moved[o.key].lean.high, -moved[o.key].lean.low, *_cost(moved[o.key]),
            o is winner, o.saveable,
        )
        for o in sorted(offers, key=lambda o: moved[o.key].lean.value) if not o.control
    )  # fmt: skip


def _markdown(offers: Sequence[Offer], moved: Mapping[str, Moved]) -> str:
    """The card's table of what was tried."""
    rows = "\n".join(
        f"| {o.title} | {o.variant.name} | {_interval(moved[o.key].lean)} | {_interval(moved[o.key].level)} | "
        f"{'{:+.1%} [{:+.1%}, {:+.1%}]'.format(*_cost(moved[o.key]))} |"
        for o in sorted(offers, key=lambda o: -moved[o.key].level.value)
    )
    return (
        "Paired differences to the adapter as it was, on calibration examples that were not used for choosing: of the lean, of "
        "the mean AUPRC over couplings from one to its reverse, and of the accuracy. Settings and the winner were chosen "
        "on the other calibration examples; intervals of those that were not chosen are not adjusted for their number.\n\n"
        "| repair | setting | change of the lean [95%] | change of AUPRC, all couplings [95%] | accuracy lost [95%] |\n"
        "|---|---|---|---|---|\n" + rows
    )


def _interval(d: Difference, form: str = "+.3f") -> str:
    return f"{d.value:{form}} [{d.low:{form}}, {d.high:{form}}]"


def _cost(moved: Moved) -> tuple[float, float, float]:
    """The accuracy lost: the value, and the ends of its interval."""
    return -moved.accuracy.value, -moved.accuracy.high, -moved.accuracy.low


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
    """The subject's own adapter as a remedy, which changes nothing."""
    return remedy_of(replace(subject, head=None), Change(), {"describe": "Changes nothing."})


def read_remedy(folder: Path, subject: Subject) -> Adapted:
    """The remedy that was saved to `folder`."""
    return read_adapted("confounding", folder, subject)
