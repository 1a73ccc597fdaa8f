"""What a cell costs, before it is run: a law of passes through the model, and the memory that its weights need."""

from __future__ import annotations

import platform
from functools import lru_cache
from typing import TYPE_CHECKING

from trueup.errors import BadInput, TrueupError
from trueup.run.memory import free
from trueup.store.inputs import path_of
from trueup.sweeps.plan import Cell

if TYPE_CHECKING:
    from trueup.subject.size import Size

FLOPS = 7e10
"""Multiplications and additions a second of one core, as measured with MiniLM and SmolLM2 in float32 (docs/costs.md)."""
FIXED = 15.0
"""Seconds of a check beside all passes: imports, intervals, the last layer's repairs, the page."""
PASSES = {"overconfidence": 0.6, "confounding": 0.6, "copying": 25.0, "rigidity": 230.0}
"""How many passes over all texts a check of each fault came to on the embedded models; an audit alone is half of it or less."""
ARITHMETIC = 15.0
"""Passes of confounding on a soft prompt: its arithmetic needs a gradient of the prompt for each text, at each step anew."""
TRAINING = 3.0
"""Passes that a training step counts for: forward, and twice as much backward."""
TOKENS = 64
"""Length of a text where no max_length says less."""


def seconds(cell: Cell) -> float | None:
    """CPU seconds of one core that the cell takes, to an order of magnitude; None where the data's rows cannot be counted, or the
    model's size cannot be told."""
    if (texts := rows(cell)) is None:
        return None  # before the hub is asked how large the model is
    if (size := _size(cell.settings["model"], cell.settings.get("revision"))) is None:
        return None
    one = 2 * size.layers * min(TOKENS, cell.settings.get("max_length") or TOKENS) * texts / FLOPS
    total = FIXED
    if cell.tuned:
        total += TRAINING * one * cell.settings.get("epochs", 4) / 2  # half of the texts are trained on
    if cell.steps[-1] != "tune":
        faults = cell.settings.get("faults") or ("overconfidence", "confounding")
        audit = cell.steps[-1] == "audit"
        prompts = cell.settings.get("kind") == "prompt" and not audit
        passes = PASSES | ({"confounding": ARITHMETIC} if prompts else {})
        total += one * sum(passes.get(f, 1.0) for f in faults) * (0.5 if audit else 1.0)
    return total


def rows(cell: Cell) -> int | None:
    """How many rows of the data a cell reads: its limit, or the lines of its file. None where neither says so."""
    limit = cell.settings.get("limit")
    file = path_of(cell.settings["data"])
    if file.suffix not in (".csv", ".tsv", ".jsonl") or not file.is_file():
        return limit
    with open(file, "rb") as f:
        lines = sum(block.count(b"\n") for block in iter(lambda: f.read(1 << 20), b""))
    own = max(lines - (file.suffix != ".jsonl"), 0)
    return own if limit is None else min(limit, own)


def fits(cell: Cell) -> None:
    """Raises BadInput where the base's weights alone are more than the memory that is free here."""
    size = _size(cell.settings["model"], cell.settings.get("revision"))
    if size is None:
        return  # what is wrong with the model is said where it is loaded
    if cell.settings.get("device_map") is not None:
        return  # what does not fit goes to the disk
    needed, there = int(_bytes(cell) * size.parameters), free()
    if there is not None and needed > there:
        raise BadInput(
            f"'{cell.settings['model']}' needs {needed / 1e9:.1f} GB for its weights alone, and {platform.node()} has "
            f"{there / 1e9:.1f} GB free. Run fewer workers at once, or give the cell a machine with more memory."
        )


def _bytes(cell: Cell) -> float:
    """Bytes of a weight. Of a type that only the checkpoint tells, the fewest that it may be."""
    if (bits := cell.settings.get("quantize")) is not None:
        return {"4bit": 0.5}.get(bits, 1.0)
    return 4.0 if cell.settings.get("dtype") in (None, "float32") else 2.0


@lru_cache(maxsize=1000)
def _size(model: str, revision: str | None) -> Size | None:
    """The size of a base; None where it cannot be told: a hub that is out of reach is asked once and not for each cell."""
    from trueup.subject.size import size_of

    try:
        return size_of(model, revision)
    except (TrueupError, OSError):
        return None
