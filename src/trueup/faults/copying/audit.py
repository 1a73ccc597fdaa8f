"""Subject + Corpus -> Finding: does a few-shot prompt make the model repeat its examples' answers, beyond chance?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from trueup.corpus.clusters import in_order
from trueup.corpus.corpus import Corpus
from trueup.corpus.prompt import MODES, Draws, Mode
from trueup.corpus.split import POOL_FRACTIONS
from trueup.errors import BadInput, shortened
from trueup.faults.copying import maths
from trueup.faults.fault import Chart, Difference, Finding, Measure, Series, as_differences
from trueup.measure import bootstrap
from trueup.run import forward, prompts
from trueup.run.answers import Answers, answers, in_full, patched_answers
from trueup.run.predict import collect_rows, session
from trueup.subject.subject import Subject
from trueup.subject.template import Shots
from trueup.subject.units import layers_of

FEWEST = 10
"""Fewest queries an audit or a repair works with."""
SWEEP = (0, 1, 2, 4, 8, 16)
"""Numbers of demonstrations that the chart goes through, with this many queries each."""
SWEPT = 60
VECTORS = 40
"""Pairs of the pool on which the layer of the task vectors is chosen."""

TITLES: Mapping[Mode, str] = {
    "free": "demonstrations drawn freely", "never": "the right answer never shown", "always": "the right answer always shown",
}  # fmt: skip


def some(corpus: Corpus, most: int, seed: int) -> Corpus:
    """At most `most` examples, drawn at random: a file may be sorted by its answers."""
    drawn = np.random.default_rng(seed).permutation(len(corpus))[:most]
    return corpus.take(np.sort(drawn))


Read = Callable[[Answers, np.ndarray], np.ndarray]
"""What the answers come to, (n,), given which answers the demonstrations show, (n, C)."""


def as_said(got: Answers, shown: np.ndarray) -> np.ndarray:
    """The answers as the model gives them."""
    return got.answer


@dataclass(frozen=True, eq=False)
class Told:
    """Queries asked in one way.

    Attributes:
        draws, got: their demonstrations, and the answers.
        other: where the demonstrations are the same for every query, the answers to `Draws.others`; else None.
    """

    draws: Draws
    got: Answers
    other: Answers | None = None

    def scored(self, gold: np.ndarray, read: Read = as_said) -> dict[str, np.ndarray]:
        """As the function `scored`, of the answers that `read` makes of these."""
        others = self.draws.others
        other = None if others is None or self.other is None else read(self.other, others.shown)
        return scored(self.draws, gold, read(self.got, self.draws.shown), other)


def asked(subject: Subject, corpus: Corpus, mode: Mode, seed: int, number: int | None = None, first: str = "") -> Told:
    """Demonstrations of one kind for every query, and the answers to them; queries without such a draw answer -1.

    `first` is a line before the demonstrations."""
    draws = prompts.drawn(subject, corpus, mode=mode, number=number, seed=seed)
    first_answers = _answered(subject, corpus, draws, first)
    return Told(draws, first_answers, None if draws.others is None else _answered(subject, corpus, draws.others, first))


def _answered(subject: Subject, corpus: Corpus, draws: Draws, first: str) -> Answers:
    able = np.flatnonzero(draws.possible)
    answer, c = np.full(len(corpus), -1), len(subject.classes)
    logits, other = np.zeros((len(corpus), c), np.float32), np.zeros(len(corpus), np.float32)
    beyond = np.zeros(len(corpus), bool)
    if len(able):
        returned = answers(
            subject, prompts.rows(subject, [corpus.text[i] for i in able.tolist()], draws.take(able), first=first)
        )
        answer[able], logits[able], other[able], beyond[able] = (
            returned.answer,
            returned.logits,
            returned.other,
            returned.beyond,
        )
    return Answers(answer, logits, other, beyond)


def columns(subject: Subject, corpus: Corpus, seed: int, read: Read = as_said) -> dict[str, np.ndarray]:
    """What every query answered under each kind of draw, and what of it is a copy: arrays of n, named ``what_mode``; with at
    most `prompts.MOST_NAMED` answers also ``what_named``, drawn freely with all answers named; and whether the right answer
    was shown."""
    table: dict[str, np.ndarray] = {}
    for mode in MODES:
        answered = asked(subject, corpus, mode, seed)
        draws, answers_of_mode = answered.draws, answered.got
        table |= {f"{what}_{mode}": values for what, values in answered.scored(corpus.label, read).items()}
        if mode == "free" and draws.others is not None and (alone := draws.possible & ~draws.others.possible).any():
            session().note(
                f"copying: for {alone.sum()} of {len(corpus)} queries there are no other demonstrations that show the right answer "
                "as the fixed ones do, so what chance is cannot be told for them: they count as no copy above chance."
            )
        if mode == "free" and answers_of_mode.beyond.any():
            i = int(np.flatnonzero(answers_of_mode.beyond)[0])
            (row,) = prompts.rows(subject, [corpus.text[i]], draws.take(np.array([i])))
            session().note(
                f"{answers_of_mode.beyond.sum()} of {len(corpus)} answers went on after a class's name and were counted as "
                f"no class, such as {in_full(subject, row)!r}."
            )
        if mode == "free":
            table["shown"] = draws.shown[np.arange(len(corpus)), corpus.label]
            if len(subject.classes) <= prompts.MOST_NAMED:
                table |= _named(subject, corpus, seed, read)
    closed = len(subject.classes) <= prompts.MOST_NAMED
    excess = table["copied_free"] - table["expected_free"]
    table["blamed"], table["counted"] = excess, table["asked_free"]
    if "copied_named" in table:
        table["blamed"] = maths.blamed(excess, table["shown"], table["copied_named"] - table["expected_named"])
    elif closed:
        table["counted"] = table["asked_free"] * table["shown"]
    return table


def _named(subject: Subject, corpus: Corpus, seed: int, read: Read) -> dict[str, np.ndarray]:
    """The queries asked again, with the same demonstrations and all answers named; empty where that is too long."""
    try:
        answered = asked(subject, corpus, "free", seed, first=prompts.header(subject.classes))
    except BadInput as e:
        session().note(
            "copying: the queries were not asked with all answers named, so only those count to which the right answer was "
            f"shown: {e}"
        )
        return {}
    return {f"{what}_named": values for what, values in answered.scored(corpus.label, read).items()}


def scored(draws: Draws, gold: np.ndarray, answer: np.ndarray, other: np.ndarray | None) -> dict[str, np.ndarray]:
    """What every query answered, and what of it is right, a copy, and a copy by chance: arrays of n.

    `other`: the answers to `draws.others`, None where there are none.
    """
    if draws.others is None or other is None:
        expected = maths.expected(answer, gold, draws.chance)
    else:
        others = draws.others
        expected = maths.expected_under(answer, other, gold, draws.shown, others.shown, others.possible)
    return {
        "asked": draws.possible.astype(float), "answer": answer, "right": (answer == gold).astype(float),
        "copied": maths.copies(answer, gold, draws.shown), "expected": expected,
    }  # fmt: skip


def audit(subject: Subject, corpus: Corpus, *, threshold: float, resamples: int, seed: int) -> Finding:
    """Examine on all of `corpus`: each text is a query, and its demonstrations come from the subject's pool.

    Raises:
        BadInput: fewer than 10 queries, no pool or one too small, or prompts longer than the model reads.
    """
    prompts.fitting(subject)
    corpus, place = in_order(corpus.relabel(subject.classes))
    if len(corpus) < FEWEST:
        raise BadInput(
            f"'{corpus.name}' gives {len(corpus)} queries to examine; copying needs at least {FEWEST}. Give "
            f"{math.ceil(FEWEST / POOL_FRACTIONS[-1])} pairs or more to have so many split off, or a larger test split."
        )
    table = columns(subject, corpus, seed)
    table |= dict(zip(("followed", "followed_expected", "swapped"), _followed(subject, corpus, table["answer_free"], seed),
                     strict=True)) | {"cluster": corpus.cluster}  # fmt: skip
    given = task_vectors(subject, corpus, seed)
    table |= {} if given is None else given.columns
    found = statistics(table)
    estimates = bootstrap.interval_many(
        {k: s[0] for k, s in found.items()}, *table.values(), seed=seed, resamples=resamples, cluster=corpus.cluster
    )
    head = maths.severity(table["blamed"], table["counted"], corpus.cluster, seed=seed, resamples=resamples)
    measures = {
        k: Measure(estimates[k].value, estimates[k].low, estimates[k].high, "share of queries", better, title)  # type: ignore[arg-type]
        for k, (_, title, better) in found.items()
        if k != "severity"
    }
    shots = subject.shots
    assert shots is not None
    draws = prompts.drawn(subject, corpus, seed=seed)
    apart = maths.visible(draws.shown, corpus.label, draws.chance)
    return maths.judged(
        head, corpus.cluster, apart, threshold=threshold,
        sentence=_sentence(estimates, shots, head, threshold), measures=measures,
        charts=charts(subject, corpus, measures, given, seed, resamples), samples={k: v[place] for k, v in table.items()},
        details={"answers": len(subject.classes), "named": "copied_named" in table, "a copy stands out by": apart}
        | ({} if given is None else {"task vector of layer": given.layer}),
        provenance={"seed": seed, "resamples": resamples, "level": 0.95, "examples": len(corpus),
                    "clusters": len(np.unique(corpus.cluster)), "shots": shots.number,
                    "template": subject.template.text if subject.template else "", "pool": len(shots.pool)}
        | ({"chat": True} if subject.template and subject.template.chat else {}),
    )  # fmt: skip


def _sentence(got: Mapping[str, bootstrap.Estimate], shots: Shots, head: bootstrap.Estimate, threshold: float) -> str:
    def told(key: str) -> str:
        e = got[key]
        return f"{e.value:+.1%} [{e.low:+.1%}, {e.high:+.1%}]"

    given = f"{shots.number} {'fixed ' if shots.fixed else ''}demonstrations"
    parts = [f"With {given} it is right on {got['accuracy'].value:.1%} of the queries."]
    where = []
    if "excess_shown" in got:
        where.append(f"{told('excess_shown')} where the right answer stands among the demonstrations")
    if "excess_hidden" in got:
        where.append(f"{told('excess_hidden')} where it does not")
    if "excess_named" in got:
        where[-1] += f" ({told('excess_named')} once a first line names all answers)"
    if where:
        parts.append(f"Wrong copies above chance: {', '.join(where)}.")
    parts.append(
        f"Of all queries {head.value:+.1%} [{head.low:+.1%}, {head.high:+.1%}] are copied too often, which not knowing the answers "
        "does not excuse."
    )
    ignorant = "excess_named" in got and got["excess_hidden"].low > threshold >= got["excess_named"].low
    if ignorant and not head.low > threshold:
        parts.append("Name the answers in the prompt: without that the model has to say one that it sees.")
    return " ".join(parts)


def consequence(before: Finding, after: Finding | None) -> str:
    """What copying means: how many queries get a wrong answer from the prompt that neither chance nor ignorance explains."""
    opening = {
        "found": "This model copies answers from the examples in its prompt.",
        "undecided": "It is not settled whether this model copies answers from the examples in its prompt.",
        "clear": "This model does not copy answers from the examples in its prompt beyond the threshold.",
    }[before.verdict]
    sentence = f"Of its queries {before.severity:.1%} get a wrong answer that was copied and is not explained by chance"
    return f"{opening} {sentence}" + ("." if after is None else f"; with the repaired adapter {after.severity:.1%}.")


def compare(before: Finding, after: Finding, *, resamples: int, seed: int) -> dict[str, Difference]:
    """Paired bootstrap differences, after minus before, of the severity and every measure both have."""
    statistics_of_values = {k: s[0] for k, s in statistics(before.samples).items() if not k.startswith("follow")}
    differences = bootstrap.paired_many(
        statistics_of_values, list(before.samples.values()), [after.samples[k] for k in before.samples], seed, resamples=resamples,
        cluster=before.samples["cluster"],
    )  # fmt: skip
    return as_differences(differences)


def examples(corpus: Corpus, before: Finding, after: Finding | None) -> list[dict[str, str | float | bool]]:
    """The wrongly copied answers first, those least expected by chance in front; then what the repair changed."""
    s = before.samples
    order = np.lexsort((s["expected_free"], -s["copied_free"]))[:100]
    if after is not None:
        moved = np.flatnonzero(after.samples["answer_free"] != s["answer_free"])
        order = np.concatenate([order, moved[:100]])
    rows: list[dict[str, str | float | bool]] = []

    def named(i: Any) -> str:
        return corpus.classes[int(i)] if i >= 0 else "(something else)"

    for i in dict.fromkeys(order.tolist()):
        row: dict[str, str | float | bool] = {
            "text": shortened(corpus.text[i], 400), "label": named(corpus.label[i]), "answered": named(s["answer_free"][i]),
            "right": bool(s["right_free"][i]), "copied": bool(s["copied_free"][i]),
        }  # fmt: skip
        if after is not None:
            row["answered after"] = named(after.samples["answer_free"][i])
        rows.append(row)
    return rows


def charts(
    subject: Subject, corpus: Corpus, measures: Mapping[str, Measure], given: Vectors | None, seed: int, resamples: int
) -> tuple[Chart, ...]:
    """Accuracy, copies and their chance by number of demonstrations, and by how these are drawn."""
    assert subject.shots is not None
    swept, right = some(corpus, SWEPT, seed), bootstrap.Share(np.asarray)
    lines: dict[str, list[bootstrap.Estimate]] = {"right": [], "copied": [], "copied by chance": []}
    done: list[int] = []
    for k in SWEEP:
        try:
            answered = asked(subject, swept, "free", seed, number=k)
        except BadInput:  # so many need more pairs, or more room, than there is
            break
        done.append(k)
        values = answered.scored(swept.label)
        for name, what in {"right": "right", "copied": "copied", "copied by chance": "expected"}.items():
            statistic = mean if what == "expected" else right
            lines[name].append(
                bootstrap.interval(statistic, values[what], seed=seed, resamples=resamples, cluster=swept.cluster)
            )
    by_layer = [] if given is None else [
        bootstrap.interval(right, v, seed=seed, resamples=resamples, cluster=given.cluster) for v in given.curve.T
    ]  # fmt: skip
    kinds: list[Mode] = [m for m in MODES if f"accuracy{_tail(m)}" in measures]
    bars = {"right": "accuracy", "copied": "copying", "copied by chance": "expected"}
    return (
        Chart(
            "shots", "By number of demonstrations", "line", "demonstrations", "share of queries",
            "Copies above what chance gives are the fault; they grow with the number of demonstrations to copy from.",
            tuple(
                Series(n, [float(k) for k in done], [e.value for e in v], [e.low for e in v], [e.high for e in v])
                for n, v in lines.items()
            ),
            here=float(subject.shots.number) if subject.shots.number in done else None,
        ),
        Chart(
            "draws", "By what the demonstrations show", "bar", "demonstrations", "share of queries",
            "A model that only avoids shown answers gains where the right one is never shown and loses where it always is.",
            tuple(
                Series(
                    n, [TITLES[m] for m in kinds], [measures[f"{k}{_tail(m)}"].value for m in kinds],
                    [measures[f"{k}{_tail(m)}"].low for m in kinds], [measures[f"{k}{_tail(m)}"].high for m in kinds],
                )
                for n, k in bars.items()
            ),
        ),
        *(
            [Chart(
                "task-vectors", "Task vectors", "line", "layer", "share of queries right",
                "What the demonstrations left at one layer, given to a query without any: high where the model has understood the "
                "task and does not only look answers up (Hendel et al., arXiv 2310.15916). On pairs of the pool, which choose the "
                "layer.",
                (Series(
                    "right", [float(i + 1) for i in range(len(by_layer))], [e.value for e in by_layer],
                    [e.low for e in by_layer], [e.high for e in by_layer],
                ),),
            )] if by_layer else []
        ),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Vectors:
    """Task vectors as numbers.

    Attributes:
        curve: (m, layers - 1) 1 where one of m pairs of the pool is answered right with the vector of a layer, from layer 1 on.
        layer: the one with which most of these are.
        cluster: (m,) of these pairs.
        columns: (n,) ``vector``, 1 where an examined query is answered right with that layer's vector, and ``vector_asked``.
    """

    curve: np.ndarray
    cluster: np.ndarray
    layer: int
    columns: Mapping[str, np.ndarray]


def task_vectors(subject: Subject, corpus: Corpus, seed: int) -> Vectors | None:
    """The layer is chosen on pairs of the pool, drawn at random, none of which is examined; every query is given its vector.

    None where the pool is too small, or a prompt with another query too long: the audit does without.
    """
    if "layers" in subject.anatomy.lacks:
        return None
    shots = prompts.pool_of(subject)
    pool, place = sorted(shots.pool[shots.fixed :]), {c: i for i, c in enumerate(subject.classes)}
    drawn = np.random.default_rng(np.random.SeedSequence([seed, 29])).permutation(len(pool))[:VECTORS]
    dev, depth = [pool[i] for i in drawn], len(layers_of(subject))
    if depth < 2:
        return None
    try:
        label = np.array([place[y] for _, y in dev], dtype=np.int64)
        queries = Corpus([x for x, _ in dev], label, subject.classes, np.array(["train"] * len(dev)), name="pool")
        curve, able = vectors(subject, queries, seed, range(1, depth))
        if not able.any():
            return None
        curve, cluster = curve[able], queries.cluster[able]
        layer = 1 + int(curve.mean(axis=0).argmax())
        right, able = vectors(subject, corpus, seed, [layer])
    except BadInput:
        return None
    return Vectors(curve, cluster, layer, {"vector": right[:, 0], "vector_asked": able.astype(float)})


def vectors(subject: Subject, corpus: Corpus, seed: int, layers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(n, l) 1 where a query without demonstrations is answered right once it has been given a task vector; (n,) those asked.

    Hendel et al., arXiv 2310.15916: the task vector of a layer is what enters it at the last token of a prompt with
    demonstrations and another query; it takes the place of what enters it at the last token of the bare query. A departure:
    each query gets a vector of its own demonstrations, and answers are told by their first tokens, among the classes.

    Args:
        layers: of which the vectors are, one column each.
    """

    def entering(subject: Subject, batch: forward.Batch) -> Tensor:
        return forward.hidden_states(subject, batch)[:, list(layers)]

    shots = prompts.pool_of(subject)
    if shots.fixed:  # the other query is one of the pairs that stand in none of the prompts
        draws = prompts.drawn(subject, corpus, seed=seed)
        assert draws.others is not None
        other, able = draws.others.index[:, -1], draws.possible & draws.others.possible
    else:  # one more than is shown: the last one is the other query
        draws = prompts.drawn(subject, corpus, number=shots.number + 1, seed=seed)
        other, able = draws.index[:, -1], draws.possible
        draws = replace(draws, index=draws.index[:, :-1])
    at = np.flatnonzero(able)
    texts = [shots.pool[j][0] for j in other[at]]
    asked = prompts.rows(subject, texts, draws.take(at))
    states = collect_rows(subject, asked, entering, f"hidden states of layers {list(layers)}")
    queries = corpus.take(at)
    bare = prompts.rows(subject, queries.text, prompts.drawn(subject, queries, number=0, seed=seed))
    begins = np.array(subject.verbaliser_ids())  # several answers may begin with one token
    right_after_patch = (
        begins[patched_answers(subject, bare, states, layers)] == begins[queries.label][:, None]
    ).astype(float)
    right = np.zeros((len(corpus), right_after_patch.shape[1]))
    right[at] = right_after_patch
    return right, able


def mean(values, weight=None) -> float:
    """The mean of one number per query, as a statistic of the bootstrap."""
    return float(np.average(values, weights=weight))


def _tail(mode: str) -> str:
    return "" if mode == "free" else f"_{mode}"


def statistics(kept: Mapping[str, np.ndarray]) -> dict[str, tuple[Callable[..., float], str, str]]:
    """key -> statistic of the columns, title, which direction is better."""
    names = list(kept)

    def column(name: str) -> Callable[..., np.ndarray]:
        return lambda *values: values[names.index(name)]

    def share(top: str, under: str, less: str | None = None, where: str = "") -> bootstrap.Share:
        """The mean of `top`, less that of `less`, over the rows `under`; with `where` those of them that it marks, or with a
        sign before it, does not."""

        def among(*values: np.ndarray) -> np.ndarray:
            at = dict(zip(names, values, strict=True))
            if not where:
                return at[under]
            return at[under] * (~at[where[1:]] if where[0] == "-" else at[where])

        return bootstrap.Share(column(top), among, None if less is None else column(less))

    def mean_of(top: str, under: str) -> Callable[..., float]:
        """The mean of the chances `top` over the rows `under`."""

        def statistic(*values, weight=None) -> float:
            w = column(under)(*values) * (1.0 if weight is None else weight)
            return float(w @ column(top)(*values) / w.sum()) if w.any() else float("nan")

        return statistic

    severity = maths.above_chance(column("blamed"), column("counted"))
    found: dict[str, tuple[Callable[..., float], str, str]] = {
        "severity": (severity, "copied wrongly, above chance", "lower")
    }
    for m in MODES:
        if not kept[f"asked_{m}"].any():
            continue
        where = "" if m == "free" else f", {TITLES[m]}"
        found[f"accuracy{_tail(m)}"] = (share(f"right_{m}", f"asked_{m}"), f"accuracy{where}", "higher")
        found[f"copying{_tail(m)}"] = (share(f"copied_{m}", f"asked_{m}"), f"copied wrongly{where}", "lower")
        found[f"expected{_tail(m)}"] = (mean_of(f"expected_{m}", f"asked_{m}"), f"copied by chance{where}", "lower")
    right_shown, right_not_shown = (
        "copied above chance, the right answer shown",
        "copied above chance, the right answer not shown",
    )
    if kept["shown"].any():
        found["excess_shown"] = (share("copied_free", "asked_free", "expected_free", "shown"), right_shown, "lower")
    if not kept["shown"].all():
        found["excess_hidden"] = (
            share("copied_free", "asked_free", "expected_free", "-shown"),
            right_not_shown,
            "lower",
        )
        if "copied_named" in kept:
            named = share("copied_named", "asked_named", "expected_named", "-shown")
            found["excess_named"] = (named, f"{right_not_shown}, all answers named", "lower")
    if "copied_named" in kept:
        found["accuracy_named"] = (share("right_named", "asked_named"), "accuracy, all answers named", "higher")
    if kept.get("vector_asked", np.zeros(1)).any():
        title = "accuracy without demonstrations, given a task vector"
        found["task_vector"] = (share("vector", "vector_asked"), title, "higher")
    if kept.get("swapped", np.zeros(1)).any():
        title = "copies that follow when the shown answer is exchanged"
        found["follow"] = (share("followed", "swapped"), title, "lower")
        found["follow_expected"] = (mean_of("followed_expected", "swapped"), f"{title}, by chance", "lower")
    return found


def _followed(
    subject: Subject, corpus: Corpus, answer: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The causal test: for every wrong copy, the copied answer is exchanged in the demonstrations for one that stands
    nowhere in them and is not right. (n,) 1 where the answer follows; the chance of that, had it not looked at which one was
    put in; and 1 where it could be tested."""
    draws = prompts.drawn(subject, corpus, seed=seed)
    copied = maths.copies(answer, corpus.label, draws.shown) > 0
    assert subject.shots is not None
    place = {c: i for i, c in enumerate(subject.classes)}
    answer_of_demonstration = np.array([place[y] for _, y in subject.shots.pool])[draws.index]
    spare = ~draws.shown & (np.arange(len(subject.classes)) != corpus.label[:, None])
    take = np.flatnonzero(copied & spare.any(axis=1))
    followed, expected, tested = np.zeros((3, len(corpus)))
    if len(take):
        by_name = np.argsort(np.array(subject.classes), kind="stable")  # in whatever order the answers are listed
        instead = np.array([
            np.random.default_rng([seed, *draws.index[i].tolist()]).choice(by_name[spare[i][by_name]]) for i in take
        ])  # fmt: skip
        exchanged = np.where(
            answer_of_demonstration[take] == answer[take, None], instead[:, None], answer_of_demonstration[take]
        )
        answered_swapped = answers(
            subject, prompts.rows(subject, [corpus.text[i] for i in take.tolist()], draws.take(take), exchanged)
        )
        followed[take], expected[take] = maths.by_swap(answered_swapped.answer, instead, spare[take])
        tested[take] = 1.0
    return followed, expected, tested
