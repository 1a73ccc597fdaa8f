"""The words for the numbers: states, sentences and number formats that the terminal and the page share.

The code here does not depend on the fault: everything is read from Finding, Measure, Difference and Comparison.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trueup.errors import two_digits, visible
from trueup.faults.confounding.leads import Lead, Scouted
from trueup.faults.fault import Alternative, Better, Comparison, Difference, Finding, Measure, Outcome

State = Outcome | Literal["not examined"]
Change = Literal["better", "worse", "no clear change", "same", "changed", "unknown"]

RANK: tuple[State, ...] = (
    "found", "made worse", "no gain", "trade-off", "reduced", "undecided", "not measured", "not examined", "repaired", "clear",
)  # fmt: skip
"""The states in the order of attention: the most urgent first."""

ICON: Mapping[State, str] = {
    "found": "!", "made worse": "✕", "no gain": "–", "trade-off": "⇄", "reduced": "↓", "undecided": "?", "not measured": "?",
    "not examined": "○", "repaired": "✓", "clear": "✓",
}  # fmt: skip
"""A sign for each state, so that colour is not the only way to tell states apart."""

MEANING: Mapping[State, str] = {
    "found": "The model has this fault. No repaired adapter was made.",
    "made worse": "The repair made the fault worse, so it is not handed over.",
    "no gain": "The repair did not help measurably, so it is not handed over.",
    "trade-off": "The repair reduces the fault, but costs more accuracy than the budget allows.",
    "reduced": "The repair made the fault smaller. What is left may still be above the threshold.",
    "undecided": "The test texts do not show whether the model has this fault.",
    "not measured": "The fault could not be measured here.",
    "not examined": "The fault does not apply here, was not asked for, or could not be examined; its line says why.",
    "repaired": "The model had the fault. After the repair it is below the threshold.",
    "clear": "The model does not have this fault above the threshold.",
}
"""The meaning of each state, for a reader who has never seen a report."""

HEADLINE = "severity"
"""The key under which `Comparison.differences` holds the paired difference of the headline."""


def clean(text: object, limit: int = 2000) -> str:
    """`text` without invisible and control characters (`trueup.errors.visible`), cut to `limit`. A cut string ends in ``…``."""
    shown = str(text)
    return visible(shown[:limit]) + "…" * (len(shown) > limit)


def number(x: float, *, sign: bool = False, whole: bool = True) -> str:
    """`x` for a reader: about four digits, ``n/a`` for NaN, a true minus sign; whole numbers without decimals if `whole`."""
    x = float(x)
    if math.isnan(x):
        return "n/a"
    size = abs(x)
    if math.isinf(x):
        text = "∞"
    elif (0 < size < 0.0005) or size >= 1e6:
        text = f"{size:.1e}"
    elif (whole and size == int(size)) or size >= 1000:
        text = f"{size:,.0f}"
    else:
        text = f"{size:.{3 if size < 10 else 2 if size < 100 else 1}f}"
    return ("−" if x < 0 else "+" if sign and x > 0 else "") + text


def parts(item: Finding | Measure | Difference, *, sign: bool = False) -> tuple[str, str]:
    """``0.310`` and ``[0.250, 0.370]``: the estimate and its interval. Either all three numbers have decimals, or none has."""
    value = item.severity if isinstance(item, Finding) else item.value
    whole = all(not math.isfinite(x) or x == int(x) for x in (value, item.low, item.high))
    shown = [number(x, sign=sign, whole=whole) for x in (value, item.low, item.high)]
    return shown[0], f"[{shown[1]}, {shown[2]}]"


def interval(item: Finding | Measure | Difference, *, sign: bool = False) -> str:
    """``0.310 [0.250, 0.370]``: the estimate and its interval."""
    return " ".join(parts(item, sign=sign))


def p_value(p: float, resamples: int | None = None) -> str:
    """``p = 0.012``, ``p < 0.001`` or ``p n/a``; from a bootstrap also ``p ≤ 0.002``.

    The smallest p of a bootstrap with `resamples` resamples is 2 / (resamples + 1), so a p up to that value is written with ≤.
    """
    if math.isnan(p):
        return "p n/a"
    if resamples and p <= (floor := 2 / (resamples + 1)) * (1 + 1e-9):
        return f"p ≤ {floor:.1g}"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def decided(difference: Difference) -> bool:
    """True when the paired interval excludes 0. False when any end of it is NaN."""
    return difference.low > 0 or difference.high < 0


def change(difference: Difference | None, better: str | None) -> Change:
    """Whether a paired difference is an improvement: ``better`` or ``worse`` only if its interval excludes 0.

    ``same`` if it is 0 in every resample. ``changed`` if its interval excludes 0 but it is not known which direction is better.
    ``unknown`` if there is no difference.
    """
    if difference is None or math.isnan(difference.low) or math.isnan(difference.high):
        return "unknown"
    if difference.value == difference.low == difference.high == 0:
        return "same"
    if not decided(difference):
        return "no clear change"
    if better not in ("higher", "lower"):
        return "changed"
    return "better" if (difference.low > 0) == (better == "higher") else "worse"


MARK: Mapping[Change, str] = {
    "better": "▲ better",
    "worse": "▼ worse",
    "no clear change": "= unclear",
    "same": "= same",
    "changed": "≠ changed",
    "unknown": "not known",
}


def title_of(finding: Finding) -> str:
    """The fault's title: the finding's provenance may carry one under ``title``, else its name."""
    return clean(finding.provenance.get("title") or finding.fault.replace("_", " "), 120)


def state_of(comparison: Comparison | None) -> State:
    """The state of a fault in one word, the same on the page, in the terminal, in JSON and on the cards.

    It is `Comparison.outcome`, which is ``repaired`` only where the whole interval after the repair is below the threshold, or
    ``not examined`` without a comparison.
    """
    return "not examined" if comparison is None else comparison.outcome


def verdict(comparison: Comparison) -> str:
    """The fault's outcome in one plain sentence, with its interval.

    An improvement is claimed only when the interval of the paired difference excludes 0; else the sentence says
    "no measurable gain".
    """
    before, after = comparison.before, comparison.after
    unit, threshold = clean(before.unit, 120), number(before.threshold)
    severity_text = f"severity is {interval(before)} ({unit}; threshold {threshold})"
    state = state_of(comparison)
    if state == "not measured":
        return f"Not measured: {severity_text}, so nothing can be said."
    opening = {
        "found": f"Found: {severity_text}, and its whole interval lies above the threshold.",
        "clear": f"Clear: {severity_text}, and its whole interval lies below the threshold.",
        "undecided": f"Undecided: {severity_text}, and its interval includes the threshold.",
    }[before.verdict]
    if before.verdict == "undecided":
        opening = (f"Undecided: {severity_text}. {_sentence(before.doubt)}" if before.doubt else opening) + _needed(
            before
        )
    if after is None:
        trade_off = f"A trade-off: each repair that helps costs more than the budget. {opening}"
        return f"{trade_off if state == 'trade-off' else opening} {_sentence(comparison.remedy)}".rstrip()
    scale, course = f"({unit}; threshold {threshold})", _course(comparison, after)
    if state in ("clear", "undecided"):
        repair_effect = "It helped" if comparison.gained else "It did not help"
        return f"{opening} We tried a repair. {repair_effect}: {course}."
    start = {
        "repaired": "Found and repaired",
        "reduced": "Found and reduced, and not clear yet",
        "trade-off": "A trade-off: the repair costs more accuracy than the budget of "
        f"{100 * comparison.budget:.3g} points",
        "no gain": "Found, and the repair brought no measurable gain",
        "made worse": "Made worse by the repair",
    }[state]
    return f"{start if before.verdict == 'found' else start.replace('Found', 'Undecided')}: {course} {scale}."


def happened(c: Comparison) -> str:
    """The result of the repair in a plain sentence; empty where no repair was tried or needed."""
    budget = f"the budget of {100 * c.budget:.3g} points"
    if c.after is None:
        return f"Each repair that helps costs more accuracy than {budget}." if c.outcome == "trade-off" else ""
    return {
        "repaired": "The repair reduced this to below the threshold.",
        "reduced": "The repair reduced this. What is left may still be above the threshold.",
        "trade-off": "The repair reduced this, but it costs more accuracy than the budget allows.",
        "no gain": "We tried a repair. It did not help.",
        "made worse": "We tried a repair. It made this worse.",
    }.get(c.outcome, "We tried a repair. It helped." if c.gained else "We tried a repair. It did not help.")


def percent(x: float) -> str:
    return "n/a" if math.isnan(x) else f"{100 * x:.1f}%"


def accuracy_line(c: Comparison) -> str:
    """``Overall accuracy 79.2% to 78.0%: no clear change.`` Empty where the accuracy was not measured."""
    before, after = c.before.measures.get("accuracy"), c.after.measures.get("accuracy") if c.after else None
    d = c.differences.get("accuracy") or c.harm.get("accuracy")
    if before is None or math.isnan(before.value):
        return ""
    if after is None or d is None:
        return f"Overall accuracy {percent(before.value)}."
    if c.outcome == "trade-off":
        doubt_note = "; the interval includes zero" if change(d, "higher") == "no clear change" else ""
        return (
            f"Overall accuracy {percent(before.value)} to {percent(after.value)}: {-100 * d.value:.1f} points lost, against a "
            f"budget of {100 * c.budget:.3g}{doubt_note}."
        )
    what = {"same": "the same", "unknown": "not compared"}.get(kind := change(d, "higher"), kind)
    return f"Overall accuracy {percent(before.value)} to {percent(after.value)}: {what}."


def in_short(c: Comparison) -> str:
    """One line for the row of a fault: its number before and after."""
    if c.outcome == "not measured":
        return "It could not be measured, so nothing can be said."
    unit = clean(c.before.unit, 120)
    sentence = f"{unit[:1].upper()}{unit[1:]}: {number(c.before.severity)}"
    return f"{sentence} before, {number(c.after.severity)} after the repair." if c.after else f"{sentence}."


def next_steps(c: Comparison) -> list[str]:
    """The next steps for a fault, as sentences, the most useful first."""
    last, word = c.after or c.before, c.outcome
    other_repairs = [a for a in c.alternatives if a.saveable and not a.chosen and a.gain_low > 0]
    take = (
        f"Or take another repair from the table below, such as --take {clean(other_repairs[0].key, 60)}."
        if other_repairs
        else ""
    )
    kept_note = f"The adapter in {clean(c.adapter, 200)} was kept as asked; it is no improvement." if c.adapter else ""
    steps = {
        "repaired": ["Use the repaired adapter." if c.adapter else "Run the check with an output folder to get the adapter."],
        "reduced": ["Use the repaired adapter if what is left over is acceptable.", take],
        "trade-off": [
            "Decide whether the gain is worth the accuracy lost." if c.after else
            f"To get a repair, allow a higher cost with --max-cost (now {c.budget:.3g}).", take,
        ],
        "no gain": [kept_note or "Keep the adapter that you have.", "Use more calibration texts, or remove the cause "
                    "from the training data and train again."],
        "made worse": [kept_note or "Keep the adapter that you have."],
        "found": [_sentence(c.remedy)],
        "clear": ["Nothing to do. Passing on these test texts does not prove that the model is fine on others."],
        "not measured": ["Look at the details of the finding for the reason."],
    }.get(word, [])  # fmt: skip
    if last.verdict == "undecided" and word != "not measured":
        steps = [*steps, more_texts(last)]
    return [s for s in steps if s]


OUT_OF_REACH = 50
"""More than this many times the present number of texts is too many to collect for a verdict."""


def more_texts(finding: Finding) -> str:
    """A sentence with the number of test texts that would decide."""
    tested = finding.provenance.get("clusters")
    if finding.doubt:
        return _sentence(finding.doubt)
    if finding.needed is None:
        return "Test on more texts: the interval includes the threshold."
    tested_note = f" (this check had {tested:,})" if isinstance(tested, int) else ""
    if isinstance(tested, int) and finding.needed > OUT_OF_REACH * tested:
        return (
            f"The severity is so close to the threshold that about {two_digits(finding.needed):,} independent texts would be "
            f"needed for a decision{tested_note}. Decide by the interval whether you can accept the upper end of the severity."
        )
    return (
        f"To reach a decision, test on about {two_digits(finding.needed):,} independent texts{tested_note}. If the severity is as "
        "estimated here, 80% of such checks decide."
    )


@dataclass(frozen=True)
class Part:
    """One of the three numbers for the decision about a repair: its title, its value with interval, and its meaning."""

    title: str
    value: str
    range: str
    text: str
    change: str = ""


def to_decide(c: Comparison) -> list[Part]:
    """The gain of the repair, its cost, and the severity left over; empty where there is no second audit with a number."""
    d, after = c.differences.get(HEADLINE), c.after
    if after is None or d is None or math.isnan(after.severity) or math.isnan(d.low):
        return []
    gain_direction, unit = change(d, "lower"), clean(c.before.unit, 120)
    gained = parts(Difference(-d.value, -d.high, -d.low, d.p), sign=True)
    gain_text = {"better": f"less {unit}", "worse": f"There is more {unit} than before"}.get(
        gain_direction, "Inconclusive: the interval includes zero"
    )
    result = [
        Part(
            "Gained",
            *gained,
            gain_text if gain_direction != "same" else "Before and after are the same",
            gain_direction,
        )
    ]
    accuracy_change = c.harm.get("accuracy") or c.differences.get("accuracy")
    if accuracy_change is not None and not math.isnan(accuracy_change.low):
        value, low, high = (
            f"{100 * x:+.1f}".replace("-", "−")
            for x in (accuracy_change.value, accuracy_change.low, accuracy_change.high)
        )
        direction = change(accuracy_change, "higher")
        text_of_direction = {
            "worse": "points of accuracy",
            "better": "points of accuracy: it is better",
            "same": "points of accuracy: the same",
        }
        text = text_of_direction.get(direction, "points of accuracy. Inconclusive: the interval includes zero")
        result.append(Part("Cost", value, f"[{low}, {high}]", text, direction))
    verdict_text = {
        "clear": "the whole interval lies within it", "found": "the whole interval lies above it",
        "undecided": "the interval includes it",
    }[after.verdict]  # fmt: skip
    result.append(
        Part("Left over", *parts(after), f"{unit}; threshold {number(after.threshold)}: {verdict_text}", after.verdict)
    )
    return result


def _needed(finding: Finding) -> str:
    """How many examples would decide, as a sentence. Empty where the check had as many: then the reason is another doubt."""
    tested = finding.provenance.get("clusters")
    return (
        ""
        if finding.needed is None or (isinstance(tested, int) and finding.needed <= tested)
        else f" If the severity is as estimated, 80% of such checks decide with about {two_digits(finding.needed):,} independent "
        "examples."
    )


def _course(comparison: Comparison, after: Finding) -> str:
    """The headline before and after the repair, with its paired difference."""
    course = f"severity went from {interval(comparison.before)} to {interval(after)}"
    difference_of_severity = comparison.differences.get(HEADLINE)
    kind = change(difference_of_severity, "lower")
    if math.isnan(after.severity):
        return f"{course}: it could not be measured after the repair"
    if difference_of_severity is None or kind == "unknown":
        return f"{course}, but no paired difference of it is known"
    if kind == "same":
        return f"{course}, and the paired difference is exactly 0"
    difference = f"the paired difference {interval(difference_of_severity, sign=True)}"
    return f"{course}, and {difference} includes 0" if kind == "no clear change" else f"{course}, {difference}"


def _sentence(text: str) -> str:
    text = clean(text, 600).strip()
    return text if not text or text.endswith((".", "!", "?", "…")) else text + "."


@dataclass(frozen=True)
class Row:
    """One line of the table of measures or of harm: before, after, the paired difference, and its meaning."""

    key: str
    title: str
    unit: str
    better: str | None
    before: Measure | None
    after: Measure | None
    difference: Difference | None
    change: Change


def rows(comparison: Comparison) -> list[Row]:
    """Every measure of the findings and every other key of `differences`, in the findings' order."""
    keys = [*comparison.before.measures, *(comparison.after.measures if comparison.after else ())]
    keys += [k for k in comparison.differences if k != HEADLINE]
    return [_row(comparison, key, comparison.differences.get(key)) for key in dict.fromkeys(keys)]


def harm_rows(comparison: Comparison) -> list[Row]:
    """The quantities that should not have changed, with the measure's title and polarity where a finding has them."""
    return [_row(comparison, key, difference) for key, difference in comparison.harm.items()]


_POLARITY: dict[str, Better] = {"accuracy": "higher", "nll": "lower", "nats": "lower"}
"""The better direction of quantities that only the harm table has, by the first word of their names."""


def _row(comparison: Comparison, key: str, difference: Difference | None) -> Row:
    before = comparison.before.measures.get(key)
    after = comparison.after.measures.get(key) if comparison.after else None
    measure = before or after
    title = clean(comparison.title(key), 120)
    unit = clean(measure.unit, 120) if measure else ""
    better = measure.better if measure else _POLARITY.get(title.partition(" ")[0])
    return Row(key, title, unit, better, before, after, difference, change(difference, _way(better, before, after)))


def _way(better: Better | None, before: Measure | None, after: Measure | None) -> Better | None:
    """The better direction; None if unknown. For a signed number that should be 0 it depends on the side where the number is."""
    if better != "zero":
        return better
    if before is None or after is None:
        return None
    return "lower" if before.value + after.value > 0 else "higher"


def harm_sentence(comparison: Comparison) -> str:
    """The side effects of the repair, in plain sentences; empty when there was no repair."""
    if comparison.after is None:
        return ""
    table = harm_rows(comparison)
    if not table:
        return "The side effects of the repair were not measured."
    groups = {
        "cost": [r for r in table if r.change == "worse"],
        "changed": [r for r in table if r.change == "changed"],
        "unclear": [r for r in table if r.change == "no clear change"],
        "unknown": [r for r in table if r.change == "unknown"],
    }
    changes_by_kind = {k: ", ".join(f"{r.title} {interval(r.difference, sign=True)}" for r in v if r.difference)
            for k, v in groups.items()}  # fmt: skip
    parts = []
    if changes_by_kind["cost"]:
        parts.append(f"The repair made other measures worse: {changes_by_kind['cost']}.")
    if changes_by_kind["changed"]:
        parts.append(f"The repair changed what it should not change: {changes_by_kind['changed']}.")
    if not parts:
        parts.append("No side effect was measured.")
    if changes_by_kind["unclear"]:
        parts.append(f"Inconclusive, the interval includes zero: {changes_by_kind['unclear']}.")
    if changes_by_kind["unknown"]:
        parts.append(f"Not known: {changes_by_kind['unknown']}.")
    return " ".join(parts)


def price(a: Alternative) -> tuple[tuple[str, str], tuple[str, str]]:
    """Gain and cost of a repair that was tried, each as the estimate and its interval; the cost in points of accuracy."""
    cost, low, high = (f"{100 * x:+.1f}".replace("-", "−") for x in (a.cost, a.cost_low, a.cost_high))
    return parts(Difference(a.gain, a.gain_low, a.gain_high, math.nan), sign=True), (cost, f"[{low}, {high}]")


# ---- the results of a search for columns

EXPLAINED = (
    "A word that carries the meaning and a word that reveals the source look the same in these numbers. You decide which column "
    "should not matter."
)


def search_sentence(found: Scouted) -> str:
    """What a check's search tried and found, and what that does not prove."""
    sentence = f"No column was named that should not matter, so trueup searched for shortcuts. {found.sentence} "
    if found.named:
        return f"{sentence}This is a search and no verdict. {EXPLAINED}"
    return (
        f"{sentence}This does not prove that there is no shortcut: the search does not find a smaller lean, or a shortcut that "
        "none of these columns follows. If you know a column that should not matter, name it with --confounder COLUMN."
    )


def go_on(found: Scouted) -> tuple[str, str]:
    """How to examine and repair the first column that a search named: a sentence, and the command that follows it.

    The command is empty where no command repeats the search. Both are empty where the search named no column.
    """
    if not found.leads:
        return "", ""
    order_note = "scout:1 is the first of them, scout:2 the second. " if found.named > 1 else ""
    if not found.onward:
        return (
            f"{order_note}To examine and repair the first, give confounder='scout:1' to trueup.check, and the data by name or as a "
            "table, not as a Corpus.",
            "",
        )
    return f"{order_note}{onward_step(found.onward)}:", clean(found.onward, 4000)


def onward_step(command: str) -> str:
    """What the command of a search does: with --held-out it only examines, because a repair learns from training rows."""
    return f"To {'examine' if '--held-out' in command.split() else 'examine and repair'} the first"


def lean(x: Lead) -> str:
    return f"{number(x.lean)} [{number(x.low)}, {number(x.high)}]"


def rate(q: float) -> str:
    return "<0.001" if q < 0.001 else f"{q:.3f}"


def more(x: Lead) -> str:
    """The coupling of the column with the label in the data, the accuracy by group, and the similar column above it, if any."""
    coupling_text = (
        f"the favoured class is {x.coupling:.2g} times as frequent in its group"
        if x.coupling >= 1
        else f"the favoured class is {1 / x.coupling:.2g} times rarer in its group"
    )
    accuracies = ", ".join(
        f"{a:.1%} where {g} ({n:,})" for g, a, n in zip(x.groups, x.accuracy, x.clusters, strict=True)
    )
    like_note = f" It gives much the same texts the head start as no. {x.like}." if x.like else ""
    return f"In the test examples {coupling_text}. Accuracy: {accuracies}.{like_note}"


def lead(x: Lead) -> dict[str, Any]:
    """A scouted column as a page shows it."""
    return {
        "rank": x.rank or "–", "name": clean(x.name, 200), "sentence": clean(x.sentence, 600), "lean": lean(x),
        "q": rate(x.q), "kind": clean(x.kind, 40), "more": clean(more(x), 600),
        "examples": [{k: clean(v, 300) for k, v in e.items()} for e in x.examples],
    }  # fmt: skip
