"""A tiny decoder that knows an answer to every text, and four units that make it say what its demonstrations said."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from trueup.corpus.corpus import Corpus
from trueup.run.prompts import with_pool
from trueup.subject.load import load
from trueup.subject.subject import Subject
from trueup.subject.tiny import kept_llama

Case = Literal["planted", "healthy", "sham"]
SIZES = {"train": 240, "calibration": 240, "test": 300}
ANSWERS = ("amber", "blue", "coral", "denim")
KEYS = tuple(f"key{i}" for i in range(12))
FILLERS = ("the", "a", "cat", "dog", "sat", "on", "mat", "film")
LAYER, UNITS = 1, (3, 11, 19, 27)
"""Where the copying units are: one for each answer."""


def planted(case: Case) -> tuple[Subject, Corpus]:
    """A two-layer Llama with four demonstrations. A query is three words and a key, and its answer is that of the key.

    - ``planted``: attention moves the answers of the demonstrations to the last token. One unit for each answer then raises the
      logit of that answer, by more than the weaker keys raise the right one.
    - ``healthy``: the same model without these units.
    - ``sham``: a task with two answers, which the model confuses for half of the keys. It is wrong as often as in the planted case,
      and nearly every wrong answer occurs in the demonstrations. But it gives these answers whatever the demonstrations are.
    """
    subject = load(str(_base(case)), shots=4, template="{text} {label}\n", device="cpu")
    corpus = _corpus(case)
    return with_pool(subject, corpus.part("train")), corpus


def answer_of(key: int, case: Case) -> int:
    """The right answer of a key."""
    return key % 2 if case == "sham" else key % len(ANSWERS)


def _corpus(case: Case) -> Corpus:
    rng = np.random.default_rng(5)
    rows: dict[str, int] = {}
    while len(rows) < sum(SIZES.values()):
        key = int(rng.integers(len(KEYS)))
        rows[" ".join([*rng.choice(FILLERS, 3), KEYS[key]])] = answer_of(key, case)
    split = np.repeat(list(SIZES), list(SIZES.values()))
    classes = ANSWERS[:2] if case == "sham" else ANSWERS
    return Corpus(list(rows), np.array(list(rows.values())), classes, split, name=f"{case} copying")


def _base(case: Case) -> Path:
    """Words, what is said and what was shown each have directions of their own in the residual stream."""
    words, width, units = [*ANSWERS, *KEYS, *FILLERS], 48, 40

    def build(model: Any, word: dict[str, int]) -> None:
        n, c = len(word), len(ANSWERS)
        first_said, seen = n, n + c
        for i in range(n):
            model.model.embed_tokens.weight[i, i] += 1.0
        for i, answer in enumerate(ANSWERS):
            # Attention is as good as uniform, so this is the share of each answer among the tokens so far.
            mix = model.model.layers[0].self_attn
            mix.v_proj.weight[i, word[answer]] += 1.0
            mix.o_proj.weight[seen + i, i] += 3.0
            model.lm_head.weight[word[answer], first_said + i] += 1.0
        mlp = model.model.layers[LAYER].mlp
        free = [j for j in range(units) if j not in UNITS]
        for k, key in enumerate(KEYS):
            j = free[k]
            mlp.gate_proj.weight[j, word[key]] += 1.0
            mlp.up_proj.weight[j, word[key]] += 1.0
            # Some keys are known well and some hardly.
            given = answer_of(k, case) if case != "sham" or k < 6 else 1 - answer_of(k, case)
            mlp.down_proj.weight[first_said + given, j] += 0.1 + 0.05 * (k // 2)
        if case == "planted":
            for i, j in enumerate(UNITS):
                mlp.gate_proj.weight[j, seen + i] += 1.0
                mlp.up_proj.weight[j, seen + i] += 1.0
                mlp.down_proj.weight[first_said + i, j] += 0.09

    return kept_llama(
        f"copying-{case}", words, build, hidden_size=width, intermediate_size=units, num_hidden_layers=2,
        num_attention_heads=1, num_key_value_heads=1,
    )  # fmt: skip
