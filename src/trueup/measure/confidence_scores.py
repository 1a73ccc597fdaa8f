"""Confidence scores: frozen dataclasses that turn (n, K) logits into (n,) scores, higher where the model is surer.

Each has a `torch_line`, the same score as one line of plain torch, which is printed on the card of a remedy. The file also writes
scores to the JSON of a card and reads them back. It imports no torch, so that a server can score without it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logsumexp

from trueup.errors import BadInput
from trueup.measure.calibration import softmax

Array = NDArray[np.float64]


@dataclass(frozen=True)
class MaxSoftmax:
    """Softmax response max_c p_c of `classes` columns from `start`. The columns of the classifier itself start at 0."""

    classes: int
    start: int = 0

    def __call__(self, z: Array) -> Array:
        return softmax(z[:, self.start : self.start + self.classes]).max(axis=1)

    @property
    def torch_line(self) -> str:
        return f"out[:, {self.start}:{self.start + self.classes}].softmax(-1).amax(-1)"


@dataclass(frozen=True)
class SmoothMax:
    """1 - U of AdUE on the `classes` columns of its head, from `start` (equation of `smooth_max`, lam = 100)."""

    classes: int
    start: int

    def __call__(self, z: Array) -> Array:
        p = softmax(z[:, self.start : self.start + self.classes])
        return np.asarray(logsumexp(100.0 * p, axis=1)) / 100.0

    @property
    def torch_line(self) -> str:
        return f"(100 * out[:, {self.start}:{self.start + self.classes}].softmax(-1)).logsumexp(-1) / 100"


@dataclass(frozen=True)
class NegativeEntropy:
    """1 - normalised entropy of `classes` columns from `start`: those of the classifier itself (0) or of ALIEN's head."""

    classes: int
    start: int = 0

    def __call__(self, z: Array) -> Array:
        p = softmax(z[:, self.start : self.start + self.classes])
        return 1.0 + np.where(p > 0, p * np.log(np.clip(p, 1e-300, 1)), 0.0).sum(axis=1) / math.log(self.classes)

    @property
    def torch_line(self) -> str:
        cut = f"out[:, {self.start}:{self.start + self.classes}]"
        return f"1 + ({cut}.softmax(-1) * {cut}.log_softmax(-1)).sum(-1) / {math.log(self.classes)!r}"


@dataclass(frozen=True)
class Margin:
    """p of the first class minus p of the second."""

    classes: int

    def __call__(self, z: Array) -> Array:
        p = np.sort(softmax(z[:, : self.classes]), axis=1)
        return p[:, -1] - p[:, -2]

    @property
    def torch_line(self) -> str:
        return f"-out[:, :{self.classes}].softmax(-1).topk(2).values.diff().squeeze(-1)"


@dataclass(frozen=True)
class Energy:
    """log sum_c exp z_c (Liu et al., arXiv 2010.03759). Higher is surer."""

    classes: int

    def __call__(self, z: Array) -> Array:
        return np.asarray(logsumexp(z[:, : self.classes], axis=1))

    @property
    def torch_line(self) -> str:
        return f"out[:, :{self.classes}].logsumexp(-1)"


@dataclass(frozen=True)
class MaxLogit:
    """max_c z_c."""

    classes: int

    def __call__(self, z: Array) -> Array:
        return z[:, : self.classes].max(axis=1)

    @property
    def torch_line(self) -> str:
        return f"out[:, :{self.classes}].amax(-1)"


@dataclass(frozen=True)
class PNorm:
    """MaxLogit-pNorm (Cattelan & Silva, arXiv 2305.15508): (max z - mean z) / ||z - mean z||_p; p = 0 divides by 1."""

    classes: int
    p: int

    def __call__(self, z: Array) -> Array:
        c = z[:, : self.classes] - z[:, : self.classes].mean(axis=1, keepdims=True)
        if self.p == 0:
            return c.max(axis=1)
        return c.max(axis=1) / np.clip(np.linalg.norm(c, ord=self.p, axis=1), 1e-12, None)

    @property
    def torch_line(self) -> str:
        c = f"(out[:, :{self.classes}] - out[:, :{self.classes}].mean(-1, keepdim=True))"
        return f"{c}.amax(-1)" if self.p == 0 else f"{c}.amax(-1) / {c}.norm(p={self.p}, dim=-1).clamp(min=1e-12)"


@dataclass(frozen=True)
class ProbabilityOfPredicted:
    """p of the predicted class under a second head (`classes` columns from `start`), which is distilled from an ensemble."""

    classes: int
    start: int

    def __call__(self, z: Array) -> Array:
        chosen = z[:, : self.classes].argmax(axis=1)
        return softmax(z[:, self.start : self.start + self.classes])[np.arange(len(z)), chosen]

    @property
    def torch_line(self) -> str:
        c = self.classes
        return (
            f"out[:, {self.start}:{self.start + c}].softmax(-1).gather(1, out[:, :{c}].argmax(-1, keepdim=True))[:, 0]"
        )


@dataclass(frozen=True)
class ShrunkProbe:
    """Ours: slope * log-odds of the softmax response + an offset per predicted class + a linear probe (column C).

    The last two correct the softmax response. With their weights at 0 the ranking is that of the softmax response, so ridge
    shrinks towards this fall-back. The offsets matter with many classes: some classes are predicted far too often, whatever
    the softmax response is.
    """

    classes: int
    slope: float
    offsets: tuple[float, ...]

    def __call__(self, z: Array) -> Array:
        class_logits = z[:, : self.classes]
        return (
            self.slope * response_log_odds(class_logits)
            + np.array(self.offsets)[class_logits.argmax(axis=1)]
            + z[:, self.classes]
        )

    @property
    def torch_line(self) -> str:
        c = self.classes
        top = f"out[:, :{c}].topk({c}).values"
        offsets = f"out.new_tensor({[round(float(o), 6) for o in self.offsets]})[out[:, :{c}].argmax(-1)]"
        return f"{float(self.slope)!r} * ({top}[:, 0] - {top}[:, 1:].logsumexp(-1)) + {offsets} + out[:, {c}]"


@dataclass(frozen=True)
class ResponseLogOdds:
    """Log-odds of the softmax response: the same ranking without rounding at 1, on a scale that suits Platt scaling."""

    classes: int

    def __call__(self, z: Array) -> Array:
        return response_log_odds(z[:, : self.classes])

    @property
    def torch_line(self) -> str:
        top = f"out[:, :{self.classes}].topk({self.classes}).values"
        return f"{top}[:, 0] - {top}[:, 1:].logsumexp(-1)"


@dataclass(frozen=True)
class Column:
    """One unchanged column of the logits, such as a plain logistic probe."""

    column: int

    def __call__(self, z: Array) -> Array:
        return z[:, self.column]

    @property
    def torch_line(self) -> str:
        return f"out[:, {self.column}]"


Score = (
    MaxSoftmax | SmoothMax | NegativeEntropy | Margin | Energy | MaxLogit | PNorm | ProbabilityOfPredicted
    | ShrunkProbe | ResponseLogOdds | Column
)  # fmt: skip


@dataclass(frozen=True)
class Calibrated:
    """sigmoid(slope * score + intercept): the score turned into a probability of being right (Platt scaling)."""

    score: Score
    slope: float
    intercept: float

    def __call__(self, logits: np.ndarray) -> Array:
        return expit(self.log_odds(logits))

    def log_odds(self, logits: np.ndarray) -> Array:
        """(n, K) logits -> (n,) slope * score + intercept, which keeps its precision where the sigmoid rounds to 1."""
        return self.slope * self.score(np.asarray(logits, dtype=np.float64)) + self.intercept

    @property
    def torch_line(self) -> str:
        return f"({float(self.slope)!r} * ({self.score.torch_line}) + {float(self.intercept)!r}).sigmoid()"


def response_log_odds(z: Array) -> Array:
    """(n, C) logits -> (n,) log(SR / (1 - SR)), exact where SR rounds to 1: z_max - logsumexp of the other logits."""
    top = np.sort(z, axis=1)
    return top[:, -1] - np.asarray(logsumexp(top[:, :-1], axis=1))


_SCORES = {
    cls.__name__: cls
    for cls in (
        MaxSoftmax, SmoothMax, NegativeEntropy, Margin, Energy, MaxLogit, PNorm,
        ProbabilityOfPredicted, ShrunkProbe, Column, ResponseLogOdds,
    )
}  # fmt: skip


def score_to_json(score: Calibrated) -> dict[str, Any]:
    """The score in the form of a card's JSON."""
    inner = {"kind": type(score.score).__name__} | asdict(score.score)
    return {"slope": score.slope, "intercept": score.intercept, "score": inner}


def score_from_json(data: Mapping[str, Any]) -> Calibrated:
    """The score that a card holds.

    Raises:
        BadInput: the kind of score is unknown to this version of trueup, or a parameter is not a number.
    """
    arguments = dict(data["score"])
    kind = arguments.pop("kind")
    if kind not in _SCORES:
        raise BadInput(f"The card names a score '{kind}' that this version of trueup does not know; update trueup.")
    inner: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
    numbers = [
        data["slope"],
        data["intercept"],
        *(n for v in inner.values() for n in (v if isinstance(v, tuple) else (v,))),
    ]
    if not all(isinstance(n, int | float) for n in numbers):  # they become part of a line of torch code
        raise BadInput(f"The card's score '{kind}' holds what is no number. Save the repair again.")
    return Calibrated(_SCORES[kind](**inner), data["slope"], data["intercept"])
