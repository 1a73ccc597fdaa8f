"""What a report says of the order of the classes: a warning where another one is surely better, and silence where none is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import transformers

from trueup.caveats import order_of_classes, unknown
from trueup.corpus.corpus import Corpus
from trueup.run.predict import Session, within

CLASSES = ("bad", "fair", "good", "superb")


def warned(swapped: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, right: float = 0.9) -> list[str]:
    """Of a model that is right on a share `right` of texts, where its class i is called by the name of `swapped[i]`."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, 600)
    says = np.where(rng.random(600) < right, label, rng.integers(0, 4, 600))
    corpus = Corpus(
        [f"{i} {says[i]}" for i in range(600)], label, CLASSES, np.array(["calibration", "test"])[np.arange(600) % 2]
    )

    def predict(subject: Any, part: Corpus) -> Any:
        return SimpleNamespace(predicted=np.array([swapped[int(t[-1])] for t in part.text]))

    monkeypatch.setattr("trueup.run.predict.predict", predict)
    with within(Session()) as session:
        order_of_classes(SimpleNamespace(shots=None), corpus)  # type: ignore[arg-type]
    return session.warnings


def test_two_of_four_classes_that_stand_in_each_others_place_are_warned_of(monkeypatch: pytest.MonkeyPatch):
    (said,) = warned((0, 2, 1, 3), monkeypatch)
    assert "Always answering" not in said, "the model is right more often than one answer to all"
    assert said.startswith("The model is right on 5")
    assert "With the classes in the order 'bad', 'good', 'fair', 'superb' it would be right on 9" in said
    assert "Always answering '" in warned((1, 2, 3, 0), monkeypatch)[0]


def test_a_model_in_its_order_is_not_warned_of_however_weak_it_is(monkeypatch: pytest.MonkeyPatch):
    assert not warned((0, 1, 2, 3), monkeypatch)
    assert not warned((0, 1, 2, 3), monkeypatch, right=0.5)


def test_texts_of_unknown_tokens_are_warned_of(base_of: Any):
    """Of a tokenizer that has a token for unknown words, and of one that calls its end so."""

    tokenizer = transformers.AutoTokenizer.from_pretrained(base_of("bert"))

    def said(texts: list[str]) -> tuple[list[str], dict[str, str]]:
        subject: Any = SimpleNamespace(tokenizer=tokenizer, max_length=8)
        corpus = Corpus(texts, np.arange(len(texts)) % 2, ("a", "b"), np.array(["test"] * len(texts)))
        with within(Session()) as session:
            told = unknown(subject, corpus)
        return session.warnings, told

    ((warning,), told) = said(["ดี มาก", "good cat"])
    assert "does not know 50% of the tokens of the test texts, and half or more of 1 of 2 texts" in warning
    assert told == {"unknown tokens in test texts": "2 of 4 (50.0%)"}
    assert said(["good cat"] * 10 + ["ดี"]) == ([], {"unknown tokens in test texts": "1 of 21 (4.8%)"})
    assert said(["good cat", "bad"]) == ([], {})
    ((warning,), _) = said(["ดี", ""])
    assert "half or more of 1 of 2 texts" in warning, "no token of an empty text is unknown"
    long = "good " * 40_000
    assert said([long, "ดี"]) == said(["good " * 8, "ดี"]), "of a long text the beginning that the model reads"
    tokenizer.eos_token = tokenizer.unk_token  # as GPT-2's does, which knows all texts
    assert said(["ดี มาก", "good cat"]) == ([], {})
