"""The long form of the fuzzer: ``python tests/fuzz/long.py --inputs 20000``. Counts go to a JSON file, what is wrong to the screen.

Each batch of inputs is read by a process of its own, so that one that kills its process is counted too, by its number.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}

import fuzzing

BATCH = 200


def batch(root: Path, name: str, first: int, last: int) -> None:
    """In a process of its own: one line of JSON for each input, before it and after it."""
    import torch

    torch.set_num_threads(1)
    target = fuzzing.targets(root, [name])[name]
    said, sys.stdout = sys.stdout, sys.stderr
    with tempfile.TemporaryDirectory(dir=root) as scratch:
        for number in range(first, last):
            edits = fuzzing.draw(target, number)
            print(json.dumps([number]), file=said, flush=True)
            word, what = fuzzing.judge(target, edits, Path(scratch))
            print(json.dumps([number, word, what, edits]), file=said, flush=True)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--inputs", type=int, default=20_000)
    ask.add_argument("--first", type=int, default=0, help="the number of the first input of each target")
    ask.add_argument("--only", action="append", help="a target; repeatable")
    ask.add_argument("--seconds", type=float, default=float("inf"), help="begin no batch after so long")
    ask.add_argument("-o", "--out", type=Path, help="where the counts go")
    ask.add_argument("--batch", nargs=4, help=argparse.SUPPRESS)
    given = ask.parse_args()
    if given.batch:
        root, name, first, last = given.batch
        batch(Path(root), name, int(first), int(last))
        return
    names = given.only or list(fuzzing.NAMES)
    counts, wrong, began = {n: Counter() for n in names}, [], time.monotonic()
    each = -(-given.inputs // len(names))
    for start in range(given.first, given.first + each, BATCH):
        for name in names:
            at, end = start, min(start + BATCH, given.first + each)
            while at < end and time.monotonic() - began < given.seconds:
                with tempfile.TemporaryDirectory() as root:
                    words = [sys.executable, __file__, "--batch", f"{root}/made", name, str(at), str(end)]
                    Path(root, "made").mkdir()
                    done = subprocess.run(words, capture_output=True, text=True, check=False)
                lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
                for _, word, *what in (line for line in lines if len(line) > 1):
                    counts[name][word] += 1
                    wrong += [[name, *what]] * (word == "wrong")
                if not lines:
                    sys.exit(f"The files of '{name}' could not be made:\n{done.stderr[-2000:]}")
                if len(lines[-1]) == 1:
                    counts[name]["wrong"] += 1
                    wrong.append([name, f"number {lines[-1][0]} ended the process ({done.returncode})", []])
                at = lines[-1][0] + 1
        print(
            f"{sum(sum(c.values()) for c in counts.values()):,} inputs, {len(wrong)} wrong", file=sys.stderr, flush=True
        )
    for name, said, edits in wrong:
        print(json.dumps({"target": name, "said": said, "edits": edits}))
    if given.out:
        total = {k: sum(c[k] for c in counts.values()) for k in ("took", "refused", "wrong")}
        given.out.write_text(json.dumps({"targets": counts, "all": total}, indent=1, sort_keys=True) + "\n")
    sys.exit(int(bool(wrong)))


if __name__ == "__main__":
    main()
