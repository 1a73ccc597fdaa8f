"""The loop that a user goes through, crash safety, and notes; bad input is in `test_bad_input.py`."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
from cli_cases import FAST, Said, audit_words, check_words, files_of, reviews, trueup, write_csv

from trueup import __version__
from trueup.run import memory
from trueup.store import atomic

SUBCOMMANDS = ("check", "audit", "repair", "report", "tune", "bench", "demo")


def findings(out: Path) -> dict:
    """findings.json, as text that is equal only for equal findings."""
    return json.loads((out / "findings.json").read_text())


def python(code: str, *argv: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, argv)], capture_output=True, text=True, env=env, cwd=cwd, timeout=300
    )


# ---------------------------------------------------------------------------------------------------------- the loop


def test_tune_writes_an_adapter_that_plain_peft_loads(world: Path) -> None:
    import peft
    import transformers

    card = json.loads((world / "adapter" / "trueup.json").read_text())
    assert card["classes"] == ["negative", "positive"]
    assert card["tuned"]["data"] == str(world / "data.csv")
    assert not (world / ".adapter.work").exists()
    base = transformers.AutoModelForSequenceClassification.from_pretrained(world / "bert", num_labels=2)
    assert peft.PeftModel.from_pretrained(base, str(world / "adapter")).active_adapter == "default"


def test_a_repaired_adapter_is_examined_on_what_it_has_not_seen(world: Path, tmp_path: Path) -> None:
    """Its card hands on which split the adapter was tuned on, and the repair learnt from."""
    from trueup.faults.confounding import Confounding
    from trueup.job import Job
    from trueup.prepare import open_job
    from trueup.subject.beside import read_card

    base, data = str(world / "bert"), str(world / "data.csv")
    tuned = trueup(
        "tune", "lora", base, "--data", data, "-o", tmp_path / "tuned", "--seed", 3, "--limit", 300, "--epochs", 1,
    )  # fmt: skip
    assert tuned.code == 0, tuned.err
    first = open_job(Job(base, data, adapter=str(tmp_path / "tuned")), read_card(tmp_path / "tuned"))
    Confounding().null(first[0]).save(tmp_path / "repaired")
    again = open_job(Job(base, data, adapter=str(tmp_path / "repaired")), read_card(tmp_path / "repaired"))
    assert (again[2], len(again[1])) == (first[2], len(first[1])) == (3, 300)
    assert again[1].fingerprint == first[1].fingerprint
    # One that came without a card, examined with a seed of the user's own.
    (tmp_path / "tuned" / "trueup.json").unlink()
    job = Job(base, data, adapter=str(tmp_path / "tuned"), seed=5, classes=("negative", "positive"))
    bare = open_job(job, {})
    Confounding().null(bare[0]).save(tmp_path / "repaired-5")
    at_5 = open_job(Job(base, data, adapter=str(tmp_path / "repaired-5")), read_card(tmp_path / "repaired-5"))
    assert at_5[2] == 5
    assert at_5[1].part("test").fingerprint == bare[1].part("test").fingerprint != first[1].part("test").fingerprint
    # Tuned on these data, repaired on others, and examined on these again: something of them has been seen.
    other = write_csv(tmp_path / "other.csv", reviews(400, seed=9))
    elsewhere = open_job(Job(base, str(other), adapter=str(tmp_path / "repaired")), read_card(tmp_path / "repaired"))
    Confounding().null(elsewhere[0]).save(tmp_path / "elsewhere")
    back = trueup(
        "audit", "overconfidence", base, "--adapter", tmp_path / "elsewhere", "--data", data, "-o", tmp_path / "back"
    )
    assert "was tuned on some rows of these data before" in " ".join(back.out.split())
    said = trueup(
        "audit", "overconfidence", base, "--adapter", tmp_path / "repaired", "--data", data, "-o", tmp_path / "out"
    )
    assert said.code in (0, 1), said.err
    assert "which examples the model was tuned on" not in said.out
    assert "another split" not in said.out


def test_check_writes_everything_and_tells_it(checked: tuple[Path, Said]) -> None:
    out, said = checked
    assert said.err == ""
    assert said.code in (0, 1)
    names = {p.name for p in out.iterdir()}
    assert {
        "findings.json",
        "job.json",
        "run.json",
        "report.html",
        "manifest.json",
        "samples",
        "overconfidence",
    } == names
    peak = json.loads((out / "run.json").read_text())["peak_bytes"]
    assert 1e8 < peak <= memory.peak(), "torch alone is larger"
    assert f"<bdi>{peak / 1e6:,.0f} MB</bdi>" in (out / "report.html").read_text()
    assert (out / "overconfidence" / "adapter_model.safetensors").is_file()
    assert f"Report: {out / 'report.html'}" in said.out
    assert f"Repaired adapter: {out / 'overconfidence'}" in said.out
    assert sorted(p.name for p in out.parent.iterdir()) == ["out"]


def test_report_prints_the_same_again(checked: tuple[Path, Said]) -> None:
    assert trueup("report", checked[0]) == checked[1]


def test_the_exit_code_is_the_verdict(world: Path, here: Path) -> None:
    words = audit_words(world)
    severity = 0.5
    for verdict, code, strict in (("found", 1, 1), ("clear", 0, 0), ("undecided", 0, 1)):
        threshold = {"found": 0.02, "clear": 0.95, "undecided": severity}[verdict]
        said = trueup(*words, "--set", f"overconfidence.threshold={threshold}", "-o", here / verdict)
        assert (said.code, said.err) == (code, "")
        told = findings(here / verdict)["comparisons"][0]["before"]
        severity = told["severity"]
        assert told["verdict"] == verdict
        assert trueup("report", here / verdict).code == code
        assert trueup("report", here / verdict, "--fail-on", "undecided").code == strict


@pytest.mark.parametrize(("threshold", "code"), [(0.95, 2), (0.02, 1)])
def test_a_fault_asked_for_that_could_not_be_examined_is_no_clean_bill(
    world: Path, here: Path, threshold: float, code: int
) -> None:
    words = [*check_words(world), "--set", f"overconfidence.threshold={threshold}", "-o", "out", "--quiet"]
    said = trueup(*words, "--fault", "overconfidence", "--fault", "confounding")
    why = "confounding was not examined: No column was named that should not matter; name one with --confounder COLUMN."
    assert (said.code, said.err) == (code, f"trueup: {why}\n")
    assert [c["before"]["fault"] for c in findings(here / "out")["comparisons"]] == ["overconfidence"]
    again = trueup("report", "out")
    assert (again.code, again.err) == (said.code, said.err)
    if code == 2:  # what nobody asked for by name is a note and no more
        said = trueup(*words, "--force")
        assert (said.code, said.err) == (0, "")
        assert why in notes(here / "out")


def test_a_reader_that_has_gone_changes_no_verdict(world: Path, here: Path) -> None:
    """As in `trueup report OUT | head -1`: a broken pipe would exit 1, which says that a fault was found."""
    words = [*audit_words(world), "--set", "overconfidence.threshold=0.95"]
    assert trueup(*words, "-o", "out").code == 0
    for more in ([], ["--json"]):
        command = [sys.executable, "-m", "trueup", "report", str(here / "out"), *more]
        done = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert done.stdout is not None
        assert done.stderr is not None
        done.stdout.close()
        assert done.stderr.read() == b""
        assert done.wait() == 0


def test_a_crash_is_not_a_fault_found(world: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trueup import story
    from trueup.errors import BadInput

    words = [str(w) for w in [*check_words(world), "--label", "the label", "-o", "out"]]
    raised: list[BaseException] = [RuntimeError("it broke"), BadInput("It is bad. Mend it."), KeyboardInterrupt()]

    def breaks(*_: object, **__: object) -> None:
        raise raised.pop(0)

    monkeypatch.setattr(story, "check_names", lambda job: None)
    monkeypatch.setattr(story, "open_job", breaks)
    crashed = trueup(*words)
    assert (crashed.code, crashed.out) == (3, "")
    *lines, last = crashed.err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1] == "RuntimeError: it broke"
    assert last.startswith("trueup: ")
    assert "report it" in last
    assert last.endswith(shlex.join(["trueup", *words]))
    assert trueup(*words) == Said(2, "", "trueup: It is bad. Mend it.\n")
    assert trueup(*words).code == 130
    assert not (here / "out").exists()


def test_what_is_held_out_is_enough_for_a_check(world: Path, adapter: Path, here: Path) -> None:
    (adapter / "trueup.json").unlink()
    parts = ["train"] * 60 + ["calibration"] * 120 + ["test"] * 160
    rows = [(*r, p) for r, p in zip(reviews(len(parts)), parts, strict=True)]
    for name, kept in (("held", rows[60:]), ("all", rows)):
        write_csv(here / f"{name}.csv", kept, ("text", "label", "part"))
        said = trueup(
            "check", world / "bert", "--adapter", adapter, "--data", f"{name}.csv", "--split", "part", "--classes",
            "negative,positive", *FAST, "-o", name,
        )  # fmt: skip
        assert (said.code in (0, 1), said.err) == (True, "")
        assert "which examples the model was tuned on" not in notes(here / name)
    (held,), (whole,) = (findings(here / name)["comparisons"] for name in ("held", "all"))
    assert findings(here / "held")["provenance"]["examples"] == {"train": 0, "calibration": 120, "test": 160}
    assert held["after"] is not None
    for key in ("severity", "low", "high", "sentence"):
        assert held["before"][key] == whole["before"][key]


def test_audit_writes_no_adapter_and_repair_does(world: Path, here: Path) -> None:
    assert trueup(*audit_words(world), "-o", "audited").code in (0, 1)
    assert {p.name for p in (here / "audited").iterdir()} == {
        "findings.json", "job.json", "run.json", "report.html", "manifest.json", "samples",
    }  # fmt: skip
    assert findings(here / "audited")["comparisons"][0]["after"] is None
    assert trueup("repair", "overconfidence", *check_words(world)[1:], "-o", "repaired").code in (0, 1)
    assert (here / "repaired" / "overconfidence" / "adapter_config.json").is_file()
    assert findings(here / "repaired")["comparisons"][0]["after"] is not None


def test_the_printed_command_repeats_the_run(checked: tuple[Path, Said], here: Path) -> None:
    words = shlex.split(findings(checked[0])["provenance"]["command"])
    assert words[0] == "trueup"
    assert words[-1] == "OUT"
    said = trueup(*words[1:-1], "again")
    assert said.code == checked[1].code
    assert files_of(here / "again") == files_of(checked[0])


def test_the_printed_command_of_an_audit_too(world: Path, here: Path) -> None:
    words = [
        *audit_words(world),
        "--seed",
        0,
        "--limit",
        400,
        "--classes",
        "positive,negative",
    ]
    trueup(*words, "--max-length", 16, "-o", "first")
    command = shlex.split(findings(here / "first")["provenance"]["command"])
    assert command[1:3] == ["audit", "overconfidence"]
    assert "--seed" in command
    trueup(*command[1:-1], "second")
    assert files_of(here / "second") == files_of(here / "first")


def test_the_repair_fits_the_adapter_loaded_again(checked: tuple[Path, Said], world: Path) -> None:
    """A base without a head gets a random one at each load, which must not make it another model."""
    import trueup as api
    from trueup.subject.subject import model_fingerprint

    first, second = (api.load(str(world / "bert"), str(world / "adapter")) for _ in range(2))
    assert model_fingerprint(first.model) == model_fingerprint(second.model)
    remedy = api.Overconfidence().read(checked[0] / "overconfidence", second)
    with remedy.on(second) as repaired:
        assert repaired.head is not None


def test_job_json_repeats_the_run(checked: tuple[Path, Said], here: Path) -> None:
    from trueup import Job, run_job

    job = Job.from_dict(json.loads((checked[0] / "job.json").read_text()))
    run_job(job, here / "again")
    assert files_of(here / "again") == files_of(checked[0])


def test_seed_zero_is_said_in_the_command() -> None:
    """An adapter's card may bring another seed than 0, so a command that left 0 out would not repeat the run."""
    from trueup.job import command_line

    assert "--seed 0" in command_line({"model": "m", "data": "d", "depth": "check", "seed": 0})
    said = command_line({"model": "m", "data": "d", "depth": "check", "knobs": {"a": {"on": True, "x": 0.5}}})
    assert "--set a.on=true --set a.x=0.5" in said


def test_what_no_one_command_does_is_not_written_as_one_that_does_something_else() -> None:
    from trueup.job import command_line

    one = {"model": "m", "data": "d", "depth": "audit", "faults": ("copying",)}
    assert command_line(one) == "trueup audit copying m --data d -o OUT"
    assert command_line(one | {"faults": ()}) is command_line(one | {"faults": ("copying", "rigidity")}) is None


@pytest.mark.parametrize("names", [("a", "b"), ("yes, sir", "no"), (' "so"', "a b", ""), ("two\nlines", '"'), ("one",)])
def test_names_in_a_command_are_read_as_they_were_written(names: tuple[str, ...]) -> None:
    from trueup.cli.jobs import job_options
    from trueup.job import command_line

    said = command_line({"model": "m", "data": "d", "classes": names, "verbaliser": names})
    words = shlex.split(said)
    given = job_options({k: words[words.index(f"--{k}") + 1] for k in ("classes", "verbaliser")}, "check")
    assert given["classes"] == given["verbaliser"] == names


def test_another_seed_is_another_run(world: Path, checked: tuple[Path, Said], here: Path) -> None:
    trueup(*audit_words(world), "--seed", 1, "-o", "other")
    a, b = (findings(f)["comparisons"][0]["before"]["severity"] for f in (here / "other", checked[0]))
    assert a != b


def test_tuning_twice_is_the_same_and_another_seed_is_not(world: Path, here: Path) -> None:
    words = ["tune", "prompt", world / "bert", "--data", world / "data.csv", "--epochs", 1, "--tokens", 3]
    for out, seed in (("a", 0), ("b", 0), ("c", 5)):
        assert trueup(*words, "--seed", seed, "-o", out).code == 0
    a, b, c = (files_of(here / out) for out in "abc")
    assert "p0.safetensors" in a
    assert a == b
    assert a["adapter_model.safetensors"] != c["adapter_model.safetensors"]


def test_a_tuned_adapter_is_examined_on_the_split_it_has_not_seen(world: Path, here: Path) -> None:
    words = [world / "bert", "--data", world / "data.csv", "--seed", 5, "--limit", 450]
    assert trueup("tune", "lora", *words, "--epochs", 1, "-o", "adapter").code == 0
    os.symlink(world / "data.csv", here / "link.csv")
    for data, out in ((world / "data.csv", "file"), ("link.csv", "out")):
        said = trueup(
            "audit", "overconfidence", world / "bert", "--adapter", "adapter", "--data", data, *FAST, "-o", out
        )
        assert said.code in (0, 1)
        assert "tuned on" not in notes(here / out)
        assert findings(here / out)["provenance"]["seed"] == 5
    again = shlex.split(findings(here / "out")["provenance"]["command"])
    trueup(*again[1:-1], "out2")
    assert files_of(here / "out2") == files_of(here / "out")


def test_a_causal_model_that_answers_with_a_word(world: Path, here: Path) -> None:
    said = trueup(
        "tune", "prompt", world / "gpt2", "--data", world / "data.csv", "--tokens", 3, "--epochs", 2, "-o", "adapter",
        "--template", r"{text}\nis", "--verbaliser", "negative,positive",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert json.loads((here / "adapter" / "trueup.json").read_text())["template"]["text"] == "{text}\nis"
    said = trueup("check", world / "gpt2", "--adapter", "adapter", "--data", world / "data.csv", *FAST, "-o", "out")
    assert said.code in (0, 1), said.err
    (c,) = findings(here / "out")["comparisons"]
    assert (here / "out" / "overconfidence" / "README.md").is_file() == (c["adapter"] is not None)


def test_a_limit_above_the_data_is_all_the_data(world: Path, here: Path) -> None:
    words = audit_words(world)
    trueup(*words, "-o", "all")
    trueup(*words, "--limit", 10_000, "-o", "limited")
    a, b = (files_of(here / o) for o in ("all", "limited"))
    assert a["samples/overconfidence-before.npz"] == b["samples/overconfidence-before.npz"]


def test_quiet_prints_nothing(world: Path, here: Path) -> None:
    said = trueup(*audit_words(world), "-o", "out", "--quiet")
    assert said.out == said.err == ""
    said = trueup("tune", "lora", world / "bert", "--data", world / "data.csv", "--epochs", 1, "-o", "tuned", "-q")
    assert said == Said(0, "", "")


def test_force_replaces_a_folder(world: Path, here: Path) -> None:
    with atomic.new_folder(here / "out") as earlier:
        (earlier / "old.txt").write_text("old")
    said = trueup(*audit_words(world), "-o", "out", "--force")
    assert said.code in (0, 1)
    assert not (here / "out" / "old.txt").exists()
    assert (here / "out" / "findings.json").is_file()
    assert [p.name for p in here.iterdir()] == ["out"]


# ------------------------------------------------------------------------------------------------------ crash safety

KILLED_CHECK = """
import json, os, signal, sys
from trueup import Job, run_job
def progress(stage, done, total):
    if stage == "trying candidates" and done == 2:
        os.kill(os.getpid(), signal.SIGKILL)
run_job(Job.from_dict(json.loads(open(sys.argv[1]).read())), sys.argv[2], progress=progress)
"""

KILLED_TUNE = """
import os, signal, sys
from trueup.subject.new_adapter import Lora
from trueup.tuning import TuneJob, tune
def progress(stage, done, total):
    if stage == "training" and done == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
job = TuneJob(sys.argv[1], sys.argv[2], Lora(rank=2, dropout=0.1), training={"epochs": 2, "save_every": 4})
tune(job, sys.argv[3], progress=progress)
"""


def test_a_killed_check_goes_on_where_it_stopped(checked: tuple[Path, Said], here: Path) -> None:
    from trueup import Job, run_job

    killed = python(KILLED_CHECK, checked[0] / "job.json", here / "out", cwd=here)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (here / "out").exists()
    assert list((here / ".out.work").iterdir())
    stages: list[str] = []
    job = Job.from_dict(json.loads((checked[0] / "job.json").read_text()))
    run_job(job, here / "out", progress=lambda stage, done, total: stages.append(stage))
    assert "features" not in stages, "finished passes through the model were not used"
    assert not (here / ".out.work").exists()
    assert files_of(here / "out") == files_of(checked[0])


@pytest.mark.parametrize("at", [3, 7, 18])
def test_a_killed_tune_ends_bit_for_bit_as_if_it_had_not_been(world: Path, here: Path, at: int) -> None:
    from trueup.subject.new_adapter import Lora
    from trueup.tuning import TuneJob, tune

    words = (world / "bert", world / "data.csv")
    killed = python(KILLED_TUNE, *words, here / "out", at, cwd=here)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (here / "out").exists()
    job = TuneJob(*map(str, words), Lora(rank=2, dropout=0.1), training={"epochs": 2, "save_every": 4})
    assert ("went on from step" in "".join(tune(job, here / "out").notes)) == (at > 4)
    assert "went on" not in "".join(tune(job, here / "whole").notes)
    assert files_of(here / "out") == files_of(here / "whole")
    assert not (here / ".out.work").exists()


def test_a_checkpoint_of_other_data_is_not_gone_on_from(world: Path, here: Path) -> None:
    from trueup.subject.new_adapter import Lora
    from trueup.tuning import TuneJob, tune

    class Stop(Exception):
        pass

    def stop(stage: str, done: int, total: int) -> None:
        if done == 6:
            raise Stop

    rows = [line.split(",") for line in (world / "data.csv").read_text().splitlines()[1:]]
    turned = write_csv(here / "data.csv", rows)
    job = TuneJob(str(world / "bert"), "data.csv", Lora(rank=2), training={"epochs": 1, "save_every": 2})
    with pytest.raises(Stop):
        tune(job, here / "out", progress=stop)
    assert (here / ".out.work" / "checkpoint").is_file()
    assert not (here / "out").exists()
    other = {"negative": "positive", "positive": "negative"}
    write_csv(turned, [(t, other[c]) for t, c in rows])
    assert "went on" not in "".join(tune(job, here / "out").notes)
    tune(job, here / "whole")
    assert files_of(here / "out") == files_of(here / "whole")


def test_ctrl_c_is_a_sentence_and_loses_nothing(world: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import contextmanager

    from trueup.cli import jobs

    @contextmanager
    def interrupted(quiet: bool):
        def progress(stage: str, done: int, total: int) -> None:
            if stage == "trying candidates":
                raise KeyboardInterrupt

        yield progress

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "progress_bars", interrupted)
        said = trueup(*check_words(world), "-o", "out")
    assert said == Said(130, "", "trueup: stopped. The same command goes on where it stopped.\n")
    assert [p.name for p in here.iterdir()] == [".out.work"]
    wrong = trueup(*check_words(world), "--label", "labell", "-o", "out")
    assert wrong.code == 2
    assert list((here / ".out.work").iterdir()), "a slip must not cost the finished work"
    assert trueup(*check_words(world), "-o", "out").code in (0, 1)
    assert [p.name for p in here.iterdir()] == ["out"]


def test_a_full_disk_is_a_sentence(world: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from trueup.report import bundle

    def full(report: object, folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "findings.json"))

    monkeypatch.setattr(bundle, "write", full)
    said = trueup(*audit_words(world), "-o", "out")
    assert said.code == 2
    assert said.err.count("\n") == 1
    assert "No space left on device" in said.err
    assert said.err.endswith("run the same command again: it goes on where it stopped.\n")
    assert [p.name for p in here.iterdir()] == [".out.work"]
    assert list((here / ".out.work").iterdir()), "and so it does: the passes through the model are kept"


# ------------------------------------------------------------------------------------------------ help, version, names


@pytest.mark.parametrize("words", [(), *((c,) for c in SUBCOMMANDS)])
def test_help(words: tuple[str, ...]) -> None:
    said = trueup(*words, "--help")
    assert said.code == 0
    assert said.err == ""
    assert "Usage: trueup" in said.out


def test_the_help_of_tune_says_what_the_code_does() -> None:
    from trueup.cli.tune import tune
    from trueup.run.train import Training
    from trueup.subject.checkpoint import LENGTH
    from trueup.subject.kinds import RECIPES, Lora, Prompt

    helps = {k: h.__metadata__[0].help for k, h in get_type_hints(tune, include_extras=True).items() if k != "return"}
    training = Training()
    for name, value in {
        "rank": Lora().rank, "tokens": Prompt().tokens, "start": repr(Prompt().start), "epochs": training.epochs,
        "batch": training.batch, "max_length": LENGTH,
    }.items():  # fmt: skip
        assert re.search(rf"Default: {re.escape(str(value))}(?![\d.]\d)", helps[name]), name
    assert {r().tokens for k, r in RECIPES.items() if k != "lora"} == {Prompt().tokens}
    for lr in {r.lr for r in RECIPES.values()}:
        assert f"{lr} for {' and '.join(k for k, r in RECIPES.items() if r.lr == lr)}" in helps["lr"]
    assert "the untrained prompt P0 is saved as well: the repair of confounding needs it" in " ".join(
        trueup("tune", "--help").out.split()
    )


@pytest.mark.parametrize("words", [(), ("check",), ("audit",), ("repair",), ("report",)])
def test_the_help_says_what_the_exit_codes_mean(words: tuple[str, ...]) -> None:
    from trueup.cli.exits import CODES

    assert CODES in " ".join(trueup(*words, "--help").out.split())


def test_json_instead_of_tables(checked: tuple[Path, Said]) -> None:
    said = trueup("report", checked[0], "--json")
    assert json.loads(said.out) == findings(checked[0])
    assert said.err == ""


def test_no_arguments_print_the_help() -> None:
    said = trueup()
    assert "Usage: trueup" in said.out
    assert said.err == ""


LIGHT = """
import sys
import trueup, trueup.cli
heavy = {"torch", "transformers", "peft", "sklearn", "scipy", "datasets", "accelerate", "altair"} & set(sys.modules)
assert not heavy, heavy
from trueup import __all__ as names
for name in names:
    assert getattr(trueup, name) is not None, name
"""


def test_the_command_line_starts_light_and_every_public_name_is_there() -> None:
    done = python(LIGHT)
    assert done.returncode == 0, done.stderr


VERBS = """
import os, sys
import torch, transformers, peft, accelerate, sklearn.linear_model  # once for all: the order of trueup's own imports is what counts
for first in sys.argv[1:]:
    if os.fork() == 0:
        import trueup
        exec(first)
        import trueup.run.predict, trueup.report.html, trueup.corpus.read, trueup.subject.load
        names = "check", "read", "load", "tune", "faults_of", "run_job"
        given = {}
        exec(f"from trueup import {', '.join(names)}", given)
        wrong = [n for n in names if not callable(getattr(trueup, n)) or not callable(given[n])]
        os._exit(bool(wrong) or not isinstance(trueup.Overconfidence, type))
    assert os.wait()[1] == 0, first
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Each order of imports runs in a process that is forked.")
def test_verbs_stay_callable_whatever_comes_first() -> None:
    """A folder of the package that is called like a verb would take its place once it is imported."""
    done = python(
        VERBS, "trueup.check", "import trueup.story, trueup.tuning, trueup.cli", "import trueup.report.bundle", "trueup.run_job"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_python_m_trueup() -> None:
    done = subprocess.run([sys.executable, "-m", "trueup", "--version"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"trueup {__version__}\n", "")


def test_the_installed_command_speaks_in_sentences(here: Path) -> None:
    command = Path(sys.executable).parent / "trueup"
    done = subprocess.run([command, "check", "m", "--data", "no.csv", "-o", "out"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("trueup: There is no file 'no.csv'.")
    assert done.stderr.count("\n") == 1


# -------------------------------------------------------------------------------------------------------------- notes


def notes(out: Path) -> str:
    return " ".join(findings(out)["notes"])


def test_no_note_on_the_split_the_adapter_was_tuned_with(checked: tuple[Path, Said]) -> None:
    effect, *said = findings(checked[0])["notes"]  # those that go with every check without --confounder and --shots
    assert effect.startswith("The adapter changes a logit by")
    assert [n.partition(" was not examined: ")[0] for n in said] == ["confounding", "copying", "rigidity"]
    assert "split" not in " ".join(said)


def test_a_note_when_the_split_is_another(world: Path, here: Path) -> None:
    words = audit_words(world)
    said = trueup(*words, "--seed", 3, "-o", "out")
    assert "tuned on another split" in notes(here / "out")
    assert "--seed 0" in notes(here / "out")
    assert "Notes" in said.out
    assert "another split" in (here / "out" / "report.html").read_text()
    trueup(*words, "--classes", "positive,negative", "-o", "turned")
    assert "split" not in notes(here / "turned"), "the order of the classes is no other split"


@pytest.mark.parametrize(("tested", "words", "told"), [("<1", (), True), ("<1", ("-q",), False), (">=1", (), False)])
def test_a_note_at_start_and_in_the_report_on_untested_versions(
    world: Path, here: Path, monkeypatch: pytest.MonkeyPatch, tested: str, words: tuple[str, ...], told: bool
) -> None:
    monkeypatch.setattr("trueup.versions.requires", lambda name: [f"transformers{tested}"])
    said = trueup(*audit_words(world), "-o", "out", *words)
    note = f"trueup {__version__} was not tested with transformers "
    assert said.err.startswith(f"trueup: {note}") == told
    assert (note in notes(here / "out")) == (tested == "<1"), "the report says it, whatever was printed"


def test_a_note_when_nothing_says_what_it_was_tuned_on(world: Path, adapter: Path, here: Path) -> None:
    (adapter / "trueup.json").unlink()
    words = [
        world / "bert",
        "--adapter",
        adapter,
        "--data",
        world / "data.csv",
        "--classes",
        "negative,positive",
        *FAST,
    ]
    trueup("audit", "overconfidence", *words, "-o", "out")
    assert (
        "trueup does not know which rows the model was trained on, so 720 of your 1,200 rows were set aside"
        in notes(here / "out")
    )
    trueup("audit", "overconfidence", *words, "--held-out", "-o", "held")
    assert "trueup does not know which rows" not in notes(here / "held")
    found = json.loads((here / "held" / "findings.json").read_text())["provenance"]
    assert found["examples"] == {"train": 0, "calibration": 600, "test": 600}
    assert "--held-out" in found["command"]
    write_csv(here / "more.csv", reviews(400, 1))
    assert trueup("audit", "overconfidence", *words, "--test", "more.csv", "-o", "apart").code in (0, 1)
    found = json.loads((here / "apart" / "findings.json").read_text())["provenance"]
    assert (found["examples"]["train"], found["data"]) == (1200, f"{world / 'data.csv'} and more.csv")
    assert "--test more.csv" in found["command"]


def test_a_note_when_tuning_taught_nothing(world: Path, here: Path) -> None:
    rows = reviews(400)
    few = [r for r in rows if r[1] == "positive"][:40]
    write_csv(here / "data.csv", [*few, *(r for r in rows if r[1] == "negative")])
    words = ["tune", "lora", world / "bert", "--data", "data.csv", "--rank", 2, "--max-length", 32]
    idle = trueup(*words, "--epochs", 1, "--lr", 1e-9, "-o", "idle")
    assert re.search(r"accuracy of 0\.\d+ is not above the 0\.\d+ of always answering 'negative'", idle.out), idle.out
    assert idle.code == 0
    words[4] = world / "data.csv"
    learnt = trueup(*words, "--epochs", 4, "--lr", 0.01, "-o", "learnt")
    assert "always answering" not in learnt.out


def test_a_note_when_memory_ran_out(world: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trueup.run import forward

    whole = forward.features

    def small(subject, batch, *more):
        if len(batch.ids) > 30:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return whole(subject, batch, *more)

    words = audit_words(world)
    trueup(*words, "-o", "roomy")
    monkeypatch.setattr(forward, "features", small)
    said = trueup(*words, "-o", "tight")
    assert said.code in (0, 1), said.err
    assert "Memory ran out; batches were halved to" in notes(here / "tight")
    assert "Memory ran out" in said.out
    assert "Memory ran out" in (here / "tight" / "report.html").read_text()
    a, b = (np.load(here / o / "samples" / "overconfidence-before.npz")["confidence"] for o in ("roomy", "tight"))
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_hub_adapter_brings_its_card(world: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [world / "bert", "--data", world / "data.csv", "--seed", 7, "--limit", 450]
    assert trueup("tune", "lora", *words, "--epochs", 1, "-o", "adapter").code == 0
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(here / "adapter"))
    monkeypatch.setenv("HF_HUB_CACHE", str(here / "hub"))  # the tests run offline: only what the cache has is asked for
    (here / "hub" / "models--org--name").mkdir(parents=True)
    said = trueup(
        "audit", "overconfidence", world / "bert", "--adapter", "org/name", "--data", world / "data.csv", *FAST, "-o", "out",
    )  # fmt: skip
    assert said.code in (0, 1), said.err
    assert findings(here / "out")["provenance"]["seed"] == 7
    assert "tuned on" not in notes(here / "out")
