"""Whole commands on disks that run full or cannot be written: ``python tests/fuzz/disks.py --points 8 -o disks.json``, as root.

Each of tune, check, repair, sweep and export runs once undisturbed, which says how much room it takes. Then it runs on disks of
less and less room. It ends with exit code 2 and a sentence, and its output is absent or whole. With room on the disk the same
command ends with the exit code of the undisturbed one and, to the byte, with its files. It computes no pass again that was kept.
The same holds for folders that can only be read, a full cache, memory that runs out at a pass, and a clock that was set back.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import kills

from counted import finish

ROOM = 64 << 20
"""Bytes of a disk with room."""


class Told(list[str]):
    """What is wrong, said as soon as it is known."""

    def append(self, what: str) -> None:
        print(f"WRONG {what}", file=sys.stderr, flush=True)
        super().append(what)


@dataclass
class Counts:
    """Of each fault and command: how often it was met, and ended as it has to; what passes were kept; and what was wrong."""

    met: Counter[str] = field(default_factory=Counter)
    unmet: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    wrong: Told = field(default_factory=Told)


@contextmanager
def disk(place: Path, size: int) -> Iterator[Callable[[str], None]]:
    """A disk of its own at `place`; what is yielded changes how it is mounted."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)

    def remount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(place)], check=True)

    try:
        yield remount
    finally:
        for _ in range(50):  # what has ended a moment ago may still hold it
            if subprocess.run(["umount", str(place)], check=False, stderr=subprocess.DEVNULL).returncode == 0:
                break
            time.sleep(0.1)
        else:
            raise RuntimeError(f"'{place}' is still in use: a command has left a process behind.")


def able() -> bool:
    """Whether disks can be mounted here."""
    if os.name != "posix" or not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        try:
            with disk(Path(folder, "try"), 1 << 16):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


@dataclass
class Undisturbed:
    """A command, what it makes on a disk with room, and how much of that disk it takes at the most."""

    name: str
    words: list[str]
    code: int
    files: dict[str, bytes]
    did: Counter[str]
    most: int


def undisturbed(name: str, words: list[str], made: Path) -> Undisturbed:
    place = made / "disk"
    with disk(place, ROOM):
        run, most = kills.begin(words, place / "out", made / "log"), 0
        while os.waitid(os.P_PID, run.process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            most = max(most, shutil.disk_usage(place).used)
            time.sleep(0.002)
        code = run.wait()
        if code not in (0, 1):
            sys.exit(f"The undisturbed {name} ended with {code}: {run.said}")
        return Undisturbed(name, words, code, kills.made_of(place / "out"), run.did, most)


def refused(
    counts: Counts, command: Undisturbed, what: str, run: kills.Run, code: int, out: Path, says: tuple[str, ...]
) -> None:
    """Asserts a sentence, exit code 2, and an output that is absent or whole."""
    from trueup.errors import BadInput
    from trueup.store import atomic

    said = run.said
    lines = [line for line in said.splitlines() if line.startswith("trueup: ")]
    told = any(s in said for s in says) if command.name != "sweep" or code == 2 else code == 1
    if code not in (2, 1 if command.name == "sweep" else 2) or "Traceback" in said or not lines or not told:
        counts.wrong.append(f"{what}: ended with {code}: {said[-600:]}")
    for folder in sorted(out.glob("cells/*/report")) if command.name == "sweep" else [out]:
        if folder.exists():
            try:
                atomic.verify(folder)
            except BadInput as e:
                counts.wrong.append(f"{what}: {e}")


def again(counts: Counts, command: Undisturbed, what: str, out: Path, log: Path) -> None:
    """Asserts that the same command goes on to what an undisturbed one makes."""
    kept = sum(1 for folder in (out, *out.parent.glob(".out.*")) for _ in folder.rglob("*.kept"))
    last = kills.begin(command.words, out, log)
    code = last.wait()
    if code != command.code:
        counts.wrong.append(f"{what}: the rerun ended with {code}: {last.said[-600:]}")
    elif (now := kills.made_of(out)) != command.files:
        names = sorted(k for k in command.files.keys() | now.keys() if now.get(k) != command.files.get(k))
        counts.wrong.append(f"{what}: {names} are not as undisturbed")
    if last.did["pass"] + kept > command.did["pass"]:
        counts.wrong.append(
            f"{what}: {kept} passes were kept, and {last.did['pass']} of {command.did['pass']} computed again"
        )
    counts.kept[what.partition(" at ")[0]] += kept
    if remains := [p.name for p in out.parent.glob(".out.*")]:
        counts.wrong.append(f"{what}: {remains} remains")


def full(counts: Counts, command: Undisturbed, made: Path, share: float) -> None:
    """A disk of `share` of the room that the command takes."""
    place, what = made / "disk", f"{command.name}: a full disk"
    with disk(place, max(4096, int(command.most * share) // 4096 * 4096)) as remount:
        run = kills.begin(command.words, place / "out", made / "log")
        code = run.wait()
        if code == command.code and (command.name != "sweep" or kills.made_of(place / "out") == command.files):
            counts.unmet[what] += 1  # the room was enough
            return
        counts.met[what] += 1
        refused(
            counts, command, f"{what} at {share:.0%}", run, code, place / "out", ("no room", "No space", "Make room")
        )
        remount(f"size={ROOM}")
        again(counts, command, f"{what} at {share:.0%}", place / "out", made / "log")


def read_only(counts: Counts, command: Undisturbed, made: Path) -> None:
    place, what = made / "disk", f"{command.name}: a folder that can only be read"
    with disk(place, ROOM) as remount:
        remount("ro")
        run = kills.begin(command.words, place / "out", made / "log")
        code = run.wait()
        counts.met[what] += 1
        refused(counts, command, what, run, code, place / "out", ("Read-only", "may write"))
        remount("rw")
        again(counts, command, what, place / "out", made / "log")


def cache(counts: Counts, command: Undisturbed, made: Path, how: str) -> None:
    """A cache that can only be read, or is full, costs nothing but what is in it: the command neither needs nor writes it."""
    place, what = (
        made / "cache-disk",
        f"{command.name}: a cache that {'can only be read' if how == 'ro' else 'is full'}",
    )
    with disk(place, 4096) as remount, set_to("TRUEUP_CACHE", str(place)):
        if how == "ro":
            remount("ro")
        else:
            (place / "x").write_bytes(b"0" * 4096)
        counts.met[what] += 1
        again(counts, command, what, made / "out", made / "log")
    shutil.rmtree(made / "out")


def memory(counts: Counts, command: Undisturbed, made: Path, at: int) -> None:
    """Memory that runs out at the n-th pass through the model, and stays so."""
    out, what = made / "out", f"{command.name}: memory runs out"
    with out_of_memory(at):
        run = kills.begin(command.words, out, made / "log")
        code = run.wait()
    said = run.said
    if code == command.code and not out.exists():
        counts.wrong.append(f"{what} at pass {at}: ended with {code} and without its output: {said}")
    if out.exists() and kills.made_of(out) == command.files:
        counts.unmet[what] += 1  # there were fewer passes
    else:
        counts.met[what] += 1
        noted = "" if command.name == "tune" else "".join(p.read_text() for p in out.rglob("findings.json"))
        noted += "".join(p.read_text() for p in out.rglob("cell.json"))
        if code not in (1, 2) or "Traceback" in said or not any("memory" in s.lower() for s in (said, noted)):
            counts.wrong.append(f"{what} at pass {at}: ended with {code}: {said[-600:]}")
        if command.name != "sweep":
            shutil.rmtree(out, ignore_errors=True)  # a report whose repair is missing stands; it is made again
        again(counts, command, f"{what} at pass {at}", out, made / "log")
    shutil.rmtree(out)


@contextmanager
def out_of_memory(at: int) -> Iterator[None]:
    import torch

    from trueup.run import forward

    real, seen = forward.collate, 0

    def collate(*given: Any, **more: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen > at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(*given, **more)

    forward.collate = collate
    try:
        yield
    finally:
        forward.collate = real


def clock(counts: Counts, command: Undisturbed, made: Path, after: float) -> None:
    """Killed, and all that it left is of tomorrow."""
    out, what = made / "out", f"{command.name}: a clock that was set back"
    run = kills.begin(command.words, out, made / "log")
    time.sleep(after)
    run.kill()
    if out.exists() and command.name != "sweep":
        counts.unmet[what] += 1
    else:
        counts.met[what] += 1
        then = time.time() + 86400
        for top in made.glob(".out.*"):
            for path in [top, *top.rglob("*")]:
                os.utime(path, (then, then))
        again(counts, command, what, out, made / "log")
    for path in [out, *made.glob(".out.*")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def set_to(name: str, value: str) -> Iterator[None]:
    old = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name) if old is None else os.environ.__setitem__(name, old)


def commands(made: Path) -> dict[str, list[str]]:
    """Those of `kills`, and one that exports what a repair wrote to ``made/repaired``."""
    every = {k: [*v, "-q"] for k, v in kills.commands(made).items() if k != "replace"}
    run = kills.begin(every["repair"], made / "repaired", made / "log")
    assert run.wait() in (0, 1), run.said
    return every | {"export": ["export", str(made / "repaired"), "--as", "merged"]}


def all_of(counts: Counts, command: Undisturbed, made: Path, points: int) -> None:
    for i in range(points):
        full(counts, command, made, i / points)
    read_only(counts, command, made)
    for how in ("ro", "full"):
        cache(counts, command, made, how)
    if command.name != "export":
        for at in range(points):
            memory(counts, command, made, at**2)
        clock(counts, command, made, 0.5)


def ready(made: Path) -> None:
    import peft  # noqa: F401
    import torch

    import trueup.sweeps.run  # noqa: F401

    torch.set_num_threads(1)
    kills.prepared(made)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument(
        "--points", type=int, default=8, help="disk sizes, and passes at which memory runs out, of each command"
    )
    ask.add_argument("--only", action="append", help="a command; repeatable")
    ask.add_argument("-o", "--out", type=Path, help="where the counts go")
    given = ask.parse_args()
    if not able():
        sys.exit("No disk can be mounted here: run it as root.")
    counts = Counts()
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        ready(made)
        for name, words in commands(made).items():
            if given.only and name not in given.only:
                continue
            all_of(counts, undisturbed(name, words, made), made, given.points)
            print(f"{name}: {sum(counts.met.values())} met, {len(counts.wrong)} wrong", file=sys.stderr, flush=True)
    finish(counts, given.out)


if __name__ == "__main__":
    main()
