"""Reports to draw: made-up faults, since the report must know none by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np

from trueup.faults.fault import Chart, Comparison, Difference, Finding, Measure, Series, Slider
from trueup.report.bundle import Report

NAN = float("nan")
UNIT = "share of examples"
EVIL = "</script><script>alert(1)</script>"
EVIL += "<img src=http://evil.example/x onerror=alert(2)>\"'`{{7*7}}<!-- \u2028\u2029&amp;"
VOID = {"meta", "input", "link", "img", "br", "hr", "base", "source", "embed"}


def heat(rows: Mapping[str, Sequence[float]], columns: Sequence[Any] = (0, 1, 2), **more: Any) -> Chart:
    """A map of layers by heads."""
    fields: dict[str, Any] = {"key": "mass", "title": "Where the weight lies", "x_title": "head", "y_title": "layer"}
    fields |= {"reading": "A strong colour says where the weight lies.", "value_title": "share of the weight"}
    series = tuple(Series(name, columns, values) for name, values in rows.items())
    return Chart(**(fields | {"kind": "heat", "series": series} | more))


COVERAGE = tuple(round(0.05 * i, 2) for i in range(1, 21))
MIXES = (-1.0, -0.5, 0.0, 0.5, 1.0)


def mixes(level: float) -> Chart:
    """A line over the logarithm of a mix, with a slider that starts at 10**0."""
    y = [level + 0.1 * x for x in MIXES]
    line = Series("grip", MIXES, y, [v - 0.02 for v in y], [v + 0.02 for v in y])
    return Chart(
        "mixes", "Grip by mix", "line", "times as frequent", "grip", "A flat line does not care.", (line,),
        log10=True, slider=Slider("Mix", 0.0),
    )  # fmt: skip


def refusing(risk: float, shift: float = 0.0) -> Chart:
    """Risk against coverage of 200 examples: the share c of them have a confidence of at least 1 - c - `shift`."""
    line = Series("risk", COVERAGE, [risk * c for c in COVERAGE], cut=[1 - c - shift for c in COVERAGE])
    return Chart(
        "refusing", "Risk against coverage", "line", "share answered", "errors among the answered",
        "The lower on the left, the better.", (line,),
        slider=Slider("Share answered", 0.8, examples=200, column="confidence"),
    )  # fmt: skip


def sliding() -> Report:
    """One repaired fault with both sliders, and examples that they, the filters and the search choose from."""
    before = finding(charts=(mixes(0.6), refusing(0.3)))
    after = finding(severity=0.05, charts=(mixes(0.8), refusing(0.2, 0.1)))
    rows = [
        {
            "text": f"line {i} is {'plumb' if i % 4 else 'bent'}",
            "label": "ja" if i % 2 else "nein",
            "predicted": "ja" if i % 3 else "nein",
            "copied": i % 5 == 0,
            "confidence": (i * 7 % 40) / 40,
            "predicted after": "ja" if i % 2 else "nein",
            "confidence after": (i * 11 % 40) / 40,
        }
        for i in range(40)
    ]
    return report(replace(comparison(), before=before, after=after), examples={"tilt": rows})


def finding(name: str = "tilt", severity: float = 0.31, **more: Any) -> Finding:
    """A finding whose interval is severity plus or minus 0.04, with measures, charts, samples and provenance."""
    rng = np.random.default_rng(abs(round(severity * 1000)) if np.isfinite(severity) else 0)
    grid = [round(0.1 * i, 1) for i in range(11)]
    bent = [x - severity * x * (1 - x) * 2 for x in grid]
    fields: dict[str, Any] = {
        "fault": name,
        "unit": UNIT,
        "severity": severity,
        "low": severity - 0.04,
        "high": severity + 0.04,
        "threshold": 0.1,
        "sentence": f"The reading hangs {severity:.2f} to the left.",
        "measures": {
            "lean": Measure(severity, severity - 0.04, severity + 0.04, UNIT, "lower", "mean lean"),
            "grip": Measure(0.7 - severity, 0.6 - severity, 0.8 - severity, "probability", "higher", "grip under load"),
            "drag": Measure(12.5, 11.0, 14.0, "nats", "lower", "drag"),
        },
        "charts": (
            Chart(
                "bend", "Promise and outcome", "line", "promised", "kept",
                "A fair reading lies on the dotted line; below it, more is promised than kept.",
                (Series("all", grid, bent, [y - 0.05 for y in bent], [y + 0.05 for y in bent]),), True,
            ),
            Chart(
                "groups", "Lean by group", "bar", "group", "lean", "Bars of equal height mean equal treatment.",
                (Series("all", ["north", "south", "elsewhere"], [severity, severity / 2, severity / 3]),),
            ),
            Chart(
                "layers", "Weight by layer", "line", "layer", "weight", "A peak says where the lean arises.",
                (
                    Series("heads", list(range(24)), list(severity * rng.random(24))),
                    Series("units", list(range(24)), list(severity * rng.random(24) + 0.2)),
                ),
            ),
        ),
        "details": {"candidate": 3, "missing": float("nan"), "scores": [0.1, float("inf")]},
        "samples": {
            "confidence": rng.random(40).astype(np.float32),
            "correct": rng.random(40) > 0.3,
            "label": np.array(["ja", "nein"] * 20),
            "hidden": rng.normal(size=(40, 3)),
        },
        "provenance": {
            "title": f"{name.capitalize()} to one side",
            "question": "Does the reading hang to one side?",
            "paper": "A. Body, On Plumb Lines, 2024, arXiv:2401.01234",
            "departures": ["The bob is brass; the paper leaves the metal open."],
            "seed": 7,
        },
    }  # fmt: skip
    return Finding(**(fields | more))


def comparison(name: str = "tilt", before: float = 0.31, after: float | None = 0.05, **more: Any) -> Comparison:
    """Before and after, with the paired difference of the headline plus or minus 0.06."""
    fields: dict[str, Any] = {"before": finding(name, before), "after": None, "remedy": "No bob was heavy enough"}
    if after is not None:
        d = after - before
        fields |= {
            "after": finding(name, after),
            "remedy": "A counterweight on the right, learnt on the calibration split.",
            "differences": {
                "severity": Difference(d, d - 0.06, d + 0.06, 0.0004),
                "lean": Difference(d, d - 0.06, d + 0.06, 0.0004),
                "grip": Difference(-d, -d - 0.1, -d + 0.1, 0.01),
                "drag": Difference(0.0, -0.8, 0.9, 0.93),
            },
            "harm": {
                "accuracy": Difference(-0.002, -0.011, 0.007, 0.6),
                "drag": Difference(0.8, 0.2, 1.4, 0.01),
            },
            "adapter": f"{name}-remedy",
        }
    return Comparison(**(fields | more))


def report(*comparisons: Comparison, **more: Any) -> Report:
    chosen = comparisons or (
        comparison(),
        comparison("wobble", 0.25, 0.23),
        comparison("rust", 0.03, None, remedy="Nothing to repair."),
        comparison("drift", 0.4, None),
    )
    name = chosen[0].before.fault
    fields: dict[str, Any] = {
        "title": "tiny-gpt2 with adapter 'sentiment'",
        "job": {"model": "tiny-gpt2", "faults": [c.before.fault for c in chosen], "seed": 7, "limit": None},
        "comparisons": chosen,
        "examples": {
            name: [
                {
                    "text": f"example {i}: the line was {'straight' if i % 3 else 'crooked, and nobody said so'}",
                    "label": "ja" if i % 2 else "nein",
                    "confidence before": 0.9 - i / 200,
                    "confidence after": 0.6 - i / 300,
                    "right": i % 3 > 0,
                }
                for i in range(60)
            ]
        },
        "provenance": {
            "command": ["trueup", "check", "tiny-gpt2", "--data", "my file.csv", "-o", "out"],
            "torch": "2.10", "device": "cpu", "dtype": "float32", "threads": 1,
            "fingerprints": {"base": "sha256:ab12", "adapter": "sha256:cd34"}, "seed": 7,
        },
        "notes": ["The batch was halved after running out of memory."],
    }  # fmt: skip
    return Report(**(fields | more))


def evil_report(evil: str = EVIL) -> Report:
    chart = Chart(
        evil, evil, "line", evil, evil, evil, (Series(evil, [evil, "b"], [0.1, NAN]), Series("b", [1, 2], [3, 4]))
    )
    heat = Chart(
        "heat", evil, "heat", evil, evil, evil, (Series(evil, [evil, "b"], [0.1, NAN]), Series("b", [evil, "b"], [-3, 4])),
        value_title=evil,
    )  # fmt: skip
    flat = Chart("flat", evil, "bar", evil, evil, evil, (Series(evil, [evil], [0.1], [0.0], [0.2]),))
    slid = Chart(
        "slid", evil, "line", evil, evil, evil, (Series(evil, [0, 1, 2], [0.1, NAN, 0.3], cut=[2.0, 1.0, 0.0]),),
        slider=Slider(evil, 2, 10, "n"),
    )  # fmt: skip
    one = finding(
        unit=evil,
        sentence=evil,
        measures={evil: Measure(1, 0, 2, evil, "lower", evil), "severity": Measure(1, 0, 2, evil, "lower", evil)},
        charts=(chart, flat, heat, slid),
        details={evil: [evil, NAN]},
        provenance={"title": evil, "question": evil, "paper": evil, "departures": [evil, evil], evil: {evil: evil}},
    )
    both = Comparison(one, one, evil, {evil: Difference(1, 0.5, 2, 0.1)}, {evil: Difference(1, 0.5, 2, 0.1)}, evil)
    return Report(
        evil,
        {evil: evil},
        (both,),
        {"tilt": [{evil: evil, "n": 1.0, "b": True}]},
        {"command": evil, evil: [evil]},
        [evil],
    )


def with_before(c: Comparison, **more: Any) -> Comparison:
    return replace(c, before=replace(c.before, **more))


class Page(HTMLParser):
    """What a browser would see: elements with attributes, the text of scripts, and the text for readers."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> out of turn"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            attrs, before = self.scripts.pop()
            self.scripts.append((attrs, before + data))
        elif not self.open or self.open[-1] != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.elements if t == tag]
