"""A repair in another form says what the repair says: plain transformers and plain PEFT are asked, without trueup."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from export_cases import CLASSES, TEXTS, confidence, scaled, shaken

import trueup
from trueup import exporting
from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput, Unavailable, Unsupported
from trueup.faults.adapter_remedy import adapted
from trueup.faults.overconfidence.confidence_head import read_remedy
from trueup.measure import confidence_scores as scores
from trueup.run import onnx
from trueup.run.predict import predict
from trueup.run.same_logits import Same
from trueup.subject import adapter as files
from trueup.subject.beside import read_card
from trueup.subject.new_adapter import Prefix, Prompt
from trueup.subject.quiet import quiet
from trueup.subject.repaired import open_repaired

HAS_ONNX = all(find_spec(name) for name in onnx.NEEDED)


def corpus() -> Corpus:
    return Corpus(TEXTS, np.arange(len(TEXTS)) % 3, CLASSES, np.array(["test"] * len(TEXTS)))


def logits(model: Any, tok: Any, text: str) -> np.ndarray:
    with torch.no_grad():
        return model(**tok(text, return_tensors="pt", return_token_type_ids=False)).logits[0].numpy()


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2", "llama"])
def test_a_confidence_head_becomes_a_plain_classifier_and_a_predict_file(family, tmp_path):
    subject, repair = confidence(family, tmp_path)
    done = trueup.export(repair.parent, "merged", tmp_path / "served")
    assert done.apart < 1e-5
    assert (done.equal, done.texts, done.synthetic) == (32, 32, True)
    with quiet():
        net = transformers.AutoModelForSequenceClassification.from_pretrained(done.folder)
    assert net.config.id2label == dict(enumerate(CLASSES)), "the added score is no class that a pipeline could answer"
    assert [p.name for p in done.folder.glob("*.safetensors")] == ["model.safetensors"], (
        "servers take each for the model's weights"
    )
    remedy = read_remedy(repair, subject)
    with remedy.on(subject) as repaired:
        said = predict(repaired, corpus())
    pipe = transformers.pipeline("text-classification", str(done.folder))
    assert [p["label"] for p in pipe(TEXTS)] == [CLASSES[i] for i in said.predicted]
    code = (
        f"import sys\nsys.path.insert(0, {str(done.folder)!r})\nimport json, predict\n"
        f"told = [predict.predict(t) for t in {TEXTS!r}]\nassert 'trueup' not in sys.modules\n"
        "from concurrent.futures import ThreadPoolExecutor\n"  # threads do not read each other's features
        f"with ThreadPoolExecutor(8) as pool:\n    assert list(pool.map(predict.predict, {TEXTS!r} * 40)) == told * 40\n"
        "print(json.dumps(told))"
    )
    told = json.loads(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    )
    assert [t[0] for t in told] == [CLASSES[i] for i in said.predicted]
    assert np.allclose([t[1] for t in told], said.confidence, atol=1e-5)
    assert "CERTIFIED = {0.05: 0.7}" in (done.folder / "predict.py").read_text()


@pytest.mark.parametrize(
    ("family", "lora"), [("llama", False), ("gpt2", False), ("gpt2", True), ("llama", True), ("mamba", False)]
)
@pytest.mark.parametrize("form", ["merged", "lora"])
def test_scaled_units_in_other_forms(family, lora, form, tmp_path):
    _, repair = scaled(family, tmp_path, lora=lora, factor=0.25)
    if (family, form) == ("mamba", "lora"):
        with pytest.raises(Unsupported, match="PEFT puts no such LoRA on 'mamba'"):
            trueup.export(repair, form, tmp_path / "served")
        assert not (tmp_path / "served").exists()
        return
    done = trueup.export(repair, form, tmp_path / "served")
    assert done.apart < 1e-5
    tok = transformers.AutoTokenizer.from_pretrained(done.folder)
    with quiet():
        base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / f"base-{family}", dtype=torch.float32)
        was = peft.PeftModel.from_pretrained(base, repair).eval()
        want = [logits(was, tok, t) for t in TEXTS]
        if form == "merged":
            now = transformers.AutoModelForCausalLM.from_pretrained(done.folder, dtype=torch.float32).eval()
        else:
            fresh = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / f"base-{family}", dtype=torch.float32)
            now = peft.PeftModel.from_pretrained(fresh, done.folder).eval()
        with was.disable_adapter():
            bare = [logits(was, tok, t) for t in TEXTS]
    got = [logits(now, tok, t) for t in TEXTS]
    size = max(np.abs(w).max() for w in want)
    assert max(np.abs(g - w).max() for g, w in zip(got, want, strict=True)) < 1e-5 * size
    assert max(np.abs(b - w).max() for b, w in zip(bare, want, strict=True)) > 1e-3 * size, (
        "the control: the repair does something"
    )
    if form == "lora":
        config = json.loads((done.folder / "adapter_config.json").read_text())
        # Servers take one rank and one scaling, and two units are scaled in one layer and one in the other.
        assert (config["r"], config["lora_alpha"], done.rank) == (2, 2, 2)
        assert not config["rank_pattern"]
        assert not config["alpha_pattern"]


def test_an_ia3_of_outputs_becomes_a_lora_unless_it_scales_a_bias(tmp_path):
    from trueup.subject.load import load

    for family, name, refused in (("llama", "k_proj", False), ("gpt2", "c_attn", True)):
        subject, repair = scaled(family, tmp_path)
        config = peft.IA3Config(target_modules=[name], feedforward_modules=[], task_type="CAUSAL_LM")
        with quiet(), torch.random.fork_rng():
            torch.manual_seed(0)
            net = transformers.AutoModelForCausalLM.from_pretrained(subject.source.base, dtype=torch.float32)
            for n, p in net.named_parameters():
                if n.endswith("c_attn.bias"):
                    p.data += 0.1
            net.save_pretrained(tmp_path / f"biased-{family}")
            subject.tokenizer.save_pretrained(tmp_path / f"biased-{family}")
            model = peft.get_peft_model(net, config)
        for n, p in model.named_parameters():
            if "ia3_l" in n:
                p.data[:5] = 0.3
        live = load(model, tokenizer=subject.tokenizer, shots=2)
        repair = adapted("copying", live, *files.adapter_of(live), {"describe": ""}).save(tmp_path / f"own-{family}")
        where = str(tmp_path / f"biased-{family}")
        if refused:
            with pytest.raises(Unsupported, match=r"scales the bias of .* export it merged"):
                trueup.export(repair, "lora", tmp_path / "no", model=where)
            assert trueup.export(repair, "merged", tmp_path / "merged", model=where).apart < 1e-5
        else:
            done = trueup.export(repair, "lora", tmp_path / family, model=where)
            assert (done.apart < 1e-5, done.rank) == (True, 5)


@pytest.mark.parametrize(("recipe", "word"), [(Prompt(4), "prompt"), (Prefix(2), "prefix")])
def test_a_prompt_says_that_it_cannot_be_merged(recipe, word, tmp_path):
    from trueup.subject.new_adapter import fresh
    from trueup.subject.template import Template
    from trueup.subject.tiny import make_base

    words = Template("say {text} now", ("good", "bad", "cat"))
    subject = shaken(fresh(str(make_base("gpt2", tmp_path / "b")), recipe, CLASSES, template=words, max_length=32))
    repair = adapted("confounding", subject, *files.adapter_of(subject), {"describe": ""}).save(
        tmp_path / "confounding"
    )
    for form, said in (("merged", "merged into its base"), ("lora", "written as a LoRA")):
        with pytest.raises(Unsupported, match=rf"A {word} cannot be {said}: .*PeftModel\.from_pretrained"):
            trueup.export(repair, form, tmp_path / "served")
    assert not (tmp_path / "served").exists()


@pytest.mark.skipif(not HAS_ONNX, reason="needs the extra trueup[onnx]")
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_onnx_runtime_says_the_same(family, tmp_path):
    import onnxruntime

    subject, repair = confidence(family, tmp_path)
    done = trueup.export(repair, "onnx", tmp_path / "served")
    assert done.apart < 1e-5
    session = onnxruntime.InferenceSession(str(done.folder / "model.onnx"))
    tok = transformers.AutoTokenizer.from_pretrained(done.folder)
    want = predict(subject, corpus())
    with read_remedy(repair, subject).on(subject) as repaired:
        said = predict(repaired, corpus())
    for i, text in enumerate(TEXTS):
        given = tok(text, return_tensors="np", return_token_type_ids=False)
        got, features, sure = session.run(["logits", "features", "confidence"], dict(given))
        assert np.allclose(got[0], want.logits[i], atol=1e-4)
        assert np.allclose(features[0] if features.ndim == 2 else features[0, -1], want.features[i], atol=1e-4)
        assert sure.shape == (1,)
        assert sure[0] == pytest.approx(said.confidence[i], abs=1e-5)
    assert done.confidence is not None
    assert done.confidence < 1e-5
    assert len(set(said.confidence)) == len(TEXTS), "a constant could not be told from a confidence"


@pytest.mark.parametrize(
    "form", ["merged", "lora", pytest.param("onnx", marks=pytest.mark.skipif(not HAS_ONNX, reason="no onnx"))]
)
def test_a_readme_says_what_each_name_in_its_lines_is(form, tmp_path):
    page = (trueup.export(confidence("bert", tmp_path)[1], form, tmp_path / "served").folder / "README.md").read_text(
        "utf-8"
    )
    lines, after = page.partition("```python\n")[2].split("```", 1)
    used = {n for n in ast.walk(ast.parse(lines)) if isinstance(n, ast.Name)}
    made = {n.id for n in used if isinstance(n.ctx, ast.Store)}
    made |= {
        a.asname or a.name
        for n in ast.walk(ast.parse(lines))
        if isinstance(n, ast.Import | ast.ImportFrom)
        for a in n.names
    }
    given = {n.id for n in used} - made
    assert "FOLDER" in given
    assert all(f"`{n}` is " in after for n in given)


READER = """
import json, re, sys
sys.modules["torch"] = sys.modules["trueup"] = None
FOLDER, text = sys.argv[1], json.loads(sys.argv[2])
lines = re.search(r"```python\\n(.*?)```", open(FOLDER + "/README.md", encoding="utf-8").read(), re.DOTALL)[1]
exec(lines)
print(json.dumps([logits.tolist(), confidence.tolist(), label.tolist()]))
"""


@pytest.mark.skipif(not HAS_ONNX, reason="needs the extra trueup[onnx]")
def test_the_readmes_lines_need_neither_torch_nor_trueup(tmp_path):
    subject, repair = confidence("bert", tmp_path)
    done = trueup.export(repair, "onnx", tmp_path / "served")
    told = subprocess.run([sys.executable, "-c", READER, str(done.folder), json.dumps(TEXTS)],
                          capture_output=True, text=True, check=True)  # fmt: skip
    got, sure, label = json.loads(told.stdout)
    with read_remedy(repair, subject).on(subject) as repaired:
        said = predict(repaired, corpus())
    assert np.allclose(got, said.logits[:, :3], atol=1e-4)
    assert np.allclose(sure, said.confidence, atol=1e-5)
    assert label == said.predicted.tolist()


class Net(torch.nn.Module):
    """Half the ids as logits: all that `onnx.write` asks of a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.last = torch.nn.Identity()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return SimpleNamespace(logits=self.last(input_ids.float() * attention_mask / 2))


@pytest.mark.skipif(not HAS_ONNX, reason="needs the extra trueup[onnx]")
@pytest.mark.parametrize(
    "score",
    [
        scores.MaxSoftmax(3), scores.SmoothMax(3, 3), scores.NegativeEntropy(3), scores.Margin(3), scores.Energy(3),
        scores.MaxLogit(3), scores.PNorm(3, 0), scores.PNorm(3, 4), scores.ProbabilityOfPredicted(3, 3),
        scores.ShrunkProbe(3, 0.8, (0.1, -0.2, 0.3)), scores.Column(4), scores.ResponseLogOdds(3),
    ],
    ids=lambda s: f"{type(s).__name__}-{getattr(s, 'p', '')}".rstrip("-"),
)  # fmt: skip
def test_every_score_is_a_graph(score, tmp_path):
    import onnxruntime

    whole = scores.Calibrated(score, 0.9, 0.2)
    rows = np.array([[1, 5, 2, 7, 3, 2], [4, 0, 4, 1, 9, 3], [0, 2, 9, 1, 1, 1]])
    given = {"input_ids": torch.from_numpy(rows[:1]), "attention_mask": torch.ones(1, 6, dtype=torch.long)}
    onnx.write(Net(), tmp_path / "m.onnx", given, head="last", classes=3, score=whole)
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    got, sure = session.run(["logits", "confidence"], {"input_ids": rows, "attention_mask": np.ones_like(rows)})
    assert np.allclose(got, rows[:, :3] / 2)
    assert np.allclose(sure, whole(rows / 2), atol=1e-12)


def test_without_the_extra_onnx_is_a_sentence(tmp_path, monkeypatch):
    _, repair = confidence("bert", tmp_path)
    monkeypatch.setattr(onnx, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match=r"needs onnx, onnxscript, onnxruntime.* pip install 'trueup\[onnx\]'"):
        trueup.export(repair, "onnx", tmp_path / "served")
    assert not (tmp_path / "served").exists()


def test_folders_that_cannot_be_exported(tmp_path):
    subject, repair = confidence("bert", tmp_path)
    out = repair.parent
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "config.json").write_text("{}")
    plain = tmp_path / "plain"
    plain.mkdir()
    files.save_tuned(subject, plain)
    empty = tmp_path / "empty"
    empty.mkdir()

    def refused(said: str, *args: Any, **options: Any) -> None:
        with pytest.raises(BadInput, match=said):
            trueup.export(*args, **options)

    refused("exists and is not empty", repair, "merged", taken)
    refused("holds the repair itself", repair, "merged", out, force=True)
    refused("holds the repair itself", repair, "merged", repair, force=True)
    refused("is a PEFT adapter, and no repair that trueup made", plain, "merged", tmp_path / "x")
    refused("holds no repair, so there is nothing to export", empty, "merged", tmp_path / "x")
    refused("There is no folder", tmp_path / "nowhere", "merged", tmp_path / "x")
    refused(r"and not as 'merge'\. Did you mean 'merged'", repair, "merge", tmp_path / "x")
    shutil.copytree(repair, out / "confounding")
    refused(
        r"holds 2 repairs: 'confounding', 'overconfidence'\. Say which: --fault confounding",
        out,
        "merged",
        tmp_path / "x",
    )
    refused(r"no repair of 'copying'", out, "merged", tmp_path / "x", fault="copying")
    refused(
        r"is a repair of overconfidence, and not of 'copying'",
        out / "overconfidence",
        "merged",
        tmp_path / "x",
        fault="copying",
    )
    assert trueup.export(out, "merged", tmp_path / "chosen", fault="overconfidence").apart < 1e-5
    (repair / "trueup.json").write_text((repair / "trueup.json").read_text().replace("0.9", "0.8"))
    refused("changed 'trueup.json'", repair, "merged", tmp_path / "x")
    assert (taken / "config.json").read_text() == "{}"
    assert not (tmp_path / "x").exists()


def test_a_form_that_says_something_else_is_not_written(tmp_path, monkeypatch):
    from trueup.subject import repaired

    _, repair = confidence("bert", tmp_path)
    real = repaired.merged

    def wrong(got: Any) -> Any:
        net = real(got)
        next(p for n, p in net.named_parameters() if n.endswith("query.weight")).data[0] += 0.1
        return net

    monkeypatch.setattr(repaired, "merged", wrong)
    with pytest.raises(Unsupported, match=r"says something else: logits differ by .* Nothing was written"):
        trueup.export(repair, "merged", tmp_path / "served")
    assert not (tmp_path / "served").exists()


def test_a_quantised_base_cannot_be_merged(tmp_path):
    _, repair = confidence("bert", tmp_path)
    base = tmp_path / "base-bert" / "config.json"
    told = json.loads(base.read_text()) | {
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}
    }
    base.write_text(json.dumps(told))
    with pytest.raises(Unsupported, match=r"quantised, and a repair put into them would be rounded .* --model"):
        trueup.export(repair, "merged", tmp_path / "served")


def test_a_card_that_is_no_number_makes_no_program(tmp_path):
    from trueup.measure.confidence_scores import score_from_json

    score = {"kind": "MaxSoftmax", "classes": "0]; import os; x = [0"}
    with pytest.raises(BadInput, match="holds what is no number"):
        score_from_json({"slope": 1.0, "intercept": 0.0, "score": score})
    assert score_from_json({"slope": 1.0, "intercept": 0.0, "score": score | {"classes": 2}}).slope == 1.0


def test_test_texts_of_the_check_are_taken(tmp_path):
    from trueup.faults.overconfidence.planted import planted

    subject, data = planted("planted")
    fault = trueup.Overconfidence(resamples=20, folds=2, members=1, passes=0)
    out = tmp_path / "out"
    rows = [{"text": t, "label": data.classes[y]} for t, y in zip(data.text, data.label, strict=True)]
    (tmp_path / "adapter").mkdir()
    files.save_tuned(subject, tmp_path / "adapter")
    (tmp_path / "data.json").write_text(json.dumps(rows))
    job = trueup.Job(subject.source.base, str(tmp_path / "data.json"), adapter=str(tmp_path / "adapter"), classes=data.classes,
                     faults=(fault.name,), max_length=32, keep=True,
                     knobs={"overconfidence": {"resamples": 20, "folds": 2, "members": 1}})  # fmt: skip
    report = trueup.run_job(job, out)
    if report["overconfidence"].adapter is None:
        pytest.fail(report["overconfidence"].remedy)
    done = trueup.export(out, "merged", tmp_path / "served")
    assert not done.synthetic
    assert done.equal == done.texts > 32
    folder = out / "overconfidence"
    inputs, _ = exporting._texts(folder, open_repaired(folder, read_card(folder), None))
    longest = [i["input_ids"].shape[1] for i in inputs]
    assert longest[: exporting.LONG] == [32] * exporting.LONG, "as long as the audit reads"
    assert max(longest[exporting.LONG :]) < 32


def test_the_command_line_prints_the_proof(tmp_path, capsys):
    from trueup.cli import main

    _, repair = confidence("bert", tmp_path)
    for argv, code, said in (
        (
            ["export", str(repair), "--as", "merged", "-o", str(tmp_path / "served")],
            0,
            "On 32 random texts the logits differ by ",
        ),
        (["export", str(repair), "--as", "merged", "-o", str(tmp_path / "served")], 2, "exists and is not empty"),
        (["export", str(tmp_path), "--as", "merged", "-o", str(tmp_path / "x")], 2, "holds no repair"),
        (["export", str(repair), "--as", "gguf", "-o", str(tmp_path / "x")], 2, "'gguf' is not one of"),
    ):
        with pytest.raises(SystemExit) as e:
            main(argv)
        told = capsys.readouterr()
        assert (e.value.code, said in told.out + told.err) == (code, True), told


@pytest.mark.parametrize("apart", [0.01, float("nan")])
def test_a_confidence_that_the_file_computes_otherwise_is_refused(apart, tmp_path, monkeypatch):
    _, repair = confidence("bert", tmp_path)
    alike = Same(0.0, 3, 3)
    monkeypatch.setattr(exporting, "_onnx", lambda *a: exporting._Made(alike, confidence=apart))
    with pytest.raises(Unsupported, match="confidences differ"):
        trueup.export(repair, "onnx", tmp_path / "served")
    assert not (tmp_path / "served").exists()
    monkeypatch.setattr(exporting, "_onnx", lambda *a: exporting._Made(alike, confidence=1e-6))
    assert "confidence differs by at most 1e-06" in trueup.export(repair, "onnx", tmp_path / "served").sentence
