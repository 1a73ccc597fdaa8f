"""The results of a sweep's cells as rows, one for each cell, fault and measure, and their change since an earlier run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trueup.changes import compare
from trueup.errors import BadInput, TrueupError
from trueup.faults.fault import Comparison, Difference
from trueup.report import bundle
from trueup.report.bundle import Report
from trueup.store import atomic
from trueup.sweeps import cell as cells
from trueup.sweeps.plan import Cell

CHANGE = "change.json"
WORK = ("seconds", "cpu_seconds", "peak_bytes", "host")
"""Columns that describe the run and not its results: all other columns are the same on every machine."""

COLUMNS: dict[str, str] = {
    "cell": "string", "model": "string", "adapter": "string", "data": "string", "seed": "int64", "settings": "string",
    "state": "string", "error": "string", "fault": "string", "kind": "string", "measure": "string", "title": "string",
    "unit": "string", "better": "string", "verdict": "string", "outcome": "string", "threshold": "float64", "needed": "int64",
    "value": "float64", "low": "float64", "high": "float64",
    "after": "float64", "after_low": "float64", "after_high": "float64",
    "difference": "float64", "difference_low": "float64", "difference_high": "float64", "p": "float64",
    "method": "string", "source": "string", "setting": "string", "chosen": "bool", "control": "bool",
    "behind": "float64", "behind_low": "float64", "behind_high": "float64",
    "change": "float64", "change_low": "float64", "change_high": "float64", "change_paired": "bool",
    "model_fingerprint": "string", "data_fingerprint": "string", "trueup": "string", "versions": "string",
    "seconds": "float64", "cpu_seconds": "float64", "peak_bytes": "int64", "host": "string",
}  # fmt: skip
"""Name and type of each column of ``results.parquet``.

For a cell that tunes an adapter, `adapter` is in the folder of the sweep. `kind` is ``severity`` (the headline), ``measure``,
``harm`` (only a difference), ``method`` or ``training``; a cell that failed has one row without a fault. `value` is of the first
audit, `after` of the second, and `difference` is the paired difference of the two. For a method (the step ``methods``) `value` is
the measure of the unchanged model, `after` is the measure under the method, and `behind` is `after` minus the same measure under
the method that trueup's rule chooses. `change` is `value` minus that of the same cell in an earlier run, paired where both judged
the same texts.
"""


def rows(
    cell: Cell, record: cells.Record, report: Report | None, change: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """The rows of one cell."""
    provenance = report.provenance if report is not None else {}
    base = dict.fromkeys(COLUMNS) | {
        "cell": cell.name, "model": cell.settings["model"], "data": cell.settings["data"],
        "adapter": f"{cells.CELLS}/{cell.name}/{cells.ADAPTER}" if cell.tuned else cell.settings.get("adapter"),
        "seed": provenance.get("seed", cell.settings.get("seed")),
        "settings": json.dumps(dict(cell.settings), sort_keys=True), "state": record.state, "error": record.error,
        "model_fingerprint": provenance.get("model fingerprint"), "data_fingerprint": provenance.get("data fingerprint"),
        "trueup": record.version, "versions": json.dumps(dict(record.versions), sort_keys=True),
        "seconds": record.seconds, "cpu_seconds": record.cpu_seconds, "peak_bytes": record.peak_bytes, "host": record.host,
    }  # fmt: skip
    table_rows = [
        {
            "kind": "training",
            "measure": k,
            "title": k.replace("_", " "),
            "unit": "share of examples",
            "better": "higher",
            "value": v,
        }
        for k, v in record.tuned.items()
    ]
    for c in report.comparisons if report is not None else ():
        table_rows += _of_fault(c, change.get(c.before.fault))
    for row in table_rows or [{}]:
        yield base | row


def _of_fault(c: Comparison, change: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    before, after = c.before, c.after
    shared = {
        "fault": before.fault, "verdict": before.verdict, "outcome": c.outcome, "threshold": before.threshold,
        "needed": before.needed,
    }  # fmt: skip
    fault_rows = [
        shared | {"kind": "severity", "measure": "severity", "title": "severity", "unit": before.unit, "better": "lower",
                  "value": before.severity, "low": before.low, "high": before.high}
        | _after(after and (after.severity, after.low, after.high)) | _difference(c.differences.get("severity"))
        | ({"change": change["value"]} | {f"change_{k}": change[k] for k in ("low", "high", "paired")} if change else {})
    ]  # fmt: skip
    for key, m in before.measures.items():
        later = after.measures.get(key) if after else None
        fault_rows.append(
            shared | {"kind": "measure", "measure": key, "title": m.title, "unit": m.unit, "better": m.better, "value": m.value,
                      "low": m.low, "high": m.high}
            | _after(later and (later.value, later.low, later.high)) | _difference(c.differences.get(key))
        )  # fmt: skip
    for m in c.methods:
        for key, value in m.values.items():
            b, d = m.behind.get(key), m.differences.get(key)
            headline_row = next(
                (r for r in fault_rows if r["measure"] == key and r["kind"] in ("severity", "measure")), {}
            )
            fault_rows.append(
                shared | {k: headline_row.get(k) for k in ("title", "unit", "better")}
                | {"kind": "method", "measure": key, "method": m.key, "title": m.title, "source": m.source, "setting": m.setting,
                   "chosen": m.chosen, "control": m.control, "value": None if d is None else value - d.value, "after": value}
                | _difference(d) | ({} if b is None else {"behind": b.value, "behind_low": b.low, "behind_high": b.high})
            )  # fmt: skip
    for key, d in c.harm.items():
        fault_rows.append(shared | {"kind": "harm", "measure": key, "title": c.title(key)} | _difference(d))
    return fault_rows


def _after(three: Any) -> dict[str, float]:
    return dict(zip(("after", "after_low", "after_high"), three, strict=True)) if three else {}


def _difference(d: Difference | None) -> dict[str, float]:
    return {} if d is None else {"difference": d.value, "difference_low": d.low, "difference_high": d.high, "p": d.p}


def change_of(out: Path, name: str, earlier: Path) -> dict[str, Any]:
    """The change of a cell since `earlier`, the folder of the same cell in another run: fault -> value, low, high, paired.

    The value is the severity now minus the severity then, from `trueup.compare`. The result is stored in the folder of the cell.
    """
    folder = out / cells.CELLS / name
    try:
        digest = hashlib.sha256(
            b"".join((f / cells.REPORT / atomic.MANIFEST).read_bytes() for f in (folder, earlier))
        ).hexdigest()
    except OSError:  # one of them has no report
        return {}
    file = folder / CHANGE
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        if stored["against"] == digest:
            return stored["faults"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    if _asked(earlier) != _asked(folder):  # another job of the same name
        return {}
    try:
        report, earlier_report = (bundle.read(f / cells.REPORT) for f in (folder, earlier))
    except TrueupError:  # an older format or a damaged report cannot be compared
        return {}
    try:
        changes = compare(earlier_report, report)
    except BadInput:  # no fault in common
        changes = []
    found = {}
    for c in changes:
        d = c.differences["severity"]
        found[c.after.fault] = {"value": d.value, "low": d.low, "high": d.high, "paired": c.paired}
    atomic.write_json(file, {"against": digest, "faults": found})
    return found


def _asked(folder: Path) -> Any:
    """The settings of a cell without model, adapter and data: cells that differ only in these are compared."""
    record = cells.read(folder.parent.parent, folder.name, folder.parent.name)
    settings = {} if record is None else record.asked.get("settings", {})
    return {k: v for k, v in settings.items() if k not in ("model", "adapter", "data", "revision")}


def write(rows_: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Write ``results.parquet`` completely or not at all. Equal rows give equal bytes."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(k, getattr(pa, {"bool": "bool_"}.get(t, t))()) for k, t in COLUMNS.items()])
    table = pa.table({k: pa.array([r[k] for r in rows_], schema.field(k).type) for k in COLUMNS}, schema=schema)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    atomic.write_bytes(file, buffer.getvalue())


def read(file: Path) -> list[dict[str, Any]]:
    """The rows of a file that `write` wrote.

    Raises:
        BadInput: there is no such file, or it is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(file).to_pylist()
    except FileNotFoundError:
        raise BadInput(f"There is no result file '{file}'. `trueup sweep` writes one into its folder.") from None
    except (OSError, pa.ArrowInvalid) as e:
        raise BadInput(f"'{file}' cannot be read as a result file ({e}). Write it again with `trueup sweep`.") from e
