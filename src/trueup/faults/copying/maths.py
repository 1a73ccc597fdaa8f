"""Copying as equations: what a copy is, what chance makes of it, and which units a copied answer comes from.

Source: Ali, Wolf and Titov, arXiv 2410.01288, of which the abstract and introduction are at hand; the rest is reconstruction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trueup.faults.fault import Finding
from trueup.measure import bootstrap
from trueup.measure.accuracy import wilson


def at_answer(table: NDArray, answer: NDArray[np.int64]) -> NDArray:
    """(n,): the value of `table` (n, C) at each answer; 0 where the answer is no class (-1)."""
    known = answer >= 0
    return np.where(known, table[np.arange(len(answer)), np.where(known, answer, 0)], 0).astype(table.dtype)


def copies(answer: NDArray[np.int64], gold: NDArray[np.int64], shown: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(n,) 1 where the answer is wrong and stands in the demonstrations: the paper's copying error. `shown` is (n, C)."""
    return ((answer != gold) & at_answer(shown, answer)).astype(float)


def expected(answer: NDArray[np.int64], gold: NDArray[np.int64], chance: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) the chance that the same wrong answer would stand in demonstrations drawn anew; `chance` (n, C) says of each.

    It is conditional on whether the right answer stands there (`corpus.prompt.Draws.chance`), so a model that is right
    whenever it sees the answer copies no more than chance. A departure: the paper counts copying errors, of which two classes
    and four demonstrations give 94% by chance alone.
    """
    return np.where(answer != gold, at_answer(chance, answer), 0.0)


def expected_under(
    answer: NDArray[np.int64], other: NDArray[np.int64], gold: NDArray[np.int64], shown: NDArray[np.bool_],
    others: NDArray[np.bool_], able: NDArray[np.bool_],
) -> NDArray[np.float64]:  # fmt: skip
    """(n,) copies by chance where the demonstrations are the same for every query: `expected`, by one draw of other ones.

    As there, a copy that the other demonstrations show as well is chance: they are drawn given that they show the right answer or
    not, as the fixed ones do (`corpus.prompt.fixed`). Of the answers that the fixed ones alone show, those that the model gives
    under the others are chance too: it says them whatever it is shown. A model whose answers do not depend on the wrong answers
    shown gives them as often under either, so copied less this has mean 0 for it. One that always says an answer of the fixed
    demonstrations is not blamed, as it would be by `expected`, whose mean is over demonstrations.

    Of one query it may be 2, where both happen: copied less this has a meaning, and this alone is no probability. A query without
    other demonstrations counts as no copy above chance.

    Args:
        answer, other: (n,) given under the fixed demonstrations, and under the others. shown, others: (n, C) what these show.
        able: (n,) the query has others.
    """
    alone = shown & ~others
    by_chance = copies(answer, gold, shown & others) + copies(other, gold, alone)
    return np.where(able, by_chance, copies(answer, gold, shown))


def blamed(
    excess: NDArray[np.float64], shown: NDArray[np.bool_], named: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """(n,) copies above chance that ignorance of the answers does not excuse.

    Where the right answer stood among the demonstrations, a wrong copy has no excuse. Where it did not, a model that does not
    know the answers has to say one that it sees: there the same query counts as it is answered when all answers are named.

    Args:
        excess: (n,) copied less expected. shown: (n,) the right answer was shown.
        named: (n,) the same as `excess` with all answers named; None for open sets, whose answers the query itself determines.
    """
    return excess if named is None else np.where(shown, excess, named)


def above_chance(blame: Callable[..., NDArray], among: Callable[..., NDArray] | None = None) -> bootstrap.Share:
    """The statistic of `blamed`, as `blame` of the columns gives it: a copy is what lies above 0, and the rest its chance."""
    return bootstrap.Share(
        lambda *columns: blame(*columns) > 0, among, lambda *columns: (blame(*columns) > 0) - blame(*columns)
    )


def severity(
    blame: NDArray[np.float64], asked: NDArray[np.float64], cluster: NDArray[np.int64], *, seed: int, resamples: int
) -> bootstrap.Estimate:
    """The mean of `blamed` over the queries that were asked, with its interval by clusters."""
    statistics_of_both = above_chance(lambda blame, asked: blame, lambda blame, asked: asked > 0)
    return bootstrap.interval(statistics_of_both, blame, asked, seed=seed, resamples=resamples, cluster=cluster)


STANDS_OUT = 4
"""A copy has to stand out by so many thresholds: else copying on a quarter of the queries would pass for none."""


def judged(
    e: bootstrap.Estimate, cluster: NDArray[np.int64], apart: float, *, threshold: float, **rest: Any
) -> Finding:
    """The finding that goes with a severity, undecided where copies cannot stand out (`visible` is `apart`) and none is found.

    The sentence, where there is one, ends with the doubt."""
    doubt = bootstrap.too_few(cluster)
    if not doubt and apart < STANDS_OUT * threshold and not e.low > threshold:
        doubt = (
            f"With so few answers and so many demonstrations nearly every wrong answer stands among them anyway (a copy stands out "
            f"by {apart:.2f} of 1), so copying can hardly be told from chance: ask with fewer --shots."
        )
    sentence = " ".join(s for s in (rest.pop("sentence", ""), doubt) if s)
    return Finding(
        fault="copying", unit="share of queries copied wrongly, above chance", severity=e.value, low=e.low, high=e.high,
        threshold=threshold, sentence=sentence, doubt=doubt,
        needed=bootstrap.clusters_needed(e.value, e.low, e.high, threshold, cluster), **rest,
    )  # fmt: skip


def visible(shown: NDArray[np.bool_], gold: NDArray[np.int64], chance: NDArray[np.float64]) -> float:
    """By how much a copy stands out, 0 to 1: the mean over queries of 1 - chance, over the wrong answers that are shown.

    Near 0, as with two answers and many demonstrations, nearly every wrong answer is shown anyway, and no count can tell
    copying from chance.
    """
    wrong = shown.copy()
    wrong[np.arange(len(gold)), gold] = False
    many = wrong.sum(axis=1)
    apart = ((1 - chance) * wrong).sum(axis=1)[many > 0] / many[many > 0]
    return float(apart.sum() / max(len(gold), 1))


def by_swap(
    answer: NDArray[np.int64], instead: NDArray[np.int64], spare: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n,) whether the answer followed the one put in; and the chance of that for a model that does not look at it.

    Args:
        instead: (n,) the answer put into the demonstrations, drawn evenly from `spare`. spare: (n, C) those it could have been.
    """
    inside = at_answer(spare, answer)
    return (answer == instead).astype(float), np.where(inside, 1 / np.maximum(spare.sum(axis=1), 1), 0.0)


def most_lost(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """The upper end of a one-sided 97.5% interval of the share of queries that were right before and are wrong after, less the
    reverse: from two Wilson intervals (Newcombe 1998, method 10, with no correlation taken for granted).

    Args:
        before, after: (n,) 1 where the query was answered right.
    """
    n, lost, won = len(before), float((before > after).sum()), float((after > before).sum())
    (_, high), (low, _) = wilson(lost, n), wilson(won, n)
    return (lost - won) / n + float(np.hypot(high - lost / n, won / n - low))


def penalised(
    logits: NDArray[np.float32], other: NDArray[np.float32], shown: NDArray[np.bool_], penalty: float
) -> NDArray[np.int64]:
    """(n,) the answers after `penalty` (nats) is taken off the logit of every shown class: the trivial rival of a repair.

    Args:
        logits: (n, C) of the classes' tokens. other: (n,) the highest of any other token, which answers -1.
    """
    z = logits - penalty * shown
    best = z.argmax(axis=1)
    return np.where(z.max(axis=1) >= other, best, -1)


@dataclass(frozen=True, eq=False)
class Question:
    """What attribution knows of one prompt.

    Attributes:
        shown: (C,) bool, the answers in its demonstrations. gold: the right answer. said: the shown answer that the model as it
            is finds likeliest.
        same: (C,) bool, answers that begin with the same token as the right one, which cannot be told from it by that token.
        right: the right answer stands among the demonstrations, and what is explained is copying that.
    """

    shown: Tensor
    gold: int
    said: int
    same: Tensor
    right: bool = False


def shift(logits: Tensor, asked: Question) -> Tensor:
    """(r,) max over shown classes of P - P(gold), in probability: how far the prediction has shifted to a demonstration.

    Where the right answer is shown, P(gold) - max over the other classes of P: the shift towards copying it. P is over the
    classes, which is all that the difference of two answers needs. The paper attributes a "prediction shift rather than the
    maximal probability" (confirmed); which shift is left open by what is at hand, and this one is reconstruction.

    Args:
        logits: (r, C) of the classes' first tokens.
    """
    p = torch.softmax(logits.float(), dim=1)
    others = torch.ones_like(asked.shown) if asked.right else asked.shown.clone()
    others[asked.gold] = False
    others &= ~asked.same
    rival = p[:, others].amax(dim=1) if bool(others.any()) else p.new_zeros(len(p))
    return p[:, asked.gold] - rival if asked.right else rival - p[:, asked.gold]


def copied(logits: Tensor, asked: Question) -> Tensor:
    """(r,) P of the one answer that the model would copy; where the right one is shown, of that. The other reading of the target.

    Knowledge neurons (Dai et al., arXiv 2104.08696, eq. 3) are found so, towards the right answer. The paper sets itself off
    against the maximal probability, which speaks for `shift`.

    Args:
        logits: (r, C) of the classes' first tokens.
    """
    return torch.softmax(logits.float(), dim=1)[:, asked.gold if asked.right else asked.said]


def at_zero(units: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, layers, units) -> (layers, units): paths begin where pruning ends, at 0. The paper's baseline is not known."""
    return np.zeros_like(units[0])


def at_mean(units: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, layers, units) -> (layers, units): paths begin at the mean over prompts, so what all prompts share counts for nothing."""
    return units.mean(axis=0)


def over_layer(attribution: NDArray[np.float32]) -> NDArray[np.float64]:
    """Min-max scaling of each prompt's attributions over the units of each layer: (n, layers, units) to 0..1.

    Scores are min-max normalised (confirmed). Over what, the paper's text at hand does not say: a layer here (reconstruction), so
    that the scores of one layer cannot be told from those of another, which the published search of one layer does not need.
    """
    return _spread(attribution, (2,))


def over_model(attribution: NDArray[np.float32]) -> NDArray[np.float64]:
    """The same over all layers of each prompt: the other scope that "min-max normalised" may have."""
    return _spread(attribution, (1, 2))


def _spread(attribution: NDArray[np.float32], axes: tuple[int, ...]) -> NDArray[np.float64]:
    low, high = attribution.min(axis=axes, keepdims=True), attribution.max(axis=axes, keepdims=True)
    return (attribution - low) / np.maximum(high - low, 1e-30)


@dataclass(frozen=True)
class Protocol:
    """How units are scored. What the paper leaves open is here, each with the choice made.

    Attributes:
        target: (r, C) logits and a `Question` -> (r,) what is attributed, in probability: `shift` or `copied`.
        baseline: (n, layers, units) activations -> (layers, units) where integration begins: `at_zero` or `at_mean`.
        normalise: (n, layers, units) attributions -> scores of the same shape, whose mean over prompts ranks the units of a
            layer: `over_layer` or `over_model`.
    """

    target: Callable[[Tensor, Question], Tensor] = shift
    baseline: Callable[[NDArray[np.float32]], NDArray[np.float32]] = at_zero
    normalise: Callable[[NDArray[np.float32]], NDArray[np.float64]] = over_layer


RECONSTRUCTED = Protocol()


def top(score: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """The `count` highest of a vector, highest first; ties go to the lower index."""
    return np.argsort(-score, kind="stable")[:count]


def by_token(
    first: NDArray[np.int64], choice: NDArray[np.int64], gold: NDArray[np.int64], shown: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """(n,) the class meant by a first token that several classes may begin with: the right one, else a shown one.

    Args:
        first: (C,) first token of each class. choice: (n,) class chosen by it. gold: (n,). shown: (n, C).
    """
    meant = choice.copy()
    for i, c in enumerate(choice):
        alike = first == first[c]
        if alike[gold[i]]:
            meant[i] = gold[i]
        elif (alike & shown[i]).any():
            meant[i] = int(np.flatnonzero(alike & shown[i])[0])
    return meant
