"""What a scout and its rivals say of a column that was taken out of the data (`tools/scout_rivals`): the table of docs/scout.md."""

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
    """``lora``, an adapter of `MODEL`, and ``named.csv``, whose last column is the corpus' only attribute.

    Args:
        limit: of the rows, as in `trueup.read`; 0 for all.
    """
    with (folder / "named.csv").open(encoding="utf-8", newline="") as f:
        column = next(csv.reader(f))[-1]
    corpus = read(folder / "named.csv", attributes=(column,), split="split", limit=limit or None, seed=0)
    subject = load(MODEL, str(folder / "lora"))
    return subject, corpus.relabel(subject.classes)


def agreement(group: NDArray, true: NDArray) -> dict[str, float]:
    """Of two groups of the same texts: the share on which they agree, whatever they are called, and the adjusted Rand index."""
    own, other = (np.unique(x, return_inverse=True)[1] for x in (group, true))
    share = float(np.mean((own > 0) == (other > 0)))
    return {"share": max(share, 1 - share), "rand": float(adjusted_rand_score(own, other))}


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
