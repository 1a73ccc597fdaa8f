"""Writes a transformers model as an ONNX file, and runs it with ONNX Runtime. No other module uses either."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trueup.errors import Unavailable, Unsupported
from trueup.measure.confidence_scores import Calibrated

NEEDED = ("onnx", "onnxscript", "onnxruntime")


def needed() -> None:
    """Raises Unavailable where a package that writes or runs ONNX files is not installed."""
    if absent := [name for name in NEEDED if find_spec(name) is None]:
        raise Unavailable(
            f"An export as onnx needs {', '.join(absent)}. Install the extra: pip install 'trueup[onnx]'."
        )


class _Named(nn.Module):
    """The model as a function of ids and mask: logits, for a classifier also the input of its last layer, and its confidence.

    With a `score` the model's logits are those of its `classes`, followed by the numbers that the score reads.
    """

    def __init__(self, net: Any, head: str | None, classes: int, score: Calibrated | None) -> None:
        super().__init__()
        self.net, self.head, self.classes, self.score = net, head, classes, score

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        if self.head is None:
            return self.net(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
        head_inputs: list[Tensor] = []
        hook = self.net.get_submodule(self.head).register_forward_pre_hook(
            lambda _, inputs: head_inputs.append(inputs[0])
        )
        try:
            logits = self.net(input_ids=input_ids, attention_mask=attention_mask).logits
        finally:
            hook.remove()
        if self.score is None:
            return logits, head_inputs[-1]
        # The expression is that of the repair's card, so that the card and the file cannot differ.
        confidence = eval(self.score.torch_line, {"out": logits.double()})
        return logits[:, : self.classes], head_inputs[-1], confidence


def write(
    net: Any, file: Path, example: dict[str, Tensor], *, head: str | None, classes: int = 0, score: Calibrated | None = None
) -> None:  # fmt: skip
    """Write `net` as an ONNX file for any batch and length. Outputs: ``logits``, and ``features`` (the input of `head`).

    There are ``features`` for a classifier, whose last layer is `head`. With a `score` there is also ``confidence``, (n,) in
    float64, and ``logits`` are those of the `classes` alone.

    Raises:
        Unsupported: torch cannot trace the model.
    """
    any_size = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    names = ["input_ids", "attention_mask"]
    example_inputs = tuple(
        torch.cat([example[n], example[n]]) for n in names
    )  # a batch of one would be taken for a constant
    level, logger = logging.WARNING, logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _Named(net, head, classes, score).eval(), example_inputs, str(file), input_names=names,
                output_names=["logits"] + ["features"] * (head is not None) + ["confidence"] * (score is not None),
                dynamic_shapes=dict.fromkeys(names, any_size), dynamo=True, verbose=False,
            )  # fmt: skip
    except Exception as e:  # torch raises many kinds of errors for what it cannot trace
        raise Unsupported(
            f"torch cannot write a {type(net).__name__} as ONNX ({type(e).__name__}: {' '.join(str(e).split())[:200]}). Export it "
            "merged."
        ) from e
    finally:
        logger.setLevel(level)


def reader(file: Path, outputs: Sequence[str]) -> Callable[[dict[str, Tensor]], list[Tensor]]:
    """A function that runs one text through the file with ONNX Runtime: `outputs` in float64; ``logits`` are (K,) or (t, V)."""
    import onnxruntime  # pyright: ignore[reportMissingImports]

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def read(inputs: dict[str, Tensor]) -> list[Tensor]:
        arrays = {n: inputs[n].numpy() for n in ("input_ids", "attention_mask")}
        return [torch.as_tensor(output[0]).double() for output in session.run(outputs, arrays)]

    return read
