"""What a pass costs, measured on random weights of a language model's shape, and as a law that is carried on to larger ones.

A pass multiplies and adds once for each weight outside of the embeddings and each token, the tokens of a soft prompt included. So
its time is 2 x weights x texts x (tokens + prompt) divided by a rate, which is fitted for each number type; memory is that of the
weights and of what one layer keeps of a batch.
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
"""Multiplications and additions a second that a GPU is assumed to reach in bfloat16: a third of what an A100 can (312e12)."""
BATCH = 4096
"""Tokens of a batch (`trueup.run.predict.TOKENS`)."""


@dataclass(frozen=True)
class Shape:
    """A Llama's shape: its name, layers, width, units of the feed-forward layer, words, and heads of the queries and the keys."""

    name: str
    layers: int
    width: int
    units: int
    words: int
    heads: int
    keys: int

    @property
    def inside(self) -> int:
        """Weights outside of the embeddings and the head, which every token passes."""
        narrow = self.width // self.heads * self.keys
        return self.layers * (2 * self.width**2 + 2 * self.width * narrow + 3 * self.width * self.units)

    @property
    def embedded(self) -> int:
        """Weights of the embeddings, which stay in the type in which the model computes."""
        return self.words * self.width

    def bytes_in(self, kind: str) -> float:
        """Memory of the weights in a type of `TYPES`; of 4 bits with the scales of their blocks."""
        whole = 4 if kind == "float32" else 2
        return self.inside * (0.52 if kind == "4 bits" else whole) + self.embedded * whole


MEASURED = (
    Shape("0.1B", 12, 768, 2048, 32000, 12, 12), Shape("0.4B", 24, 1024, 2816, 32000, 16, 16),
    Shape("1B", 16, 2048, 8192, 32000, 32, 8),
)  # fmt: skip
CARRIED = (Shape("8B", 32, 4096, 14336, 128256, 32, 8), Shape("70B", 80, 8192, 28672, 128256, 64, 8))
"""Shapes of Llama 3, to which the law is carried on."""
POINTS = ((4, 32, 0), (4, 128, 0), (4, 32, 96))
"""Texts, tokens of each, and tokens of the soft prompt before them."""


@dataclass(frozen=True)
class Settings:
    """Which shapes are measured, in which types, at which points."""

    shapes: tuple[Shape, ...] = MEASURED
    types: tuple[str, ...] = tuple(TYPES)
    points: tuple[tuple[int, int, int], ...] = POINTS


def run(
    out: str | Path, settings: Settings, *, force: bool = False, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Measure every shape in every type, each in a process of its own with one thread; write `out`/cost.json and `out`/cost.md.

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
                        given = json.dumps([folder, TYPES[kind], settings.points])
                        done = subprocess.run(
                            [sys.executable, "-m", "trueup.experiments.cost", given],
                            capture_output=True,
                            text=True,
                            check=False,
                        )
                        if done.returncode:
                            raise BadInput(
                                f"{shape.name} in {kind} could not be measured: {done.stderr.strip()[-300:]}"
                            )
                        file.write_text(done.stdout.splitlines()[-1])
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
    """CPU seconds of a pass, minimum of two, the memory of the weights, and by how much the pass grew it, at each point."""
    import torch

    from trueup.run import forward, memory
    from trueup.subject.load import load
    from trueup.subject.new_adapter import random_prompt

    torch.set_num_threads(1)
    before = memory.resident() or 0
    subject = load(folder, classes=("a", "b"), device="cpu", **options)
    rng, rows = np.random.default_rng(0), []
    words: int = subject.base.config.vocab_size  # type: ignore[union-attr,assignment]
    held = 0
    for texts, tokens, prompt in points:
        asked = subject if not prompt else random_prompt(subject, prompt)
        batch = forward.collate(
            [forward.Row(rng.integers(4, words, tokens).tolist()) for _ in range(texts)], subject.tokenizer.pad_token_id
        )
        spent = math.inf
        for _ in range(2):
            with torch.inference_mode():
                began = time.process_time()
                memory.reset_peak()
                here = memory.resident() or 0
                forward.features(asked, batch)
                spent = min(spent, time.process_time() - began)
        held = held or here - before  # once it has run, all weights are in memory
        rows.append({"texts": texts, "tokens": tokens, "prompt": prompt, "seconds": spent, "weights_bytes": held,
                     "pass_bytes": memory.peak() - here})  # fmt: skip
    return rows


def law(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float, float]]:
    """By number type: multiplications and additions a second (geometric mean over the rows), the factor by which a row is furthest
    from it, and the bytes that a pass keeps for each token of a batch and unit of the feed-forward layer (the most)."""
    found: dict[str, tuple[float, float, float]] = {}
    for kind in dict.fromkeys(r["type"] for r in rows):
        mine = [r for r in rows if r["type"] == kind]
        rates = np.array([work(Shape(**r["shape"]), r["texts"], r["tokens"], r["prompt"]) / r["seconds"] for r in mine])
        mean = float(np.exp(np.log(rates).mean()))
        kept = max(r["pass_bytes"] / (r["texts"] * (r["tokens"] + r["prompt"]) * r["shape"]["units"]) for r in mine)
        found[kind] = mean, float(np.exp(np.abs(np.log(rates / mean)).max())), kept
    return found


def work(shape: Shape, texts: int, tokens: int, prompt: int) -> float:
    """Multiplications and additions of a pass."""
    return 2.0 * shape.inside * texts * (tokens + prompt)


def table(result: Mapping[str, Any]) -> str:
    """What was measured, the law, and what it comes to for `CARRIED`, as Markdown."""
    rows, fitted = result["rows"], law(result["rows"])
    lines = [
        "| weights | type | texts x (tokens + prompt) | time of a pass | predicted time | memory after loading | added by a pass |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        shape = Shape(**r["shape"])
        seconds = work(shape, r["texts"], r["tokens"], r["prompt"]) / fitted[r["type"]][0]
        counted = shape.bytes_in(r["type"]) / 1e9
        lines.append(
            f"| {(shape.inside + shape.embedded) / 1e9:.2f}e9 | {r['type']} | {r['texts']} x ({r['tokens']} + {r['prompt']}) | "
            f"{r['seconds']:.3g} s | {seconds:.3g} s | {r['weights_bytes'] / 1e9:.2f} GB (weights {counted:.2f}) | "
            f"{r['pass_bytes'] / 1e6:.0f} MB |"
        )
    lines += [
        "",
        "| type | multiplications and additions per second | largest deviation of a prediction | memory per token and "
        "feed-forward unit |",
        "|---|---|---|---|",
        *(f"| {k} | {rate:.2g} | {off:.2f} x | {kept:.2g} bytes |" for k, (rate, off, kept) in fitted.items()),
        "",
        "| extrapolated, not measured | bfloat16: weights | 4 bits: weights | memory of a batch | a pass over 1,000 texts of 256 "
        "tokens | the same with a prompt of 100 tokens |",
        "|---|---|---|---|---|---|",
    ]
    kept = max((k for _, _, k in fitted.values()), default=math.nan)
    for shape in CARRIED:
        plain, behind = (work(shape, 1000, 256, m) / RATE for m in (0, 100))
        lines.append(
            f"| {shape.name} | {shape.bytes_in('bfloat16') / 1e9:.0f} GB | {shape.bytes_in('4 bits') / 1e9:.0f} GB | "
            f"{kept * BATCH * shape.units / 1e9:.1f} GB | {plain:.0f} s | {behind:.0f} s |"
        )
    return (
        "CPU seconds on one thread, minimum of two; random weights in the shape of a Llama. The memory includes the "
        "libraries that loading imports, such as bitsandbytes.\n\n" + "\n".join(lines) + "\n\n"
        f"The times of the last table assume {RATE:.0e} multiplications and additions per second in bfloat16.\n"
    )


if __name__ == "__main__":
    print(json.dumps(measure(*json.loads(sys.argv[1]))))
