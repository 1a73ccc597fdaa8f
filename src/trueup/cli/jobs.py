"""From options to a Job, and from a Job to an exit code."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import typer

from trueup.cli.exits import is_first, sentences
from trueup.cli.options import Gate
from trueup.cli.printing import say
from trueup.cli.progress import progress_bars
from trueup.cli.reports import exit_code, tell, write_junit
from trueup.errors import BadInput

_JOB = (
    "model", "data", "adapter", "text", "label", "second", "cluster", "split", "held_out", "test", "allow_leak", "keep",
    "limit", "seed", "template", "shots", "chat", "demos", "header", "max_length", "device", "dtype", "quantize", "device_map",
    "revision", "allow_pickle", "trust_remote_code",
)  # fmt: skip


def job_options(options: dict[str, Any], depth: str) -> dict[str, Any]:
    """The options of the command line that are fields of a Job. Lists of names are split at commas."""
    from trueup.job import names_in

    given = {k: options[k] for k in _JOB if k in options}
    for names in ("classes", "verbaliser"):
        given[names] = names_in(options[names]) if options.get(names) else None
    if depth not in ("tune", "scout"):
        given |= {"depth": depth, "confounder": tuple(options.get("confounder") or ()), "knobs": options.get("knobs")}
        given["price"] = {k: options.get(k) or None for k in ("take", "drop_in")} | {
            "max_cost": options.get("max_cost")
        }
    return given


def start_job(
    given: dict[str, Any], faults: tuple[str, ...], out: Path, force: bool, quiet: bool, as_json: bool, fail_on: Gate,
    junit: Path | None, repo: str | None = None,
) -> None:  # fmt: skip
    with sentences(silent=not is_first()):
        from trueup.job import Job

        knobs = priced(_knobs(given["knobs"] or []), given.pop("price"), faults)
        do_job(Job(**{**given, "knobs": knobs}, faults=faults), out, force, quiet, as_json, fail_on, junit, repo)


def do_job(
    job: Any, out: Path, force: bool, quiet: bool, as_json: bool, fail_on: Gate, junit: Path | None, repo: str | None = None
) -> None:  # fmt: skip
    """Run a job, print its results, and exit."""
    from trueup.store.atomic import refuse_file
    from trueup.story import run_job

    if junit is not None:
        refuse_file(junit)
    if repo is not None:
        from trueup.subject import hub

        hub.allowed(repo)
    with progress_bars(quiet or not is_first()) as progress:
        report = run_job(job, out, force=force, progress=progress)
    if not is_first():
        return
    write_junit(report, fail_on, junit)
    tell(report, out, quiet, as_json)
    if repo is not None:
        _push(out, repo, [c.adapter for c in report.comparisons if c.adapter], quiet or as_json)
    raise typer.Exit(exit_code(report, fail_on))


def _push(out: Path, repo: str, adapters: list[str], quiet: bool) -> None:
    """Upload the adapters: a single one to the top folder of the repository, several to a folder each."""
    from trueup.subject import hub

    if not adapters:
        say("Nothing was pushed: no repair was made.", file=sys.stderr)
    for name in adapters:
        with hub.publishable(out / name) as folder:
            if not quiet:
                files = ", ".join(f"{file} ({size:,} bytes)" for file, size in hub.contents(folder))
                say(f"To be published in {repo}: {files}", flush=True)
            address = hub.push(folder, repo, within=name if len(adapters) > 1 else None, at=out / name)
        if not quiet:
            say(f"Pushed: {name} to {address}")


def _knobs(words: list[str]) -> dict[str, dict[str, Any]]:
    knobs: dict[str, dict[str, Any]] = {}
    for word in words:
        name, equals, value = word.partition("=")
        fault, dot, knob = name.partition(".")
        if not equals or not dot:
            raise BadInput(f"--set {word!r} is not FAULT.SETTING=VALUE, for example overconfidence.threshold=0.25.")
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            parsed = value  # a word; a knob that needs a number refuses it
        if parsed is None or isinstance(parsed, list | dict):
            parsed = value
        knobs.setdefault(fault, {})[knob] = parsed
    return knobs


def priced(
    knobs: dict[str, dict[str, Any]], price: dict[str, Any], faults: tuple[str, ...]
) -> dict[str, dict[str, Any]]:
    """`knobs` with `--max-cost`, `--take` and `--drop-in` added, as knobs of every fault that has them."""
    requested = {knob: value for knob, value in price.items() if value is not None}
    if not requested:
        return knobs
    from trueup.faults.fault import each_fault

    for knob, value in requested.items():
        faults_with_knob = [f.name for f in each_fault() if knob in f.knobs()]
        if faults and not set(faults) & set(faults_with_knob):
            raise BadInput(
                f"--{knob.replace('_', '-')} goes with the repair of {' and '.join(faults_with_knob)}, and not with that of "
                f"{' and '.join(faults)}."
            )
        for name in faults_with_knob:
            if not faults or name in faults:
                knobs.setdefault(name, {})[knob] = value
    return knobs
