"""Every way of scoring confidence, on real LoRA classifiers and real text: error ROC-AUC on held-out test examples.

    python bench/collect.py WORK            # stage 1: trains 3 data sets x 3 seeds x (1 + 3) adapters; resumable
    python bench/overconfidence.py WORK     # stage 2: minutes, on what stage 1 kept

Each family learns and chooses on the 600 calibration examples (the published heads learn on the training examples, as
published) and is scored once on 2,000 test examples. Differences to the softmax response are paired bootstraps over
test examples, averaged over the seeds: they hold for these trained adapters; the spread over seeds stands beside them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata

from collect import DATA, FOLDS, SIZES, TRAINING
from trueup.faults.overconfidence import maths
from trueup.faults.overconfidence.candidates import FAMILIES, RESPONSE, Evidence, Part, cross_select
from trueup.faults.overconfidence.repair import choose_family
from trueup.measure.selective import error_auc
from trueup.store.cache import Memo
from trueup.subject.subject import Head

RESAMPLES = 1000


def part(kept: dict[str, np.ndarray], split: str) -> Part:
    return Part(
        kept[f"{split}/features"].astype(np.float64), kept[f"{split}/logits"].astype(np.float64), kept[f"{split}/label"]
    )


def mean_probability(kept: dict[str, np.ndarray], split: str) -> np.ndarray:
    return np.mean(
        [maths.probabilities(kept[f"fold{f}/{split}/logits"].astype(np.float64)) for f in range(FOLDS)], axis=0
    )


def draws(score: np.ndarray, reference: np.ndarray, error: np.ndarray, seed: int) -> np.ndarray:
    """(RESAMPLES,) paired bootstrap differences of error ROC-AUC."""
    rng, result = np.random.default_rng(seed), []
    for _ in range(RESAMPLES):
        w = np.bincount(rng.integers(len(error), size=len(error)), minlength=len(error))
        result.append(error_auc(score, error, weight=w) - error_auc(reference, error, weight=w))
    return np.array(result)


def run(kept: dict[str, np.ndarray], seed: int) -> tuple[dict[str, float], dict[str, np.ndarray], str, Part]:
    train, held, test = (part(kept, s) for s in ("train", "calibration", "test"))
    fold = np.random.default_rng(seed).permutation(np.arange(len(held.label)) % 5)
    head = Head(torch.tensor(kept["weight"]), torch.tensor(kept["bias"]))
    evidence = Evidence(train, held, head, True, fold, seed, mean_probability(kept, "calibration"))
    scores: dict[str, np.ndarray] = {}
    for family in FAMILIES:
        _, best = cross_select(family.crossed(evidence), held.error, fold)
        scores[family.key] = family.scores(evidence, np.arange(len(held.label)), test)[:, best]
    members = mean_probability(kept, "test") * FOLDS + maths.probabilities(test.z)
    scores["ensemble"] = members[np.arange(len(test.label)), test.predicted]
    chosen, learnt, _, _ = choose_family(evidence, resamples=RESAMPLES)
    scores["chosen"] = learnt(test)
    aucs = {k: error_auc(s, test.error) for k, s in scores.items()}
    return aucs, {k: draws(s, scores["response"], test.error, seed) for k, s in scores.items()}, chosen, test


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    memo = Memo(args.work)
    titles = {f.key: f"{f.title} ({f.source})" for f in FAMILIES}
    titles |= {"ensemble": "deep ensemble, p of the predicted class", "chosen": "what `trueup repair` chooses"}
    ranks: list[np.ndarray] = []
    for name in DATA:
        got = []
        for seed in range(args.seeds):
            kept = memo.get(f"{name} {seed} {SIZES} {TRAINING} {FOLDS}")
            if kept is None:
                print(f"{name} seed {seed}: not collected yet")
                continue
            aucs, d, chosen, test = run(kept, seed)
            got.append((aucs, d))
            print(f"{name} seed {seed}: accuracy {1 - test.error.mean():.3f}, chosen: {chosen}", flush=True)
            ranked = [k for k in aucs if k != "chosen"]
            ranks.append(rankdata([-aucs[k] for k in ranked]))
        if not got:
            continue
        print(f"\n| {name} | error ROC-AUC, mean (sd over seeds) | minus softmax response [95%] |\n|---|---|---|")
        for k in got[0][0]:
            a = np.array([aucs[k] for aucs, _ in got])
            pooled = np.mean([d[k] for _, d in got], axis=0)
            low, high = np.quantile(pooled, [0.025, 0.975])
            gain = a.mean() - np.mean([aucs[RESPONSE.key] for aucs, _ in got])
            print(
                f"| {titles[k]} | {a.mean():.4f} ({a.std(ddof=min(1, len(a) - 1)):.4f}) | {gain:+.4f} [{low:+.4f}, {high:+.4f}] |"
            )
        print(flush=True)
    keys = [*(f.key for f in FAMILIES), "ensemble"]
    print("| family | mean rank |\n|---|---|")
    for r, k in sorted(zip(np.mean(ranks, axis=0), keys, strict=True)):
        print(f"| {titles[k]} | {r:.1f} |")


if __name__ == "__main__":
    main()
