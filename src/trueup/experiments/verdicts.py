"""How often each fault's verdict is right where the truth is known: every world of every fault, at several numbers of clusters.

Each fault's folder brings its own worlds (``worlds.py``, `WORLDS`), found by being there. Required of a verdict: `found` in at
most 2.5% of draws of a null world (5% at the upper end of the Wilson interval), in 80% of draws of a fault's world at 1,000
clusters, and 92 to 98% of 95% intervals that hold the truth from 200 clusters on.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trueup.errors import BadInput, did_you_mean, listing
from trueup.experiments import resumed
from trueup.measure.accuracy import wilson
from trueup.measure.bootstrap import FEWEST
from trueup.measure.worlds import WORDS, Rates, World, rates

SIZES = (60, 200, 1000, 4000)
HELD_FROM = 200
"""Clusters from which on intervals must hold the truth as often as they say."""
CHUNK = 20
"""Draws that a killed run loses at most."""


@dataclass(frozen=True)
class Settings:
    """Knobs of the bench.

    Attributes:
        runs: draws of each world at each size. sizes: independent clusters that judge, and as many that teach. seed: of all draws.
        faults: whose worlds; empty for all.
    """

    runs: int = 200
    sizes: tuple[int, ...] = SIZES
    seed: int = 0
    faults: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.runs < 1:
            raise BadInput(f"{self.runs} runs are none. Give --runs 1 or more; rates need some 200.")
        if not self.sizes or min(self.sizes) < FEWEST:
            raise BadInput(
                f"--sizes {','.join(map(str, self.sizes))} holds no number or one below {FEWEST}: fewer clusters decide nothing. "
                "Give numbers with commas between them, such as 60,200,1000,4000."
            )
        known = [name.split(".")[-2] for name in _modules()]
        for name in self.faults:
            if name not in known:
                raise BadInput(f"No fault '{name}' has worlds.{did_you_mean(name, known)} There are {listing(known)}.")


def worlds() -> list[World]:
    """Every fault's worlds, by fault."""
    return [world for name in _modules() for world in importlib.import_module(name).WORLDS]


def _modules() -> list[str]:
    """The module of each fault's worlds, by fault."""
    import trueup.faults

    names = (
        f"{trueup.faults.__name__}.{m.name}.worlds" for m in pkgutil.iter_modules(trueup.faults.__path__) if m.ispkg
    )
    return sorted(name for name in names if importlib.util.find_spec(name) is not None)


def run(
    out: str | Path, settings: Settings, *, force: bool = False, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Judge every world, and write `out`/verdicts.json and `out`/verdicts.md. Returns what verdicts.json holds.

    What is finished is kept for a run that is killed and started again (`resumed.run`).

    Raises:
        BadInput: `out` is there already and `force` is not given.
    """
    import trueup.faults
    import trueup.measure

    def make(parts: resumed.Parts) -> dict[str, Any]:
        rows = []
        for n in settings.sizes:
            for world in worlds():
                if settings.faults and world.fault.partition(",")[0] not in settings.faults:
                    continue
                got = _kept(world, n, settings, parts, say)
                rows.append({"fault": world.fault, "world": world.name, "kind": world.kind, "n": n, **asdict(got)})
                say(f"{n:>5,}  {world.kind:5}  {world.fault}: {world.name}: {_words(got)}")
        return {"settings": asdict(settings), "rows": rows}

    return resumed.run(out, "verdicts", resumed.code_of(trueup.measure, trueup.faults), make, table, force=force)


def _kept(world: World, n: int, settings: Settings, parts: resumed.Parts, say: Callable[[str], None]) -> Rates:
    """The rates of one world at one size, going on where an earlier run stopped."""
    file = parts.file(world.fault, world.name, n, settings.seed)
    was = resumed.kept_json(file, say)
    done = Rates() if was is None else _rates(was)
    while done.runs < settings.runs:
        done += rates(world, n, min(CHUNK, settings.runs - done.runs), settings.seed, first=done.runs)
        resumed.keep(file, asdict(done))
    return done


def _rates(data: Mapping[str, Any]) -> Rates:
    return Rates(data["runs"], data["words"], {k: (v[0], v[1], v[2]) for k, v in data["held"].items()})


def _words(got: Rates) -> str:
    return ", ".join(f"{w} {got.rate(w):.1%}" for w in WORDS)


def _missed(row: Mapping[str, Any], got: Rates) -> list[str]:
    """What is required and was not seen, beyond chance."""
    low, high = (float(e) for e in wilson(got.words["found"], got.runs))
    missed = []
    if row["kind"] == "null" and low > 0.025:
        missed.append("found too often")
    if row["kind"] == "fault" and row["n"] == 1000 and high < 0.8:
        missed.append("found too rarely")
    if row["n"] >= HELD_FROM:
        for key, (below, inside, above) in got.held.items():
            ends = wilson(inside, below + inside + above)
            if float(ends[1]) < 0.92:
                missed.append(f"{key} covered {got.coverage(key):.0%}")
    return missed


def table(result: Mapping[str, Any]) -> str:
    """The rates as Markdown: a line for each world. Of found and clear in per cent of the draws; the rest is undecided."""
    sizes = list(dict.fromkeys(row["n"] for row in result["rows"]))
    lines = [
        f"| fault | world | {' | '.join(f'n = {n:,}' for n in sizes)} | coverage, severity | coverage, others | requirement "
        "missed |",
        "|---" * (len(sizes) + 5) + "|",
    ]
    rows = sorted(result["rows"], key=lambda r: (r["fault"], r["kind"] != "null"))
    for fault, world, kind in dict.fromkeys((r["fault"], r["world"], r["kind"]) for r in rows):
        own = {r["n"]: r for r in rows if (r["fault"], r["world"]) == (fault, world)}
        cells = [f"{got.rate('found'):.0%} / {got.rate('clear'):.0%}" for n in sizes if (got := _rates(own[n]))]
        large = sum((_rates(r) for n, r in own.items() if n >= HELD_FROM), Rates())
        covered = {k: c for k in large.held if (c := large.coverage(k)) == c}
        severity = [covered.pop("severity")] if "severity" in covered else []
        missed = [f"{m} at {n:,}" for n, r in own.items() for m in _missed(r, _rates(r))]
        lines.append(
            f"| {fault} | {world}{'' if kind == 'null' else ' (fault)'} | {' | '.join(cells)} | "
            f"{_range(severity)} | {_range(covered.values())} | "
            f"{', '.join(missed)} |"
        )
    return (
        f"Draws of each world: {_drawn(result['rows'])}. The columns of `n` give the percentage of draws that are "
        "found / clear. The other draws are undecided. *Coverage* is the percentage of 95% intervals that contain the true value, "
        f"for n = {HELD_FROM} and more. It is given for the severity, and for the other measures (lowest to highest).\n\n"
        + "\n".join(lines)
        + f"\n\nDraws that are *found*, over all worlds without the fault: {_together(rows)}.\n"
    )


def _drawn(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many draws there are of a world at each size."""
    parts = []
    for n in dict.fromkeys(r["n"] for r in rows):
        runs = sorted({r["runs"] for r in rows if r["n"] == n})
        parts.append(f"{' to '.join(dict.fromkeys(map(str, (runs[0], runs[-1]))))} at n = {n:,}")
    return ", ".join(parts)


def _together(rows: Sequence[Mapping[str, Any]]) -> str:
    """How often each fault was found where it is not, over its worlds and sizes, with Wilson's interval."""
    parts = []
    for fault in dict.fromkeys(r["fault"] for r in rows if r["kind"] == "null"):
        all_of = sum((_rates(r) for r in rows if r["fault"] == fault and r["kind"] == "null"), Rates())
        low, high = (float(e) for e in wilson(all_of.words["found"], all_of.runs))
        parts.append(
            f"{fault} {all_of.words['found']:,} of {all_of.runs:,} draws, {all_of.rate('found'):.1%} [{low:.1%}, {high:.1%}]"
        )
    return "; ".join(parts) or "there are none"


def _range(shares: Collection[float]) -> str:
    ends = [f"{f(shares):.0%}" for f in (min, max)] if shares else [""]
    return " to ".join(dict.fromkeys(ends))
