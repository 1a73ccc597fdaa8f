"""Small confounded subjects of several kinds, and corpora for them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from trueup.corpus.corpus import Corpus
from trueup.run.heads import fit_head
from trueup.run.predict import predict
from trueup.subject.subject import Subject

SIZES = (("train", 300), ("calibration", 300), ("test", 400))
SITES = ("calm", "loud", "trap")
FEELINGS = (("bad", "poor"), ("good", "fine"), ("cat", "dog"))


def corpus_of(classes: int, groups: int, coupling: float, seed: int = 0, sizes=SIZES) -> Corpus:
    """Texts whose words tell the label somewhat and the site for sure; `coupling` 0: site and label are independent."""
    rng = np.random.default_rng(seed)
    text, label, split, site = [], [], [], []
    for part, n in sizes:
        for _ in range(n):
            z = int(rng.integers(groups))
            y = z % classes if rng.random() < coupling else int(rng.integers(classes))
            words = [
                str(rng.choice(FEELINGS[y if rng.random() < 0.4 else int(rng.integers(classes))])) for _ in range(4)
            ]
            words += [SITES[z], *map(str, rng.choice(["the", "it", "film"], 2))]
            text.append(" ".join(rng.permutation(words)))
            label.append(y)
            split.append(part)
            site.append(SITES[z])
    return Corpus(
        text, np.array(label), tuple(f"class {i}" for i in range(classes)), np.array(split),
        attributes={"site": np.array(site)}, name=f"{classes} by {groups}",
    )  # fmt: skip


def fitted(subject: Subject, corpus: Corpus) -> Subject:
    """The subject with its own last layer fitted to the train split: where the site predicts, it reads the site."""
    part = corpus.part("train")
    x = predict(subject, part).features.astype(np.float64)
    layer = subject.head_layer()
    w, b, _ = fit_head(x, part.label, len(corpus.classes), strength=1.0, biased=layer.bias is not None)
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(w, dtype=torch.float32))
        if layer.bias is not None:
            layer.bias.copy_(torch.as_tensor(b, dtype=torch.float32))
    for p in subject.model.parameters():
        p.requires_grad_(False)
    return replace(subject, classes=corpus.classes)
