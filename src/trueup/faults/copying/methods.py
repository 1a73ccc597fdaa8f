"""Every way to lower wrong copies that is tried here, chosen on calibration queries and compared on test queries."""

from __future__ import annotations

from dataclasses import replace

from trueup.corpus.clusters import in_order
from trueup.corpus.corpus import Corpus
from trueup.errors import Unsupported
from trueup.faults.copying import maths
from trueup.faults.copying.audit import columns, statistics
from trueup.faults.copying.candidates import AS_IT_IS, random_like
from trueup.faults.copying.contest import contest
from trueup.faults.copying.heads import FUNCTION, INDUCTION
from trueup.faults.copying.penalty import penalised, penalty_for
from trueup.faults.copying.repair import explained
from trueup.faults.fault import (
    Difference,
    Method,
    as_differences,
)
from trueup.measure import bootstrap
from trueup.run.edit import scaled
from trueup.run.predict import session
from trueup.subject.subject import Subject

ON_TEST = ("severity", "accuracy", "accuracy_never")
"""What `methods` tells of each: wrong copies above chance, accuracy where demonstrations are drawn freely, and where they never
show the right answer."""


def methods(
    subject: Subject, corpus: Corpus, *, seed: int, resamples: int, max_cost: float, proxy: bool, task: bool
) -> list[Method]:
    """On ``test``: the published choice of units from either source, ours, heads of each kind at equal size, the penalty on shown
    answers, and units drawn at random, all chosen on ``calibration`` as in `repair`.

    Raises: as `repair`; Unsupported where no attributions add up.
    """
    corpus = corpus.relabel(subject.classes)
    found, heads = explained(subject, corpus, seed=seed, proxy=proxy, task=task, protocol=maths.RECONSTRUCTED)
    c = contest(subject, corpus.part("calibration"), found, heads, seed=seed, resamples=resamples, max_cost=max_cost)
    if c is None:
        raise Unsupported("In no layer do the attributions of units add up, so none can be told to copy.")
    test, _ = in_order(corpus.part("test"))
    chosen_units = c.units.best or c.units.nearest
    tried = {f"published, on {x.source}": x for x in c.units.every if x.family == "published" and x is not chosen_units}
    tried["units"] = chosen_units
    if c.heads is not None:
        judged_heads = [*([c.heads.best] if c.heads.best else []), *c.heads.every]
        tried |= {x.family: x for x in reversed(judged_heads)}  # the best, where it is one of its kind, comes last
    chance = c.of_chance(subject, random_like(c.made, seed), seed, resamples)
    tried["random"] = replace(chance.best or chance.nearest, title="the best of as many random candidates")
    won = c.heads if c.heads is not None and c.heads.beats(c.units) else c.units
    chosen = next((k for k, x in tried.items() if x is won.best), None)
    answers = {"": columns(subject, test, seed)}
    for key, x in tried.items():
        with scaled(subject, x.scales, x.part):
            answers[key] = columns(subject, test, seed)
        session().progress("methods on the test queries", len(answers) - 1, len(tried))
    nats = penalty_for(c.unscaled, c.parts[1])
    answers["penalty"] = columns(subject, test, seed, lambda got, shown: penalised(got, shown, nats))
    tried["penalty"] = replace(AS_IT_IS, title=f"a penalty of {nats:g} nats on shown answers", source="the task itself")
    columns_of = {k: list(of.values()) for k, of in answers.items()}
    statistics_on_test = {k: s[0] for k, s in statistics(answers[""]).items() if k in ON_TEST}

    def apart(a: str, b: str) -> dict[str, Difference]:
        sides = (columns_of[a], columns_of[b])
        return as_differences(bootstrap.paired_many(statistics_on_test, *sides, seed, resamples, cluster=test.cluster))

    return [
        Method(
            key, x.title, "baseline" if key in ("random", "penalty") else _SOURCES.get(x.family, "ours"), x.source,
            {k: f(*columns_of[key]) for k, f in statistics_on_test.items()}, apart("", key),
            {} if chosen in (None, key) else apart(chosen, key), key == chosen, key != "penalty", key == "random",
        )
        for key, x in tried.items()
    ]  # fmt: skip


_SOURCES = {
    "published": "arXiv 2410.01288",
    INDUCTION: "arXiv 2209.11895",
    FUNCTION: "arXiv 2310.15213",
}
