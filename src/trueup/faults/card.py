"""The model card of a saved repair in Hugging Face's format: what the repair is, what was measured, how to load it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trueup.errors import visible
from trueup.faults.fault import Comparison, Difference, Measure


@dataclass(frozen=True)
class Card:
    """The content of a card except the measurements.

    Attributes:
        fault: the fault that is repaired. title: the heading. describe: what the repair does, in a sentence.
        base: the name of the base model as the user gave it. task: the hub's name of the task.
        opening: the text before the code. code: Python lines that load and use the repair with plain PEFT. closing: the text
            after the code.
        sections: further headings and their markdown, in order. warning: what does not work; it stands at the top.
        licence: the licence of the base, as the hub writes it; empty where it is not known.
    """

    fault: str
    title: str
    describe: str
    base: str
    task: str
    opening: str
    code: str
    closing: str
    sections: tuple[tuple[str, str], ...] = ()
    warning: str = ""
    licence: str = ""


def page(card: Card, comparison: Comparison | None) -> str:
    """The card as markdown with front matter. With a comparison it also holds what was measured on held-out examples."""
    front: dict[str, Any] = {
        "library_name": "peft",
        "pipeline_tag": card.task,
        "tags": ["trueup", card.fault, card.task],
    }
    if card.licence:
        front["license"] = card.licence
    if _is_hub_id(card.base):  # the hub refuses a card whose base model is a folder
        front["base_model"] = card.base
        front["base_model_relation"] = "adapter"
        front["tags"].append(f"base_model:adapter:{card.base}")
    parts = [f"# {card.title}", *([f"> **What does not work:** {card.warning}"] if card.warning else []), card.describe]
    if comparison is not None and comparison.after is not None:
        front["model-index"] = [_index(card, comparison)]
        parts += ["## What was measured", _measured(comparison)]
    parts += [
        "## How to use it",
        f"{card.opening} This code does not need trueup:",
        f"```python\n{card.code}\n```",
        card.closing,
    ]
    for heading, text in card.sections:
        parts += [f"## {heading}", text]
    parts += ["## Intended use and limits", _limits(card, comparison)]
    # JSON is valid YAML, and a name in it cannot end a line.
    head = "\n".join(f"{k}: {json.dumps(v)}" for k, v in front.items())
    return f"---\n{head}\n---\n\n" + "\n\n".join(parts) + "\n"


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None and not name.startswith(".")


def _index(card: Card, comparison: Comparison) -> dict[str, Any]:
    after = comparison.after
    assert after is not None
    measures = {
        "severity": Measure(after.severity, after.low, after.high, after.unit, "lower", after.unit),
        **after.measures,
    }
    metrics = [
        {"type": key, "value": m.value, "name": f"{m.title} (95% interval {m.low:.4g} to {m.high:.4g})"}
        for key, m in measures.items()
        if all(map(math.isfinite, (m.value, m.low, m.high)))
    ]
    origin = comparison.before.provenance.get("dataset") or {}
    dataset = {"name": "held-out examples of the user's data", "type": "held-out"}
    if origin.get("id"):
        origin_facts = {k: str(origin[k]) for k in ("config", "split", "revision") if origin.get(k)}
        dataset = {"name": f"{origin['id']}, held-out part", "type": str(origin["id"]), **origin_facts}
    return {"name": card.title, "results": [{"task": {"type": card.task}, "dataset": dataset, "metrics": metrics}]}


def _measured(comparison: Comparison) -> str:
    before, after = comparison.before, comparison.after
    assert after is not None
    rows = [("severity: " + before.unit, _of(before.severity, before.low, before.high),
             _of(after.severity, after.low, after.high), _difference(comparison.differences, "severity"))]  # fmt: skip
    for key, m in before.measures.items():
        measure_after = after.measures.get(key)
        if measure_after is not None and (m.value, m.low, m.high) != (
            measure_after.value,
            measure_after.low,
            measure_after.high,
        ):
            value_after = _of(measure_after.value, measure_after.low, measure_after.high)
            rows.append((m.title, _of(m.value, m.low, m.high), value_after, _difference(comparison.differences, key)))
    table = "| | before | after | paired difference |\n|---|---|---|---|\n" + "\n".join(
        f"| {cell(a)} | {b} | {c} | {d} |" for a, b, c, d in rows
    )
    harm = "\n".join(
        f"| {cell(comparison.title(k))} | {_of(d.value, d.low, d.high, sign=True)} |"
        for k, d in comparison.harm.items()
    )
    lost = (
        f"\n\nSide effects of the repair, after minus before:\n\n| | paired difference |\n|---|---|\n{harm}"
        if harm
        else ""
    )
    word = comparison.outcome
    price = (
        f": it costs more accuracy than the budget of {100 * comparison.budget:.3g} points"
        if word == "trade-off"
        else ""
    )
    return (
        f"**{word.capitalize()}**{price}. The verdict is {before.verdict} before the repair and {after.verdict} after it "
        f"(threshold {before.threshold:g}). Measured on held-out examples that were not used for choosing, with 95% intervals in "
        f"brackets.\n\n{table}{lost}"
    )


def _difference(differences: Mapping[str, Difference], key: str) -> str:
    d = differences.get(key)
    return "" if d is None else _of(d.value, d.low, d.high, sign=True)


def _of(value: float, low: float, high: float, *, sign: bool = False) -> str:
    plus = "+" if sign else ""
    return f"{value:{plus}.3f} [{low:{plus}.3f}, {high:{plus}.3f}]"


def cell(text: object) -> str:
    """Text escaped for one cell of a markdown table: it cannot leave the cell, or make a link or a tag."""
    shown = " ".join(visible(text).split()).replace("|", "\\|").replace("`", "'").replace("<", "&lt;")
    return shown.replace("[", "\\[").replace("\\\\[", "\\[")


def _limits(card: Card, comparison: Comparison | None) -> str:
    text = (
        f"trueup made this repair of {card.fault} for one model and adapter, and measured it on examples like those of its data. "
        "Nothing is known about other models or other data. The base weights are unchanged. Uses that the base model excludes "
        "are excluded here too."
    )
    departures = () if comparison is None else comparison.before.provenance.get("departures") or ()
    paper = "" if comparison is None else str(comparison.before.provenance.get("paper") or "")
    if paper:
        text += f"\n\nMethod: {cell(paper)}." + "".join(f"\n- {cell(d)}" for d in departures)
    return text
