"""What a repair against a column that a scout found leaves of the lean on the true column: the second table of docs/scout.md.

The true column is planted in real text (`drawn`), or was taken out of the data. `tools/scout_repairs` writes the result.
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
"""Of positive texts, the share that has the plant; of negative texts the rest."""
NEAR = 0.75
"""Share of texts on which a column agrees with the true one from which it is taken for it."""
PLANTS = {
    "word": "a planted word in front of film reviews",
    "length": "long film reviews",
    "overlap": "a second text that repeats words of the first",
    "cluster": "tweets among reviews of products",
    "none": "control: the planted word goes with no label",
}


def drawn(plant: str, sizes: Mapping[str, int], seed: int = 0) -> tuple[Corpus, NDArray[np.bool_]]:
    """Real sentences of film reviews (of products and tweets for ``cluster``), and which of them have the plant. Label and plant
    go together; the plant ``none`` is a word that goes with no label.

    Args:
        plant: a key of `PLANTS`. sizes: texts in each split.
    """
    rng = np.random.default_rng(seed)
    if plant == "cluster":
        source = read("embedded:valence", attributes=("domain",), seed=0)
        source = source.take(np.isin(source.attributes["domain"], ("product", "tweet")))
        has = source.attributes["domain"] == "tweet"
    else:
        source = read("embedded:movie-reviews-short", seed=0)
        words = np.array([len(t.split()) for t in source.text])
        has = words > np.median(words) if plant == "length" else rng.random(len(source)) < 0.5
    label = (source.label == source.classes.index("positive")).astype(np.int64)
    rows, split = [], []
    left = {(y, z): rng.permutation(np.flatnonzero((label == y) & (has == z))).tolist() for y in (0, 1) for z in (0, 1)}
    for part, n in sizes.items():
        for i in range(n):
            y = i % 2
            rate = 0.5 if plant == "none" else RATE if y else 1 - RATE
            rows.append(left[y, int(rng.random() < rate)].pop())
            split.append(part)
    texts: list[str] = [source.text[i] for i in rows]  # type: ignore[misc]
    there = has[rows]
    if plant in ("word", "none"):
        texts = [f"{WORD} {t}" if z else t for t, z in zip(texts, there, strict=True)]
    second = _seconds(texts, label[rows], there, rng) if plant == "overlap" else None
    return Corpus(
        texts, label[rows], ("negative", "positive"), np.array(split), second=second, name=f"planted {plant}"
    ), there


def _seconds(
    texts: Sequence[str], label: NDArray, there: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[str, ...]:
    """To each text a second one: two thirds of its own words in their order, or of those of another text of its class."""
    found = []
    for i, text in enumerate(texts):
        same = np.flatnonzero(label == label[i])
        words = (text if there[i] else texts[int(rng.choice(same[same != i]))]).split()
        kept = sorted(rng.permutation(len(words))[: max(2 * len(words) // 3, 1)].tolist())
        found.append(" ".join(words[k] for k in kept))
    return tuple(found)


def shares(found: Scouted, corpus: Corpus, true: NDArray) -> list[float]:
    """Of each named column, the share of test texts on which it agrees with the true one of two groups."""
    test = corpus.split == "test"
    part = corpus.take(test)
    return [agreement(cue.of(part), true[test])["share"] for cue in found.columns]


def reach(
    subject: Subject, corpus: Corpus, true: NDArray, found: Scouted, folder: Path, *, seed: int = 0
) -> dict[str, Any]:
    """Repair against the named column that agrees best with the true one, and against the true one, both without a budget; what
    each leaves of the lean on the true column, on test texts.

    Args:
        true: (n,) the true column's groups. folder: where the repaired adapters are kept.

    Returns:
        As a dictionary: the column (``name``, ``rank``, ``share``), ``as it is``, ``scouted`` and ``true`` (lean with its interval
        and accuracy; empty where no repair was saved), ``paired``: the lean that the first leaves less what the second leaves. Of a
        scout that names no column near the true one ``as it is`` alone.
    """
    fault = Confounding(max_cost=1.0)
    truth = replace(corpus, attributes={"hidden": true}, others={})
    test = truth.part("test")

    def measured(of: Subject) -> tuple[Finding, dict[str, float]]:
        finding = audit(of, truth, [fault], seed=seed)["confounding"].before
        accuracy = float((predict(of, test).predicted == test.label).mean())
        return finding, {"lean": finding.severity, "low": finding.low, "high": finding.high, "accuracy": accuracy}

    result: dict[str, Any] = {"as it is": measured(subject)[1]}
    near = shares(found, corpus, true)
    if max(near, default=0.0) < NEAR:
        return result
    best = int(np.argmax(near))
    result |= {"name": found.leads[best].name, "rank": best + 1, "share": near[best]}
    columns = {
        "scouted": replace(corpus, attributes={found.leads[best].name: found.columns[best].of(corpus)}, others={}),
        "true": truth,
    }
    left: list[Finding] = []
    for key, own in columns.items():
        check(subject, own, [fault], seed=seed, save=folder / key)
        adapter = folder / key / "confounding"
        if not adapter.is_dir():
            result[key] = {}
            continue
        finding, result[key] = measured(load(subject.source.base, str(adapter)))
        left.append(finding)
    if len(left) == 2:
        of = fault.compare(left[1], left[0], seed=seed)["severity"]
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
