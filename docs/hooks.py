"""What the pages say and the code says too is taken from the code when the site is built, so that it cannot rot.

A page asks for it with a comment on a line of its own:

``<!-- trueup: faults -->``          a table of all faults
``<!-- trueup: fault NAME -->``      a fault: question, severity, paper
``<!-- trueup: details NAME -->``    the rest of it: knobs, departures, planted cases, entries of the log
``<!-- trueup: noun NAME -->``       a class: docstring, signature, public methods
``<!-- trueup: function NAME -->``   a function: signature and docstring
``<!-- trueup: charts NAME -->``     a fault's charts, drawn from an audit of its planted case
``<!-- trueup: laws -->``            the laws of the seam
``<!-- trueup: data -->``            a table of the embedded data sets
``<!-- trueup: tasks -->``           a table of the in-context tasks

Docstrings are read here and not by mkdocstrings: its parsers warn at items that name two attributes at once
(``low, high: ...``), and a strict build would fail on them.
"""

from __future__ import annotations

import base64
import functools
import html
import importlib
import inspect
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from trueup import docstrings

ASKED = re.compile(r"^<!-- trueup: (\w+)(?: ([\w.]+))? -->$", re.MULTILINE)
GREY = "#808080"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """What mkdocs calls with every page."""
    return filled(markdown, page.file.src_uri)


def filled(markdown: str, where: str = "") -> str:
    """The page with every request answered. `where` is its path below docs."""
    up = "../" * where.count("/")
    return ASKED.sub(lambda m: ANSWERS[m[1]](*(a for a in m.groups()[1:] if a), up=up), markdown)


# ------------------------------------------------------------------------------------------------------- docstrings


def doc_of(thing: Any, names: Sequence[str] = ()) -> str:
    """A docstring as markdown. `names` are those that may begin an item in the middle of a line."""
    lines, out, i = inspect.cleandoc(thing.__doc__ or "").splitlines(), [], 0
    code = False
    while i < len(lines):
        code ^= lines[i].startswith("```")
        found = None if code else docstrings.SECTION.fullmatch(lines[i])
        i += 1
        if found is None:
            out.append(lines[i - 1] if code else safe(lines[i - 1]))
            continue
        body = []
        while i < len(lines) and (lines[i].startswith("    ") or not lines[i].strip()):
            body.append(lines[i])
            i += 1
        out += ["", f"**{found[1]}** {safe(found[2])}".rstrip(), ""]
        out += [f"- {item}" for item in items(body, names, raises=found[1] == "Raises")] + [""]
    return "\n".join(out).strip()


def items(body: Sequence[str], names: Sequence[str], *, raises: bool = False) -> list[str]:
    """The entries of a section, each with its names in code. In the middle of a line `names` begin one, or any exception."""
    return [
        f"{', '.join(f'`{n}`' for n in found)}: {safe(said)}" if found else safe(said)
        for found, said in docstrings.entries(body, names, any_name=raises)
    ]


def safe(text: str) -> str:
    """Markdown in which no markup is opened outside of code."""
    parts = re.split(r"(`+[^`]*`+)", text)
    return "".join(p if k % 2 else p.replace("<", "&lt;") for k, p in enumerate(parts))


def signature(name: str, f: Callable[..., Any]) -> str:
    """A signature as Python, one parameter a line where it is long."""
    said = inspect.signature(f)
    parameters = [p for p in said.parameters.values() if p.name not in ("self", "cls")]
    kept = [parameter(p) for p in parameters]
    alone = [k for k, p in enumerate(parameters) if p.kind is p.KEYWORD_ONLY]
    if alone and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        kept.insert(alone[0], "*")
    gives = said.return_annotation
    end = ")" if gives is inspect.Signature.empty else f") -> {gives if isinstance(gives, str) else gives.__name__}"
    line = f"{name}({', '.join(kept)}{end}"
    if len(line) > 96:
        line = f"{name}(\n" + "".join(f"    {p},\n" for p in kept) + end
    return f"```python\n{line}\n```"


def parameter(p: inspect.Parameter) -> str:
    """A parameter as it stands in the code: annotations are kept as text there, which Python would show in quotes."""
    stars = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
    kind = p.annotation if isinstance(p.annotation, str) else getattr(p.annotation, "__name__", "")
    kind = "" if p.annotation is p.empty else f": {kind}"
    given = "" if p.default is p.empty else f" = {p.default!r}" if kind else f"={p.default!r}"
    return f"{stars}{p.name}{kind}{given}"


def find(name: str) -> Any:
    """A public name of trueup, or a dotted path below it."""
    import trueup

    where, _, last = name.rpartition(".")
    return getattr(importlib.import_module(f"trueup.{where}") if where else trueup, last)


def noun(name: str, up: str = "") -> str:
    cls = find(name)
    fields = list(inspect.get_annotations(cls))
    parts = [f"`{cls.__module__}.{cls.__qualname__}`" + (", frozen" if _frozen(cls) else ""), doc_of(cls, fields)]
    for member, value in vars(cls).items():
        f = getattr(value, "__func__", value)
        if member.startswith("_") or not (value.__doc__ or "").strip():
            continue
        if isinstance(value, property):
            parts.append(f"**`{member}`** {doc_of(value)}")
        elif inspect.isfunction(f):
            parts += [signature(member, f), doc_of(f, list(inspect.signature(f).parameters))]
    return "\n\n".join(parts)


def function(name: str, up: str = "") -> str:
    f = find(name)
    return f"{signature(f.__name__, f)}\n\n{doc_of(f, list(inspect.signature(f).parameters))}"


def _frozen(cls: type) -> bool:
    return is_dataclass(cls) and cls.__dataclass_params__.frozen  # type: ignore[attr-defined]


# ----------------------------------------------------------------------------------------------------------- faults


def all_faults() -> dict[str, Any]:
    from trueup.faults.fault import each_fault

    return {cls.name: cls for cls in each_fault()}


def paper(text: str) -> str:
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def faults(up: str = "") -> str:
    rows = [
        f"| [{c.title}]({up}faults/{c.name}.md) | {c.question} | {c.unit} | {paper(c.paper)} | {needs(c)} |"
        for c in all_faults().values()
    ]
    head = "| fault | question | severity | paper | what a check needs to examine it |"
    return "\n".join([head, "|---|---|---|---|---|", *rows])


def needs(cls: Any) -> str:
    """What a check must be given before it examines the fault."""
    return cls.needs or (f"`--fault {cls.name}`" if cls.on_request else "what it applies to")


def fault(name: str, up: str = "") -> str:
    cls = all_faults()[name]
    threshold = (
        f"the `threshold` ({cls.knobs()['threshold']} by default)" if "threshold" in cls.knobs() else "its threshold"
    )
    asked = (
        f"only when it is named (`--fault {name}`): {cls.on_request}"
        if cls.on_request
        else f"in every check that it applies to. It needs {needs(cls)}"
    )
    return "\n\n".join(
        [
            f"> {cls.question}",
            f"- **Severity:** {cls.unit}. Higher is worse.\n"
            f"- **Found** if its whole 95% interval lies above {threshold}.\n"
            f"- **Examined** {asked}.\n- **Paper:** {paper(cls.paper)}.",
            paper(doc_of(importlib.import_module(cls.__module__))),
        ]
    )


def cell(text: str) -> str:
    """Text as a cell of a table, where a bar would end it."""
    return text.replace("|", "\\|")


def details(name: str, up: str = "") -> str:
    cls = all_faults()[name]
    about = cls.described()
    table = "\n".join(f"| `{k}` | `{v!r}` | {cell(safe(about[k]))} |" for k, v in cls.knobs().items())
    return "\n\n".join(
        [
            "## Settings",
            f"Change one with `--set {name}.SETTING=VALUE`, or in Python `trueup.{cls.__name__}(SETTING=VALUE)`.",
            f"| setting | default | what it does |\n|---|---|---|\n{table}",
            "## What differs from the paper",
            "\n".join(f"- {paper(safe(d))}" for d in cls.departures) or "No known difference.",
            "## Its planted cases",
            "Every fault has three tiny models for tests: *planted* with this fault, *healthy* without it, and *sham*, which only "
            f'looks as if it had it. In Python, `trueup.{cls.__name__}().planted("sham")` gives the model and its data.',
            doc_of(importlib.import_module(f"{cls.__module__}.planted").planted),
            "## In the log",
            logged(name, up),
        ]
    )


def logged(name: str, up: str) -> str:
    """Links to the entries of the log that name the fault in their heading."""
    from markdown.extensions.toc import slugify

    seen: dict[str, int] = {}
    out = []
    for title in re.findall(r"^#+ (.+)$", (Path(__file__).parent / "log.md").read_text(encoding="utf-8"), re.MULTILINE):
        slug = slugify(title, "-")
        seen[slug] = seen.get(slug, -1) + 1
        if name in title.lower():
            anchor = slug if not seen[slug] else f"{slug}_{seen[slug]}"
            out.append(f"- [{title}]({up}log.md#{anchor})")
    return "\n".join(out) or "The log has no entry for this fault yet."


def data(up: str = "") -> str:
    from trueup.corpus.embedded import DATASETS

    rows = [
        f"| `embedded:{d.name}` | {cell(d.title)} | {', '.join(f'`{a}`' for a in d.attributes) or 'none'} | {d.kept:,} | "
        f"{d.package.megabytes:g} MB | {cell(d.licence)} |"
        for d in DATASETS.values()
    ]
    head = "| name | what it is: its classes | columns for `--confounder` | texts | download | licence |"
    return "\n".join([head, "|---|---|---|---|---|---|", *rows])


def tasks(up: str = "") -> str:
    from trueup.corpus.tasks import TASKS

    rows = [
        f"| `task:{t.name}` | {cell(t.title)} | {t.kind} | {'yes' if t.copying_is_right else 'no'} | "
        f"{' + '.join(s.package.name for s in t.sources) or 'trueup'} |"
        for t in TASKS.values()
    ]
    head = "| name | what is asked | kind | the answer is in the query | pairs from |"
    return "\n".join([head, "|---|---|---|---|---|", *rows])


def laws(up: str = "") -> str:
    from trueup.faults import fault as seam

    found = re.search(r"^1\.  .*?(?=\n\n)", inspect.cleandoc(seam.__doc__), re.MULTILINE | re.DOTALL)
    assert found
    return found[0]


# ----------------------------------------------------------------------------------------------------------- charts


@functools.cache
def finding(name: str) -> Any:
    """The audit of a fault's planted case."""
    import torch

    from trueup.faults.rigidity.planted import QUICK

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny models are slower with more
    try:
        cls = all_faults()[name]
        made = cls(**{k: v for k, v in QUICK.items() if k in cls.knobs()})
        subject, corpus = made.planted("planted")
        return made.prepared(subject, corpus, seed=0).audit(subject, corpus.part("test"), seed=0)
    finally:
        torch.set_num_threads(threads)


def charts(name: str, up: str = "") -> str:
    got = finding(name)
    parts = [f"On the planted case the finding reads: *{safe(got.sentence)}*"]
    for chart in got.charts:
        about = f"Across: {chart.x_title}. Up: {chart.y_title}."
        if chart.kind == "heat":
            about = f"Across: {chart.x_title}. Down: {chart.y_title}. Each cell: {chart.value_title}."
        if chart.slider is not None:
            about += f" In the report a slider moves along it: {chart.slider.label}."
        parts += [
            f"### {chart.title}",
            f'<img alt="{html.escape(chart.title)}" class="chart" src="data:image/svg+xml;base64,{_drawn(chart)}">',
            f"**{safe(chart.reading)}**",
            safe(about),
        ]
    return "\n\n".join(parts)


def _drawn(chart: Any) -> str:
    """The chart as an SVG in grey and colours that show on light and on dark, in base64."""
    import vl_convert

    svg = vl_convert.vegalite_to_svg(spec(chart))
    return base64.b64encode(svg.encode()).decode()


def spec(chart: Any) -> dict[str, Any]:
    """A chart as a Vega-Lite specification."""
    rows = []
    for s in chart.series:
        low, high = s.low or [None] * len(s.x), s.high or [None] * len(s.x)
        for x, y, a, b in zip(s.x, s.y, low, high, strict=True):
            x = 10**x if chart.log10 else x
            rows.append({"name": s.name, "x": x, "y": None if math.isnan(y) else y, "low": a, "high": b})
    draw = {"heat": _map, "bar": _bars, "line": _lines}[chart.kind]
    text = {"labelColor": GREY, "titleColor": GREY}
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "data": {"values": rows},
        "layer": draw(chart, rows, [s.name for s in chart.series]),
        "width": 520,
        "height": 240 if chart.kind != "heat" else min(240, 60 * len(chart.series)),
        "background": "transparent",
        "config": {
            "axis": text | {"gridOpacity": 0.25, "domainColor": GREY, "tickColor": GREY},
            "legend": text,
            "view": {"stroke": None},
        },
    }


Layers = list[dict[str, Any]]
ENDS = {"y": {"field": "low", "type": "quantitative"}, "y2": {"field": "high"}}


def _map(chart: Any, rows: Layers, names: list[str]) -> Layers:
    most = max((abs(r["y"]) for r in rows if r["y"] is not None), default=0.0)
    cell = {"field": "y", "type": "quantitative", "title": chart.value_title}
    return [
        {
            "mark": "rect",
            "encoding": {
                "x": {"field": "x", "type": "ordinal", "title": chart.x_title},
                "y": {"field": "name", "type": "ordinal", "sort": names, "title": chart.y_title},
                "color": cell | {"scale": {"scheme": "blues", "domain": [0, max(most, 1.0)]}},
            },
        }
    ]


def _bars(chart: Any, rows: Layers, names: list[str]) -> Layers:
    room = 80 // len({r["x"] for r in rows})  # letters below one group of bars
    for r in rows:
        r["x"] = "|".join(textwrap.wrap(str(r["x"]), max(room, 6)))
    axis = {"labelAngle": 0, "labelExpr": "split(datum.label, '|')"}
    place = {"field": "x", "type": "nominal", "title": chart.x_title, "sort": None, "axis": axis}
    both = {"x": place, "xOffset": {"field": "name", "sort": names}}
    up = {"field": "y", "type": "quantitative", "title": chart.y_title}
    layers: Layers = [{"mark": "bar", "encoding": both | {"y": up, "color": _colour(names)}}]
    if any(r["low"] is not None for r in rows):
        layers.append({"mark": {"type": "rule", "color": GREY}, "encoding": both | ENDS})
    return layers


def _lines(chart: Any, rows: Layers, names: list[str]) -> Layers:
    scale = {"type": "log"} if chart.log10 else {"zero": False}
    place = {"field": "x", "type": "quantitative", "title": chart.x_title, "scale": scale}
    up = {"field": "y", "type": "quantitative", "title": chart.y_title, "scale": {"zero": False}}
    both = {"x": place, "color": _colour(names)}
    layers: Layers = [{"mark": {"type": "line", "point": len(rows) < 60}, "encoding": both | {"y": up}}]
    if any(r["low"] is not None for r in rows):
        layers.insert(0, {"mark": {"type": "area", "opacity": 0.2}, "encoding": both | ENDS})
    if chart.diagonal:
        ends = [{"a": f(r["x"] for r in rows)} for f in (min, max)]
        guide = {axis: {"field": "a", "type": "quantitative"} for axis in ("x", "y")}
        mark = {"type": "line", "color": GREY, "strokeDash": [4, 4]}
        layers.append({"data": {"values": ends}, "mark": mark, "encoding": guide})
    return layers


def _colour(names: list[str]) -> dict[str, Any]:
    return {
        "field": "name",
        "type": "nominal",
        "sort": names,
        "title": None,
        "legend": {"orient": "bottom"} if len(names) > 1 else None,
    }


ANSWERS: dict[str, Callable[..., str]] = {
    "faults": faults, "fault": fault, "details": details, "noun": noun, "function": function, "charts": charts, "laws": laws,
    "data": data, "tasks": tasks,
}  # fmt: skip
