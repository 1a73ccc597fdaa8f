"""Commands killed at random moments: ``python tests/fuzz/kills.py --kills 200``.

Each of tune, check, repair and sweep runs once undisturbed, on a tiny model. Then it is killed (SIGKILL) again and again, its
output is looked at (absent, or whole), and it is run to its end: adapters and findings have to be those of the undisturbed run,
to the byte.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

import fuzzing


def commands(made: Path) -> dict[str, list[str]]:
    base, adapter, data = (str(made / p) for p in ("base/base", "adapter/adapter", "data/d.csv"))
    quick = ["--set", "overconfidence.resamples=20", "--set", "overconfidence.folds=2"]
    (made / "night.yaml").write_text(json.dumps({
        "steps": "audit", "defaults": {"model": base, "adapter": adapter, "data": data, "faults": ["overconfidence"],
        "knobs": {"overconfidence": {"resamples": 20, "folds": 2}}}, "matrix": {"seed": [0, 1]},
    }))  # fmt: skip
    return {
        "tune": ["tune", "lora", base, "--data", data, "--epochs", "3", "--rank", "2"],
        "check": ["check", base, "--adapter", adapter, "--data", data, "--keep", *quick],
        "repair": ["repair", "overconfidence", base, "--adapter", adapter, "--data", data, "--keep", *quick],
        "sweep": ["sweep", str(made / "night.yaml")],
    }


def made_of(out: Path) -> dict[str, bytes]:
    """What has to be equal: weights, settings, and what was found."""
    found = {
        p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.suffix == ".safetensors"
    }
    for file in sorted(out.rglob("adapter_config.json")):
        found[file.relative_to(out).as_posix()] = file.read_bytes()
    for file in sorted(out.rglob("findings.json")):
        found[file.relative_to(out).as_posix()] = json.dumps(json.loads(file.read_text())["comparisons"]).encode()
    return found


def main() -> None:
    from trueup.errors import BadInput
    from trueup.store import atomic

    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--kills", type=int, default=200)
    ask.add_argument("--only", action="append", help="a command; repeatable")
    given = ask.parse_args()
    rng, counts, wrong = np.random.default_rng(0), Counter(), []
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        fuzzing.targets(made, ["adapter"])
        every = commands(made)
        for name in given.only or every:
            words = [sys.executable, "-m", "trueup", *every[name], "-q"]

            def begin(out: Path, words: list[str] = words) -> subprocess.Popen[bytes]:
                return subprocess.Popen([*words, "-o", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

            began = time.monotonic()
            first = begin(made / "undisturbed")
            said = first.communicate()[1].decode()
            took, sound, code = time.monotonic() - began, made_of(made / "undisturbed"), first.returncode
            if code not in (0, 1) or not sound:
                sys.exit(f"The undisturbed {name} ended with {code}: {said}")
            out, left = made / "out", -(-given.kills // len(given.only or every))
            while left:
                for _ in range(
                    min(left, int(rng.integers(1, 4)))
                ):  # several kills, one after the other, of one piece of work
                    process = begin(out)
                    time.sleep(float(rng.uniform(0.2, 1.05)) * took)
                    process.kill()
                    process.communicate()
                    left -= 1
                    counts[name] += 1
                    if name != "sweep" and out.exists():
                        try:
                            atomic.verify(out)
                        except BadInput as e:
                            wrong.append(f"{name}: {e}")
                        break
                last = begin(out)
                said = last.communicate()[1].decode()
                taken = "exists and is not empty" in said and name != "sweep"  # it had finished before the kill
                if last.returncode != code and not taken:
                    wrong.append(f"{name}: the rerun ended with {last.returncode}: {said}")
                elif made_of(out) != sound:
                    wrong.append(
                        f"{name}: {[k for k in sound if made_of(out).get(k) != sound[k]]} are not those of an undisturbed run"
                    )
                remains = [
                    p.name
                    for p in made.iterdir()
                    if p.name.startswith((".out.", ".undisturbed.")) and ".partial" in p.name
                ]
                if remains and not taken:
                    wrong.append(f"{name}: {remains} remains")
                for path in [out, *made.glob(".out.*")]:
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
            shutil.rmtree(made / "undisturbed")
            print(f"{name}: {counts[name]} kills in runs of {took:.0f} s, {len(wrong)} wrong so far", flush=True)
    print("\n".join([json.dumps(counts), *wrong]))
    sys.exit(int(bool(wrong)))


if __name__ == "__main__":
    main()
