"""Two synthetic tasks on texts about animals: one that a prompt can learn, and one that needs an association.

A text says which animal goes with which colour and place. `recall` asks for the animal of one colour; `first_animal` asks for the
animal that is named first. Colours, animals and places are drawn for each text.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from trueup.corpus.corpus import Corpus
from trueup.store import atomic
from trueup.store.cache import kept_folder

RECALL, FIRST = "recall", "first-animal"
ANIMALS, COLOURS = ("dog", "cat", "bird", "fish"), ("red", "blue", "green", "black")
PLACES = ("house", "garden", "street", "river", "market", "school")
TOLD = 3
"""Associations in a text."""
SPLIT = {"train": 800, "calibration": 400, "test": 1000}


def recall(sizes: Mapping[str, int], seed: int = 0) -> Corpus:
    """Texts such as ``red dog house, blue cat river, black bird school. blue?``, with the label cat.

    Only the text says which animal goes with which colour. No text occurs twice. `sizes`: split -> number of texts."""
    return _corpus(RECALL, sizes, seed)


def first_animal(sizes: Mapping[str, int], seed: int = 0) -> Corpus:
    """Texts as in `recall`, without the question: ``red dog house, blue cat river, black bird school.`` has the label dog."""
    return _corpus(FIRST, sizes, seed)


def _corpus(task: str, sizes: Mapping[str, int], seed: int) -> Corpus:
    rng = np.random.default_rng(seed)
    label_of_text: dict[str, int] = {}
    while len(label_of_text) < sum(sizes.values()):
        animals, colours, places = (rng.permutation(len(x))[:TOLD] for x in (ANIMALS, COLOURS, PLACES))
        question = int(rng.integers(TOLD))
        lines = [f"{COLOURS[c]} {ANIMALS[a]} {PLACES[p]}" for a, c, p in zip(animals, colours, places, strict=True)]
        text = f"{', '.join(lines)}."
        if task == RECALL:
            label_of_text[f"{text} {COLOURS[colours[question]]}?"] = int(animals[question])
        else:
            label_of_text[text] = int(animals[0])
    split = np.repeat(list(sizes), list(sizes.values()))
    return Corpus(list(label_of_text), np.array(list(label_of_text.values())), ANIMALS, split, name=task)


def make(folder: Path) -> None:
    """Write ``recall.csv`` and ``first-animal.csv`` (text, label, split) to `folder`, if it does not hold them already."""

    def write(new: Path) -> None:
        for corpus in (recall(SPLIT), first_animal(SPLIT)):
            buffer = io.StringIO()
            writer = csv.writer(buffer)
            writer.writerow(("text", "label", "split"))
            writer.writerows(zip(corpus.text, (ANIMALS[y] for y in corpus.label), corpus.split, strict=True))
            atomic.write_text(new / f"{corpus.name}.csv", buffer.getvalue())

    kept_folder(folder, write, "the texts about animals")
