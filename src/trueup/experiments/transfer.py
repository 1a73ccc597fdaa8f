"""Whether pruning copying units that were found on one in-context task helps other tasks: accuracy and wrong copies.

arXiv 2410.01288 claims that pruning units found on a synthetic task improves a diverse set of tasks. Here units are found on a few
tasks as a repair finds them (`contest`): by integrated gradients on prompts of the task's pool, and chosen on
its calibration queries. Queries of other tasks are not used, except for the three tasks in which copying is right, whose
calibration queries every repair uses. Then the queries of every task are answered by the unchanged model, with these units scaled,
and with as many random units of the same layers scaled.

The result keeps the units and the answer to each query, so that its table can be made again without the model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trueup.corpus import tasks
from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput, Unsupported
from trueup.experiments import resumed
from trueup.faults.copying import Copying
from trueup.faults.copying.attribution import OWN, attributed
from trueup.faults.copying.audit import asked, mean, some
from trueup.faults.copying.candidates import Scales, random_like
from trueup.faults.copying.contest import contest
from trueup.measure import bootstrap
from trueup.measure.bootstrap import Estimate
from trueup.measure.seeds import over_seeds
from trueup.run.edit import scaled
from trueup.run.prompts import with_pool
from trueup.subject.load import load
from trueup.subject.subject import Subject

SOURCES = ("noun-vowels", "count-objects", "first-of-list")
"""Tasks on which units are found: the paper's proxy, the other counting task, and the task in which SmolLM2 copies most."""
MEASURES = {"accuracy": "accuracy", "copies": "wrong copies above chance"}
RANDOM = "random units"
NEAREST = "; no choice of units lowers copies there without losing accuracy, and these come nearest to chance"
RESAMPLES, GLANCE = 2000, 200
"""Resamples of the bootstrap of the result; resamples for the intervals of the candidates of a choice, which are not used here."""


@dataclass(frozen=True)
class Settings:
    """Knobs of the bench.

    Attributes:
        model: a causal model, by hub id, folder or ``embedded:NAME``. sources: tasks on which units are found.
        shots: number of demonstrations. queries: the most queries of each task.
    """

    model: str = "embedded:smollm2"
    sources: tuple[str, ...] = SOURCES
    shots: int = 4
    queries: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.sources:
            tasks.find(name)
        if not self.sources:
            raise BadInput("Units are found on no task; give one or more sources.")


Asked = Mapping[str, np.ndarray]
"""For each query of a task: ``right``, ``copied``, and ``expected`` copies by chance, (n,); ``cluster`` (n,)."""
COLUMNS = ("right", "copied", "expected", "cluster")
KINDS = ("units", "random")
"""The units that are scaled: those found, and as many drawn at random from the same layers."""


def run(
    out: str | Path, settings: Settings, *, force: bool = False, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Answer every task with and without each source's units, and write `out`/transfer.json and `out`/transfer.md. Returns the
    contents of transfer.json.

    Each choice of units and each task's answers are kept for a run that is killed and started again (`resumed.run`).

    Raises:
        BadInput: `out` is there already and `force` is not given. Unsupported: in no layer do the attributions of units add up.
    """
    import trueup.faults.copying
    import trueup.run

    def make(parts: resumed.Parts) -> dict[str, Any]:
        subject = load(settings.model, shots=settings.shots)
        what = settings.model, settings.shots, settings.seed

        def once(key: Sequence[str], of: Callable[[], Any]) -> Any:
            return resumed.once(parts.file("transfer", what, *key), of, say)

        chosen = {}
        for source in settings.sources:
            chosen[source] = once(("units", source), lambda s=source: _found(subject, s, settings.seed))
            say(f"units found on {source}: {chosen[source]['title']}")
        rows = []
        for task in tasks.TASKS:
            queries = queries_of(task, settings)
            able = with_pool(subject, tasks.load(task, seed=settings.seed).part("train"))
            plain = once(("plain", queries.fingerprint), lambda a=able, q=queries: _asked(a, q, settings.seed))
            with_units: dict[str, Any] = {}
            for source, units in chosen.items():
                for kind in KINDS:
                    scales = _scales(units[kind])

                    def ask(a: Subject = able, q: Corpus = queries, s: Scales = scales) -> dict[str, Any]:
                        with scaled(a, s):
                            return _asked(a, q, settings.seed)

                    with_units.setdefault(source, {})[kind] = once((kind, source, queries.fingerprint), ask)
            row = {"task": task, "queries": len(queries), "plain": plain, "with": with_units}
            rows.append(row)
            say(_line(judged(row), list(chosen)))
        return {"settings": asdict(settings), "units": chosen, "rows": rows}

    code = resumed.code_of(trueup.faults.copying, trueup.run, sys.modules[__name__])
    return resumed.run(out, "transfer", code, make, table, force=force)


def queries_of(task: str, settings: Settings) -> Corpus:
    """Queries of a task that no choice has used: those of ``test``, and also of ``calibration`` where it was not used."""
    data = tasks.load(task, seed=settings.seed)
    used_for_choice = task in settings.sources or tasks.find(task).copying_is_right
    return some(
        data.take(np.isin(data.split, ("test",) if used_for_choice else ("calibration", "test"))),
        settings.queries,
        settings.seed,
    )


def _found(subject: Subject, source: str, seed: int) -> dict[str, Any]:
    """The units that are found on `source`, and as many drawn at random from the same layers."""
    data = tasks.load(source, seed=seed)
    with_demonstrations = with_pool(subject, data.part("train"))
    attributions = attributed(with_demonstrations, data.part("train"), seed, OWN)
    calibration = data.part("calibration")
    choice = contest(
        with_demonstrations, calibration, [attributions], None, seed=seed, resamples=GLANCE, max_cost=Copying().max_cost
    )
    if choice is None:
        raise Unsupported(
            f"In no layer do the attributions of units on '{source}' add up, so none can be told to copy."
        )
    best = choice.units.best or choice.units.nearest
    (random,) = random_like([best], seed)
    return {
        "title": best.title, "count": best.units, "able": choice.units.best is not None,
        "units": _kept(best.scales), "random": _kept(random.scales),
    }  # fmt: skip


def _kept(scales: Scales) -> dict[str, Any]:
    """As JSON: for each layer the number of its units, and the factors of those that are scaled."""
    return {
        str(layer): {"of": len(factors), "factors": {str(i): f for i, f in enumerate(factors.tolist()) if f != 1}}
        for layer, factors in scales.items()
    }


def _scales(kept: Mapping[str, Mapping[str, Any]]) -> Scales:
    """The inverse of `_kept`."""
    import torch

    scales = {int(layer): torch.ones(stored["of"]) for layer, stored in kept.items()}
    for layer, stored in kept.items():
        for unit, factor in stored["factors"].items():
            scales[int(layer)][int(unit)] = factor
    return scales


def _asked(subject: Subject, queries: Corpus, seed: int) -> dict[str, str]:
    """`Asked` for JSON: the numbers of each column in one string."""
    queries = queries.relabel(subject.classes)
    asked_queries = asked(subject, queries, "free", seed)
    possible = asked_queries.draws.possible
    values = asked_queries.scored(queries.label) | {"cluster": queries.cluster}
    return {k: " ".join(f"{v:.6g}" for v in values[k][possible].astype(float)) for k in COLUMNS}


def _read(kept: Mapping[str, str]) -> Asked:
    return {k: np.array(line.split(), float) for k, line in kept.items()}


def judged(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the result for its table: ``accuracy`` and ``copies`` of the unchanged model, and ``changes`` by the units of each
    source (`apart`)."""
    plain = _read(row["plain"])
    changes = {
        s: {k: apart(plain, _read(answers_of_kind[k])) for k in KINDS} for s, answers_of_kind in row["with"].items()
    }
    return {
        "task": row["task"], "queries": row["queries"], "accuracy": mean(plain["right"]),
        "copies": mean(plain["copied"] - plain["expected"]), "changes": changes,
    }  # fmt: skip


def apart(before: Asked, after: Asked, seed: int = 0) -> dict[str, list[float]]:
    """The measures (`MEASURES`) after minus before, over the same queries: value, and the ends of the paired 95% interval."""
    statistics = {
        "accuracy": bootstrap.Share(lambda right, copied, expected: right),
        "copies": bootstrap.Share(
            lambda right, copied, expected: copied, less=lambda right, copied, expected: expected
        ),
    }
    values_before, values_after = ([x[k] for k in COLUMNS[:3]] for x in (before, after))
    differences = bootstrap.paired_many(
        statistics, values_before, values_after, seed, RESAMPLES, cluster=before["cluster"]
    )
    return {key: [d.value, d.low, d.high] for key, d in differences.items()}


def elsewhere(rows: Sequence[Mapping[str, Any]], source: str, kind: str, measure: str) -> Estimate:
    """The mean change over all tasks except the source, with an interval for further tasks (Student's t over the tasks).

    rows: results of `judged`.
    """
    return over_seeds([tuple(r["changes"][source][kind][measure]) for r in rows if r["task"] != source], 0.0)  # type: ignore[misc]


def _line(row: Mapping[str, Any], sources: Sequence[str]) -> str:
    changes = "; ".join(f"units of {s}: accuracy {_told(row['changes'][s]['units']['accuracy'])}" for s in sources)
    return f"{row['task']}: accuracy {row['accuracy']:.1%}. {changes}"


def table(result: Mapping[str, Any]) -> str:
    """Markdown: for each measure a line for each task, and a column for each task on which units were found."""
    rows, sources = [judged(r) for r in result["rows"]], result["settings"]["sources"]
    units, parts = {s: result["units"][s] for s in sources}, []
    for key, title in MEASURES.items():
        heads = ["task", "queries", f"{title}, as it is", *(f"units found on {s}" for s in sources)]
        body = []
        for row in rows:
            cells = [
                f"{'*' * (row['task'] == s)}{_told(row['changes'][s]['units'][key])}{'*' * (row['task'] == s)}"
                for s in sources
            ]
            body.append([row["task"], str(row["queries"]), f"{row[key]:.1%}", *cells])
        means_of_others = {k: [elsewhere(rows, s, k, key) for s in sources] for k in KINDS} if len(rows) > 2 else {}
        for kind, estimates in means_of_others.items():
            name = "**mean of the other tasks**" if kind == "units" else f"the same, {RANDOM}"
            body.append([name, "", "", *(_told((e.value, e.low, e.high)) for e in estimates)])
        lines = [heads, ["---"] * len(heads), *body]
        parts.append(f"Change of {title}, in points:\n\n" + "\n".join(f"| {' | '.join(c)} |" for c in lines))
    units_text = "; ".join(
        f"on {s} {u['title']} ({u['count']} units{'' if u['able'] else NEAREST})" for s, u in units.items()
    )
    beyond = [
        sum(r["changes"][s]["units"]["accuracy"][i] * sign > 0 for r in rows for s in sources if r["task"] != s)
        for i, sign in ((1, 1), (2, -1))
    ]
    count = sum(r["task"] != s for r in rows for s in sources)
    parts.append(
        f"Units chosen: {units_text}. *Italics*: the task on which they were found. Of {count} changes of accuracy in other tasks "
        f"{beyond[0]} intervals lie above 0 and {beyond[1]} below. About {0.025 * count:.0f} of each is expected by chance."
    )
    return "\n\n".join(parts) + "\n"


def _told(of: Sequence[float]) -> str:
    value, low, high = (100 * x for x in of)
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
