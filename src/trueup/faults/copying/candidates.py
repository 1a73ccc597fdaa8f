"""What may be scaled: units by their attributions, as many drawn at random, and whatever else has a place in a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trueup.faults.copying import maths
from trueup.faults.copying.attribution import Attributed
from trueup.faults.fault import (
    Chart,
    Series,
)
from trueup.subject.units import Part

SHARES = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1)
"""The published grid: shares of a layer's units that are pruned."""
COUNTS = (1, 4, 16, 64, 256, 1024)
"""Ours: numbers of units, taken from all layers together."""
FACTORS = (0.0, 0.5)
"""What the units are multiplied by: 0 is published, 0.5 ours."""
BINS = 64
"""Columns of the map of units."""
Scales = Mapping[int, Tensor]


@dataclass(frozen=True, eq=False)
class Candidate:
    """Units to scale, or whole heads.

    Attributes:
        scales: layer -> factors (units,), or of what the layer's heads give. source: on what the units or heads were found.
        part: the projection whose input is scaled. wide: inputs that are scaled together, those of a head; 1 for units.
    """

    family: str
    title: str
    scales: Scales
    source: str
    part: Part = "down"
    wide: int = 1

    @property
    def units(self) -> int:
        """How many inputs of projections are scaled: one for each unit, `wide` for each head."""
        return sum(int((s != 1).sum()) for s in self.scales.values())

    @property
    def what(self) -> str:
        """What is scaled, in words."""
        if self.part == "down":
            return f"{self.units} feed-forward units"
        count = self.units // self.wide
        return f"{count} attention head{'s' * (count > 1)} ({self.units} inputs of the output projection)"


AS_IT_IS = Candidate("none", "as it is", {}, "")
"""No unit is scaled."""


def candidates(found: Attributed) -> list[Candidate]:
    """The published grid (the top share of one layer at 0), the same halved, and ours (the top units of all layers, at 0
    or halved). At 0 a layer's units can take copies below chance, and answers that were right to copy with them."""
    depth, units = found.active.shape
    proposed, published = [], found.published
    for layer in np.flatnonzero(found.sound).tolist():
        for count, share in {max(1, round(s * units)): s for s in SHARES}.items():
            pairs = [(layer, int(u)) for u in maths.top(published[layer], count)]
            for factor in FACTORS:
                family = "softened" if factor else "published"
                title = f"{family}: the top {share:.1%} of layer {layer} at {factor:g}"
                proposed.append(Candidate(family, title, scales_of(pairs, units, factor), found.source))
    score = np.where(found.sound[:, None], found.contrasted, -np.inf)
    order = np.argsort(-score, axis=None, kind="stable")
    positive = int((score > 0).sum())
    for count in (c for c in COUNTS if c <= min(positive, depth * units // 8)):
        layer, unit = np.unravel_index(order[:count], (depth, units))
        for factor in FACTORS:
            scales = scales_of(list(zip(layer.tolist(), unit.tolist(), strict=True)), units, factor)
            title = f"contrasted: the top {count} units of all layers at {factor:g}"
            proposed.append(Candidate("contrasted", title, scales, found.source))
    return proposed


def random_like(made: Sequence[Candidate], seed: int) -> list[Candidate]:
    """For every candidate one with as many units of the same layers, drawn at random, scaled alike."""
    rng = np.random.default_rng(seed)
    return [
        Candidate(
            c.family, "random units", {
                at: torch.ones(len(s)).scatter(0, torch.as_tensor(rng.permutation(len(s))[: int((s != 1).sum())]), float(s.min()))
                for at, s in c.scales.items()
            }, "nothing",
        )
        for c in made
    ]  # fmt: skip


def scales_of(pairs: Sequence[tuple[int, int]], units: int, factor: float) -> dict[int, Tensor]:
    scales: dict[int, Tensor] = {}
    for layer, unit in pairs:
        scales.setdefault(layer, torch.ones(units))[unit] = factor
    return scales


def unit_map(score: np.ndarray, scales: Scales) -> Chart:
    """Layers by bins of neighbouring units: in each bin the score (layers, units) that is farthest from 0."""
    depth, units = score.shape
    bins = np.array_split(np.arange(units), min(units, BINS))
    columns = [float(b[0]) for b in bins]
    rows = []
    for layer in range(depth):
        cells = [float(score[layer, b][np.abs(score[layer, b]).argmax()]) for b in bins]
        scaled_here = " (scaled)" if layer in scales else ""
        rows.append(Series(f"layer {layer}{scaled_here}", columns, cells))
    return Chart(
        "units", "Which units copy", "heat", "unit", "layer",
        "What a feed-forward unit adds to the probability of a shown answer where that is wrong, less what it adds to one that is "
        "right: in each cell the strongest of its units. The repair scales units of the rows that say so.",
        tuple(rows), value_title="added probability of a wrong copy",
    )  # fmt: skip
