"""Sweeps to run, and what they are held against."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np

FAST = "{overconfidence: {resamples: 20, folds: 2}}"
AUDITS = f"""
steps: [audit]
defaults: {{model: bert, data: data.csv, faults: [overconfidence], max_length: 32, knobs: {FAST}}}
matrix: {{adapter: runs/*/best, seed: [0, 1]}}
"""
"""Four cells: two adapters by two seeds."""
NAMES = ["a_seed=0", "a_seed=1", "b_seed=0", "b_seed=1"]


def data(n: int, seed: int = 0) -> str:
    """A csv of texts in the tiny models' words; the more the words agree, the surer the label."""
    rng = np.random.default_rng(seed)
    rows = ["text,label,site"]
    for _ in range(n):
        ups = int(rng.integers(0, 6))
        words = [*rng.choice(["good", "fine"], ups), *rng.choice(["bad", "poor"], 5 - ups)]
        words += [*rng.choice(["the", "film", "was", "it", "very", "calm", "loud", "is", "a"], 4)]
        positive = rng.random() < (0.05, 0.2, 0.4, 0.6, 0.8, 0.95)[ups]
        rows.append(
            f"{' '.join(map(str, rng.permutation(words)))},{'good' if positive else 'bad'},{rng.choice(['x', 'y'])}"
        )
    return "\n".join(rows) + "\n"


def tiny_adapter(folder: Path, out: Path, seed: int) -> None:
    from trueup.tuning import tune, tune_job

    given = {"model": str(folder / "bert"), "data": str(folder / "data.csv"), "seed": seed, "max_length": 32}
    tune(tune_job(given, kind="lora", rank=2, epochs=1, lr=0.01), out)


def sweep_file(folder: Path, text: str, name: str = "sweep.yaml") -> Path:
    file = folder / name
    file.write_text(dedent(text), encoding="utf-8")
    return file


def table(out: Path) -> Any:
    """``results.parquet`` without the columns that are of the run."""
    import pyarrow.parquet as pq

    from trueup.sweeps.results import WORK

    return pq.read_table(out / "results.parquet").drop_columns(list(WORK))


def die_once(piece: tuple[str, int]) -> int:
    """The square of the number; a worker that is the first to see the number 3 is killed."""
    import os
    import signal

    folder, n = piece
    mark = Path(folder) / "died"
    if n == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return n * n


def die(piece: tuple[str, int]) -> int:
    import os
    import signal

    if piece[1] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return piece[1] ** 2


def fail(n: int) -> int:
    raise ValueError(f"no {n}")


def where(n: int) -> int:
    import os
    import time

    time.sleep(0.2)
    return os.getpid()


def wait_long(piece: str) -> None:
    import os
    import time

    Path(piece).write_text(str(os.getpid()))
    time.sleep(300)
