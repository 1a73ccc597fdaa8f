"""`trueup.check` on what a user holds: the same Finding as on the same rows in files, and a report in a notebook."""

from __future__ import annotations

import csv
import inspect
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import peft
import pytest
import torch
import transformers

import trueup
from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput, Unavailable, Unsupported
from trueup.faults.confounding import planted as confounded
from trueup.faults.overconfidence.planted import planted
from trueup.prepare import _weights
from trueup.run import adapter_effect, predict
from trueup.subject import adapter as files
from trueup.subject.checkpoint import UNNAMED
from trueup.subject.quiet import quiet
from trueup.subject.subject import Head, SoftmaxResponse, model_fingerprint
from trueup.subject.tiny import make_base

FAULT = trueup.Overconfidence(resamples=20, folds=2)
CLASSES = ("negative", "positive")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """``data.csv`` and ``adapter``, for a tiny base."""
    folder = tmp_path_factory.mktemp("home")
    subject, corpus = planted("planted")
    with open(folder / "data.csv", "w", newline="") as f:
        rows = zip(corpus.text, (CLASSES[i] for i in corpus.label), strict=True)
        csv.writer(f).writerows([("review", "mood"), *rows])
    (folder / "adapter").mkdir()
    files.save_tuned(subject, folder / "adapter")
    (folder / "base").write_text(subject.source.base)
    return folder


def base_of_home(home: Path) -> str:
    return (home / "base").read_text()


def live(home: Path) -> tuple[Any, Any]:
    """The PeftModel, in training mode, and its tokenizer."""
    base = base_of_home(home)
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        net = transformers.AutoModelForSequenceClassification.from_pretrained(base, dtype=torch.float32, num_labels=2)
        model = peft.PeftModel.from_pretrained(net, home / "adapter", is_trainable=True)
    return model.train(), transformers.AutoTokenizer.from_pretrained(base)


def rows(home: Path) -> list[dict[str, str]]:
    with open(home / "data.csv", newline="") as f:
        return list(csv.DictReader(f))


@pytest.fixture(scope="module")
def filed(home) -> trueup.Report:
    """The check by names alone."""
    return trueup.check(
        base_of_home(home), home / "data.csv", FAULT, adapter=str(home / "adapter"), text="review", label="mood",
        classes=CLASSES, max_length=32, device="cpu", seed=3,
    )  # fmt: skip


def same(a: trueup.Report, b: trueup.Report) -> None:
    for one, other in zip(a.comparisons, b.comparisons, strict=True):
        for f, g in ((one.before, other.before), (one.after, other.after)):
            assert f is not None
            assert g is not None
            assert (f.severity, f.low, f.high, f.sentence) == (g.severity, g.low, g.high, g.sentence)
            assert f.samples.keys() == g.samples.keys()
            assert all(np.array_equal(f.samples[k], g.samples[k]) for k in f.samples)
        assert one.remedy == other.remedy


DATA = {
    "pandas": lambda r: pd.DataFrame(r),
    "polars": lambda r: pytest.importorskip("polars").DataFrame(r),
    "Dataset": lambda r: datasets.Dataset.from_list(r),
    "records": lambda r: r,
    "pair": lambda r: ([x["review"] for x in r], [x["mood"] for x in r]),
}


@pytest.mark.parametrize("kind", DATA)
def test_what_a_user_holds_gives_the_findings_of_the_files(home, filed, kind):
    model, tokenizer = live(home)
    before = model_fingerprint(model)
    report = trueup.check(
        model, DATA[kind](rows(home)), FAULT, tokenizer=tokenizer, text="review", label="mood", classes=CLASSES,
        max_length=32, seed=3,
    )  # fmt: skip
    same(report, filed)
    assert model_fingerprint(model) == before
    assert model.training
    assert report.job == {}
    assert "by names" not in report.title
    assert report.provenance["data fingerprint"] == filed.provenance["data fingerprint"]
    assert report.provenance["model fingerprint"] != ""


def test_names_alone_keep_the_job_that_repeats_it(home, filed, tmp_path):
    assert filed.job["knobs"] == {"overconfidence": {"folds": 2, "resamples": 20}}
    assert "trueup check" in str(filed.provenance["command"])
    job = trueup.Job.from_dict(json.loads(json.dumps(filed.job)))
    same(trueup.run_job(job, tmp_path / "out"), filed)


def test_parts_alone(home, filed):
    model, tokenizer = live(home)
    subject = trueup.load(model, tokenizer=tokenizer, classes=CLASSES, max_length=32)
    corpus = trueup.read(pd.DataFrame(rows(home)), text="review", label="mood", classes=CLASSES, seed=3)
    finding = FAULT.prepared(subject, corpus, seed=3).audit(subject, corpus.part("test"), seed=3)
    assert finding.severity == filed.comparisons[0].before.severity
    same(trueup.check(subject, corpus, [FAULT], seed=3), filed)
    same(trueup.check(subject, (corpus.text, [CLASSES[i] for i in corpus.label]), [FAULT], classes=None, seed=3), filed)


def test_faults_by_name_by_value_or_all(home):
    subject, corpus = planted("planted")
    for faults in ("overconfidence", ["overconfidence"], [FAULT], FAULT):
        (one,) = trueup.check(subject, corpus, faults, repair=False).comparisons
        assert one.before.fault == "overconfidence"
    usual = trueup.check(subject, corpus, repair=False)
    assert [c.before.fault for c in usual.comparisons] == ["overconfidence"]
    assert any(n.startswith("confounding was not examined: ") for n in usual.notes)
    with pytest.raises(BadInput, match=r"There is no fault 'overconfident'\. Did you mean 'overconfidence'"):
        trueup.check(subject, corpus, ["overconfident"])


def test_a_frame_with_a_confounder(home):
    model, tokenizer = live(home)
    frame = pd.DataFrame(rows(home))
    frame["site"] = np.where(np.arange(len(frame)) % 3 > 0, "a", "b")
    report = trueup.check(
        model, frame, ["confounding"], tokenizer=tokenizer, text="review", label="mood", confounder="site", repair=False,
        classes=CLASSES, max_length=32,
    )  # fmt: skip
    assert report.comparisons[0].before.fault == "confounding"


def test_what_is_held_out_is_enough_for_an_audit(home):
    model, tokenizer = live(home)
    corpus = planted("planted")[1]
    frame = pd.DataFrame(rows(home)).assign(part=corpus.split)
    options: dict[str, Any] = {
        "tokenizer": tokenizer,
        "text": "review",
        "label": "mood",
        "classes": CLASSES,
        "max_length": 32,
    }
    held = frame[frame["part"] != "train"]
    alone, whole = (trueup.check(model, f, FAULT, split="part", repair=False, **options) for f in (held, frame))
    assert alone.provenance["examples"]["train"] == 0 < whole.provenance["examples"]["train"]
    a, b = (r.comparisons[0].before for r in (alone, whole))
    assert (a.severity, a.low, a.high, a.sentence) == (b.severity, b.low, b.high, b.sentence)
    # Who names the splits says what was held out; nobody else knows.
    ignorant = "trueup does not know which rows the model was trained on, so 1,080 of your 1,800 rows were set aside"
    assert not any(n.startswith(ignorant) for n in [*alone.notes, *whole.notes])
    assert any(n.startswith(ignorant) for n in trueup.check(model, frame, FAULT, repair=False, **options).notes)
    none, whole = (
        trueup.check(model, frame, FAULT, held_out=True, **options),
        trueup.check(model, frame, FAULT, **options),
    )
    assert none.provenance["examples"] == {"train": 0, "calibration": 900, "test": 900}
    assert whole.provenance["examples"] == {"train": 1080, "calibration": 361, "test": 359}
    assert not any(n.startswith(ignorant) for n in none.notes)
    assert none["overconfidence"].after is not None, "a repair learns from the calibration half"
    with pytest.raises(BadInput, match=r"no test examples|every row says 'train'"):
        trueup.check(model, frame[frame["part"] == "train"], FAULT, split="part", repair=False, **options)


def test_a_frame_to_test_on(home):
    model, tokenizer = live(home)
    frame = pd.DataFrame(rows(home))
    trained, unseen = frame[:1000], frame[1000:]
    options: dict[str, Any] = {
        "tokenizer": tokenizer,
        "text": "review",
        "label": "mood",
        "classes": CLASSES,
        "repair": False,
    }
    apart = trueup.check(model, trained, FAULT, test=unseen, **options)
    parts = apart.provenance["examples"]
    # By halves of each class: how many texts a class has depends on the last digits of the planted model, so on the processor.
    assert parts["train"] == 1000
    assert parts["calibration"] + parts["test"] == 800
    assert abs(parts["calibration"] - parts["test"]) <= 2
    assert not any("set aside" in n for n in apart.notes)
    both = trueup.check(model, trained, FAULT, test=unseen, held_out=True, **options)
    assert both.provenance["examples"] == {"train": 0, "calibration": 1000, "test": 800}
    with pytest.raises(BadInput, match=r"clusters .* lie in more than one"):
        trueup.check(model, frame, FAULT, test=unseen, **options)


def test_the_order_of_classes_is_asked_for_where_nobody_states_it(home):
    """Words in a file have no order; a ClassLabel has one, and so has who gives the classes."""
    model, tokenizer = live(home)
    options: dict[str, Any] = {
        "tokenizer": tokenizer,
        "text": "review",
        "label": "mood",
        "max_length": 32,
        "repair": False,
    }
    plain = datasets.Dataset.from_list(rows(home))
    with pytest.raises(
        BadInput, match=r"their order is needed\. As 'negative', 'positive' it is right on .*--classes negative,pos"
    ):
        trueup.check(model, plain, FAULT, **options)
    stated = plain.cast_column("mood", datasets.ClassLabel(names=list(CLASSES)))
    told = trueup.check(model, stated, FAULT, **options)
    named = trueup.check(model, plain, FAULT, classes=CLASSES, **options)
    numbered = [r | {"mood": CLASSES.index(r["mood"])} for r in rows(home)]
    placed = trueup.check(model, numbered, FAULT, classes=CLASSES, **options)
    assert told["overconfidence"].before.severity == named["overconfidence"].before.severity
    assert placed["overconfidence"].before.severity == named["overconfidence"].before.severity
    assert any(
        n.startswith("Labels that are numbers were read as places among the classes that you gave: 0 is")
        for n in placed.notes
    )


def test_a_model_worse_than_one_answer_to_all_is_a_warning(home):
    model, tokenizer = live(home)
    options: dict[str, Any] = {
        "tokenizer": tokenizer,
        "text": "review",
        "label": "mood",
        "max_length": 32,
        "repair": False,
    }
    turned = trueup.check(model, rows(home), FAULT, classes=CLASSES[::-1], **options)
    assert [
        w
        for w in turned.warnings
        if "test texts. Always answering '" in w and "'negative', 'positive' it would be right" in w
    ]
    assert not trueup.check(model, rows(home), FAULT, classes=CLASSES, **options).warnings


def test_numbers_for_classes_are_places_among_the_logits(home):
    subject, corpus = planted("planted")
    named = trueup.check(subject, corpus, FAULT, repair=False)
    numbered = trueup.check(subject, replace(corpus, classes=("0", "1")), FAULT, repair=False)
    assert numbered.comparisons[0].before.severity == named.comparisons[0].before.severity
    assert (
        "Labels that are numbers were read as places among the model's classes: 0 is 'negative', 1 is 'positive'."
        in (numbered.notes)
    )
    nameless = trueup.check(replace(subject, classes=("0", "1")), corpus, FAULT, repair=False)
    assert nameless.comparisons[0].before.severity == named.comparisons[0].before.severity
    assert any("does not name its classes" in n and "'negative', 'positive'" in n for n in nameless.notes)
    with pytest.raises(BadInput, match=r"labels that the classifier's head does not know: '0', '2'"):
        trueup.check(subject, replace(corpus, classes=("0", "2")), FAULT, repair=False)


def test_logits_in_another_order_than_the_data_are_seen(home):
    """An adapter trained on 'positive' and 'negative' in that order carries no names: the data's order is a guess."""
    subject, corpus = planted("planted")
    other = replace(corpus, classes=("positive", "negative"), label=corpus.label)
    turned = read_again(other)
    assert turned.classes == ("negative", "positive")
    held_out = corpus.take(np.flatnonzero(corpus.split != "train"))
    right = float((predict.predict(subject, held_out).predicted == held_out.label).mean())
    assert 0.6 < right < 0.8
    said = (
        f"As 'negative', 'positive' .* {1 - right:.1%} of {len(held_out):,} held-out texts, and as 'positive', 'negative' on "
        f"{right:.1%}.* --classes"
    )
    with pytest.raises(BadInput, match=said):
        trueup.check(replace(subject, classes=("0", "1")), turned, FAULT, repair=False)
    settled = trueup.check(replace(subject, classes=("positive", "negative")), turned, FAULT, repair=False)
    control = trueup.check(subject, corpus, FAULT, repair=False)
    assert settled.comparisons[0].before.severity == control.comparisons[0].before.severity


def test_the_pass_over_the_test_texts_is_made_once(home, monkeypatch):
    (subject, corpus), passes, real = planted("planted"), [], predict.in_batches
    monkeypatch.setattr(predict, "in_batches", lambda *a, **k: passes.append(1) or real(*a, **k))
    trueup.check(subject, corpus, FAULT, repair=False)
    named = len(passes)
    trueup.check(replace(subject, classes=("0", "1")), corpus, FAULT, repair=False)
    assert len(passes) == 2 * named == 8, (
        "calibration texts, test texts, and a few of these with the adapter's layers and without"
    )


def test_an_audit_of_two_faults_reads_each_text_once(home, monkeypatch):
    """Hidden states and features come from one pass over the test texts, whatever else looks at the features."""
    (subject, corpus), read, real = confounded.planted("planted"), [], predict.in_batches
    monkeypatch.setattr(predict, "in_batches", lambda s, ids, *a, **k: read.append(len(ids)) or real(s, ids, *a, **k))
    report = trueup.audit(subject, corpus, ["overconfidence", "confounding"])
    assert [c.before.fault for c in report.comparisons] == ["overconfidence", "confounding"]
    held_out = int((corpus.split != "train").sum())
    assert sum(read) == held_out + 2 * adapter_effect.TEXTS


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), Unavailable("No room."), BadInput("Too few.")]
)
def test_a_fault_that_ran_out_of_memory_is_no_all_clear(home, monkeypatch, tmp_path, error):
    """Of the faults that are examined by default, one that could not be is told as such, and not passed over."""
    subject, corpus = confounded.planted("healthy")

    def out(*_, **__):
        raise error

    monkeypatch.setattr(trueup.Overconfidence, "audit", out)
    report = trueup.audit(subject, corpus)
    assert [c.before.fault for c in report.comparisons] == ["confounding"]
    ran_out = not isinstance(error, BadInput)
    assert list(report.unexamined) == (["overconfidence"] if ran_out else [])
    report.save(tmp_path / "out")
    assert trueup.Report.open(tmp_path / "out").unexamined == report.unexamined


@pytest.mark.parametrize(("shots", "read"), [(None, True), (4, False)])
def test_other_columns_are_read_only_where_a_search_can_use_them(home, monkeypatch, shots, read):
    """A model that answers from demonstrations is not scouted."""
    asked = []

    def stop(*_, others, **__):
        asked.append(others)
        raise BadInput("That is all.")

    monkeypatch.setattr("trueup.corpus.read.read", stop)
    with pytest.raises(BadInput, match="That is all"):
        trueup.check(base_of_home(home), home / "data.csv", text="review", label="mood", shots=shots)
    assert asked == [read]


def read_again(corpus):
    """The same examples with the class names in natural order, as a file of them would be read."""
    classes = tuple(sorted(corpus.classes))
    return replace(corpus, classes=classes, label=np.array([classes.index(corpus.classes[y]) for y in corpus.label]))


def test_an_adapter_of_another_base_of_the_same_shapes_is_told(home, tmp_path):
    """Its weights fit, and nothing but a name says that it belongs elsewhere."""
    for name, theirs in (
        ("another", "org/some-bert"),
        ("own", base_of_home(home)),
        ("moved", f"org/{Path(base_of_home(home)).name}"),
    ):
        shutil.copytree(home / "adapter", tmp_path / name)
        config = tmp_path / name / "adapter_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": theirs}))
        notes = trueup.check(
            base_of_home(home), home / "data.csv", FAULT, adapter=str(tmp_path / name), text="review", label="mood",
            classes=CLASSES, max_length=32, repair=False,
        ).notes  # fmt: skip
        assert any("was made for 'org/some-bert'" in n for n in notes) == (name == "another"), notes


def test_a_snapshot_of_the_hub_and_a_checkpoint_have_names_of_their_own(tmp_path, monkeypatch):
    base = tmp_path / "models--org--some-bert" / "snapshots" / "0af3"
    base.mkdir(parents=True)
    monkeypatch.chdir(base)
    assert _weights(".") == _weights(str(base)) == _weights("org/Some-BERT") != _weights("org/other")
    assert _weights("runs/a/checkpoint-500") != _weights("runs/b/checkpoint-500")


def test_settings_of_any_shape_are_told(home):
    subject, corpus = planted("planted")
    subject.peft_config.layer_replication = [[0, 2], [1, 2]]
    told = trueup.check(subject, corpus, FAULT, repair=False).provenance["adapter settings"]
    assert told["layer_replication"] == "[[0, 2], [1, 2]]"
    assert told["peft_type"] == "LORA"
    assert told["target_modules"] == sorted(told["target_modules"])


def test_an_answer_word_of_several_tokens_is_told(home, tmp_path):
    base = make_base("qwen2", tmp_path / "base")  # it spells letters
    corpus = trueup.read(home / "data.csv", text="review", label="mood")
    corpus = replace(corpus, text=[t[:20].lower() for t in corpus.text])
    for words, said in ((("bad", "good"), True), (("b", "g"), False)):
        notes = trueup.check(
            str(base), corpus, FAULT, template="{text}", verbaliser=words, classes=CLASSES, max_length=32, repair=False
        ).notes
        assert any(n.startswith("Of an answer word the first token alone is read: 'b' of 'bad'") for n in notes) == said


def test_a_class_that_is_never_answered_is_told(home):
    subject, corpus = planted("planted")
    three = replace(
        corpus, classes=(*corpus.classes, "mixed"), label=np.where(np.arange(len(corpus)) % 7 == 0, 2, corpus.label)
    )
    own = subject.own_head()
    wide = Head(torch.cat([own.weight, 0 * own.weight[:1]]), torch.cat([own.bias, own.bias[:1] * 0 - 100]))
    silent = replace(subject, head=wide, classes=three.classes, confidence=SoftmaxResponse(3))
    notes = trueup.check(silent, three, FAULT, repair=False).notes
    part = three.part("test")
    told = f"The model never predicts 'mixed', the true label of {(part.label == 2).sum()} of {len(part)} test texts."
    assert told in notes, notes
    assert not any("never predicts" in n for n in trueup.check(subject, corpus, FAULT, repair=False).notes)


def test_a_base_without_a_name_is_said_and_its_repair_saved(home, tmp_path):
    model, tokenizer = live(home)
    model.get_base_model().config._name_or_path = ""
    model.peft_config["default"].base_model_name_or_path = None
    report = trueup.check(
        model, rows(home), [trueup.Overconfidence(resamples=20, folds=2, members=1)], tokenizer=tokenizer, text="review",
        label="mood", classes=CLASSES, max_length=32, seed=3, save=tmp_path / "saved",
    )  # fmt: skip
    assert any(n.startswith("No name is known under which the base model's weights load again") for n in report.notes)
    assert any(n.startswith("No ensemble was tried. The base model is live") for n in report.notes)
    settings = json.loads((tmp_path / "saved" / "overconfidence" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == UNNAMED
    assert UNNAMED in (tmp_path / "saved" / "overconfidence" / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tokenizer": object()}, r"A Subject has its 'tokenizer' settled; give that to `trueup\.load`"),
        ({"classes": CLASSES, "device": "cpu"}, r"A Subject has its 'classes', 'device' settled"),
        ({"split": "part"}, r"A Corpus has its 'split' settled; give that to `trueup\.read`"),
        ({"confounder": "site"}, r"A Corpus has its 'confounder' settled"),
    ],
)
def test_options_that_are_settled_are_refused(options, said):
    subject, corpus = planted("planted")
    with pytest.raises(BadInput, match=said):
        trueup.check(subject, corpus, FAULT, **options)


def test_a_live_model_is_untouched_by_a_check_that_fails(home):
    model, tokenizer = live(home)
    before = model_fingerprint(model)
    with pytest.raises((BadInput, Unsupported, Unavailable)):
        trueup.check(model, rows(home)[:30], FAULT, tokenizer=tokenizer, text="review", label="mood")
    assert model_fingerprint(model) == before


def test_importing_trueup_imports_no_library_of_models_or_frames():
    code = (
        "import sys, trueup; "
        "print([m for m in ('torch', 'pandas', 'polars', 'datasets', 'sklearn', 'transformers') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_every_public_name_is_there():
    for name in trueup.__all__:
        assert getattr(trueup, name) is not None
    assert isinstance(trueup.read(([f"text {i}" for i in range(40)], [i % 2 for i in range(40)])), Corpus)


def test_autocompletion_shows_the_public_names_alone():
    assert set(dir(trueup)) == {*trueup.__all__, "__version__"}
    assert trueup.__all__ == sorted(trueup.__all__, key=lambda n: (n[0].islower(), n))
    options = inspect.signature(trueup.check).parameters
    for verb, without in (
        (trueup.audit, {"repair", "methods", "save", "keep"}),
        (trueup.repair, {"repair", "methods"}),
    ):
        own = set(inspect.signature(verb).parameters)
        assert set(options) - without - own <= {"faults", "fault"}
        assert not own & without


def test_audit_and_repair_are_check_with_less_and_one(home):
    subject, corpus = planted("planted")
    same(trueup.repair(subject, corpus, FAULT, seed=3), trueup.check(subject, corpus, FAULT, seed=3))
    audited = trueup.audit(subject, corpus, FAULT, seed=3)
    assert audited["overconfidence"].after is None
    assert audited == trueup.check(subject, corpus, fault=FAULT, seed=3, repair=False)
    with pytest.raises(BadInput, match=r"faults and fault both name what to examine"):
        trueup.check(subject, corpus, FAULT, fault="copying")


def test_a_report_is_saved_opened_and_made_a_frame(home, tmp_path):
    made = trueup.repair(*planted("planted"), FAULT, save=tmp_path / "adapters", keep=True)
    comparison = made["overconfidence"]
    folder = made.save(tmp_path / "saved")
    assert (folder / "report.html").stat().st_size > 10_000
    back = trueup.Report.open(folder)
    assert back["overconfidence"].adapter is None, "the folder holds no adapter"
    assert back == replace(made, comparisons=(replace(comparison, adapter=None),))
    with pytest.raises(BadInput, match=r"exists and is not empty"):
        made.save(folder)
    made.save(folder, force=True)
    table = made.to_frame()
    assert isinstance(table, pd.DataFrame)
    first = table.iloc[0]
    assert (first["kind"], first["fault"], first["before"]) == (
        "severity",
        "overconfidence",
        comparison.before.severity,
    )
    assert first["difference_high"] == comparison.differences["severity"].high
    assert set(table[table["kind"] == "measure"]["key"]) >= set(comparison.before.measures)
    assert set(table[table["kind"] == "harm"]["key"]) == set(comparison.harm)
    assert table["before"].dtype == float
    audited = trueup.audit(*planted("planted"), FAULT).to_frame()
    assert list(audited.columns) == list(table.columns)
    assert audited["after"].isna().all()


WRONG: dict[str, tuple[Any, str]] = {
    "no model": (lambda s, c: trueup.check(None, c), "model is None"),
    "no data": (lambda s, c: trueup.check(s, None), "data is None"),
    "a number for a model": (lambda s, c: trueup.check(3, c), "is no model that can be examined"),
    "a number for data": (lambda s, c: trueup.check(s, 3), "cannot be read as labelled texts"),
    "a number for faults": (lambda s, c: trueup.check(s, c, 3), "faults is int here"),
    "a class for a fault": (
        lambda s, c: trueup.check(s, c, trueup.Overconfidence),
        r"Overconfidence is a class\. Give",
    ),
    "a word for a seed": (
        lambda s, c: trueup.check(s, c, seed="0"),
        "'seed' is '0' .str., which is not a whole number",
    ),
    "a word for classes": (
        lambda s, c: trueup.check("m", "d", classes="a,b"),
        "'classes' is 'a,b' .str., which is not a list",
    ),
    "a number for columns": (lambda s, c: trueup.check("m", "d", confounder=3), "'confounder' is 3 .int."),
    "a number for an adapter": (
        lambda s, c: trueup.load("m", 3),
        "'adapter' is 3 .int., which is not a word or a path or None",
    ),
    "a word for a limit": (
        lambda s, c: trueup.read("d.csv", limit="3"),
        "'limit' is '3' .str., which is not a whole number",
    ),
    "a number for a folder": (lambda s, c: trueup.check(s, c, save=3), "'save' is 3"),
    "numbers to compare": (
        lambda s, c: trueup.compare(3, 4),
        "'old' is 3 .int., which is not a trueup.Report or a word or a path",
    ),
    "a number to open": (lambda s, c: trueup.Report.open(3), "'folder' is 3 .int., which is not a word or a path"),
    "a number of faults": (lambda s, c: trueup.faults_of(3), "takes a list of names"),
    "a name of faults": (lambda s, c: trueup.faults_of("copying"), "takes a list of names"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_type_is_a_sentence(kind):
    wrong, says = WRONG[kind]
    with pytest.raises(BadInput, match=says):
        wrong(*planted("planted"))


def test_numbers_of_numpy_are_whole_numbers_too():
    subject, corpus = planted("planted")
    assert trueup.audit(subject, corpus, FAULT, seed=np.int64(3)) == trueup.audit(subject, corpus, FAULT, seed=3)


def test_a_place_that_cannot_take_a_repair_is_refused_before_the_check(tmp_path, monkeypatch):
    """A repair that is learnt first would be lost."""
    monkeypatch.setattr(trueup.Overconfidence, "prepared", lambda *a, **k: pytest.fail("the check began"))
    file, mine = tmp_path / "file", tmp_path / "mine"
    file.write_text("x")
    (mine / "overconfidence").mkdir(parents=True)
    (mine / "overconfidence" / "thesis.txt").write_text("x")
    for place, says in ((file, "file"), (mine, "was not written by trueup: it holds 'thesis.txt'")):
        with pytest.raises(BadInput, match=says):
            trueup.repair(*planted("planted"), FAULT, save=place)
    assert [p.name for p in (mine / "overconfidence").iterdir()] == ["thesis.txt"]
    with pytest.raises(pytest.fail.Exception, match="the check began"):  # the control
        trueup.repair(*planted("planted"), FAULT, save=tmp_path / "new")
