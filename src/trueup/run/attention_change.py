"""The effect of an adapter on attention, per layer and head, compared with the base on the same tokens at the same positions.

Petrov, Torr and Bibi, arXiv 2310.19698: with a prefix, position i puts the mass alpha_i = sum_k a_ik on the prefix, and

    A_pt[i, j] = (1 - alpha_i) A[i, j]                          attention among the text's own tokens, only shrunk
    t_pt[i]    = sum_k a_ik v_k + (1 - alpha_i) t[i]            a bias, and the shrunk output of before

Both are exact at layer 0, and at any layer below which no layer has a prefix. Maps are read one layer at a time and reduced at
once. Of the base's pass only the inputs of the layers are kept, and its attention is computed again next to the adapted one.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trueup.errors import Unsupported
from trueup.run import forward
from trueup.run.attention import openly, tapped
from trueup.run.forward import Batch, Row
from trueup.run.predict import in_batches
from trueup.subject.attention_modules import adapted_layers, mixer_of
from trueup.subject.discover import positions_of
from trueup.subject.subject import Subject
from trueup.subject.swap_adapter import bare
from trueup.subject.units import layers_of

BINS = 200
"""Bins of the histograms that quantiles are read from: quantiles are right to 1 / BINS."""
LEAST = 0.05
"""Rows with less attention than this on the text are not compared: what could be compared in them is mostly rounding."""
MOST = ("worst", "off", "size")
TOKENS = 2048
"""Tokens of one batch: maps grow with the square of the length, so batches are smaller than a prediction's."""


@dataclass(frozen=True, eq=False)
class Trace:
    """The attention of an adapted model compared with that of its base, after arXiv 2310.19698.

    There are L layers, H heads, head dimension d, vocabulary size V, and p virtual tokens (0 for an adapter of weights). Means
    are over rows: all query positions of all texts. For position i, a_ik is the attention on virtual token k with value v_k,
    and alpha_i = sum_k a_ik. t is the output of the head in the base, and t_pt in the adapted model.

    Attributes:
        change: (L, H) mean total variation distance between the attention of the adapted model and of the base, among the text's
            tokens and renormalised. 0: equal. 1: no token in common. nan: no row could be compared. worst: (L, H) the largest
            of these distances.
        mass: (L, H) mean attention on all virtual tokens, the mean of alpha_i. quantiles: (3, L, H) the 0.1, 0.5 and 0.9
            quantiles of alpha_i.
        shares: (L, H, p) mean attention on each virtual token.
        gram: (L, H, d, d) sum of b_i b_i^T over rows, with the bias b_i = sum_k a_ik v_k. cosine: (L, H) mean pairwise cosine of
            the biases, nan for fewer than two.
        residual: (L, H) largest |t_pt - (1 - alpha) t - b|, divided by the largest |t_pt|. It is 0 where the paper's equation
            holds.
        dropped: (L, H) share of rows that are not compared, because less than 5% of their attention is on the text (`LEAST`).
            rows: the number of rows.
        tokens: (V,) mean attention on the virtual tokens by the token id of the row, over all layers and heads. nan for a token
            that does not occur.
    """

    change: np.ndarray
    worst: np.ndarray
    mass: np.ndarray
    quantiles: np.ndarray
    shares: np.ndarray
    gram: np.ndarray
    cosine: np.ndarray
    residual: np.ndarray
    dropped: np.ndarray
    rows: int
    tokens: np.ndarray


def trace(subject: Subject, rows: list[Row]) -> Trace:
    """Read the attention on `rows` (of `forward.tokenize`) with the adapter and without it.

    Raises:
        Unsupported: a state-space model, or one whose attention cannot be read.
    """
    base, sums = bare(subject), Sums(subject)
    openly(base, min(rows, key=len))
    with torch.inference_mode():
        for _ in in_batches(
            subject, rows, lambda s, b: sums.add(s, base, b), "tracing attention", tokens=_tokens(subject, rows)
        ):
            pass
    return sums.result()


def slots(subject: Subject) -> int:
    """The number of virtual tokens before the text; 0 for an adapter of weights."""
    config = subject.peft_config
    return int(config.num_virtual_tokens) if config is not None and config.is_prompt_learning else 0


def _tokens(subject: Subject, rows: list[Row]) -> int:
    """Tokens of text in a batch, so that text and virtual tokens together are `TOKENS`."""
    longest = max(map(len, rows))
    return max(1, TOKENS * longest // (longest + slots(subject)))


class Sums:
    """The sums of a trace, added up batch by batch. `add` takes batches padded on either side."""

    def __init__(self, subject: Subject):
        depth, self.slots = len(layers_of(subject)), slots(subject)
        self.layers: list[dict[str, Tensor]] = [{} for _ in range(depth)]
        rows = int(subject.base.get_input_embeddings().weight.shape[0])  # type: ignore[operator, union-attr]
        self.token_mass, self.token_count = np.zeros(rows), np.zeros(rows)
        self.rows = 0

    def add(self, subject: Subject, base: Subject, batch: Batch, *, shift: int | None = None) -> None:
        """`shift`: the position of the base's first token; None is its position behind the virtual tokens."""
        p, mask = self.slots, batch.mask.to(subject.device).bool()
        n, ids = mask.shape[1], batch.ids.to(subject.device)
        mass_by_layer: list[np.ndarray] = []
        batch_sums: list[dict[str, Tensor]] = []

        def look(layer: int, weights: Tensor, values: Tensor, before: Tensor, old: Tensor) -> None:
            text = weights[:, :, -n:].float()
            batch_sums.append(
                self._reduced(text, values.float(), before.float(), old.float(), mask, subject.anatomy.causal)
            )
            mass_by_layer.append(text[..., :p].sum(dim=-1).mean(dim=1)[mask].cpu().numpy())

        entered = _entered(base, batch, p if shift is None else shift)
        with _beside(subject, base, entered, look):
            forward.backbone(
                subject, ids, mask.long(), **_positions(subject, mask, p, p), **forward.segments(subject, batch)
            )
        # Added after the pass: one that runs out of memory is tried again in halves, and must not be counted twice.
        for sums, addition in zip(self.layers, batch_sums, strict=True):
            for k, v in addition.items():
                if k in sums:
                    v = torch.maximum(sums[k], v) if k in MOST else sums[k] + v
                sums[k] = v
        self.rows += int(mask.sum())
        token = ids[mask].cpu().numpy()
        np.add.at(self.token_mass, token, np.mean(mass_by_layer, axis=0))
        np.add.at(self.token_count, token, 1)

    def _reduced(
        self, weights: Tensor, values: Tensor, before: Tensor, old: Tensor, mask: Tensor, causal: bool
    ) -> dict[str, Tensor]:
        """One layer of one batch, summed over its rows; for the keys in `MOST` the largest value instead."""
        p, heads = self.slots, weights.shape[1]
        valid = mask[:, None].expand(-1, heads, -1)
        on_text, share = weights[..., p:], torch.where(valid[..., None], weights[..., :p], 0.0)
        mass, text_mass = share.sum(dim=-1), on_text.sum(dim=-1)
        variation, able = total_variation(on_text, before), _able(mask, causal)[:, None] & valid
        compared = able & (text_mass >= LEAST)
        bias = share @ values[:, :, :p]
        output = weights @ values
        residual = (output - text_mass[..., None] * (before @ old) - bias).abs().amax(dim=-1)
        histogram = torch.zeros(heads, BINS, dtype=torch.float64, device=mass.device)
        histogram.scatter_add_(1, _flat((mass * BINS).long().clamp(0, BINS - 1)), _flat(valid.double()))
        vectors = bias.transpose(0, 1).flatten(1, 2).double()
        length = vectors.norm(dim=-1, keepdim=True)
        unit = torch.where(length > 0, vectors / length.clamp(min=1e-30), 0.0)
        return {
            "variation": _sum(variation, compared), "kept": _sum(compared.double(), valid), "all": _sum(valid.double(), valid),
            "able": _sum(able.double(), valid), "mass": _sum(mass, valid), "histogram": histogram,
            "share": _sum(share, valid[..., None]), "gram": vectors.transpose(1, 2) @ vectors, "unit": unit.sum(dim=1),
            "units": (length[..., 0] > 0).double().sum(dim=1),
            "worst": torch.where(compared, variation, 0.0).amax(dim=(0, 2)),
            "off": torch.where(valid, residual, 0.0).amax(dim=(0, 2)),
            "size": torch.where(valid, output.abs().amax(dim=-1), 0.0).amax(dim=(0, 2)),
        }  # fmt: skip

    def result(self) -> Trace:
        def of(key: str) -> np.ndarray:
            return torch.stack([layer[key] for layer in self.layers]).double().cpu().numpy()

        row_count, compared = of("all"), of("kept")
        cumulated = of("histogram").cumsum(axis=-1) / row_count[..., None]
        quantiles = np.stack([((cumulated < q).sum(axis=-1) + 0.5) / BINS for q in (0.1, 0.5, 0.9)])
        units = np.where(of("units") < 2, np.nan, of("units"))
        cosine = ((of("unit") ** 2).sum(axis=-1) - units) / (units * (units - 1))
        with np.errstate(invalid="ignore", divide="ignore"):
            change, worst = of("variation") / compared, np.where(compared > 0, of("worst"), np.nan)
            tokens = np.where(self.token_count > 0, self.token_mass / self.token_count, np.nan)
            return Trace(
                change=change, worst=worst, mass=of("mass") / row_count,
                quantiles=quantiles, shares=of("share") / row_count[..., None], gram=of("gram"), cosine=cosine,
                residual=of("off") / np.maximum(of("size"), 1e-30), dropped=1 - compared / np.maximum(of("able"), 1),
                rows=self.rows, tokens=tokens,
            )  # fmt: skip


def total_variation(weights: Tensor, before: Tensor) -> Tensor:
    """(..., j) attention on the text, of any mass, and the base's -> (...): half the L1 distance after renormalising.

    The weights are divided by their own sum and not by 1 - alpha, which is off by several per cent in bfloat16.
    """
    total = weights.sum(dim=-1, keepdim=True)
    return (weights / total.clamp(min=1e-30) - before).abs().sum(dim=-1) / 2


@dataclass(frozen=True, eq=False)
class ByLayer:
    """The effect of the adapter when it acts in one layer alone.

    Attributes:
        change: (L, H) mean total variation that the layer causes by itself, on the inputs of the base.
        push: (L, C) mean change of the class logits, less their mean over classes. shifted: (L,) mean total variation
            between the class probabilities with and without it.
    """

    change: np.ndarray
    push: np.ndarray
    shifted: np.ndarray


def by_layer(subject: Subject, rows: list[Row]) -> ByLayer:
    """The effect of each layer's share of the adapter by itself: the adapter is on in that layer, and off in the others.

    A soft prompt is "on" in a layer where the text sees it.
    """
    base, depth, c = bare(subject), len(layers_of(subject)), len(subject.classes)
    total: list[np.ndarray] = []
    compared: list[np.ndarray] = []
    push, shifted, count = np.zeros((depth, c)), np.zeros(depth), 0

    def one(s: Subject, batch: Batch) -> None:
        nonlocal count, push, shifted
        mask, entered = batch.mask.to(s.device).bool(), _entered(base, batch, slots(s))
        able, n = _able(mask, s.anatomy.causal)[:, None], mask.shape[1]
        with acting(s, ()):
            plain = forward.logits(s, batch)[:, :c].double()
        layer_sums: list[tuple[Tensor, Tensor]] = []
        moved, parted = np.zeros((depth, c)), np.zeros(depth)
        for at in range(depth):

            def look(layer: int, weights: Tensor, values: Tensor, before: Tensor, old: Tensor) -> None:
                on_text = weights[:, :, -n:, -n:].float()
                comparable = able & (on_text.sum(dim=-1) >= LEAST)
                layer_sums.append(
                    (_sum(total_variation(on_text, before.float()), comparable), _sum(comparable.double(), comparable))
                )

            with acting(s, (at,)), _beside(s, base, entered, look, only=at):
                z = forward.logits(s, batch)[:, :c].double()
            moved[at] = (z - plain - (z - plain).mean(dim=1, keepdim=True)).sum(dim=0).cpu().numpy()
            parted[at] = float((z.softmax(-1) - plain.softmax(-1)).abs().sum() / 2)
        total.append(torch.stack([t for t, _ in layer_sums]).cpu().numpy())
        compared.append(torch.stack([k for _, k in layer_sums]).cpu().numpy())
        push, shifted, count = push + moved, shifted + parted, count + len(mask)

    with torch.inference_mode():
        for _ in in_batches(subject, rows, one, "one layer at a time", tokens=_tokens(subject, rows)):
            pass
    with np.errstate(invalid="ignore"):
        change = np.sum(total, axis=0) / np.sum(compared, axis=0)
    return ByLayer(change, push / count, shifted / count)


@contextlib.contextmanager
def acting(subject: Subject, layers: Collection[int]) -> Iterator[None]:
    """Inside the block the adapter acts in `layers` alone: there the text sees the virtual tokens, or weights are adapted.

    A trained head stays as it is, because answers are read with it.
    """
    p = slots(subject)
    if p == 0:
        tuners = [m for at, m in adapted_layers(subject) if at not in layers]
        states_before = [(m, m._disable_adapters) for m in tuners]
        try:
            for m in tuners:
                setattr(m, "_disable_adapters", True)  # noqa: B010 (the method that sets it also moves requires_grad)
            yield
        finally:
            for m, disabled in states_before:
                setattr(m, "_disable_adapters", disabled)  # noqa: B010
        return

    def hide(layer: int, weights: Tensor, values: Tensor) -> Tensor | None:
        if layer in layers:
            return None
        changed = weights.clone()
        text = _rows_of_text(changed, p)
        text[..., :p] = 0
        text /= text.sum(dim=-1, keepdim=True).clamp(min=1e-30)
        return changed

    with tapped(subject, hide):
        yield


@contextlib.contextmanager
def frozen(subject: Subject, shares: np.ndarray) -> Iterator[None]:
    """Inside the block every row of the text puts the same attention `shares` (L, H, p) on the virtual tokens.

    The remaining attention goes to the text in its former proportions. So what the virtual tokens add does not depend on the
    text: each head gets a constant vector.
    """
    fixed = torch.as_tensor(shares, dtype=torch.float32, device=subject.device)

    def freeze(layer: int, weights: Tensor, values: Tensor) -> Tensor:
        changed, p = weights.clone(), fixed.shape[-1]
        text = _rows_of_text(changed, p)
        text_mass = text[..., p:].sum(dim=-1, keepdim=True).clamp(min=1e-30)
        text[..., p:] *= (1 - fixed[layer].sum(dim=-1))[None, :, None, None].to(text) / text_mass
        text[..., :p] = fixed[layer][None, :, None, :].to(text)
        return changed

    with tapped(subject, freeze):
        yield


Entered = list[tuple[Any, Any]]
"""The arguments of each call of a mixer (the attention module of a layer) of the base, by layer."""


def _entered(base: Subject, batch: Batch, shift: int) -> Entered:
    """The `Entered` of a pass of the base on tokens whose positions begin at `shift`."""
    mask, entered = batch.mask.to(base.device).bool(), []
    arguments: dict[str, Any] = _positions(base, mask, shift, 0) | forward.segments(base, batch)
    if base.anatomy.causal:
        arguments["use_cache"] = False  # each layer is called a second time, and must not find its own keys in a cache
    mixers = [mixer_of(base, i) for i in range(len(layers_of(base)))]
    with tapped(base, lambda *_: None):
        hooks = [m.register_forward_pre_hook(lambda _, a, k: entered.append((a, k)), with_kwargs=True) for m in mixers]
        try:
            forward.backbone(base, batch.ids.to(base.device), mask.long(), **arguments)
        finally:
            for hook in hooks:
                hook.remove()
    return entered


@contextlib.contextmanager
def _beside(subject: Subject, base: Subject, entered: Entered, look: Any, *, only: int | None = None) -> Iterator[None]:
    """Inside the block a pass of `subject` calls look(layer, weights, values, base's weights, base's values) at each layer.

    `only`: at this layer alone. Where another tap of the subject is active, `look` sees the weights after that tap.
    """
    caught: list[tuple[Tensor, Tensor]] = []

    def catch(_: int, weights: Tensor, values: Tensor) -> None:
        caught.append((weights, values))

    def see(layer: int, weights: Tensor, values: Tensor) -> None:
        if only is None or layer == only:
            mixer_of(base, layer)(*entered[layer][0], **entered[layer][1])
            look(layer, weights, values, *caught.pop())

    with tapped(base, catch), tapped(subject, see):
        yield


def _able(mask: Tensor, causal: bool) -> Tensor:
    """(b, t) -> (b, t): rows that see two or more of the text's tokens. A row that sees only itself has no choice to compare."""
    return mask & ((mask.long().cumsum(dim=1) if causal else mask.long().sum(dim=1, keepdim=True)) >= 2)


def _positions(subject: Subject, mask: Tensor, shift: int, slots: int) -> dict[str, Tensor]:
    """Explicit positions of (b, t) tokens padded on either side, from `shift` on; of `slots` soft-prompt tokens as well."""
    anatomy = subject.anatomy
    if "position_ids" not in inspect.signature(subject.base.base_model.forward).parameters:  # type: ignore[union-attr]
        if anatomy.discovered and (shift or slots):
            raise Unsupported(
                f"'{anatomy.model_type}' takes no positions, so its attention with a prompt cannot be held against that without."
            )
        return {}  # BLOOM knows distances only
    places = positions_of(subject.base.base_model) if anatomy.after_padding else None  # type: ignore[arg-type]
    first_position = 0 if places is None or places.padding_idx is None else places.padding_idx + 1
    text = (mask.long().cumsum(dim=1) - 1).clamp(min=0) + shift
    if slots and subject.soft_prompted:
        text = torch.cat([torch.arange(slots, device=mask.device).expand(len(mask), -1), text], dim=1)
    return {"position_ids": text + first_position}


def _rows_of_text(weights: Tensor, p: int) -> Tensor:
    """(b, h, q, k) -> the rows of the text. The rows of a soft prompt come first, and are left out."""
    return weights[:, :, p:] if weights.shape[2] == weights.shape[3] else weights


def _flat(x: Tensor) -> Tensor:
    return x.transpose(0, 1).flatten(1)


def _sum(x: Tensor, where: Tensor) -> Tensor:
    """(b, h, n, ...) -> (h, ...), in float64, over the rows of `where`."""
    return torch.where(where, x, torch.zeros_like(x)).double().sum(dim=(0, 2))
