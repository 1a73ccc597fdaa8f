"""Subject + Corpus -> derived columns that the classifier leans on: found on calibration examples, judged on test examples.

The scout cannot know whether a column should matter. A word that carries the meaning gives a head start (a higher score of one
class at a given label), and so does a word that only gives away the source. So it calls nothing a fault. It names each column with
the AUPRC that reversing its coupling would cost, and the reader decides which should not matter.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trueup.corpus.clusters import in_order
from trueup.corpus.corpus import Corpus
from trueup.corpus.cues import Cue, cues, occurrences, phrases, table, there
from trueup.errors import BadInput, Unsupported, listing, shortened
from trueup.faults.confounding import search
from trueup.faults.confounding.leads import KINDS, Lead, Scouted
from trueup.faults.confounding.mixes import FEWEST, in_cells
from trueup.measure import lean
from trueup.run.predict import Outputs, hidden_states, layers_read, predict, session
from trueup.subject.subject import Subject

SHOWN = 3
"""The number of examples that are shown of each group, and the number of unproven columns that are reported."""
TELLING = 3
"""The number of words that describe a cluster of hidden states."""
LAYERS = (1 / 3, 1 / 2, 2 / 3)
"""The depths at which hidden states are clustered. There the states show the kind of a text, and hardly its answer yet."""
GOES_WITH = 0.5
"""A column whose head starts correlate by more than this with those of a stronger named column is reported as like it."""


def why_not(subject: Subject) -> str | None:
    """Why a subject cannot be scouted, or None."""
    if subject.shots is not None:
        return "It answers from demonstrations in its prompt, which are drawn anew for every text; a scout examines classifiers."
    if subject.multi_label:
        return "It gives each text any number of labels; a scout examines classifiers that give each text one class."
    return "It has one class, so it can lean on nothing." if len(subject.classes) < 2 else None


def scout(subject: Subject, corpus: Corpus, *, threshold: float = 0.05, seed: int = 0) -> Scouted:
    """Derive columns, find on calibration examples those that the subject leans on, and judge these on test examples.

    It takes one pass over calibration and test examples, which is remembered.

    Raises:
        Unsupported: few-shot prompts. BadInput: a split is empty, or holds fewer than two classes of 20 examples.
    """
    if (why := why_not(subject)) is not None:
        raise Unsupported(why)
    corpus = corpus.relabel(subject.classes)
    parts = {s: in_order(corpus.part(s))[0] for s in ("calibration", "test")}
    frequent_labels = [
        i for i in range(len(subject.classes)) if all(_clusters(p, i) >= 2 * FEWEST for p in parts.values())
    ]
    if len(frequent_labels) < 2:
        counts = ", ".join(
            f"'{c}' {_clusters(parts['calibration'], i)} and {_clusters(parts['test'], i)}"
            for i, c in enumerate(subject.classes[:12])
        )
        raise BadInput(
            f"A scout needs two classes with {2 * FEWEST} independent examples in calibration and in test each; '{corpus.name}' "
            f"has {counts}. Give more rows."
        )
    if gone := [subject.classes[i] for i in range(len(subject.classes)) if i not in frequent_labels]:
        session().note(f"Examples of {listing(gone)} are too few (below {2 * FEWEST} in a split) and were left out.")
    parts = {s: p.take(np.isin(p.label, frequent_labels)) for s, p in parts.items()}
    searching, judging = parts["calibration"], parts["test"]
    for p in parts.values():
        _states(subject, p)  # first, because its pass serves the prediction too
    outs = {s: predict(subject, p) for s, p in parts.items()}
    sides = {
        s: search.Side(
            lean.centred(outs[s].logits[:, frequent_labels]), np.searchsorted(frequent_labels, p.label), p.cluster
        )
        for s, p in parts.items()
    }
    side, other = sides["calibration"], sides["test"]
    found = _derived(subject, searching, side, seed)
    columns = table(searching, found)
    leads, rare = search.put_forward(columns, side, {i for i, cue in enumerate(found) if cue.kind == "cluster"})
    chosen = [found[x.column] for x in leads]
    on_test = table(judging, chosen)
    judged, _ = search.judge(leads, on_test, other, threshold=threshold, seed=seed)
    at = {x.column: i for i, x in enumerate(leads)}
    names = [subject.classes[i] for i in frequent_labels]
    leads_found: list[Lead] = []
    for n, j in enumerate(judged):
        near = next(
            (k + 1 for k in range(n) if judged[k].named and search.alike(judged[k].lead, j.lead, columns) > GOES_WITH),
            0,
        )
        values = on_test[at[j.lead.column]]
        leads_found.append(
            _told(n + 1 if j.named else 0, found[j.lead.column], j, near, values, judging, outs["test"], other, names)
        )
    named = [x for x in leads_found if x.rank]
    return Scouted(
        tuple(named), tuple(leads_found[len(named) :][:SHOWN]), len(named),
        {k: n for k in KINDS if (n := sum(c.kind == k for c in found))}, rare, len(judged),
        len(np.unique(searching.cluster)), len(np.unique(judging.cluster)), threshold, search.smallest(judged, threshold),
        search.needed(judged, threshold, len(np.unique(judging.cluster))),
        columns=tuple(found[j.lead.column] for j in judged if j.named),
    )  # fmt: skip


def with_columns(subject: Subject, corpus: Corpus, wanted: Sequence[str], scouted: Scouted) -> Corpus:
    """The corpus with the scouted columns that `wanted` names (``scout:1``) as attributes, before its own attributes.

    Raises:
        BadInput: a name is not ``scout:`` and a number, or the scout named fewer columns.
    """
    new: dict[str, NDArray] = {}
    for name in wanted:
        number = name.partition(":")[2]
        if not (number.isascii() and number.isdigit()) or not 1 <= int(number) <= len(scouted.columns):
            offered = [f"scout:{i + 1}" for i in range(len(scouted.columns))]
            raise BadInput(
                f"There is no column '{name}'. {'There is ' + listing(offered) if offered else 'The scout names no column here'}: "
                f"{scouted.sentence}"
            )
        cue, lead = scouted.columns[int(number) - 1], scouted.leads[int(number) - 1]
        new[cue.name] = cue.of(corpus)
        session().note(
            f"'{name}' is the column '{cue.name}', derived by trueup and chosen among {scouted.judged} that were judged on the "
            f"same test examples. With the choice allowed for, its lean at a coupling of 3 is {lead.lean:.3f} [{lead.low:.3f}, "
            f"{lead.high:.3f}]; the interval of the audit does not allow for it."
        )
    return replace(corpus, attributes=new | {k: v for k, v in corpus.attributes.items() if k not in new}, others={})


def _clusters(part: Corpus, label: int) -> int:
    return len(np.unique(part.cluster[part.label == label]))


def _derived(subject: Subject, corpus: Corpus, side: search.Side, seed: int) -> list[Cue]:
    """Every column that is tried, each with a unique name."""
    words = phrases(corpus, FEWEST)
    has = occurrences(corpus, words)
    chosen = search.telling(has, search.targets(side), corpus.cluster, seed)
    found = [*cues(corpus), *(w for w, taken in zip(words, chosen, strict=True) if taken)]
    states = _states(subject, corpus)
    for place in range(states.shape[1]):
        for parts in search.partitions(states[:, place], seed):
            nearest = parts.distances(states[:, place]).argmin(axis=1)
            # With two clusters, both columns would be the same.
            for k in range(len(parts.centres) if len(parts.centres) > 2 else 1):
                found.append(_cluster(subject, place, parts, k, _telling(words, has, nearest == k)))
    seen: Counter[str] = Counter()
    unique = []
    for cue in found:
        seen[cue.name] += 1
        unique.append(cue if seen[cue.name] == 1 else replace(cue, name=f"{cue.name} ({seen[cue.name]})"))
    return unique


def _telling(words: Sequence[Cue], has: Any, inside: NDArray[np.bool_]) -> tuple[str, ...]:
    """The single words that best separate the rows `inside` from the rest, by shrunk log odds that a text has them.

    Words in more than a fifth of the texts are left out, because they say little about what a text is about.
    """
    rows = has.tocsr()
    common = np.asarray(rows.sum(axis=0)).ravel() > len(inside) / 5
    single = np.flatnonzero(
        [
            " " not in w.token and (w.by_character or len(w.token) > 2) and not c
            for w, c in zip(words, common, strict=True)
        ]
    )
    if not single.size or not inside.any() or inside.all():
        return ()
    count_inside, count_outside = (np.asarray(rows[m].sum(axis=0)).ravel()[single] for m in (inside, ~inside))
    odds = np.log((count_inside + 1) / (inside.sum() - count_inside + 1)) - np.log(
        (count_outside + 1) / ((~inside).sum() - count_outside + 1)
    )
    z = odds / np.sqrt(1 / (count_inside + 1) + 1 / (count_outside + 1))
    return tuple(words[i].token for i in single[np.argsort(-z, kind="stable")[:TELLING]].tolist())


def _states(subject: Subject, corpus: Corpus) -> NDArray:
    """(n, places, d) the hidden states that are clustered."""
    last = layers_read(subject) - 1
    return hidden_states(subject, corpus, sorted({round(share * last) for share in LAYERS}))


def _cluster(subject: Subject, place: int, parts: search.Partition, k: int, words: tuple[str, ...]) -> Cue:
    def of(corpus: Corpus) -> NDArray[np.str_]:
        return there(parts.distances(_states(subject, corpus)[:, place]).argmin(axis=1) == k)

    description = ", ".join(words) or f"no. {k + 1}"
    return Cue(f'a text like "{description}"', "cluster", of)


def _told(
    rank: int, cue: Cue, j: search.Judgement, near: int, values: NDArray, corpus: Corpus, out: Outputs, side: search.Side,
    names: Sequence[str],
) -> Lead:  # fmt: skip
    groups = j.lead.groups
    group = np.searchsorted(np.asarray(groups), values)
    favour = np.asarray(lean.interaction(j.lead.starts)).argmax(axis=0).tolist()
    predicted = side.score.argmax(axis=1)
    cells = in_cells(side.label, group, side.cluster)
    examples = []
    for g in range(len(groups)):
        follows = (predicted == favour[g]) & (predicted != side.label)
        rows = np.flatnonzero(group == g)
        rows = rows[np.lexsort((-out.probability[rows].max(axis=1), ~follows[rows]))][:SHOWN]
        examples += [
            {
                "group": groups[g],
                "text": _text(corpus, i),
                "label": names[int(side.label[i])],
                "predicted": names[int(predicted[i])],
            }
            for i in rows.tolist()
        ]
    log_table = lean.interaction(np.log(np.maximum(cells, 0.5)))
    along = float((log_table * j.lead.coupling).sum())
    strength = math.exp(2 * float(np.abs(log_table).max()) * (1 if along >= 0 else -1))
    return Lead(
        rank, cue.name, cue.kind, groups, tuple(str(names[c]) for c in favour), j.lean, j.low, j.high, j.q, j.lead.lean,
        tuple(len(np.unique(side.cluster[group == g])) for g in range(len(groups))),
        tuple(float((predicted == side.label)[group == g].mean()) for g in range(len(groups))), strength, near,
        examples=tuple(examples),
    )  # fmt: skip


def _text(corpus: Corpus, i: int) -> str:
    return shortened(corpus.text[i] if corpus.second is None else f"{corpus.text[i]} | {corpus.second[i]}", 240)
