"""The lean on the true column that is left after a repair against a column from a scout: the second table of docs/scout.md.

The true column is planted in real text (`drawn`), or was removed from the data. `tools/scout_repairs` writes the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trueup.corpus.corpus import Corpus
from trueup.corpus.read import read
from trueup.experiments.scout import agreement
from trueup.faults.confounding import Confounding
from trueup.faults.confounding.leads import Scouted
from trueup.faults.fault import Finding
from trueup.run.predict import predict
from trueup.story import audit, check
from trueup.subject.load import load
from trueup.subject.subject import Subject

WORD = "seriously"
RATE = 0.85
"""The share of positive texts that have the plant. It is 1 - `RATE` of negative texts."""
NEAR = 0.75
"""A column counts as the true one if it agrees with it on this share of texts or more."""
PLANTS = {
    "word": "a planted word in front of film reviews",
    "length": "long film reviews",
    "overlap": "a second text that repeats words of the first",
    "cluster": "tweets among reviews of products",
    "none": "control: the planted word goes with no label",
}


def drawn(plant: str, sizes: Mapping[str, int], seed: int = 0) -> tuple[Corpus, NDArray[np.bool_]]:
    """Real sentences of film reviews (product reviews and tweets for ``cluster``), and (n,) bool: which of them have the plant.

    Label and plant are coupled. The plant ``none`` is a word that is independent of the label.

    Args:
        plant: a key of `PLANTS`. sizes: split -> number of texts.
    """
    rng = np.random.default_rng(seed)
    if plant == "cluster":
        source = read("embedded:valence", attributes=("domain",), seed=0)
        source = source.take(np.isin(source.attributes["domain"], ("product", "tweet")))
        has_plant = source.attributes["domain"] == "tweet"
    else:
        source = read("embedded:movie-reviews-short", seed=0)
        words = np.array([len(t.split()) for t in source.text])
        has_plant = words > np.median(words) if plant == "length" else rng.random(len(source)) < 0.5
    label = (source.label == source.classes.index("positive")).astype(np.int64)
    rows, split = [], []
    rows_left = {
        (y, z): rng.permutation(np.flatnonzero((label == y) & (has_plant == z))).tolist()
        for y in (0, 1)
        for z in (0, 1)
    }
    for part, n in sizes.items():
        for i in range(n):
            y = i % 2
            rate = 0.5 if plant == "none" else RATE if y else 1 - RATE
            rows.append(rows_left[y, int(rng.random() < rate)].pop())
            split.append(part)
    texts: list[str] = [source.text[i] for i in rows]  # type: ignore[misc]
    plant_present = has_plant[rows]
    if plant in ("word", "none"):
        texts = [f"{WORD} {t}" if z else t for t, z in zip(texts, plant_present, strict=True)]
    second = _seconds(texts, label[rows], plant_present, rng) if plant == "overlap" else None
    return Corpus(
        texts, label[rows], ("negative", "positive"), np.array(split), second=second, name=f"planted {plant}"
    ), plant_present


def _seconds(
    texts: Sequence[str], label: NDArray, there: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[str, ...]:
    """A second text for each text: two thirds of its own words in order, or of the words of another text of its class."""
    second_texts = []
    for i, text in enumerate(texts):
        same_class = np.flatnonzero(label == label[i])
        words = (text if there[i] else texts[int(rng.choice(same_class[same_class != i]))]).split()
        word_indices = sorted(rng.permutation(len(words))[: max(2 * len(words) // 3, 1)].tolist())
        second_texts.append(" ".join(words[k] for k in word_indices))
    return tuple(second_texts)


def shares(found: Scouted, corpus: Corpus, true: NDArray) -> list[float]:
    """For each named column, the share of test texts on which it agrees with the true column, which has two groups."""
    test = corpus.split == "test"
    part = corpus.take(test)
    return [agreement(cue.of(part), true[test])["share"] for cue in found.columns]


def reach(
    subject: Subject, corpus: Corpus, true: NDArray, found: Scouted, folder: Path, *, seed: int = 0
) -> dict[str, Any]:
    """Repair against the named column that agrees best with the true one, and against the true one, both without a budget.

    Measures the lean on the true column that each repair leaves, on test texts.

    Args:
        true: (n,) the groups of the true column. folder: the folder for the repaired adapters.

    Returns:
        A dictionary: the column (``name``, ``rank``, ``share``), ``as it is``, ``scouted`` and ``true`` (lean with its interval,
        and accuracy; empty where no repair was saved), ``paired``: the lean after the first repair minus the lean after the second.
        If the scout names no column near the true one, only ``as it is``.
    """
    fault = Confounding(max_cost=1.0)
    true_corpus = replace(corpus, attributes={"hidden": true}, others={})
    test = true_corpus.part("test")

    def measured(of: Subject) -> tuple[Finding, dict[str, float]]:
        finding = audit(of, true_corpus, [fault], seed=seed)["confounding"].before
        accuracy = float((predict(of, test).predicted == test.label).mean())
        return finding, {"lean": finding.severity, "low": finding.low, "high": finding.high, "accuracy": accuracy}

    result: dict[str, Any] = {"as it is": measured(subject)[1]}
    agreements = shares(found, corpus, true)
    if max(agreements, default=0.0) < NEAR:
        return result
    best_index = int(np.argmax(agreements))
    result |= {"name": found.leads[best_index].name, "rank": best_index + 1, "share": agreements[best_index]}
    columns = {
        "scouted": replace(
            corpus, attributes={found.leads[best_index].name: found.columns[best_index].of(corpus)}, others={}
        ),
        "true": true_corpus,
    }
    findings_left: list[Finding] = []
    for key, corpus_of_column in columns.items():
        check(subject, corpus_of_column, [fault], seed=seed, save=folder / key)
        adapter = folder / key / "confounding"
        if not adapter.is_dir():
            result[key] = {}
            continue
        finding, result[key] = measured(load(subject.source.base, str(adapter)))
        findings_left.append(finding)
    if len(findings_left) == 2:
        of = fault.compare(findings_left[1], findings_left[0], seed=seed)["severity"]
        result["paired"] = {"lean": of.value, "low": of.low, "high": of.high}
    return result


def table(result: Mapping[str, Any]) -> str:
    """A line for each data set."""
    lines = [
        "| what goes with the label (texts that search + judge) | lean on it | the scout's nearest column | left by the repair "
        "against that column | left by the repair against the true one | difference, paired |",
        "|---" * 6 + "|",
    ]
    for row in result["rows"]:
        cells = [
            f"{row['data']} ({row['calibration']:,} + {row['test']:,})", _lean(row["as it is"]), _column(row),
            _left(row, "scouted"), _left(row, "true"), _lean(row["paired"], "+.3f") if "paired" in row else "",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _lean(of: Mapping[str, float], how: str = ".3f") -> str:
    return f"{of['lean']:{how}} [{of['low']:{how}}, {of['high']:{how}}]"


def _left(row: Mapping[str, Any], key: str) -> str:
    if key not in row:
        return ""
    if not row[key]:
        return "no repair was saved"
    points = 100 * (row[key]["accuracy"] - row["as it is"]["accuracy"])
    return f"{_lean(row[key])}, accuracy {points:+.1f} points"


def _column(row: Mapping[str, Any]) -> str:
    if "name" not in row:
        return f"none of the {row['named_columns']} that it names" if row["named_columns"] else "names none"
    name = row["name"].replace("|", "/")
    return f"no. {row['rank']} of {row['named_columns']}, {name}: {row['share']:.0%}"
