"""Every bit of what trueup keeps, turned: ``python tests/fuzz/flips.py``. A kept pass is computed again, a checkpoint is refused,
and a folder is told to be otherwise than it was written. Prints how many bits were turned, and of which nothing was seen.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from trueup.errors import BadInput
from trueup.store import atomic, sealed
from trueup.store.cache import Memo


def turned(file: Path) -> Iterator[None]:
    """The file with each of its bits turned, one after the other; as it was after that."""
    sound = file.read_bytes()
    for at in range(len(sound)):
        for bit in range(8):
            file.write_bytes(sound[:at] + bytes([sound[at] ^ 1 << bit]) + sound[at + 1 :])
            yield
    file.write_bytes(sound)


def seen(check: Callable[[], object], *told: type[Exception]) -> bool:
    try:
        return check() is None
    except told:
        return True


def run(root: Path) -> tuple[Counter[str], Counter[str]]:
    """Bits that were turned, and those of which nothing was seen, by what was kept."""
    met, missed = Counter[str](), Counter[str]()

    def count(what: str, ok: bool) -> None:
        met[what] += 1
        missed[what] += not ok

    memo = Memo(root / "memo")
    memo.put("key", {"rows": np.arange(40, dtype=np.float32), "more": np.ones((3, 5))})
    (kept,) = (root / "memo").iterdir()
    sound = kept.read_bytes()
    for _ in turned(kept):
        count("kept pass", memo.get("key") is None)  # which removes the file; the next flip writes it again
    kept.write_bytes(sound)
    assert memo.get("key") is not None, "the control"

    checkpoint = root / "checkpoint"
    sealed.write(checkpoint, "training checkpoint 1", bytes(range(256)) * 2)
    for _ in turned(checkpoint):
        count("checkpoint", seen(lambda: sealed.read(checkpoint, "training checkpoint 1"), sealed.Spoilt))
    assert sealed.read(checkpoint, "training checkpoint 1"), "the control"

    folder = root / "out"
    with atomic.new_folder(folder) as new:
        atomic.write_bytes(new / "weights", bytes(range(256)) * 2)
        atomic.write_json(new / "findings.json", {"a": list(range(40))})
    atomic.verify(folder)
    for name in ("weights", "findings.json"):
        for _ in turned(folder / name):
            count("folder", seen(lambda: atomic.verify(folder) or True, BadInput))
    for _ in turned(folder / atomic.MANIFEST):  # where its meaning is the same, the files are as well
        count("manifest", seen(lambda: atomic.verify(folder), BadInput))
    atomic.verify(folder)
    return met, missed


def main() -> None:
    with tempfile.TemporaryDirectory() as root:
        met, missed = run(Path(root))
    print(json.dumps({"turned": met, "all": met.total(), "missed": missed.total()}, indent=1))
    sys.exit(int(missed.total() > 0))


if __name__ == "__main__":
    main()
