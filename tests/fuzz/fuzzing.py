"""Hostile inputs: files as strangers might give them, made of sound ones by edits that are data, and what has to be true of each.

An input is a target and a list of edits. `draw` makes the edits of a number, `judge` makes the files, hands them to trueup, and
says what is wrong: nothing where trueup took them, or refused them by a sentence of its own.
"""

from __future__ import annotations

import gzip
import json
import os
import resource
import shutil
import signal
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

SECONDS, WAIT = 20.0, 60.0
"""The most that one input may take: of the processor, and by the clock."""
MEMORY = 3 << 30
"""The most bytes by which the process may grow at one input."""
EVIL = "trueup_fuzz_evil"
"""A module that settings name, and nobody imports."""

ODD: list[Any] = [
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, -(2**70), 0.5, 1e308, float("nan"), float("inf"), "", "x", "@long", "@digits",
    "@deep", "\ud800", "\x1b[31m\u202e", "../../../../etc/passwd", "/dev/zero", "~nobody.here/x", "(a+)+$", r"([a-z.]+)+!",
    "{text}", "{0.__class__}", "{% for i in range(10**9) %}{% endfor %}", EVIL, [], {}, [None], [[]], [""], ["x"] * 3, {"": None},
    {"x": {"x": []}},
]  # fmt: skip
"""What is put in place of a value. Words that begin with @ are made longer when they are written."""
_LONG = {'"@long"': '"' + "ab " * 20_000 + '"', '"@digits"': "9" * 5000, '"@deep"': "[" * 20_000 + "]" * 20_000}


# -------------------------------------------------------------------------------------------------------------- edits


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each part of a JSON value, of long lists only the first ones."""
    yield at
    parts = value.items() if isinstance(value, dict) else enumerate(value[:8]) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*at, key))


def edited(value: Any, path: list[Any], how: str, new: Any) -> Any:
    """`value` with one part of it replaced, dropped, named otherwise or wrapped."""
    if not path:
        return [value] if how == "wrap" else new
    key, *rest = path
    there = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    if key not in there:
        return value
    if rest:
        value[key] = edited(value[key], rest, how, new)
    elif how == "drop":
        del value[key]
    elif how == "name" and isinstance(value, dict):
        value[str(new)] = value.pop(key)
    else:
        value[key] = [value[key]] if how == "wrap" else new
    return value


def dumped(value: Any) -> bytes:
    text = json.dumps(value)
    for word, long in _LONG.items():
        text = text.replace(word, long)
    return text.encode()


def apply(folder: Path, edit: list[Any]) -> None:
    """Do one edit to the files in `folder`; what an earlier edit has made impossible is left out."""
    how, name, *what = edit
    file = folder / name
    if how == "reseal":
        reseal(file)
        return
    if not file.is_file() or file.is_symlink():
        return
    if how in ("unlink", "folder", "pipe", "link"):
        file.unlink()
        if how == "folder":
            file.mkdir()
        elif how == "pipe":
            os.mkfifo(file)
        elif how == "link":
            file.symlink_to(what[0])
        return
    data = file.read_bytes()
    if how == "json" or how == "header":
        start = 0 if how == "json" else 8
        end = len(data) if how == "json" else 8 + int.from_bytes(data[:8], "little")
        with suppress(ValueError, RecursionError, struct.error):
            new = dumped(edited(json.loads(data[start:end]), *what))
            data = new if how == "json" else struct.pack("<Q", len(new)) + new + data[end:]
    elif data:
        at = int(what[0]) % len(data)
        if how == "flip":
            data = data[:at] + bytes([data[at] ^ 1 << what[1]]) + data[at + 1 :]
        elif how == "cut":
            data = data[:at]
        elif how == "drop":
            data = data[:at] + data[at + what[1] :]
        elif how == "twice":
            data = data[: at + what[1]] + data[at:]
        elif how == "insert":
            data = data[:at] + bytes.fromhex(what[1]) + data[at:]
    file.write_bytes(data)


def reseal(folder: Path) -> None:
    """Write the manifest of an output folder anew, as who edits it on purpose would."""
    from trueup.store import atomic

    with suppress(OSError):
        (folder / atomic.MANIFEST).unlink()
        atomic._seal(folder)


def draw(target: Target, number: int) -> list[list[Any]]:
    """The edits of input `number`: one to three, of values where a file is JSON, of bytes, and of whole files."""
    rng = np.random.default_rng([zlib.crc32(target.name.encode()), number])

    def one_of(of: Any) -> Any:
        return of[int(rng.integers(len(of)))]

    edits: list[list[Any]] = []
    for _ in range(int(rng.integers(1, 4))):
        name = one_of(target.files)
        data = (target.folder / name).read_bytes()
        kind, at = rng.random(), int(rng.integers(max(1, len(data))))
        if kind < 0.06:
            edits.append([one_of(["unlink", "folder", "pipe"]), name])
        elif kind < 0.08:
            edits.append(["link", name, one_of(["/etc/passwd", "/dev/zero", name, "/"])])
        elif kind < 0.7 and name.endswith((".json", ".safetensors", ".yaml", ".lock")):
            how = "header" if name.endswith(".safetensors") else "json"
            with suppress(ValueError):
                held = json.loads(data if how == "json" else data[8 : 8 + int.from_bytes(data[:8], "little")])
                path = list(one_of(list(places(held))[:400]))
                edits.append([how, name, path, one_of(["set"] * 6 + ["drop", "name", "wrap"]), one_of(ODD)])
        else:
            how = one_of(["flip", "cut", "drop", "twice", "insert"])
            more = {"flip": int(rng.integers(8)), "insert": rng.bytes(int(rng.integers(1, 9))).hex()}
            edits.append([how, name, at, more.get(how, int(rng.integers(1, 60)))])
    if target.sealed and rng.random() < 0.8:
        edits.append(["reseal", target.sealed])
    return edits


# -------------------------------------------------------------------------------------------------------------- guard


class Watch:
    """What Python's audit hook tells while an input is read: code that is run, the network, and writes outside."""

    inside: Path | None = None
    seen: ClassVar[list[str]] = []
    installed = False

    @classmethod
    def hook(cls, event: str, args: tuple[Any, ...]) -> None:
        if cls.inside is None:
            return
        if event == "open":
            name, mode, flags = args
            writes = set(str(mode or "")) & set("wax+") or (
                isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
            )
            if isinstance(name, str | bytes) and writes:
                cls.within(event, name)
        elif event in (
            "os.remove",
            "os.rename",
            "os.rmdir",
            "os.mkdir",
            "os.truncate",
            "os.link",
            "os.symlink",
            "shutil.rmtree",
        ):
            cls.within(event, args[0])
        elif event == "subprocess.Popen":
            words = list(args[1])
            if words[1:3] != ["-I", "-c"]:  # in which trueup tries regular expressions
                cls.seen.append(f"{event} {words}")
        elif event == "import" and str(args[0]).startswith(EVIL):
            cls.seen.append(f"{event} {args[0]}")
        elif event in (
            "os.system",
            "os.exec",
            "os.spawn",
            "os.posix_spawn",
            "os.fork",
            "socket.connect",
            "socket.getaddrinfo",
        ):
            if event not in ("os.fork", "os.posix_spawn"):  # of subprocess, which was seen
                cls.seen.append(f"{event} {args!r}"[:200])

    @classmethod
    def within(cls, event: str, name: Any) -> None:
        if isinstance(name, int):
            return
        path = os.path.abspath(os.fsdecode(name))
        # A link that is removed or renamed is what its name says; what is written to goes where it leads.
        path = (
            os.path.realpath(path)
            if event == "open"
            else os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        )
        if not path.startswith((str(cls.inside), "/dev/null", "/dev/tty")) and "__pycache__" not in path:
            cls.seen.append(f"{event} {path}")


class OutOfTime(BaseException):
    """An input took longer than it may."""


@contextmanager
def watched(inside: Path) -> Iterator[None]:
    """Inside the block the hook watches, and time is bounded."""
    if not Watch.installed:
        sys.addaudithook(Watch.hook)
        Watch.installed = True

    def late(*_: Any) -> None:
        raise OutOfTime

    old = {s: signal.signal(s, late) for s in (signal.SIGPROF, signal.SIGALRM)}
    kept, tempfile.tempdir = tempfile.tempdir, str(inside)
    Watch.inside, Watch.seen = Path(os.path.realpath(inside)), []
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WAIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        Watch.inside, tempfile.tempdir = None, kept
        for number, handler in old.items():
            signal.signal(number, handler)


def judge(target: Target, edits: list[list[Any]], scratch: Path) -> tuple[str, str]:
    """``took``, ``refused`` or ``wrong``, and of the last what is wrong with it."""
    from trueup.errors import TrueupError

    folder = scratch / "case"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(target.folder, folder)
    for edit in edits:
        apply(folder, edit)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said, word = "", "took"
    try:
        with watched(scratch):
            target.run(folder)
    except TrueupError as e:
        word = "refused"
        if str(e).rstrip()[-1:] not in ".?)" or "Traceback" in str(e) or len(str(e)) > 3000:
            word, said = "wrong", f"no sentence: {e}"
    except OutOfTime:
        word, said = "wrong", f"took more than {SECONDS:g} s"
    except BaseException as e:
        word, said = "wrong", " ".join(f"{type(e).__name__}: {e}".split())[:300]
    if Watch.seen:
        word, said = "wrong", f"did {Watch.seen[0]}"
    if (grown := resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) > MEMORY >> 10:
        word, said = "wrong", f"grew by {grown >> 10} MiB"
    return word, said


# ------------------------------------------------------------------------------------------------------------ targets


class Target:
    """Sound files in a folder, which of them are edited, and what reads them."""

    def __init__(
        self, name: str, folder: Path, run: Callable[[Path], None], files: list[str] | None = None, sealed: str = ""
    ) -> None:
        self.name, self.folder, self.run, self.sealed = name, folder, run, sealed
        every = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        self.files = [f for f in every if files is None or f in files]


NAMES = ("adapter", "base", "data", "output", "cache", "sweep")


def targets(root: Path, names: Collection[str] = NAMES) -> dict[str, Target]:
    """Those of `names`, made in `root` by trueup itself: an adapter, its base, data, an output folder, a cache entry, a sweep."""
    import trueup
    from trueup.cli import main
    from trueup.corpus.read import read
    from trueup.report import bundle, html
    from trueup.store.cache import Memo
    from trueup.subject.tiny import make_base
    from trueup.sweeps import plan

    rng = np.random.default_rng(0)
    words = np.array(["good", "bad", "fine", "poor", "film", "the", "was", "it"])
    rows = [(" ".join(rng.choice(words, 6)), ["neg", "pos"][i % 2], f"s{i // 2 % 2}") for i in range(400)]
    made, data = {}, root / "data"
    data.mkdir(parents=True)
    lines = ["text,label,site", *(",".join(r) for r in rows)]
    (data / "d.csv").write_text("\n".join(lines) + "\n")
    records = [dict(zip(("text", "label", "site"), r, strict=True)) for r in rows]
    (data / "d.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records[:60]))
    (data / "d.json").write_text(json.dumps(records[:60]))
    (data / "d.csv.gz").write_bytes(gzip.compress("\n".join(lines[:80]).encode(), mtime=0))
    _parquet(data / "d.parquet", records)
    base, adapter = root / "base", root / "adapter"
    make_base("bert", base / "base")
    settings = {"classes": ["neg", "pos"], "max_length": 16, "tuned": {"seed": 0, "training": {"lr": 0.1}}}
    _tuned(base / "base", adapter / "adapter", settings)
    shutil.copytree(adapter / "adapter", base / "adapter")

    def load(folder: Path, base: Path) -> None:
        got = trueup.load(str(base), str(folder / "adapter"), device="cpu")
        from trueup.run.predict import predict

        predict(got, read(data / "d.csv", limit=12))

    made["adapter"] = Target("adapter", adapter, lambda folder: load(folder, base / "base"))
    bases = [f"base/{p.name}" for p in (base / "base").iterdir()]
    made["base"] = Target("base", base, lambda folder: load(folder, folder / "base"), bases)

    def read_all(folder: Path) -> None:
        refused: Exception | None = None
        for file in sorted(folder.iterdir()):
            if file.name in (changed(folder, data) or set(os.listdir(data))):
                try:
                    read(file, attributes=["site"])
                except trueup.TrueupError as e:
                    refused = e
        if refused:
            raise refused

    made["data"] = Target("data", data, read_all)
    out = root / "output"
    with suppress(SystemExit):
        if "output" in names:
            main(["check", str(base / "base"), "--adapter", str(adapter / "adapter"), "--data", str(data / "d.csv"), "-q", "--keep",
              "--confounder", "site", "--set", "overconfidence.resamples=20", "--set", "overconfidence.folds=2",
              "--set", "confounding.resamples=20", "-o", str(out / "out")])  # fmt: skip

    def report(folder: Path) -> None:
        html.page(bundle.read(folder / "out"))

    if "output" in names:
        made["output"] = Target("output", out, report, sealed="out")
    cache = root / "cache"
    Memo(cache).put("key", {"a": np.arange(40.0), "b": np.ones((3, 5), np.float32)})

    def remember(folder: Path) -> None:
        got = Memo(folder).get("key")
        if got is None:
            return
        assert np.array_equal(got["a"], np.arange(40.0)), "another array was taken"
        assert np.array_equal(got["b"], np.ones((3, 5))), "another array was taken"

    made["cache"] = Target("cache", cache, remember)
    sweep = root / "sweep"
    sweep.mkdir()
    cell = {
        "model": "m",
        "data": "d.csv",
        "limit": 60,
        "faults": ["overconfidence"],
        "knobs": {"overconfidence": {"folds": 2}},
    }
    plain = {"steps": "audit", "defaults": cell, "matrix": {"seed": [0, 1], "adapter": ["a", "b"]},
             "include": [{"name": "x", "limit": 70}], "exclude": [{"seed": 1, "adapter": "b"}]}  # fmt: skip
    (sweep / "sweep.yaml").write_text(json.dumps(plain))
    made["sweep"] = Target("sweep", sweep, lambda folder: plan.cells_of(folder / "sweep.yaml") and None)
    return {n: made[n] for n in names}


def changed(folder: Path, sound: Path) -> set[str]:
    """The names of the files that are not as in `sound`."""
    return {
        p.name for p in folder.iterdir()
        if not p.is_file() or p.is_symlink() or p.read_bytes() != (sound / p.name).read_bytes()
    }  # fmt: skip


def _parquet(file: Path, records: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(records), file)


def _tuned(base: Path, folder: Path, card: dict[str, Any]) -> None:
    import torch

    from trueup.subject.adapter import save_tuned
    from trueup.subject.beside import CARD
    from trueup.subject.new_adapter import Lora, fresh

    subject = fresh(str(base), Lora(2), ("neg", "pos"), max_length=16, device="cpu")
    with torch.no_grad():
        for name, p in subject.model.named_parameters():
            if "lora_B" in name:  # a check refuses an adapter that does nothing
                torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(0))
    folder.mkdir(parents=True)
    save_tuned(subject, folder)
    (folder / CARD).write_text(json.dumps(card))
