"""What a repair of copying should leave alone: knowing, copying where that is right, and ordinary text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from trueup.corpus import tasks
from trueup.corpus.corpus import Corpus
from trueup.corpus.prompt import Mode
from trueup.corpus.read import read
from trueup.errors import TrueupError
from trueup.faults.copying.audit import asked
from trueup.faults.fault import Difference
from trueup.measure import bootstrap
from trueup.run.answers import surprise
from trueup.run.predict import session
from trueup.run.prompts import drawn, rows, with_pool
from trueup.subject.subject import Subject

Bystander = tuple[str, Subject, Corpus]
"""A task's name, the subject asked for it, and the queries."""
TEXTS, QUERIES = 60, 60
"""How many ordinary texts are read, and how many queries of each task in which copying is right are asked."""


def harm(
    subject: Subject, repaired: Subject, corpus: Corpus, *, prose: str, resamples: int, seed: int
) -> dict[str, Difference]:
    """Paired differences, after minus before: accuracy under freely drawn and always right demonstrations, accuracy of
    tasks whose answer stands in the query (first or largest of a list), and nats per token of ordinary text.

    What cannot be measured (no such text to be had, a task that the tokenizer cannot spell) is left out with a note.
    """
    found: dict[str, Difference] = {}

    def told(
        key: str, sides: Iterable[np.ndarray], cluster: np.ndarray, wanted: bootstrap.Share | bootstrap.Means
    ) -> None:
        before, after = sides
        d = bootstrap.paired(wanted, (before,), (after,), seed, resamples, cluster=cluster)
        found[key] = Difference(d.value, d.low, d.high, d.p)

    right, mean = bootstrap.Share(np.asarray), bootstrap.Means(np.asarray, 0)
    kinds: tuple[tuple[str, Mode], ...] = (("accuracy", "free"), ("accuracy_always", "always"))
    for key, mode in kinds:
        a, b = (asked(s, corpus, mode, seed) for s in (subject, repaired))
        able = a.draws.possible
        if able.any():
            told(key, ((t.got.answer == corpus.label)[able] for t in (a, b)), corpus.cluster[able], right)
    for name, before, queries in bystanders(subject, "test", seed=seed, most=QUERIES):
        after = replace(repaired, classes=before.classes, template=before.template, confidence=before.confidence)
        both = (asked(s, queries, "free", seed).got.answer for s in (before, after))
        told(f"accuracy of {name}", (answer == queries.label for answer in both), queries.cluster, right)
    try:
        some = read(prose, seed=seed, limit=4 * TEXTS, progress=False)
        some = some.take(np.arange(min(TEXTS, len(some))))
        before, after = surprise(subject, some.text), surprise(repaired, some.text)
        measured = ~np.isnan(before)
        told("nats per token of ordinary text", (before[measured], after[measured]), some.cluster[measured], mean)
    except TrueupError as e:
        session().note(f"Whether the repair harms ordinary text was not measured: {e}")
    return found


def bystanders(subject: Subject, part: str, *, seed: int, most: int, skip: int = 0) -> Iterator[Bystander]:
    """Tasks whose answer stands in the query, where copying is right: name, the subject asked for it, at most `most` queries
    after the first `skip`.

    `part` is the split: a repair looks at ``calibration``, what it cost is told on ``test``. A task that the tokenizer cannot
    spell, that is too long for the model, or that cannot be had, is left out with a note.
    """
    for task in tasks.TASKS.values():
        if not task.copying_is_right:
            continue
        try:
            data = tasks.load(task.name, seed=seed, progress=False)
            queries = data.part(part)
            queries = queries.take(np.arange(min(skip, len(queries)), min(skip + most, len(queries))))
            able = with_pool(subject, data.part("train"))
            rows(able, queries.text, drawn(able, queries, seed=seed))
        except TrueupError as e:
            session().note(f"Whether the repair harms the task {task.name} was not measured: {e}")
            continue
        yield task.name, able, queries
