"""Commands that use the results of a check: report, compare, export, schema."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from trueup.cli.exits import sentences
from trueup.cli.options import FailOn, Force, Gate, Json, Junit, Out, Quiet
from trueup.cli.printing import say, show
from trueup.cli.reports import exit_code, tell, write_junit
from trueup.errors import BadInput


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
    with sentences():
        from trueup.report import bundle, ci

        if as_json and markdown:
            raise BadInput("--json and --markdown are two ways to print one report. Give one of them.")
        finished_report = bundle.read(out)
        write_junit(finished_report, fail_on, junit)
        if markdown:
            say(ci.markdown(finished_report))
        else:
            tell(finished_report, out, False, as_json)
        raise typer.Exit(exit_code(finished_report, fail_on))


COMPARE_CODES = (
    "Exit code 0: no severity rose measurably. 1: at least one did. 2: a folder holds no finished check, or the checks "
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
    with sentences():
        from trueup.changes import compare as changes
        from trueup.changes import options
        from trueup.report import bundle
        from trueup.report.table import changes_table
        from trueup.report.values import plain

        earlier_report, later_report = bundle.read(old), bundle.read(new)
        differences_found = changes(earlier_report, later_report)
        if as_json:
            differences = [
                {
                    "fault": c.after.fault, "word": c.word, "paired": c.paired, "before": c.before.severity,
                    "after": c.after.severity, "differences": c.differences, "settings": c.settings,
                }
                for c in differences_found
            ]  # fmt: skip
            print(json.dumps(plain(differences), indent=2))
        else:
            show(changes_table([(c.comparison, c.paired) for c in differences_found]))
            for option, (first_value, second_value) in options(earlier_report, later_report).items():
                say(f"The two checks differ in {option}: {first_value} in the first, {second_value} in the second.")
            for c in differences_found:
                for knob, (first_value, second_value) in c.settings.items():
                    say(
                        f"The two checks differ in a setting: {c.after.fault}.{knob} was {first_value!r}, and is {second_value!r}."
                    )
        raise typer.Exit(int(any(c.word == "worse" for c in differences_found)))


class FormName(StrEnum):
    """Forms in which a repair is exported."""

    merged = "merged"
    lora = "lora"
    onnx = "onnx"


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
    with sentences("Nothing was written."):
        from trueup.exporting import export as write

        result = write(repair, form.value, out, fault=fault, model=model, force=force)
        if not quiet:
            say(
                f"Exported: {result.folder} ({result.form}{f', rank {result.rank}' if result.rank else ''})\n{result.sentence}"
            )


def schema() -> None:
    """Print the JSON schema of findings.json. Its `$id` ends in a version number, which increases whenever a key changes."""
    from importlib.resources import files

    say((files("trueup.report") / "findings.schema.json").read_text(encoding="utf-8").rstrip("\n"))
