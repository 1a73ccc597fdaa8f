"""Integrated gradients of feed-forward units at the last position: one path for each layer, by an exact shortcut.

The units of a layer are the input of its down projection (`anatomy.down`; of ``out_proj`` in Mamba; with an IA3 adapter
there, what goes into the wrapped projection). A path scales the units of one layer at the last token by a in [0, 1]. All
else stays as it is, so nothing before the last token changes. One full pass keeps the keys and values (the recurrent
state in state-space models) that the last token sees. Each point of each path is then one row of d numbers. A row enters
its own layer as the unchanged last token, and goes through that layer and all layers above it: this is called a climb.
Layer l is computed for the rows of the layers up to l, and one backward pass gives the gradients of all paths. In
attention models the rows are laid out as query positions that see only the prompt and themselves, so keys and values are
shared and never copied per row. In state-space models, whose state is small, the rows are a batch.
"""

from __future__ import annotations

import contextlib
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from trueup.errors import TESTED, BadInput, TrueupError, Unavailable, Unsupported, out_of_memory
from trueup.run.forward import Batch, Row, at_last, backbone, collate
from trueup.run.predict import TOKENS, evaluating, session
from trueup.run.proof import equal
from trueup.subject import past
from trueup.subject.subject import Subject
from trueup.subject.units import Part, head_width, layers_of

T = TypeVar("T")
Readout = Callable[[Tensor, int], Tensor]
"""(rows, d) final hidden states of prompt i, at the last position after the last norm -> (rows,) scalars, differentiable."""
ROWS = 1024
"""Rows of one climb: prompts times points of all paths. The batch of prompts is halved, with a note, when memory runs out."""


@dataclass(frozen=True)
class Quadrature:
    """A rule on [0, 1]: the integral of g is about sum_p weights[p] * g(nodes[p])."""

    nodes: tuple[float, ...]
    weights: tuple[float, ...]


def gauss_legendre(points: int = 6) -> Quadrature:
    """Exact for polynomials of degree 2 * points - 1."""
    x, w = np.polynomial.legendre.leggauss(points)
    return Quadrature(tuple(((x + 1) / 2).tolist()), tuple((w / 2).tolist()))


def towards_zero(points: int = 8) -> Quadrature:
    """Gauss-Legendre in sqrt(a): where a norm follows, f bends sharply near a = 0, and the points are needed there."""
    t, w = gauss_legendre(points).nodes, gauss_legendre(points).weights
    return Quadrature(tuple(x * x for x in t), tuple(2 * x * v for x, v in zip(t, w, strict=True)))


def midpoint(points: int = 20) -> Quadrature:
    """Equal weights at the middles of equal pieces."""
    return Quadrature(tuple((i + 0.5) / points for i in range(points)), (1 / points,) * points)


@dataclass(frozen=True)
class Refined:
    """A quadrature with as many points as each path needs: first `start`, then four times as many until it is complete.

    A layer whose units fill most of the residual stream saturates what follows it within a hundredth of its path: SmolLM2's
    layer 0 misses up to 0.6 of probability at 8 points, and 0.02 at 32. Few layers do this, so the other layers stay cheap.

    Attributes:
        tolerance: completeness error that is accepted, in the readout's unit. start, most: fewest and most points.
        rule: gives the quadrature with a given number of points.
    """

    tolerance: float = 0.01
    start: int = 8
    most: int = 128
    rule: Callable[[int], Quadrature] = towards_zero

    @property
    def rules(self) -> Iterator[Quadrature]:
        points = self.start
        while points <= self.most:
            yield self.rule(points)
            points *= 4


@dataclass(frozen=True, eq=False)
class Attribution:
    """Integrated gradients of a scalar f on n prompts, in the readout's unit.

    Attributes:
        values: (n, layers, units) float32: (w_j - b_j) * integral_0^1 of df(b + a * (w - b))/dw_j da, baseline b.
        whole: (n,) f as it is. floor: (n, layers) f with all units of that layer at the baseline.
        gap: (n, layers) |sum of values - (whole - floor)|, the completeness error: what the quadrature misses. 0 is best.
        points: (n, layers) how many points each path was given.
    """

    values: np.ndarray
    whole: np.ndarray
    floor: np.ndarray
    gap: np.ndarray
    points: np.ndarray


def attribute(
    subject: Subject, rows: Sequence[Row], readout: Readout, quadrature: Quadrature | Refined | None = None, *,
    baseline: np.ndarray | None = None,
) -> Attribution:  # fmt: skip
    """How much each feed-forward unit at the last position adds to `readout`, on every prompt of `rows`, in their order.

    Integrated gradients (Sundararajan et al., arXiv 1703.01365, eq. 1), whose completeness (their proposition 1) is checked
    for each prompt and layer. No result depends on the batch.

    Args:
        quadrature: one rule for all paths; None is `Refined()`, which adds points until the attributions add up.
        baseline: (layers, units) where the paths begin; None is 0.

    Raises:
        BadInput: a baseline of another shape. Unsupported: an encoder, or a model whose attention takes no mask. Unavailable:
            one prompt does not fit in memory.
    """
    plan = quadrature or Refined()
    first, *finer = [plan] if isinstance(plan, Quadrature) else plan.rules
    all_layers = list(range(len(_layers(subject))))
    values, whole, floor = _integrated(subject, rows, readout, first, all_layers, baseline)
    points = np.full(floor.shape, len(first.nodes))

    def missed() -> np.ndarray:
        return np.abs(values.sum(axis=2, dtype=np.float64) - (whole[:, None] - floor))

    for rule in finer:
        assert isinstance(plan, Refined)
        incomplete = missed() > plan.tolerance
        if not incomplete.any():
            break
        prompts_left, layers = (
            np.flatnonzero(incomplete.any(axis=1)).tolist(),
            np.flatnonzero(incomplete.any(axis=0)).tolist(),
        )
        readout_of_left: Readout = lambda hidden, i, prompts_left=prompts_left: readout(hidden, prompts_left[i])  # noqa: E731 (bound to this round)
        refined, _, _ = _integrated(subject, [rows[i] for i in prompts_left], readout_of_left, rule, layers, baseline)
        # A path is refined for its own error alone, and not for that of its neighbours in the batch.
        index = np.ix_(prompts_left, layers)
        values[index] = np.where(incomplete[index][..., None], refined, values[index])
        points[index] = np.where(incomplete[index], len(rule.nodes), points[index])
    return Attribution(values, whole, floor, missed(), points)


def _integrated(
    subject: Subject, rows: Sequence[Row], readout: Readout, rule: Quadrature, layers: Sequence[int],
    baseline: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Values (n, l, units) of the paths of these layers by one rule; f as it is (n,), and at each path's beginning (n, l)."""
    nodes, weights = (torch.tensor(v, device=subject.device)[:, None] for v in (rule.nodes, rule.weights))

    def read(batch: Batch, prompts: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        run = _record(subject, batch)
        units = {at: run.layers[at].units.unsqueeze(1) for at in layers}
        begin = {at: _begins(baseline, at, w) for at, w in units.items()}
        with torch.no_grad():
            whole = _read_out(readout, run.final.unsqueeze(1), prompts)
            floor = _read_out(readout, run.climb(begin), prompts)
        path = {
            at: (begin[at].float() + nodes * (w.float() - begin[at].float())).to(w.dtype).requires_grad_()
            for at, w in units.items()
        }
        f = _read_out(readout, run.climb(path), prompts)
        # A row sees no other row, so the gradient of the sum holds each row's own.
        slopes = torch.autograd.grad(f.sum(), list(path.values()))
        parts = [
            (weights * s.float()).sum(dim=1) * (w - begin[at])[:, 0].float()
            for s, (at, w) in zip(slopes, units.items(), strict=True)
        ]
        return torch.stack(parts, dim=1), whole[:, 0], floor

    values = np.empty((0,))
    whole, floor = np.empty(len(rows)), np.empty((len(rows), len(layers)))
    batch_size = ROWS // (len(layers) * len(rule.nodes))
    for take, (v, at_full, at_zero) in _batches(subject, rows, batch_size, "unit attributions", read):
        values = np.empty((len(rows), *v.shape[1:]), np.float32) if not values.size else values
        values[take], whole[take], floor[take] = v.cpu().numpy(), at_full.cpu().numpy(), at_zero.cpu().numpy()
    return values, whole, floor


def _begins(baseline: np.ndarray | None, layer: int, units: Tensor) -> Tensor:
    """Where the paths of one layer begin: (b, 1, units), as `units`."""
    if baseline is None:
        return torch.zeros_like(units)
    if layer >= len(baseline) or baseline[layer].shape != units.shape[-1:]:
        raise BadInput(
            f"The baseline is {baseline.shape}, and layer {layer} has {units.shape[-1]} units; give (layers, units) numbers."
        )
    return torch.as_tensor(baseline[layer], device=units.device).to(units.dtype).expand_as(units)


def last_units(subject: Subject, rows: Sequence[Row], part: Part = "down") -> np.ndarray:
    """(n, layers, units) float32: the feed-forward units of every prompt at its last position.

    With ``mixer_out`` the units are the outputs of the attention heads of a layer there, one head after another.

    Raises:
        As `attribute`.
    """
    units = np.empty((0,))

    def read(batch: Batch, _: list[int]) -> Tensor:
        return torch.stack([layer.units for layer in _record(subject, batch, part).layers], dim=1).float()

    for take, units_of_batch in _batches(subject, rows, ROWS, "units", read):
        units = np.empty((len(rows), *units_of_batch.shape[1:]), np.float32) if not units.size else units
        units[take] = units_of_batch.cpu().numpy()
    return units


def scaled_at_last(
    subject: Subject, rows: Sequence[Row], readout: Readout, candidates: Sequence[Mapping[int, Tensor]],
    part: Part = "down",
) -> np.ndarray:  # fmt: skip
    """(n, c, ...): `readout` when units are multiplied at the last position alone, for c candidates (layer -> factors).

    The machinery of `attribute` without gradients: one full pass for all candidates, each of which then climbs from its
    lowest layer. Factors are (units,), or one number. The readout may give (rows, k) instead of (rows,). With ``mixer_out`` the
    outputs of the attention heads are multiplied.

    Raises:
        BadInput: a layer that is not there, or a candidate without one. Else as `attribute`.
    """
    depth = len(_layers(subject))
    for candidate in candidates:
        if not candidate:
            raise BadInput("A candidate scales no layer; name at least one.")
        for at in candidate:
            if not 0 <= at < depth:
                raise BadInput(f"There is no layer {at}: the model has layers 0 to {depth - 1}. Give one of these.")
    order = sorted(range(len(candidates)), key=lambda c: min(candidates[c]))

    def read(batch: Batch, prompts: list[int]) -> Tensor:
        with torch.no_grad():
            run = _record(subject, batch, part)
            step = max(1, ROWS // len(prompts))
            parts = [
                _read_out(readout, run.climb_scaled([candidates[c] for c in order[i : i + step]]), prompts)
                for i in range(0, len(order), step)
            ]
        return torch.cat(parts, dim=1)

    readouts = np.empty((0,))
    for take, f in _batches(subject, rows, ROWS // max(1, min(ROWS, len(candidates))), "candidates", read):
        readouts = np.empty((len(rows), *f.shape[1:])) if not readouts.size else readouts
        readouts[take] = f.cpu().numpy()
    inverse_order = np.argsort(order)
    return readouts[:, inverse_order]


def heads_replaced(subject: Subject, rows: Sequence[Row], readout: Readout, given: np.ndarray) -> np.ndarray:
    """(n, layers, heads): change of `readout` when the output of one attention head at the last position is replaced by `given`.

    `given` is (layers, heads * width), as `last_units` with ``mixer_out``. Every head is one row that climbs from its own
    layer, after one full pass for all of them. This is exact activation patching, at a fraction of a pass for each head.

    Raises:
        As `attribute`, and Unsupported: a state-space model.
    """
    width = head_width(subject)
    replacement = torch.as_tensor(given, device=subject.device)
    depth, heads = len(replacement), replacement.shape[1] // width
    head_mask = torch.eye(heads, dtype=torch.bool, device=subject.device).repeat_interleave(width, dim=1)
    step = max(1, ROWS // heads)

    def read(batch: Batch, prompts: list[int]) -> Tensor:
        with torch.no_grad():
            run = _record(subject, batch, "mixer_out")
            readouts = []
            for first in range(0, depth, step):
                units = {at: run.layers[at].units.unsqueeze(1) for at in range(first, min(first + step, depth))}
                replaced = {at: torch.where(head_mask, replacement[at].to(w), w) for at, w in units.items()}
                readouts.append(_read_out(readout, run.climb(replaced), prompts))
            plain = _read_out(readout, run.final.unsqueeze(1), prompts)
        return (torch.cat(readouts, dim=1) - plain).unflatten(1, (depth, heads))

    changes = np.empty((len(rows), depth, heads))
    for take, change in _batches(subject, rows, ROWS // (heads * min(step, depth)), "attention heads", read):
        changes[take] = change.cpu().numpy()
    return changes


# ------------------------------------------------------------------------------------------------- a pass, and climbs


class _Recorder:
    """Stands in for a layer's cache during the full pass, and keeps the keys and values (b, heads, t, d) attention saw."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def update(self, keys: Tensor, values: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, Tensor]:
        self.keys, self.values = self.inner.update(keys, values, *rest, **named)
        return self.keys, self.values


class _Shared:
    """A cache that appends the keys and values of the rows to those of the prompt, and does not store them."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)


class _Unwritten(Tensor):
    """A state that `copy_` does not change: transformers writes states in place, which would break the backward pass."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def copy_(self, *_: Any, **__: Any) -> Tensor:  # type: ignore[override]
        return self


class _State:
    """A layer's cache of a state-space model, (b, ...) each, before the last token; handed out once per row."""

    def __init__(self, conv: Tensor, recurrent: Tensor) -> None:
        self.conv, self.recurrent, self.rows = conv, recurrent, 1

    def get_conv_state(self, *_: Any, **__: Any) -> Tensor:
        return self.conv.repeat_interleave(self.rows, dim=0).as_subclass(_Unwritten)

    def get_recurrent_state(self, *_: Any, **__: Any) -> Tensor:
        return self.recurrent.repeat_interleave(self.rows, dim=0).as_subclass(_Unwritten)

    def is_recording_past(self, *_: Any) -> bool:
        return False


@dataclass(frozen=True, eq=False)
class _Layer:
    """One layer after a full pass over b prompts: all that rows need to go through it in place of the last token.

    Attributes:
        down: the projection whose input is edited, by its most frequent name.
        enters: (b, 1, d) input of the layer at the last token. units: (b, units) input of that projection there.
        given: the other arguments of the layer, as far as they do not depend on the number of rows.
        cache: the keys and values, or the state, of earlier tokens. cache_name: the argument that takes it.
        seen: (b, 1, 1, k) which keys the last token sees, itself left out; None in state-space models.
        alibi: (b * heads, 1, k + 1) the bias of the keys and of the last token itself, where the family has one.
    """

    module: nn.Module
    down: nn.Module
    enters: Tensor
    units: Tensor
    given: Mapping[str, Any]
    cache: _Shared | _State
    cache_name: str
    seen: Tensor | None
    alibi: Tensor | None

    def __call__(self, x: Tensor, edit: Callable[[Tensor], Tensor] | None) -> Tensor:
        """(b, r, d) -> (b, r, d), with the units (b, r, units) of the rows replaced by `edit` of them."""

        def put(_: Any, inputs: tuple[Tensor, ...]) -> Tensor:
            assert edit is not None
            return edit(inputs[0].reshape(*x.shape[:2], -1)).reshape(inputs[0].shape)

        arguments = dict(self.given) | {self.cache_name: self.cache}
        if isinstance(self.cache, _State):
            self.cache.rows = x.shape[1]
        if self.seen is not None:
            arguments["attention_mask"] = self._mask(x)
        if self.alibi is not None:
            arguments["alibi"] = torch.cat([self.alibi, self.alibi[..., -1:].expand(-1, -1, x.shape[1] - 1)], dim=-1)
        hook = None if edit is None else self.down.register_forward_pre_hook(put)
        try:
            out = self.module(x if self.seen is not None else x.flatten(0, 1).unsqueeze(1), **arguments)
        finally:
            if hook is not None:
                hook.remove()
        return (out[0] if isinstance(out, tuple) else out).reshape(x.shape)

    def _mask(self, x: Tensor) -> Tensor:
        assert self.seen is not None
        rows = x.shape[1]
        itself = torch.eye(rows, dtype=torch.bool, device=x.device).expand(len(x), 1, -1, -1)
        sees = torch.cat([self.seen.expand(-1, -1, rows, -1), itself], dim=-1)
        # Added to the scores: eager attention takes no boolean mask, and sdpa takes both.
        return torch.zeros(sees.shape, dtype=x.dtype, device=x.device).masked_fill_(~sees, torch.finfo(x.dtype).min)


@dataclass(frozen=True, eq=False)
class _Run:
    """A full pass over b prompts, ready to be climbed.

    Attributes:
        tail: the modules that follow the last layer. final: (b, d) the last token after them.
    """

    layers: list[_Layer]
    tail: list[nn.Module]
    final: Tensor

    def prove(self, model_type: str) -> None:
        """Let one unchanged row climb from layer 0: it must give what the plain pass gave, units included.

        Raises:
            Unsupported: it differs by more than rounding.
        """
        found: dict[str, tuple[Tensor, Tensor]] = {}

        def look(at: int) -> Callable[[Tensor], Tensor]:
            def keep(own: Tensor) -> Tensor:
                found[f"the units of layer {at}"] = own[:, 0], self.layers[at].units
                return own

            return keep

        with torch.no_grad():
            top = self._up({0: 1}, look)[:, 0]
        for what, (stepped, expected) in {**found, "the final hidden states": (top, self.final)}.items():
            equal(stepped, expected, f"The step of one token through the layers of '{model_type}'", what)

    def climb(self, units: Mapping[int, Tensor]) -> Tensor:
        """(b, s, d) final hidden states of rows that enter at layer l with the units (b, k_l, units), by layer."""

        def edit(at: int) -> Callable[[Tensor], Tensor] | None:
            new = units.get(at)
            return (
                None
                if new is None
                else lambda units_of_rows: torch.cat([units_of_rows[:, : -new.shape[1]], new], dim=1)
            )

        return self._up({at: new.shape[1] for at, new in units.items()}, edit)

    def climb_scaled(self, candidates: Sequence[Mapping[int, Tensor]]) -> Tensor:
        """(b, c, d) final hidden states of one row for each candidate, which come in the order of their lowest layers."""

        def edit(at: int) -> Callable[[Tensor], Tensor] | None:
            if not any(at in c for c in candidates):
                return None
            w = self.layers[at].units
            ones = torch.ones(w.shape[1], dtype=w.dtype, device=w.device)
            climbing = [c for c in candidates if min(c) <= at]
            factors = torch.stack([c[at].to(w).expand(w.shape[1]) if at in c else ones for c in climbing])
            return lambda units_of_rows: units_of_rows * factors

        return self._up(Counter(min(c) for c in candidates), edit)

    def _up(self, entering: Mapping[int, int], edit: Callable[[int], Callable[[Tensor], Tensor] | None]) -> Tensor:
        x: Tensor | None = None
        for at in range(min(entering), len(self.layers)):
            layer = self.layers[at]
            if entering.get(at):
                new = layer.enters.expand(-1, entering[at], -1)
                x = new if x is None else torch.cat([x, new], dim=1)
            assert x is not None
            x = layer(x, edit(at))
        assert x is not None
        return _through(self.tail, x)


def _through(modules: list[nn.Module], x: Tensor) -> Tensor:
    for module in modules:
        x = module(x)
    return x


def _layers(subject: Subject) -> list[nn.Module]:
    """The blocks of a causal model. Raises Unsupported where the shortcut would not be exact."""
    anatomy, config = subject.anatomy, subject.base.config
    if not anatomy.causal:
        raise Unsupported(
            f"'{anatomy.model_type}' is an encoder, in which every token sees the last one; give a causal model instead."
        )
    if anatomy.kind == "decoder" and getattr(config, "_attn_implementation", "eager") not in ("sdpa", "eager"):
        raise Unsupported(
            f"The attention '{config._attn_implementation}' takes no mask of its own; "  # type: ignore[union-attr]
            "load the model with attn_implementation='sdpa'."
        )
    if tuple(getattr(config, "time_step_limit", (0.0, float("inf")))) != (0.0, float("inf")):
        raise Unsupported(
            "This Mamba-2 bounds its time steps, which transformers does not do token by token, so its state cannot be "
            "stepped exactly; give a model without time_step_limit."
        )
    return layers_of(subject)


_STEPPED: WeakKeyDictionary[nn.Module, set[Part]] = WeakKeyDictionary()


def _record(subject: Subject, batch: Batch, part: Part = "down") -> _Run:
    """One full pass without gradients; in state-space models also one over all tokens but the last.

    On a discovered family, rows with changed units are also compared with whole passes, once for each model.
    """
    if not subject.anatomy.discovered:
        return _recorded(subject, batch, part)
    try:
        run = _recorded(subject, batch, part)
        if part not in _STEPPED.setdefault(subject.model, set()):
            _hold_against_passes(subject, batch, part, run)
    except TrueupError:
        raise
    except Exception as e:  # a discovered family may call its layers in another way
        if out_of_memory(e):
            raise
        why = f"{type(e).__name__}: {' '.join(str(e).split())[:160]}"
        if isinstance(e, AttributeError) and _Recorder.__name__ in str(e):
            why = "they ask for more of what they keep of earlier tokens than keys and values"
        raise Unsupported(
            f"One token could not be stepped through the layers of '{subject.anatomy.model_type}' ({why}), so nothing that "
            "rests on it was computed. Give a model of another family."
        ) from e
    _STEPPED[subject.model].add(part)
    return run


def _hold_against_passes(subject: Subject, batch: Batch, part: Part, run: _Run) -> None:
    """Compare climbing rows with whole passes, with units of the first or the last layer scaled at the last token.

    Raises:
        Unsupported: the final hidden states differ.
    """
    ids, mask = batch.ids.to(subject.device), batch.mask.to(subject.device)
    layers, last = layers_of(subject), mask.sum(dim=1) - 1
    g = torch.Generator().manual_seed(0)
    factors = [torch.rand(layer.units.shape[1], generator=g).to(layer.units) for layer in run.layers]
    tested_layers = list(dict.fromkeys((0, len(layers) - 1)))
    with torch.no_grad():
        stepped = run.climb_scaled([{at: factors[at]} for at in tested_layers])
        for i, at in enumerate(tested_layers):

            def put(_: Any, inputs: tuple[Tensor, ...], at: int = at) -> tuple[Tensor, ...]:
                x = inputs[0].reshape(len(ids), -1, inputs[0].shape[-1]).clone()
                last_position = x.shape[1] - mask.shape[1] + last
                examples = torch.arange(len(x), device=x.device)
                x[examples, last_position] = x[examples, last_position] * factors[at]
                return (x.reshape(inputs[0].shape), *inputs[1:])

            hook = layers[at].get_submodule(getattr(subject.anatomy, part)).register_forward_pre_hook(put)
            try:
                passed = at_last(backbone(subject, ids, mask).last_hidden_state, mask)
            finally:
                hook.remove()
            what = f"The step of one token through the layers of '{subject.anatomy.model_type}'"
            equal(stepped[:, i], passed, what, f"the final hidden states with other units in layer {at}")


def _recorded(subject: Subject, batch: Batch, part: Part) -> _Run:
    ids, mask = batch.ids.to(subject.device), batch.mask.to(subject.device)
    anatomy, layers = subject.anatomy, _layers(subject)
    anatomy.need(part)
    parent = subject.base.base_model.get_submodule(anatomy.layers.rpartition(".")[0])  # type: ignore[operator, union-attr]
    downs = [layer.get_submodule(getattr(anatomy, part)) for layer in layers]
    recurrent = anatomy.kind == "state-space"
    calls: list[dict[str, Any]] = []
    places: list[list[str]] = []
    units: list[Tensor] = []
    tail: list[nn.Module] = []

    def enter(
        layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        names = list(inspect.signature(layer.forward).parameters)
        named = dict(zip(names, args, strict=False)) | kwargs
        named = {"hidden_states" if k == names[0] else k: v for k, v in named.items()}  # some call them x
        places.append(past.named(named))
        if not recurrent:
            named |= {name: _Recorder(named[name]) for name in places[-1]}
        calls.append(named)
        tail.clear()
        return (named["hidden_states"],), {k: v for k, v in named.items() if k != "hidden_states"}

    def read(_: Any, inputs: tuple[Tensor, ...]) -> None:
        units.append(at_last(inputs[0].reshape(len(ids), -1, inputs[0].shape[-1]), mask))

    hooks = [layer.register_forward_pre_hook(enter, with_kwargs=True) for layer in layers]
    hooks += [down.register_forward_pre_hook(read) for down in downs]
    hooks += [m.register_forward_hook(lambda m, *_: tail.append(m)) for m in parent.children()]  # type: ignore[union-attr]
    try:
        with torch.no_grad():
            final = at_last(backbone(subject, ids, mask, use_cache=True).last_hidden_state, mask)
    finally:
        for hook in hooks:
            hook.remove()
    if any(len(found) != 1 for found in places):
        raise Unsupported(
            f"The layers of '{anatomy.model_type}' do not take the keys and values of earlier tokens in one argument, so units "
            f"cannot be attributed in one climb. {TESTED}"
        )
    states = _states(subject, ids, mask) if recurrent else None
    found = [
        _layer(layer, down, named, name, w, mask, None if states is None else states[at])
        for at, (layer, down, named, (name,), w) in enumerate(zip(layers, downs, calls, places, units, strict=True))
    ]
    run = _Run(found, list(tail), final)
    run.prove(anatomy.model_type)
    return run


def _layer(
    module: nn.Module, down: nn.Module, named: dict[str, Any], cache_name: str, units: Tensor, mask: Tensor,
    state: _State | None,
) -> _Layer:  # fmt: skip
    """The arguments of one layer in the full pass, reduced to the last token."""
    hidden = named["hidden_states"]
    enters = at_last(hidden, mask).unsqueeze(1)
    arguments = {k: v for k, v in named.items() if k not in ("hidden_states", "attention_mask", "alibi", cache_name)}
    if state is not None:
        return _Layer(module, down, enters, units, arguments, state, cache_name, None, None)
    b, width = hidden.shape[:2]
    examples, last = torch.arange(b, device=hidden.device), width - mask.shape[1] + mask.sum(dim=1) - 1

    def of_last(t: Tensor) -> Tensor:  # (b or 1, t, ...) -> (b, 1, ...)
        return t.expand(b, *t.shape[1:])[examples, last].unsqueeze(1)

    for name in ("position_ids", "position_embeddings"):
        value = arguments.get(name)
        if value is not None:
            arguments[name] = tuple(map(of_last, value)) if isinstance(value, tuple) else of_last(value)
    recorder: _Recorder = named[cache_name]
    keys, given_mask = recorder.keys.shape[2], named.get("attention_mask")
    last_key = keys - width + last  # a prefix puts keys before the first token
    if given_mask is None:  # transformers leaves it out where plain causal attention says the same
        visible_keys = (torch.arange(keys, device=hidden.device) <= last_key[:, None])[:, None, None]
    else:
        row = given_mask.expand(b, -1, -1, -1)[examples, :, last].unsqueeze(2)
        visible_keys = row if row.dtype == torch.bool else row > torch.finfo(row.dtype).min / 2
    visible_keys = visible_keys.clone()
    visible_keys[examples, :, :, last_key] = False
    alibi = named.get("alibi")
    if "alibi" in named and alibi is None:  # an argument without a default
        arguments["alibi"] = None
    if alibi is not None:
        heads = len(alibi) // b
        itself = alibi[torch.arange(len(alibi), device=alibi.device), :, last_key.repeat_interleave(heads)]
        alibi = torch.cat([alibi, itself.unsqueeze(-1)], dim=-1)
    shared = _Shared(recorder.keys, recorder.values)
    return _Layer(module, down, enters, units, arguments, shared, cache_name, visible_keys, alibi)


def _states(subject: Subject, ids: Tensor, mask: Tensor) -> list[_State]:
    """The recurrent states before the last token; all prompts of one length."""
    single_token = ids.shape[1] == 1 and not subject.soft_prompted
    before = slice(0, 1 if single_token else ids.shape[1] - 1)
    with torch.no_grad():
        cache = past.returned(backbone(subject, ids[:, before], mask[:, before], use_cache=True))
    states = [(cache.get_conv_state(at), cache.get_recurrent_state(at)) for at in range(len(_layers(subject)))]
    # The state before the first token is all zeros. The pass only gave its shape.
    return [_State(c * 0, r * 0) if single_token else _State(c, r) for c, r in states]


def _read_out(readout: Readout, final: Tensor, prompts: list[int]) -> Tensor:
    return torch.stack([readout(rows, i) for rows, i in zip(final, prompts, strict=True)])


def _batches(
    subject: Subject,
    rows: Sequence[Row],
    each: int,
    stage: str,
    read: Callable[[Batch, list[int]], T],
) -> Iterator[tuple[list[int], T]]:
    """Every prompt once, at most `each` in a batch, of similar length (of one length in state-space models)."""
    current, done, each = session(), 0, max(1, each)
    if not all(len(r) for r in rows):
        raise BadInput("A prompt has no token at all; drop it or give it text.")
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), i))
    while done < len(order):
        take = order[done : done + each]
        while len(take) > 1 and not _together(subject, [len(rows[i]) for i in take]):
            take.pop()
        try:
            with evaluating(subject), _frozen(subject), torch.inference_mode(False), torch.enable_grad():
                result = read(collate([rows[i] for i in take], subject.tokenizer.pad_token_id), take)
        except (RuntimeError, MemoryError) as e:
            if not out_of_memory(e):
                raise
            if len(take) == 1:
                raise Unavailable(
                    f"One prompt of {len(rows[take[0]])} tokens does not fit in memory; take shorter prompts or a smaller model."
                ) from e
            each = len(take) // 2
            current.note(f"Memory ran out; batches were halved to {each} prompts.")
            continue
        yield take, result
        done += len(take)
        current.progress(stage, done, len(order))


def _together(subject: Subject, lengths: list[int]) -> bool:
    # A recurrent state runs on over padding, so prompts of different lengths cannot share a pass.
    if subject.anatomy.alone:
        return len(lengths) == 1
    one_length = lengths[0] == lengths[-1] or subject.anatomy.kind != "state-space"
    return one_length and len(lengths) * lengths[-1] <= TOKENS


@contextlib.contextmanager
def _frozen(subject: Subject) -> Iterator[None]:
    """No parameter requires a gradient inside the block, so that none is stored; after it, requires_grad is as before."""
    trainable = [p for p in subject.model.parameters() if p.requires_grad]
    for p in trainable:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trainable:
            p.requires_grad_(True)
