"""Accuracy against the number of trained parameters: prompt, prefix, and LoRAs of query-key and of value-MLP, of equal sizes.

arXiv 2310.19698 says that a prompt or prefix may not learn a task that needs a new attention pattern. The tasks here are sentiment,
which a pretrained encoder nearly knows, and `recall`, which needs an association from the text. The adapters are those that the
audit trains (`faults.rigidity.contest`), from several seeds. One departure from the audit saves most of the time: for every kind,
the learning rate and the epochs are chosen with the first seed only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trueup.corpus.corpus import Corpus
from trueup.corpus.read import read
from trueup.errors import BadInput
from trueup.experiments import resumed
from trueup.experiments.animals import RECALL, recall
from trueup.faults.rigidity.audit import PROMPTS, WEIGHTS, rates
from trueup.faults.rigidity.contest import KINDS, RATE, Rival, on, rivals, seeds_of, team, trained
from trueup.measure.seeds import contrast
from trueup.run.predict import Session, predict, within
from trueup.run.train import Training
from trueup.store.cache import Memo
from trueup.subject.kinds import Prompt
from trueup.subject.new_adapter import fresh
from trueup.subject.subject import Subject

TASKS = (RECALL, "embedded:movie-reviews-short", "embedded:tweets")
SIZES = (1536, 4608, 18432)
"""Trained numbers without the head. On MiniLM: a query-key LoRA of rank 1 in one layer, one slot of a prefix, and four slots."""
TRIES = 3
"""The number of learning rates that are tried for every kind of adapter."""


@dataclass(frozen=True)
class Settings:
    """Knobs of the bench.

    Attributes:
        model: a classifier's base, by hub id, folder or ``embedded:NAME``. tasks: `recall`, or data as in `trueup.read`. sizes:
            numbers of trained parameters. seeds: trainings of each kind of adapter.
        train, calibration, test: the most texts of each split. max_length: tokens of a text. epochs: epochs of the first training.
    """

    model: str = "embedded:minilm"
    tasks: tuple[str, ...] = TASKS
    sizes: tuple[int, ...] = SIZES
    seeds: int = 3
    train: int = 800
    calibration: int = 300
    test: int = 1000
    max_length: int = 24
    epochs: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.tasks or not self.sizes or min(self.sizes) < 1 or self.seeds < 2:
            raise BadInput("Give one task or more, sizes of 1 or more, and two seeds or more.")


def corpus_of(task: str, settings: Settings) -> Corpus:
    """The texts of a task, with at most as many in each split as the settings allow."""
    split_sizes = {"train": settings.train, "calibration": settings.calibration, "test": settings.test}
    if task == RECALL:
        return recall(split_sizes, settings.seed)
    data = read(task, seed=settings.seed)
    rng = np.random.default_rng(settings.seed)
    rows = [rng.permutation(np.flatnonzero(data.split == part))[:n] for part, n in split_sizes.items()]
    return data.take(np.sort(np.concatenate(rows)))


def run(
    out: str | Path, settings: Settings, *, force: bool = False, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Train every kind of adapter in every size on every task, and write `out`/curve.json and `out`/curve.md. Returns the contents
    of curve.json.

    Each finished training is kept for a run that is killed and started again (`resumed.run`).

    Raises:
        BadInput: `out` is there already and `force` is not given, or data that cannot be read.
    """
    import trueup.faults.rigidity
    import trueup.run

    def make(parts: resumed.Parts) -> dict[str, Any]:
        rows = []
        settings_key = {k: v for k, v in asdict(settings).items() if k not in ("tasks", "sizes")}
        for size in settings.sizes:
            for task in settings.tasks:
                corpus = corpus_of(task, settings)
                file = parts.file("curve", settings_key, task, size)
                with within(Session(Memo(parts.folder / "tries"))):
                    entrants = resumed.once(file, partial(compete, corpus, size, settings), say)
                test = corpus.part("test")
                row = {"task": task, "size": size, "test": len(test)} | judged(entrants, test.cluster)
                rows.append(row)
                say(f"{task}, {size:,} numbers: {_line(row)}")
        return {"settings": asdict(settings), "rows": rows}

    code = resumed.code_of(trueup.faults.rigidity, trueup.run, sys.modules[__name__])
    return resumed.run(out, "curve", code, make, table, force=force)


def compete(corpus: Corpus, size: int, settings: Settings) -> dict[str, dict[str, Any]]:
    """The trained adapters of all kinds that have one of about `size` numbers (`entrant`)."""
    subject = fresh(settings.model, Prompt(1), corpus.classes, max_length=settings.max_length, seed=settings.seed)
    return {r.kind: entrant(subject, corpus, r, settings) for r in rivals(subject, size) if r.fits(size)}


def entrant(subject: Subject, corpus: Corpus, rival: Rival, settings: Settings) -> dict[str, Any]:
    """One kind, trained with every seed: its size, learning rate and epochs, NLL on calibration, and ``right`` (S, n) on test."""
    first_seed = team(
        subject,
        corpus,
        rival,
        rates=rates(TRIES),
        training=Training(epochs=settings.epochs),
        seeds=1,
        seed=settings.seed,
    )
    choice = first_seed.kept
    rate, training = choice.lr / RATE[rival.kind], Training(epochs=choice.epochs)
    seeds = seeds_of(settings.seed, settings.seeds)[1:]
    members = [
        *first_seed.members, *(trained(subject, corpus, rival, rates=(rate,), training=training, seed=s) for s in seeds)
    ]  # fmt: skip
    test = corpus.part("test").relabel(subject.classes)
    correct = [(predict(on(subject, m), test).predicted == test.label).astype(int).tolist() for m in members]
    return {
        "numbers": rival.size, "lr": choice.lr, "epochs": choice.epochs, "growing": choice.growing,
        "nll": float(np.mean([m.kept.nll for m in members])), "right": correct,
    }  # fmt: skip


def judged(entrants: Mapping[str, Mapping[str, Any]], cluster: np.ndarray) -> dict[str, Any]:
    """Accuracy of each kind, and its differences from the better prompt, with 95% intervals for further seeds and texts.

    Differences are given for each kind of weights, and for the better of them. The better kinds are those with the lower NLL on
    calibration examples.
    """
    correct = {k: np.asarray(e["right"], float) for k, e in entrants.items()}

    def best(kinds: Sequence[str]) -> str:
        return min((k for k in kinds if k in correct), key=lambda k: entrants[k]["nll"], default="")

    def told(*sides: tuple[float, str]) -> list[float]:
        e = contrast([(w, correct[k]) for w, k in sides], cluster=cluster).estimate()
        return [e.value, e.low, e.high]

    best_prompt, best_weights = best(PROMPTS), best(WEIGHTS)
    gaps = {k: told((1.0, k), (-1.0, best_prompt)) for k in WEIGHTS if k in correct and best_prompt}
    if best_prompt and best_weights:
        gaps["weights"] = gaps[best_weights]
    return {
        "entrants": {
            k: {n: v for n, v in e.items() if n != "right"} | {"seeds": len(correct[k]), "accuracy": told((1.0, k))}
            for k, e in entrants.items()
        },
        "gaps": gaps,
    }


def _line(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {e['accuracy'][0]:.1%}" for k, e in row["entrants"].items())


def table(result: Mapping[str, Any]) -> str:
    """Markdown: a line for each task and size. Accuracy is the mean over the seeds."""
    settings = result["settings"]
    heads = ["task", "trained numbers", *KINDS, "best weights less best prompt, in points"]
    lines = [heads, ["---"] * len(heads)]
    for row in sorted(result["rows"], key=lambda r: (settings["tasks"].index(r["task"]), r["size"])):
        cells = [_cell(row["entrants"].get(k)) for k in KINDS]
        gap = row["gaps"].get("weights")
        difference = "" if gap is None else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * x for x in gap))
        lines.append([row["task"].removeprefix("embedded:"), f"{row['size']:,}", *cells, difference])
    return (
        f"{settings['model'].removeprefix('embedded:')}, {settings['train']:,} texts of at most {settings['max_length']} tokens, "
        f"{settings['seeds']} seeds. An empty cell: the kind has no adapter of about that size. "
        "*: still improving when its training ended.\n\n"
        + "\n".join(f"| {' | '.join(line)} |" for line in lines)
        + "\n"
    )


def _cell(entrant: Mapping[str, Any] | None) -> str:
    if entrant is None:
        return ""
    value, low, high = (100 * x for x in entrant["accuracy"])
    return f"{value:.1f}% [{low:.1f}, {high:.1f}]{'*' * entrant['growing']}"
