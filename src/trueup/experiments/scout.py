"""What a scout and its rivals say of a column that was taken out of the data (`tools/scout_rivals`): the table of docs/scout.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def table(result: Mapping[str, Any]) -> str:
    """A line for each data set: what the first column of each is, and how often it agrees with the hidden one on test texts."""
    lines = [
        "| data, hidden column | `trueup scout`, its first | nearest of those it names | cleanlab's spurious score, its first | "
        "cleanlab's worst group | probe on errors |",
        "|---" * 6 + "|",
    ]
    for row in result["rows"]:
        cells = [
            f"{row['data']}, {row['hidden']} ({row['calibration']:,} + {row['test']:,} texts)",
            _column(row.get("scout")), _near(row), _column(row.get("cleanlab")), _group(row), _probe(row),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _agrees(of: Mapping[str, Any]) -> str:
    return f"{of['share']:.0%} (Rand {of['rand']:.2f})"


def _column(of: Mapping[str, Any] | None) -> str:
    return "names none" if of is None else f"{of['name'].replace('|', '/')}: {_agrees(of)}"


def _near(row: Mapping[str, Any]) -> str:
    of = row.get("nearest")
    return "names none" if of is None else f"no. {of['rank']} of {row['named']}: {_agrees(of)}"


def _group(row: Mapping[str, Any]) -> str:
    of = row["datalab"]
    if "failed" in of:
        return f"failed: {of['failed']}"
    return f"{of['flagged']:,} texts, {_agrees(of)}" if of["flagged"] else "flags none"


def _probe(row: Mapping[str, Any]) -> str:
    of = row.get("probe")
    return "too few errors" if of is None else f"{_agrees(of)}, ROC-AUC {of['auc']:.2f}"
