"""argv -> Job -> exit code: the only place for typer, printing and exiting.

Exit codes: 0 no fault was found; 1 one was, or what --fail-on says; 2 the input cannot be used, or a fault asked
for by name could not be examined (one sentence says why); 3 an error of trueup itself, which costs other faults nothing; 130
interrupted, or 128 and the number of the signal that ended it.
"""

from __future__ import annotations

import errno
import json
import os
import pkgutil
import re
import shlex
import signal
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from trueup import __version__
from trueup.errors import (
    OFFLINE,
    BadInput,
    OutOfMemory,
    TrueupError,
    did_you_mean,
    listing,
    out_of_memory,
    visible,
)

CODES = (
    "Exit code 0: no fault was found. 1: a fault was found (--fail-on changes that). 2: the input cannot be used, or a fault "
    "asked for by name could not be examined. 3: an error of trueup itself; the findings of the other faults are in the output "
    "folder. 130: interrupted; 143: ended by a scheduler."
)

PANELS = {
    "Model": (
        "adapter", "classes", "max_length", "revision", "device", "dtype", "quantize", "device_map", "allow_pickle",
        "trust_remote_code", "template", "verbaliser",
    ),
    "Data": (
        "data", "text", "label", "second", "confounder", "cluster", "split", "held_out", "test", "allow_leak", "limit", "seed",
    ),
    "Few-shot prompts": ("shots", "chat", "demos", "header"),
    "Faults and repairs": ("fault", "knobs", "max_cost", "take", "drop_in", "keep"),
    "Output": ("out", "force", "quiet", "as_json", "markdown", "fail_on", "junit", "push_to_hub"),
}  # fmt: skip
"""Where the help of a command that takes a model shows each option, by the name of its parameter."""


FAULTS = ", ".join(sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent / "faults")]) if m.ispkg))
"""The faults there are, by their folders: the help names them without loading one."""


def _faults(incomplete: str) -> list[str]:
    return [name for name in FAULTS.split(", ") if name.startswith(incomplete)]


class _Panelled(TyperCommand):
    """A command whose options stand in `PANELS`; any other among "Options"."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        panel = {name: title for title, names in PANELS.items() for name in names}
        order = list(panel)
        for p in self.params:
            if p.param_type_name == "option" and p.name in panel:
                p.rich_help_panel = panel[p.name]  # pyright: ignore[reportAttributeAccessIssue]
        # The first option of a panel gives the panel its place; arguments keep theirs.
        self.params.sort(key=lambda p: order.index(p.name) if p.param_type_name == "option" and p.name in panel else -1)


app = typer.Typer(
    name="trueup", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich",
    epilog=CODES,
    help="Find the quiet faults of adapted language models and repair them. Every repair is a plain PEFT adapter.",
)  # fmt: skip

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="The base model: a hub id, a local folder, or embedded:NAME (minilm, mpnet, smollm2, gemma3-270m).",
    ),
]
Adapter = Annotated[str | None, typer.Option("--adapter", help="The PEFT adapter: a folder or a hub id.")]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        help="The labelled texts: a csv, tsv, json, jsonl or parquet file, a hub data set, embedded:NAME, "
        "confounded:NAME:ALPHA, or task:NAME.",
    ),
]
Text = Annotated[str, typer.Option("--text", help="The column with the text.")]
Label = Annotated[str, typer.Option("--label", help="The column with the class.")]
Second = Annotated[
    str | None, typer.Option("--second", help="The column with the second text, if the task is about pairs.")
]
Confounder = Annotated[
    list[str] | None,
    typer.Option(
        "--confounder",
        help="A column that should not matter, such as the site. scout:1 takes the first one that `trueup scout` finds. "
        "Repeatable.",
    ),
]
Cluster = Annotated[
    str | None,
    typer.Option(
        "--cluster", help="The column that says which rows belong together, such as the patient or the author."
    ),
]
Split = Annotated[str | None, typer.Option("--split", help="The column that says train, calibration or test.")]
HeldOut = Annotated[
    bool,
    typer.Option(
        "--held-out", help="The model was not trained on any row of --data. Half of the rows calibrate, half test."
    ),
]
TestFile = Annotated[
    str | None,
    typer.Option(
        "--test",
        metavar="FILE",
        help="A file with the test rows and the same columns as --data. The rows of --data then count as training rows.",
    ),
]
Leak = Annotated[
    bool,
    typer.Option(
        "--allow-leak",
        help="Accept splits that share texts or clusters. The results are then better than they would be on new texts.",
    ),
]


class Gate(StrEnum):
    """What makes the exit code 1, as `trueup.report.ci.fails` reads it."""

    found = "found"
    undecided = "undecided"
    reduced = "reduced"


FailOn = Annotated[
    Gate,
    typer.Option(
        "--fail-on",
        help="When the exit code is 1. found: the model has a fault before any repair. undecided: it has a fault, or the verdict "
        "is undecided. reduced: it has a fault, and the repaired adapter is not clear of it.",
    ),
]
Junit = Annotated[
    Path | None, typer.Option("--junit", metavar="FILE", help="Also write the verdicts as JUnit XML, for a CI system.")
]
Keep = Annotated[bool, typer.Option("--keep", help="Also save repairs that show no measurable gain on the test rows.")]
MaxCost = Annotated[
    float | None,
    typer.Option(
        "--max-cost",
        min=0.0,
        max=1.0,
        help="The accuracy that a repair may cost on data like the test rows. Default: 0.02.",
    ),
]
Take = Annotated[
    str | None,
    typer.Option(
        "--take",
        metavar="NAME",
        help="Take this repair from the list in the report, in place of the best one within --max-cost.",
    ),
]
DropIn = Annotated[
    bool,
    typer.Option(
        "--drop-in",
        help="Repair overconfidence with a temperature only, so that the model keeps one output for each class.",
    ),
]
Limit = Annotated[int | None, typer.Option("--limit", min=3, help="Use a random subset of at most this many rows.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, max=2**32 - 1, help="The seed of all random choices.")]
TuneSeed = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="The seed of all random choices.")]
Classes = Annotated[
    str | None, typer.Option("--classes", help='The class names in the order of the logits: a,b,"c, d".')
]
TemplateText = Annotated[
    str | None,
    typer.Option("--template", help=r"For a causal model: the prompt, which contains {text}. \n is a line break."),
]
Verbaliser = Annotated[
    str | None,
    typer.Option("--verbaliser", help="For a causal model: the answer words, one for each class: ' good, bad'."),
]
ShotsOption = Annotated[
    int | None,
    typer.Option(
        "--shots",
        min=0,
        help="The number of demonstrations before each query. --template is then one demonstration: '{text} -> {label}'.",
    ),
]
Chat = Annotated[
    bool,
    typer.Option(
        "--chat", help="Write the demonstrations and the query as a chat, with the tokenizer's chat template."
    ),
]
Demos = Annotated[
    str | None,
    typer.Option(
        "--demos",
        metavar="FILE",
        help="A file with the demonstrations of every query, in this order, and the same columns as --data.",
    ),
]
Header = Annotated[
    str | None,
    typer.Option(
        "--header", metavar="TEXT", help="A line before the first demonstration. With --chat: the system message."
    ),
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        "--max-length",
        min=4,
        help="The longest input in tokens. Default: the length that `trueup tune` used, otherwise the limit of the model.",
    ),
]
TuneMaxLength = Annotated[
    int | None,
    typer.Option(
        "--max-length",
        min=4,
        help="The longest input in tokens. Default: 256, or the limit of the model if it is lower.",
    ),
]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda or mps. Default: the fastest one available.")]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype", help="The number type of the base: float32, bfloat16, float16, or auto for that of the checkpoint."
    ),
]
Quantize = Annotated[str | None, typer.Option("--quantize", help="Load the base in 4bit or 8bit (bitsandbytes).")]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        "--device-map",
        help="auto, or a JSON file that maps modules to devices (cpu, disk, cuda:0). Not together with --device.",
    ),
]
Revision = Annotated[str | None, typer.Option("--revision", help="The revision of the model on the hub.")]
Pickle = Annotated[bool, typer.Option("--allow-pickle", help="Load weights that are not in safetensors files.")]
Remote = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python code from the model's repository.")]


def _followed(out: Path) -> Path:
    """An output folder as the system follows its name: shells leave the ``~`` of ``--out=~/x`` and of quoted words as it is."""
    from trueup.store.inputs import path_of

    try:
        return path_of(out)
    except TrueupError as e:
        raise typer.BadParameter(str(e)) from e


Out = Annotated[Path, typer.Option("-o", "--out", help="The folder to write.", callback=_followed)]
Force = Annotated[bool, typer.Option("--force", help="Replace the folder if trueup wrote it.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors.")]
Knobs = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FAULT.SETTING=VALUE",
        help="Change a setting of a fault; `trueup faults NAME` lists them. Repeatable.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the findings as JSON instead of tables.")]
Push = Annotated[
    str | None,
    typer.Option("--push-to-hub", metavar="OWNER/NAME", help="Upload the repaired adapter to the Hugging Face hub."),
]


class Kind(StrEnum):
    """Kinds of adapter that `tune` trains."""

    prompt = "prompt"
    prefix = "prefix"
    p_tuning = "p-tuning"
    lora = "lora"


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    offline: Annotated[
        bool,
        typer.Option("--offline", envvar=OFFLINE, help="Use no network: no model hub and no package index."),
    ] = False,
) -> None:
    if offline:
        os.environ |= {OFFLINE: "1", "HF_HUB_OFFLINE": "1"}
    if version:
        _say(f"trueup {__version__}")
        raise typer.Exit


@app.command(epilog=CODES, cls=_Panelled)
def check(
    model: Model, data: Data, out: Out, adapter: Adapter = None, text: Text = "text", label: Label = "label",
    second: Second = None, confounder: Confounder = None, cluster: Cluster = None, split: Split = None,
    held_out: HeldOut = False, test: TestFile = None, allow_leak: Leak = False, limit: Limit = None, seed: Seed = None,
    fault: Annotated[
        list[str] | None,
        typer.Option("--fault", help=f"Examine only this fault: {FAULTS}. Repeatable.", autocompletion=_faults),
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
    given = _given(locals(), "check")
    _run_job(given, tuple(fault or ()), out, force, quiet, as_json, fail_on, junit, push_to_hub)


@app.command(epilog=CODES, cls=_Panelled)
def audit(
    fault: Annotated[str, typer.Argument(metavar="FAULT", help=f"Which fault to look for: {FAULTS}.", autocompletion=_faults)],
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
    given = _given(locals(), "audit")
    _run_job(given, (fault,), out, force, quiet, as_json, fail_on, junit)


@app.command(epilog=CODES, cls=_Panelled)
def repair(
    fault: Annotated[str, typer.Argument(metavar="FAULT", help=f"Which fault to repair: {FAULTS}.", autocompletion=_faults)],
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
    given = _given(locals(), "check")
    _run_job(given, (fault,), out, force, quiet, as_json, fail_on, junit, push_to_hub)


@app.command(epilog=CODES)
def report(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that check, audit or repair wrote.")],
    as_json: Json = False,
    markdown: Annotated[
        bool,
        typer.Option("--markdown", help="Print a Markdown summary, for $GITHUB_STEP_SUMMARY or a merge request."),
    ] = False,
    fail_on: FailOn = Gate.found,
    junit: Junit = None,
) -> None:
    """Print the results of a finished check again, and the path of its page.

    Example: trueup report out --markdown --fail-on reduced
    """
    with _sentences():
        from trueup.report import bundle, ci

        if as_json and markdown:
            raise BadInput("--json and --markdown are two ways to print one report. Give one of them.")
        done = bundle.read(out)
        _write_junit(done, fail_on, junit)
        if markdown:
            _say(ci.markdown(done))
        else:
            _tell(done, out, False, as_json)
        raise typer.Exit(_verdict(done, fail_on))


@app.command(epilog=CODES)
def rerun(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="A folder that check, audit, repair or rerun wrote.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The folder to write. Default: OLD, which needs --force.")] = None,
    force: Force = False, quiet: Quiet = False, as_json: Json = False, fail_on: FailOn = Gate.found, junit: Junit = None,
) -> None:  # fmt: skip
    """Run a finished check again with the settings in its job.json, for example on changed data or with a new version of trueup.

    Run it in the folder where the first check was run: relative paths start there.

    Example: trueup rerun out -o out-again
    """
    with _sentences(silent=not _first()):
        from trueup.job import read_job

        _do(read_job(old), old if out is None else out, force, quiet, as_json, fail_on, junit)


@app.command()
def schema() -> None:
    """Print the JSON schema of findings.json. Its `$id` ends in a version number, which increases whenever a key changes."""
    from importlib.resources import files

    _say((files("trueup.report") / "findings.schema.json").read_text(encoding="utf-8").rstrip("\n"))


@app.command(
    epilog="Exit code 0: no severity rose measurably. 1: at least one did. 2: a folder holds no finished check, or the checks "
    "have no fault in common."
)
def compare(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="A folder that check, audit or repair wrote.")],
    new: Annotated[
        Path, typer.Argument(metavar="NEW", help="The folder of a later check, of the same or another model.")
    ],
    as_json: Json = False,
) -> None:
    """Show what changed between two finished checks. If their test texts are the same, the comparison is paired.

    Example: trueup compare out-old out-new
    """
    with _sentences():
        from trueup.changes import compare as changes
        from trueup.report.table import changes_table
        from trueup.report.values import plain

        found = changes(old, new)
        if as_json:
            told = [
                {
                    "fault": c.after.fault, "word": c.word, "paired": c.paired, "before": c.before.severity,
                    "after": c.after.severity, "differences": c.differences, "settings": c.settings,
                }
                for c in found
            ]  # fmt: skip
            print(json.dumps(plain(told), indent=2))
        else:
            _show(changes_table([(c.comparison, c.paired) for c in found]))
            for c in found:
                for knob, (was, now) in c.settings.items():
                    _say(f"The two checks differ in a setting: {c.after.fault}.{knob} was {was!r}, and is {now!r}.")
        raise typer.Exit(int(any(c.word == "worse" for c in found)))


@app.command(
    cls=_Panelled,
    epilog="Exit code 0: the search is complete, whatever it found. 2: the input cannot be used. 3: an error of trueup itself.",
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
    given = _given(locals(), "scout")
    with _sentences():
        _alone("A scout", "Run it by itself.")
        from trueup.job import Job
        from trueup.scouting import run_scout
        from trueup.store.atomic import json_bytes

        with _progress(quiet) as progress:
            found = run_scout(Job(**given), out, force=force, progress=progress)
        if as_json:
            print(json_bytes(found.as_dict()).decode().rstrip("\n"))  # as scout.json has it
        elif not quiet:
            from trueup.report.scouted import scout_table
            from trueup.report.words import onward_step

            _show(scout_table(found))
            _say(f"Page: {out / 'report.html'}")
            if found.onward:
                _say(f"{onward_step(found.onward)}: {found.onward}")


class FormName(StrEnum):
    """Forms in which a repair is exported."""

    merged = "merged"
    lora = "lora"
    onnx = "onnx"


@app.command()
def export(
    repair: Annotated[
        Path, typer.Argument(metavar="REPAIR", help="The folder of a repair, or the OUT folder of a check with a repair.")
    ],
    form: Annotated[
        FormName,
        typer.Option(
            "--as",
            help="merged: a transformers model without an adapter. lora: a plain LoRA with one rank. onnx: for ONNX Runtime.",
        ),
    ],
    out: Out,
    fault: Annotated[str | None, typer.Option("--fault", help="The repair to export, if OUT holds several.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="The base model, if it is no longer where the repair's card says.")
    ] = None,
    force: Force = False, quiet: Quiet = False,
) -> None:  # fmt: skip
    """Write a repair in a form that an inference server loads, and check that its logits are the same.

    Example: trueup export out --as merged -o served
    """
    with _sentences("Nothing was written."):
        from trueup.exporting import export as write

        done = write(repair, form.value, out, fault=fault, model=model, force=force)
        if not quiet:
            _say(f"Exported: {done.folder} ({done.form}{f', rank {done.rank}' if done.rank else ''})\n{done.sentence}")


@app.command(cls=_Panelled)
def tune(
    kind: Annotated[Kind, typer.Argument(help="The kind of adapter.")],
    model: Model, data: Data, out: Out, text: Text = "text", label: Label = "label", second: Second = None,
    cluster: Cluster = None, split: Split = None, limit: Limit = None, seed: TuneSeed = 0, classes: Classes = None,
    template: TemplateText = None, verbaliser: Verbaliser = None, max_length: TuneMaxLength = None, device: Device = None,
    dtype: Dtype = None, quantize: Quantize = None, revision: Revision = None, allow_pickle: Pickle = False,
    trust_remote_code: Remote = False,
    rank: Annotated[int | None, typer.Option("--rank", min=1, help="LoRA: the rank. Default: 8. Alpha is twice the rank.")] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=1, help="Prompt, prefix, p-tuning: the number of virtual tokens. Default: 10.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--start",
            help="Prompt: words whose embeddings are the initial prompt. Default: 'Classify the text by its meaning:'.",
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            "--lr",
            min=0.0,
            help="The peak learning rate. Default: 0.001 for p-tuning and lora, 0.01 for prompt and prefix.",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", min=1, help="The largest number of epochs; the best one is kept. Default: 4."),
    ] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="The batch size. Default: 32.")] = None,
    force: Force = False, quiet: Quiet = False,
) -> None:  # fmt: skip
    """Train a plain PEFT adapter. For a prompt, the untrained prompt P0 is saved as well: the repair of confounding needs it.

    Example: trueup tune lora my-org/model --data reviews.csv --text review --label stars -o adapter
    """
    given = _given(locals(), "tune")
    with _sentences():
        from trueup.tuning import tune as run_tune
        from trueup.tuning import tune_job

        kept = {k: v for k, v in given.items() if k != "adapter"}
        job = tune_job(kept, kind=kind.value, rank=rank, tokens=tokens, start=start, lr=lr, epochs=epochs, batch=batch)

        with _progress(quiet) as progress:
            tuned = run_tune(job, out, force=force, progress=progress)
        if not quiet and int(os.environ.get("RANK", 0)) == 0:
            for note in tuned.notes:
                _say(note)
            _say(
                f"Trained {tuned.trained:,} of {tuned.weights:,} weights for {tuned.epochs} epoch{'s' * (tuned.epochs > 1)} "
                f"(kept epoch {tuned.best_epoch + 1}). Accuracy: validation {tuned.validation_accuracy:.3f}, test "
                f"{tuned.accuracy:.3f}."
            )
            _say(f"Adapter: {tuned.folder}")


@app.command()
def faults(
    name: Annotated[
        str | None, typer.Argument(metavar="[FAULT]", help="A fault whose settings and defaults are listed.")
    ] = None,
) -> None:
    """List the faults that trueup examines and what each needs, or the settings of one fault."""
    with _sentences():
        from trueup.faults.fault import each_fault

        known = {f.name: f for f in each_fault()}
        if name is None:
            for fault in known.values():
                _say(f"{fault.name}: {fault.question}\n    needs {fault.needs.replace('`', '')}")
            _say("`trueup faults NAME` lists the settings of a fault.")
            return
        if name not in known:
            raise BadInput(f"There is no fault '{name}'.{did_you_mean(name, known)} There are {listing(known)}.")
        fault = known[name]
        _say(f"{fault.title}: {fault.question}\nSeverity: {fault.unit}. Higher is worse. Paper: {fault.paper}.")
        _say(f"Needs: {fault.needs.replace('`', '')}.\n\nSettings, each changed with --set {name}.SETTING=VALUE:")
        about = fault.described()
        for knob, value in fault.knobs().items():
            _say(f"\n  {knob} = {value!r}\n{textwrap.indent(_filled(about[knob].replace('``', '')), '    ')}")


def _filled(text: str) -> str:
    """The text in lines of 100 characters. They end at spaces only, so that `--option` stays whole."""
    return textwrap.fill(text, 100, break_on_hyphens=False)


@app.command()
def fetch(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="Embedded models and data sets: embedded:NAME.")
    ],
    accept_licence: Annotated[
        bool,
        typer.Option("--accept-licence", help="Accept the terms of a model that has terms. Read them first."),
    ] = False,
) -> None:
    """Download embedded models and data into the cache, for later use without a network.

    Example: trueup fetch embedded:minilm embedded:movie-reviews
    """
    with _sentences():
        from trueup.fetching import fetch as bring

        for name in names:
            _say(f"{name}: {bring(name, accept_licence=accept_licence)}", flush=True)


@app.command()
def demo(
    out: Out = Path("trueup-demo"),
    texts: Annotated[int, typer.Option("--texts", min=1000, help="The number of film reviews to use.")] = 4000,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Show everything on an embedded model and real film reviews: hide a shortcut, tune a LoRA, check it, write the report."""
    with _sentences("The same command with --force begins anew."):
        _free(out, force)
        from trueup.demo import onward, run

        say: Callable[[str], None] = (lambda s: None) if quiet else (lambda s: _say(s, flush=True))
        with _progress(quiet) as progress:
            done = run(out, texts=texts, say=say, progress=progress, force=force)
        if not quiet:
            _print_report(done, out / "report")
            _say(onward(done, out))


class EngineName(StrEnum):
    """Who does the cells of a sweep."""

    local = "local"
    ray = "ray"


class TrackerName(StrEnum):
    """Trackers that a sweep can tell its findings to."""

    trackio = "trackio"
    mlflow = "mlflow"


ListCells = Annotated[bool, typer.Option("--list", help="Print the cells with their state and cost, and run nothing.")]
Workers = Annotated[int, typer.Option("--workers", min=1, help="The number of processes that run cells in parallel.")]
Shard = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Run only part I of N, such as 2/8, in a job array. --collect then joins the parts.",
    ),
]
Only = Annotated[str | None, typer.Option("--only", metavar="failed", help="Run only the cells that failed before.")]
Collect = Annotated[
    list[Path] | None,
    typer.Option("--collect", metavar="DIR", help="Run nothing. Join the results of the parts in DIR. Repeatable."),
]
EngineOption = Annotated[
    EngineName, typer.Option("--engine", help="Where the cells run: on this machine, or on a Ray cluster.")
]
Address = Annotated[str, typer.Option("--address", help="Ray: the address of the cluster.")]
Gpus = Annotated[
    float, typer.Option("--gpus-per-cell", min=0.0, help="Ray: the GPUs for each cell; with 0.5, two cells share one.")
]


@app.command(
    epilog=CODES.replace("no fault was found", "no fault was found in any cell")
    .replace("a fault was found", "a fault was found in some cell")
    .replace("the input cannot be used", "the input of the sweep, or of a cell, cannot be used")
)
def sweep(
    file: Annotated[
        Path, typer.Argument(metavar="FILE.yaml", help="The sweep file: defaults, matrix, include, exclude, steps.")
    ],
    out: Out,
    list_: ListCells = False, workers: Workers = 1, shard: Shard = None, only: Only = None, collect: Collect = None,
    baseline: Annotated[
        Path | None,
        typer.Option("--baseline", metavar="DIR", help="An earlier sweep to compare with. Default: the last one in OUT."),
    ] = None,
    engine: EngineOption = EngineName.local, address: Address = "auto", gpus: Gpus = 0.0,
    track: Annotated[
        TrackerName | None, typer.Option("--track", help="Also log the findings to this tracker, which must be installed.")
    ] = None,
    quiet: Quiet = False, fail_on: FailOn = Gate.found,
) -> None:  # fmt: skip
    """Tune or check many adapters, data sets and seeds (cells), with one table and one page for all.

    The same command continues a sweep that was interrupted.

    Example: trueup sweep night.yaml -o out-all --workers 4
    """
    with _sentences():
        from trueup.run.engine import Here, Processes, Ray
        from trueup.sweeps import plan, run

        _alone("A sweep", "It starts processes of its own: give --workers, or --shard.")
        if shard is not None:  # an empty one, of a variable that is not set, is no part and not the whole
            plan.part_of(shard)
        if only not in (None, "failed"):
            raise BadInput(
                f"--only takes the word 'failed', and '{only}' was given.{did_you_mean(only, ['failed'])} Give that, or leave it "
                "out."
            )
        if engine is EngineName.local and (gpus or address != "auto"):
            raise BadInput("--address and --gpus-per-cell go with --engine ray; add it, or leave them out.")
        if engine is EngineName.ray and workers != 1:
            raise BadInput(
                "--workers goes with this machine's processes; on a Ray cluster each free core takes a cell. Leave it out."
            )
        if collect and (only or workers != 1 or engine is EngineName.ray or list_):
            raise BadInput(
                "--collect runs nothing, so --list, --only, --workers and --engine have no place beside it. Leave them out."
            )

        def note(sentence: str) -> None:
            _say(f"trueup: {sentence}", file=sys.stderr)

        if list_:
            _print_cells(run.left(file, out, part=shard or "", baseline=baseline, note=note))
            return
        who = Ray(address, gpus) if engine is EngineName.ray else Processes(workers) if workers > 1 else Here()
        with _progress(quiet) as progress:

            def told(record: Any, number: int, total: int) -> None:
                progress("cells", number, total)
                if not quiet:
                    _say(f"{number}/{total}  {_cell_line(out, record)}", flush=True)

            done = run.sweep(
                file, out, engine=who, part=shard or "", only_failed=only == "failed", collect=collect or (),
                baseline=baseline, track=None if track is None else track.value, told=told, note=note,
            )  # fmt: skip
        if not quiet and not shard:
            _say(f"Page: {out / run.PAGE}\nTable: {out / run.TABLE}")
        raise typer.Exit(_swept(done, fail_on))


def _print_cells(cells: Sequence[tuple[Any, str]]) -> None:
    from trueup.sweeps import cost

    total, unknown = 0.0, 0
    for cell, state in cells:
        seconds = cost.seconds(cell)
        total, unknown = total + (seconds or 0.0), unknown + (seconds is None)
        _say(f"{state:8}  {_about(seconds):>10}  {cell.name}")
    said = [f"some {_about(total)} of one core"] * (unknown < len(cells)) + [f"{unknown} of unknown cost"] * bool(
        unknown
    )
    _say(f"{len(cells)} cells, {' and '.join(said)}.")


def _about(seconds: float | None) -> str:
    """A cost to two digits: it is an estimate."""
    if seconds is None:
        return "?"
    for unit, size in (("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= size:
            return f"{float(f'{seconds / size:.2g}'):g} {unit}"
    return "1 s"


def _cell_line(out: Path, record: Any) -> str:
    """What a cell came to, in one line."""
    from trueup.report import bundle
    from trueup.report.words import interval, state_of
    from trueup.sweeps import cell

    said = []
    if record.state == "failed":
        said.append(f"failed: {record.error}")
    if record.tuned:
        said.append(f"accuracy {record.tuned['test_accuracy']:.3f}")
    folder = out / cell.CELLS / record.name / cell.REPORT
    if record.state == "done" and folder.is_dir():
        said += [f"{c.before.fault} {state_of(c)} {interval(c.before)}" for c in bundle.read(folder).comparisons]
    return f"{record.name}: {'; '.join(said)} ({record.cpu_seconds:.0f} s)"


def _swept(done: Any, fail_on: Gate) -> int:
    """The exit code of a sweep; what failed is told on standard error."""
    failed = done.failed
    for record in failed[:10]:
        _say(f"trueup: the cell '{record.name}' failed: {record.error}", file=sys.stderr)
    if len(failed) > 10:
        _say(f"trueup: {len(failed) - 10} more cells failed; the page names them.", file=sys.stderr)
    unexamined = [(name, fault, why) for name, faults in done.unexamined.items() for fault, why in faults.items()]
    for name, fault, why in unexamined[:10]:
        _say(f"trueup: in the cell '{name}' {fault} was not examined: {why}", file=sys.stderr)
    if len(unexamined) > 10:
        _say(f"trueup: {len(unexamined) - 10} more were not examined; the page names them.", file=sys.stderr)
    if waiting := done.waiting:
        _say(
            f"trueup: {len(waiting)} of {len(done.cells)} cells were not run, such as '{waiting[0]}'.", file=sys.stderr
        )
    if any(r.crash for r in done.records.values()):
        return 3
    if failed or unexamined or waiting:
        return 2
    return int(_fails((c for report in done.reports.values() for c in report.comparisons), fail_on))


bench = typer.Typer(
    no_args_is_help=True,
    help="Repeat the experiments behind trueup's own claims: experiments of the papers, and simulated data.",
)
app.add_typer(bench, name="bench")


@bench.command("rigidity")
def bench_rigidity(
    out: Out,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="The number of repetitions, each with its own pretraining.")] = 3,
    width: Annotated[
        int | None,
        typer.Option(
            "--width", min=8, help="The width of the widest model. Default: 96, or 256 with --paper.", show_default=False
        ),
    ] = None,
    steps: Annotated[float, typer.Option("--steps", help="A factor by which all numbers of training steps are multiplied.")] = 1.0,
    paper: Annotated[
        bool,
        typer.Option(
            "--paper",
            help="The experiments as published, with their learning rate, steps and models. This takes hours to days.",
        ),
    ] = False,
    only: Annotated[list[int] | None, typer.Option("--only", help="Run only this experiment, 1 to 4. Repeatable.")] = None,
    force: Force = False, quiet: Quiet = False,
) -> None:  # fmt: skip
    """What a prefix can teach a small transformer (arXiv 2310.19698), with equal tuning effort or as published (--paper)."""
    with _sentences():
        _free(out, force)
        from trueup.experiments import rigidity

        asked = rigidity.Settings(seeds, width, steps, paper=paper, only=tuple(only or ()))
        _bench(rigidity, asked, out, force, quiet)


@bench.command("verdicts")
def bench_verdicts(
    out: Out,
    runs: Annotated[int, typer.Option("--runs", min=1, help="The number of draws of each simulation at each size.")] = 200,
    sizes: Annotated[
        str, typer.Option("--sizes", help="The numbers of independent clusters, separated by commas.")
    ] = "60,200,1000,4000",
    fault: Annotated[list[str] | None, typer.Option("--fault", help="Run only the simulations of this fault. Repeatable.")] = None,
    seed: TuneSeed = 0, force: Force = False, quiet: Quiet = False,
) -> None:  # fmt: skip
    """How often each verdict is right, on simulated data with and without a fault. No model is run."""
    with _sentences():
        _free(out, force)
        from trueup.job import faults_of

        faults_of(fault or ())  # a slip in a name is told before scipy is loaded
        from trueup.experiments import verdicts

        numbers = tuple(int(n) if n.strip().isdigit() else 0 for n in sizes.split(","))
        _bench(verdicts, verdicts.Settings(runs, numbers, seed, tuple(fault or ())), out, force, quiet)


class SpeedCase(StrEnum):
    """Cases of the bench of speed (`trueup.experiments.speed.CASES`, which comes with torch)."""

    heads = "heads"
    features = "features"
    laplace = "laplace"
    tangent = "tangent"
    attention = "attention"
    demonstrations = "demonstrations"
    attributions = "attributions"
    check = "check"
    sweep = "sweep"


@bench.command("speed")
def bench_speed(
    out: Out,
    only: Annotated[list[SpeedCase] | None, typer.Option("--only", help="Run only this case. Repeatable.")] = None,
    force: Force = False, quiet: Quiet = False,
) -> None:  # fmt: skip
    """trueup's faster computations against the ordinary ones: equal results, then CPU seconds on one thread (best of several)."""
    with _sentences():
        _free(out, force)
        from trueup.experiments import speed

        result = _bench(speed, speed.Settings(tuple(case.value for case in only or ())), out, force, quiet)
        if wrong := speed.failed(result):
            _say(f"trueup: the results differ, so there is no ratio: {'; '.join(wrong)}.", file=sys.stderr)
            raise typer.Exit(3)


@bench.command("cost")
def bench_cost(out: Out, force: Force = False, quiet: Quiet = False) -> None:
    """Time and memory of a forward pass, for random models of up to 1B parameters in float32, bfloat16 and 4 bits."""
    with _sentences():
        _free(out, force)
        from trueup.experiments import cost

        _bench(cost, cost.Settings(), out, force, quiet)


@bench.command("curve")
def bench_curve(
    out: Out,
    model: Annotated[
        str, typer.Option("--model", help="The base of a classifier: a hub id, a local folder, or embedded:NAME.")
    ] = "embedded:minilm",
    task: Annotated[
        list[str] | None,
        typer.Option("--task", help="recall, or data as for `trueup check --data`. Repeatable. Default: three tasks."),
    ] = None,
    size: Annotated[
        list[int] | None, typer.Option("--size", min=1, help="The number of trained parameters. Repeatable. Default: three sizes.")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=2, help="How often each adapter is trained.")] = 3,
    force: Force = False, quiet: Quiet = False,
) -> None:  # fmt: skip
    """Accuracy by the number of trained parameters: a prompt, a prefix and LoRAs of equal size (arXiv 2310.19698)."""
    with _sentences():
        _free(out, force)
        _there(model, [name for name in task or () if name != "recall"])
        from trueup.experiments import curve

        asked = curve.Settings(model, tuple(task or curve.TASKS), tuple(size or curve.SIZES), seeds)
        _bench(curve, asked, out, force, quiet)


@bench.command("transfer")
def bench_transfer(
    out: Out,
    model: Annotated[
        str, typer.Option("--model", help="A causal model: a hub id, a local folder, or embedded:NAME.")
    ] = "embedded:smollm2",
    source: Annotated[
        list[str] | None, typer.Option("--source", help="The task on which the units are found. Repeatable. Default: three tasks.")
    ] = None,
    seed: TuneSeed = 0, force: Force = False, quiet: Quiet = False,
) -> None:  # fmt: skip
    """Whether units that copy, found on one in-context task, also help the other tasks, as arXiv 2410.01288 claims."""
    with _sentences():
        _free(out, force)
        _there(model, [f"task:{name.removeprefix('task:')}" for name in source or ()])
        from trueup.experiments import transfer

        asked = transfer.Settings(model, tuple(source or transfer.SOURCES), seed=seed)
        _bench(transfer, asked, out, force, quiet)


class Preset(StrEnum):
    """Sizes of an experiment."""

    small = "small"
    paper = "paper"


def _compared(name: str, about: str) -> None:
    """The command of an experiment that is a sweep."""

    def command(
        out: Out,
        preset: Annotated[
            Preset, typer.Option("--preset", help="small: embedded models, on a CPU. paper: the models of the paper, from the hub.")
        ] = Preset.small,
        list_: ListCells = False, workers: Workers = 1, shard: Shard = None, only: Only = None, collect: Collect = None,
        engine: EngineOption = EngineName.local, address: Address = "auto", gpus: Gpus = 0.0, quiet: Quiet = False,
    ) -> None:  # fmt: skip
        from trueup.experiments import presets

        with _sentences():
            file = presets.file_of(name, preset.value, make=not (list_ or collect))
        try:
            sweep(
                file, out, list_=list_, workers=workers, shard=shard, only=only, collect=collect, engine=engine,
                address=address, gpus=gpus, quiet=quiet,
            )  # fmt: skip
        except typer.Exit as e:
            if e.exit_code > 1:  # that a fault was found is what an experiment is about
                raise
        if not (list_ or shard):
            with _sentences():
                from trueup.experiments import tables

                tables.write(out, name, lambda text: None if quiet else _say(text, flush=True))

    command.__doc__ = about
    bench.command(name)(command)


_compared(
    "confounding",
    "Every repair of confounding on held-out texts, over several seeds: hybrid prompt arithmetic (HyPA) and its rivals.",
)
_compared(
    "copying",
    "Pruning of the units that copy (arXiv 2410.01288), compared with attention heads, a penalty, and random units.",
)
_compared("examples", "Real classifiers, tuned and then checked, with an example of each verdict on each fault.")
_compared(
    "overconfidence",
    "Every confidence score on LoRA classifiers, over several seeds: AdUE, ALIEN and their rivals.",
)


def _free(out: Path, force: bool) -> None:
    """Says that a folder is taken before the libraries are loaded that would fill it."""
    from trueup.store.atomic import refuse_taken

    refuse_taken(out, force)


def _there(model: str, data: Sequence[str]) -> None:
    """Tells slips in the names of a model and of data before the libraries are loaded."""
    from trueup.corpus.read import check_source
    from trueup.prepare import CHECKED, check_model

    check_model(model)
    for name in data:
        check_source(name, (), CHECKED)


def _bench(experiment: Any, settings: Any, out: Path, force: bool, quiet: bool) -> dict[str, Any]:
    say: Callable[[str], None] = (lambda s: None) if quiet else (lambda s: _say(s, flush=True))
    result = experiment.run(out, settings, force=force, say=say)
    say("")
    say(experiment.table(result))
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command ``trueup``. Exits; an option or argument that cannot be used is one sentence, too."""
    for name, value in _SURROUNDINGS.items():
        os.environ.setdefault(name, value)
    # Wherever it was said: it is of the whole run, and stands in front of the command.
    args = sorted(sys.argv[1:] if argv is None else argv, key=lambda arg: arg != "--offline")
    with _readers_may_go():
        _main(args)


def _main(argv: list[str]) -> None:
    try:
        code = app(args=argv, prog_name="trueup", standalone_mode=False)
    except _USAGE as e:
        if type(e).__name__ != "NoArgsIsHelpError":  # then the help is the answer, and was printed
            context = getattr(e, "ctx", None)
            at = context.command_path if context is not None else "trueup"
            said = " ".join(e.format_message().replace("Value error, ", "").split()).rstrip(".")
            if slip := re.search(r"'([^']*)' is not one of (.+)$", said):
                known = re.findall(r"'([^']*)'", slip[2])
                said = f"{said}.{did_you_mean(slip[1], known)}"
            elif possible := getattr(e, "possibilities", None):  # of an option that there is not
                said = f"{e.message.rstrip('.')}.{did_you_mean(e.option_name, possible)}"
            _say(f"trueup: {said}{'' if said.endswith(('.', '?')) else '.'} See `{at} --help`.", file=sys.stderr)
        sys.exit(2)
    except typer.Abort:
        sys.exit(130)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as e:  # a panic of a library written in Rust is no Exception
        from trueup.store.atomic import no_room

        if why := no_room(e):  # whatever library met it: what is printed may go to a full disk as well
            _say(
                f"trueup: A file cannot be written ({why}). Make room, then run the same command again.",
                file=sys.stderr,
            )
            sys.exit(2)
        # Python's own exit code for it is 1, which here says that a fault was found.
        _say("".join(traceback.format_exception(*sys.exc_info())).rstrip("\n"), file=sys.stderr)
        command = shlex.join(["trueup", *argv])
        _say(f"trueup: this is an error of trueup. Please report it with the lines above and the command: {command}",
              file=sys.stderr)  # fmt: skip
        sys.exit(3)
    sys.exit(code if isinstance(code, int) else 0)


# ------------------------------------------------------------------------------------------------------------ helpers

_SURROUNDINGS = {
    # Processes of trueup's own begin as `python -c`, which looks for modules in the current folder first: data may lie there.
    "PYTHONSAFEPATH": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0", "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # A thread that waits for another one sleeps. torch's spin, and beside other programs that takes twice as long (docs/costs.md).
    "OMP_WAIT_POLICY": "PASSIVE",
}  # fmt: skip
"""What the environment says of a run where the user says nothing: nobody is told of it, and other programs are left their time."""

_USAGE: Any = typer.BadParameter.__mro__[2]
"""What click, or the copy of it inside typer, raises for a wrong option, argument or command."""

_JOB = (
    "model", "data", "adapter", "text", "label", "second", "cluster", "split", "held_out", "test", "allow_leak", "keep",
    "limit", "seed", "template", "shots", "chat", "demos", "header", "max_length", "device", "dtype", "quantize", "device_map",
    "revision", "allow_pickle", "trust_remote_code",
)  # fmt: skip


def _say(text: str, *, file: Any = None, flush: bool = False) -> None:
    """Print what may hold names that strangers wrote: as text, whatever a terminal would take it for."""
    print(visible(text), file=file, flush=flush)


def _given(options: dict[str, Any], depth: str) -> dict[str, Any]:
    """The options that a Job shares with the command line, names split at commas."""
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


def _run_job(
    given: dict[str, Any], faults: tuple[str, ...], out: Path, force: bool, quiet: bool, as_json: bool, fail_on: Gate,
    junit: Path | None, repo: str | None = None,
) -> None:  # fmt: skip
    with _sentences(silent=not _first()):
        from trueup.job import Job

        knobs = _priced(_knobs(given["knobs"] or []), given.pop("price"), faults)
        _do(Job(**{**given, "knobs": knobs}, faults=faults), out, force, quiet, as_json, fail_on, junit, repo)


def _first() -> bool:
    """Whether this process prints and judges: of several processes of one run, only one does."""
    return int(os.environ.get("RANK", 0)) == 0


def _alone(what: str, cure: str) -> None:
    """Raises BadInput under ``accelerate launch``, where each process would write the same folder."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise BadInput(f"{what} is one process, and `accelerate launch` started several. {cure}")


def _do(
    job: Any, out: Path, force: bool, quiet: bool, as_json: bool, fail_on: Gate, junit: Path | None, repo: str | None = None
) -> None:  # fmt: skip
    """Run a job, tell what came of it, and exit."""
    from trueup.store.atomic import refuse_file
    from trueup.story import run_job

    if junit is not None:
        refuse_file(junit)
    if repo is not None:
        from trueup.subject import hub

        hub.allowed(repo)
    with _progress(quiet or not _first()) as progress:
        done = run_job(job, out, force=force, progress=progress)
    if not _first():
        return
    _write_junit(done, fail_on, junit)
    _tell(done, out, quiet, as_json)
    if repo is not None:
        _push(out, repo, [c.adapter for c in done.comparisons if c.adapter], quiet or as_json)
    raise typer.Exit(_verdict(done, fail_on))


def _write_junit(done: Any, fail_on: Gate, file: Path | None) -> None:
    if file is not None:
        from trueup.report import ci
        from trueup.store.atomic import refuse_file, write_text

        refuse_file(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, ci.junit(done, fail_on.value))


def _push(out: Path, repo: str, adapters: list[str], quiet: bool) -> None:
    """One adapter goes to the top of the repository, several go to folders of their own."""
    from trueup.subject import hub

    if not adapters:
        _say("Nothing was pushed: no repair was made.", file=sys.stderr)
    for name in adapters:
        with hub.publishable(out / name) as folder:
            if not quiet:
                files = ", ".join(f"{file} ({size:,} bytes)" for file, size in hub.contents(folder))
                _say(f"To be published in {repo}: {files}", flush=True)
            address = hub.push(folder, repo, within=name if len(adapters) > 1 else None, at=out / name)
        if not quiet:
            _say(f"Pushed: {name} to {address}")


def _knobs(words: list[str]) -> dict[str, dict[str, Any]]:
    knobs: dict[str, dict[str, Any]] = {}
    for word in words:
        name, equals, value = word.partition("=")
        fault, dot, knob = name.partition(".")
        if not equals or not dot:
            raise BadInput(f"--set {word!r} is not FAULT.SETTING=VALUE, for example overconfidence.threshold=0.25.")
        try:
            read = json.loads(value)
        except (ValueError, RecursionError):
            read = value  # a word: a knob that wants a number says so
        if read is None or isinstance(read, list | dict):
            read = value
        knobs.setdefault(fault, {})[knob] = read
    return knobs


def _priced(
    knobs: dict[str, dict[str, Any]], price: dict[str, Any], faults: tuple[str, ...]
) -> dict[str, dict[str, Any]]:
    """`--max-cost`, `--take` and `--drop-in` as the knobs that they are, of every fault that has them."""
    asked = {knob: value for knob, value in price.items() if value is not None}
    if not asked:
        return knobs
    from trueup.faults.fault import each_fault

    for knob, value in asked.items():
        having = [f.name for f in each_fault() if knob in f.knobs()]
        if faults and not set(faults) & set(having):
            raise BadInput(
                f"--{knob.replace('_', '-')} goes with the repair of {' and '.join(having)}, and not with that of "
                f"{' and '.join(faults)}."
            )
        for name in having:
            if not faults or name in faults:
                knobs.setdefault(name, {})[knob] = value
    return knobs


def _verdict(done: Any, fail_on: Gate) -> int:
    """The exit code of a report. A fault asked for by name that was not examined is told on standard error, and so is a crash."""
    from trueup.report.bundle import crash_file

    for fault, why in done.unexamined.items():
        _say(f"trueup: {fault} was not examined: {why}", file=sys.stderr)
    if done.crashes:
        _say(
            f"trueup: this is an error of trueup. Please report it with {', '.join(map(crash_file, done.crashes))} in the output "
            "folder, which holds the traceback. The rest of the report stands.",
            file=sys.stderr,
        )
        return 3
    return int(_fails(done.comparisons, fail_on)) or 2 * bool(done.unexamined)


def _fails(comparisons: Iterable[Any], fail_on: Gate) -> bool:
    from trueup.report import ci

    return any(ci.fails(c, fail_on.value) for c in comparisons)


def _tell(done: Any, out: Path, quiet: bool, as_json: bool) -> None:
    if as_json:
        text = (Path(out) / "findings.json").read_text(encoding="utf-8")
        # JSON's own escapes for what a terminal would obey: another spelling of the same values.
        odd = {ord(c): f"\\u{ord(c):04x}" for c in set(text) if visible(c) != c}
        print(text.translate(odd), end="")
    elif not quiet:
        _print_report(done, out)


def _print_report(done: Any, out: Path) -> None:
    from trueup.report.table import findings_table

    _show(findings_table(done))
    _say(f"Report: {Path(out) / 'report.html'}")
    for c in done.comparisons:
        if c.adapter:
            _say(f"Repaired adapter: {Path(out) / c.adapter}")


def _show(table: Any) -> None:
    """Print a table of `trueup.report.table`: in 80 columns where nobody looks. A command in it is longer, and is not cut."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 80, soft_wrap=False).print(table, crop=False)


@contextmanager
def _sentences(again: str = "The same command goes on where it stopped.", *, silent: bool = False) -> Iterator[None]:
    """What trueup raises on purpose becomes one sentence on standard error and exit code 2; `again` follows an interrupt. `silent`:
    another process says both, and ends the run: its launcher then stops this one by a signal."""
    try:
        with _ended_by_signals():
            yield
    except _Ended as e:
        if not silent:
            _say(f"trueup: stopped by {signal.Signals(e.number).name}. {again}", file=sys.stderr)
        raise typer.Exit(128 + e.number) from None
    except TrueupError as e:
        if silent:
            return
        _say(f"trueup: {e}", file=sys.stderr)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        if not silent:
            _say(f"trueup: stopped. {again}", file=sys.stderr)
        raise typer.Exit(130) from None
    except OSError as e:
        if e.errno == errno.ENAMETOOLONG:
            name = str(e.filename)
            shown = name if len(name) <= 80 else f"{name[:80]}…"
            _say(
                f"trueup: '{shown}' is too long for the name of a file. Check it, and give a shorter one.",
                file=sys.stderr,
            )
            raise typer.Exit(2) from None
        if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        where = f"'{e.filename}'" if e.filename else "A file"
        _say(
            f"trueup: {where} cannot be read or written ({e.strerror}). Make room or give rights there, then run the same "
            "command again: it goes on where it stopped.",
            file=sys.stderr,
        )
        raise typer.Exit(2) from None
    except (RuntimeError, MemoryError) as e:
        if not out_of_memory(e):
            raise
        _say(f"trueup: {OutOfMemory()}", file=sys.stderr)
        raise typer.Exit(2) from None


class _Heard:
    """A stream whose reader may go (`| head`): what is said after that is said to nobody, and costs no work and no verdict.

    The libraries below would exit with 1, which here says that a fault was found."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._gone()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._gone()

    def _gone(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _readers_may_go() -> Iterator[None]:
    streams: Any = sys.stdout, sys.stderr
    heard: Any = [_Heard(s) for s in streams]
    sys.stdout, sys.stderr = heard
    try:
        yield
    finally:
        for stream in heard:
            stream.flush()
        sys.stdout, sys.stderr = streams


class _Ended(SystemExit):
    """A signal asks the process to end. What may not hold up an exit does not hold up this either."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Raise `_Ended` where a scheduler or a closed terminal ends the process: it ends its workers and lets go of its folder."""

    def end(number: int, frame: Any) -> None:
        for n in ours:  # once: a second one would cut the leaving short
            signal.signal(n, signal.SIG_IGN)
        raise _Ended(number)

    asked = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    ours = [n for n in asked if signal.getsignal(n) is signal.SIG_DFL]  # one that is ignored, as nohup has it, stays so
    if threading.current_thread() is not threading.main_thread():
        ours = []
    for n in ours:
        signal.signal(n, end)
    try:
        yield
    finally:
        for n in ours:
            signal.signal(n, signal.SIG_DFL)


EVERY = 60.0
"""Seconds between two lines of a stage that takes long."""


def _stages() -> Callable[[str, int, int], None]:
    """What says a stage as one line, with the time since the start: ``[0:12] trying repairs: 1 of 8``."""
    began, told = time.monotonic(), {}

    def show(stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage in told and now - told[stage] < EVERY:
            return
        told[stage] = now
        minutes, seconds = divmod(int(now - began), 60)
        _say(f"[{minutes}:{seconds:02}] {stage}: {done:,} of {total:,}", file=sys.stderr, flush=True)

    return show


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """On standard error: first a note on untested versions; then on a terminal a bar per stage with the time that remains, and
    elsewhere a line per stage, and each minute one more: a CI system ends a job that says nothing."""
    if quiet:
        yield lambda stage, done, total: None
        return
    if not sys.stderr.isatty():
        yield _after_versions(_stages())
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bars = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=Console(stderr=True), transient=True,
    )  # fmt: skip
    tasks: dict[str, Any] = {}

    def show(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=total)
        bars.update(tasks[stage], completed=done, total=total)

    with bars:
        yield _after_versions(show)


def _after_versions(show: Callable[[str, int, int], None]) -> Callable[[str, int, int], None]:
    """`show`, with a note on untested versions before the first stage: a slip in a name is told without reading the versions."""
    told = False

    def first(stage: str, done: int, total: int) -> None:
        nonlocal told
        if not told:
            from trueup.versions import untested

            told = True
            if note := untested():
                _say(f"trueup: {note}", file=sys.stderr)
        show(stage, done, total)

    return first
