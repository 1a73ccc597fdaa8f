"""The card of a repair that is an adapter: its lines, run as they are written, say what trueup says."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import processors

from drawn_weights import move
from trueup.corpus.corpus import Corpus
from trueup.errors import BadInput
from trueup.faults.adapter_remedy import Adapted, adapted, with_head
from trueup.run.predict import predict
from trueup.subject import adapter as files
from trueup.subject.new_adapter import Lora, Prompt, fresh
from trueup.subject.quiet import quiet
from trueup.subject.subject import Head, Subject
from trueup.subject.swap_adapter import wear
from trueup.subject.template import Template

CLASSES = ("no", "yes", "maybe")
LONG = "the good film was very calm it sat on the mat and the bad dog was loud"
TEXT = ["good cat sat", "bad {second} {text}", LONG]
SECOND = ["poor film", "good {text} mat", "the cat was loud"]
TEMPLATE = Template("the {second} is {text} it", ("bad", "good", "cat"))
TWICE = Template("{text} {second} is {text} it", ("bad", "good", "cat"))
MOST = 14


def moved(subject: Subject) -> Subject:
    """The subject with a drawn adapter and head, so that no two texts are answered alike."""
    move(subject.model, 0.5, seed=3)
    return subject


def corpus(text: list[str], second: list[str] | None) -> Corpus:
    return Corpus(text, np.arange(len(text)) % 3, CLASSES, np.array(["test"] * len(text)), second=second)


def code_of(card: str) -> str:
    found = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert found is not None
    return found.group(1)


def said(saved: Path, base: str, text: str, second: str | None) -> tuple[np.ndarray, int]:
    """What the card's lines give for one example, run as they are written: logits of the classes, and the label."""
    here: dict[str, Any] = {"BASE": base, "FOLDER": str(saved), "text": text}
    here |= {} if second is None else {"second": second}
    with quiet(), torch.no_grad():
        exec(code_of((saved / "README.md").read_text()), here)
        logits = here["model"](**here["inputs"]).logits[0]
    if "words" in here:
        logits = logits[-1, here["words"]]
    return logits.numpy(), int(here["label"])


def check(remedy: Adapted, subject: Subject, folder: Path, text: list[str], second: list[str] | None) -> None:
    saved = remedy.save(folder / "remedy")
    with remedy.on(subject) as repaired:
        ours = predict(repaired, corpus(text, second))
    given = [None] * len(text) if second is None else second
    for i, (t, s) in enumerate(zip(text, given, strict=True)):
        if subject.template is not None:  # as the card says: `text` is cut at its end until the prompt fits
            while len(subject.tokenizer(subject.template.fill(t, s))["input_ids"]) > subject.max_length:
                t = t.rpartition(" ")[0]
        logits, label = said(saved, subject.source.base, t, s)
        want = ours.logits[i, : len(CLASSES)]
        assert np.abs(logits - want).max() <= 2e-5 * max(1.0, np.abs(want).max()), (t, s)
        assert label == ours.predicted[i]
    assert np.ptp(ours.logits, axis=0).max() > 1e-2, "the control: the texts are told apart"


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "gpt2"])
def test_the_lines_of_a_classifier(family: str, pair: bool, base_of: Callable[[str], Path], tmp_path: Path):
    subject = moved(fresh(str(base_of(family)), Lora(2), CLASSES, max_length=MOST, device="cpu"))
    own = subject.own_head()
    head = Head(own.weight.flip(0) * 2, own.bias)
    remedy = with_head("confounding", subject, head, {"describe": "Another head.", "pair": pair})
    check(remedy, subject, tmp_path, TEXT, SECOND if pair else None)
    card = (tmp_path / "remedy" / "README.md").read_text()
    assert f"truncation=True, max_length={MOST}" in card
    assert ("tok(text, second, " in card) == pair


@pytest.mark.parametrize("recipe", [Lora(2), Prompt(3)], ids=lambda r: r.name)
def test_the_lines_of_a_template_with_two_texts(recipe: Any, base_of: Callable[[str], Path], tmp_path: Path):
    subject = moved(fresh(str(base_of("gpt2")), recipe, CLASSES, template=TEMPLATE, max_length=MOST, device="cpu"))
    remedy = adapted("confounding", subject, *files.adapter_of(subject), {"describe": "The same."})
    check(remedy, subject, tmp_path, TEXT, SECOND)
    card = (tmp_path / "remedy" / "README.md").read_text()
    assert f"more than {MOST} tokens, trueup cuts `text` at its end until it fits; these lines do not" in card


def test_the_lines_of_a_template_that_says_a_text_twice(base_of: Callable[[str], Path], tmp_path: Path):
    subject = moved(fresh(str(base_of("gpt2")), Lora(2), CLASSES, template=TWICE, max_length=MOST, device="cpu"))
    remedy = adapted("confounding", subject, *files.adapter_of(subject), {"describe": "The same."})
    check(remedy, subject, tmp_path, TEXT[:2], SECOND[:2])


def test_the_lines_of_words_that_became_a_head(base_of: Callable[[str], Path], tmp_path: Path):
    subject = moved(fresh(str(base_of("gpt2")), Lora(2), CLASSES, template=TEMPLATE, max_length=MOST, device="cpu"))
    own = subject.own_head()
    head = Head(own.weight.flip(0) * 2, own.bias)
    check(with_head("confounding", subject, head, {"describe": "A head."}), subject, tmp_path, TEXT, SECOND)


@pytest.mark.parametrize("as_head", [False, True])
def test_the_lines_where_the_tokenizer_ends_every_text(as_head: bool, base_of: Callable[[str], Path], tmp_path: Path):
    plain_base, base = str(base_of("gpt2")), str(shutil.copytree(base_of("gpt2"), tmp_path / "base"))
    tok = transformers.AutoTokenizer.from_pretrained(base)
    tok.eos_token = "[SEP]"
    tok.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [SEP]", special_tokens=[("[SEP]", tok.eos_token_id)]
    )
    tok.save_pretrained(base)
    subject, plain = (
        moved(fresh(b, Lora(2), CLASSES, template=TEMPLATE, max_length=MOST, device="cpu")) for b in (base, plain_base)
    )
    assert subject.tokenizer("good").input_ids[-1] == tok.eos_token_id
    texts = corpus(TEXT, SECOND)
    assert np.array_equal(predict(subject, texts).logits, predict(plain, texts).logits), "read where the text stops"
    own = subject.own_head()
    about = {"describe": "The same."}
    head = Head(own.weight.flip(0) * 2, own.bias)
    remedy = (
        with_head("confounding", subject, head, about)
        if as_head
        else adapted("confounding", subject, *files.adapter_of(subject), about)
    )
    check(remedy, subject, tmp_path, TEXT[:2], SECOND[:2])
    assert "v[:, :-1]" in (tmp_path / "remedy" / "README.md").read_text()


def test_a_pinned_revision_is_pinned_for_the_words_too(base_of: Callable[[str], Path], tmp_path: Path):
    subject = fresh(str(base_of("bert")), Lora(2), CLASSES, max_length=MOST, device="cpu")
    subject = replace(subject, source=replace(subject.source, revision="abc"))
    remedy = adapted("confounding", subject, *files.adapter_of(subject), {"describe": "The same."})
    card = (remedy.save(tmp_path / "remedy") / "README.md").read_text()
    assert card.count("revision='abc'") == 2
    assert "AutoTokenizer.from_pretrained(BASE, revision='abc')" in card


def test_a_repair_refuses_the_same_weights_at_another_scale(base_of: Callable[[str], Path]):
    subject = moved(fresh(str(base_of("bert")), Lora(2, alpha=4), CLASSES, max_length=MOST, device="cpu"))
    settings, tensors = files.adapter_of(subject)
    remedy = adapted("confounding", subject, settings, tensors, {"describe": "The same."})
    with remedy.on(subject):
        pass
    other = wear(subject, settings | {"lora_alpha": 8}, tensors)
    with pytest.raises(BadInput, match="weights or settings differ"), remedy.on(other):
        pass
