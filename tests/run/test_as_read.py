"""What a user of transformers and PEFT would be told of a model, one text at a time: where it is read, cut and rounded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from tokenizers import processors

import trueup
from drawn_weights import move
from trueup.corpus.corpus import Corpus
from trueup.errors import Unsupported
from trueup.faults.overconfidence.confidence_head import null_remedy
from trueup.report import html
from trueup.run import forward
from trueup.run import predict as runs
from trueup.run.predict import predict
from trueup.run.proof import deviation, equal, tolerance
from trueup.subject import adapter as files
from trueup.subject.beside import CARD
from trueup.subject.load import load
from trueup.subject.new_adapter import Lora, Prompt, fresh
from trueup.subject.quiet import quiet
from trueup.subject.subject import Subject

CLASSES = ("a", "b")
TEXT = ["good cat sat", "bad", "the cat bad good mat sat on the good dog", "very loud film it was [SEP]"]
DECODERS = ("gpt2", "opt", "bloom", "gpt_neox", "llama", "mistral", "gemma", "gemma3_text")


def corpus(texts: list[str] = TEXT, repeat: int = 1) -> Corpus:
    n = len(texts) * repeat
    return Corpus(texts * repeat, np.arange(n) % 2, CLASSES, np.array(["test"] * n))


def taught(test: Corpus) -> Corpus:
    """With as many calibration examples, which an audit of the confidence learns from."""
    more = [f"{t} cat dog" for t in test.text]
    parts = np.repeat(["test", "calibration"], len(test))
    return Corpus([*test.text, *more], np.tile(test.label, 2), test.classes, parts)


def trained(subject: Subject) -> Subject:
    """A new LoRA as if it had been trained: a check refuses one that does nothing."""
    move(subject.model, 0.02)
    return subject


def ending(base: Path) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer that ends every text with its end token, which serves to pad as well: Llama's, as most people set it up."""
    tok = transformers.AutoTokenizer.from_pretrained(base)
    tok.eos_token = "[SEP]"
    tok.pad_token = "[SEP]"
    tok._tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [SEP]", special_tokens=[("[SEP]", tok.convert_tokens_to_ids("[SEP]"))]
    )
    return tok


def classifier(base: Path, tok: Any, **config: Any) -> Any:
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        net = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
        net.config.pad_token_id = tok.pad_token_id
        made = peft.get_peft_model(net, peft.LoraConfig(task_type="SEQ_CLS", r=2, init_lora_weights=False, **config))
        with torch.no_grad():
            for p in made.parameters():
                if p.requires_grad:
                    p.add_(torch.randn_like(p) * 0.05)
    return made.eval()


def alone(model: Any, tok: Any, texts: list[str] = TEXT) -> np.ndarray:
    """The oracle: plain transformers and PEFT, one text at a time."""
    with torch.no_grad():
        return torch.cat([model(**tok(t, return_tensors="pt")).logits for t in texts]).numpy()


# ------------------------------------------------------------------------------------------- where an answer is read


@pytest.mark.parametrize("family", DECODERS)
def test_a_decoder_classifier_is_read_where_transformers_reads_it(family: str, base_of: Any):
    tok = ending(base_of(family))
    model = classifier(base_of(family), tok)
    want = alone(model, tok)
    subject = load(model, tokenizer=tok, classes=CLASSES)
    got = predict(subject, corpus()).logits
    np.testing.assert_allclose(got, want, atol=1e-5 * max(1, np.abs(want).max()))
    # The positive control: at the end token, where it was read before, the logits are others.
    rows = forward.tokenize(subject, corpus())
    assert all(r[-1] == tok.pad_token_id for r in rows)
    batch = forward.collate(rows, tok.pad_token_id)
    with torch.inference_mode():
        x = forward.at_last(forward.backbone(subject, batch.ids, batch.mask).last_hidden_state, batch.mask)
        at_end = forward.reader(subject)(x).numpy()
    assert np.abs(at_end - want).max() > 0.01


def test_a_model_that_names_no_padding_is_read_at_its_end(base_of: Any):
    tok = ending(base_of("llama"))
    model = classifier(base_of("llama"), tok)
    at_answer = alone(model, tok)
    model.get_base_model().config.pad_token_id = None
    want = alone(model, tok)
    assert np.abs(want - at_answer).max() > 0.01
    subject = load(model, tokenizer=tok, classes=CLASSES)
    np.testing.assert_allclose(predict(subject, corpus()).logits, want, atol=1e-5)
    assert model.get_base_model().config.pad_token_id is None


def test_a_soft_prompt_is_read_at_its_end_as_peft_does(base_of: Any):
    tok = ending(base_of("llama"))
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        net = transformers.AutoModelForSequenceClassification.from_pretrained(base_of("llama"), num_labels=2)
        net.config.pad_token_id = tok.pad_token_id
        model = peft.get_peft_model(net, peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)).eval()
    subject = load(model, tokenizer=tok, classes=CLASSES)
    want = alone(model, tok)
    np.testing.assert_allclose(predict(subject, corpus()).logits, want, atol=1e-5 * max(1, np.abs(want).max()))


def test_a_card_says_which_token_is_padding(base_of: Any, tmp_path: Path):
    tok = ending(base_of("llama"))
    model = classifier(base_of("llama"), tok)
    want = alone(model, tok)
    subject = load(model, tokenizer=tok, classes=CLASSES)
    null_remedy(subject).save(tmp_path / "repair")
    lines = (tmp_path / "repair" / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    assert f"base.config.pad_token_id = {tok.pad_token_id}" in lines
    for i, text in enumerate(TEXT):
        space: dict[str, Any] = {"BASE": str(base_of("llama")), "FOLDER": str(tmp_path / "repair"), "text": text}
        with quiet():
            exec(lines, space)
        np.testing.assert_allclose(space["out"][0, :2].detach().numpy(), want[i], atol=1e-5)


# ---------------------------------------------------------------------------------------------------- what is cut


def test_what_is_longer_than_the_model_reads_is_counted_and_warned_of(base_of: Any):
    long = ["good cat " * 40, "bad film " * 30]
    texts = [*long, *["good cat sat", "bad dog"] * 14]
    subject = fresh(str(base_of("bert")), Lora(2), CLASSES, max_length=16, device="cpu")
    assert forward.cut(subject, corpus(texts)).tolist() == [True, True] + [False] * 28


@pytest.mark.parametrize(("long", "warned"), [(1, False), (6, True)])
def test_the_report_warns_from_five_per_cent_on(long: int, warned: bool, base_of: Any):
    rng = np.random.default_rng(0)
    words = np.array(["good", "bad", "cat", "dog", "film", "loud"])
    texts = [" ".join(rng.choice(words, 30 if i < long else 5)) for i in range(60)]
    subject = trained(fresh(str(base_of("bert")), Lora(2), CLASSES, max_length=16, device="cpu"))
    report = trueup.check(subject, taught(corpus(texts)), [trueup.Overconfidence(resamples=20)], repair=False)
    assert report.provenance["test texts cut there"] == f"{long} of 60 ({long / 60:.1%})"
    assert report.provenance["longest input"] == "16 tokens"
    said = [w for w in report.warnings if "longer than 16 tokens" in w]
    assert bool(said) == warned
    if warned:
        assert said[0].startswith("10% of the test texts are longer than 16 tokens")
        assert "The model takes up to 128: raise --max-length." in said[0]
        assert f"<strong>Warning:</strong> {said[0][:40]}" in html.page(report)


def test_a_foreign_adapter_is_read_as_far_as_the_model_takes(base_of: Any, tmp_path: Path):
    base = base_of("bert")
    with quiet():
        net = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
        config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
        peft.get_peft_model(net, config).save_pretrained(tmp_path)
    assert load(str(base), str(tmp_path), classes=CLASSES, device="cpu").max_length == 128
    assert load(str(base), str(tmp_path), classes=CLASSES, device="cpu", max_length=32).max_length == 32
    subject = fresh(str(base), Lora(2), CLASSES, max_length=64, device="cpu")
    files.save_tuned(subject, tmp_path)
    (tmp_path / CARD).write_text('{"classes": ["a", "b"], "max_length": 64}')
    assert load(str(base), str(tmp_path), device="cpu").max_length == 64


# ------------------------------------------------------------------------------------------------- padded batches


def test_what_peft_says_in_padded_batches_is_told(base_of: Any, monkeypatch: pytest.MonkeyPatch):
    subject = fresh(str(base_of("llama")), Prompt(3), CLASSES, max_length=32, device="cpu")
    rng = np.random.default_rng(0)
    words = np.array(["good", "bad", "cat", "dog", "film", "loud"])
    texts = [" ".join(rng.choice(words, rng.integers(1, 12))) for _ in range(60)]
    some = corpus(texts)
    some = Corpus(some.text, predict(subject, some).predicted, CLASSES, some.split)
    for side in ("right", "left"):
        subject.tokenizer.padding_side = side
        got = runs.padded_answers(subject, some)
        want = []
        for i in range(0, 60, 8):
            given = subject.tokenizer(texts[i : i + 8], return_tensors="pt", padding=True, return_token_type_ids=False)
            with torch.no_grad():
                want += subject.model(**given).logits.argmax(-1).tolist()
        assert got.tolist() == want
        assert side == "left" or (got != some.label).any(), "a batch changes answers, or the test shows nothing"
        flipped = Corpus(some.text, np.where(np.arange(60) % 5 == 0, 1 - some.label, some.label), CLASSES, some.split)
        report = trueup.check(subject, taught(flipped), [trueup.Overconfidence(resamples=20)], repair=False)
        (note,) = [n for n in report.notes if "padded batches" in n]
        assert (
            f"right on {(np.array(want) == flipped.label).mean():.1%} of 60 test texts in padded batches of 8" in note
        )
        assert "on 80.0% one text at a time" in note

    def tight(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA: 2 GiB")

    monkeypatch.setattr(forward, "batched_logits", tight)
    report = trueup.check(subject, taught(flipped), [trueup.Overconfidence(resamples=20)], repair=False)
    (note,) = [n for n in report.notes if "padded batches" in n]
    assert "was not measured: such a batch does not fit in memory" in note


def test_other_adapters_are_not_told_of_padding(base_of: Any):
    subject = trained(fresh(str(base_of("llama")), Lora(2), CLASSES, max_length=32, device="cpu"))
    texts = [f"good {'cat ' * (i % 5)}bad" for i in range(60)]
    report = trueup.check(subject, taught(corpus(texts)), [trueup.Overconfidence(resamples=20)], repair=False)
    assert not [n for n in report.notes if "padded batches" in n]


# ------------------------------------------------------------------------------------------------------ short types


def test_a_model_in_bfloat16_is_read_in_bfloat16(base_of: Any, tmp_path: Path):
    tok = transformers.AutoTokenizer.from_pretrained(base_of("bert"))
    model = classifier(base_of("bert"), tok, target_modules=["query", "value"]).to(torch.bfloat16)
    subject = load(model, tokenizer=tok, classes=CLASSES)
    texts = [f"good {'cat ' * (i % 7)}bad film" for i in range(20)]
    with torch.no_grad():
        want = torch.cat([model(**tok(t, return_tensors="pt")).logits for t in texts]).double().numpy()
    got = predict(subject, corpus(texts)).logits.astype(float)
    step = 2.0**-8 * np.abs(want).max()
    assert np.abs(got - want).max() <= 4 * step
    rounded = torch.tensor(got).to(torch.bfloat16).double().numpy()
    np.testing.assert_array_equal(rounded, got)  # its logits are numbers that bfloat16 has
    null_remedy(subject).save(tmp_path / "repair")
    lines = (tmp_path / "repair" / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    assert "dtype='bfloat16'" in lines


def test_a_threshold_is_certified_on_what_the_card_loads(base_of: Any, tmp_path: Path):
    """Of a model in bfloat16: the card's lines, one text at a time, give the confidences that the certificate was made on."""
    rng = np.random.default_rng(0)
    words = np.array(["good", "bad", "cat", "dog", "film", "loud", "fine", "poor"])
    texts = [" ".join(rng.choice(words, 6)) for _ in range(300)]
    tok = transformers.AutoTokenizer.from_pretrained(base_of("bert"))
    model = classifier(base_of("bert"), tok, target_modules=["query", "value"]).to(torch.bfloat16)
    subject = load(model, tokenizer=tok, classes=CLASSES)
    predicted = predict(subject, corpus(texts)).predicted
    label = np.where(rng.random(300) < 0.25, 1 - predicted, predicted)
    some = Corpus(texts, label, CLASSES, np.array(["calibration"] * 240 + ["test"] * 60))
    remedy = trueup.Overconfidence(resamples=20).repair(subject, some, None, seed=0)  # type: ignore[arg-type]
    remedy.save(tmp_path / "repair")  # type: ignore[union-attr]
    lines = (tmp_path / "repair" / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    with remedy.on(subject) as repaired:  # type: ignore[union-attr]
        ours = predict(repaired, some.part("test")).confidence
    theirs = []
    for text in some.part("test").text[:12]:
        space: dict[str, Any] = {"BASE": str(base_of("bert")), "FOLDER": str(tmp_path / "repair"), "text": text}
        with quiet():
            exec(lines, space)
        theirs.append(float(space["confidence"]))
    # Another order of summing moves a logit by one step of bfloat16 at most.
    assert np.median(np.abs(ours[:12] - theirs)) < 1e-4
    assert np.abs(ours[:12] - theirs).max() < 2e-3


# ----------------------------------------------------------------------------------------------------------- proofs


def test_a_head_that_is_not_what_the_model_computes_is_refused(base_of: Any, monkeypatch: pytest.MonkeyPatch):
    subject = fresh(str(base_of("bert")), Lora(2), CLASSES, max_length=32, device="cpu")
    predict(subject, corpus())
    other = fresh(str(base_of("bert")), Lora(2), CLASSES, max_length=32, device="cpu")
    plain = forward.reader
    monkeypatch.setattr(forward, "reader", lambda s: lambda x: plain(s)(x) * 1.1)
    with pytest.raises(Unsupported, match=r"from features to logits of a BertForSequenceClassification does not give"):
        predict(other, corpus())


def test_a_repair_of_nothing_that_changes_something_is_no_repair(base_of: Any, monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["good", "bad", "cat", "dog"], 5)) for _ in range(120)]
    some = Corpus(texts, np.arange(120) % 2, CLASSES, np.array((["calibration"] * 60) + (["test"] * 60)))
    subject = trained(fresh(str(base_of("bert")), Lora(2), CLASSES, max_length=32, device="cpu"))
    broken = null_remedy(subject)
    broken.head.weight.mul_(1.5)
    monkeypatch.setattr(trueup.Overconfidence, "null", lambda self, s: broken)
    (one,) = trueup.check(subject, some, [trueup.Overconfidence(resamples=20)]).comparisons
    assert one.after is None
    assert one.remedy.startswith(
        "A repair that changes nothing does not give what the model itself gives: the logits differ"
    )


def test_deviation_is_relative_and_sees_what_is_no_number():
    a = torch.tensor([1.0, 1000.0])
    assert deviation(a * 1.001, a) == pytest.approx(0.001, rel=1e-3)
    assert deviation(a, a) == 0
    assert deviation(torch.tensor([1.0, float("nan")]), a) == float("inf")
    assert deviation(a[:1], a) == float("inf")
    assert tolerance(torch.float32) < 0.002
    assert tolerance(torch.bfloat16) == 0.05
    equal(a * 1.0001, a, "It", "numbers")
    with pytest.raises(Unsupported, match=r"numbers differ by 0\.01 of their size"):
        equal(a * 1.01, a, "It", "numbers")


def test_a_small_difference_of_large_terms_is_rounded_as_they_are():
    terms = torch.tensor([400.0, 400.0])
    own = torch.tensor([0.0857, -0.0857])
    equal(own + 1e-3, own, "It", "the logits", terms)
    with pytest.raises(Unsupported, match="differ by"):
        equal(own + 1e-3, own, "It", "the logits")
    with pytest.raises(Unsupported, match="differ by"):  # the control: a head that is not the model's
        equal(own * 2, own, "It", "the logits", terms)
