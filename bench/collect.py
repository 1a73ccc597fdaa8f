"""Stage 1 of `bench/overconfidence.py`: train the LoRA classifiers and keep what they say. Resumable, one file a run.

python bench/collect.py WORK [--seeds 3] [--data movie-reviews-short tweets newsgroups]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from trueup.corpus.corpus import Corpus
from trueup.corpus.read import read
from trueup.run.predict import hidden_states, predict
from trueup.run.train import Training, train
from trueup.store.cache import Memo
from trueup.subject.recipe import Lora, fresh

DATA = ("movie-reviews-short", "tweets", "newsgroups")
SIZES = {"train": 1200, "calibration": 600, "test": 2000}
TRAINING = Training(lr=2e-3, epochs=3)
FOLDS = 3


def corpus_of(name: str, seed: int) -> Corpus:
    total = sum(SIZES.values())
    return read(f"embedded:{name}", seed=seed, limit=total, fractions=[s / total for s in SIZES.values()])


def tuned(corpus: Corpus, seed: int):
    subject = fresh("embedded:minilm", Lora(), corpus.classes, max_length=48, seed=seed)
    train(subject, corpus, TRAINING, lr=TRAINING.lr or 0, seed=seed)
    return subject


def collect(name: str, seed: int) -> dict[str, np.ndarray]:
    corpus = corpus_of(name, seed)
    parts = {k: corpus.part(k) for k in SIZES}
    kept: dict[str, np.ndarray] = {}
    main = tuned(parts["train"], seed)
    head = main.own_head()
    kept["weight"], kept["bias"] = head.weight.numpy(), head.bias.numpy()
    for k, part in parts.items():
        out = predict(main, part)
        kept |= {f"{k}/label": part.label, f"{k}/features": out.features, f"{k}/logits": out.logits}
        if k != "train":
            kept[f"{k}/layers"] = hidden_states(main, part).astype(np.float16)
    fold = np.random.default_rng(seed).permutation(np.arange(len(parts["train"])) % FOLDS)
    kept["fold"] = fold
    for f in range(FOLDS):
        # Same seed, same LoRA and head start: the folds' features stay near the main adapter's.
        member = tuned(replace(parts["train"].take(fold != f), name=f"fold {f}"), seed)
        out = predict(member, parts["train"].take(fold == f))
        kept |= {f"fold{f}/features": out.features, f"fold{f}/logits": out.logits}
        for k in ("calibration", "test"):
            out = predict(member, parts[k])
            kept |= {f"fold{f}/{k}/logits": out.logits}
            if k == "calibration":
                kept[f"fold{f}/{k}/features"] = out.features
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", nargs="+", default=DATA)
    args = parser.parse_args()
    memo = Memo(args.work)
    for seed in range(args.seeds):
        for name in args.data:
            key = f"{name} {seed} {SIZES} {TRAINING} {FOLDS}"
            if memo.get(key) is None:
                t = time.time()
                kept = collect(name, seed)
                memo.put(key, kept)
                right = (kept["test/logits"].argmax(1) == kept["test/label"]).mean()
                print(f"{name} seed {seed}: test accuracy {right:.3f}, {time.time() - t:.0f} s", flush=True)


if __name__ == "__main__":
    main()
