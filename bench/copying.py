"""Copying on a real decoder: every in-context task before and after its repair, beside the controls; one file a task.

python bench/copying.py WORK --task count-objects [--model embedded:smollm2] [--queries 100] [--repair]
python bench/copying.py WORK --table                                                      all of them, as markdown

A task in which no copying is found is audited only, unless --repair asks what pruning would do to it.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from trueup.corpus import tasks
from trueup.corpus.prompt import MODES
from trueup.faults.copying import Copying, repair
from trueup.faults.copying.proxy import proxy as counting
from trueup.faults.fault import NoRemedy
from trueup.run.edit import scaled
from trueup.run.predict import session
from trueup.run.prompts import with_pool
from trueup.subject.load import load

RANDOM = 3
"""Draws of random units that are judged with the units scaled everywhere, on the test split."""


def run(work: Path, task: str, model: str, queries: int, seed: int, always: bool) -> None:
    """Audit, repair, and on the test split: as it is, the published choice, ours where there is one, random units."""
    out = work / f"{model.rpartition(':')[2]}-{task}-{seed}.json"
    if out.is_file():
        return
    began = time.process_time()
    data = tasks.load(task, seed=seed)
    subject = with_pool(load(model, shots=4), data.part("train"))
    test = data.part("test")
    test = test.take(np.arange(min(queries, len(test))))
    fault = Copying(resamples=500)
    finding = fault.audit(subject, test, seed=seed)
    plain = repair.judged(repair.ask(subject, test, seed), test)

    result = {
        "task": task, "severity": [finding.severity, finding.low, finding.high], "sentence": finding.sentence,
        "measures": {k: [m.value, m.low, m.high] for k, m in finding.measures.items()},
        "rows": [repair.row_of(repair.AS_IT_IS, plain, plain, test, seed, 500)],
        "charts": {c.key: [asdict(s) for s in c.series] for c in finding.charts},
    }  # fmt: skip
    if not finding.found and not always:
        out.write_text(json.dumps(result, indent=1))
        print(task, finding.sentence, f"{time.process_time() - began:.0f} s", flush=True)
        return
    found = [repair.attributed(subject, data.part("train"), seed, repair.OWN)]
    found.append(repair.attributed(*counting(subject, seed=seed), seed, repair.PROXY))
    heads = repair.heads_of(subject, data.part("train"), seed, repair.OWN)
    remedy = repair.choose(subject, data.part("calibration"), found, heads, seed=seed, resamples=500)
    about = remedy.tried if isinstance(remedy, NoRemedy) else remedy.card
    # Candidates are a matter of the attributions alone; the published choice is judged first.
    theirs = next(r for r in about["candidates"] if r["units from"] == repair.PROXY)
    made = [c for f in found for c in repair.candidates(f)]
    published = next(c for c in made if (c.title, c.source) == (theirs["title"], theirs["units from"]))

    def with_units(title: str, c: repair.Candidate) -> dict:
        with scaled(subject, c.scales):
            got = repair.judged(repair.ask(subject, test, seed), test)
        return repair.row_of(replace(c, title=title), plain, got, test, seed, 500)

    rows = [*result["rows"], with_units(f"published ({published.title})", published)]
    rng, (layer,) = np.random.default_rng(seed), published.scales
    width = repair.width_of(subject, layer)
    for i in range(RANDOM):
        pairs = [(layer, int(u)) for u in rng.permutation(width)[: published.units]]
        random = repair.Candidate("control", "random units", repair.scales_of(pairs, width, 0.0), "nothing")
        rows.append(with_units(f"random units, draw {i + 1}", random))
    result |= {
        "rows": rows, "gap": about["completeness gap"], "repaired": False, "candidates": about["candidates"],
        "remedy": remedy.reason if isinstance(remedy, NoRemedy) else remedy.describe(), "controls": about.get("controls", []),
    }  # fmt: skip
    if not isinstance(remedy, NoRemedy):
        with remedy.on(subject) as repaired:
            got = repair.judged(repair.ask(repaired, test, seed), test)
            rows.insert(2, repair.row_of(replace(repair.AS_IT_IS, title="ours"), plain, got, test, seed, 500))
            harm = fault.harm(subject, repaired, test, seed=seed)
        result |= {"repaired": True, "harm": {k: [d.value, d.low, d.high] for k, d in harm.items()}}
        result["bytes"] = sum(p.stat().st_size for p in remedy.save(work / f"adapter-{task}").glob("adapter_*"))
    result |= {"notes": session().notes, "seconds": time.process_time() - began}
    out.write_text(json.dumps(result, indent=1))
    print(task, result["sentence"], result["remedy"], f"{result['seconds']:.0f} s", flush=True)


def table(work: Path) -> None:
    print("| task | what | accuracy, free | never shown | always shown | copies above chance | paired change [95%] |")
    print("|---|---|---|---|---|---|---|")
    for path in sorted(work.glob("*.json")):
        got = json.loads(path.read_text())
        rows = [r for r in got["rows"] if "random" not in r["title"]]
        drawn = [r for r in got["rows"] if "random" in r["title"]]
        extra = []
        if drawn:
            mean = {k: float(np.mean([r[k] for r in drawn])) for k in drawn[0] if isinstance(drawn[0][k], float)}
            extra = [mean | {"title": f"random units, mean of {len(drawn)}"}]
        for r in [*rows, *extra]:
            a = [f"{r[f'accuracy {m}']:.3f}" if f"accuracy {m}" in r else "" for m in MODES]
            change = "" if r["title"] == "as it is" else f"{r['change']:+.3f} [{r['low']:+.3f}, {r['high']:+.3f}]"
            print(f"| {got['task']} | {r['title']} | {' | '.join(a)} | {r['severity']:+.3f} | {change} |")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("work", type=Path)
    p.add_argument("--task", choices=tasks.TASKS)
    p.add_argument("--model", default="embedded:smollm2")
    p.add_argument("--queries", type=int, default=100)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--repair", action="store_true")
    p.add_argument("--table", action="store_true")
    a = p.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    if a.table:
        table(a.work)
    else:
        run(a.work, a.task, a.model, a.queries, a.seed, a.repair)


if __name__ == "__main__":
    main()
