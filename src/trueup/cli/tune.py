"""The command that trains an adapter."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import Annotated

import typer

from trueup.cli.exits import sentences
from trueup.cli.jobs import job_options
from trueup.cli.options import (
    Classes,
    Cluster,
    Data,
    Device,
    Dtype,
    Force,
    Label,
    Limit,
    Model,
    Out,
    Pickle,
    Quantize,
    Quiet,
    Remote,
    Revision,
    Second,
    Split,
    TemplateText,
    Text,
    TuneMaxLength,
    TuneSeed,
    Verbaliser,
)
from trueup.cli.printing import say
from trueup.cli.progress import progress_bars


class Kind(StrEnum):
    """Kinds of adapter that `tune` trains."""

    prompt = "prompt"
    prefix = "prefix"
    p_tuning = "p-tuning"
    lora = "lora"


def tune(
    kind: Annotated[Kind, typer.Argument(metavar="KIND", help="The kind of adapter.")],
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
    given = job_options(locals(), "tune")
    with sentences():
        from trueup.tuning import tune as run_tune
        from trueup.tuning import tune_job

        job_fields = {k: v for k, v in given.items() if k != "adapter"}
        job = tune_job(
            job_fields, kind=kind.value, rank=rank, tokens=tokens, start=start, lr=lr, epochs=epochs, batch=batch
        )

        with progress_bars(quiet) as progress:
            tuned = run_tune(job, out, force=force, progress=progress)
        if not quiet and int(os.environ.get("RANK", 0)) == 0:
            for note in tuned.notes:
                say(note)
            say(
                f"Trained {tuned.trained:,} of {tuned.weights:,} weights for {tuned.epochs} epoch{'s' * (tuned.epochs > 1)} "
                f"(kept epoch {tuned.best_epoch + 1}). Accuracy: validation {tuned.validation_accuracy:.3f}, test "
                f"{tuned.accuracy:.3f}."
            )
            say(f"Adapter: {tuned.folder}")
