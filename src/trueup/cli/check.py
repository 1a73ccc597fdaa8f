"""Commands that examine a model: check, audit, repair, rerun, scout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trueup.cli.exits import is_first, refuse_several, sentences
from trueup.cli.jobs import do_job, job_options, start_job
from trueup.cli.options import (
    FAULTS,
    Adapter,
    Chat,
    Classes,
    Cluster,
    Confounder,
    Data,
    Demos,
    Device,
    DeviceMap,
    DropIn,
    Dtype,
    FailOn,
    Force,
    Gate,
    Header,
    HeldOut,
    Json,
    Junit,
    Keep,
    Knobs,
    Label,
    Leak,
    Limit,
    MaxCost,
    MaxLength,
    Model,
    Out,
    Pickle,
    Push,
    Quantize,
    Quiet,
    Remote,
    Revision,
    Second,
    Seed,
    ShotsOption,
    Split,
    Take,
    TemplateText,
    TestFile,
    Text,
    Verbaliser,
    faults_like,
)
from trueup.cli.printing import say, show
from trueup.cli.progress import progress_bars


def check(
    model: Model, data: Data, out: Out, adapter: Adapter = None, text: Text = "text", label: Label = "label",
    second: Second = None, confounder: Confounder = None, cluster: Cluster = None, split: Split = None,
    held_out: HeldOut = False, test: TestFile = None, allow_leak: Leak = False, limit: Limit = None, seed: Seed = None,
    fault: Annotated[
        list[str] | None,
        typer.Option("--fault", help=f"Examine only this fault: {FAULTS}. Repeatable.", autocompletion=faults_like),
    ] = None,
    classes: Classes = None, template: TemplateText = None, verbaliser: Verbaliser = None, shots: ShotsOption = None,
    chat: Chat = False, demos: Demos = None, header: Header = None, max_length: MaxLength = None, device: Device = None,
    dtype: Dtype = None, quantize: Quantize = None, device_map: DeviceMap = None, revision: Revision = None,
    allow_pickle: Pickle = False, trust_remote_code: Remote = False, knobs: Knobs = None, force: Force = False,
    quiet: Quiet = False, as_json: Json = False, fail_on: FailOn = Gate.found, junit: Junit = None, keep: Keep = False,
    max_cost: MaxCost = None, take: Take = None, drop_in: DropIn = False, push_to_hub: Push = None,
) -> None:  # fmt: skip
    """Look for faults, repair them, look again, and report what the repairs gained and cost.

    Example: trueup check my-org/model --adapter adapter --data reviews.csv --text review --label stars -o out
    """
    given = job_options(locals(), "check")
    start_job(given, tuple(fault or ()), out, force, quiet, as_json, fail_on, junit, push_to_hub)


def audit(
    fault: Annotated[str, typer.Argument(metavar="FAULT", help=f"Which fault to look for: {FAULTS}.", autocompletion=faults_like)],
    model: Model, data: Data, out: Out, adapter: Adapter = None, text: Text = "text", label: Label = "label",
    second: Second = None, confounder: Confounder = None, cluster: Cluster = None, split: Split = None,
    held_out: HeldOut = False, test: TestFile = None, allow_leak: Leak = False, limit: Limit = None, seed: Seed = None,
    classes: Classes = None, template: TemplateText = None, verbaliser: Verbaliser = None, shots: ShotsOption = None,
    chat: Chat = False, demos: Demos = None, header: Header = None, max_length: MaxLength = None, device: Device = None,
    dtype: Dtype = None, quantize: Quantize = None, device_map: DeviceMap = None, revision: Revision = None,
    allow_pickle: Pickle = False, trust_remote_code: Remote = False, knobs: Knobs = None, force: Force = False,
    quiet: Quiet = False, as_json: Json = False, fail_on: FailOn = Gate.found, junit: Junit = None,
) -> None:  # fmt: skip
    """Look for one fault and change nothing.

    Example: trueup audit confounding my-org/model --adapter adapter --data reviews.csv --confounder site -o out
    """
    given = job_options(locals(), "audit")
    start_job(given, (fault,), out, force, quiet, as_json, fail_on, junit)


def repair(
    fault: Annotated[str, typer.Argument(metavar="FAULT", help=f"Which fault to repair: {FAULTS}.", autocompletion=faults_like)],
    model: Model, data: Data, out: Out, adapter: Adapter = None, text: Text = "text", label: Label = "label",
    second: Second = None, confounder: Confounder = None, cluster: Cluster = None, split: Split = None,
    held_out: HeldOut = False, test: TestFile = None, allow_leak: Leak = False, limit: Limit = None, seed: Seed = None,
    classes: Classes = None, template: TemplateText = None, verbaliser: Verbaliser = None, shots: ShotsOption = None,
    chat: Chat = False, demos: Demos = None, header: Header = None, max_length: MaxLength = None, device: Device = None,
    dtype: Dtype = None, quantize: Quantize = None, device_map: DeviceMap = None, revision: Revision = None,
    allow_pickle: Pickle = False, trust_remote_code: Remote = False, knobs: Knobs = None, force: Force = False,
    quiet: Quiet = False, as_json: Json = False, fail_on: FailOn = Gate.found, junit: Junit = None, keep: Keep = False,
    max_cost: MaxCost = None, take: Take = None, drop_in: DropIn = False, push_to_hub: Push = None,
) -> None:  # fmt: skip
    """Repair one fault. This is `check` for that fault only. The repaired adapter is written to OUT/FAULT.

    Example: trueup repair overconfidence my-org/model --adapter adapter --data reviews.csv -o out
    """
    given = job_options(locals(), "check")
    start_job(given, (fault,), out, force, quiet, as_json, fail_on, junit, push_to_hub)


def rerun(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="A folder that check, audit, repair or rerun wrote.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The folder to write. Default: OLD, which needs --force.")] = None,
    force: Force = False, quiet: Quiet = False, as_json: Json = False, fail_on: FailOn = Gate.found, junit: Junit = None,
) -> None:  # fmt: skip
    """Run a finished check again with the settings in its job.json, for example on changed data or with a new version of trueup.

    Run it in the folder where the first check was run: relative paths start there.

    Example: trueup rerun out -o out-again
    """
    with sentences(silent=not is_first()):
        from trueup.job import read_job

        do_job(read_job(old), old if out is None else out, force, quiet, as_json, fail_on, junit)


SCOUT_CODES = (
    "Exit code 0: the search is complete, whatever it found. 2: the input cannot be used. 3: an error of trueup itself."
)


def scout(
    model: Model, data: Data, out: Out, adapter: Adapter = None, text: Text = "text", label: Label = "label",
    second: Second = None, cluster: Cluster = None, split: Split = None, held_out: HeldOut = False, test: TestFile = None,
    allow_leak: Leak = False, limit: Limit = None, seed: Seed = None, classes: Classes = None, template: TemplateText = None,
    verbaliser: Verbaliser = None, max_length: MaxLength = None, device: Device = None, dtype: Dtype = None,
    quantize: Quantize = None, device_map: DeviceMap = None, revision: Revision = None, allow_pickle: Pickle = False,
    trust_remote_code: Remote = False, force: Force = False, quiet: Quiet = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Search for shortcuts that the classifier relies on: other columns, surface cues of the text, words, hidden clusters.

    Example: trueup scout my-org/model --adapter adapter --data reviews.csv -o scouted
    """
    given = job_options(locals(), "scout")
    with sentences():
        refuse_several("A scout", "Run it by itself.")
        from trueup.job import Job
        from trueup.scouting import run_scout
        from trueup.store.atomic import json_bytes

        with progress_bars(quiet) as progress:
            found = run_scout(Job(**given), out, force=force, progress=progress)
        if as_json:
            print(json_bytes(found.as_dict()).decode().rstrip("\n"))  # as scout.json has it
        elif not quiet:
            from trueup.report.scouted import scout_table
            from trueup.report.words import onward_step

            show(scout_table(found))
            say(f"Page: {out / 'report.html'}")
            if found.onward:
                say(f"{onward_step(found.onward)}: {found.onward}")
