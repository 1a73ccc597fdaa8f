"""Synthetic worlds for overconfidence. In some the confidence is calibrated and nothing can be found; in the others it can be
improved.

Each prediction has a confidence, a chance of being right, a predicted class and features. Half of the data teach the forecast and
half judge it, n clusters each. The features are the logits and random numbers without meaning, unless the world says otherwise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from trueup.faults.overconfidence import audit, repair
from trueup.faults.overconfidence import forecast as fc
from trueup.faults.overconfidence.candidates import FAMILIES, Evidence, Part, choose
from trueup.measure.calibration import softmax
from trueup.measure.folds import folds
from trueup.measure.worlds import Judged, World
from trueup.subject.subject import Head

Array = NDArray[np.float64]
RESAMPLES, THRESHOLD, LARGE = 400, 0.02, 20_000


@dataclass(frozen=True, eq=False)
class Draw:
    """n predictions.

    Attributes:
        odds: (n,) log-odds of the confidence. chance: (n,) the true probability of being right.
        predicted: (n,) the predicted class. classes: how many classes there are.
        noise: (n, m) the features besides the logits. cluster: (n,) rows of equal number belong together.
        right: (n,) whether the prediction is right. other: (n,) the label where it is wrong.
    """

    odds: Array
    chance: Array
    predicted: NDArray[np.int64]
    classes: int
    noise: Array
    cluster: NDArray[np.int64]
    right: NDArray[np.bool_]
    other: NDArray[np.int64]

    @property
    def logits(self) -> Array:
        """(n, C) logits whose softmax response has these log-odds. The logits of all classes but the predicted one are equal."""
        z = np.zeros((len(self.odds), self.classes))
        z[np.arange(len(z)), self.predicted] = self.odds + np.log(self.classes - 1)
        return z

    @property
    def seen(self) -> fc.Seen:
        return fc.Seen(np.concatenate([self.logits, self.noise], axis=1), self.odds, self.predicted, self.classes)

    def columns(self, recalibrated: fc.Forecast, forecast: fc.Forecast) -> dict[str, np.ndarray]:
        label = np.where(self.right, self.predicted, self.other)
        return {
            "confidence": expit(self.odds), "recalibrated": recalibrated(self.seen), "forecast": forecast(self.seen),
            "right": self.right, "odds": self.odds, "probability": softmax(self.logits), "label": label,
            "predicted": self.predicted, "cluster": self.cluster,
        }  # fmt: skip

    def repeated(self, times: int) -> Draw:
        rows = np.repeat(np.arange(len(self.odds)), times)
        return Draw(**{k: v if k == "classes" else v[rows] for k, v in vars(self).items()})


Source = Callable[[np.random.Generator, int], Draw]


def drawn(
    rng: np.random.Generator,
    odds: Array,
    chance: Array,
    classes: int,
    *,
    predicted: NDArray[np.int64] | None = None,
    noise: Array | None = None,
    cluster: NDArray[np.int64] | None = None,
    right: NDArray[np.bool_] | None = None,
) -> Draw:
    n = len(odds)
    predicted = rng.integers(0, classes, n) if predicted is None else predicted
    right = rng.random(n) < chance if right is None else right
    wrong_label = (predicted + rng.integers(1, classes, n)) % classes
    noise = rng.normal(size=(n, 12)) if noise is None else noise
    return Draw(
        odds, chance, predicted, classes, noise, np.arange(n) if cluster is None else cluster, right, wrong_label
    )


def calibrated(errors: float, classes: int = 2, *, temperature: float = 1.0, noise: int = 12) -> Source:
    """The chance of being right equals the softmax response and varies widely about a mean of 1 - `errors`. The logits are then
    divided by `temperature`."""

    def draw(rng: np.random.Generator, n: int) -> Draw:
        most = 1 - 1 / classes - 1e-6
        wrong = np.clip(rng.beta(1, 1 / min(errors / most, 0.7) - 1, n) * most, 1e-4, most)
        return drawn(rng, logit(1 - wrong) / temperature, 1 - wrong, classes, noise=rng.normal(size=(n, noise)))

    return draw


def uniform(temperature: float = 1.0) -> Source:
    """Two classes, with the chance of being right uniform on .5 to 1. The logits are then divided by `temperature`."""

    def draw(rng: np.random.Generator, n: int) -> Draw:
        chance = rng.uniform(0.5, 1, n)
        return drawn(rng, logit(chance) / temperature, chance, 2)

    return draw


def label_noise(errors: float, classes: int = 2) -> Source:
    """The chance of being wrong is `errors` for every example, and the confidence is calibrated."""

    def draw(rng: np.random.Generator, n: int) -> Draw:
        chance = np.full(n, 1 - errors)
        return drawn(rng, logit(chance), chance, classes)

    return draw


def imbalanced(temperature: float = 1.0) -> Source:
    """One label in twelve is of the second class, and the logistic classifier is Bayes-optimal. The logits are then divided by
    `temperature`."""

    def draw(rng: np.random.Generator, n: int) -> Draw:
        z = -3.5 + 1.8 * rng.normal(size=n)
        return drawn(rng, np.abs(z) / temperature, expit(np.abs(z)), 2, predicted=(z > 0).astype(np.int64))

    return draw


def authors(temperature: float = 1.0) -> Source:
    """Each cluster is an author with 1 to 8 rows. Some authors are harder than others, and features identify the author. The
    confidence is calibrated over all authors."""
    nodes, mass = np.polynomial.hermite_e.hermegauss(31)
    mass = mass / mass.sum()

    def draw(rng: np.random.Generator, n: int) -> Draw:
        cluster = np.repeat(np.arange(n), rng.integers(1, 9, n))
        rows = len(cluster)
        ease, author_ease = 2.2 + 1.2 * rng.normal(size=rows), rng.normal(size=n)[cluster]
        chance = expit(ease[:, None] + nodes) @ mass
        noise = rng.normal(size=(rows, 16))
        noise[:, :8] = 1.5 * rng.normal(size=(n, 8))[cluster]
        right = rng.random(rows) < expit(ease + author_ease)
        return drawn(rng, logit(chance) / temperature, chance, 4, noise=noise, cluster=cluster, right=right)

    return draw


def repeated(source: Source, times: int) -> Source:
    """Each row of another world `times` times."""
    return lambda rng, n: source(rng, n).repeated(times)


def surest() -> Source:
    """Confidence about .9999 at an accuracy of .91, well ranked."""

    def draw(rng: np.random.Generator, n: int) -> Draw:
        ease = rng.normal(size=n)
        return drawn(rng, logit(0.9999) + ease, expit(3.0 + 1.5 * ease), 2)

    return draw


def ignored(strength: float = 1.2) -> Source:
    """One feature predicts whether the prediction is right, and the confidence ignores it."""

    def draw(rng: np.random.Generator, n: int) -> Draw:
        noise, ease = rng.normal(size=(n, 12)), 0.5 + np.abs(rng.normal(size=n))
        nodes, mass = np.polynomial.hermite_e.hermegauss(31)
        stated = expit(ease[:, None] + strength * nodes) @ (mass / mass.sum())
        return drawn(rng, logit(stated), expit(ease + strength * noise[:, 3]), 2, noise=noise)

    return draw


def readily() -> Source:
    """Twenty classes, five of which are predicted far too often."""

    def draw(rng: np.random.Generator, n: int) -> Draw:
        predicted, ease = rng.integers(0, 20, n), 0.8 + rng.normal(size=n)
        return drawn(rng, ease, expit(ease - 2.0 * (predicted < 5)), 20, predicted=predicted)

    return draw


def _draw(source: Source, rng: np.random.Generator, n: int) -> tuple[Draw, Draw]:
    return source(rng, n), source(rng, n)


def judge(parts: tuple[Draw, Draw], seed: int) -> Judged:
    """The verdict of the audit, where the first part teaches the forecast and the second is examined."""
    calibration, test_draw = parts
    forecast = fc.learn(calibration.seen, calibration.right, calibration.cluster, seed=seed)
    recalibrated = fc.recalibrated(calibration.seen, calibration.right)
    found = audit.finding(
        test_draw.columns(recalibrated, forecast), taught=calibration.cluster, threshold=THRESHOLD, resamples=RESAMPLES,
        seed=seed,
    )  # fmt: skip
    intervals = {"severity": (found.low, found.high)} | {k: (m.low, m.high) for k, m in found.measures.items()}
    return Judged(found.verdict, intervals, (recalibrated, forecast))


def _truth(source: Source, judged: Judged) -> Mapping[str, float]:
    """Every statistic on a large draw. Each row counts as right with the weight of its chance, and as wrong with the remaining
    weight."""
    part = _large(source)
    columns = part.columns(*judged.learnt)
    twice: dict[str, Any] = {k: np.concatenate([v, v]) for k, v in columns.items()}
    n = len(part.odds)
    twice["right"] = np.repeat([True, False], n)
    twice["label"] = np.concatenate([part.predicted, part.other])
    weight = np.concatenate([part.chance, 1 - part.chance])
    order = audit.surest_first(twice)
    values = audit.columns(twice, order)
    found = {k: f(*values, weight=weight[order]) for k, f in audit.STATISTICS.items()}
    return found | {k: float(np.sqrt(found[k])) for k in audit.SQUARES}


@functools.lru_cache(maxsize=4)
def _large(source: Source) -> Draw:
    return source(np.random.default_rng(0), LARGE)


def by_lot(errors: float, classes: int = 2) -> Source:
    """Errors are independent of everything, although the confidence varies."""

    def draw(rng: np.random.Generator, n: int) -> Draw:
        odds = logit(rng.uniform(1 / classes + 0.01, 0.999, n))
        return drawn(rng, odds, np.full(n, 1 - errors), classes)

    return draw


CHEAP = tuple(f for f in FAMILIES if f.saveable and not f.needs and f.key not in ("adue-held", "alien-held"))
"""Families whose heads are fitted quickly."""


def state(parts: tuple[Draw, Draw], seed: int) -> Judged:
    """``found`` if the repair would state that a head is better than the recalibrated softmax response, else ``clear``.

    The first part is the calibration examples. Families that need training examples or a grid of runs are left out.
    """
    import torch

    choosing = parts[0]
    label = np.where(choosing.right, choosing.predicted, choosing.other)
    part = Part(choosing.seen.x, choosing.logits, label)
    c, d = choosing.classes, choosing.seen.x.shape[1]
    head = Head(torch.eye(c, d), torch.zeros(c))  # the features begin with the logits
    fold = folds(part.error, fc.FOLDS, seed=seed, cluster=choosing.cluster)
    if min(part.error.sum(), (~part.error).sum()) < 2 * fc.FEWEST_ERRORS:
        return Judged("undecided")
    choice = choose(Evidence(None, part, head, True, fold, seed), CHEAP)
    saved = repair.judge(
        [choice.stated, choice.recalibrated, choice.chosen],
        part.error,
        choosing.cluster,
        resamples=RESAMPLES,
        seed=seed,
    )
    return Judged("found" if saved.beyond.low > 0 else "clear")


def _repairs(name: str, kind: Any, source: Source) -> World:
    return World(name, "overconfidence, its repair", kind, functools.partial(_draw, source), state)


def _world(name: str, kind: Any, source: Source) -> World:
    return World(
        name, "overconfidence", kind, functools.partial(_draw, source), judge, functools.partial(_truth, source)
    )


WORLDS = (
    _world("calibrated, confidence uniform .5 to 1", "null", uniform()),
    _world("calibrated, 3% errors, 2 classes", "null", calibrated(0.03)),
    _world("calibrated, 15% errors, 5 classes", "null", calibrated(0.15, 5)),
    _world("calibrated, 40% errors, 20 classes", "null", calibrated(0.40, 20)),
    _world("calibrated, 120 features that mean nothing", "null", calibrated(0.15, 2, noise=120)),
    _world("3% label noise everywhere", "null", label_noise(0.03)),
    _world("10% label noise everywhere", "null", label_noise(0.10)),
    _world("40% label noise, 20 classes", "null", label_noise(0.40, 20)),
    _world("one label in twelve, calibrated", "null", imbalanced()),
    _world("every text four times, calibrated", "null", repeated(uniform(), 4)),
    _world("authors of 1 to 8 texts, calibrated", "null", authors()),
    _world("temperature .25", "fault", uniform(0.25)),
    _world("underconfident, temperature 2", "fault", uniform(2.0)),
    _world("4% errors, sharpened", "fault", calibrated(0.04, temperature=0.25)),
    _world("confidence .9999 at accuracy .91, well ranked", "fault", surest()),
    _world("a feature that the confidence ignores", "fault", ignored()),
    _world("five of 20 classes predicted too readily", "fault", readily()),
    _world("one label in twelve, temperature .4", "fault", imbalanced(0.4)),
    _world("every text four times, temperature .25", "fault", repeated(uniform(0.25), 4)),
    _world("authors of 1 to 8 texts, temperature .4", "fault", authors(0.4)),
    _repairs("errors by lot, 25%", "null", by_lot(0.25)),
    _repairs("errors by lot, 40%, 5 classes", "null", by_lot(0.40, 5)),
    _repairs("calibrated, 15% errors, 5 classes", "null", calibrated(0.15, 5)),
    _repairs("every text four times, calibrated", "null", repeated(uniform(), 4)),
    _repairs("a feature that the confidence ignores", "fault", ignored()),
)
