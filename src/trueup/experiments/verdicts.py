"""How often each fault's verdict is right on simulated data (worlds) with a known truth, at several numbers of clusters.

Each fault's folder has its own worlds (``worlds.py``, `WORLDS`). The requirements: a verdict `found` in at
most 2.5% of draws of a null world (5% at the upper end of the Wilson interval) and in 80% of draws of a world with the fault at
1,000 clusters; and from 200 clusters on, 92 to 98% of 95% intervals contain the truth.
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
"""From this number of clusters on, 95% intervals must contain the truth as often as required."""
CHUNK = 20
"""The most draws that are lost when a run is killed."""


@dataclass(frozen=True)
class Settings:
    """Knobs of the bench.

    Attributes:
        runs: draws of each world at each size. sizes: numbers of independent test clusters; there are as many training clusters.
            seed: seed of all draws.
        faults: the faults whose worlds are drawn; empty for all.
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
        fault_names = [name.split(".")[-2] for name in _modules()]
        for name in self.faults:
            if name not in fault_names:
                raise BadInput(
                    f"No fault '{name}' has worlds.{did_you_mean(name, fault_names)} There are {listing(fault_names)}."
                )


def worlds() -> list[World]:
    """The worlds of all faults, sorted by fault."""
    return [world for name in _modules() for world in importlib.import_module(name).WORLDS]


def _modules() -> list[str]:
    """The names of the modules with the worlds of each fault, sorted."""
    import trueup.faults

    names = (
        f"{trueup.faults.__name__}.{m.name}.worlds" for m in pkgutil.iter_modules(trueup.faults.__path__) if m.ispkg
    )
    return sorted(name for name in names if importlib.util.find_spec(name) is not None)


def run(
    out: str | Path, settings: Settings, *, force: bool = False, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Judge every world, and write `out`/verdicts.json and `out`/verdicts.md. Returns the contents of verdicts.json.

    Finished draws are kept for a run that is killed and started again (`resumed.run`).

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
                rates_of_world = _kept(world, n, settings, parts, say)
                rows.append(
                    {"fault": world.fault, "world": world.name, "kind": world.kind, "n": n, **asdict(rates_of_world)}
                )
                say(f"{n:>5,}  {world.kind:5}  {world.fault}: {world.name}: {_words(rates_of_world)}")
        return {"settings": asdict(settings), "rows": rows}

    return resumed.run(out, "verdicts", resumed.code_of(trueup.measure, trueup.faults), make, table, force=force)


def _kept(world: World, n: int, settings: Settings, parts: resumed.Parts, say: Callable[[str], None]) -> Rates:
    """The rates of one world at one size, continued from where an earlier run stopped."""
    file = parts.file(world.fault, world.name, n, settings.seed)
    stored = resumed.kept_json(file, say)
    rates_so_far = Rates() if stored is None else _rates(stored)
    while rates_so_far.runs < settings.runs:
        rates_so_far += rates(
            world, n, min(CHUNK, settings.runs - rates_so_far.runs), settings.seed, first=rates_so_far.runs
        )
        resumed.keep(file, asdict(rates_so_far))
    return rates_so_far


def _rates(data: Mapping[str, Any]) -> Rates:
    return Rates(data["runs"], data["words"], {k: (v[0], v[1], v[2]) for k, v in data["held"].items()})


def _words(got: Rates) -> str:
    return ", ".join(f"{w} {got.rate(w):.1%}" for w in WORDS)


def _missed(row: Mapping[str, Any], got: Rates) -> list[str]:
    """The requirements that were missed by more than chance, in words."""
    low, high = (float(e) for e in wilson(got.words["found"], got.runs))
    failures = []
    if row["kind"] == "null" and low > 0.025:
        failures.append("found too often")
    if row["kind"] == "fault" and row["n"] == 1000 and high < 0.8:
        failures.append("found too rarely")
    if row["n"] >= HELD_FROM:
        for key, (below, inside, above) in got.held.items():
            interval = wilson(inside, below + inside + above)
            if float(interval[1]) < 0.92:
                failures.append(f"{key} covered {got.coverage(key):.0%}")
    return failures


def table(result: Mapping[str, Any]) -> str:
    """The rates as Markdown: a line for each world, with found and clear in per cent of the draws. The others are undecided."""
    sizes = list(dict.fromkeys(row["n"] for row in result["rows"]))
    lines = [
        f"| fault | world | {' | '.join(f'n = {n:,}' for n in sizes)} | coverage, severity | coverage, others | requirement "
        "missed |",
        "|---" * (len(sizes) + 5) + "|",
    ]
    rows = sorted(result["rows"], key=lambda r: (r["fault"], r["kind"] != "null"))
    for fault, world, kind in dict.fromkeys((r["fault"], r["world"], r["kind"]) for r in rows):
        row_of_size = {r["n"]: r for r in rows if (r["fault"], r["world"]) == (fault, world)}
        cells = [
            f"{rates_of_row.rate('found'):.0%} / {rates_of_row.rate('clear'):.0%}"
            for n in sizes
            if (rates_of_row := _rates(row_of_size[n]))
        ]
        large = sum((_rates(r) for n, r in row_of_size.items() if n >= HELD_FROM), Rates())
        coverages = {k: c for k in large.held if (c := large.coverage(k)) == c}
        severity = [coverages.pop("severity")] if "severity" in coverages else []
        failures = [f"{m} at {n:,}" for n, r in row_of_size.items() for m in _missed(r, _rates(r))]
        lines.append(
            f"| {fault} | {world}{'' if kind == 'null' else ' (fault)'} | {' | '.join(cells)} | "
            f"{_range(severity)} | {_range(coverages.values())} | "
            f"{', '.join(failures)} |"
        )
    return (
        f"Draws of each world: {_drawn(result['rows'])}. The columns of `n` give the percentage of draws that are "
        "found / clear. The other draws are undecided. *Coverage* is the percentage of 95% intervals that contain the true value, "
        f"for n = {HELD_FROM} and more. It is given for the severity, and for the other measures (lowest to highest).\n\n"
        + "\n".join(lines)
        + f"\n\nDraws that are *found*, over all worlds without the fault: {_together(rows)}.\n"
    )


def _drawn(rows: Sequence[Mapping[str, Any]]) -> str:
    """The number of draws of a world at each size, as text."""
    parts = []
    for n in dict.fromkeys(r["n"] for r in rows):
        runs = sorted({r["runs"] for r in rows if r["n"] == n})
        parts.append(f"{' to '.join(dict.fromkeys(map(str, (runs[0], runs[-1]))))} at n = {n:,}")
    return ", ".join(parts)


def _together(rows: Sequence[Mapping[str, Any]]) -> str:
    """How often each fault was found in worlds without it, over its worlds and sizes, with Wilson's interval, as text."""
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
