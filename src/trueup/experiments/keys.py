"""Trains a small Mamba that copies answers which it does not know: a state-space model with the fault of copying.

Texts are three words and a key; each key has an answer. In training, a key gets its own answer with a probability that differs
between keys, and otherwise the answer of one of the demonstrations. So the model learns the answers of frequent keys, and copies
for the others.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trueup.store import atomic
from trueup.store.cache import kept_folder
from trueup.subject.tiny import make_tokenizer, mamba_small

ANSWERS = ("amber", "blue", "coral", "denim", "ebony", "fawn")
KEYS = tuple(f"key{i}" for i in range(24))
FILLERS = ("the", "a", "cat", "dog", "sat", "on", "mat", "film")
STEPS, BATCH, PAIRS = 600, 32, 1000
SPLIT = {"train": 300, "calibration": 300, "test": 400}


def make(folder: Path) -> None:
    """Write ``mamba`` (a model that transformers loads) and ``keys.csv`` (text, label, split) to `folder`, if it lacks them.

    This takes about two minutes of one core.
    """

    def write(new: Path) -> None:
        model, tokenizer = trained()
        model.save_pretrained(new / "mamba")
        tokenizer.save_pretrained(new / "mamba")
        atomic.write_text(new / "keys.csv", pairs())

    kept_folder(folder, write, "the model of keys")


def known(key: int) -> float:
    """The probability with which training shows a key's own answer."""
    return 0.15 + 0.7 * key / (len(KEYS) - 1)


def trained(steps: int = STEPS) -> tuple[Any, Any]:
    """The model and its tokenizer; the same on every run of one machine."""
    tokenizer = make_tokenizer([*ANSWERS, *KEYS, *FILLERS])
    word, rng = tokenizer.get_vocab(), np.random.default_rng(0)
    model = mamba_small(len(tokenizer))
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    for _ in range(steps):
        shots = int(rng.integers(1, 6))
        ids = torch.tensor([_prompt(shots, word, rng) for _ in range(BATCH)])
        logits = model(input_ids=ids).logits[:, 3::5]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 4::5].flatten())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return model.eval(), tokenizer


def _prompt(shots: int, word: dict[str, int], rng: np.random.Generator) -> list[int]:
    """`shots` demonstrations and a query with its answer, five tokens each."""
    row: list[int] = []
    answers_given: list[int] = []
    for _ in range(shots + 1):
        key = int(rng.integers(len(KEYS)))
        key_answer = rng.random() < known(key) or not answers_given
        answer = key % len(ANSWERS) if key_answer else answers_given[int(rng.integers(len(answers_given)))]
        answers_given.append(answer)
        row += [*(word[f] for f in rng.choice(FILLERS, 3)), word[KEYS[key]], word[ANSWERS[answer]]]
    return row


def pairs() -> str:
    """Every text once, as csv. The right answer is always the key's own answer."""
    rng, rows = np.random.default_rng(1), {}
    while len(rows) < PAIRS:
        key = int(rng.integers(len(KEYS)))
        rows[" ".join([*rng.choice(FILLERS, 3), KEYS[key]])] = ANSWERS[key % len(ANSWERS)]
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(("text", "label", "split"))
    parts = np.repeat(list(SPLIT), list(SPLIT.values()))
    writer.writerows((text, label, part) for (text, label), part in zip(rows.items(), parts, strict=True))
    return buffer.getvalue()
