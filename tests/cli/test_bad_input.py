"""What cannot be used is one sentence on standard error, exit code 2, and nothing written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_cases import FAST, audit_words, check_words, reviews, trueup, write_csv
from safetensors.torch import load_file, save_file

from trueup.store import atomic


def refused(*words: object, says: tuple[str, ...] = (), here: Path | None = None) -> str:
    """Runs the command and asserts all that is promised of a refusal; returns the sentence."""
    here = here or Path.cwd()
    before = sorted(here.rglob("*"))
    said = trueup(*words)
    assert said.code == 2, said
    assert said.out == ""
    assert said.err.startswith("trueup: "), said.err
    assert said.err.endswith("\n"), said.err
    assert said.err.count("\n") == 1, said.err
    assert "Traceback" not in said.err, said.err
    assert said.err.rstrip()[-1] in ".?)", said.err
    for part in says:
        assert part in said.err, said.err
    assert sorted(here.rglob("*")) == before, "something was written"
    return said.err


def check_of(world: Path, data: object, *more: object) -> list[object]:
    return ["check", world / "bert", "--adapter", world / "adapter", "--data", data, *FAST, "-o", "runs/out", *more]


def tune_of(world: Path, kind: str = "lora", base: str = "bert", *more: object) -> list[object]:
    return ["tune", kind, world / base, "--data", world / "data.csv", "--epochs", 1, "-o", "runs/out", *more]


# -------------------------------------------------------------------------------------------------------------- data


def replaced(rows: list[tuple[str, str]], **at: str) -> list[tuple[str, str]]:
    return [(at.get("text", rows[0][0]), at.get("label", rows[0][1])), *rows[1:]]


DATA: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "one-class": (lambda p: write_csv(p, [(t, "positive") for t, _ in reviews(60)]), ("only one class", "'label'")),
    "empty-text": (lambda p: write_csv(p, replaced(reviews(60), text="  ")), ("no text in line 2", "'text'")),
    "no-label": (lambda p: write_csv(p, replaced(reviews(60), label="nan")), ("no label in line 2", "'label'")),
    "unknown-label": (
        lambda p: write_csv(p, replaced(reviews(60), label="neutral")),
        ("the classifier's head does not know: 'neutral'", "knows 'negative', 'positive'"),
    ),
    "bytes": (lambda p: p.write_bytes(b"text,label\ngood film,positive\ncaf\xe9,negative\n"), ("line 3", "0xE9", "iconv")),
    "ragged": (lambda p: p.write_text("text,label\ngood,positive\nbad, poor,negative\n"), ("line 3", "3 fields", "2 exp")),
    "empty": (lambda p: p.write_bytes(b""), ("is empty",)),
    "few-rows": (lambda p: write_csv(p, reviews(40)), ("gives", "needs at least 20", "Give more rows")),
    "tiny": (lambda p: write_csv(p, [("good", "positive"), ("bad", "negative")]), ("too few rows for three splits",)),
}  # fmt: skip


@pytest.mark.parametrize("name", DATA)
def test_data(world: Path, here: Path, name: str) -> None:
    make, says = DATA[name]
    make(here / "data.csv")
    refused(*check_of(world, "data.csv"), says=("'data.csv'" if name != "few-rows" else "data.csv", *says))


def test_missing_values_in_json(world: Path, here: Path) -> None:
    rows = [{"text": t, "label": c} for t, c in reviews(60)]
    (here / "data.json").write_text(json.dumps([{"text": float("nan"), "label": "positive"}, *rows]))
    refused(*check_of(world, "data.json"), says=("'data.json', column 'text': no text in record 1",))


def test_no_such_file(world: Path, here: Path) -> None:
    write_csv(here / "reviews.csv", reviews(30))
    refused(*check_of(world, "review.csv"), says=("There is no file 'review.csv'", "Did you mean 'reviews.csv'?"))


@pytest.mark.parametrize(("option", "given", "meant"), [("--text", "txt", "text"), ("--label", "labl", "label")])
def test_a_misspelt_column(world: Path, here: Path, option: str, given: str, meant: str) -> None:
    said = (f"no column '{given}'", f"Did you mean '{meant}'?")
    refused(*check_of(world, world / "data.csv", option, given), says=said)
    refused(*tune_of(world, "lora", "bert", option, given), says=said)


def test_what_is_said_of_the_rows_held_out_must_agree(world: Path, here: Path) -> None:
    data = world / "data.csv"
    refused(
        *check_of(world, data, "--held-out"),
        says=("The adapter's card says that it was tuned on rows of", "Leave that out"),
    )
    refused(*check_of(world, data, "--held-out", "--split", "label"), says=("Leave one of them out",))
    refused(*check_of(world, data, "--test", "no.csv"), says=("There is no file 'no.csv'",))
    write_csv(here / "other.csv", reviews(60, 3), ("text", "mood"))
    refused(*check_of(world, data, "--test", "other.csv"), says=("'other.csv' has no column 'label'",))
    write_csv(here / "other.csv", [*reviews(60, 3), ("good", "mixed")])
    refused(*check_of(world, data, "--test", "other.csv"), says=("'mixed'",))
    write_csv(here / "other.csv", [*reviews(60, 3), (" ", "negative")])
    refused(*check_of(world, data, "--test", "other.csv"), says=("'other.csv', column 'text': no text in line 62",))


def test_the_text_column_is_the_label_column(world: Path, here: Path) -> None:
    refused(*check_of(world, world / "data.csv", "--text", "label"), says=("'label' is named twice",))


def test_what_a_terminal_would_obey_is_shown_as_text(world: Path, here: Path) -> None:
    """A name in a file's header, or a kind in an adapter's settings, is a stranger's."""
    write_csv("odd.csv", reviews(60), ["te\x1b[31mxt", "lab\x1b]0;owned\x07el\u202e"])
    said = trueup(*audit_words(world)[:-2], "--data", "odd.csv", "-o", "out")
    assert said.code == 2
    assert "Its columns are 'te\ufffd[31mxt', 'lab\ufffd]0;owned\ufffdel\ufffd'" in said.err
    assert not set(said.err) & set("\x1b\x07\u202e")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_full_disk_behind_the_output_is_no_error_of_trueup(here: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "trueup", "--version"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (
        2, "trueup: A file cannot be written (No space left on device). Make room, then run the same command again.\n",
    )  # fmt: skip


def test_too_few_calibration_examples(world: Path, here: Path) -> None:
    """They cost the repair and not the finding."""
    parts = ["train"] * 60 + ["calibration"] * 15 + ["test"] * 120
    rows = [(*r, p) for r, p in zip(reviews(len(parts)), parts, strict=True)]
    write_csv(here / "data.csv", rows, ("text", "label", "part"))
    said = trueup(*check_of(world, "data.csv", "--split", "part"))
    assert (said.code in (0, 1), said.err) == (True, "")
    (c,) = json.loads((here / "runs" / "out" / "findings.json").read_text())["comparisons"]
    assert c["after"] is None
    assert not c["remedy"].startswith("No repair")  # the page's own label says that
    assert "has 15 calibration examples" in c["remedy"]
    assert "needs at least 20" in c["remedy"]


def test_without_an_error_there_is_still_a_confidence_to_examine(world: Path, here: Path) -> None:
    import trueup as api
    from trueup.corpus.corpus import Corpus
    from trueup.run.predict import predict

    subject = api.load(str(world / "bert"), str(world / "adapter"))
    texts = [t for t, _ in reviews(300)]
    corpus = Corpus(texts, np.zeros(300, np.int64), subject.classes, np.full(300, "test"))
    answers = [subject.classes[i] for i in predict(subject, corpus).predicted]
    write_csv(here / "data.csv", zip(texts, answers, strict=True))
    said = trueup(*check_of(world, "data.csv"))
    assert (said.code, said.err) == (0, "")
    (c,) = json.loads((here / "runs/out/findings.json").read_text())["comparisons"]
    assert c["before"]["verdict"] == "undecided"
    assert c["before"]["doubt"].startswith("There are only 0 errors among ")
    assert "Only 0 errors among" in c["remedy"]


def test_unknown_embedded_names(world: Path, here: Path) -> None:
    refused(*check_of(world, "embedded:tweet"), says=("no embedded data set 'tweet'", "Did you mean 'tweets'?"))
    words = ["audit", "overconfidence", "embedded:minilmm", "--data", world / "data.csv", "-o", "out"]
    refused(*words, says=("no embedded model 'minilmm'", "Did you mean 'minilm'?"))


def test_tune_needs_examples(world: Path, here: Path) -> None:
    rows = [(*r, p) for r, p in zip(reviews(26), ["train"] * 6 + ["test"] * 20, strict=True)]
    write_csv(here / "data.csv", rows, ("text", "label", "part"))
    words = ["tune", "lora", world / "bert", "--data", "data.csv", "--split", "part", "-o", "runs/out"]
    refused(*words, says=("6 training examples", "at least 10"))


# ------------------------------------------------------------------------------------------------- models and adapters


def test_an_adapter_of_another_base(world: Path, here: Path) -> None:
    words = ["audit", "overconfidence", world / "gpt2", "--adapter", world / "adapter", "--data", world / "data.csv"]
    refused(*words, "-o", "out", says=("does not fit", "made for", str(world / "bert"), "Give the base model"))


def spoilt(adapter: Path, how: str) -> None:
    weights = adapter / "adapter_model.safetensors"
    if how == "pickle":
        torch.save(load_file(weights), adapter / "adapter_model.bin")
        weights.unlink()
    elif how == "cut":
        weights.write_bytes(weights.read_bytes()[:500])
    elif how == "none":
        weights.unlink()
    elif how == "json":
        (adapter / "adapter_config.json").write_text("{")
    elif how == "kind":
        (adapter / "adapter_config.json").write_text('{"peft_type": "LORAA"}')
    elif how == "card":
        (adapter / "trueup.json").write_text("{")
    elif how in ("seed", "tuned", "data"):
        card = json.loads((adapter / "trueup.json").read_text())
        tuned = "by hand" if how == "tuned" else card["tuned"] | {how: ["by hand"]}
        (adapter / "trueup.json").write_text(json.dumps(card | {"tuned": tuned}))
    else:
        (adapter / "adapter_config.json").unlink()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("pickle", ("is a pickle", "--allow-pickle")), ("cut", ("damaged",)), ("none", ("no adapter_model.safetensors",)),
        ("json", ("not readable JSON",)), ("kind", ("kind 'LORAA'", "Did you mean 'LORA'?")),
        ("card", ("trueup.json", "not readable JSON")), ("config", ("is no PEFT adapter",)),
        ("seed", ("trueup.json", '["by hand"] for \'tuned.seed\'')), ("tuned", ("trueup.json", '"by hand" for \'tuned\'')),
        ("data", ("trueup.json", '["by hand"] for \'tuned.data\'')),
    ],
)  # fmt: skip
def test_a_spoilt_adapter(world: Path, adapter: Path, here: Path, how: str, says: tuple[str, ...]) -> None:
    spoilt(adapter, how)
    refused(*check_of(world, world / "data.csv", "--adapter", adapter), says=(str(adapter), *says))


def test_a_trusted_pickle_works(world: Path, adapter: Path, here: Path) -> None:
    spoilt(adapter, "pickle")
    words = ["audit", "overconfidence", world / "bert", "--adapter", adapter, "--data", world / "data.csv", *FAST]
    assert trueup(*words, "--allow-pickle", "-o", "out").code in (0, 1)


def test_no_such_adapter(world: Path, here: Path) -> None:
    refused(*check_of(world, world / "data.csv", "--adapter", "./no"), says=("no adapter folder './no'",))


def test_folders_that_are_no_model(world: Path, here: Path) -> None:
    (here / "empty").mkdir()
    shutil.copytree(world / "bert", here / "pickled")
    state = load_file(here / "pickled" / "model.safetensors")
    (here / "pickled" / "model.safetensors").unlink()
    torch.save(state, here / "pickled" / "pytorch_model.bin")
    for base, says in (
        ("empty", ("'empty' holds no model", "config.json")),
        ("./no", ("no folder './no'",)),
        (world / "adapter", ("is a PEFT adapter, not a model", "--adapter")),
        (world / "data.csv", ("is a file, not a model folder",)),
        ("pickled", ("as a pickle", "--allow-pickle")),
    ):
        words = ["audit", "overconfidence", base, "--data", world / "data.csv", "-o", "out"]
        refused(*words, "--adapter", world / "adapter", says=says)
    words = ["audit", "overconfidence", world / "bert", "--data", world / "data.csv", "-o", "out"]
    refused(*words, says=("no classification head", "trueup tune lora"))


def test_a_remedy_is_no_adapter_to_examine(world: Path, checked: tuple[Path, object], here: Path) -> None:
    says = ("is a confidence head that trueup made", f"--adapter {world / 'adapter'}")
    refused(*check_of(world, world / "data.csv", "--adapter", checked[0] / "overconfidence"), says=says)


@pytest.mark.parametrize("classes", ["negative", "negative,neutral,positive", "negative,positive,positive"])
def test_classes_of_another_number(world: Path, here: Path, classes: str) -> None:
    said = refused(*check_of(world, world / "data.csv", "--classes", classes))
    assert any(s in said for s in ("none of the classes", "2 classes, but 3 class names", "name one class twice")), said


def test_templates(world: Path, here: Path) -> None:
    base = ("lora", "gpt2")
    refused(*tune_of(world, *base, "--template", "{text} is"), says=("needs --verbaliser",))
    refused(*check_of(world, world / "data.csv", "--template", "{text} is"), says=("is an encoder",))
    untuned = ["check", world / "gpt2", "--data", world / "data.csv", "-o", "runs/out"]
    refused(*untuned, "--template", "{text} is", says=("needs --verbaliser",))
    refused(*tune_of(world, *base, "--template", "is", "--verbaliser", "bad,good"), says=("no {text} in it",))
    refused(*tune_of(world, *base, "--verbaliser", "good,good"), says=("start with the same token",))
    refused(*tune_of(world, *base, "--verbaliser", "good,"), says=("has an empty word",))
    refused(*tune_of(world, *base, "--verbaliser", "good,bad,fine"), says=("3 class words for 2 classes",))
    refused(*tune_of(world, "lora", "bert", "--verbaliser", "bad,good"), says=("is an encoder",))


def test_prefix_tuning_of_mamba(world: Path, here: Path) -> None:
    words = tune_of(world, "prefix", "mamba", "--template", "{text} is", "--verbaliser", "bad,good")
    refused(*words, says=("does not run on 'mamba'", "tune prompt"))


# ------------------------------------------------------------------------------------------------- options and numbers


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--fault", "overconfidense"), ("no fault 'overconfidense'", "Did you mean 'overconfidence'?")),
        (("--set", "overconfidence.thresold=0.3"), ("no setting 'thresold'", "Did you mean 'threshold'?")),
        (("--set", "overconfidense.threshold=0.3"), ("no fault 'overconfidense'", "Did you mean")),
        (("--set", "threshold=0.3"), ("is not FAULT.SETTING=VALUE",)),
        (("--set", "overconfidence.threshold"), ("is not FAULT.SETTING=VALUE",)),
        (("--set", "overconfidence.threshold=high"), ("overconfidence.threshold is a number", "'high' (str) was given")),
        (("--set", 'overconfidence.threshold="0.3"'), ("overconfidence.threshold is a number",)),
        (("--set", "overconfidence.threshold=NaN"), ("overconfidence.threshold is a number",)),
        (("--set", "overconfidence.threshold=true"), ("overconfidence.threshold is a number",)),
        (("--set", "overconfidence.threshold=1.5"), ("overconfidence.threshold is 1.5", "between 0 and 1")),
        (("--set", "overconfidence.folds=2.5"), ("overconfidence.folds is a whole number",)),
        (("--set", "overconfidence.folds=1"), ("overconfidence.folds is 1; give 2 or more",)),
        (("--set", "overconfidence.resamples=0"), ("overconfidence.resamples is 0; give 10 or more",)),
        (("--set", "overconfidence.members=-1"), ("overconfidence.members is -1",)),
        (("--set", f"overconfidence.members={10**400}"), ("overconfidence.members is a whole number", "...000")),
        (("--set", f"overconfidence.threshold={10**400}"), ("overconfidence.threshold is a number",)),
        (("--set", f"overconfidence.folds={'1' * 4400}"), ("overconfidence.folds is a whole number",)),
        (("--set", "confounding.anchor=strat"), ("confounding.anchor is 'strat'. Did you mean 'start'?",)),
        (("--limit", "-5"), ("--limit",)),
        (("--limit", "many"), ("--limit",)),
        (("--seed", "-1"), ("--seed",)),
        (("--max-length", "0"), ("--max-length",)),
        (("--device", "cpuu"), ("no device 'cpuu'", "Did you mean 'cpu'?")),
        (("--dta", "x"), ("No such option: --dta. Did you mean '--data'? See `trueup check --help`.",)),
        (("--held_out",), ("No such option: --held_out. Did you mean '--held-out'? See `trueup check --help`.",)),
        (("--zzz", "x"), ("No such option: --zzz. See `trueup check --help`.",)),
        (("--workers", "2"), ("No such option: --workers. It is an option of `trueup sweep`. See `trueup check --help`.",)),
    ],
)  # fmt: skip
def test_options_of_check(world: Path, here: Path, more: tuple[str, ...], says: tuple[str, ...]) -> None:
    refused(*check_of(world, world / "data.csv", *more), says=says)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("audit", "--fault", "copying"), "Name the fault first: `trueup audit FAULT MODEL ...`."),
        (("audit", "--max-cost", "1"), "It is an option of `trueup check` and `trueup repair`. See `trueup audit --help`."),
        (("sweep", "--quantize", "4bit"), "and others. A sweep takes the settings of its cells from its file."),
        (("rerun", "--limit", "5"), "and others. A rerun takes its settings from the job.json of the first run."),
        (("bench", "copying", "--adapter", "x"), "It is an option of `trueup check`, `trueup audit`, `trueup repair` and others."),
        (("sweep", "--flt", "x"), "No such option: --flt. See `trueup sweep --help`."),  # the control: nobody has it
    ],
)  # fmt: skip
def test_an_option_of_another_command_is_told_by_that_command(words: tuple[str, ...], says: str) -> None:
    refused(*words, says=(says,))


@pytest.mark.parametrize("at", ["model", "--adapter", "--data", "--demos"])
def test_a_name_that_no_file_can_have(world: Path, here: Path, at: str) -> None:
    given = {"model": world / "bert", "--data": world / "data.csv"} | {at: "x" * 300}
    more = [word for k, v in given.items() if k != "model" for word in (k, v)]
    refused(
        "check",
        given["model"],
        *more,
        "-o",
        "out",
        says=("The path 'xxx", "…' cannot be followed (File name too long)"),
    )


@pytest.mark.parametrize(
    ("kind", "more", "says"),
    [
        ("prompt", ("--rank", 4), ("'rank' does not go with the kind 'prompt'; it has 'tokens', 'start'",)),
        ("lora", ("--tokens", 4), ("'tokens' does not go with the kind 'lora'", "'rank'")),
        ("lora", ("--rank", 0), ("--rank",)),
        ("lora", ("--epochs", 0), ("--epochs",)),
        ("lora", ("--batch", -1), ("--batch",)),
        ("lora", ("--lr", 0), ("lr is 0", "above 0")),
        ("lora", ("--lr", "nan"), ("lr",)),
        ("lora", ("--seed", -1), ("--seed",)),
        ("lora", ("--device", "gpu"), ("no device 'gpu'",)),
        ("prompt", ("--tokens", 128), ("128 virtual tokens leave no room",)),
        ("prompt", ("--start", " "), ("start",)),
        ("loraa", (), ("'loraa' is not one of",)),
    ],
)
def test_options_of_tune(world: Path, here: Path, kind: str, more: tuple[object, ...], says: tuple[str, ...]) -> None:
    refused(*tune_of(world, kind, "bert", *more), says=says)


LIGHT = """
import contextlib, io, json, sys
from trueup.cli import main
told = []
for words in json.loads(sys.argv[1]):
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        try:
            main(words)
        except SystemExit as e:
            told.append([e.code, err.getvalue(), sorted({"torch", "transformers", "peft", "scipy"} & set(sys.modules))])
print(json.dumps(told))
"""


SWEEPS = {
    "faults: [overconfidense]": ("a.yaml", "a.yaml, line 4: There is no fault 'overconfidense'"),
    "knobs: {rigidity: {epoch: 1}}": (
        "b.yaml",
        "b.yaml, line 4: 'rigidity' has no setting 'epoch'. Did you mean 'epochs'?",
    ),
    "sede: 1": ("c.yaml", "c.yaml, line 4: there is no 'sede' here. Did you mean 'seed'?"),
    "seed: 1\nsteps: tune\nmatrix: {kind: [lorra]}": ("d.yaml", "d.yaml, line 6: There is no kind of adapter 'lorra'"),
}


def head_of(folder: Path, rows: int) -> None:
    """The files of an adapter that brings a head of so many rows, as far as they are read before any model."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "task_type": "SEQ_CLS"}))
    save_file({"base_model.model.classifier.weight": torch.zeros(rows, 4)}, folder / "adapter_model.safetensors")


def test_slips_are_told_without_loading_torch(here: Path) -> None:
    for more, (name, _) in [*SWEEPS.items(), ("seed: 1", ("good.yaml", ""))]:
        (here / name).write_text(f"defaults:\n  model: embedded:minilm\n  data: absent.csv\n  {more}\n")
    (here / "taken").mkdir()
    (here / "taken" / "x").touch()
    (here / "scouted").mkdir()
    (here / "scouted" / "scout.json").touch()
    (here / "scouted" / "job.json").write_text(json.dumps({"model": "bert", "data": "data.csv"}))
    check = ["check", "embedded:minilm", "--data", "absent.csv", "-o"]
    write_csv(
        here / "words.csv",
        [(f"t{i}", ("good", "bad")[i % 2], "abc"[i % 3]) for i in range(9)],
        ("text", "label", "kind"),
    )
    head_of(here / "head", 2)
    (here / "whole").mkdir()
    labels = {"architectures": ["BertForSequenceClassification"], "id2label": {i: f"LABEL_{i}" for i in range(3)}}
    (here / "whole" / "config.json").write_text(json.dumps({"model_type": "bert"} | labels))
    for name, width in (("wide", 8), ("fits", 4)):  # the head in "head" reads 4 numbers
        (here / name).mkdir()
        (here / name / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": width} | labels))
    mine = ["check", "embedded:minilm", "--adapter", "head", "--data", "words.csv", "-o", "out"]
    slips = [
        ([*check, "out", "--fault", "overconfidense"], "Did you mean 'overconfidence'?"),
        ([*check, "out", "--set", "typo.x=1"], "no fault 'typo'"),
        ([*check, "out", "--set", "rigidity.epoch=1"], "Did you mean 'epochs'?"),
        ([*check, "out", "--set", "overconfidence.folds=1"], "give 2 or more"),
        (["audit", "confuonding", *check[1:], "out"], "Did you mean 'confounding'?"),
        (["repair", "overconfidence", *check[1:], "out", "--max-cost", "0.1"], "--max-cost goes with"),
        (["tune", "lora", *check[1:], "out", "--tokens", "3"], "'tokens' does not go with the kind 'lora'"),
        ([*check, "taken"], "exists and is not empty"),
        *((["sweep", name, "-o", "out"], said) for name, said in SWEEPS.values()),
        (["sweep", "good.yaml", "-o", "out", "--shard", "3/2"], "--shard '3/2' is no part"),
        (["sweep", "good.yaml", "-o", "out", "--only", "faild"], "Did you mean 'failed'?"),
        (["sweep", "good.yaml", "-o", "out", "--baseline", "nowhere"], "'nowhere' is no folder of a sweep"),
        (["sweep", "good.yaml", "-o", "out", "--list", "--baseline", "nowhere"], "'nowhere' is no folder of a sweep"),
        (["sweep", "good.yaml", "-o", "out", "--collect", "nowhere"], "'nowhere' is no folder of a sweep"),
        (["sweep", "good.yaml", "-o", "taken"], "holds something that is no sweep"),
        (["sweep", "good.yaml", "-o", "out", "--track", "mlfow"], "'mlfow' is not one of"),
        ([*check, "out"], "There is no file 'absent.csv'"),
        ([*mine, "--classes", "bad,good,fine"], "has 2 classes, but 3 class names were given"),
        ([*mine], "so their order is needed"),
        (["check", "embedded:minilm", *mine[4:]], "'embedded:minilm' has no classification head"),
        ([*mine, "--label", "kind"], "The classifier has 2 classes, and column 'kind' of 'words.csv' has 3 labels"),
        ([*mine, "--verbaliser", "bad,good"], "'bert' is an encoder and does not answer with a word"),
        ([*mine, "--template", "{text}"], "'bert' is an encoder and does not answer with a word"),
        ([*mine, "--shots", "4"], "'bert' is an encoder and does not learn from demonstrations"),
        (["scout", *mine[1:], "--classes", "bad,good,fine"], "has 2 classes, but 3 class names were given"),
        (["check", "whole", *mine[4:], "--classes", "bad,good"], "has 3 classes, but 2 class names were given"),
        (["check", "whole", *mine[4:]], "all 3 of them; column 'label' of 'words.csv' has only 'bad', 'good'"),
        (["check", "embedded:smollm2", *mine[2:]], "its classification head is not one of 'llama'"),
        (["check", "wide", *mine[2:]], "reads 4 numbers a text, and the layers of the model are 8 wide"),
        (["check", "fits", *mine[2:]], "so their order is needed"),  # the control
        (["check", "embedded:smollm2", *mine[4:], "--template", "{text}"], "needs --verbaliser"),
        (["tune", "lora", "embedded:minilm", *mine[4:], "--verbaliser", "bad,good"], "'bert' is an encoder"),
        (["tune", "lora", *check[1:], "out"], "There is no file 'absent.csv'"),
        (["tune", "lora", *check[1:], "taken"], "exists and is not empty"),
        (["check", "embedded:minilmm", "--data", "data.csv", "-o", "out"], "Did you mean 'minilm'?"),
        (["check", "embeded:minilm", "--data", "data.csv", "-o", "out"], "Did you mean 'embedded:minilm'?"),
        (["check", "all MiniLM", "--data", "data.csv", "-o", "out"], "There is no folder 'all MiniLM'"),
        (["check", "bert", "--data", "embedded:movie-review", "-o", "out"], "Did you mean 'movie-reviews'?"),
        (["check", "bert", "--data", "task:antonims", "-o", "out"], "Did you mean"),
        (["check", "./brt", "--data", "data.csv", "-o", "out"], "There is no folder './brt'"),
        (["check", "adapter", "--data", "data.csv", "-o", "out"], "is a PEFT adapter, not a model"),
        (["check", "bert", "--data", "data.csv", "--text", "txt", "-o", "out"], "Did you mean 'text'?"),
        (["tune", "lora", "bert", "--data", "data.csv", "--label", "labl", "-o", "out"], "Did you mean 'label'?"),
        (["check", "bert", "--data", "data.csv", "--confounder", "sit", "-o", "out"], "no column 'sit'"),
        (["check", "bert", "--data", "data.csv", "--test", "tst.csv", "-o", "out"], "There is no file 'tst.csv'"),
        (["check", "bert", "--data", "data.csv", "--demos", "d.csv", "-o", "out"], "There is no file 'd.csv'"),
        (["check", "bert", "--data", "data.csv", "--adapter", "./adaptr", "-o", "out"], "Did you mean 'adapter'?"),
        (["check", "bert", "--data", "data.csv", "--adapter", "bert", "-o", "out"], "is no PEFT adapter"),
        (["check", "bert", "--data", "data.csv", "--dtype", "flaot16", "-o", "out"], "Did you mean 'float16'?"),
        (["check", "bert", "--data", "data.csv", "--quantize", "4bits", "-o", "out"], "Did you mean '4bit'?"),
        (["check", "bert", "--data", "data.csv", "--device-map", "atuo", "-o", "out"], "Did you mean 'auto'?"),
        (
            ["check", "bert", "--data", "data.csv", "--device-map", "auto", "--device", "cpu", "-o", "out"],
            "leave --device out",
        ),
        (["check", "bert", "--data", "data.csv", "--device", "gpu", "-o", "out"], "Did you mean 'cuda'?"),
        (["check", "bert", "--data", "data.csv", "--dtype", "bf16", "-o", "out"], "Did you mean 'bfloat16'?"),
        (["check", "bert", "--data", "plain.csv", "-o", "out"], "name the right one with --text (in Python text=)"),
        (["check", "bert", "--data", "data.csv", "--label", "text", "-o", "out"], "'text' is named twice"),
        (
            ["check", "bert", "--data", "data.csv", "--held-out", "--split", "site", "-o", "out"],
            "says which rows were trained on",
        ),
        (["check", "bert", "--data", "hole.csv", "-o", "out"], "no text in line 3"),
        (["check", "bert", "--data", "data.csv", "--split", "label", "-o", "out"], "no split is called"),
        (
            ["check", "bert", "--data", "data.csv", "--classes", "negativ,positive", "-o", "out"],
            "or the names of the classes",
        ),
        (
            ["tune", "lora", "bert", "--data", "data.csv", "--classes", "negativ,positive", "-o", "out"],
            "is none of the classes",
        ),
        (["check", "bert", "--data", "data.csv", "--test", "hole.csv", "-o", "out"], "no text in line 3"),
        (["scout", "bert", "--data", "absent.csv", "-o", "out"], "There is no file 'absent.csv'"),
        (["scout", "bert", "--data", "data.csv", "-o", "taken"], "exists and is not empty"),
        (["rerun", "scouted", "-o", "out"], "is of a scout, and a check would take its place"),
        (["report", "nowhere"], "There is no folder 'nowhere'"),
        (["report", "./scoutd"], "There is no folder 'scoutd'. Give the folder"),
        (["rerun", "scoutd", "-o", "out"], "Did you mean 'scouted'?"),
        (["report", "taken"], "is not an output of `trueup check`"),
        (["report", "data.csv"], "'data.csv' is a file. Give the folder"),
        (["compare", "nowhere", "taken"], "There is no folder 'nowhere'"),
        (["rerun", "nowhere", "-o", "out"], "'nowhere' is no folder"),
        (["faults", "copyin"], "Did you mean 'copying'?"),
        (["fetch", "embedded:minilmm"], "Did you mean 'minilm'?"),
        (["demo", "-o", "taken"], "exists and is not empty"),
        (["bench", "speed", "-o", "taken"], "exists and is not empty"),
        (["bench", "verdicts", "-o", "taken"], "exists and is not empty"),
        (["bench", "rigidity", "-o", "taken"], "exists and is not empty"),
        (
            ["check", "bert", "--data", "data.csv", "-o", "out"],
            "bert",
        ),  # the control: no slip, so the model's libraries are asked
    ]
    (here / "bert").mkdir()
    (here / "bert" / "config.json").write_text("{}")
    (here / "adapter").mkdir()
    (here / "adapter" / "adapter_config.json").write_text("{}")
    write_csv(here / "data.csv", reviews(60))
    (here / "plain.csv").write_text("review,label\nfine,positive\n")
    (here / "hole.csv").write_text("text,label\nfine,positive\n,negative\n")
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, json.dumps([words for words, _ in slips])], capture_output=True, text=True
    )
    told = json.loads(done.stdout.splitlines()[-1])
    for (words, says), (code, err, heavy) in zip(slips, told, strict=True):
        assert code == 2, words
        assert says in err
        assert bool(heavy) == ((words, says) == slips[-1]), (words, heavy)


def test_commands(world: Path, here: Path) -> None:
    refused("chek", says=("Did you mean 'check'", "See `trueup --help`"))
    refused("check", says=("MODEL", "See `trueup check --help`"))
    refused("check", world / "bert", says=("--data", "See `trueup check --help`"))
    refused("audit", "overconfidense", *audit_words(world)[2:], "-o", "out", says=("Did you mean 'overconfidence'?",))


# ------------------------------------------------------------------------------------------------------ output folders


def test_a_folder_that_is_not_empty(world: Path, here: Path) -> None:
    (here / "out").mkdir()
    (here / "out" / "mine.txt").write_text("mine")
    says = ("'", "out' exists and is not empty", "--force")
    refused(*check_words(world), "-o", "out", says=says)
    refused(*tune_of(world), "-o", "out", says=says)
    says = ("was not written by trueup", "holds 'mine.txt'", "delete this one yourself")
    refused(*check_words(world), "-o", "out", "--force", says=says)
    refused(*tune_of(world), "-o", "out", "--force", says=says)
    assert (here / "out" / "mine.txt").read_text() == "mine"
    with atomic.new_folder(here / "earlier") as earlier:
        (earlier / "old.txt").write_text("old")
    refused(*check_words(world), "--label", "labell", "-o", "earlier", "--force", says=("no column",))
    assert (here / "earlier" / "old.txt").read_text() == "old", "a refused run must leave the old folder"


def test_an_output_that_holds_what_is_read(world: Path, here: Path) -> None:
    """Not with --force either: the adapter's folder is one that trueup wrote."""
    adapter = shutil.copytree(world / "adapter", here / "adapter")
    words = [adapter if w == world / "adapter" else w for w in check_words(world)]
    assert adapter in words
    refused(*words, "-o", adapter, "--force", says=("holds the adapter itself", "Give another folder"))
    refused(*words, "-o", here, "--force", says=("holds the adapter itself",))
    assert (adapter / "adapter_config.json").is_file()
    with atomic.new_folder(here / "earlier") as earlier:
        (earlier / "pairs.csv").write_text("text,label\na,negative\n")
    pairs = ("--shots", 1, "--demos", here / "earlier" / "pairs.csv", "-o", here / "earlier", "--force")
    refused(*words, *pairs, says=("holds the demonstrations itself",))


def test_the_home_folder_of_an_output(world: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shells leave the ~ of --out=~/x as it is."""
    monkeypatch.setenv("HOME", str(here / "home"))
    (here / "home" / "x").mkdir(parents=True)
    (here / "home" / "x" / "mine.txt").write_text("mine")
    refused(*check_words(world), "--out=~/x", says=(str(here / "home" / "x"), "is not empty"))
    refused(*check_words(world), "--out=~nobody-here/x", says=("no home folder of such a user",))


def test_places_that_cannot_be_written(world: Path, here: Path) -> None:
    (here / "file").write_text("")
    refused(*check_words(world), "-o", "file", says=("file' is a file",))
    refused(*check_words(world), "-o", "file/out", says=("because '", "file' is a file"))
    refused(*check_words(world), "-o", "file/deep/out", says=("because '", "file' is a file"))


def test_reports_that_are_none(world: Path, checked: tuple[Path, object], here: Path) -> None:
    (here / "empty").mkdir()
    refused("report", "empty", says=("'empty' is not an output of `trueup check`",))
    refused("report", "no", says=("no folder 'no'",))
    refused("report", world / "adapter", says=("holds no findings.json",))
    shutil.copytree(checked[0], here / "demo" / "report")  # as a demo and a cell of a sweep keep it
    export = ("export", "demo", "--as", "merged", "-o", "x")
    for command in (("report", "demo"), ("rerun", "demo"), ("compare", "demo", checked[0]), export):
        refused(*command, says=("Give 'demo/report', which holds the check.",))
    shutil.copytree(checked[0], here / "swept" / "cells" / "seed=0" / "report")
    export = ("export", "swept", "--as", "merged", "-o", "x")
    for command in (("report", "swept"), ("rerun", "swept"), ("compare", checked[0], "swept"), export):
        refused(*command, says=("It is the folder of a sweep.", "such as 'swept/cells/seed=0/report'."))
    refused("export", "empty", "--as", "merged", "-o", "x", says=("Give the folder that `trueup check ... -o` wrote.",))
    copy = Path(shutil.copytree(checked[0], here / "copy"))
    (copy / "findings.json").write_text("{}")
    refused("report", "copy", says=("changed 'findings.json'",))
    (copy / "manifest.json").unlink()
    refused("report", "copy", says=("has no manifest.json",))
