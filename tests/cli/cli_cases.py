"""The command line as its users meet it: argv in; exit code, standard output and standard error out."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

CLASSES = ("negative", "positive")
FAST = ("--set", "overconfidence.resamples=20", "--set", "overconfidence.folds=2")


@dataclass(frozen=True)
class Said:
    """What one command did: exit code, standard output, standard error without the lines of its stages, and those."""

    code: int
    out: str
    err: str
    stages: tuple[str, ...] = field(default=(), compare=False)


STAGE = re.compile(r"^\[\d+:\d\d\] .+: [\d,]+ of [\d,]+\n", re.MULTILINE)


def trueup(*argv: object) -> Said:
    """The command `trueup`, in this process."""
    from trueup.cli import main

    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(a) for a in argv])
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else 1
    said = err.getvalue()
    return Said(code, out.getvalue(), STAGE.sub("", said), tuple(STAGE.findall(said)))


def reviews(n: int, seed: int = 0) -> list[tuple[str, str]]:
    """Texts in the tiny models' words; the more the words agree, the surer the label."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        ups = int(rng.integers(0, 6))
        words = [*rng.choice(["good", "fine"], ups), *rng.choice(["bad", "poor"], 5 - ups)]
        words += [*rng.choice(["the", "film", "was", "it", "very", "calm", "loud", "is", "a"], 4)]
        positive = rng.random() < (0.05, 0.2, 0.4, 0.6, 0.8, 0.95)[ups]
        rows.append((" ".join(str(w) for w in rng.permutation(words)), CLASSES[int(positive)]))
    return rows


def write_csv(path: Path, rows: Iterable[Iterable[object]], header: Iterable[str] = ("text", "label")) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as f:
        csv.writer(f).writerows([list(header), *rows])
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, by its relative name, without when it was made and what that took: that is another at each run."""
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    if "findings.json" not in found:
        return found
    assert json.loads(found.pop("run.json")).keys() == {"began", "ended", "seconds", "peak_bytes"}
    found["report.html"], one = re.subn(
        rb"<dt><bdi>peak memory</bdi></dt><dd><bdi>[\d,]+ MB</bdi></dd>", b"", found["report.html"]
    )
    assert one == 1
    manifest = json.loads(found["manifest.json"])
    for name in ("run.json", "report.html"):
        manifest["files"].pop(name)
    return found | {"manifest.json": json.dumps(manifest).encode()}


def check_words(world: Path) -> list[object]:
    """A check of the tuned adapter, quick; what it repairs is written whatever it gained."""
    words = ["check", world / "bert", "--adapter", world / "adapter", "--data", world / "data.csv", *FAST]
    return [*words, "--keep"]


def audit_words(world: Path) -> list[object]:
    """An audit for overconfidence of the tuned adapter, quick."""
    return ["audit", "overconfidence", *check_words(world)[1:-1]]
