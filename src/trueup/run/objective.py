"""What a training minimises, as a value: the mean, a weighted mean, a resampled mean, or the worst group's mean.

An objective says before the forward pass how much each row of a batch counts, and is told each row's loss after the
step. So a batch may be cut into pieces or shared between processes, and the gradients stay those of the whole.
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

    What a training learns about the objective as it goes is a `state` that the training keeps, and saves with its
    checkpoint; the objective itself never changes, so one may serve several trainings.
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
        """What chooses the best epoch, lower is better, from the (n,) NLL of this objective's rows."""
        return float(nll.mean())

    def take(self, index: np.ndarray) -> Self:
        """The objective over the rows at `index` ((k,) int or (n,) bool), as `Corpus.take` takes them."""
        return self

    @property
    def rows(self) -> int | None:
        """How many rows the objective's arrays are over; None where it goes with any corpus."""
        return None

    @property
    def chance(self) -> np.ndarray | None:
        """(n,) chances with which rows are drawn, with replacement; None where each comes once an epoch."""
        return None

    @property
    def strata(self) -> np.ndarray | None:
        """(n,) int: kinds of rows that the validation share must hold besides every class, or None."""
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
    """What the two objectives with a weight per row share. weight: (n,), 0 or more, on any scale."""

    weight: np.ndarray

    def __post_init__(self) -> None:
        """Raises BadInput where the weights cannot be used."""
        given = np.array(self.weight, dtype=np.float64)
        object.__setattr__(self, "weight", given)
        if given.ndim != 1:
            raise BadInput(f"The objective's weights have shape {given.shape}; give one number per row, shape (n,).")
        bad = np.flatnonzero(~(np.isfinite(given) & (given >= 0)))
        if len(bad):
            raise BadInput(
                f"The objective's weight of row {bad[0] + 1} is {given[bad[0]]:g}; give finite numbers of 0 or more."
            )
        if not given.any():
            raise BadInput(
                f"The {len(given)} weights of the objective are all 0; both the rows trained on and those set aside for "
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
    """Rows are drawn with replacement, with chances in proportion to the weights, and each drawn row counts the same.

    An epoch draws as many rows as there are, so it has as many steps as any other.
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
        given = np.array(self.group)
        if given.ndim != 1 or given.dtype.kind not in "iub" or not len(given):
            raise BadInput(
                f"The objective's groups have shape {given.shape} and type {given.dtype}; give one integer per row."
            )
        if not 0 < self.step < float("inf"):
            raise BadInput(f"The objective's step is {self.step}; give a number above 0, such as 0.01.")
        # Numbered without gaps: a group of which no row is trained on must not hold a share of q.
        object.__setattr__(self, "group", np.unique(given, return_inverse=True)[1].astype(np.int64))

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
