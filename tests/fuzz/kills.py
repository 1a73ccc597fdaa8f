"""Commands killed at random moments: ``python tests/fuzz/kills.py --kills 200 -o kills.json``.

Each of tune, check, check --force, repair, sweep, export and export --force runs once undisturbed, on a tiny model. Then it is
killed (SIGKILL) again and again. After each kill the output is absent or whole, the old one or the new one. The run that follows
ends with the exit code of the undisturbed one and, to the byte, with its files. It computes no pass and trains no step that an
earlier run had kept.
``--demo N`` does the same to ``trueup demo``, whose models are real.

Commands are forks of one process that has imported everything, so that moments fall on work and not on imports.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

from counted import finish

CLASSES = ("neg", "pos")


def prepared(made: Path) -> None:
    """What the commands read, in `made`: a tiny base, reviews, and an adapter tuned on them whose answers are made too sure, so
    that there is something to repair. What a check imports is imported now."""
    from safetensors.torch import load_file, save_file

    from trueup.cli import main
    from trueup.subject.tiny import make_base

    make_base("bert", made / "base")
    rng = np.random.default_rng(0)
    rows = ["text,label,site"]
    for _ in range(360):
        ups = int(rng.integers(6))
        words = [
            *rng.choice(["good", "fine"], ups),
            *rng.choice(["bad", "poor"], 5 - ups),
            *rng.choice(["film", "was", "it"], 3),
        ]
        label = int(rng.random() < (0.05, 0.2, 0.4, 0.6, 0.8, 0.95)[ups])
        rows.append(f"{' '.join(rng.permutation(words))},{CLASSES[label]},s{(label + (rng.random() < 0.4)) % 2}")
    (made / "d.csv").write_text("\n".join(rows) + "\n")
    every = commands(made)
    for words, out in ((every["tune"], "adapter"), (every["check"], "first")):
        with contextlib.suppress(SystemExit):
            main([*words, "-q", "-o", str(made / out)])
        if out == "adapter":
            file = made / out / "adapter_model.safetensors"
            save_file({k: v * 8 if "classifier" in k else v for k, v in load_file(file).items()}, file)
    assert (made / "first" / "overconfidence").is_dir(), "there is something to repair"


def commands(made: Path) -> dict[str, list[str]]:
    base, adapter, data = (str(made / p) for p in ("base", "adapter", "d.csv"))
    quick = ["--set", "overconfidence.resamples=20", "--set", "overconfidence.folds=2"]
    (made / "night.yaml").write_text(json.dumps({
        "steps": "audit", "defaults": {"model": base, "adapter": adapter, "data": data, "faults": ["overconfidence"],
        "knobs": {"overconfidence": {"resamples": 20, "folds": 2}}}, "matrix": {"seed": [0, 1], "limit": [300, 360]},
    }))  # fmt: skip
    return {
        "tune": ["tune", "lora", base, "--data", data, "--epochs", "3", "--rank", "2", "--lr", "0.01"],
        "check": ["check", base, "--adapter", adapter, "--data", data, "--confounder", "site", "--keep", *quick,
                  "--set", "confounding.resamples=20"],
        "replace": ["check", base, "--adapter", adapter, "--data", data, "--fault", "overconfidence", "--force", *quick],
        "repair": ["repair", "overconfidence", base, "--adapter", adapter, "--data", data, "--keep", *quick],
        "sweep": ["sweep", str(made / "night.yaml")],
        "export": ["export", str(made / "first"), "--fault", "overconfidence", "--as", "merged"],
        "export again": ["export", str(made / "first"), "--fault", "overconfidence", "--as", "lora", "--force"],
    }  # fmt: skip


def other(words: list[str]) -> list[str]:
    """The command that has made the folder which `words` replaces: what it holds is not what `words` makes."""
    left = [w if w != "lora" else "merged" for w in words if w != "--force"]
    return left if left[0] == "export" else [*left, "--seed", "1"]


# ------------------------------------------------------------------------------------------------- one command, one fork


@dataclass
class Run:
    """A command in a fork of its own: `did` counts what it computed anew, and not what it found kept."""

    process: int
    log: Path

    @property
    def said(self) -> str:
        return self.log.with_suffix(".err").read_text()

    @property
    def did(self) -> Counter[str]:
        return Counter(self.log.read_text().split())

    @property
    def saved(self) -> int:
        """The step of the last checkpoint."""
        return max((int(w[5:]) for w in self.log.read_text().split() if w.startswith("saved")), default=0)

    def kill(self) -> int:
        """How it ended: by the signal, or by itself before that."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process, signal.SIGKILL)
        return self.wait()

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])


def begin(words: list[str], out: Path, log: Path) -> Run:
    log.write_text("")
    if (child := os.fork()) == 0:
        from trueup.cli import main

        errors = os.open(log.with_suffix(".err"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(errors, 2)
        code = 0
        try:
            counted(log)
            main([*words, "-o", str(out)])
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else 0
        except BaseException:
            code = 99
        os._exit(code)
    return Run(child, log)


def counted(log: Path) -> None:
    """Have each pass that is kept, each step, and each checkpoint leave a word in the log, once it is on the disk."""
    from trueup.run.train import _State
    from trueup.store.cache import Memo

    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    put, advance, save = Memo.put, _State.advance, _State.save

    def kept(self: Any, key: str, arrays: Any) -> bool:
        done = put(self, key, arrays)
        os.write(file, b"pass ")
        return done

    def advanced(self: Any, *given: Any) -> None:
        advance(self, *given)
        os.write(file, b"step ")

    def saved(self: Any) -> None:
        save(self)
        os.write(file, b"saved%d " % (self.path is not None and self.step))

    Memo.put, _State.advance, _State.save = kept, advanced, saved  # type: ignore[method-assign]


# --------------------------------------------------------------------------------------------------------- what comes of it


TIMES = ("seconds", "cpu_seconds", "peak_bytes")


def made_of(out: Path) -> dict[str, bytes]:
    """All files without when they were made, what that took, and notes of an earlier run: these are others at each run."""
    import pyarrow.parquet as pq

    found = {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
    for name in list(found):
        last = name.rpartition("/")[2]
        if last in ("run.json", "report.html", "index.html", "manifest.json", "cell.json", "previous.html"):
            del found[name]
        elif last == "results.parquet":
            table = pq.read_table(out / name)
            found[name] = str(table.drop_columns([c for c in table.column_names if c in TIMES]).to_pylist()).encode()
        elif last == "findings.json":
            said = json.loads(found[name])
            said["notes"] = [n for n in said.get("notes", ()) if not n.startswith("Training went on from step")]
            found[name] = json.dumps(said, sort_keys=True).encode()
    return found


@dataclass
class Counts:
    kills: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    absent: Counter[str] = field(default_factory=Counter)
    whole: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def killed(name: str, words: list[str], made: Path, kills: int, rng: np.random.Generator, counts: Counts) -> None:
    from trueup.errors import BadInput
    from trueup.store import atomic

    out, log, old = made / "out", made / "log", {}

    def clear() -> None:
        for path in [out, *made.glob(".out.*")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        if old:
            shutil.copytree(made / "old", out)

    def wrong(what: str) -> None:
        counts.wrong.append(f"{name}, kill {counts.kills[name]}: {what}")
        print(counts.wrong[-1], flush=True)

    if "--force" in words:
        earlier = begin(other(words), made / "old", log)
        assert earlier.wait() in (0, 1), earlier.said
        old = made_of(made / "old")
    clear()
    began = time.monotonic()
    first = begin(words, out, log)
    code = first.wait()
    took, sound, did = time.monotonic() - began, made_of(out), first.did
    if code not in (0, 1) or not sound or sound == old:
        sys.exit(f"The undisturbed {name} ended with {code}: {first.said}")
    clear()
    while counts.kills[name] < kills:
        steps, done = 0, False
        for _ in range(int(rng.integers(1, 4))):  # several, one after the other, of one piece of work
            run = begin(words, out, log)
            time.sleep(float(rng.uniform(0, 1.02)) * took)
            if (ended := run.kill()) != -signal.SIGKILL:
                counts.ended[name] += 1
                if ended != code:
                    wrong(f"a run that was not killed ended with {ended}: {run.said}")
                done = True
                break
            counts.kills[name] += 1
            steps = max(steps, run.saved)
            for folder in sorted(out.glob("cells/*/report")) if name == "sweep" else [out]:
                stands = atomic.there(folder)
                counts.whole[name] += stands
                counts.absent[name] += not stands
                if not stands and old:
                    wrong("the old folder is not there")
                try:
                    if stands:
                        atomic.verify(folder)
                except BadInput as e:
                    wrong(str(e))
            done = name != "sweep" and atomic.there(out) and made_of(out) != old
            if done:
                break
        if not done:
            kept = sum(1 for folder in (out, *made.glob(".out.*")) for _ in folder.rglob("*.kept"))
            last = begin(words, out, log)
            if (got := last.wait()) != code:
                wrong(f"the rerun ended with {got}: {last.said}")
            if last.did["pass"] + kept > did["pass"]:
                wrong(f"{kept} passes were kept, and {last.did['pass']} of {did['pass']} computed again")
            if last.did["step"] + steps > did["step"]:
                wrong(f"{steps} steps were kept, and {last.did['step']} of {did['step']} trained again")
            counts.kept[name] += kept + steps
        if (now := made_of(out)) != sound:
            wrong(
                f"{sorted(k for k in sound.keys() | now.keys() if now.get(k) != sound.get(k))} are not as undisturbed"
            )
        if not done and (remains := [p.name for p in made.glob(".out.*")]):
            wrong(f"{remains} remains")
        clear()
    shutil.rmtree(out, ignore_errors=True)
    print(f"{name}: {counts.kills[name]} kills in runs of {took:.1f} s, {len(counts.wrong)} wrong so far", flush=True)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--kills", type=int, default=200)
    ask.add_argument("--only", action="append", help="a command; repeatable")
    ask.add_argument("--demo", type=int, default=0, help="how often `trueup demo` is killed as well")
    ask.add_argument("--seed", type=int, default=0)
    ask.add_argument("-o", "--out", type=Path, help="where the counts go")
    given = ask.parse_args()
    import peft  # noqa: F401
    import torch

    import trueup.exporting
    import trueup.report.html
    import trueup.sweeps.run  # noqa: F401

    torch.set_num_threads(1)
    rng, counts = np.random.default_rng(given.seed), Counts()
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        prepared(made)
        every = commands(made)
        names = given.only or list(every)
        for name in names:
            killed(name, [*every[name], "-q"], made, -(-given.kills // len(names)), rng, counts)
        if given.demo:
            killed("demo", ["demo", "-q"], made, given.demo, rng, counts)
    finish(counts, given.out)


if __name__ == "__main__":
    main()
