"""The options that several commands share, each with its help, and the panels in which the help shows them."""

from __future__ import annotations

import pkgutil
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from trueup.errors import TrueupError

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
"""Panel of the help -> names of the parameters whose options it shows, for commands that take a model."""
FAULTS = ", ".join(sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parents[1] / "faults")]) if m.ispkg))
"""The names of all faults, from their folders, so that the help needs to load none of them."""


def faults_like(incomplete: str) -> list[str]:
    return [name for name in FAULTS.split(", ") if name.startswith(incomplete)]


class Panelled(TyperCommand):
    """A command whose help shows options by `PANELS`, and all other options under "Options"."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        panel = {name: title for title, names in PANELS.items() for name in names}
        order = list(panel)
        for p in self.params:
            if p.param_type_name == "option" and p.name in panel:
                p.rich_help_panel = panel[p.name]  # pyright: ignore[reportAttributeAccessIssue]
        # Typer orders panels by their first option, so options are sorted by panel. Arguments stay in front.
        self.params.sort(key=lambda p: order.index(p.name) if p.param_type_name == "option" and p.name in panel else -1)


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
        help="A column that should not matter for the label, such as the site. scout:1 takes the first column that `trueup scout` "
        "finds. Repeatable.",
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
        "--held-out",
        help="The model was not trained on any row of --data. Half of the rows are used for calibration, half for testing.",
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
    """When the exit code is 1 (`trueup.report.ci.fails`)."""

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
        help="The accuracy that a repair may cost on data like the test rows, as a share of rows. Default: 0.02.",
    ),
]
Take = Annotated[
    str | None,
    typer.Option(
        "--take",
        metavar="NAME",
        help="Take this repair from the list in the report instead of the best one within --max-cost.",
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
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        min=0,
        max=2**32 - 1,
        help="The seed of all random choices. Default: the seed of an adapter that `trueup tune` made, otherwise 0.",
    ),
]
TuneSeed = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="The seed of all random choices.")]
Classes = Annotated[
    str | None,
    typer.Option("--classes", help='The class names in the order of the logits, separated by commas: a,b,"c, d".'),
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
        help="A file with fixed demonstrations, which precede every query in this order. It has the same columns as --data.",
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
Device = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda or mps. Default: the first available one of cuda, mps and cpu."),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype", help="The number type of the base: float32, bfloat16, float16, or auto for that of the checkpoint."
    ),
]
Quantize = Annotated[
    str | None, typer.Option("--quantize", help="4bit or 8bit: load the base in 4 or 8 bits with bitsandbytes.")
]
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
    """An output folder with ``~`` expanded: shells do not expand it in ``--out=~/x`` and in quoted words."""
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
Json = Annotated[bool, typer.Option("--json", help="Print the results as JSON instead of tables.")]
Push = Annotated[
    str | None,
    typer.Option("--push-to-hub", metavar="OWNER/NAME", help="Upload the repaired adapter to the Hugging Face hub."),
]
