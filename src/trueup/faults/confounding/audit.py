"""Subject + Corpus -> Finding: how much does the classifier lean on a column, and what happens when the mix moves?

The shift protocol keeps P(y) and P(z) and moves only P(y|z). Instead of drawing test sets at each coupling, every audited
example is weighted to it: the same quantity in expectation, from all examples and without a draw's noise (a test holds
that the draws of `corpus.mix` average to it).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trueup.corpus import mix
from trueup.corpus.corpus import Corpus
from trueup.corpus.mix import FEWEST
from trueup.errors import BadInput, it_or_them, listing
from trueup.faults.confounding.maths import shortcut
from trueup.faults.fault import Chart, Difference, Finding, Measure, Series, Slider
from trueup.measure import bootstrap, shift
from trueup.measure.accuracy import accuracy, wilson, worst_group_accuracy
from trueup.measure.calibration import nll
from trueup.measure.divergence import decodability, sliced_wasserstein
from trueup.run.predict import hidden_states, predict, session
from trueup.subject.subject import Subject

POINTS = 9
REACH = 5.0
"""The curve goes from coupling 1/5 to 5 and further where the data's own coupling is stronger."""
DIFFERENT = 0.01
"""p-value below which training and examined examples are coupled differently. Else the examined ones are taken as they are:
weights would add noise alone."""
REDRAWN, DIRECTIONS = 50, 64
"""Bootstrap draws and directions of the distance between groups, whose interval is normal."""
FREE = 1.25
"""A coupling from 1 / FREE to FREE is so weak that turning it round shows hardly anything, whatever the classifier does."""
COLUMNS = ("probability", "predicted", "label", "group")


def attribute_of(corpus: Corpus, wanted: str) -> str:
    """The column to examine: the one wanted, or the first there is.

    Raises:
        BadInput: there is none, or not this one.
    """
    if wanted or not corpus.attributes:
        mix.groups_of(corpus, wanted)
        return wanted
    first, *others = corpus.attributes
    if others:
        session().note(
            f"confounding examined the column '{first}'. For {listing(others)} run again with "
            f"--set confounding.attribute={others[0]}."
        )
    return first


@dataclass(frozen=True, eq=False)
class Mixes:
    """Joint tables of label and group, (C, G) shares with the same margins, at which a classifier is looked at.

    Attributes:
        here: the coupling that counts as the training's. balanced: none. mirrored: the coupling reversed.
        x, tables: the curve, from reversed to as here and beyond. `x` is log10 alpha for two classes and two groups, and
            the strength of the coupling (1 as here, 0 none, -1 reversed) for more.
        alpha: P(y=1|z=1) / P(y=1|z=0) of `here`; None for more than two classes or groups.
    """

    here: NDArray
    balanced: NDArray
    mirrored: NDArray
    x: NDArray
    tables: tuple[NDArray, ...]
    alpha: float | None


@dataclass(frozen=True, eq=False)
class Trained:
    """How often each class occurs in each group among the examples that the subject was trained on: `counts` (C, G)."""

    groups: tuple[str, ...]
    counts: NDArray

    def among(self, groups: Sequence[str]) -> NDArray:
        """The columns of `groups`; a group that training did not have has none of any class."""
        place = {g: i for i, g in enumerate(self.groups)}
        return np.stack(
            [self.counts[:, place[g]] if g in place else np.zeros(len(self.counts)) for g in groups], axis=1
        )


def trained_on(subject: Subject, corpus: Corpus, attribute: str) -> Trained | None:
    """The table of the ``train`` split; None where it has no examples, or the attribute has one value there.

    Raises:
        BadInput: the attribute cannot be examined; or training had several values of it, and the examined examples have one
            that no other split has.
    """
    corpus = corpus.relabel(subject.classes)
    mix.groups_of(corpus.part("test"), attribute)
    others, tested = (
        np.unique(corpus.attributes[attribute][rows]) for rows in (corpus.split != "test", corpus.split == "test")
    )
    train = corpus.take(corpus.split == "train")
    groups = tuple(str(v) for v in np.unique(train.attributes[attribute]))
    if len(groups) > 1:
        mix.group_index(corpus.part("test"), attribute, [str(v) for v in others])
    if gone := sorted(set(map(str, others)) - set(map(str, tested))):
        session().note(
            f"No examined example has {attribute} {listing(gone)}, so nothing is said about {it_or_them(gone)}."
        )
    return Trained(groups, mix.counts(train, attribute, groups)) if len(groups) > 1 else None


def coupling(
    label: NDArray, group: NDArray, classes: int, groups: int, alpha: float = 0.0, trained: NDArray | None = None
) -> NDArray:
    """The joint table (C, G) that counts as the training's, with the margins of these examples.

    At `alpha`, where given; else coupled as the counts `trained` (C, G); else as these examples are.

    Raises:
        BadInput: `alpha` is not feasible with the margins of these examples, or given for more than 2 x 2 cells.
    """
    full = shift.joint(label, group, classes, groups)
    there = full.sum(axis=1) > 0  # a class of the head that no example has keeps a row of zeros
    own = full[there]
    if alpha and own.shape != (2, 2):
        raise BadInput(
            f"confounding.alpha goes with two classes and two groups; here are {len(own)} and {groups}. Leave it out: the "
            "coupling of the examples is taken."
        )
    if alpha:
        full[there] = shift.table_at(own, alpha)
    elif trained is not None:
        full[there] = shift.coupled_as(own, _filled(trained[there]))
    return full


def coupled_otherwise(examined: NDArray, trained: NDArray) -> bool:
    """Whether training (counts, (C, G)) was clearly coupled, clearly otherwise than what is examined, and not just more weakly.

    A weaker coupling of the same kind would only make the same question harder to answer.
    """
    rows, columns = trained.sum(axis=1) > 0, trained.sum(axis=0) > 0
    if rows.sum() < 2 or columns.sum() < 2 or shift.same_coupling(examined, trained) >= DIFFERENT:
        return False
    alone = trained[rows][:, columns]
    free = alone.sum(axis=1, keepdims=True) * alone.sum(axis=0, keepdims=True) / alone.sum()
    if shift.same_coupling(alone, 1e6 * free) >= DIFFERENT:  # so many that they have no noise of their own
        return False
    a, b = (_interaction(t) for t in (examined, _filled(trained)))
    return float((a * b).sum()) < 0 or float((b * b).sum()) > float((a * a).sum())


def _interaction(table: NDArray) -> NDArray:
    """What the logs of the cells hold beyond rows and columns: 0 where label and group are independent."""
    logs = np.log(table)
    return logs - logs.mean(axis=0) - logs.mean(axis=1, keepdims=True) + logs.mean()


def _filled(trained: NDArray) -> NDArray:
    """The counts with a little in every cell: independent where training had none of a group or class, and, where it lacked
    a combination, a hundredth of all examples (or half an example a cell) spread as if there were no coupling."""
    t = np.asarray(trained, np.float64)
    if t.all():
        return t
    rows, columns = t.sum(axis=1, keepdims=True), t.sum(axis=0, keepdims=True)
    t = t + (columns == 0) * rows / rows.sum() + (rows == 0) * (columns + (columns == 0)) / columns.sum()
    free = t.sum(axis=1, keepdims=True) * t.sum(axis=0, keepdims=True) / t.sum() ** 2
    return t + max(t.size / 2, t.sum() / 100) * free


def mixes(here: NDArray) -> Mixes:
    """The tables that go with a coupling `here` (C, G)."""
    # A class of the head that no example has stays out of the tables, and comes back as a row of zeros.
    there = here.sum(axis=1) > 0
    if not there.all():
        m = mixes(here[there])
        wide = [np.zeros_like(here) for _ in range(3 + len(m.tables))]
        for w, t in zip(wide, (m.here, m.balanced, m.mirrored, *m.tables), strict=True):
            w[there] = t
        return Mixes(wide[0], wide[1], wide[2], m.x, tuple(wide[3:]), m.alpha)
    balanced = here.sum(axis=1, keepdims=True) * here.sum(axis=0, keepdims=True)
    mirrored = shift.mirrored(here)
    if here.shape != (2, 2):
        x = np.linspace(-1, 1, POINTS)
        return Mixes(here, balanced, mirrored, x, tuple(shift.tilted(here, float(s)) for s in x), None)
    a = shift.alpha_of(here)
    low, high = shift.feasible_alphas(here)
    reach = max(REACH, a, 1 / a)
    wanted = np.geomspace(1 / reach, reach, POINTS)
    grid = wanted[(wanted > low * 1.02) & (wanted < high * 0.98)]
    return Mixes(here, balanced, mirrored, np.log10(grid), tuple(shift.table_at(here, float(g)) for g in grid), a)


def at(table: NDArray) -> Callable[..., float]:
    """AUPRC under the mix `table`, as a statistic of the same columns as `statistics`."""

    def statistic(probability, predicted, label, group, weight=None) -> float:
        return shift.auprc_at(probability, label, group, table, weight=weight)

    return statistic


def statistics(m: Mixes) -> dict[str, Callable[..., float]]:
    """key -> statistic of (probability, predicted, label, group, weight)."""
    here, mirrored, curve = at(m.here), at(m.mirrored), [at(t) for t in m.tables]

    def severity(*columns, weight=None) -> float:
        return here(*columns, weight=weight) - mirrored(*columns, weight=weight)

    def slope(*columns, weight=None) -> float:
        values = np.array([f(*columns, weight=weight) for f in curve])
        # Uphill towards the coupling of training, on whichever side that lies.
        towards = -1.0 if m.alpha is not None and m.alpha < 1 else 1.0
        return towards * float(np.polyfit(m.x, values, 1)[0]) if len(m.x) > 1 else float("nan")

    def level(*columns, weight=None) -> float:
        return float(np.mean([f(*columns, weight=weight) for f in curve]))

    def worst(probability, predicted, label, group, weight=None) -> float:
        return worst_group_accuracy(predicted, label, label * m.here.shape[1] + group, weight=weight)

    def right(probability, predicted, label, group, weight=None) -> float:
        return accuracy(predicted, label, weight=weight)

    def false_positive(probability, predicted, label, group, weight=None) -> float:
        return shift.false_positive_gap(predicted, label, group, classes=len(m.here), weight=weight)

    def true_positive(probability, predicted, label, group, weight=None) -> float:
        return shift.true_positive_gap(predicted, label, group, classes=len(m.here), weight=weight)

    def surprise(probability, predicted, label, group, weight=None) -> float:
        return nll(probability, label, weight=weight)

    return {
        "severity": severity, "auprc": here, "auprc_balanced": at(m.balanced), "auprc_mirrored": mirrored, "level": level,
        "slope": slope, "use": use, "accuracy": right, "worst_group_accuracy": worst,
        "false_positive_gap": false_positive, "true_positive_gap": true_positive, "nll": surprise,
    }  # fmt: skip


def use(probability, predicted, label, group, weight=None) -> float:
    """How far the mean prediction moves with the group while the label is held.

    The mean over labels y of the largest total variation distance between E[p(x) | y, z] of two groups z. 0 is no use.
    """
    classes, groups = probability.shape[1], int(group.max()) + 1
    cell = label * groups + group
    mass = np.bincount(cell, weight, classes * groups)
    sums = np.stack(
        [np.bincount(cell, p if weight is None else weight * p, classes * groups) for p in probability.T], axis=1
    )
    with np.errstate(invalid="ignore"):
        mean = (sums / mass[:, None]).reshape(classes, groups, classes)
    far = [
        0.5 * np.nanmax(np.abs(y[:, None] - y[None]).sum(axis=2)) for y in mean if np.isfinite(y[:, 0]).sum() > 1
    ]  # fmt: skip
    return float(np.mean(far)) if far else float("nan")


TITLES: dict[str, tuple[str, str, str]] = {
    "auprc": ("AUPRC, mix as here", "average precision", "higher"),
    "auprc_balanced": ("AUPRC, mix without coupling", "average precision", "higher"),
    "auprc_mirrored": ("AUPRC, coupling reversed", "average precision", "higher"),
    "level": ("AUPRC, mean over all mixes", "average precision", "higher"),
    "slope": (
        "slope of the shift curve",
        "average precision per unit of its axis, towards the training's coupling",
        "lower",
    ),
    "use": ("use of the attribute", "probability moved by the group at a given label", "lower"),
    "accuracy": ("accuracy", "share of examples", "higher"),
    "worst_group_accuracy": ("accuracy of the worst (label, group) cell", "share of the cell", "higher"),
    "false_positive_gap": ("gap in false positive rate", "probability", "lower"),
    "true_positive_gap": ("gap in true positive rate", "probability", "lower"),
    "nll": ("NLL of the classes", "nats", "lower"),
}
"""key -> title, unit, which direction is better."""


def audit(
    subject: Subject, corpus: Corpus, *, attribute: str, alpha: float, trained: Trained | None, threshold: float,
    resamples: int, seed: int,
) -> Finding:  # fmt: skip
    """Examine on all of `corpus`; the coupling of training is `alpha`, or that of the examples `trained` on, or their own.

    Raises:
        BadInput: the column is missing, constant or tied to the label, or a (label, group) cell has fewer than 10 examples.
    """
    corpus = corpus.relabel(subject.classes)
    if len(only := np.unique(corpus.label)) == 1:
        raise BadInput(
            f"All {len(corpus)} examples of '{corpus.name}' have the label '{corpus.classes[only[0]]}'; give examples of "
            "two labels."
        )
    attribute = attribute_of(corpus, attribute)
    groups = mix.groups_of(corpus, attribute)
    group = mix.group_index(corpus, attribute, groups)
    _check_cells(corpus, attribute, groups)
    # A class of the head that no example has takes no part: its margins and its precision do not exist.
    present = np.unique(corpus.label)
    label = np.searchsorted(present, corpus.label)
    out = predict(subject, corpus)
    probability = out.probability[:, present]
    probability = probability / np.maximum(probability.sum(axis=1, keepdims=True), 1e-300)
    columns = {
        "probability": probability, "predicted": out.probability[:, present].argmax(axis=1), "label": label, "group": group,
    }  # fmt: skip
    names = tuple(subject.classes[i] for i in present)
    cells = mix.counts(corpus, attribute, groups)[present]
    learnt = None if trained is None or alpha else trained.among(groups)[present]
    other = learnt is not None and coupled_otherwise(cells, learnt)
    here = coupling(label, group, len(present), len(groups), alpha, learnt if other else None)
    m = mixes(here)
    values = [columns[k] for k in COLUMNS]
    wanted = statistics(m)
    curve = {f"curve{i}": at(t) for i, t in enumerate(m.tables)}
    got = bootstrap.interval_many(wanted | curve, *values, seed=seed, resamples=resamples)
    measures = {
        k: Measure(got[k].value, got[k].low, got[k].high, unit, better, title)  # type: ignore[arg-type]
        for k, (title, unit, better) in TITLES.items()
    }
    layers = _inside(subject, corpus, label, group, seed)
    last, control = layers["probe"][-1], layers["control"][-1]
    low, high = wilson(last * layers["examples"], layers["examples"])
    measures["present"] = Measure(
        last, float(low), float(high), "balanced accuracy of a linear probe", "lower", "presence of the attribute"
    )
    far, spread, apart = _distance(out.features, label, group, seed)
    measures["distance"] = Measure(
        far, max(0.0, far - 1.96 * spread), far + 1.96 * spread, f"standard deviations; by chance {apart:.3f}", "lower",
        "sliced Wasserstein distance of the groups' last features",
    )  # fmt: skip
    head = got["severity"]
    together = (
        f"'{names[1]}' is {m.alpha:.3g} times as frequent among {attribute}={groups[1]} as among {attribute}={groups[0]}"
        if m.alpha is not None
        else f"the labels go with {attribute} ({len(groups)} values)"
    )
    when = "At the given coupling" if alpha else "As in the training examples" if other else "As the data are"
    sentence = (
        f"{when}, {together}, and AUPRC is {got['auprc'].value:.3f}; were the coupling reversed{_reversed(m)}, it would be "
        f"{got['auprc_mirrored'].value:.3f}: a drop of {head.value:.3f} [{head.low:.3f}, {head.high:.3f}]."
    )
    if other:
        session().note(
            f"confounding: the examined examples couple the label and '{attribute}' otherwise than the training examples do, "
            "whose coupling was taken; the examined ones were weighted to it."
        )
    if m.alpha is not None and not alpha and 1 / FREE < m.alpha < FREE:
        session().note(
            f"confounding: the label and '{attribute}' hardly go together in these data, so reversing that shows little. Of a "
            "classifier that was trained on other data, look at the use of the attribute and the slope of its curve, or give "
            "the coupling it was trained under: --set confounding.alpha=5, for example."
        )
    return Finding(
        fault="confounding", unit="AUPRC lost when the coupling is reversed", severity=head.value, low=head.low,
        high=head.high, threshold=threshold, sentence=sentence, measures=measures,
        charts=_charts(m, [got[k] for k in curve], layers, columns, names, groups, attribute),
        details={"attribute": attribute, "groups": list(groups), "classes": list(names), "alpha": m.alpha,
                 "here": here.tolist(), "of training": other, "cells": cells.tolist(), "layers": layers,
                 "chance of the probe": control},
        samples=columns,
        provenance={"seed": seed, "resamples": resamples, "level": 0.95, "examples": len(corpus), "attribute": attribute},
    )  # fmt: skip


def _reversed(m: Mixes) -> str:
    """Which coupling the reversed one is, where these margins do not go with 1 / alpha."""
    if m.alpha is None or abs(shift.alpha_of(m.mirrored) * m.alpha - 1) < 0.01:
        return ""
    return f" (the odds ratio turned round: alpha {shift.alpha_of(m.mirrored):.3g}, for 1/alpha does not go with these margins)"


def compare(before: Finding, after: Finding, *, resamples: int, seed: int) -> dict[str, Difference]:
    """Paired bootstrap differences, after minus before, of the severity and every measure of the predictions."""
    m = mixes(np.array(before.details["here"]))
    got = bootstrap.paired_many(
        statistics(m),
        [before.samples[k] for k in COLUMNS],
        [after.samples[k] for k in COLUMNS],
        seed,
        resamples=resamples,
    )
    return {k: Difference(d.value, d.low, d.high, d.p) for k, d in got.items()}


def examples(corpus: Corpus, before: Finding, after: Finding | None) -> list[dict[str, str | float | bool]]:
    """The 100 surest errors that say what the shortcut would, and up to 100 predictions that the repair turned."""
    s = before.samples
    names, groups = before.details["classes"], before.details["groups"]
    here = np.array(before.details["here"])
    follows = (s["predicted"] == shortcut(here)[s["group"]]) & (s["predicted"] != s["label"])
    sure = s["probability"].max(axis=1)
    order = np.lexsort((-sure, ~follows))[:100]
    if after is not None:
        turned = np.flatnonzero(after.samples["predicted"] != s["predicted"])
        order = np.concatenate([order, turned[np.argsort(-sure[turned], kind="stable")][:100]])
    rows: list[dict[str, str | float | bool]] = []
    for i in dict.fromkeys(order.tolist()):
        row: dict[str, str | float | bool] = {
            "text": str(corpus.text[i])[:400],
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
    table = mix.counts(corpus, attribute, groups)
    table = table[table.sum(axis=1) > 0]
    present = [c for i, c in enumerate(corpus.classes) if (corpus.label == i).any()]
    y, z = np.unravel_index(int(table.argmin()), table.shape)
    if table[y, z] < FEWEST:
        small = int((table < FEWEST).sum())
        raise BadInput(
            f"Only {table[y, z]} of the {len(corpus)} examples to examine in '{corpus.name}' have label '{present[y]}' and "
            f"{attribute} '{groups[z]}' ({small} of {table.size} cells have fewer than {FEWEST}), so nothing can be said "
            f"about a mix with more of them. Give more rows, or merge or drop rare values of '{attribute}'."
        )


def _inside(subject: Subject, corpus: Corpus, label: NDArray, group: NDArray, seed: int) -> dict[str, Any]:
    """Balanced accuracy of telling the group from each layer's states, on a set balanced over labels and groups."""
    states = hidden_states(subject, corpus)
    found = [decodability(states[:, k], group, label, seed=seed) for k in range(states.shape[1])]
    cells = np.bincount(label * (int(group.max()) + 1) + group)
    return {
        "probe": [float(f[0]) for f in found],
        "control": [float(f[1]) for f in found],
        "examples": int(min(200, cells[cells > 0].min()) * (cells > 0).sum()),
    }


def _distance(features: NDArray, label: NDArray, group: NDArray, seed: int) -> tuple[float, float, float]:
    """Sliced Wasserstein distance between the groups' features, in standard deviations: mean over labels, worst pair.

    Its value, the standard deviation over `REDRAWN` bootstrap draws within cells, and what groups dealt out at random give.
    """
    x = (features - features.mean(axis=0)) / (features.std(axis=0).mean() + 1e-9)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 9]))
    rows = [np.flatnonzero(label == y) for y in np.unique(label)]

    def far(draw: Callable[[NDArray], NDArray], group: NDArray) -> float:
        cells = [[x[draw(r[group[r] == z])] for z in np.unique(group)] for r in rows]
        return float(np.mean([
            max(sliced_wasserstein(a, b, projections=DIRECTIONS, seed=seed) for i, a in enumerate(parts) for b in parts[:i])
            for parts in cells
        ]))  # fmt: skip

    def dealt() -> NDArray:
        mixed = group.copy()
        for r in rows:
            mixed[r] = rng.permutation(group[r])
        return mixed

    again = [far(lambda cell: rng.choice(cell, len(cell)), group) for _ in range(REDRAWN)]
    chance = [far(lambda cell: cell, dealt()) for _ in range(5)]
    return far(lambda cell: cell, group), float(np.std(again)), float(np.mean(chance))


def _charts(m: Mixes, curve, layers, columns, names, groups, attribute) -> tuple[Chart, ...]:
    axis, slider = "coupling (1 as here, 0 none, -1 reversed)", Slider("Coupling in the test mix", 0.0)
    if m.alpha is not None:
        axis = f"how many times as frequent '{names[1]}' is in {groups[1]} as in {groups[0]} (1: no coupling; here {m.alpha:.3g})"
        slider = Slider(
            f"Test mix (alpha): '{names[1]}' so many times as frequent in {groups[1]} as in {groups[0]}", 0.0
        )
    rates = []
    for z, name in enumerate(groups):
        rows = [(columns["label"] == y) & (columns["group"] == z) for y in range(len(names))]
        right = np.array([(columns["predicted"][r] == y).sum() for y, r in enumerate(rows)])
        many = np.array([r.sum() for r in rows])
        low, high = wilson(right, many)
        rates.append(
            Series(str(name), list(names), (right / np.maximum(many, 1)).tolist(), low.tolist(), high.tolist())
        )
    depth = list(range(len(layers["probe"])))
    return (
        Chart(
            "shift", "What happens when the mix moves", "line", axis, "AUPRC",
            "How often each label and each group occur never moves, only which go together. A flat line does not care.",
            (Series("AUPRC", m.x.tolist(), [e.value for e in curve], [e.low for e in curve], [e.high for e in curve]),),
            log10=m.alpha is not None, slider=slider,
        ),
        Chart(
            "presence", f"Where '{attribute}' can be read inside", "line", "layer (0: embeddings)", "balanced accuracy",
            "A linear probe on examples balanced over label and group. Present is not used: see the use of the attribute.",
            (Series("probe", depth, layers["probe"]), Series("chance (permuted)", depth, layers["control"])),
        ),
        Chart(
            "cells", "Accuracy by label and group", "bar", "label", "accuracy",
            "Bars of one label should be equally high. Where their intervals lie apart, the group decides or goes with what "
            "does.", tuple(rates),
        ),
    )  # fmt: skip
