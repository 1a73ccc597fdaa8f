"""Attention weights read and changed inside the forward pass, one layer at a time, so that no pass holds the maps of all layers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from trueup.errors import TESTED, Unsupported
from trueup.run.forward import Row, backbone, collate
from trueup.run.predict import PROVEN_ON, evaluating, session, within
from trueup.run.proof import equal
from trueup.subject import past
from trueup.subject.attention_modules import mixer_of, offer
from trueup.subject.subject import Subject
from trueup.subject.units import layers_of

Tap = Callable[[int, Tensor, Tensor], Tensor | None]
"""(layer, weights (b, h, q, k) after the softmax, values (b, h, k, d)) -> the weights to use instead, or None for these."""

_NAME = "trueup_tap"
_taps: ContextVar[Mapping[int, tuple[int, Tap]]] = ContextVar("trueup_taps", default={})  # noqa: B039 (never written to)
"""Layer and tap of every module of a tapped model's mixers, by its id."""


@contextlib.contextmanager
def tapped(subject: Subject, tap: Tap) -> Iterator[None]:
    """Inside the block `tap` sees every layer's attention and may change it.

    Inside the block attention is computed by an implementation that gives its weights (some give none); after it the model has
    its former implementation again. Blocks may be nested: the inner one of the same model sees the weights after the outer one.
    Nothing that runs inside is remembered on disk: a memory knows a model by its weights, and these are the same.
    """
    # A tap is found by any module of a layer's mixer, because implementations differ in the module that calls attention.
    outer = _taps.get()
    new_taps = {
        id(m): (i, _after(outer[id(m)][1], tap) if id(m) in outer else tap)
        for i in range(len(layers_of(subject)))
        for m in mixer_of(subject, i).modules()
    }
    config: Any = subject.base.config
    implementation = config._attn_implementation
    token = _taps.set({**outer, **new_taps})
    hooks: list[Any] = []
    try:
        if subject.anatomy.model_type in _BY_HOOK:
            needs_hooks = not any(key in outer for key in new_taps)  # an outer block's hooks serve this one too
            for i in range(len(layers_of(subject)) if needs_hooks else 0):
                _hook(subject, i, mixer_of(subject, i), hooks)
        else:
            offer(_NAME, _attention)
            config._attn_implementation = _NAME
        with within(replace(session(), memo=None)):
            yield
    finally:
        if config._attn_implementation != implementation:
            config._attn_implementation = implementation
        _taps.reset(token)
        for hook in hooks:
            hook.remove()


def openly(subject: Subject, row: Row) -> None:
    """Check on a discovered family that `tapped` sees attention once in every layer, and gives the same final states.

    Raises:
        Unsupported: it does not.
    """
    if not subject.anatomy.discovered:
        return
    batch, layers_seen = collate([Row(row[:PROVEN_ON])], 0), []
    ids, mask = batch.ids.to(subject.device), batch.mask.to(subject.device)
    what = f"Attention of '{subject.anatomy.model_type}' that is computed openly"
    with torch.inference_mode(), evaluating(subject):
        try:
            plain_states = backbone(subject, ids, mask).last_hidden_state
            with tapped(subject, lambda layer, *_: layers_seen.append(layer)):
                final_states = backbone(subject, ids, mask).last_hidden_state
        except (AttributeError, TypeError, ValueError, KeyError, RuntimeError) as e:
            raise Unsupported(f"{what} could not be run ({' '.join(str(e).split())[:160]}). {TESTED}") from e
    if layers_seen != list(range(len(layers_of(subject)))):
        raise Unsupported(f"{what} shows itself {len(layers_seen)} times in {len(layers_of(subject))} layers. {TESTED}")
    equal(final_states, plain_states, what, "the final hidden states")


def _tapped(module: nn.Module, weights: Tensor, values: Tensor) -> Tensor:
    """The weights after the taps of `module`."""
    if id(module) not in _taps.get():  # a copy made inside a block has the setting of the block, but no tap
        return weights
    layer, tap = _taps.get()[id(module)]
    changed = tap(layer, weights, values)
    return weights if changed is None else changed.to(weights)


def _after(first: Tap, then: Tap) -> Tap:
    def both(layer: int, weights: Tensor, values: Tensor) -> Tensor | None:
        changed = first(layer, weights, values)
        changed_again = then(layer, weights if changed is None else changed, values)
        return changed if changed_again is None else changed_again

    return both


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, softcap: float | None = None, **_: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention as transformers' own eager functions compute it, with a tap after the softmax."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = _tapped(module, weights, value)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


_BY_HOOK = {"bloom": "attention_dropout", "deberta-v2": "dropout", "mpnet": "dropout"}
"""Families whose attention function cannot be replaced -> the module of a mixer through which the weights pass."""


def _hook(subject: Subject, layer: int, mixer: nn.Module, hooks: list[Any]) -> None:
    heads = subject.anatomy.size(subject.base.config, "heads")
    last_call: dict[str, Any] = {}

    def enter(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        last_call["cache"] = next((named[name] for name in past.named(named)), None)

    def projected(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if subject.anatomy.value == subject.anatomy.query:  # one matrix for all three, a head at a time
            output = output.unflatten(-1, (heads, 3, -1))[..., 2, :]
        else:
            output = output.unflatten(-1, (heads, -1))
        last_call["values"] = output.transpose(1, 2)

    def weighed(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        cache = last_call["cache"]
        values = last_call["values"] if cache is None else cache.layers[layer].values
        return _tapped(mixer, output, values)

    leaf = subject.anatomy.value.rpartition(".")[2]
    hooks.append(mixer.register_forward_pre_hook(enter, with_kwargs=True))
    hooks.append(mixer.get_submodule(leaf).register_forward_hook(projected))
    hooks.append(mixer.get_submodule(_BY_HOOK[subject.anatomy.model_type]).register_forward_hook(weighed))
