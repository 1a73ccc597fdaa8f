"""The cost of a forward pass: measured on random weights in the shape of a language model, and extrapolated to larger models.

A pass multiplies and adds once for each weight outside of the embeddings and each token, including the tokens of a soft prompt. So
its time is 2 x weights x texts x (tokens + prompt) divided by a rate, which is fitted for each number type. Its memory is that of
the weights and of the activations that one layer keeps of a batch.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trueup.errors import BadInput
from trueup.experiments import resumed

TYPES: dict[str, dict[str, str]] = {
    "float32": {"dtype": "float32"}, "bfloat16": {"dtype": "bfloat16"}, "4 bits": {"dtype": "bfloat16", "quantize": "4bit"},
}  # fmt: skip
"""Number types by name, as arguments of `trueup.load`."""
RATE = 1e14
"""Assumed multiplications and additions per second of a GPU in bfloat16: a third of the peak of an A100 (312e12)."""
BATCH = 4096
"""Tokens of a batch (`trueup.run.predict.TOKENS`)."""


@dataclass(frozen=True)
class Shape:
    """The shape of a Llama: name, layers, width, units of the feed-forward layer, size of the vocabulary, query and key heads."""

    name: str
    layers: int
    width: int
    units: int
    words: int
    heads: int
    keys: int

    @property
    def inside(self) -> int:
        """Weights outside of the embeddings and the head: all of them are used for every token."""
        key_width = self.width // self.heads * self.keys
        return self.layers * (2 * self.width**2 + 2 * self.width * key_width + 3 * self.width * self.units)

    @property
    def embedded(self) -> int:
        """Weights of the embeddings, which are in the number type of the computation."""
        return self.words * self.width

    def bytes_in(self, kind: str) -> float:
        """Bytes of the weights in a type of `TYPES`; in 4 bits with the scales of the blocks."""
        bytes_of_weight = 4 if kind == "float32" else 2
        return self.inside * (0.52 if kind == "4 bits" else bytes_of_weight) + self.embedded * bytes_of_weight


MEASURED = (
    Shape("0.1B", 12, 768, 2048, 32000, 12, 12), Shape("0.4B", 24, 1024, 2816, 32000, 16, 16),
    Shape("1B", 16, 2048, 8192, 32000, 32, 8),
)  # fmt: skip
CARRIED = (Shape("8B", 32, 4096, 14336, 128256, 32, 8), Shape("70B", 80, 8192, 28672, 128256, 64, 8))
"""Shapes of Llama 3, to which the law is extrapolated."""
POINTS = ((4, 32, 0), (4, 128, 0), (4, 32, 96))
"""Texts, tokens of each, and tokens of the soft prompt before them."""


@dataclass(frozen=True)
class Settings:
    """The shapes, number types and points that are measured."""

    shapes: tuple[Shape, ...] = MEASURED
    types: tuple[str, ...] = tuple(TYPES)
    points: tuple[tuple[int, int, int], ...] = POINTS


def run(
    out: str | Path, settings: Settings, *, force: bool = False, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Measure every shape in every type, each in its own process with one thread; write `out`/cost.json and `out`/cost.md.

    Raises:
        BadInput: `out` is there already and `force` is not given, or a type cannot be measured here.
    """

    def make(parts: resumed.Parts) -> dict[str, Any]:
        rows: list[dict[str, Any]] = []
        for shape in settings.shapes:
            with tempfile.TemporaryDirectory(prefix="trueup-cost-") as folder:
                if not all(parts.file(asdict(shape), kind, settings.points).is_file() for kind in settings.types):
                    _random(shape, Path(folder))
                for kind in settings.types:
                    file = parts.file(asdict(shape), kind, settings.points)
                    if not file.is_file():
                        arguments = json.dumps([folder, TYPES[kind], settings.points])
                        process = subprocess.run(
                            [sys.executable, "-m", "trueup.experiments.cost", arguments],
                            capture_output=True,
                            text=True,
                            check=False,
                        )
                        if process.returncode:
                            raise BadInput(
                                f"{shape.name} in {kind} could not be measured: {process.stderr.strip()[-300:]}"
                            )
                        file.write_text(process.stdout.splitlines()[-1])
                    for row in json.loads(file.read_text()):
                        rows.append({"shape": asdict(shape), "type": kind, **row})
                        say(
                            f"{shape.name}, {kind}, {row['texts']} texts of {row['tokens']} tokens, prompt of {row['prompt']}: "
                            f"{row['seconds']:.3g} s, {row['weights_bytes'] / 1e9:.2f} + {row['pass_bytes'] / 1e9:.2f} GB"
                        )
        return {"rows": rows}

    return resumed.run(out, "cost", resumed.code_of(sys.modules[__name__]), make, table, force=force)


def _random(shape: Shape, folder: Path) -> None:
    from trueup.subject.tiny import random_llama

    random_llama(
        folder, hidden_size=shape.width, intermediate_size=shape.units, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.keys, vocab_size=shape.words,
    )  # fmt: skip


def measure(folder: str, options: Mapping[str, Any], points: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """At each point: CPU seconds of a pass (minimum of two), the memory of the weights, and the growth of memory by the pass."""
    import torch

    from trueup.run import forward, memory
    from trueup.subject.load import load
    from trueup.subject.new_adapter import random_prompt

    torch.set_num_threads(1)
    memory_before = memory.resident() or 0
    subject = load(folder, classes=("a", "b"), device="cpu", **options)
    rng, rows = np.random.default_rng(0), []
    words: int = subject.base.config.vocab_size  # type: ignore[union-attr,assignment]
    weights_bytes = 0
    for texts, tokens, prompt in points:
        subject_at_point = subject if not prompt else random_prompt(subject, prompt)
        batch = forward.collate(
            [forward.Row(rng.integers(4, words, tokens).tolist()) for _ in range(texts)], subject.tokenizer.pad_token_id
        )
        cpu_seconds = math.inf
        for _ in range(2):
            with torch.inference_mode():
                start = time.process_time()
                memory.reset_peak()
                memory_at_start = memory.resident() or 0
                forward.features(subject_at_point, batch)
                cpu_seconds = min(cpu_seconds, time.process_time() - start)
        weights_bytes = (
            weights_bytes or memory_at_start - memory_before
        )  # after the first pass all weights are in memory
        rows.append({"texts": texts, "tokens": tokens, "prompt": prompt, "seconds": cpu_seconds, "weights_bytes": weights_bytes,
                     "pass_bytes": memory.peak() - memory_at_start})  # fmt: skip
    return rows


def law(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float, float]]:
    """Number type -> three numbers fitted to the rows.

    They are: multiplications and additions per second (geometric mean), the largest factor by which a row differs from it, and the
    most bytes that a pass keeps for each token of a batch and unit of the feed-forward layer.
    """
    law_of_type: dict[str, tuple[float, float, float]] = {}
    for kind in dict.fromkeys(r["type"] for r in rows):
        rows_of_type = [r for r in rows if r["type"] == kind]
        rates = np.array(
            [work(Shape(**r["shape"]), r["texts"], r["tokens"], r["prompt"]) / r["seconds"] for r in rows_of_type]
        )
        mean = float(np.exp(np.log(rates).mean()))
        bytes_kept = max(
            r["pass_bytes"] / (r["texts"] * (r["tokens"] + r["prompt"]) * r["shape"]["units"]) for r in rows_of_type
        )
        law_of_type[kind] = mean, float(np.exp(np.abs(np.log(rates / mean)).max())), bytes_kept
    return law_of_type


def work(shape: Shape, texts: int, tokens: int, prompt: int) -> float:
    """Multiplications and additions of a pass."""
    return 2.0 * shape.inside * texts * (tokens + prompt)


def table(result: Mapping[str, Any]) -> str:
    """The measurements, the law, and its values for `CARRIED`, as Markdown."""
    rows, fitted = result["rows"], law(result["rows"])
    lines = [
        "| weights | type | texts x (tokens + prompt) | time of a pass | predicted time | memory after loading | added by a pass |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        shape = Shape(**r["shape"])
        seconds = work(shape, r["texts"], r["tokens"], r["prompt"]) / fitted[r["type"]][0]
        weights_gb = shape.bytes_in(r["type"]) / 1e9
        lines.append(
            f"| {(shape.inside + shape.embedded) / 1e9:.2f}e9 | {r['type']} | {r['texts']} x ({r['tokens']} + {r['prompt']}) | "
            f"{r['seconds']:.3g} s | {seconds:.3g} s | {r['weights_bytes'] / 1e9:.2f} GB (weights {weights_gb:.2f}) | "
            f"{r['pass_bytes'] / 1e6:.0f} MB |"
        )
    lines += [
        "",
        "| type | multiplications and additions per second | largest deviation of a prediction | memory per token and "
        "feed-forward unit |",
        "|---|---|---|---|",
        *(
            f"| {k} | {rate:.2g} | {deviation:.2f} x | {bytes_kept:.2g} bytes |"
            for k, (rate, deviation, bytes_kept) in fitted.items()
        ),
        "",
        "| extrapolated, not measured | bfloat16: weights | 4 bits: weights | memory of a batch | a pass over 1,000 texts of 256 "
        "tokens | the same with a prompt of 100 tokens |",
        "|---|---|---|---|---|---|",
    ]
    bytes_kept = max((k for _, _, k in fitted.values()), default=math.nan)
    for shape in CARRIED:
        without_prompt, with_prompt = (work(shape, 1000, 256, m) / RATE for m in (0, 100))
        lines.append(
            f"| {shape.name} | {shape.bytes_in('bfloat16') / 1e9:.0f} GB | {shape.bytes_in('4 bits') / 1e9:.0f} GB | "
            f"{bytes_kept * BATCH * shape.units / 1e9:.1f} GB | {without_prompt:.0f} s | {with_prompt:.0f} s |"
        )
    return (
        "CPU seconds on one thread, minimum of two; random weights in the shape of a Llama. The memory includes the "
        "libraries that loading imports, such as bitsandbytes.\n\n" + "\n".join(lines) + "\n\n"
        f"The times of the last table assume {RATE:.0e} multiplications and additions per second in bfloat16.\n"
    )


if __name__ == "__main__":
    print(json.dumps(measure(*json.loads(sys.argv[1]))))
