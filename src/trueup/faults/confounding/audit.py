"""Subject + Corpus -> Finding: how much does the classifier lean on a column, and what happens when the coupling changes?

Terms: the coupling is how many times as frequent a class is in its own group. A head start is the higher score that a class gets
in a group at a given label. The lean is the AUPRC that is lost to head starts when the coupling is reversed.

The shift protocol keeps P(y) and P(z) and changes only P(y|z). Instead of drawing a test set at each coupling, the audit weights
every example to it. This has the same expectation, uses all examples, and has no noise from drawing (a test checks that the draws
of `corpus.mix` average to it).

The lean is measured at a nominal coupling, so that balanced or reversely coupled examples give the same verdict as examples
that are coupled as in training. Two classes and two groups can be coupled in only one way. With more, the coupling follows the
head starts that the classifier itself gives: these are learnt on a third of the clusters, and the others judge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trueup.corpus import mix
from trueup.corpus.clusters import in_order
from trueup.corpus.corpus import Corpus
from trueup.corpus.mix import FEWEST
from trueup.errors import BadInput, it_or_them, listing, shortened
from trueup.faults.confounding import inside, several
from trueup.faults.confounding.mixes import (
    TITLES,
    Mixes,
    columns,
    differences,
    folded,
    in_cells,
    judged,
    judges,
    measured,
    mixes,
    nominal,
    statistics,
)
from trueup.faults.fault import Chart, Difference, Finding, Measure, Series, Slider
from trueup.measure import bootstrap, lean
from trueup.measure.accuracy import wilson
from trueup.measure.divergence import probed_by_chance
from trueup.run.predict import hidden_states, predict, session
from trueup.subject.subject import Subject


def attribute_of(corpus: Corpus, wanted: str) -> str:
    """The column whose lean is the headline: `wanted`, or the first column where `wanted` is empty.

    Raises:
        BadInput: the corpus has no column, or not this one.
    """
    if wanted or not corpus.attributes:
        mix.groups_of(corpus, wanted)
        return wanted
    return next(iter(corpus.attributes))


def leaning_most(subject: Subject, corpus: Corpus, coupling: float) -> str:
    """The attribute that the subject leans on most on calibration examples, or the first attribute where these cannot decide.

    Calibration examples take no part in the audit itself, so this choice does not bias it.
    """
    first = next(iter(corpus.attributes), "")
    part = corpus.relabel(subject.classes)
    part = part.take(part.split == "calibration")
    if len(corpus.attributes) < 2 or not len(part):
        return first
    return several.strongest(part, predict(subject, part).logits, coupling) or first


@dataclass(frozen=True, eq=False)
class Trained:
    """How often each class occurs in each group among the examples that the subject was trained on: `counts` (C, G)."""

    groups: tuple[str, ...]
    counts: NDArray

    def among(self, groups: Sequence[str]) -> NDArray:
        """(C, len(groups)) the counts of these groups, in their order; zeros for a group that training did not have."""
        place = {g: i for i, g in enumerate(self.groups)}
        return np.stack(
            [self.counts[:, place[g]] if g in place else np.zeros(len(self.counts)) for g in groups], axis=1
        )


def trained_on(subject: Subject, corpus: Corpus, attribute: str) -> Trained | None:
    """The counts of the ``train`` split; None where it has no examples, or the attribute has one value there.

    Raises:
        BadInput: the attribute cannot be examined; or training had several values of it, and the examined examples have a value
            that no other split has.
    """
    corpus = corpus.relabel(subject.classes)
    mix.groups_of(corpus.part("test"), attribute)
    other_values, test_values = (
        np.unique(mix.column(corpus, attribute)[rows]) for rows in (corpus.split != "test", corpus.split == "test")
    )
    train = corpus.take(corpus.split == "train")
    groups = tuple(str(v) for v in np.unique(mix.column(train, attribute)))
    if len(groups) > 1:
        mix.group_index(corpus.part("test"), attribute, [str(v) for v in other_values])
    if gone := sorted(set(map(str, other_values)) - set(map(str, test_values))):
        session().note(
            f"No examined example has {attribute} {listing(gone)}, so nothing is said about {it_or_them(gone)}."
        )
    return Trained(groups, mix.counts(train, attribute, groups)) if len(groups) > 1 else None


def audit(
    subject: Subject, corpus: Corpus, *, attribute: str, coupling: float, trained: Trained | None, threshold: float,
    resamples: int, seed: int,
) -> Finding:  # fmt: skip
    """Examine all of `corpus` at the nominal `coupling` (0: the one that `nominal` chooses).

    Raises:
        BadInput: the column is missing, constant or tied to the label, or a (label, group) cell has fewer than 10 clusters.
    """
    corpus, place = in_order(corpus.relabel(subject.classes))
    if len(only := np.unique(corpus.label)) == 1:
        raise BadInput(
            f"All {len(corpus)} examples of '{corpus.name}' have the label '{corpus.classes[only[0]]}'; give examples of "
            "two labels."
        )
    attribute = attribute_of(corpus, attribute)
    groups = mix.groups_of(corpus, attribute)
    group = mix.group_index(corpus, attribute, groups)
    _check_cells(corpus, attribute, groups)
    # A class of the head that no example has is left out: its margins and its precision do not exist.
    present_labels = np.unique(corpus.label)
    label = np.searchsorted(present_labels, corpus.label)
    states = hidden_states(subject, corpus)  # first, because its pass serves the prediction too
    out = predict(subject, corpus)
    samples = columns(out.logits[:, : len(subject.classes)][:, present_labels], label, group) | {
        "cluster": corpus.cluster, "judges": judges(corpus.cluster, seed),
    }  # fmt: skip
    names = tuple(subject.classes[i] for i in present_labels)
    cells = mix.counts(corpus, attribute, groups)[present_labels]
    direction, strength, whose = nominal(
        cells, None if trained is None else trained.among(groups)[present_labels], coupling
    )
    starts = lean.head_starts(samples["score"], label, group, direction.shape)
    m = mixes(cells, direction if direction.shape == (2, 2) else starts, strength)
    within = inside.inside(states, label, group, corpus.cluster, samples["judges"], seed)
    samples["probed"] = within.hit
    chance = probed_by_chance(states[:, -1], group, label, seed=seed, cluster=corpus.cluster)
    curve = [f"curve{i}" for i in range(len(m.tables))]
    estimates = measured(statistics(samples, m), samples, direction.shape, *curve, seed=seed, resamples=resamples)
    measures = {
        k: Measure(estimates[k].value, estimates[k].low, estimates[k].high, unit, better, title)  # type: ignore[arg-type]
        for k, (title, unit, better) in TITLES.items()
        if k in estimates
    }
    present_in = inside.told(within.hit, corpus.cluster)[-1]
    measures["present"] = Measure(
        present_in.value, present_in.low, present_in.high, "balanced accuracy of a linear probe", "lower",
        "presence of the attribute",
    )  # fmt: skip
    distance_of_groups = inside.jackknife(within.distance)[-1]
    measures["distance"] = Measure(
        distance_of_groups.value, distance_of_groups.low, distance_of_groups.high, "standard deviations, 0 by chance", "lower",
        "sliced Wasserstein distance of the groups' last states",
    )  # fmt: skip
    further, refused = several.others(
        corpus, samples, attribute, coupling=coupling, threshold=threshold, resamples=resamples, seed=seed
    )
    for name, why in refused.items():
        session().note(f"Nothing is said about '{name}': {why.rstrip('.')}.")
    measures |= several.measures(further)
    samples |= {several.GROUP + f.column.name: f.column.group for f in further}
    also = [f.column.name for f in further if f.verdict == "found"]
    lean_estimate = estimates["lean"]
    favoured = [names[c] for c in lean.interaction(starts).argmax(axis=0)]
    return judged(
        lean_estimate, corpus.cluster, threshold=threshold,
        sentence=_sentence(estimates, m, attribute, groups, favoured, whose) + _also(further), measures=measures,
        charts=_charts(
            m, cells, [estimates[k] for k in curve], estimates, inside.charts(attribute, within, chance, corpus.cluster), samples,
            names, groups, attribute,
        ) + ((several.chart(attribute, lean_estimate, further),) if further else ()),
        details={"attribute": attribute, "groups": list(groups), "classes": list(names), "favoured": favoured,
                 "coupling": m.coupling.tolist(), "strength": strength, "coupled as": whose, "cells": cells.tolist(),
                 "distance by layer": within.distance.tolist(), "chance of the probe": chance}
        | ({"others": several.details(further), "also found": also} if further else {}),
        samples={k: v[place] for k, v in samples.items()},
        provenance={"seed": seed, "resamples": resamples, "level": 0.95, "examples": len(corpus),
                    "clusters": len(np.unique(corpus.cluster)), "attribute": attribute},
    )  # fmt: skip


def _sentence(
    got: Mapping[str, bootstrap.Estimate],
    m: Mixes,
    attribute: str,
    groups: Sequence[str],
    favoured: Sequence[str],
    whose: str,
) -> str:
    lean_estimate, floor = got["lean"], got["floor"]
    if lean_estimate.low > 0 or lean_estimate.high < 0:
        starts = ", ".join(f"'{c}' where {attribute} is {g}" for c, g in zip(favoured, groups, strict=True))
        head_start = f"At a given label it favours {starts}{_whose(lean_estimate.value, m, whose)}."
    else:
        head_start = "No group has a head start that can be told from none."
    return (
        f"At a coupling of {m.strength:.3g} (each class is {m.strength:.3g} times as frequent in its own group) AUPRC is "
        f"{got['auprc_towards'].value:.3f} one way and {got['auprc_against'].value:.3f} the other. Leaning on '{attribute}' "
        f"causes {abs(lean_estimate.value):.3f} {_interval(*folded(lean_estimate))} of that; {floor.value:+.3f} "
        f"{_interval(floor.low, floor.high)} is because one group is harder, which is not a shortcut. {head_start}"
    )


def _also(told: Sequence[several.Further]) -> str:
    """The sentence about further columns: how many were examined, and which were found, with simultaneous intervals."""
    if not told:
        return ""
    found = [f"'{f.column.name}' {f.lean.value:.3f} {_interval(*folded(f.lean))}" for f in told if f.verdict == "found"]
    return f" Of {len(told)} further columns and pairs found too: {', '.join(found) if found else 'none'}."


def _whose(value: float, m: Mixes, whose: str) -> str:
    """A phrase for two classes and two groups: whether the lean goes with or against the coupling that defines its sign."""
    if m.coupling.shape != (2, 2):
        return ""
    return f", {'with' if value > 0 else 'against'} the coupling of the {whose} examples"


def _interval(low: float, high: float) -> str:
    return f"[{low:.3f}, {high:.3f}]"


def consequence(before: Finding, after: Finding | None) -> str:
    """What the lean means in practice: the classifier's quality if classes and groups went together the other way."""
    column = before.details["attribute"]
    opening = {
        "found": f"This model leans on '{column}'.",
        "undecided": f"It is not settled whether this model leans on '{column}'.",
        "clear": f"This model does not lean on '{column}' beyond the threshold.",
    }[before.verdict]
    groups = before.details["groups"]
    swap = (
        f"the two groups of '{column}' swapped roles"
        if len(groups) == 2
        else f"label and '{column}' went together the other way"
    )

    def ends(f: Finding) -> tuple[float, float]:
        return f.measures["auprc_towards"].value, f.measures["auprc_against"].value

    quality_before, quality_after = ends(before)
    moves = "fall" if quality_after < quality_before else "rise"
    sentence = f"If {swap}, its quality (AUPRC) would {moves} from {quality_before:.2f} to {quality_after:.2f}"
    if after is not None:
        sentence += "; with the repaired adapter from {:.2f} to {:.2f}".format(*ends(after))
    return f"{opening} {sentence}."


def compare(before: Finding, after: Finding, *, resamples: int, seed: int) -> dict[str, Difference]:
    """Paired differences, after minus before, of the severity, every measure of the predictions, presence and distance."""
    mixes_before, mixes_after = (
        mixes(np.array(f.details["cells"]), np.array(f.details["coupling"]), f.details["strength"])
        for f in (before, after)
    )
    changes = differences(
        before.samples, after.samples, mixes_before, mixes_after, (*TITLES, "severity"), resamples=resamples, seed=seed
    )
    changes_of_others = several.changed(
        before.samples, after.samples, before.details.get("others", []), after.details.get("others", []), resamples=resamples,
        seed=seed,
    )  # fmt: skip
    return (
        changes
        | changes_of_others
        | {"present": _moved_probe(before, after)[-1], "distance": _moved_apart(before, after)[-1]}
    )


def pictures(before: Finding, after: Finding) -> tuple[Chart, ...]:
    """Charts of what the repair changed in each layer: paired differences of the probe and of the distance."""
    return inside.charts_of_change(_moved_probe(before, after), _moved_apart(before, after))


def _moved_probe(before: Finding, after: Finding) -> list[Difference]:
    distances_before, distances_after = _apart(before, after)
    hits = (before.samples["probed"], after.samples["probed"])
    return inside.moved_probe(*hits, before.samples["cluster"], (distances_before == distances_after).all(axis=0))


def _moved_apart(before: Finding, after: Finding) -> list[Difference]:
    distances_before, distances_after = _apart(before, after)
    return inside.jackknife(distances_after - distances_before)


def _apart(before: Finding, after: Finding) -> tuple[np.ndarray, np.ndarray]:
    """The groups' distance by layer, before and after (`inside.Inside.distance`)."""
    return np.array(before.details["distance by layer"]), np.array(after.details["distance by layer"])


def examples(corpus: Corpus, before: Finding, after: Finding | None) -> list[dict[str, str | float | bool]]:
    """100 of the most confident predictions, errors that follow the shortcut first, and up to 100 that the repair changed."""
    s = before.samples
    names, groups = before.details["classes"], before.details["groups"]
    favoured = np.array([names.index(c) for c in before.details["favoured"]])
    follows = (s["predicted"] == favoured[s["group"]]) & (s["predicted"] != s["label"])
    sure = s["probability"].max(axis=1)
    order = np.lexsort((-sure, ~follows))[:100]
    if after is not None:
        turned = np.flatnonzero(after.samples["predicted"] != s["predicted"])
        order = np.concatenate([order, turned[np.argsort(-sure[turned], kind="stable")][:100]])
    rows: list[dict[str, str | float | bool]] = []
    for i in dict.fromkeys(order.tolist()):
        row: dict[str, str | float | bool] = {
            "text": shortened(corpus.text[i], 400),
            before.details["attribute"]: groups[int(s["group"][i])],
            "label": names[int(s["label"][i])],
            "predicted": names[int(s["predicted"][i])],
            "follows the shortcut": bool(follows[i]),
            "confidence": float(sure[i]),
        }
        if after is not None:
            row["predicted after"] = names[int(after.samples["predicted"][i])]
        rows.append(row)
    return rows


def _check_cells(corpus: Corpus, attribute: str, groups: tuple[str, ...]) -> None:
    table = in_cells(corpus.label, mix.group_index(corpus, attribute, groups), corpus.cluster)
    table = table[table.sum(axis=1) > 0]
    present = [c for i, c in enumerate(corpus.classes) if (corpus.label == i).any()]
    y, z = np.unravel_index(int(table.argmin()), table.shape)
    if table[y, z] < FEWEST:
        small = int((table < FEWEST).sum())
        raise BadInput(
            f"Only {table[y, z]} of the {len(np.unique(corpus.cluster))} independent examples to examine in '{corpus.name}' have "
            f"label '{present[y]}' and {attribute} '{groups[z]}' ({small} of {table.size} cells have fewer than {FEWEST}), so "
            f"nothing can be said about a mix with more of them. Give more rows, or merge or drop rare values of '{attribute}'."
        )


def _charts(
    m: Mixes, cells, curve, got, layers: tuple[Chart, ...], samples, names, groups, attribute
) -> tuple[Chart, ...]:
    axis = "coupling: how many times as frequent a class is in its own group (1: unrelated; below 1: reversed)"
    rates = []
    for z, name in enumerate(groups):
        rows = [(samples["label"] == y) & (samples["group"] == z) for y in range(len(names))]
        hits = np.array([(samples["predicted"][r] == y).sum() for y, r in enumerate(rows)])
        totals = np.array([r.sum() for r in rows])
        low, high = wilson(hits, totals)
        rates.append(
            Series(str(name), list(names), (hits / np.maximum(totals, 1)).tolist(), low.tolist(), high.tolist())
        )
    # The coupling of the examined examples along the nominal direction; none of their cells is empty (`_check_cells`).
    log_table = lean.interaction(np.log(cells))
    along = float((log_table * m.coupling).sum() / np.square(m.coupling).sum()) * math.log10(m.strength)
    own_mix = float(np.clip(along, m.x[0], m.x[-1]))
    bars = {f"leaning on {attribute}": got["lean"], "one group is harder (floor)": got["floor"]}
    return (
        Chart(
            "lean", "What is lost when the coupling is reversed", "bar", "why", "AUPRC lost",
            "Only the first bar is the fault: a head start of one group. Below 0 it goes against the coupling. The second is what "
            "would be left if no group had a head start.",
            (Series("AUPRC lost", list(bars), [e.value for e in bars.values()], [e.low for e in bars.values()],
                    [e.high for e in bars.values()]),),
        ),
        Chart(
            "shift", "AUPRC when the coupling changes", "line", axis, "AUPRC",
            "Labels and groups stay as frequent as they are; only how often they occur together changes. A flat line means that "
            "the model ignores the column.",
            (Series("AUPRC", m.x.tolist(), [e.value for e in curve], [e.low for e in curve], [e.high for e in curve]),),
            log10=True, slider=Slider("Coupling of the test texts", 0.0), here=own_mix,
        ),
        *layers,
        Chart(
            "cells", "Accuracy by label and group", "bar", "label", "accuracy",
            "Bars of one label differ where a group has a head start or is harder. Only the first is leaning.", tuple(rates),
        ),
    )  # fmt: skip
