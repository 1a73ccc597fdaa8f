"""On the real embedded models and real text: fetched once into the user's cache, some minutes on two cores."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

import trueup
from trueup.corpus import mix
from trueup.corpus.corpus import Corpus
from trueup.faults.confounding import Confounding
from trueup.faults.overconfidence import Overconfidence
from trueup.run.heads import warm_start
from trueup.run.predict import predict
from trueup.subject.adapter import save_tuned
from trueup.subject.new_adapter import Lora, Prompt, fresh, prompt_embeddings
from trueup.tuning import TuneJob, tune

pytestmark = pytest.mark.slow


def _plain(folder, base: str, texts: list[str], also: str = "confidence") -> tuple[np.ndarray, np.ndarray]:
    """Run the five lines of the card in a process that has never heard of trueup: labels and one more number."""
    card = (folder / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    setup, each = code.split("model, tok = ")
    loading, *rest = ("model, tok = " + each).splitlines()
    script = "\n".join(
        [
            "import sys, json, torch; sys.modules['trueup'] = None",
            f"BASE, FOLDER, texts = {base!r}, {str(folder)!r}, json.load(sys.stdin)",
            setup, loading, "got = []", "for text in texts:", "  with torch.no_grad():",
            *("    " + line for line in rest if line.strip()),
            f"  got.append((int(label), float({also})))", "print(json.dumps(got))",
        ]
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps(texts), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    got = np.array(json.loads(done.stdout.strip().splitlines()[-1]))
    return got[:, 0].astype(int), got[:, 1]


def test_encoder_with_a_lora(tmp_path):
    """Tune, check, repair; the saved remedy says the same in plain PEFT, and no prediction changed."""
    from trueup.subject.checkpoint import resolve

    data, adapter, limit = "embedded:bbc", tmp_path / "adapter", 1100
    made = {"epochs": 1, "lr": 2e-3}  # so short that the confidence is far too low
    tuned = tune(TuneJob("embedded:minilm", data, Lora(), max_length=32, limit=limit, training=made), adapter)
    assert tuned.accuracy > 0.5  # five classes: chance is 0.2
    job = trueup.Job("embedded:minilm", data, adapter=str(adapter), limit=limit)
    report = trueup.run_job(job, tmp_path / "out")
    (comparison,) = report.comparisons
    assert comparison.before.verdict == "found"
    assert comparison.outcome in ("repaired", "reduced")
    assert comparison.after is not None
    assert np.array_equal(comparison.before.samples["predicted"], comparison.after.samples["predicted"])
    assert comparison.harm["accuracy"].value == 0
    saved = tmp_path / "out" / "overconfidence"
    subject = trueup.load("embedded:minilm", adapter=str(adapter))
    corpus = trueup.read(data).part("test").take(np.arange(20))
    with Overconfidence().read(saved, subject).on(subject) as repaired:
        ours = predict(repaired, corpus)
    label, confidence = _plain(saved, resolve("embedded:minilm"), list(corpus.text))
    assert np.array_equal(label, ours.predicted)
    assert np.abs(confidence - ours.confidence).max() <= 1e-5
    assert confidence.std() > 1e-3  # a constant would agree with anything


def test_decoder_with_a_verbaliser(tmp_path):
    """A causal model that answers with a word: its remedy is a sequence classifier on the same base, same numbers."""
    from trueup.subject.checkpoint import resolve

    subject = trueup.load(
        "embedded:smollm2", template="Review: {text}\nSentiment:", verbaliser=(" negative", " positive"), max_length=64
    )
    corpus = trueup.read("embedded:movie-reviews-short", limit=180, fractions=(0.1, 0.45, 0.45))
    fault = Overconfidence(resamples=200).prepared(subject, corpus, seed=0)
    test = corpus.part("test")
    finding = fault.audit(subject, test, seed=0)
    assert finding.measures["accuracy"].value > 0.6  # zero-shot; chance is 0.5
    learnt = fault.repair(subject, corpus, finding, seed=0)  # so few texts may teach nothing beyond doubt
    remedy = learnt if isinstance(learnt, trueup.Remedy) else fault.null(subject)
    saved = remedy.save(tmp_path / "remedy")
    few = test.take(np.arange(8))
    with remedy.on(subject) as repaired:
        ours = predict(repaired, few)
    label, confidence = _plain(saved, resolve("embedded:smollm2"), list(few.text))
    assert np.array_equal(label, ours.predicted)
    assert np.abs(confidence - ours.confidence).max() <= 1e-5


def _coupled(alpha: float) -> Corpus:
    """Real sentences of products and tweets, positive `alpha` times as often in tweets as in product reviews."""
    corpus = trueup.read("embedded:valence", attributes=("domain",), seed=0)
    corpus = corpus.take(np.isin(corpus.attributes["domain"], ("product", "tweet")))
    made = mix.shift(corpus, "domain", alpha_train=alpha, sizes=(400, 480, 400), alphas=(alpha,), draws=1, seed=0)
    parts = (made.train, made.tests[alpha][0])
    return Corpus(
        [t for c in parts for t in c.text], np.concatenate([c.label for c in parts]), corpus.classes,
        np.concatenate([c.split for c in parts]),
        attributes={"domain": np.concatenate([c.attributes["domain"] for c in parts])}, name=f"coupled {alpha:g}",
    )  # fmt: skip


@pytest.mark.parametrize("alpha", [1.0, 5.0])
def test_a_shortcut_in_real_text(tmp_path, alpha):
    """Where the domain goes with the label it is found and repaired; where it does not there is no fault and no repair."""
    from trueup.subject.checkpoint import resolve

    corpus = _coupled(alpha)
    made = fresh("embedded:minilm", Prompt(6), corpus.classes, max_length=24, device="cpu")
    warm_start(made, corpus.part("train"))
    start = prompt_embeddings(made)
    (tmp_path / "prompt").mkdir()
    save_tuned(made, tmp_path / "prompt", start=start)
    subject = trueup.load(
        "embedded:minilm", str(tmp_path / "prompt"), classes=corpus.classes, max_length=24, device="cpu"
    )
    fault, test = Confounding(resamples=200), corpus.part("test")
    before = fault.audit(subject, test, seed=0)
    assert before.found == (alpha == 5)
    remedy = fault.repair(subject, corpus, before, seed=0)
    if alpha == 1:
        assert isinstance(remedy, trueup.NoRemedy)
        return
    assert isinstance(remedy, trueup.Remedy)
    with remedy.on(subject) as repaired:
        after = fault.audit(repaired, test, seed=0)
        few = test.take(np.arange(20))
        ours = predict(repaired, few)
    change = fault.compare(before, after, seed=0)
    assert abs(after.severity) < before.severity / 2
    assert change["severity"].high < 0
    assert change["level"].low > 0
    margin = "(lambda z: z[0, 1] - z[0, 0])(model(**inputs).logits)"
    label, plain = _plain(remedy.save(tmp_path / "remedy"), resolve("embedded:minilm"), list(few.text), margin)
    assert np.array_equal(label, ours.predicted)
    assert np.abs(plain - (ours.logits[:, 1] - ours.logits[:, 0])).max() <= 1e-5


def test_few_shot_answers_and_pruned_units_of_the_embedded_decoder(tmp_path):
    """Real tokens (a digit after a space is two of them), real answers, and a pruned adapter that plain PEFT loads."""
    import peft
    import torch
    import transformers

    from trueup.corpus import tasks
    from trueup.run import prompts
    from trueup.run.answers import answers
    from trueup.run.edit import scaled
    from trueup.run.predict import predict
    from trueup.subject.adapter import write_adapter
    from trueup.subject.checkpoint import resolve
    from trueup.subject.load import load
    from trueup.subject.swap_adapter import wear
    from trueup.subject.units import scales_as_adapter, width_of

    base, beyond = load("embedded:smollm2", shots=4, device="cpu"), 0
    for name, right in (("vowels", 0.0), ("last-of-list", 0.7), ("largest-of-list", 0.0)):
        data = tasks.load(name, seed=0)
        subject = prompts.with_pool(base, data.part("train"))
        few = data.part("test").take(np.arange(10))
        if name == "vowels":  # "10" is no class, and begins like one
            few = data.part("test").take(np.isin(data.part("test").text, ("test", "area", *few.text[:4])))
        rows = prompts.rows(subject, few.text, prompts.drawn(subject, few))
        got = answers(subject, rows).answer
        for row, answer in zip(rows, got, strict=True):
            made = subject.model.generate(
                torch.tensor([row]), attention_mask=torch.ones(1, len(row)), max_new_tokens=4, do_sample=False,
                pad_token_id=subject.tokenizer.pad_token_id,
            )  # fmt: skip
            said = subject.tokenizer.decode(made[0, len(row) :]).split("\n")[0].strip()
            assert (subject.classes[answer] if answer >= 0 else "") == (said if said in subject.classes else "")
            beyond += said == "10" and answer < 0
        assert (got == few.label).mean() >= right
    assert beyond == 2
    units = width_of(subject, 18)
    scales = {18: (torch.arange(units) % 7 > 0).float(), 20: torch.full((units,), 0.5)}
    settings, tensors = scales_as_adapter(subject, scales)
    with scaled(subject, scales) as pruned:
        ours = predict(pruned, few).logits
    assert np.allclose(predict(wear(subject, settings, tensors), few).logits, ours, atol=1e-3)
    assert not np.allclose(predict(subject, few).logits, ours, atol=1e-1), "the units do something"
    write_adapter(tmp_path, settings, tensors)
    plain = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(resolve("embedded:smollm2")), str(tmp_path)
    ).eval()
    with torch.no_grad():
        theirs = [plain(torch.tensor([row])).logits[0, -1, subject.verbaliser_ids()].numpy() for row in rows]
    assert np.allclose(theirs, ours, atol=1e-3)


@pytest.mark.parametrize("name", ["minilm", "smollm2"])
def test_a_trained_prompt_leaves_the_first_layer_of_a_real_model_alone(name):
    """The certificate of rigidity on real weights and real text, and its control: positions that do not match."""
    import torch

    from trueup.run import forward
    from trueup.run.attention_change import Sums, by_layer, trace
    from trueup.run.train import Training, train
    from trueup.subject.swap_adapter import bare
    from trueup.subject.template import Template

    corpus = trueup.read("embedded:tweets", seed=0, limit=240)
    template = Template("{text}\nFeeling:", (" negative", " neutral", " positive")) if name == "smollm2" else None
    subject = fresh(f"embedded:{name}", Prompt(6), corpus.classes, template=template, max_length=48, device="cpu")
    part = corpus.part("train")
    few = part.take(np.random.default_rng(0).permutation(len(part))[:24])
    train(subject, few, Training(epochs=1, batch=8), lr=3e-2, seed=0)
    rows = forward.tokenize(subject, few)[:8]
    got = trace(subject, rows)
    assert np.nanmax(got.worst[0]) <= 1e-5
    assert got.residual[0].max() <= 1e-4 * max(1.0, got.mass[0].max())
    assert got.mass[0].max() > 0.01
    assert np.nanmax(got.change[1:]) > 0.01, "deeper layers move, through what the first one changed"
    assert np.nanmax(by_layer(subject, rows[:2]).change) <= 1e-3, "and by themselves they do not"
    if name == "minilm":
        sums = Sums(subject)
        with torch.inference_mode():
            sums.add(subject, bare(subject), forward.collate(rows, subject.tokenizer.pad_token_id), shift=0)
        assert np.nanmax(sums.result().worst[0]) > 0.01
