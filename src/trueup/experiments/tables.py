"""The results of the sweeps of `trueup bench` as tables over seeds, with all methods and the one that trueup's rule chooses.

A page holds a table between two markers, so that its numbers come only from a committed result file:

```
<!-- results: overconfidence error_auc embedded:tweets -->
<!-- end of results -->
```

The words are the file in ``results`` (without ``.parquet``), the measure, and the data; `tools/render` fills in the table. In place
of the data, ``all: adue huq`` gives one line for each model and data, with these methods and the rule's choice. Only the name of an
experiment that is not a sweep (`WHOLE`) gives its table from ``results/NAME.json``. ``examples verdicts FAULT`` gives a line for
each cell that examined a fault, with its verdict and what the repair changed. ``representation changes FAULT: severity present``
gives a line for each data and measure, with its change by the repair over the seeds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from trueup.errors import BadInput, did_you_mean, listing, two_digits
from trueup.experiments.presets import HEADLINES
from trueup.measure.bootstrap import Estimate
from trueup.measure.seeds import over_seeds
from trueup.store import atomic
from trueup.sweeps.results import read

SHARED = 0.3
"""The largest share of test examples that two seeds have in common: a test split has at most this share of its data."""
RULE = "trueup's choice"
WHOLE = ("cost", "curve", "rigidity", "scout", "scout_repairs", "speed", "transfer", "verdicts")
"""Experiments that have their own result and table: modules of this package."""
MARKED = re.compile(r"(<!-- results: (\S+) (\S+) (\S[^\n]*?) -->\n).*?(<!-- end of results -->)", re.DOTALL)
MARKED_WHOLE = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end of results -->)", re.DOTALL)

Row = Mapping[str, Any]
"""A row of ``results.parquet``."""


@dataclass(frozen=True)
class Line:
    """One method over the seeds.

    Attributes:
        key: key of the method; `RULE` for the rule's choice.
        value: mean of the measure on test. gained: value minus that of the unchanged model. behind: value minus that of the rule's
            choice; None for the rule itself, and where it chooses no method in some seed. seeds: number of seeds. control: True for
            a method that must not help.
    """

    key: str
    title: str
    source: str
    value: float
    gained: Estimate
    behind: Estimate | None
    seeds: int
    control: bool = False


def lines(rows: Sequence[Row], measure: str) -> list[Line]:
    """Every method of these rows, which are of one model and data: the rule's choice first, then the others, best first.

    Raises: BadInput where no row has a method with this measure.
    """
    method_rows = [r for r in rows if r["kind"] == "method" and r["measure"] == measure]
    if not method_rows:
        raise BadInput(f"No method was measured by '{measure}' there.")
    cells = {r["cell"] for r in method_rows}
    chosen = [r for r in method_rows if r["chosen"]]
    rule_line = [_line(RULE, RULE, "trueup", chosen, None)] if {r["cell"] for r in chosen} == cells else []
    titles: dict[str, list[Row]] = {}
    for r in method_rows:
        titles.setdefault(r["method"], []).append(r)
    table_lines = []
    for rows_of_method in titles.values():
        behind = (
            [{**r, **dict.fromkeys(_BEHIND, 0.0)} if r["chosen"] else r for r in rows_of_method] if rule_line else None
        )
        table_lines.append(
            _line(
                rows_of_method[0]["method"], _title(rows_of_method), rows_of_method[0]["source"], rows_of_method, behind
            )
        )
    better = -1 if method_rows[0]["better"] == "higher" else 1
    return rule_line + sorted(table_lines, key=lambda line: better * line.value)


_BEHIND = ("behind", "behind_low", "behind_high")


def _title(of: Sequence[Row]) -> str:
    """A method's title, without parts that differ between seeds; for a single run with its setting."""
    if len(of) == 1:
        setting = of[0]["setting"] if not of[0]["control"] else ""
        return of[0]["title"] + (f" ({setting})" if setting else "")
    titles = list(dict.fromkeys(r["title"] for r in of))
    return titles[0] if len(titles) == 1 else of[0]["method"]


def _line(key: str, title: str, source: str, of: Sequence[Row], behind: Sequence[Row] | None) -> Line:
    return Line(
        key, title, source, sum(r["after"] for r in of) / len(of),
        _pooled(of, _DIFFERENCE),
        None if behind is None else _pooled(behind, _BEHIND), len(of), bool(of[0]["control"]),
    )  # fmt: skip


def _pooled(rows: Sequence[Row], keys: Sequence[str]) -> Estimate:
    """Rows of several seeds as one: `keys` name the value and its interval."""
    return over_seeds([tuple(r[k] for k in keys) for r in rows], SHARED)  # type: ignore[misc]


def table(rows: Sequence[Row], measure: str) -> str:
    """Markdown: every method, with its differences from the unchanged model and from the rule's choice.

    The rule's choice is bold if the whole interval of every other method, except controls, is worse.
    """
    method_lines = lines(rows, measure)
    polarity = next((r["better"] for r in rows if r["measure"] == measure and r["better"]), "lower")
    is_worse: Callable[[Estimate], bool] = (lambda e: e.high < 0) if polarity == "higher" else (lambda e: e.low > 0)
    other_lines = [line for line in method_lines if line.behind is not None and not line.control]
    rule_first = method_lines[0].title == RULE and all(
        is_worse(e) for line in other_lines if (e := line.behind) and (e.low or e.high)
    )
    seeds = sorted({line.seeds for line in method_lines})
    seeds_text = f"{' to '.join(dict.fromkeys(map(str, (seeds[0], seeds[-1]))))} seed{'s' * (seeds[-1] > 1)}"
    values = [r["value"] for r in rows if r["kind"] == "method" and r["measure"] == measure]
    body = [
        f"| {'**' * (rule_first and not i)}{line.title}{'**' * (rule_first and not i)} | {line.source} | {line.value:.3f} | "
        f"{_told(line.gained)} | {'' if line.behind is None else _told(line.behind)} |"
        for i, line in enumerate(method_lines)
    ]
    return "\n".join([
        f"{seeds_text}; as it is: {sum(values) / len(values):.3f}; {polarity} is better.",
        "",
        "| method | source | on test | minus the model as it is [95%] | minus trueup's choice [95%] |",
        "|---|---|---|---|---|",
        *body,
    ])  # fmt: skip


def summary(rows: Sequence[Row], measure: str, methods: Sequence[str]) -> str:
    """Markdown: a line for each model and data, with the differences of some methods, and of the rule's choice, from the unchanged
    model.

    Raises: BadInput where a method was not tried on some data.
    """
    body, titles = [], {m: set[str]() for m in methods}
    for model, data in dict.fromkeys((r["model"], r["data"]) for r in rows):
        rows_of_data = [r for r in rows if (r["model"], r["data"]) == (model, data)]
        line_of_method = {line.key: line for line in lines(rows_of_data, measure)}
        if missing_methods := [m for m in methods if m not in line_of_method]:
            raise BadInput(f"There is no method '{missing_methods[0]}' of {data}. There are {listing(line_of_method)}.")
        for m in methods:
            titles[m].add(line_of_method[m].title)
        values = [r["value"] for r in rows_of_data if r["kind"] == "method" and r["measure"] == measure]
        cells = [_told(line_of_method[m].gained) for m in methods]
        rule = _told(line_of_method[RULE].gained) if RULE in line_of_method else "chooses none"
        seeds = max(line.seeds for line in line_of_method.values())
        body.append(
            f"| {_named(model)}, {_named(data)} | {seeds} | {sum(values) / len(values):.3f} | {' | '.join(cells)} | {rule} |"
        )
    heads = [titles_of_method.pop() if len(titles_of_method) == 1 else m for m, titles_of_method in titles.items()]
    head = ["model and data", "seeds", "as it is", *heads, RULE]
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *body])


def verdicts(rows: Sequence[Row], fault: str) -> str:
    """Markdown: a line for each cell that examined `fault`, with its verdict, the severity with its interval before and after the
    repair, and the change of the accuracy by the repair.

    Raises: BadInput where no cell examined it.
    """
    severity_rows = [r for r in rows if r["fault"] == fault and r["kind"] == "severity"]
    if not severity_rows:
        raise BadInput(f"No cell examined '{fault}' there.")
    body = []
    for r in severity_rows:
        accuracy = next(
            (x for x in rows if (x["cell"], x["fault"], x["measure"]) == (r["cell"], fault, "accuracy")), {}
        )
        repaired = r["after"] is not None
        change = accuracy.get("difference") if repaired else None
        kind = r.get("tuned") or json.loads(r.get("settings") or "{}").get("kind") or ""
        cells = [
            f"{_named(r['model'])}, {_named(r['data'])}", KINDS.get(kind, kind),
            r["verdict"]
            + (f", {r['outcome']}" if r["outcome"] not in (None, r["verdict"]) else UNREPAIRED * (r["verdict"] == "found"))
            + (f" (80% power: {two_digits(r['needed']):,} texts)" if r["verdict"] == "undecided" and r["needed"] else ""),
            f"{r['value']:.3f} [{r['low']:.3f}, {r['high']:.3f}]",
            f"{r['after']:.3f} [{r['after_low']:.3f}, {r['after_high']:.3f}]" if repaired else "",
            "" if change is None else _told(Estimate(change, accuracy["difference_low"], accuracy["difference_high"], 0.95)),
        ]  # fmt: skip
        body.append(f"| {' | '.join(cells)} |")
    head = [
        "model and data",
        "adapter",
        "verdict",
        "severity [95%]",
        "after the repair [95%]",
        "accuracy, change [95%]",
    ]
    return "\n".join([
        f"The threshold is {severity_rows[0]['threshold']:g}.", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|", *body
    ])  # fmt: skip


def changes(rows: Sequence[Row], fault: str, measures: Sequence[str] = ()) -> str:
    """Markdown: a line for each model, data and measure of `fault` (all measures, if none is named), with its mean over the
    seeds before and after the repair, and the difference with its interval over seeds and texts.

    Raises: BadInput where no cell repaired `fault`, or it has no such measure.
    """
    repaired_rows = [
        r for r in rows if r["fault"] == fault and r["kind"] in ("severity", "measure") and r["difference"] is not None
    ]
    if not repaired_rows:
        raise BadInput(f"No cell repaired '{fault}' there.")
    names = list(dict.fromkeys(r["measure"] for r in repaired_rows))
    if missing := [m for m in measures if m not in names]:
        raise BadInput(
            f"'{fault}' has no measure '{missing[0]}' there.{did_you_mean(missing[0], names)} It has {listing(names)}."
        )
    lines = ["| model and data | measure | seeds | before | after | difference [95%] |", "|---" * 6 + "|"]
    for model, data in dict.fromkeys((r["model"], r["data"]) for r in repaired_rows):
        for measure in measures or names:
            rows_of_seeds = [
                r for r in repaired_rows if (r["model"], r["data"], r["measure"]) == (model, data, measure)
            ]
            if not rows_of_seeds:
                continue
            mean_before, mean_after = (
                sum(r[k] for r in rows_of_seeds) / len(rows_of_seeds) for k in ("value", "after")
            )
            title = rows_of_seeds[0]["title"] if measure != "severity" else f"severity: {rows_of_seeds[0]['unit']}"
            difference_text = _told(_pooled(rows_of_seeds, _DIFFERENCE))
            cells = [
                f"{_named(model)}, {_named(data)}",
                title,
                str(len(rows_of_seeds)),
                f"{mean_before:.3f}",
                f"{mean_after:.3f}",
                difference_text,
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


KINDS = {"lora": "LoRA", "prompt": "soft prompt"}
"""Kind of adapter -> its name for readers."""
UNREPAIRED = ", no repair confirmed"
_DIFFERENCE = ("difference", "difference_low", "difference_high")


def _named(source: str) -> str:
    """The name of a model or of data, without its prefix or folder."""
    return Path(source.partition(":")[2] or source).name


def _told(e: Estimate) -> str:
    return f"{e.value:+.3f} [{e.low:+.3f}, {e.high:+.3f}]"


def write(out: Path, name: str, say: Callable[[str], None]) -> None:
    """Write ``out``/`name`.md: a table for each model, data and measure of the sweep in `out`; `say` gets those of the headline.

    For a sweep that compares no methods: a table of verdicts for each fault, and with several seeds a table of changes by repairs.
    """
    rows = read(out / "results.parquet")
    parts = []
    if name not in HEADLINES:
        for fault in dict.fromkeys(r["fault"] for r in rows if r["kind"] == "severity"):
            text = verdicts(rows, fault)
            repaired = any(r["fault"] == fault and r["difference"] is not None for r in rows)
            if repaired and len({r["seed"] for r in rows}) > 1:
                text += f"\n\n{changes(rows, fault)}"
            parts.append(f"## {fault}\n\n{text}\n")
            say(parts[-1])
        return atomic.write_text(out / f"{name}.md", "\n".join(parts))
    for model, data in dict.fromkeys((r["model"], r["data"]) for r in rows):
        rows_of_data = [r for r in rows if (r["model"], r["data"]) == (model, data)]
        for measure in dict.fromkeys(r["measure"] for r in rows_of_data if r["kind"] == "method"):
            title = next(
                (r["title"] for r in rows_of_data if r["measure"] == measure and r["kind"] != "method"), measure
            )
            part = f"## {_named(model)} on {_named(data)}: {title}\n\n{table(rows_of_data, measure)}\n"
            parts.append(part)
            if measure == HEADLINES[name]:
                say(part)
    atomic.write_text(out / f"{name}.md", "\n".join(parts))


def rendered(page: str, results: Path) -> str:
    """A page with each marked table filled in from the files of the folder `results`.

    A table says so if another version of trueup made the cells of its file.

    Raises: BadInput where a marker names a file, experiment, measure or data that does not exist.
    """
    from trueup import __version__

    def fill(found: re.Match[str]) -> str:
        start, name, measure, data, end = found.groups()
        rows = read(results / f"{name}.parquet")
        if measure == "verdicts":
            text = verdicts(rows, data)
        elif measure == "changes":
            fault, _, measures = data.partition(":")
            text = changes(rows, fault, measures.split())
        elif data.startswith("all: "):
            text = summary(rows, measure, data.removeprefix("all: ").split())
        else:
            data_names = sorted({r["data"] for r in rows})
            rows = [r for r in rows if r["data"] == data]
            if not rows:
                raise BadInput(f"{name}.parquet holds nothing of '{data}'. It has {listing(data_names)}.")
            text = table(rows, measure)
        return f"{start}{older({r['trueup'] for r in rows})}{text}\n{end}"

    def whole(found: re.Match[str]) -> str:
        start, name, end = found.groups()
        if name not in WHOLE:
            raise BadInput(
                f"There is no experiment '{name}' with a table of its own.{did_you_mean(name, WHOLE)} There are {listing(WHOLE)}."
            )
        file = results / f"{name}.json"
        if not file.is_file():
            raise BadInput(
                f"There is no '{file}'. `trueup bench {name} -o OUT` makes one, and `tools/render --take {name} OUT` takes it."
            )
        result = json.loads(file.read_text(encoding="utf-8"))
        text = import_module(f"trueup.experiments.{name}").table(result).strip()
        return f"{start}{older({result['trueup']})}{text}\n{end}"

    def older(versions: set[str]) -> str:
        other_versions = sorted(versions - {__version__})
        return f"Made by trueup {', '.join(other_versions)}.\n\n" if other_versions else ""

    return MARKED_WHOLE.sub(whole, MARKED.sub(fill, page))
