"""A tiny prompt-tuned classifier that relies on one word, which only shows where a text comes from."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from trueup.corpus.corpus import Corpus
from trueup.run.predict import predict
from trueup.subject.kinds import Prompt
from trueup.subject.new_adapter import fresh
from trueup.subject.subject import Subject
from trueup.subject.tiny import kept_base

SIZES = {"train": 600, "calibration": 600, "test": 1000}
COUPLED, FREE = (0.1, 0.5), (0.3, 0.3)
"""P(y=1|z=0) and P(y=1|z=1): with a coupling of 5, and with none."""
_GOOD, _BAD, _SITES = ("good", "fine"), ("bad", "poor"), ("calm", "loud")


def planted(case: Literal["planted", "healthy", "sham"]) -> tuple[Subject, Corpus]:
    """A two-class BERT with a soft prompt, and a corpus with the attribute *site*. One word of each text shows the site.

    - ``planted``: the positive class is five times as frequent at site *loud*. The classifier was fitted to such data and uses
      the word.
    - ``healthy``: label and site are independent, in the data and in those to which the classifier was fitted.
    - ``sham``: the data of the planted case with the classifier of the healthy case. Label and site are correlated, but the
      classifier does not use the site.
    """
    corpus = corpus_of(COUPLED if case != "healthy" else FREE, seed=11)
    fitted_on = corpus if case == "planted" else corpus_of(FREE, seed=12)
    return subject_for(fitted_on.part("train")), corpus


def subject_for(train: Corpus) -> Subject:
    """A soft-prompted BERT whose last layer is fitted to `train`."""
    from trueup.run.heads import fit_head

    folder = kept_base("bert")
    recipe = Prompt(4, start="the film was very")
    subject = fresh(str(folder), recipe, train.classes, max_length=32, device="cpu", seed=0)
    for p in subject.model.parameters():
        p.requires_grad_(False)
    weight, bias, _ = fit_head(predict(subject, train).features.astype(np.float64), train.label, 2, strength=1.0)
    layer = subject.head_layer()
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(weight, dtype=torch.float32))
        layer.bias.copy_(torch.as_tensor(bias, dtype=torch.float32))
    return subject


def corpus_of(rates: tuple[float, float], seed: int) -> Corpus:
    """Texts of seven words: four with a sentiment, one that names the site, and two without information."""
    rng = np.random.default_rng(seed)
    text, label, split, site = [], [], [], []
    for part, size in SIZES.items():
        for _ in range(size):
            z = int(rng.random() < 0.5)
            y = int(rng.random() < rates[z])
            ups = int(rng.binomial(4, 0.7 if y else 0.3))
            words = [
                *rng.choice(_GOOD, ups),
                *rng.choice(_BAD, 4 - ups),
                _SITES[z],
                *rng.choice(["the", "it", "film"], 2),
            ]
            text.append(" ".join(str(w) for w in rng.permutation(words)))
            label.append(y)
            split.append(part)
            site.append(_SITES[z])
    return Corpus(
        text, np.array(label), ("negative", "positive"), np.array(split), attributes={"site": np.array(site)},
        name="planted confounding",
    )  # fmt: skip
