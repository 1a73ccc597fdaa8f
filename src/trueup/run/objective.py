"""The objective of a training, as a value: the mean, a weighted mean, a resampled mean, or the worst group's mean.

An objective gives the weight of each row of a batch before the forward pass, and gets the loss of each row after the
step. So a batch may be cut into pieces or shared between processes, and the gradients stay those of the whole batch.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from trueup.errors import BadInput


class Objective(ABC):
    """What to minimise: sum_i w_i CE_i / b over a batch of b rows. Frozen; holds one entry per row of the corpus.

    What changes during a training is a `state`, which the training keeps and saves with its checkpoint. The objective itself
    never changes, so one may serve several trainings.
    """

    @abstractmethod
    def weights(self, rows: np.ndarray, state: Tensor) -> Tensor:
        """(b,) float64: how often each of the b `rows` counts in the batch's mean. All ones is the plain mean."""

    def begin(self) -> Tensor:
        """The state before the first step."""
        return torch.zeros(0, dtype=torch.float64)

    def after(self, state: Tensor, rows: np.ndarray, losses: Tensor) -> Tensor:
        """The state after a step on `rows`, whose cross-entropies were `losses`: (b,) float64, of all processes."""
        return state

    def judge(self, nll: np.ndarray) -> float:
        """The number that chooses the best epoch, lower is better, from the (n,) NLL of this objective's rows."""
        return float(nll.mean())

    def take(self, index: np.ndarray) -> Self:
        """The objective over the rows at `index` ((k,) int or (n,) bool), as `Corpus.take` takes them."""
        return self

    @property
    def rows(self) -> int | None:
        """Length of the objective's arrays, in rows of the corpus; None where it fits any corpus."""
        return None

    @property
    def chance(self) -> np.ndarray | None:
        """(n,) probabilities with which rows are drawn, with replacement; None where each row is used once in an epoch."""
        return None

    @property
    def strata(self) -> np.ndarray | None:
        """(n,) int: a kind for each row. The validation share must hold every kind in every class. None: no kinds."""
        return None

    @property
    def identity(self) -> str:
        """The class' name and a sha256 of everything it was made with: equal for objectives that train alike."""
        h = hashlib.sha256()
        for name, value in sorted(vars(self).items()):
            if isinstance(value, np.ndarray):
                h.update(f"{name} {value.dtype} {value.shape} ".encode() + np.ascontiguousarray(value).tobytes())
            else:
                h.update(f"{name} {value!r} ".encode())
        return f"{type(self).__module__}.{type(self).__qualname__} {h.hexdigest()}"


@dataclass(frozen=True, eq=False)
class CrossEntropy(Objective):
    """The mean cross-entropy: each row counts the same."""

    def weights(self, rows: np.ndarray, state: Tensor) -> Tensor:
        return torch.ones(len(rows), dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class _ByWeight(Objective):
    """Base of the two objectives with a weight per row. weight: (n,), 0 or more, on any scale."""

    weight: np.ndarray

    def __post_init__(self) -> None:
        """Raises BadInput where the weights cannot be used."""
        weight = np.array(self.weight, dtype=np.float64)
        object.__setattr__(self, "weight", weight)
        if weight.ndim != 1:
            raise BadInput(f"The objective's weights have shape {weight.shape}; give one number per row, shape (n,).")
        unusable = np.flatnonzero(~(np.isfinite(weight) & (weight >= 0)))
        if len(unusable):
            raise BadInput(
                f"The objective's weight of row {unusable[0] + 1} is {weight[unusable[0]]:g}; give finite numbers of 0 or more."
            )
        if not weight.any():
            raise BadInput(
                f"The {len(weight)} weights of the objective are all 0; both the rows trained on and those set aside for "
                "validation need some above 0."
            )

    def take(self, index: np.ndarray) -> Self:
        return replace(self, weight=self.weight[index])

    def judge(self, nll: np.ndarray) -> float:
        return float(np.average(nll, weights=self.weight))

    @property
    def rows(self) -> int:
        return len(self.weight)

    @property
    def strata(self) -> np.ndarray:
        # Without this a validation share could consist of rows of weight 0, and would judge nothing.
        return (self.weight > 0).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Weighted(_ByWeight):
    """Importance weighting: sum_i w_i CE_i / b, the weights scaled to mean 1 over the rows trained on."""

    def weights(self, rows: np.ndarray, state: Tensor) -> Tensor:
        return torch.from_numpy(self.weight[rows] / self.weight.mean())


@dataclass(frozen=True, eq=False)
class Resampled(_ByWeight):
    """Rows are drawn with replacement, with probabilities proportional to the weights, and each drawn row counts the same.

    An epoch draws as many rows as the corpus has, so it has as many steps as with any other objective.
    """

    def weights(self, rows: np.ndarray, state: Tensor) -> Tensor:
        return torch.ones(len(rows), dtype=torch.float64)

    @property
    def chance(self) -> np.ndarray:
        return self.weight / self.weight.sum()


@dataclass(frozen=True, eq=False)
class GroupDRO(Objective):
    """The worst group's mean loss (Sagawa et al., arXiv 1911.08731, Algorithm 1): sum_g q_g * mean CE of group g.

    After each step q_g <- q_g exp(step * mean CE of g), normalised; a group that the batch lacks has loss 0, as in the
    authors' code. The state is log q, (G,), so that no q_g is rounded to 0 for good. The best epoch is the one whose
    worst group has the lowest NLL. Groups are drawn evenly, with replacement, as in the authors' code.

    Departure: a step uses the q of the step before (the paper updates q first), since pieces of a batch are not forwarded twice.

    Attributes:
        group: (n,) int, each row's group; any numbers. step: how fast q follows the losses.
    """

    group: np.ndarray
    step: float = 0.01

    def __post_init__(self) -> None:
        """Raises BadInput where the groups or the step cannot be used."""
        groups = np.array(self.group)
        if groups.ndim != 1 or groups.dtype.kind not in "iub" or not len(groups):
            raise BadInput(
                f"The objective's groups have shape {groups.shape} and type {groups.dtype}; give one integer per row."
            )
        if not 0 < self.step < float("inf"):
            raise BadInput(f"The objective's step is {self.step}; give a number above 0, such as 0.01.")
        # Groups are numbered without gaps: a group without a training row must not hold a share of q.
        object.__setattr__(self, "group", np.unique(groups, return_inverse=True)[1].astype(np.int64))

    def begin(self) -> Tensor:
        groups = int(self.group.max()) + 1
        return torch.full((groups,), -float(np.log(groups)), dtype=torch.float64)

    def weights(self, rows: np.ndarray, state: Tensor) -> Tensor:
        group = torch.from_numpy(self.group[rows])
        return state.exp()[group] * len(rows) / torch.bincount(group, minlength=len(state))[group]

    def after(self, state: Tensor, rows: np.ndarray, losses: Tensor) -> Tensor:
        group = torch.from_numpy(self.group[rows])
        total = torch.zeros_like(state).index_add_(0, group, losses.to(state))
        mean = total / torch.bincount(group, minlength=len(state)).clamp(min=1)
        return torch.log_softmax(state + self.step * mean, dim=0)

    @property
    def chance(self) -> np.ndarray:
        size = np.bincount(self.group)
        return 1.0 / (len(size) * size[self.group])

    def judge(self, nll: np.ndarray) -> float:
        return float((np.bincount(self.group, nll) / np.bincount(self.group)).max())

    def take(self, index: np.ndarray) -> Self:
        return replace(self, group=self.group[index])

    @property
    def rows(self) -> int:
        return len(self.group)

    @property
    def strata(self) -> np.ndarray:
        return self.group
