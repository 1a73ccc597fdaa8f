"""The long form of the fuzzer: ``python tests/fuzz/long.py --inputs 20000``. Counts go to a JSON file, what is wrong to the screen.

The sound files are made once. Each batch of inputs is read by a fork of that process, so that an input that kills its process is
counted too, by its number.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ |= {
    "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "TOKENIZERS_PARALLELISM": "false",
}  # fmt: skip

import fuzzing

BATCH = 200


def forked(target: fuzzing.Target, first: int, last: int, root: Path) -> tuple[list[list], int]:
    """What a process of its own says of the inputs from `first` on: a line before each and one after it; and how it ended."""
    said = root / "said.jsonl"
    if (child := os.fork()) == 0:
        with open(said, "w") as lines, open(os.devnull, "w") as nobody:
            os.dup2(nobody.fileno(), 1)
            os.dup2(nobody.fileno(), 2)
            with tempfile.TemporaryDirectory(dir=root) as scratch:
                for number in range(first, last):
                    edits = fuzzing.draw(target, number)
                    print(json.dumps([number]), file=lines, flush=True)
                    word, what = fuzzing.judge(target, edits, Path(scratch))
                    print(json.dumps([number, word, what, edits]), file=lines, flush=True)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return [json.loads(line) for line in said.read_text().splitlines()], code


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--inputs", type=int, default=20_000)
    ask.add_argument("--first", type=int, default=0, help="the number of the first input of each target")
    ask.add_argument("--only", action="append", help="a target; repeatable")
    ask.add_argument("--seconds", type=float, default=float("inf"), help="begin no batch after so long")
    ask.add_argument("-o", "--out", type=Path, help="where the counts go")
    given = ask.parse_args()
    import torch

    torch.set_num_threads(1)
    names = given.only or list(fuzzing.NAMES)
    counts, spent, wrong, began = {n: Counter() for n in names}, Counter(), [], time.monotonic()
    each = -(-given.inputs // len(names))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        made = fuzzing.targets(root / "made", names)
        for start in range(given.first, given.first + each, BATCH):
            for name in names:
                at, end = start, min(start + BATCH, given.first + each)
                while at < end and time.monotonic() - began < given.seconds:
                    then = time.monotonic()
                    lines, code = forked(made[name], at, end, root)
                    spent[name] += time.monotonic() - then
                    for _, word, *what in (line for line in lines if len(line) > 1):
                        counts[name][word] += 1
                        wrong += [[name, *what]] * (word == "wrong")
                    if not lines:
                        sys.exit(f"The process that reads '{name}' ended with {code} before its first input.")
                    if len(lines[-1]) == 1:
                        counts[name]["wrong"] += 1
                        wrong.append([name, f"number {lines[-1][0]} ended the process ({code})", []])
                    at = lines[-1][0] + 1
            rates = ", ".join(f"{n} {sum(counts[n].values()) / spent[n]:.1f}/s" for n in names if spent[n])
            total = sum(sum(c.values()) for c in counts.values())
            print(f"{total:,} inputs, {len(wrong)} wrong; {rates}", file=sys.stderr, flush=True)
            if given.out:
                both = {k: sum(c[k] for c in counts.values()) for k in ("took", "refused", "wrong")}
                said = {
                    "targets": counts,
                    "all": both,
                    "failed": [{"target": n, "said": s, "edits": e} for n, s, e in wrong],
                }
                given.out.write_text(json.dumps(said, indent=1, sort_keys=True) + "\n")
    for name, said, edits in wrong:
        print(json.dumps({"target": name, "said": said, "edits": edits}))
    sys.exit(int(bool(wrong)))


if __name__ == "__main__":
    main()
