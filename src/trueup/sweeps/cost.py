"""The cost of a cell before it is run: an estimate from its passes through the model, and the memory of its weights."""

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
"""Seconds of a check in addition to all passes: imports, intervals, the last layer's repairs, the page."""
PASSES = {"overconfidence": 0.6, "confounding": 0.6, "copying": 25.0, "rigidity": 230.0}
"""Passes over all texts in a check of each fault, as measured on the embedded models; an audit alone is half of it or less."""
ARITHMETIC = 15.0
"""Passes of confounding on a soft prompt: its arithmetic needs a new gradient of the prompt for each text at each step."""
TRAINING = 3.0
"""Cost of a training step in passes: one forward, and twice as much backward."""
TOKENS = 64
"""Tokens of a text, where max_length is not less."""


def seconds(cell: Cell) -> float | None:
    """CPU seconds of one core that the cell takes, to an order of magnitude.

    None where the rows of the data cannot be counted, or the size of the model is not known.
    """
    if (texts := rows(cell)) is None:
        return None  # first, so that the hub is not asked for the size of the model in vain
    if (size := _size(cell.settings["model"], cell.settings.get("revision"))) is None:
        return None
    pass_seconds = 2 * size.layers * min(TOKENS, cell.settings.get("max_length") or TOKENS) * texts / FLOPS
    total = FIXED
    if cell.tuned:
        total += TRAINING * pass_seconds * cell.settings.get("epochs", 4) / 2  # half of the texts are trained on
    if cell.steps[-1] != "tune":
        faults = cell.settings.get("faults") or ("overconfidence", "confounding")
        audit = cell.steps[-1] == "audit"
        soft_prompt_repair = cell.settings.get("kind") == "prompt" and not audit
        passes = PASSES | ({"confounding": ARITHMETIC} if soft_prompt_repair else {})
        total += pass_seconds * sum(passes.get(f, 1.0) for f in faults) * (0.5 if audit else 1.0)
    return total


def rows(cell: Cell) -> int | None:
    """The number of rows that a cell reads: its limit, or the lines of its file. None where neither is known."""
    limit = cell.settings.get("limit")
    file = path_of(cell.settings["data"])
    if file.suffix not in (".csv", ".tsv", ".jsonl") or not file.is_file():
        return limit
    with open(file, "rb") as f:
        lines = sum(block.count(b"\n") for block in iter(lambda: f.read(1 << 20), b""))
    count = max(lines - (file.suffix != ".jsonl"), 0)
    return count if limit is None else min(limit, count)


def fits(cell: Cell) -> None:
    """Raises BadInput where the weights of the base alone need more than the free memory of this machine."""
    size = _size(cell.settings["model"], cell.settings.get("revision"))
    if size is None:
        return  # the error of a wrong model is raised where it is loaded
    if cell.settings.get("device_map") is not None:
        return  # with a device map, weights that do not fit go to the disk
    needed, available = int(_bytes(cell) * size.parameters), free()
    if available is not None and needed > available:
        raise BadInput(
            f"'{cell.settings['model']}' needs {needed / 1e9:.1f} GB for its weights alone, and {platform.node()} has "
            f"{available / 1e9:.1f} GB free. Run fewer workers at once, or give the cell a machine with more memory."
        )


def _bytes(cell: Cell) -> float:
    """Bytes of a weight. Where only the checkpoint gives the dtype, the fewest that are possible."""
    if (bits := cell.settings.get("quantize")) is not None:
        return {"4bit": 0.5}.get(bits, 1.0)
    return 4.0 if cell.settings.get("dtype") in (None, "float32") else 2.0


@lru_cache(maxsize=1000)
def _size(model: str, revision: str | None) -> Size | None:
    """The size of a base; None where it is not known. Cached, so that a hub that cannot be reached is not asked for each cell."""
    from trueup.subject.size import size_of

    try:
        return size_of(model, revision)
    except (TrueupError, OSError):
        return None
