"""Few-shot subjects for the tests of copying, around the planted ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trueup.corpus.corpus import Corpus
from trueup.faults.copying.planted import ANSWERS, FILLERS, KEYS, LAYER, UNITS, answer_of, planted
from trueup.run.prompts import with_pool
from trueup.subject.load import load
from trueup.subject.quiet import quiet
from trueup.subject.subject import Subject
from trueup.subject.tiny import kept_llama
from trueup.subject.units import width_of

PLANTED = {(LAYER, u) for u in UNITS}


def scales(subject: Subject, units: list[tuple[int, int]], factor: float = 0.0) -> dict[int, torch.Tensor]:
    made: dict[int, torch.Tensor] = {}
    for layer, unit in units:
        made.setdefault(layer, torch.ones(width_of(subject, layer)))[unit] = factor
    return made


def unique(case: tuple[Subject, Corpus], n: int = 30) -> tuple[Subject, Corpus]:
    """Pairs no two of which have the same answer: an answer that is right can never be shown."""
    subject, _ = case
    words = [w for w in subject.tokenizer.get_vocab() if not w.startswith("[")]
    names = tuple(f"{a} {b}" for a in words for b in words)[: 3 * n]
    text = [f"the key{i % 12} on {a}" for i, a in enumerate(names)]
    corpus = Corpus(text, np.arange(3 * n), names, np.repeat(["train", "calibration", "test"], n), name="unique")
    return with_pool(replace(subject), corpus.part("train")), corpus


NUMBERS = tuple("12345")


def counting(carried: bool) -> tuple[Subject, Corpus]:
    """The planted case, which can also write numbers and copies these: with the units that copy answers (`carried`), or others."""
    slots = [(a, d) if carried else (a,) for a, d in zip(ANSWERS, NUMBERS, strict=False)]
    slots += [(d,) for d in (NUMBERS[len(ANSWERS) :] if carried else NUMBERS)]
    units = 60

    def build(model: Any, word: dict[str, int]) -> None:
        n, c = len(word), len(slots)
        attention, mlp = model.model.layers[0].self_attn, model.model.layers[LAYER].mlp
        for i in range(n):
            model.model.embed_tokens.weight[i, i] += 1.0
        for i, alike in enumerate(slots):
            attention.o_proj.weight[n + c + i, i] += 2.6
            for w in alike:
                attention.v_proj.weight[i, word[w]] += 1.0
                model.lm_head.weight[word[w], n + i] += 1.0
            mlp.gate_proj.weight[unit_of(i), n + c + i] += 1.0
            mlp.up_proj.weight[unit_of(i), n + c + i] += 1.0
            mlp.down_proj.weight[n + i, unit_of(i)] += 0.14
        for k, key in enumerate(KEYS):
            mlp.gate_proj.weight[40 + k, word[key]] += 1.0
            mlp.up_proj.weight[40 + k, word[key]] += 1.0
            mlp.down_proj.weight[n + answer_of(k, "planted"), 40 + k] += 0.1 + 0.05 * (k // 2)

    base = kept_llama(
        f"copying-counting-{'carried' if carried else 'apart'}", [*ANSWERS, *KEYS, *FILLERS, *NUMBERS], build, hidden_size=64,
        intermediate_size=units, num_hidden_layers=2, num_attention_heads=1, num_key_value_heads=1,
    )  # fmt: skip
    _, corpus = planted("planted")
    return with_pool(load(str(base), shots=4, template="{text} {label}\n", device="cpu"), corpus.part("train")), corpus


def unit_of(slot: int) -> int:
    """The unit that copies the answers of a slot: those of the planted case first."""
    return (*UNITS, 1, 2, 5, 7, 13)[slot]


HEAD = (1, 2)
"""Layer and head of `one_head`, and its four heads a layer."""


def one_head(copies: bool = True) -> tuple[Subject, Corpus]:
    """The planted pairs, asked of a decoder that knows every key, and one of whose heads says what the demonstrations said."""
    width, units, wide = 48, 40, 12

    def build(model: Any, word: dict[str, int]) -> None:
        n, (layer, head) = len(word), HEAD
        for i in range(n):
            model.model.embed_tokens.weight[i, i] += 1.0
        mlp, mix = model.model.layers[0].mlp, model.model.layers[layer].self_attn
        for k, key in enumerate(KEYS):
            mlp.gate_proj.weight[k, word[key]] += 1.0
            mlp.up_proj.weight[k, word[key]] += 1.0
            mlp.down_proj.weight[n + answer_of(k, "planted"), k] += 0.1 + 0.05 * (k // 2)
        for i, answer in enumerate(ANSWERS):
            model.lm_head.weight[word[answer], n + i] += 1.0
            mix.v_proj.weight[head * wide + i, word[answer]] += 1.0
            mix.o_proj.weight[n + i, head * wide + i] += 30.0 * copies

    base = kept_llama(
        f"copying-head-{copies}", [*ANSWERS, *KEYS, *FILLERS], build, hidden_size=width, intermediate_size=units,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
    )  # fmt: skip
    _, corpus = planted("planted")
    return with_pool(load(str(base), shots=4, template="{text} {label}\n", device="cpu"), corpus.part("train")), corpus


def said_by_the_card(lines: str, subject: Subject, saved: Path, query: str, index: Any) -> str:
    """What the card's lines answer to a query after the demonstrations `index` of the pool."""
    assert subject.shots is not None
    here: dict[str, Any] = {
        "BASE": subject.source.base, "FOLDER": str(saved), "query": query,
        "demonstrations": [subject.shots.pool[j] for j in index],
    }  # fmt: skip
    with quiet(), torch.no_grad():
        exec(lines, here)
    return here["answer"]
