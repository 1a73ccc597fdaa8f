"""Commands that repeat the experiments behind trueup's claims."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from trueup.cli.early import check_names, refuse_taken
from trueup.cli.exits import sentences
from trueup.cli.options import Force, Out, Quiet, TuneSeed
from trueup.cli.printing import say, say_unless
from trueup.cli.sweep import Address, Collect, EngineName, EngineOption, Gpus, ListCells, Only, Shard, Workers, sweep

bench = typer.Typer(
    no_args_is_help=True,
    help="Repeat the experiments behind trueup's own claims: experiments of the papers, and simulated data.",
)


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
    """Which tasks a small transformer learns with a prefix (arXiv 2310.19698), with equal tuning effort or as published
    (--paper)."""
    with sentences():
        refuse_taken(out, force)
        from trueup.experiments import rigidity

        settings = rigidity.Settings(seeds, width, steps, paper=paper, only=tuple(only or ()))
        _bench(rigidity, settings, out, force, quiet)


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
    with sentences():
        refuse_taken(out, force)
        from trueup.job import faults_of

        faults_of(fault or ())  # a wrong name is reported before scipy is loaded
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
    """Compare trueup's faster computations with the usual ones: equality of the results, and CPU seconds (lowest of several
    runs)."""
    with sentences():
        refuse_taken(out, force)
        from trueup.experiments import speed

        result = _bench(speed, speed.Settings(tuple(case.value for case in only or ())), out, force, quiet)
        if wrong := speed.failed(result):
            say(f"trueup: the results differ, so there is no ratio: {'; '.join(wrong)}.", file=sys.stderr)
            raise typer.Exit(3)


@bench.command("cost")
def bench_cost(out: Out, force: Force = False, quiet: Quiet = False) -> None:
    """Time and memory of a forward pass, for random models of up to 1B parameters in float32, bfloat16 and 4 bits."""
    with sentences():
        refuse_taken(out, force)
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
    with sentences():
        refuse_taken(out, force)
        check_names(model, [name for name in task or () if name != "recall"])
        from trueup.experiments import curve

        settings = curve.Settings(model, tuple(task or curve.TASKS), tuple(size or curve.SIZES), seeds)
        _bench(curve, settings, out, force, quiet)


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
    """Whether pruning units that were found on one in-context task helps other tasks, as arXiv 2410.01288 claims."""
    with sentences():
        refuse_taken(out, force)
        check_names(model, [f"task:{name.removeprefix('task:')}" for name in source or ()])
        from trueup.experiments import transfer

        settings = transfer.Settings(model, tuple(source or transfer.SOURCES), seed=seed)
        _bench(transfer, settings, out, force, quiet)


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

        with sentences():
            # Made for --list too: without its files, the cells would be listed as cells that cannot be run.
            file = presets.file_of(name, preset.value, make=not collect, say=say_unless(quiet))
        try:
            sweep(
                file, out, list_=list_, workers=workers, shard=shard, only=only, collect=collect, engine=engine,
                address=address, gpus=gpus, quiet=quiet,
            )  # fmt: skip
        except typer.Exit as e:
            if e.exit_code > 1:  # exit code 1 (a fault was found) is a normal result of an experiment
                raise
        if not (list_ or shard):
            with sentences():
                from trueup.experiments import tables

                tables.write(out, name, say_unless(quiet))

    command.__doc__ = about
    bench.command(name)(command)


def _bench(experiment: Any, settings: Any, out: Path, force: bool, quiet: bool) -> dict[str, Any]:
    print_line = say_unless(quiet)
    result = experiment.run(out, settings, force=force, say=print_line)
    print_line("")
    print_line(experiment.table(result))
    return result


_compared(
    "confounding",
    "All repairs of confounding on held-out texts, over several seeds: hybrid prompt arithmetic (HyPA) and other methods.",
)
_compared(
    "copying",
    "Pruning of the units that copy (arXiv 2410.01288), compared with attention heads, a penalty, and random units.",
)
_compared("examples", "Real classifiers, tuned and then checked, with an example of each verdict on each fault.")
_compared(
    "overconfidence",
    "All confidence scores on LoRA classifiers, over several seeds: AdUE, ALIEN and other methods.",
)
_compared(
    "representation",
    "How far hybrid prompt arithmetic (HyPA) makes an attribute less used by the answers, and less present in the last layer.",
)
