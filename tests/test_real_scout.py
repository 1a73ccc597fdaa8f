"""Shortcuts planted in real text under the embedded encoder: a scout finds them, and names none where there is none."""

from __future__ import annotations

import numpy as np
import pytest

import trueup
from trueup.corpus.corpus import Corpus
from trueup.faults.confounding.leads import Scouted
from trueup.faults.confounding.scout import scout
from trueup.run.heads import warm_start
from trueup.run.predict import Session, within
from trueup.store.cache import Memo
from trueup.subject.new_adapter import Lora, fresh

pytestmark = pytest.mark.slow
SIZES = {"train": 500, "calibration": 400, "test": 400}
RATE = 0.85
"""Of positive texts, the share that has the plant; of negative texts the rest."""
WORD = "seriously"


def drawn(plant: str, seed: int = 0) -> tuple[Corpus, np.ndarray]:
    """Sentences of film reviews, or of products and tweets, and which of them have the plant: label and plant go together. The
    plant ``none`` is a word that goes with no label."""
    rng = np.random.default_rng(seed)
    if plant == "cluster":
        source = trueup.read("embedded:valence", attributes=("domain",), seed=0)
        source = source.take(np.isin(source.attributes["domain"], ("product", "tweet")))
        has = source.attributes["domain"] == "tweet"
    else:
        source = trueup.read("embedded:movie-reviews-short", seed=0)
        has = rng.random(len(source)) < 0.5
    label = (source.label == source.classes.index("positive")).astype(np.int64)
    rows, split = [], []
    left = {(y, z): rng.permutation(np.flatnonzero((label == y) & (has == z))).tolist() for y in (0, 1) for z in (0, 1)}
    for part, n in SIZES.items():
        for i in range(n):
            y = i % 2
            rate = 0.5 if plant == "none" else RATE if y else 1 - RATE
            rows.append(left[y, int(rng.random() < rate)].pop())
            split.append(part)
    texts, there = [source.text[i] for i in rows], has[rows]
    if plant in ("word", "none"):
        texts = [f"{WORD} {t}" if z else t for t, z in zip(texts, there, strict=True)]
    return Corpus(texts, label[rows], ("negative", "positive"), np.array(split), name=f"planted {plant}"), there


def examined(plant: str) -> tuple[Corpus, np.ndarray, Scouted]:
    """A classifier whose last layer is fitted to the planted training texts, and what a scout finds."""
    corpus, there = drawn(plant)
    subject = fresh("embedded:minilm", Lora(), corpus.classes, max_length=24, device="cpu", seed=0)
    warm_start(subject, corpus.part("train"))
    return corpus, there, scout(subject, corpus, seed=0)


def agreement(found: Scouted, corpus: Corpus, there: np.ndarray) -> list[float]:
    """Of each named column, the share of test texts on which it agrees with the plant, whatever its groups are called."""
    test = corpus.split == "test"
    shares = []
    for cue in found.columns:
        own = np.unique(cue.of(corpus.take(test)), return_inverse=True)[1] > 0
        share = float((own == there[test]).mean())
        shares.append(max(share, 1 - share))
    return shares


@pytest.mark.parametrize(("plant", "least"), [("word", 0.99), ("cluster", 0.75)])
def test_a_plant_in_real_text_is_found(plant, least, tmp_path):
    with within(Session(Memo(tmp_path))):
        corpus, there, found = examined(plant)
        shares = agreement(found, corpus, there)
        assert shares, found.sentence
        assert max(shares) >= least, list(zip([x.name for x in found.leads], shares, strict=True))


def test_a_word_that_goes_with_no_label_is_not_named(tmp_path):
    """The control: the same word in as many texts of either class."""
    with within(Session(Memo(tmp_path))):
        corpus, there, found = examined("none")
        assert WORD not in " ".join(x.name for x in found.leads)
        assert max(agreement(found, corpus, there), default=0.5) < 0.75
