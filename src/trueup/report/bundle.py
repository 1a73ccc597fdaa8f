"""The output folder of a check: enough to read it again, to draw it again, and to repeat it.

```
findings.json                       the comparisons, example tables, provenance and notes
samples/<fault>-<before|after>.npz  per-example arrays, in the audited corpus' order
job.json                            the job that makes this folder again
run.json                            when it ran, how long, and the most memory it held; it differs at each run
crash-<fault>.txt                   the traceback of a fault whose examination or repair crashed
```
"""

from __future__ import annotations

import io
import json
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from trueup.errors import BadInput, TrueupError, check_within, did_you_mean, listing
from trueup.faults.confounding import leads
from trueup.faults.fault import Alternative, Chart, Comparison, Difference, Finding, Measure, Method
from trueup.given import checked
from trueup.report import words
from trueup.report.contents import NAME, Contents
from trueup.report.values import plain, untag
from trueup.store.schema import plain_bytes

FORMAT = 4
"""Format number of ``findings.json`` and its schema (`trueup schema`, report/findings.schema.json). It rises when a key changes."""
RUN = "run.json"
"""When a check ran, and its time and memory. It is not part of ``findings.json``, so that equal checks give equal bytes there."""

_UNREADABLE = (
    KeyError, TypeError, ValueError, AttributeError, RecursionError, OSError, EOFError, OverflowError, NotImplementedError,
    BadZipFile, zlib.error,
)  # fmt: skip
"""The exceptions of reading a folder whose files were damaged or changed."""


@dataclass(frozen=True, eq=False, repr=False)
class Report(Contents):
    """A finished check. ``report["confounding"]`` is the Comparison of one fault. A printed report has one line for each fault.

    Two reports are equal if their files would have the same contents, except for `run`.

    Attributes:
        title: the heading of the page.
        job: the settings of the check (Job), as a dict that JSON can hold.
        comparisons: one Comparison for each fault.
        examples: name of a fault -> rows of its table of examples. The keys of a row are the columns; the values are str, float
            or bool.
        provenance: versions, device, dtype, threads, fingerprints, seed, and the command line as ``command`` (a string or a list
            of words).
        notes: sentences about the run ("The batch was halved after running out of memory.").
        warnings: sentences that a reader must see before any number.
        crashes: name of a fault -> traceback, for a fault whose examination crashed. The other findings are not affected.
        unfinished: faults that could not be examined because memory, disk space or another outside resource was missing.
        data: the data that were examined: ``splits``; ``attributes``; ``rows``, each with a class, the values of the attributes,
            and the number of examples in each split; ``more``, the number of rows that are left out; ``samples``, dicts of a
            text, its label and its attributes.
        shortcuts: the columns that the classifier relies on, from a search that runs if no confounder is named. None if there
            was no search.
        previous: the check that this one replaced in its folder: ``page``, and ``changes``, a dict for each fault of both checks
            with ``fault``, ``title``, ``then``, ``now``, ``paired`` and the ``difference`` of the severities. Empty if there was
            none.
        run: the times when the run ``began`` and ``ended`` (UTC, ISO 8601), its duration in ``seconds``, and its peak memory in
            bytes (``peak_bytes``; 0 if unknown). For a resumed run, those of the last part.

    The page also shows these keys of a finding's provenance, if they exist: ``title``, ``question``, ``paper`` (text in which an
    arXiv number becomes a link), ``departures`` (a sentence or a list of sentences).

    Raises:
        BadInput: a fault occurs twice; the name of a fault cannot be a file name; or a table of examples is for a fault that the
            report does not have, or has more than 200 rows.
    """

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Report):
            return NotImplemented
        own, others = (plain(_payload(r)) for r in (self, other))
        if own != others or plain(self.job) != plain(other.job):
            return False
        own, others = _samples(self), _samples(other)
        return own.keys() == others.keys() and all(_same(own[k], others[k]) for k in own)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __getitem__(self, fault: str) -> Comparison:
        """The comparison of `fault`. Raises BadInput where the report has none."""
        comparison_of = {c.before.fault: c for c in self.comparisons}
        if fault not in comparison_of:
            why = self.unexamined.get(fault, "")
            raise BadInput(
                f"The report has no fault '{fault}'.{did_you_mean(fault, comparison_of)} "
                + (why or (f"It has {listing(comparison_of)}." if comparison_of else "It has none."))
            )
        return comparison_of[fault]

    def __contains__(self, fault: object) -> bool:
        """Whether the report has a comparison of `fault`."""
        return any(c.before.fault == fault for c in self.comparisons)

    def __iter__(self) -> Iterator[str]:
        """The names of the faults that were examined."""
        return (c.before.fault for c in self.comparisons)

    def __repr__(self) -> str:
        lines = [f"Report: {self.title}"]
        for c in self.comparisons:
            severities = [words.interval(f) for f in (c.before, c.after) if f is not None]
            lines.append(f"  {c.before.fault}: {words.state_of(c)}, severity {' to '.join(severities)}")
        lines += [f"  {fault}: not examined" for fault in self.unexamined]
        return "\n".join(lines)

    def save(self, folder: str | Path, *, force: bool = False) -> Path:
        """Write the page and the findings to `folder`, completely or not at all. Returns the folder. `open` reads it.

        Repaired adapters are not included: ``trueup.check(..., save=FOLDER)`` writes them.

        Args:
            force: replace the folder if trueup wrote it.

        Raises:
            BadInput: `folder` is not empty and `force` is not given, or it cannot be written.
            Unavailable: the disk is full.
        """
        from trueup.report import html
        from trueup.store.atomic import new_folder, write_text

        # Adapters and the page of an earlier check are in the folder that a command wrote, not in this one.
        without_folder = replace(
            self, comparisons=tuple(replace(c, adapter=None) for c in self.comparisons), previous={}
        )
        with new_folder(folder, force=force) as new_dir:
            write(without_folder, new_dir)
            write_text(new_dir / "report.html", html.page(without_folder))
        return Path(folder)

    @staticmethod
    @checked
    def open(folder: str | Path) -> Report:
        """The report in a folder that `save`, `trueup.run_job` or a command wrote.

        Raises:
            BadInput: the folder holds no report, or a damaged one.
        """
        return read(folder)

    def to_frame(self) -> Any:
        """A pandas DataFrame with one row for the severity of each fault, for each of its measures, and for each side effect of
        its repair (kind ``harm``).

        Each row has the values before and after the repair with 95% intervals, and the paired difference; NaN if there is none.
        Columns: fault, state, kind (severity, measure or harm), key, title, unit, better, before, before_low, before_high, after,
        after_low, after_high, difference, difference_low, difference_high, p.
        """
        import pandas as pd

        def three(name: str, value: Any, low: Any, high: Any) -> dict[str, float]:
            return {name: value, f"{name}_low": low, f"{name}_high": high}

        def row(c: Comparison, kind: str, r: words.Row) -> dict[str, Any]:
            cells = {"fault": c.before.fault, "state": words.state_of(c), "kind": kind, "key": r.key, "title": r.title}
            cells |= {"unit": r.unit, "better": r.better}
            for name, m in (("before", r.before), ("after", r.after), ("difference", r.difference)):
                cells |= three(name, m.value, m.low, m.high) if m is not None else three(name, *[math.nan] * 3)
            return cells | {"p": r.difference.p if r.difference is not None else math.nan}

        def severity(c: Comparison) -> words.Row:
            def measure(f: Finding) -> Measure:
                return Measure(f.severity, f.low, f.high, f.unit, "lower", "severity")

            before, after = measure(c.before), None if c.after is None else measure(c.after)
            d = c.differences.get(words.HEADLINE)
            return words.Row(
                words.HEADLINE, "severity", before.unit, "lower", before, after, d, words.change(d, "lower")
            )

        rows = []
        for c in self.comparisons:
            rows.append(row(c, "severity", severity(c)))
            rows += [row(c, "measure", r) for r in words.rows(c)]
            rows += [row(c, "harm", r) for r in words.harm_rows(c)]
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        """A small card for a notebook, with the whole page behind a link.

        The page is in a sandboxed frame without the notebook's origin: its scripts run in the frame and cannot reach the notebook.
        The whole page is the value of one attribute, so the notebook reads none of it as markup.
        """
        from html import escape

        from trueup.report import html

        cells = []
        for c in self.comparisons:
            after = words.interval(c.after) if c.after is not None else "–"
            columns = (
                words.title_of(c.before),
                words.state_of(c),
                words.interval(c.before),
                after,
                words.number(c.before.threshold),
            )
            cells.append("".join(f"<td>{escape(t)}</td>" for t in columns))
        cells += [
            f'<td>{escape(f)}</td><td colspan="4">not examined: {escape(w)}</td>' for f, w in self.unexamined.items()
        ]
        heads = "".join(f"<th>{h}</th>" for h in ("fault", "state", "severity before", "after", "threshold"))
        card = f"<p><b>{escape(words.clean(self.title, 200))}</b></p>"
        card += "".join(f"<p>Warning: {escape(words.clean(w, 600))}</p>" for w in self.warnings)
        card += (
            f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(f'<tr>{c}</tr>' for c in cells)}</tbody></table>"
        )
        try:
            page = html.page(self)
        except BadInput as e:
            return f"{card}<p>{escape(str(e))}</p>"
        return (
            f'{card}<details><summary>Open the whole page</summary><iframe title="{escape(self.title)}" loading="lazy" '
            f'sandbox="allow-scripts" srcdoc="{escape(page)}" '
            'style="width: 100%; height: 720px; border: 0; resize: vertical; overflow: auto"></iframe></details>'
        )


def write(report: Report, folder: Path) -> None:
    """Write `report` into `folder`, an existing temporary folder, which `trueup.store.atomic.new_folder` renames when complete.

    Raises:
        BadInput: a per-example array holds Python objects, or its length differs from the others of its finding.
        OSError: the disk is full or the folder cannot be written.
    """
    from trueup.store.atomic import write_text

    folder = Path(folder)
    for (name, when), arrays in _samples(report).items():
        _write_arrays(folder / "samples" / f"{name}-{when}.npz", arrays, f"{name}, {when} the repair")
    write_text(folder / "findings.json", _dump(_payload(report)))
    write_text(folder / "job.json", _dump(report.job))
    for name, traceback in report.crashes.items():
        write_text(folder / crash_file(name), plain(traceback))
    if report.run:
        write_text(folder / RUN, _dump(dict(report.run)))


def crash_file(fault: str) -> str:
    """The file of the output folder that holds the traceback of a fault's crash."""
    return f"crash-{fault}.txt"


def read(folder: str | Path) -> Report:
    """The report that `write` wrote. The folder's manifest is checked first.

    Raises:
        BadInput: the folder is not an output of trueup, was written by a newer trueup, or is damaged.
    """
    from trueup.store.atomic import there, verify
    from trueup.store.inputs import near

    folder = Path(folder)
    if not there(folder):
        refusal = (
            f"'{folder}' is a file."
            if folder.is_file()
            else f"There is no folder '{folder}'.{near(folder, '*/findings.json')}"
        )
        raise BadInput(f"{refusal} Give the folder that `trueup check ... -o` wrote.")
    if not (folder / "findings.json").is_file():
        raise BadInput(
            f"'{folder}' is not an output of `trueup check`: it holds no findings.json. "
            f"{check_within(folder, 'Give the folder named with -o.')}"
        )
    verify(folder)
    try:
        data, job = _load(folder / "findings.json"), _load(folder / "job.json")
        version = data["format"]
        if isinstance(version, int) and version > FORMAT:
            raise BadInput(f"'{folder}' was written by a newer trueup (format {version}): upgrade trueup to read it.")
        if isinstance(version, int) and version < FORMAT:
            raise BadInput(
                f"'{folder}' was written by an older trueup (format {version}), whose findings hold other things. Run it again: "
                f"trueup rerun {folder} --force."
            )
        if version != FORMAT:
            raise ValueError(f"unknown format {version!r}")
        report = Report(
            title=_is(data["title"], str),
            job=_job(job),
            comparisons=tuple(_comparison(c, folder) for c in data["comparisons"]),
            examples={_is(k, str): [dict(r) for r in v] for k, v in data["examples"].items()},
            provenance=_is(data["provenance"], dict),
            notes=[_is(n, str) for n in data["notes"]],
            warnings=[_is(w, str) for w in data["warnings"]],
            crashes={
                n: plain_bytes(folder / crash_file(n)).decode("utf-8", "replace")
                for n in data["crashes"]
                if NAME.fullmatch(n)
            },
            unfinished=[n for n in data.get("unfinished", []) if NAME.fullmatch(n)],
            data=_is(data.get("data", {}), dict),
            shortcuts=leads.read(_is(found, dict)) if (found := data.get("shortcuts")) is not None else None,
            previous=_is(data.get("previous", {}), dict),
            run=_run(_load(folder / RUN)) if (folder / RUN).is_file() else {},
        )
    except TrueupError:
        raise
    except _UNREADABLE as error:
        raise _damaged(folder, error) from error
    return report


def _job(data: Any) -> dict[str, Any]:
    """The job, of which a report uses only the faults, so only these are checked; `trueup.job.read_job` checks all of it."""
    for fault in _is(_is(data, dict).get("faults") or [], list):
        _is(fault, str)
    return data


def _run(data: Any) -> dict[str, Any]:
    if _is(data, dict):
        _numbers(data["seconds"])
        _is(data["peak_bytes"], int)
        for key in ("began", "ended"):
            _is(data[key], str)
    return data


def _damaged(folder: Path, error: Exception) -> BadInput:
    reason = f"{type(error).__name__}: {error}"
    return BadInput(
        f"'{folder}' is damaged and cannot be read ({reason}). Run it again: trueup rerun {folder} --force."
    )


# ---- to JSON and back


def _payload(report: Report) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "title": report.title,
        "comparisons": [
            {
                "before": c.before.as_dict() | {"arrays": bool(c.before.samples)},
                "after": None if c.after is None else c.after.as_dict() | {"arrays": bool(c.after.samples)},
                "remedy": c.remedy,
                "differences": {k: asdict(d) for k, d in c.differences.items()},
                "harm": {k: asdict(d) for k, d in c.harm.items()},
                "adapter": c.adapter,
                "budget": c.budget,
                "alternatives": [asdict(a) for a in c.alternatives],
                "too_dear": c.too_dear,
                **({"methods": [asdict(m) for m in c.methods]} if c.methods else {}),
                "consequence": c.consequence,
                "usage": c.usage,
                "state": words.state_of(c),  # for readers of the file; it follows from the other keys
            }
            for c in report.comparisons
        ],
        "examples": {k: [dict(r) for r in v] for k, v in report.examples.items()},
        "provenance": dict(report.provenance),
        "notes": list(report.notes),
        "warnings": list(report.warnings),
        "crashes": list(report.crashes),
        "unfinished": list(report.unfinished),
        "data": dict(report.data),
        **({} if report.shortcuts is None else {"shortcuts": leads.in_check(report.shortcuts)}),
        "previous": dict(report.previous),
    }


def _dump(value: Any) -> str:
    """Strict JSON in the order of `value`: readers see measures and columns in this order."""
    return json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _load(path: Path) -> Any:
    return json.loads(plain_bytes(path), object_hook=untag)


def _comparison(data: Mapping[str, Any], folder: Path) -> Comparison:
    comparison = Comparison(
        before=_finding(data["before"], folder, "before"),
        after=None if data["after"] is None else _finding(data["after"], folder, "after"),
        remedy=_is(data["remedy"], str),
        differences={k: _difference(d) for k, d in data["differences"].items()},
        harm={k: _difference(d) for k, d in data["harm"].items()},
        adapter=data["adapter"] if data["adapter"] is None else _is(data["adapter"], str),
        budget=data["budget"],
        alternatives=tuple(_alternative(a) for a in data["alternatives"]),
        too_dear=_is(data["too_dear"], bool),
        methods=tuple(_method(m) for m in data.get("methods", ())),
        consequence=_is(data.get("consequence", ""), str),
        usage=_is(data.get("usage", ""), str),
    )
    _numbers(comparison.budget)
    return comparison


def _alternative(data: Mapping[str, Any]) -> Alternative:
    a = Alternative(**data)
    _numbers(a.gain, a.gain_low, a.gain_high, a.cost, a.cost_low, a.cost_high)
    for text in (a.key, a.title):
        _is(text, str)
    return a


def _method(data: Mapping[str, Any]) -> Method:
    m = Method(**data)
    _numbers(*m.values.values())
    for text in (m.key, m.title, m.source, m.setting):
        _is(text, str)
    pairs = {k: {key: _difference(d) for key, d in getattr(m, k).items()} for k in ("differences", "behind")}
    return replace(m, **pairs)


def _difference(data: Mapping[str, Any]) -> Difference:
    difference = Difference(**data)
    _numbers(difference.value, difference.low, difference.high, difference.p)
    return difference


def _finding(data: Mapping[str, Any], folder: Path, when: str) -> Finding:
    fields = {k: v for k, v in data.items() if k != "arrays"}
    name = _is(fields["fault"], str)
    if not NAME.fullmatch(name):  # it becomes a path below
        raise ValueError(f"{name!r} is no fault's name")
    arrays = _read_arrays(folder / "samples" / f"{name}-{when}.npz") if data["arrays"] else {}
    finding = Finding.from_dict(fields, arrays)
    _numbers(finding.severity, finding.low, finding.high, finding.threshold)
    for text in (finding.unit, finding.sentence):
        _is(text, str)
    _is(finding.provenance, dict)
    _is(finding.details, dict)
    for m in finding.measures.values():
        _measure(m)
    for chart in finding.charts:
        _chart(chart)
    return finding


def _measure(m: Measure) -> None:
    _numbers(m.value, m.low, m.high)
    if m.better not in ("higher", "lower", "zero"):
        raise ValueError(f"better is {m.better!r}")
    _is(m.title, str)
    _is(m.unit, str)


def _chart(chart: Chart) -> None:
    for text in (chart.key, chart.title, chart.x_title, chart.y_title, chart.reading, chart.value_title):
        _is(text, str)
    if chart.kind not in ("line", "bar", "heat"):
        raise ValueError(f"a chart is of kind {chart.kind!r}")
    words_alone = chart.here is None and chart.slider is None and not chart.log10
    for s in chart.series:
        _is(s.name, str)
        if len({isinstance(x, str) for x in s.x}) > 1:
            raise ValueError(f"the chart '{chart.key}' has words among the numbers of an axis")
        _numbers(
            *(y for y in s.y if y is not None or chart.kind != "heat"), *(s.cut or ())
        )  # a map's cell may be empty
        _numbers(
            *(v for v in (*(s.low or ()), *(s.high or ())) if v is not None),
            *(v for v in s.x if not words_alone or not isinstance(v, str)),
        )
        for column in (s.x, s.low, s.high, s.cut):
            if column is not None and len(column) != len(s.y):
                raise ValueError(f"the chart '{chart.key}' has columns of unequal length")
        if chart.kind == "heat" and list(s.x) != list(chart.series[0].x):
            raise ValueError(f"the rows of the chart '{chart.key}' have different columns")
    if chart.here is not None:
        _numbers(chart.here)
    if chart.slider is not None:
        _numbers(chart.slider.start, chart.slider.examples)
        for text in (chart.slider.label, chart.slider.column):
            _is(text, str)


def _is(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")
    return value


def _numbers(*values: Any) -> None:
    for v in values:
        if isinstance(v, bool) or not isinstance(v, int | float):
            raise TypeError(f"expected a number, got {type(v).__name__}")


# ---- arrays


def _samples(report: Report) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    pairs = [(c.before.fault, w, f) for c in report.comparisons for w, f in (("before", c.before), ("after", c.after))]
    return {(n, w): {k: np.asarray(v) for k, v in f.samples.items()} for n, w, f in pairs if f and f.samples}


def _same(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and a[k].tobytes() == b[k].tobytes() for k in a
    )


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray], whose: str) -> None:
    """Write an .npz that is the same byte for byte each time (numpy's own holds the time of day), and never a pickle."""
    if len({a.shape[:1] for a in arrays.values()}) > 1:
        lengths = {k: a.shape for k, a in arrays.items()}
        raise BadInput(f"The per-example arrays of {whose} differ in length: {lengths}. Give one row per example.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, array in arrays.items():
            if array.dtype.hasobject:
                raise BadInput(
                    f"The per-example array '{key}' of {whose} holds Python objects: make it numbers or text."
                )
            info = zipfile.ZipInfo(f"{key}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(info, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz. An array is refused where its header does not match the number of its bytes."""
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.file_size > _LARGEST:
                raise ValueError(f"'{info.filename}' says that it is {info.file_size:,} bytes long")
            with archive.open(info) as file:
                raw = io.BytesIO(file.read(_LARGEST))
            major, _ = np.lib.format.read_magic(raw)
            shape, _, dtype = (
                np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
            )(raw)
            if math.prod(shape) * dtype.itemsize != len(raw.getbuffer()) - raw.tell():
                raise ValueError(f"'{info.filename}' is not as long as its header says")
            raw.seek(0)
            arrays[info.filename.removesuffix(".npy")] = np.lib.format.read_array(raw, allow_pickle=False)
    return arrays


_LARGEST = 2**30
"""The largest array of a report in bytes: a value for each of 100 million examples."""
