"""Pairs of texts: the model is told which text a token is of, as plain transformers tells it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trueup.corpus.corpus import Corpus
from trueup.run.predict import predict
from trueup.subject.new_adapter import Lora, Prompt, fresh
from trueup.subject.template import Template
from trueup.subject.tiny import make_base


@pytest.fixture(scope="module")
def pairs():
    text, second = ["cat sat", "the dog sat on mat", "good"], ["good film", "bad", "poor film was very bad"]
    return Corpus(text, np.array([0, 1, 0]), ("a", "b"), np.array(["test"] * 3), second=second)


@pytest.mark.parametrize("recipe", [Lora(rank=2), Prompt(tokens=3, start="good film")], ids=lambda r: r.name)
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_pairs_give_plain_peft_logits(family, recipe, pairs, tmp_path):
    if (family, recipe.name) == ("distilbert", "prompt"):
        pytest.skip("PEFT cannot carry DistilBERT's head with a prompt")
    subject = fresh(str(make_base(family, tmp_path / "base")), recipe, ("a", "b"), max_length=32, device="cpu")
    ours = predict(subject, pairs).logits
    for i, (a, b) in enumerate(zip(pairs.text, pairs.second, strict=True)):
        given = dict(subject.tokenizer(a, b, return_tensors="pt"))
        if family == "distilbert":  # takes no segments, and its own tokenizer gives none
            given.pop("token_type_ids", None)
        with torch.no_grad():
            plain = subject.model(**given).logits[0].numpy()
            blind = (
                subject.model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).logits[0].numpy()
            )
        assert np.abs(plain - ours[i]).max() <= 1e-5
        if family != "distilbert":  # the control: without the segments the logits are others
            assert np.abs(blind - ours[i]).max() > 1e-4


def test_a_template_is_filled_in_one_go():
    filled = Template("{second} / {text}", ("a", "b")).fill("HELLO", "has {text} inside")
    assert filled == "has {text} inside / HELLO"
