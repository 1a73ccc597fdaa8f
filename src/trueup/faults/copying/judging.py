"""How queries are answered with some inputs scaled: by all candidates at the last position, or by one that is live."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from trueup.corpus.corpus import Corpus
from trueup.corpus.prompt import MODES, Draws, Mode
from trueup.faults.copying import maths
from trueup.faults.copying.audit import Told, asked, scored
from trueup.faults.copying.candidates import Candidate
from trueup.faults.copying.harm import Bystander
from trueup.measure import bootstrap
from trueup.run import forward, prompts
from trueup.run.integrated_gradients import scaled_at_last
from trueup.subject.subject import Subject
from trueup.subject.units import Part

Asked = Mapping[Mode, Told]


@dataclass(frozen=True, eq=False)
class Judged:
    """How queries were answered: per mode (n,) right, copied and expected; nan where they could not be asked so."""

    columns: Mapping[str, np.ndarray]

    def mean(self, what: str, mode: Mode = "free") -> float:
        return float(np.nanmean(self.columns[f"{what}_{mode}"]))

    @property
    def modes(self) -> list[Mode]:
        return [m for m in MODES if not np.isnan(self.columns[f"right_{m}"]).all()]

    @property
    def excess(self) -> float:
        return self.mean("copied") - self.mean("expected")

    def loss(self, base: Judged) -> float:
        """The most accuracy that may have been lost where demonstrations are drawn freely (`maths.most_lost`)."""
        return maths.most_lost(base.columns["right_free"], self.columns["right_free"])

    @property
    def mixture(self) -> float:
        """Accuracy over the three ways of drawing that there are, each counting the same."""
        return float(np.mean([self.mean("right", m) for m in self.modes]))

    def no_worse(self, base: Judged) -> bool:
        """No accuracy is lost where demonstrations are drawn freely, nor over all ways of drawing."""
        return self.mean("right") >= base.mean("right") and self.mixture >= base.mixture


def ask(subject: Subject, queries: Corpus, seed: int) -> Asked:
    """The queries asked in all three ways."""
    return {m: asked(subject, queries, m, seed) for m in MODES}


def judged(told: Asked, queries: Corpus) -> Judged:
    """How the queries were answered under each kind of draw."""
    table: dict[str, np.ndarray] = {}
    for mode, t in told.items():
        other = None if t.other is None else t.other.answer
        table |= answered(mode, t.draws, queries.label, t.got.answer, other)
    return Judged(table)


def answered(
    mode: Mode, draws: Draws, gold: np.ndarray, answer: np.ndarray, other: np.ndarray | None
) -> dict[str, np.ndarray]:
    values, able = scored(draws, gold, answer, other), draws.possible
    return {f"{what}_{mode}": np.where(able, values[what], np.nan) for what in ("right", "copied", "expected")}


def screen(
    subject: Subject, queries: Corpus, made: Sequence[Candidate], seed: int, modes: Sequence[Mode] = MODES
) -> tuple[Judged, list[Judged]]:
    """The queries asked in these ways of the plain model, and of every candidate scaled at the last position alone.

    Answers are told by their first tokens, among the classes.
    """
    logits_of, first = forward.reader(subject), np.array(subject.verbaliser_ids())
    every = [replace(made[0], scales={min(made[0].scales): torch.tensor(1.0)}), *made]
    tables: list[dict[str, np.ndarray]] = [{} for _ in every]

    def said(draws: Draws) -> np.ndarray:
        """(n, 1 + c) the classes answered, -1 where there is no such prompt."""
        able, answer = np.flatnonzero(draws.possible), np.full((len(queries), len(tables)), -1)
        if len(able):
            rows = prompts.rows(subject, queries.take(able).text, draws.take(able))
            parts: tuple[Part, ...] = tuple(dict.fromkeys(c.part for c in every))
            for part in parts:
                same_part = [i for i, c in enumerate(every) if c.part == part]
                logits = scaled_at_last(
                    subject, rows, lambda h, _: logits_of(h.float()), [every[i].scales for i in same_part], part
                )
                for c, choice in zip(same_part, logits.argmax(axis=2).T, strict=True):
                    answer[able, c] = maths.by_token(first, choice, queries.label[able], draws.shown[able])
        return answer

    for mode in modes:
        draws = prompts.drawn(subject, queries, mode=mode, seed=seed)
        given = [said(draws), *([] if draws.others is None else [said(draws.others)])]
        for c in range(len(tables)):
            answer, other = given[0][:, c], given[-1][:, c] if len(given) > 1 else None
            tables[c] |= answered(mode, draws, queries.label, answer, other)
    return Judged(tables[0]), [Judged(k) for k in tables[1:]]


def elsewhere(others: Sequence[Bystander], made: Sequence[Candidate], seed: int) -> np.ndarray:
    """(c,) change of accuracy of the task in which copying is right that suffers most, with a candidate's units scaled at the
    last position; nan where none of these tasks can be asked."""
    changes = []
    for _, able, queries in others:
        plain, after_each = screen(able, queries, made, seed, ("free",))
        changes.append([j.mean("right") - plain.mean("right") for j in after_each])
    return np.min(changes, axis=0) if changes else np.full(len(made), np.nan)


def beside(others: Sequence[Bystander], seed: int) -> list[np.ndarray]:
    """For each task in which copying is right, (n,) whether the live model as it is now answers right."""
    return [
        (asked(able, queries, "free", seed).got.answer == queries.label).astype(float) for _, able, queries in others
    ]


def row_of(tried: Candidate, base: Judged, got: Judged, queries: Corpus, seed: int, resamples: int) -> dict[str, Any]:
    """One line of the table: accuracy in each mode, wrong copies above chance, and their paired change."""

    excess = bootstrap.Share(lambda copied, expected: copied, less=lambda copied, expected: expected)
    measured = ~np.isnan(base.columns["copied_free"])

    def of(j: Judged) -> list[np.ndarray]:
        return [j.columns["copied_free"][measured], j.columns["expected_free"][measured]]

    d = bootstrap.paired(excess, of(base), of(got), seed, resamples, cluster=queries.cluster[measured])
    right = {m: got.mean("right", m) for m in got.modes}
    was, now = ([j.columns["right_free"][measured]] for j in (base, got))
    a = bootstrap.paired(bootstrap.Share(np.asarray), was, now, seed, resamples, cluster=queries.cluster[measured])
    return {
        "title": tried.title, "units": tried.units, "units from": tried.source, **{f"accuracy {m}": v for m, v in right.items()},
        "accuracy change": a.value, "accuracy low": a.low, "accuracy high": a.high,
        "severity": got.excess, "change": d.value, "low": d.low, "high": d.high,
    }  # fmt: skip
