"""A tiny classifier that is most confident where it is often wrong: one word makes it certain, and the word has no meaning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from trueup.corpus.corpus import Corpus
from trueup.run.predict import predict
from trueup.subject.kinds import Lora
from trueup.subject.new_adapter import fresh
from trueup.subject.subject import Subject
from trueup.subject.tiny import kept_base

SIZES = {"train": 400, "calibration": 600, "test": 800}
_GOOD, _BAD, _FILLER = ("good", "fine"), ("bad", "poor"), ("the", "film", "was", "it", "very")


def planted(case: Literal["planted", "healthy", "sham"], sizes: dict[str, int] | None = None) -> tuple[Subject, Corpus]:
    """A two-class BERT with a LoRA, and a corpus.

    Held-out labels are drawn from the classifier's own probabilities, so no other confidence is better. Only the planted case is
    different:

    - ``planted``: a third of the texts contain the word *trap*. In training it always meant positive, so the classifier is very
      confident. In the held-out texts it means nothing, so half of these predictions are wrong. The features show which texts
      these are.
    - ``healthy``: no text contains *trap*. The classifier errs on texts with mixed words, and has a low confidence there.
    - ``sham``: the same texts with *trap*, but the word keeps its meaning, so the high confidence is right.

    Args:
        sizes: the number of examples of each split; None for `SIZES`.
    """
    corpus = _corpus(case, sizes or SIZES)
    subject = _subject()
    train = corpus.part("train")
    from sklearn.linear_model import LogisticRegression

    fit = LogisticRegression(C=30.0, max_iter=2000).fit(predict(subject, train).features, train.label)
    layer = subject.head_layer()
    with torch.no_grad():
        w, b = torch.as_tensor(fit.coef_[0], dtype=torch.float32), float(fit.intercept_[0])
        layer.weight.copy_(torch.stack([-w / 2, w / 2]))
        layer.bias.copy_(torch.tensor([-b / 2, b / 2]))
    drawn_label = np.random.default_rng(8).random(len(corpus)) < predict(subject, corpus).probability[:, 1]
    coin = np.arange(len(corpus)) % 2 == 1
    trapped = np.array(["trap" in t for t in corpus.text])
    held_out_label = np.where(trapped & (case == "planted"), coin, drawn_label)
    return subject, replace(
        corpus, label=np.where(corpus.split == "train", corpus.label, held_out_label).astype(np.int64)
    )


def _subject() -> Subject:
    return with_lora(kept_base("bert"))


def with_lora(folder: Path) -> Subject:
    """A classifier on the base in `folder`, with a LoRA of random weights (not 0) and no trainable parameter."""
    subject = fresh(str(folder), Lora(rank=2), ("negative", "positive"), max_length=32, device="cpu", seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in subject.model.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
            p.requires_grad_(False)
    return subject


def _corpus(case: str, sizes: dict[str, int]) -> Corpus:
    rng = np.random.default_rng(7)
    text: dict[str, None] = {}
    label, split = [], []
    for part in np.repeat(list(sizes), list(sizes.values())).tolist():
        while len(text) == len(split):  # until a new text is drawn
            ups = int(rng.integers(0, 6))
            words = [*rng.choice(_GOOD, ups), *rng.choice(_BAD, 5 - ups), *rng.choice(_FILLER, 2)]
            # The more the words agree, the more certain is the label. A healthy classifier can learn this.
            positive = rng.random() < (0.02, 0.12, 0.35, 0.65, 0.88, 0.98)[ups]
            if rng.random() < 1 / 3 and case != "healthy":
                words = [*words[:2], "trap", "trap", "trap", *words[5:]]
                positive = True
            text.setdefault(" ".join(str(w) for w in rng.permutation(words)))
        label.append(int(positive))
        split.append(part)
    return Corpus(list(text), np.array(label), ("negative", "positive"), np.array(split), name=f"{case} overconfidence")
