"""Results of a scout and of other tools for a column that was removed from the data (`tools/scout_rivals`): the table of
docs/scout.md."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from trueup.corpus.corpus import Corpus
from trueup.corpus.read import read
from trueup.subject.load import load
from trueup.subject.subject import Subject

MODEL = "embedded:minilm"


def hidden(folder: Path, limit: int) -> tuple[Subject, Corpus]:
    """The subject with the adapter ``lora`` of `MODEL`, and the corpus ``named.csv``, with its last column as only attribute.

    Args:
        limit: the most rows, as in `trueup.read`; 0 for all.
    """
    with (folder / "named.csv").open(encoding="utf-8", newline="") as f:
        column = next(csv.reader(f))[-1]
    corpus = read(folder / "named.csv", attributes=(column,), split="split", limit=limit or None, seed=0)
    subject = load(MODEL, str(folder / "lora"))
    return subject, corpus.relabel(subject.classes)


def agreement(group: NDArray, true: NDArray) -> dict[str, float]:
    """Agreement of two groupings of the same texts: the share on which they agree, up to names, and the adjusted Rand index."""
    group_index, true_index = (np.unique(x, return_inverse=True)[1] for x in (group, true))
    share = float(np.mean((group_index > 0) == (true_index > 0)))
    return {"share": max(share, 1 - share), "rand": float(adjusted_rand_score(group_index, true_index))}


def table(result: Mapping[str, Any]) -> str:
    """A line for each data set: the first column of each tool, and how often it agrees with the hidden column on test texts."""
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
    nearest_column = row.get("nearest")
    return (
        "names none"
        if nearest_column is None
        else f"no. {nearest_column['rank']} of {row['named']}: {_agrees(nearest_column)}"
    )


def _group(row: Mapping[str, Any]) -> str:
    worst_group = row["datalab"]
    if "failed" in worst_group:
        return f"failed: {worst_group['failed']}"
    return f"{worst_group['flagged']:,} texts, {_agrees(worst_group)}" if worst_group["flagged"] else "flags none"


def _probe(row: Mapping[str, Any]) -> str:
    probe = row.get("probe")
    return "too few errors" if probe is None else f"{_agrees(probe)}, ROC-AUC {probe['auc']:.2f}"
