"""A tiny decoder whose only head looks at one kind of word, and a task that asks about the other kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from trueup.corpus.corpus import Corpus
from trueup.run.heads import fit_head
from trueup.run.predict import predict
from trueup.subject.kinds import Prompt
from trueup.subject.new_adapter import fresh
from trueup.subject.subject import Subject
from trueup.subject.tiny import kept_llama

Case = Literal["planted", "healthy", "sham"]
SIZES = {"train": 600, "calibration": 400, "test": 600}
QUICK = {"tries": 1, "epochs": 8}
"""Knobs that audit these cases quickly: each adapter begins with one learning rate, and learns for as long as so few texts take."""
SEEN, UNSEEN, FILLERS, LAST = ("good", "bad"), ("loud", "calm"), ("the", "a", "cat", "dog", "sat", "on", "mat"), "now"
WIDTH, QUERY, TRUE = 48, 15.0, 0.92
"""Hidden size, length of the query (of which a longer one lets smaller changes of the keys do), and how often a label is
what its word says."""


def planted(case: Case) -> tuple[Subject, Corpus]:
    """A one-layer Llama with one attention head and a soft prompt of eight tokens. Each text has one word of each of two kinds,
    among filler words. The head attends mostly to the word of the first kind.

    - ``planted``: the label depends on the word of the second kind, which gets a few hundredths of the attention. A prompt cannot
      change these proportions. A LoRA of query and key can.
    - ``healthy``: the label depends on the word of the first kind.
    - ``sham``: the label is random. The prompt is as bad as in the planted case, and so is every other adapter.
    """
    corpus = _corpus(case)
    subject = fresh(
        str(_base()), Prompt(8, start="the cat sat on"), corpus.classes, max_length=32, device="cpu", seed=0
    )
    for p in subject.model.parameters():
        p.requires_grad_(False)
    train = corpus.part("train")
    weight, _, _ = fit_head(
        predict(subject, train).features.astype(np.float64), train.label, 2, strength=1.0, biased=False
    )  # fmt: skip
    with torch.no_grad():
        subject.head_layer().weight.copy_(torch.as_tensor(weight, dtype=torch.float32))
    return subject, corpus


def _corpus(case: Case) -> Corpus:
    rng = np.random.default_rng(3)
    text: dict[str, int] = {}  # no text twice: the splits share none
    while len(text) < sum(SIZES.values()):
        seen, unseen, coin = rng.integers(2), rng.integers(2), rng.integers(2)
        # Of any length: a fixed one would let the two words be told apart from the fine structure of one sum.
        words = [SEEN[seen], UNSEEN[unseen], *rng.choice(FILLERS, rng.integers(1, 8))]
        label = {"planted": unseen, "healthy": seen, "sham": coin}[case]
        line = " ".join([*(str(w) for w in rng.permutation(words)), LAST])
        text.setdefault(line, int(label if rng.random() < TRUE else 1 - label))
    split = np.repeat(list(SIZES), list(SIZES.values()))
    return Corpus(list(text), np.array(list(text.values())), ("yes", "no"), split, name=f"{case} rigidity")


def _base() -> Path:
    """Each word has a direction of its own; the last word's query meets the keys of the first kind, less those of the other."""
    words = [*SEEN, *UNSEEN, *FILLERS, LAST]

    def build(model: Any, word: dict[str, int]) -> None:
        n, still = len(word), WIDTH // 2 - 1  # the pair of dimensions that positions turn least
        for i in range(n):
            model.model.embed_tokens.weight[i, i] += 1.0
        mix, unit = model.model.layers[0].self_attn, WIDTH**0.5
        for leaf in (mix.v_proj, mix.o_proj, model.model.layers[0].mlp.down_proj):
            leaf.weight.zero_()  # through the faintest noise a last layer would read every word
        # Each word enters attention with length `unit`; scores are then 6 and 3 above those of the fillers.
        mix.q_proj.weight[still, word[LAST]] += QUERY
        for kind, score in ((SEEN, 6.0), (UNSEEN, 3.0)):
            for sign, w in zip((1.0, -1.0), kind, strict=True):
                mix.k_proj.weight[still, word[w]] += score / (QUERY * unit)
                mix.v_proj.weight[0, word[w]] += sign
        mix.o_proj.weight[n, 0] += 1.0

    return kept_llama(
        "rigidity", words, build, hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1,
    )  # fmt: skip
