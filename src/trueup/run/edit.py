"""Units or heads scaled on the live model inside a block. A scaling adapter must give the same result."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from trueup.run.predict import session, within
from trueup.subject.subject import Subject
from trueup.subject.units import Part, check, layers_of, projection_of


@contextlib.contextmanager
def scaled(subject: Subject, scales: Mapping[int, Tensor], part: Part = "down") -> Iterator[Subject]:
    """Inside the block the units of layer l are multiplied by ``scales[l]`` (units,) at all positions.

    Units are the input of `anatomy.down`; with ``mixer_out`` they are the outputs of the layer's attention heads. Nothing that
    runs inside is remembered on disk: a memory knows a model by its weights, and these are the same.

    Raises:
        BadInput: a layer that is not there, or scales of another length than the layer's units.
    """
    check(subject, scales, part)

    def multiply(factors: Tensor) -> Any:
        return lambda _, inputs: (inputs[0] * factors.to(inputs[0]), *inputs[1:])

    hooks = [projection_of(subject, at, part)[1].register_forward_pre_hook(multiply(s)) for at, s in scales.items()]
    try:
        with within(replace(session(), memo=None)):
            yield subject
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def patched(subject: Subject, layer: int, states: Tensor, mask: Tensor) -> Iterator[None]:
    """Inside the block the input of `layer` at each example's last token is replaced by `states` (b, d).

    mask (b, t): mask of the batch that will be run, padded on the right.
    """

    def put(_: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x = (inputs[0] if inputs else named["hidden_states"]).clone()
        last = x.shape[1] - mask.shape[1] + mask.sum(dim=1) - 1
        x[torch.arange(len(x), device=x.device), last] = states.to(x)
        return ((x, *inputs[1:]), named) if inputs else (inputs, named | {"hidden_states": x})

    hook = layers_of(subject)[layer].register_forward_pre_hook(put, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
