"""All families of confidence scores, compared on test examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.special import expit

from trueup.corpus.corpus import Corpus
from trueup.errors import Unsupported
from trueup.faults.fault import Difference, Method, NoRemedy, as_differences
from trueup.faults.overconfidence import platt
from trueup.faults.overconfidence.candidates import FAMILIES, RESPONSE, choose
from trueup.faults.overconfidence.repair import evidence, opinions, part_of, split_calibration
from trueup.measure import bootstrap, confidence_scores
from trueup.measure.selective import error_auc
from trueup.subject.subject import Subject


def methods(
    subject: Subject, corpus: Corpus, *, folds: int, members: int, passes: int, resamples: int, seed: int
) -> list[Method]:
    """The results of every family on ``test``. Each learns and chooses as in `repair`. The results are the error ROC-AUC and the
    Brier loss of its score, after Platt scaling on the calibration examples that chose. The subject without repair has its softmax
    response, unscaled.

    Raises:
        Unsupported: nothing can be learnt from the calibration examples.
    """
    corpus = corpus.relabel(subject.classes)
    rows = np.flatnonzero(corpus.split == "test")
    split = split_calibration(subject, corpus, folds=folds, seed=seed)
    if isinstance(split, NoRemedy):
        raise Unsupported(split.reason)
    n, scored_rows = len(split.choosing.rows), np.concatenate([split.choosing.rows, rows])
    several = opinions(subject, corpus, scored_rows, members=members, passes=passes, seed=seed)
    opinions_choosing, opinions_test = (
        {k: None if o is None else o[side] for k, o in several.items()} for side in (slice(n), slice(n, None))
    )
    e, test = evidence(subject, corpus, split, opinions_choosing, seed=seed), corpus.take(rows)
    on_test = replace(e, **opinions_test)
    part = part_of(subject, test)
    choice, every, right = choose(e, FAMILIES), np.arange(len(e.held.label)), ~e.held.error
    judged_by = {r["key"]: r for r in choice.table}
    odds = confidence_scores.ResponseLogOdds(e.classes)(part.z)
    scored = {"": (odds, np.square(expit(odds) - ~part.error))}
    for family in (f for f in FAMILIES if f.key in choice.best):
        best = judged_by[family.key]["variant"]
        if family is RESPONSE:
            score = odds
        elif family.comparison is not None:
            score = family.comparison(on_test, every, part)[:, best]
        else:
            score = family.learnt(e, [every])[0][best](part)
        slope, intercept = platt.platt(choice.best[family.key], right)
        scored[family.key] = (score, np.square(expit(slope * score + intercept) - ~part.error))

    def setting(row: Mapping[str, Any]) -> str:
        return f"run {row['variant'] + 1} of {row['variants']}" if row["variants"] > 1 else ""

    def apart(a: str, b: str) -> dict[str, Difference]:
        sides = [(*scored[k], ~part.error) for k in (a, b)]
        return as_differences(
            bootstrap.paired_many(
                _ON_TEST, *sides, seed=seed, resamples=resamples, rare=part.error, cluster=test.cluster
            )
        )

    return [
        Method(
            f.key, f.title, f.source, setting(judged_by[f.key]),
            {k: float(s(*scored[f.key], ~part.error)) for k, s in _ON_TEST.items()},
            apart("", f.key), {} if f.key == choice.key else apart(choice.key, f.key), f.key == choice.key, f.saveable,
        )
        for f in FAMILIES if f.key in scored
    ]  # fmt: skip


_ON_TEST = {
    "error_auc": lambda score, loss, right, weight=None: error_auc(score, ~right, weight=weight),
    "confidence_brier": lambda score, loss, right, weight=None: float(np.average(loss, weights=weight)),
}
"""The statistics of `methods`: functions of a score (n,), its Brier losses (n,) and which predictions are right (n,)."""
