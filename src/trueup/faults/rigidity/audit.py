"""Subject + Corpus -> Finding: is the prompt the bottleneck, and what does it do inside?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trueup.corpus.clusters import in_order
from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput, Unsupported, shortened
from trueup.faults.fault import Chart, Difference, Finding, Measure, Series, as_differences
from trueup.faults.rigidity import maths
from trueup.faults.rigidity.contest import Kind, Team, budget, left_out, on, rivals, team
from trueup.measure import bootstrap
from trueup.measure.bootstrap import PairedEstimate
from trueup.measure.calibration import softmax
from trueup.measure.folds import folds
from trueup.measure.seeds import Contrast, Side, contrast
from trueup.run import forward, prompt_description
from trueup.run.attention_change import ByLayer, Trace, by_layer, frozen, slots, trace
from trueup.run.predict import collect_rows, predict, session
from trueup.run.prompts import Row
from trueup.run.train import Training
from trueup.subject.attention_modules import changed_elsewhere
from trueup.subject.kinds import Prefix
from trueup.subject.subject import Subject

FEWEST = 20
"""Fewest examples an audit works with."""
TEXTS, FEW = 48, 16
"""Training texts that are looked at inside, and of these those that are run once for every layer."""
SHOWN = 12
"""Tokens that the report lists."""
TELLING = 0.3
"""Nats a token by which a text about the prompt must be likelier than about none: random prompts reached 0.2."""
QUERY_KEY, VALUE_MLP = "query-key LoRA", "value-MLP LoRA"
PROMPTS, WEIGHTS = ("prompt", "prefix"), (QUERY_KEY, VALUE_MLP)


@dataclass(frozen=True, eq=False)
class References:
    """What an audit compares with, learnt from ``train`` and chosen on the first half of ``calibration``.

    Attributes:
        corpus: at most so many training examples, and that half. held: the other half, on which nothing was chosen.
        texts: training texts to look inside with: the same for every audit, whatever it examines.
        size: trained numbers of the subject's adapter, without its head. own: its accuracy on that half.
        entrants: adapters of one size and effort from several seeds, by kind; empty where the subject's own adapter is one of
            weights.
        left_out: kinds that could not take part, and why.
    """

    corpus: Corpus
    held: Corpus
    texts: Corpus
    size: int
    own: float
    entrants: Mapping[str, Team]
    left_out: Mapping[Kind, str]

    def best(self, kinds: tuple[str, ...]) -> str:
        """The kind with the lowest mean NLL over seeds on calibration; empty where none is."""
        return min((k for k in kinds if k in self.entrants), key=lambda k: self.entrants[k].kept.nll, default="")


def rates(tries: int) -> tuple[float, ...]:
    """Factors of a kind's own learning rate, a factor of 3 apart."""
    return tuple(float(3.0 ** (i - (tries - 1) / 2)) for i in range(tries))


def references(
    subject: Subject, corpus: Corpus, *, epochs: int, tries: int, seeds: int, most: int, seed: int
) -> References:
    """Train the adapters that the subject is compared with, all of one size and with the same effort.

    The size is the subject's own, or where no adapter of weights is so small, that of the smallest.

    Raises:
        BadInput: no train or calibration examples, too few of them, or weights that train at no learning rate.
    """
    corpus = corpus.relabel(subject.classes)
    for split, least in (("calibration", 2 * FEWEST), ("test", FEWEST)):
        found = int((corpus.split == split).sum())
        if found < least and (found or split == "calibration"):
            raise BadInput(
                f"'{corpus.name}' gives {found} {split} examples; rigidity needs at least {least}. Give more rows."
            )
    train, first, held = parts(corpus, most, seed)
    both = corpus.take(np.sort(np.concatenate([train, first])))
    size, entrants, barred = budget(subject), {}, {}
    if slots(subject):
        barred = left_out(subject)
        same = max([size, *(r.size for r in rivals(subject, size) if r.kind in WEIGHTS)])
        for rival in rivals(subject, same):
            if not rival.fits(same):
                barred[rival.kind] = (
                    f"It has {rival.size:,} numbers at the least or most, and the others about {same:,}."
                )
                continue
            try:
                entrants[rival.kind] = team(
                    subject, both, rival, rates=rates(tries), training=Training(epochs=epochs), seeds=seeds, seed=seed
                )
            except BadInput as e:
                barred[rival.kind] = str(e)
        if not any(k in entrants for k in WEIGHTS):
            raise BadInput(
                f"There is nothing to compare the prompt with. {' '.join(f'{k}: {v}' for k, v in barred.items())}"
            )
    else:
        session().note(
            "The adapter changes weights, so rigidity compared it with nothing, and its severity is 0. To learn whether a prompt "
            "can do this task, tune one with `trueup tune prompt` and examine that."
        )
    choosing = corpus.take(first)
    own_accuracy = float((predict(subject, choosing).predicted == choosing.label).mean()) if entrants else float("nan")
    drawn = np.random.default_rng(np.random.SeedSequence([seed, 5])).permutation(train)[:TEXTS]
    return References(both, corpus.take(held), corpus.take(np.sort(drawn)), size, own_accuracy, entrants, barred)


def parts(corpus: Corpus, most: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows: at most `most` to train on, and the two halves of ``calibration``, by clusters.

    Raises:
        BadInput: there are no training examples.
    """
    corpus.part("train")
    rng = np.random.default_rng(np.random.SeedSequence([seed, 6]))
    train, calibration = (np.flatnonzero(corpus.split == s) for s in ("train", "calibration"))
    half = folds(
        corpus.label[calibration], 2, seed=np.random.SeedSequence([seed, 14]), cluster=corpus.cluster[calibration]
    )
    return np.sort(rng.permutation(train)[:most]), calibration[half == 0], calibration[half == 1]


def audit(subject: Subject, corpus: Corpus, refs: References, *, threshold: float, seed: int) -> Finding:
    """Examine on all of `corpus`; what happens inside is read on the references' texts.

    Raises:
        BadInput: fewer than 20 examples.
    """
    corpus, place = in_order(corpus.relabel(subject.classes))
    if len(corpus) < FEWEST:
        raise BadInput(
            f"'{corpus.name}' gives {len(corpus)} examples to examine; rigidity needs at least {FEWEST}. Give more rows."
        )
    table = columns(subject, corpus, refs)
    virtual, rows = slots(subject), forward.tokenize(subject, refs.texts)
    if (loaded := subject.base.config._attn_implementation) != "eager":  # type: ignore[union-attr]
        session().note(
            f"trueup used eager attention to read the attention weights; the model was loaded with '{loaded}' attention."
        )
    seen, alone = trace(subject, rows), by_layer(subject, rows[:FEW])
    # An encoder answers at its soft prompt's first token: a prompt that reads the text cannot be made a constant.
    inside_prompt = subject.soft_prompted and not subject.anatomy.causal
    if virtual and not inside_prompt:
        with frozen(subject, seen.shares):
            table["right_frozen"] = _right(subject, corpus)[0]
    table["cluster"] = corpus.cluster
    contrasts_by_key = contrasts(table, refs, virtual=bool(virtual))
    estimates = {k: c.estimate() for k, c in contrasts_by_key.items()}
    tolerance = maths.TOLERANCE.get(str(next(subject.model.parameters()).dtype).removeprefix("torch."), 1e-5)
    word = maths.judged(
        contrasts_by_key["severity"], corpus.cluster, len(corpus), threshold=threshold, sentence=""
    ).verdict
    verdict_in_words = maths.SAYS[word] if virtual else None
    looks = maths.signature(
        largest(seen.change[0]), np.nan_to_num(alone.change).max(axis=1), float(seen.residual[0].max()),
        float(seen.mass.max()), virtual, tolerance, inside=inside_prompt, elsewhere=", ".join(changed_elsewhere(subject)),
    )  # fmt: skip
    names = names_of(refs)
    measures = {
        k: Measure(e.value, e.low, e.high, "accuracy", better, title)  # type: ignore[arg-type]
        for k, (title, better) in names.items() if (e := estimates.get(k)) is not None
    }  # fmt: skip
    return maths.judged(
        contrasts_by_key["severity"], corpus.cluster, len(corpus), threshold=threshold,
        sentence=_sentence(refs, estimates, verdict_in_words, threshold, virtual, looks), measures=measures,
        samples={k: v[place] for k, v in table.items()}, charts=charts(subject, seen, None if inside_prompt else alone, measures),
        details={
            "verdict": verdict_in_words, "signature": looks,
            "what this prompt says": says(subject) if virtual else None,
            "contest": {
                "trained numbers of this adapter": refs.size,
                "best weights": refs.best(WEIGHTS), "best prompt": refs.best(PROMPTS),
                "entrants": {
                    k: {"trained numbers": e.rival.size, **mixing(e), "learning rate": e.kept.lr,
                        "epochs": e.kept.epochs, "seeds": len(e.members),
                        "still improving": e.kept.growing,
                        "tried": "; ".join(f"{a.lr:.2g} ({a.epochs} epochs): NLL {a.nll:.4f}, accuracy {a.accuracy:.4f}"
                                           for a in e.tried)}
                    for k, e in refs.entrants.items()
                },
                "could not take part": dict(refs.left_out),
            },
            "inside": inside(subject, seen, alone, tolerance),
        },
        provenance={"seed": seed, "level": 0.95, "examples": len(corpus), "clusters": len(np.unique(corpus.cluster)),
                    "seeds": max((len(e.members) for e in refs.entrants.values()), default=0),
                    "texts looked into": len(refs.texts)},
    )  # fmt: skip


def mixing(e: Team) -> dict[str, int]:
    """For a prefix that is mixed from shared directions, of how many slots and directions."""
    recipe = e.rival.recipe
    return (
        {"slots": recipe.tokens, "directions they share": recipe.rank}
        if isinstance(recipe, Prefix) and recipe.rank
        else {}
    )


def largest(x: np.ndarray) -> float:
    """The largest number there is; 0 where there is none."""
    return float(np.nan_to_num(x).max())


def columns(subject: Subject, corpus: Corpus, refs: References) -> dict[str, np.ndarray]:
    """(n,) arrays: what the subject answers, and whether it and each reference, from each seed, is right."""
    right, answer = _right(subject, corpus)
    table = {"right": right, "answer": answer}
    for kind, entrant in refs.entrants.items():
        for i, member in enumerate(entrant.members):
            table[f"right_{key_of(kind)}_{i}"], _ = _right(on(subject, member), corpus)
    return table


def seeds_of(kept: Mapping[str, np.ndarray], kind: str) -> np.ndarray:
    """(S, n): whether the references of a kind, one a seed, are right."""
    name = f"right_{key_of(kind)}_"
    return np.stack(
        [kept[k] for k in sorted((k for k in kept if k.startswith(name)), key=lambda k: int(k[len(name) :]))]
    )


def contrasts(kept: Mapping[str, np.ndarray], refs: References, *, virtual: bool) -> dict[str, Contrast]:
    """key -> a figure over seeds and clusters.

    The severity is the accuracy of the best weights less that of the best prompt, of equal size and effort. An adapter of
    weights has no prompt for a bottleneck: of the best weights it is what this one lacks.
    """
    sides = {kind: seeds_of(kept, kind) for kind in refs.entrants}
    subject_right = kept["right"][None]
    weights, prompt = sides.get(refs.best(WEIGHTS), subject_right), sides.get(refs.best(PROMPTS))
    found: dict[str, list[Side]] = {
        "severity": [(1.0, weights), (-1.0, _rival_of(subject_right, prompt, virtual=virtual))]
    }
    if virtual:
        found["this_prompt"] = [(1.0, weights), (-1.0, subject_right)]
        if prompt is not None:
            found["under_tuned"] = [(1.0, prompt), (-1.0, subject_right)]
            found |= {f"{key_of(k)}_gap": [(1.0, sides[k]), (-1.0, prompt)] for k in WEIGHTS if k in sides}
        if QUERY_KEY in sides and VALUE_MLP in sides:
            found["attention_gap"] = [(1.0, sides[QUERY_KEY]), (-1.0, sides[VALUE_MLP])]
    found["accuracy"] = [(1.0, subject_right)]
    found |= {f"accuracy_{key_of(k)}": [(1.0, x)] for k, x in sides.items()}
    if "right_frozen" in kept:
        found["accuracy_frozen"] = [(1.0, kept["right_frozen"][None])]
    return {k: contrast(x, cluster=kept["cluster"]) for k, x in found.items()}


def _rival_of(own: np.ndarray, prompt: np.ndarray | None, *, virtual: bool) -> np.ndarray:
    """What the best weights are held against: a prompt of equal size and effort, the subject's own where none could be tuned,
    and the subject's weights where it has no prompt."""
    return prompt if virtual and prompt is not None else own


def _right(subject: Subject, corpus: Corpus) -> tuple[np.ndarray, np.ndarray]:
    predicted = predict(subject, corpus).predicted
    return (predicted == corpus.label).astype(float), predicted


def key_of(kind: str) -> str:
    return kind.replace("-", "_").replace(" ", "_").lower()


def names_of(refs: References) -> dict[str, tuple[str, str]]:
    """What a reader calls each figure, by its key, and which direction is better."""
    names = {
        "accuracy": ("accuracy", "higher"), "accuracy_frozen": ("accuracy with its prompt made a constant", "higher"),
        "this_prompt": ("best weights less this prompt", "lower"),
        "under_tuned": ("a prompt of equal size and effort less this one: how far it is under-tuned", "lower"),
        "attention_gap": (f"{QUERY_KEY} less {VALUE_MLP}: what only new attention patterns gain", "lower"),
    }  # fmt: skip
    for kind, e in refs.entrants.items():
        anew = "tuned anew" if kind in PROMPTS else "instead"
        title = f"accuracy of a {kind} {anew} ({e.rival.size:,} numbers, {len(e.members)} seeds)"
        names[f"accuracy_{key_of(kind)}"] = (title, "higher")
        if kind in WEIGHTS:
            names[f"{key_of(kind)}_gap"] = (f"{kind} less the best prompt of equal size and effort", "lower")
    return names


def short(title: str) -> str:
    """The name of a bar: of what the accuracy is."""
    return title.split(" (")[0].removeprefix("accuracy").removeprefix(" of a ").removeprefix(" with ") or "this adapter"


def consequence(before: Finding, after: Finding | None) -> str:
    """What rigidity means: how many more texts weights would get right."""
    if before.details["verdict"] is None:
        return f"This adapter changes weights and is right on {before.measures['accuracy'].value:.1%} of the texts."
    opening = {
        "found": "A prompt cannot do this task as well as an adapter of weights.",
        "undecided": "It is not settled whether a prompt can do this task as well as an adapter of weights.",
        "clear": "A prompt does this task as well as an adapter of weights, within the threshold.",
    }[before.verdict]
    sentence = f"With equal size and effort, the accuracy of weights is {_apart(before.severity)} that of a prompt"
    if after is not None:
        sentence += f", and {_apart(after.severity)} that of the repaired adapter"
    return f"{opening} {sentence}."


def _apart(difference: float) -> str:
    return f"{100 * abs(difference):.1f} points {'above' if difference >= 0 else 'below'}"


def compare(before: Finding, after: Finding) -> dict[str, Difference]:
    """Differences, after minus before, of the severity and the accuracy, on the same examples and references."""
    weights = before.details["contest"]["best weights"]
    sides = [_severity_sides(f, weights) for f in (before, after)]
    # What stands on both sides (the same references) cancels example by example, seed by seed.
    same = [(w, x) for w, x in sides[1] if not any(np.array_equal(x, y) for _, y in sides[0])]
    gone = [(-w, x) for w, x in sides[0] if not any(np.array_equal(x, y) for _, y in sides[1])]
    accuracy_sides = [(1.0, after.samples["right"][None]), (-1.0, before.samples["right"][None])]
    found = {"severity": same + gone, "accuracy": accuracy_sides}
    differences = {
        k: contrast(x, cluster=before.samples["cluster"]).difference()
        if x
        else PairedEstimate(0.0, 0.0, 0.0, 1.0, 0.95)
        for k, x in found.items()
    }
    return as_differences(differences)


def _severity_sides(f: Finding, weights: str) -> list[Side]:
    subject_right = f.samples["right"][None]
    prompt = f.details["contest"]["best prompt"]
    best = seeds_of(f.samples, weights) if weights else subject_right
    rival = seeds_of(f.samples, prompt) if prompt else None
    return [(1.0, best), (-1.0, _rival_of(subject_right, rival, virtual=f.details["verdict"] is not None))]


def _sentence(
    refs: References,
    got: Mapping[str, bootstrap.Estimate],
    told: str | None,
    threshold: float,
    virtual: int,
    looks: str,
) -> str:
    own_accuracy, head = got["accuracy"], got["severity"]
    if not refs.entrants:
        return f"It adapts weights already ({own_accuracy.value:.1%} right), so it was compared with nothing. {looks}"
    weights, prompt = refs.best(WEIGHTS), refs.best(PROMPTS)
    best = refs.entrants[weights]
    if not virtual:
        return (
            f"It adapts weights and is right on {own_accuracy.value:.1%} of the examples; a {weights} of {best.rival.size:,} "
            f"numbers (this adapter: {refs.size:,}) is on {got[f'accuracy_{key_of(weights)}'].value:.1%}: {points(head)} more."
        )
    said_of = {
        "weights needed": "Weights are needed",
        "prompt suffices": "A prompt suffices",
        "undecided": "It is undecided whether a prompt suffices",
    }[told or ""]
    rival = (
        f"a {prompt} of equal size and effort"
        if prompt
        else "this prompt, since none could be tuned with the same effort,"
    )
    parts = [
        f"{said_of}: over {len(best.members)} seeds a {weights} of {best.rival.size:,} trained numbers is right on "
        f"{got[f'accuracy_{key_of(weights)}'].value:.1%} of the examples, {points(head)} more than {rival}."
    ]
    parts.append(f"This prompt ({refs.size:,} numbers) is right on {own_accuracy.value:.1%}.")
    if "under_tuned" in got and got["under_tuned"].low > threshold:
        parts.append(
            f"It is under-tuned: the same kind and effort gains {points(got['under_tuned'])}. That is no rigidity; tune it anew: "
            "`trueup tune prompt`."
        )
    if told == "weights needed" and "query_key_lora_gap" in got:
        parts.append(_on_attention(got["query_key_lora_gap"], got.get("attention_gap"), threshold))
    if "accuracy_frozen" in got:
        parts.append(f"Made a constant, the prompt leaves {got['accuracy_frozen'].value:.1%}.")
    return " ".join(parts)


def _on_attention(
    gap: bootstrap.Estimate | bootstrap.PairedEstimate,
    apart: bootstrap.Estimate | bootstrap.PairedEstimate | None,
    threshold: float,
) -> str:
    """Whether the task needs new attention patterns: it does where a query-key LoRA gains over the prompt, and more than a
    value-MLP LoRA. What both learn can be learnt without them.

    Args:
        gap: query-key LoRA less prompt. apart: query-key LoRA less value-MLP LoRA, if both took part.
    """
    alone, unknown = (
        f"Re-aiming attention alone ({QUERY_KEY})",
        "it is not shown that the task needs new attention patterns",
    )
    if gap.low <= threshold:
        return f"{alone} does not clearly gain over the prompt ({points(gap)}), so {unknown}."
    gains = f"{alone} gains over the prompt ({points(gap)})"
    if apart is None:
        return f"{gains}. No {VALUE_MLP} was compared with it, so {unknown}."
    if apart.low <= 0:
        return f"{gains}, but not measurably more than a {VALUE_MLP} ({points(apart)}), so {unknown}."
    return f"{gains}, and more than a {VALUE_MLP} ({points(apart)}), so the task needs new attention patterns."


def points(e: bootstrap.Estimate | bootstrap.PairedEstimate) -> str:
    """A difference of accuracies in percentage points, with its interval."""
    return f"{100 * e.value:+.1f} points [{100 * e.low:+.1f}, {100 * e.high:+.1f}]"


def charts(subject: Subject, seen: Trace, alone: ByLayer | None, measures: Mapping[str, Measure]) -> tuple[Chart, ...]:
    """The contest, and per layer and head where attention goes, how it changes, and what the prompt pushes to."""
    depth, heads = seen.change.shape
    layers, columns = [f"layer {i}" for i in range(depth)], [float(i) for i in range(heads)]

    def heat(key: str, title: str, cells: np.ndarray, value: str, reading: str) -> Chart:
        rows = tuple(Series(layers[i], columns, cells[i].tolist()) for i in range(depth))
        return Chart(key, title, "heat", "head", "layer", reading, rows, value_title=value)

    bars = {k: m for k, m in measures.items() if k.startswith("accuracy")}
    found = [
        Chart(
            "contest", "The same size, the same effort", "bar", "adapter", "share of examples right",
            "Each kind was trained with about as many numbers, for as long as it improved, from several seeds. Where adapters of "
            "weights stand clearly above every prompt, the prompt is the bottleneck.",
            (Series("right", [short(m.title) for m in bars.values()], [m.value for m in bars.values()],
                    [m.low for m in bars.values()], [m.high for m in bars.values()]),),
        )
    ]  # fmt: skip
    if seen.shares.shape[-1]:
        found.append(
            heat("mass", "Attention on the prompt", seen.mass, "share of attention",
                 "Near 1 a head is switched off for the text; near 0 it ignores the prompt.")
        )  # fmt: skip
    found.append(
        heat("change", "Attention changed among the text's tokens", seen.change, "total variation",
             "How far what the text's tokens look at among themselves moves from the base's: 0 not at all, 1 wholly. A prompt "
             "leaves the first layer at 0 and moves later ones only through what it changed before them.")
    )  # fmt: skip
    if alone is not None and len(subject.classes) <= 8:
        found.append(
            Chart(
                "push", "What each layer pushes to", "line", "layer", "change of the class logit, less the classes' mean",
                f"The adapter at work in one layer alone: which class it makes likelier, in the mean of {FEW} texts.",
                tuple(Series(c, [float(i) for i in range(depth)], alone.push[:, j].tolist())
                      for j, c in enumerate(subject.classes)),
            )
        )  # fmt: skip
    return tuple(found)


def inside(subject: Subject, seen: Trace, alone: ByLayer, tolerance: float) -> dict[str, Any]:
    """D1 to D6 as numbers: per layer (of heads the mean or the largest), and the tokens that look at the prompt most."""

    def listed(x: np.ndarray) -> str:
        return ", ".join("none" if np.isnan(v) else f"{v:.3g}" for v in x)

    def over_heads(x: np.ndarray) -> str:
        present = ~np.isnan(x)
        return listed(np.where(present.any(axis=1), np.nansum(x, axis=1) / np.maximum(present.sum(axis=1), 1), np.nan))

    found: dict[str, Any] = {
        "rows": seen.rows, "tolerance": tolerance,
        "layer 0: largest total variation": largest(seen.worst[0]),
        "layer 0: output less bias and shrinking": float(seen.residual[0].max()),
        "total variation": over_heads(seen.change),
        "of it by the layer's own doing": over_heads(alone.change),
        "rows not compared": listed(seen.dropped.max(axis=1)),
        "class probabilities moved by one layer alone": listed(alone.shifted),
    }  # fmt: skip
    if seen.shares.shape[-1]:
        found |= {
            "attention on the prompt": {q: listed(x.mean(axis=1)) for q, x in
                                        zip(("10%", "50%", "90%"), seen.quantiles, strict=True)},
            "bias: dimensions": listed(maths.rank(seen.gram).max(axis=1)),
            "bias: participation ratio": listed(maths.participation(seen.gram).mean(axis=1)),
            "bias: mean pairwise cosine": over_heads(seen.cosine),
            "tokens that look at the prompt most": _tokens(subject, seen, most=True),
            "and least": _tokens(subject, seen, most=False),
            "class probabilities without any text": silent(subject),
        }  # fmt: skip
    return found


def _tokens(subject: Subject, seen: Trace, *, most: bool) -> list[list[Any]]:
    known = np.flatnonzero(~np.isnan(seen.tokens))
    order = known[np.argsort(-seen.tokens[known] if most else seen.tokens[known], kind="stable")][:SHOWN]
    words = subject.tokenizer.convert_ids_to_tokens(order.tolist())
    return [[w, round(float(seen.tokens[i]), 4)] for w, i in zip(words, order, strict=True)]


def silent(subject: Subject) -> dict[str, float]:
    """Class probabilities when there is nothing but the prompt, and what a template or tokenizer puts around a text."""
    tok = subject.tokenizer
    ids = tok("" if subject.template is None else subject.template.fill(""))["input_ids"]
    # Where nothing is put around it, one token must stand for the text: something has to look at a prefix.
    row = Row(ids or [tok.eos_token_id if tok.eos_token_id is not None else tok.pad_token_id])
    z = collect_rows(subject, [row], forward.logits, "no text")[0, : len(subject.classes)].astype(float)
    return {c: round(float(p), 4) for c, p in zip(subject.classes, softmax(z), strict=True)}


def says(subject: Subject) -> dict[str, Any]:
    """The prompt read as words, with the caution that belongs to it."""
    found: dict[str, Any] = {
        "caution": "A hint and no evidence: nearest words often only show what the prompt was started from, and a model writes "
        f"something fluent about any prompt. Texts that it would have written about any (a score below {TELLING}) are left out.",
    }
    try:
        usual = prompt_description.usual_cosine(subject)
        found[f"nearest tokens by cosine (of a token of the vocabulary usually {usual:.2f})"] = [
            ", ".join(f"{n.token!r} {n.cosine:.2f}" for n in near) for near in prompt_description.nearest(subject, 3)
        ]
    except Unsupported as e:
        found["nearest tokens"] = str(e)
    try:
        found["what the base model writes about it"] = [
            f"{d.text!r} (layer {d.source} to {d.target}, score {d.score:+.2f})"
            for d in prompt_description.described(subject)
            if d.score >= TELLING
        ]
    except (BadInput, Unsupported) as e:
        found["what the base model writes about it"] = str(e)
    return found


def examples(corpus: Corpus, before: Finding, after: Finding | None) -> list[dict[str, str | float | bool]]:
    """What the best adapter of weights gets right and this one does not first; then what the repair changed."""
    s = before.samples
    best = before.details["contest"]["best weights"]
    weights = seeds_of(s, best).mean(axis=0) if best else s["right"]
    missed = np.flatnonzero((weights > 0.5) & (s["right"] == 0))[:100]
    moved = np.flatnonzero(after.samples["answer"] != s["answer"])[:100] if after is not None else []
    rows: list[dict[str, str | float | bool]] = []
    for i in dict.fromkeys([*missed.tolist(), *list(moved)]):
        row: dict[str, str | float | bool] = {
            "text": shortened(corpus.text[i], 400), "label": corpus.classes[int(corpus.label[i])],
            "answered": corpus.classes[int(s["answer"][i])], "right": bool(s["right"][i]),
            "weights right": bool(weights[i] > 0.5),
        }  # fmt: skip
        if after is not None:
            row["answered after"] = corpus.classes[int(after.samples["answer"][i])]
        rows.append(row)
    return rows
