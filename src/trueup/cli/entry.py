"""The command `trueup`: its commands in the order of the help, and its entry point."""

from __future__ import annotations

import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

from trueup import __version__
from trueup.cli import bench, check, results, start, sweep, tune
from trueup.cli.exits import CODES
from trueup.cli.options import Panelled
from trueup.cli.printing import readers_may_go, say
from trueup.errors import OFFLINE, did_you_mean

app = typer.Typer(
    name="trueup", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich",
    epilog=CODES,
    help="Find and repair faults of adapted language models that their accuracy does not show. Every repair is a plain PEFT "
    "adapter.",
)  # fmt: skip


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
        say(f"trueup {__version__}")
        raise typer.Exit


COMMANDS: Mapping[str, Sequence[tuple[Callable[..., None], Mapping[str, Any]]]] = {
    "First steps": (
        (start.demo, {}),
        (start.faults, {}),
        (tune.tune, {"cls": Panelled}),
        (start.fetch, {}),
    ),
    "Examine and repair": (
        (check.check, {"epilog": CODES, "cls": Panelled}),
        (check.audit, {"epilog": CODES, "cls": Panelled}),
        (check.repair, {"epilog": CODES, "cls": Panelled}),
        (check.scout, {"epilog": check.SCOUT_CODES, "cls": Panelled}),
        (sweep.sweep, {"epilog": sweep.SWEEP_CODES}),
    ),
    "Use the results": (
        (results.report, {"epilog": CODES}),
        (results.compare, {"epilog": results.COMPARE_CODES}),
        (check.rerun, {"epilog": CODES}),
        (results.export, {}),
        (results.schema, {}),
    ),
}
"""Every command except those of `bench`, by the panel of the help, with the keyword arguments for typer."""
for panel, commands in COMMANDS.items():
    for command, told in commands:
        app.command(rich_help_panel=panel, **told)(command)
app.add_typer(bench.bench, name="bench", rich_help_panel="Experiments")


_SURROUNDINGS = {
    # trueup starts processes with `python -c`, which imports from the current folder first. That folder may hold anything.
    "PYTHONSAFEPATH": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0", "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Waiting threads sleep. By default torch's threads spin, which takes twice as long next to other programs (docs/costs.md).
    "OMP_WAIT_POLICY": "PASSIVE",
}  # fmt: skip
"""Environment variables that are set where the user has not set them: no telemetry, and no CPU time for waiting threads."""
_USAGE: Any = typer.BadParameter.__mro__[2]
"""The exception of click, or of the copy of click inside typer, for a wrong option, argument or command."""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command ``trueup``. Exits. A wrong option or argument is reported in one sentence."""
    for name, value in _SURROUNDINGS.items():
        os.environ.setdefault(name, value)
    # --offline may be anywhere on the command line. It is an option of the whole program, so it is moved before the command.
    args = sorted(sys.argv[1:] if argv is None else argv, key=lambda arg: arg != "--offline")
    with readers_may_go():
        _main(args)


def _near(option: str, known: Sequence[str]) -> str:
    """`did_you_mean` for options, without their dashes, which would make any two options similar."""
    names = {k.removeprefix("--"): k for k in known}
    near = did_you_mean(option.removeprefix("--"), names)
    return near.replace("'", "'--", 1)


def _elsewhere(option: str, at: str) -> str:
    """A sentence on the commands that have an option that `at` lacks, after a space; empty where no command has it."""
    group: Any = typer.main.get_command(app)
    commands_with_option = [
        f"`trueup {name}`" for name, command in group.commands.items() if any(option in p.opts for p in command.params)
    ]
    if not commands_with_option:
        return ""
    if len(commands_with_option) > 3:
        commands_with_option[3:] = ["others"]
    listed_commands = " and ".join(
        [", ".join(commands_with_option[:-1]), commands_with_option[-1]]
        if len(commands_with_option) > 1
        else commands_with_option
    )
    return f" It is an option of {listed_commands}.{_INSTEAD.get((at, option)) or _INSTEAD.get((at, ''), '')}"


_INSTEAD = {
    ("trueup audit", "--fault"): " Name the fault first: `trueup audit FAULT MODEL ...`.",
    ("trueup repair", "--fault"): " Name the fault first: `trueup repair FAULT MODEL ...`.",
    ("trueup rerun", ""): " A rerun takes its settings from the job.json of the first run.",
    ("trueup sweep", ""): " A sweep takes the settings of its cells from its file.",
}
"""(command, option that it lacks) -> what to do instead. An empty option stands for any."""


def _main(argv: list[str]) -> None:
    try:
        code = app(args=argv, prog_name="trueup", standalone_mode=False)
    except _USAGE as e:
        if type(e).__name__ != "NoArgsIsHelpError":  # in that case the help was printed already
            context = getattr(e, "ctx", None)
            at = context.command_path if context is not None else "trueup"
            message = " ".join(e.format_message().replace("Value error, ", "").split()).rstrip(".")
            if choice_error := re.search(r"'([^']*)' is not one of (.+)$", message):
                choices = re.findall(r"'([^']*)'", choice_error[2])
                message = f"{message}.{did_you_mean(choice_error[1], choices)}"
            elif (option := getattr(e, "option_name", None)) is not None and hasattr(
                e, "possibilities"
            ):  # no such option
                message = f"{e.message.rstrip('.')}.{_elsewhere(option, at) or _near(option, e.possibilities or ())}"
            say(f"trueup: {message}{'' if message.endswith(('.', '?')) else '.'} See `{at} --help`.", file=sys.stderr)
        sys.exit(2)
    except typer.Abort:
        sys.exit(130)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as e:  # a panic of a library written in Rust is not an Exception
        from trueup.store.atomic import no_room

        if reason := no_room(e):  # in any library; printing to a file can fail in the same way
            say(
                f"trueup: A file cannot be written ({reason}). Make room, then run the same command again.",
                file=sys.stderr,
            )
            sys.exit(2)
        # Python's own exit code for an exception is 1, which here means that a fault was found.
        say("".join(traceback.format_exception(*sys.exc_info())).rstrip("\n"), file=sys.stderr)
        command = shlex.join(["trueup", *argv])
        say(f"trueup: this is an error of trueup. Please report it with the lines above and the command: {command}",
              file=sys.stderr)  # fmt: skip
        sys.exit(3)
    sys.exit(code if isinstance(code, int) else 0)
