"""Multi-label heads: each label is a classifier of two classes, and all of them are judged together in one finding.

The intervals of the labels are simultaneous: each has the level 1 - 0.05 / L for L judged labels (Bonferroni). So in at most 5% of
audits any of them misses the true value, however the labels depend on each other. The largest lower end and the largest upper end
are then an interval of the severity of the worst label. The verdict is *found* if the whole interval of some label lies above the
threshold, and *clear* if that of every label lies below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trueup.corpus.clusters import in_order
from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput, listing, shortened
from trueup.faults.fault import Chart, Difference, Finding, Measure, Series, Verdict, as_differences
from trueup.faults.overconfidence import audit as one
from trueup.measure import bootstrap
from trueup.subject.subject import Subject

ALPHA = 0.05
"""The probability that the interval of any label misses the true value."""
TAIL = 5
"""The fewest resamples that must lie beyond either end of an interval. With many labels a thousand resamples are too few for
this."""
PARTS = ("severity", "misstated", "misranked")


def learn(subject: Subject, corpus: Corpus, *, seed: int) -> dict[str, one.Learnt]:
    """Label -> the forecast with which its confidence is compared, for labels that some calibration texts have and others lack."""
    corpus = corpus.relabel(subject.classes)
    held = corpus.part("calibration")
    assert held.labels is not None
    return {
        c: one.learn(subject.of_label(i), corpus.of_label(i), seed=seed)
        for i, c in enumerate(subject.classes)
        if 0 < held.labels[:, i].sum() < len(held)
    }


@dataclass(frozen=True, eq=False)
class Label:
    """The results of one label.

    Attributes:
        texts: how many of the judged texts have the label.
        parts: the estimates of `PARTS`; None if nothing can be estimated, and then `doubt` says why.
        doubt: why the verdict is undecided whatever the interval is; else empty.
        stated, accuracy: the mean confidence, and the share of predictions that are right.
    """

    name: str
    texts: int
    parts: Mapping[str, bootstrap.Estimate] | None
    doubt: str
    stated: float = float("nan")
    accuracy: float = float("nan")

    def verdict(self, threshold: float) -> Verdict:
        if self.doubt or self.parts is None:
            return "undecided"
        head = self.parts["severity"]
        return "found" if head.low > threshold else "clear" if head.high < threshold else "undecided"


def audit(
    subject: Subject, corpus: Corpus, learnt: Mapping[str, one.Learnt], *, threshold: float, resamples: int, seed: int
) -> Finding:
    """Examine every label on all of `corpus`.

    Raises:
        BadInput: fewer than 20 examples, or no label that some texts of each part have and others lack.
    """
    corpus, place = in_order(corpus.relabel(subject.classes))
    one.check_enough(corpus)
    assert corpus.labels is not None
    lacking, samples = {}, {}
    for i, c in enumerate(subject.classes):
        has = int(corpus.labels[:, i].sum())
        if c not in learnt or has in (0, len(corpus)):
            where = "test" if has in (0, len(corpus)) else "calibration"
            often = ("always occurs" if has == len(corpus) else "never occurs") if where == "test" else (
                "always or never occurs"
            )  # fmt: skip
            lacking[c] = Label(c, has, None, f"it {often} in the {where} texts")
        else:
            samples[c] = one.samples_of(subject.of_label(i), corpus.of_label(i), learnt[c])
    if not samples:
        raise BadInput(
            f"No label of '{corpus.name}' can be judged: each occurs in all or in none of the calibration or the test texts. Give "
            "more rows, or other labels."
        )
    taught = {c: learnt[c].held.cluster for c in samples}
    found = finding(
        samples, lacking, subject.classes, taught=taught, threshold=threshold, resamples=resamples, seed=seed,
        forecast={c: learnt[c].forecast.ridge for c in samples},
    )  # fmt: skip
    return replace(found, samples={k: v[place] for k, v in found.samples.items()})


def estimates(
    samples: Mapping[str, Mapping[str, NDArray]], *, resamples: int, seed: int
) -> dict[str, dict[str, bootstrap.Estimate]]:
    """Label -> the estimates of `PARTS`, with simultaneous intervals."""
    level, found = 1 - ALPHA / len(samples), {}
    for c, label_samples in samples.items():
        order = one.surest_first(label_samples)
        found[c] = bootstrap.interval_many(
            {k: one.STATISTICS[k] for k in PARTS}, *one.columns(label_samples, order), seed=seed, level=level,
            resamples=_enough(resamples, len(samples)), rare=~label_samples["right"][order],
            cluster=label_samples["cluster"][order],
        )  # fmt: skip
    return found


def finding(
    samples: Mapping[str, Mapping[str, NDArray]], lacking: Mapping[str, Label], order: tuple[str, ...], *,
    taught: Mapping[str, NDArray], threshold: float, resamples: int, seed: int, **provenance: Any,
) -> Finding:  # fmt: skip
    """The finding of all labels.

    Args:
        samples: label -> the samples of `audit.finding` for two classes. All labels have the same texts in the same order.
        lacking: label -> the result of a label that cannot be estimated. order: all labels in their order. taught: label -> (m,)
            the clusters of the calibration examples that taught its forecast.
    """
    label_estimates, labels = estimates(samples, resamples=resamples, seed=seed), []
    for c in order:
        if c in lacking:
            labels.append(lacking[c])
            continue
        label_samples = samples[c]
        doubt = one.doubt(
            label_samples["right"], label_samples["cluster"], taught[c], label_estimates[c]["severity"].low > threshold
        )
        labels.append(
            Label(
                c,
                int(label_samples["label"].sum()),
                label_estimates[c],
                doubt,
                float(label_samples["confidence"].mean()),
                float(label_samples["right"].mean()),
            )
        )
    words = {x.name: x.verdict(threshold) for x in labels}
    judged = [x for x in labels if x.parts is not None and not x.doubt] or [x for x in labels if x.parts is not None]
    heads = [x.parts["severity"] for x in judged if x.parts is not None]
    value, low, high = (max(getattr(h, k) for h in heads) for k in ("value", "low", "high"))
    worst = judged[int(np.argmax([h.value for h in heads]))]
    doubted = [x for x in labels if x.doubt]
    doubt = ""
    if doubted and "found" not in words.values():
        doubt = f"{len(doubted)} of {len(labels)} labels cannot be judged. " + " ".join(
            f"'{x.name}': {x.doubt.rstrip('.')}." for x in doubted[:5]
        )
    together = stacked(samples)
    clusters = len(np.unique(together["cluster"]))
    found = Finding(
        fault="overconfidence", unit="avoidable share of the Brier loss of the worst label's confidence",
        severity=value, low=low, high=high, threshold=threshold, sentence=_sentence(labels, words, worst, len(heads)),
        measures=_measures(together, labels, resamples=resamples, seed=seed),
        charts=(_chart(labels), *_of_worst(samples[worst.name], worst)),
        details={
            "labels": [
                {"label": x.name, "texts": x.texts, "verdict": words[x.name], "doubt": x.doubt}
                | ({} if x.parts is None else {k: [e.value, e.low, e.high] for k, e in x.parts.items()}
                   | {"mean confidence": x.stated, "accuracy": x.accuracy})
                for x in labels
            ],
        },
        samples=together, doubt=doubt,
        provenance={"seed": seed, "resamples": _enough(resamples, len(samples)), "level": 0.95,
                    "examples": len(together["cluster"]), "clusters": clusters, "labels": len(labels),
                    "calibration clusters": max(len(np.unique(t)) for t in taught.values()), **provenance},
    )  # fmt: skip
    if found.verdict != "undecided":
        return found
    return replace(found, needed=bootstrap.clusters_needed(value, low, high, threshold, together["cluster"]))


def compare(before: Finding, after: Finding, *, resamples: int, seed: int) -> dict[str, Difference]:
    """Paired differences, after minus before: the severity of each label at the simultaneous level, the severity of the label that
    was worst before, and the measures over all labels together.

    Raises:
        BadInput: the two findings judge different labels.
    """
    names, names_after = ([d["label"] for d in f.details["labels"] if "severity" in d] for f in (before, after))
    if names != names_after:
        raise BadInput(
            f"The findings judge different labels: {listing(names)}, and {listing(names_after)}. Compare equal ones."
        )
    samples_before, samples_after = (_apart(f.samples, names) for f in (before, after))
    found = {}
    for c in names:
        order = one.surest_first(samples_before[c])
        difference = bootstrap.paired_many(
            {"severity": one.STATISTICS["severity"]}, one.columns(samples_before[c], order), one.columns(samples_after[c], order),
            seed, resamples=_enough(resamples, len(names)), level=1 - ALPHA / len(names),
            rare=~(samples_before[c]["right"] & samples_after[c]["right"])[order], cluster=samples_before[c]["cluster"][order],
        )  # fmt: skip
        found[_key(c)] = difference["severity"]
    worst = max((d for d in before.details["labels"] if "severity" in d and not d["doubt"]), default=None,
                key=lambda d: d["severity"][0])  # fmt: skip
    found["severity"] = found[_key(worst["label"] if worst else names[0])]
    a, b = (_flat(f.samples) for f in (before, after))
    order = one.surest_first(a)
    found |= bootstrap.paired_many(
        {k: s for k, s in one.between(a, b).items() if k in one.MEASURES}, one.columns(a, order), one.columns(b, order), seed,
        resamples=resamples, squares=one.SQUARES, rare=~(a["right"] & b["right"])[order], cluster=a["cluster"][order],
    )  # fmt: skip
    return as_differences({k: d for k, d in found.items() if not np.isnan(d.value)})


def examples(corpus: Corpus, before: Finding) -> list[dict[str, str | float | bool]]:
    """The 100 most confident errors over all labels: one row for each text and label."""
    names = [d["label"] for d in before.details["labels"] if "severity" in d]
    confidence, right = before.samples["confidence"], before.samples["right"]
    rows: list[dict[str, str | float | bool]] = []
    for flat_index in np.lexsort((-confidence.ravel(), right.ravel()))[:100].tolist():
        i, k = divmod(flat_index, len(names))
        has, predicted = (bool(before.samples[s][i, k]) for s in ("label", "predicted"))
        rows.append({
            "text": shortened(corpus.text[i], 400), "label": names[k] if has else f"not {names[k]}",
            "predicted": names[k] if predicted else f"not {names[k]}", "right": bool(right[i, k]), "confidence": float(confidence[i,
            k]),
        })  # fmt: skip
    return rows


def consequence(before: Finding) -> str:
    """What the finding means for a user, with the labels whose confidence is wrong."""
    labels = before.details["labels"]
    bad = [d for d in labels if d["verdict"] == "found"]
    if bad:
        worst_labels = ", ".join(
            f"'{d['label']}' (states {d['mean confidence']:.1%}, right on {d['accuracy']:.1%})" for d in bad[:5]
        )
        worst_labels += f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        return (
            f"For {len(bad)} of {len(labels)} labels this model's confidence says less about its errors than it could: "
            f"{worst_labels}."
        )
    if before.verdict == "clear":
        return "For each label this model's confidence says what the calibration examples can teach about its errors."
    open_ = [d["label"] for d in labels if d["verdict"] == "undecided"]
    return (
        f"For {len(open_)} of {len(labels)} labels it is not settled whether this model's confidence says as much about its errors "
        f"as it could: {listing(open_, 5)}."
    )


def stacked(samples: Mapping[str, Mapping[str, NDArray]]) -> dict[str, NDArray]:
    """The samples of L labels side by side: (n, L, ...) each, and one cluster (n,)."""
    first = next(iter(samples.values()))
    return {
        k: first[k] if k == "cluster" else np.stack([label_samples[k] for label_samples in samples.values()], axis=1)
        for k in first
    }


def _flat(samples: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """One row for each text and label. The rows of one text are in its cluster."""
    n, many = samples["right"].shape
    return {k: np.repeat(v, many) if k == "cluster" else v.reshape(n * many, *v.shape[2:]) for k, v in samples.items()}


def _apart(samples: Mapping[str, NDArray], names: list[str]) -> dict[str, dict[str, NDArray]]:
    return {c: {k: v if k == "cluster" else v[:, i] for k, v in samples.items()} for i, c in enumerate(names)}


def _enough(resamples: int, labels: int) -> int:
    return max(resamples, int(np.ceil(2 * TAIL * labels / ALPHA)))


def _key(label: str) -> str:
    return f"avoidable of {label}"


def _measures(together: Mapping[str, NDArray], labels: list[Label], *, resamples: int, seed: int) -> dict[str, Measure]:
    """The severity of each label, and the measures of a classifier over all texts and labels."""
    pooled = one.measured(_flat(together), resamples=resamples, seed=seed)
    found = {
        k: Measure(pooled[k].value, pooled[k].low, pooled[k].high, unit, better, f"{title}, all labels")  # type: ignore[arg-type]
        for k, (_, title, unit, better) in one.MEASURES.items()
        if not np.isnan(pooled[k].value)
    }
    for x in labels:
        if x.parts is not None:
            e = x.parts["severity"]
            found[_key(x.name)] = Measure(
                e.value, e.low, e.high, "share of the label's Brier loss, all labels together at 95%", "lower",
                f"avoidable of '{x.name}'",
            )  # fmt: skip
    return found


def _sentence(labels: list[Label], words: Mapping[str, Verdict], worst: Label, judged: int) -> str:
    assert worst.parts is not None
    e, stated = worst.parts["severity"], "overstates" if worst.stated > worst.accuracy else "understates"
    parts = [
        f"{len(named)} {word} ({listing(named, 5)})"
        for word in ("found", "undecided", "clear")
        if (named := [c for c, w in words.items() if w == word])
    ]
    return (
        f"Of {len(labels)} labels, each judged as yes or no by its own sigmoid: {', '.join(parts)}. Of the worst, '{worst.name}', "
        f"a forecast learnt from calibration examples avoids {e.value:.1%} [{e.low:.1%}, {e.high:.1%}] of the Brier loss of its "
        f"confidence: {worst.parts['misstated'].value:.1%} by recalibration (it {stated}: mean confidence {worst.stated:.1%}, "
        f"accuracy {worst.accuracy:.1%}), {worst.parts['misranked'].value:.1%} by ranking its errors better. The intervals of "
        f"{judged} labels hold together at 95%."
    )


def _chart(labels: list[Label]) -> Chart:
    """The severity of each label side by side."""
    severities = [(x.name, x.parts["severity"]) for x in labels if x.parts is not None]
    return Chart(
        "labels", "What could have been avoided, label by label", "bar", "label", "share of the Brier loss",
        "A label is a fault where its whole interval lies above the threshold. The intervals hold together at 95%.",
        (Series("avoidable", [c for c, _ in severities], [e.value for _, e in severities], [e.low for _, e in severities], [e.high
        for _, e in severities]),),
    )  # fmt: skip


def _of_worst(samples: Mapping[str, NDArray], worst: Label) -> tuple[Chart, ...]:
    """The charts of a classifier, for one label. They have no slider, since a text is not refused label by label."""
    assert worst.parts is not None
    label_charts = one.charts(
        samples["confidence"], samples["right"], samples["cluster"], worst.parts["severity"], worst.parts
    )
    return tuple(replace(c, title=f"{c.title}: '{worst.name}'", slider=None) for c in label_charts)
