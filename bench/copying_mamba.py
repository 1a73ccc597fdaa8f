"""A small Mamba trained here to learn from demonstrations, which copies: the audit and the repair of a state-space model.

python bench/copying_mamba.py WORK [--steps 600]

Texts are three words and a key; each key has an answer. While training, a key's own answer is given with a probability that
differs from key to key, and else the answer of one of the demonstrations: so the model learns the well-known keys, and to
copy where it does not know.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from trueup.corpus.corpus import Corpus
from trueup.faults.copying import Copying
from trueup.faults.fault import NoRemedy
from trueup.run.prompts import with_pool
from trueup.subject.load import load
from trueup.subject.tiny import make_tokenizer

ANSWERS = ("amber", "blue", "coral", "denim", "ebony", "fawn")
KEYS = tuple(f"key{i}" for i in range(24))
FILLERS = ("the", "a", "cat", "dog", "sat", "on", "mat", "film")


def known(key: int) -> float:
    """How often training shows a key's own answer."""
    return 0.15 + 0.7 * key / (len(KEYS) - 1)


def train(folder: Path, steps: int) -> None:
    tokenizer = make_tokenizer([*ANSWERS, *KEYS, *FILLERS])
    word, rng = tokenizer.get_vocab(), np.random.default_rng(0)
    torch.manual_seed(0)
    config = transformers.MambaConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, state_size=8, pad_token_id=0, eos_token_id=3,
        bos_token_id=2,
    )  # fmt: skip
    model: Any = transformers.MambaForCausalLM(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    for step in range(steps):
        batch, shots = [], int(rng.integers(1, 6))
        for _ in range(32):
            row, given = [], []
            for _ in range(shots + 1):
                key = int(rng.integers(len(KEYS)))
                own = rng.random() < known(key) or not given
                answer = key % len(ANSWERS) if own else given[int(rng.integers(len(given)))]
                given.append(answer)
                row += [*(word[f] for f in rng.choice(FILLERS, 3)), word[KEYS[key]], word[ANSWERS[answer]]]
            batch.append(row)
        ids = torch.tensor(batch)
        logits = model(input_ids=ids).logits[:, 3::5]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 4::5].flatten())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            print(step, f"{loss.item():.3f}", flush=True)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def pairs(seed: int) -> Corpus:
    """Every text once; the right answer is always the key's own."""
    rng, rows = np.random.default_rng(seed), {}
    while len(rows) < 1000:
        key = int(rng.integers(len(KEYS)))
        rows[" ".join([*rng.choice(FILLERS, 3), KEYS[key]])] = key % len(ANSWERS)
    split = np.repeat(["train", "calibration", "test"], [300, 300, 400])
    return Corpus(list(rows), np.array(list(rows.values())), ANSWERS, split, name="keys")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("work", type=Path)
    p.add_argument("--steps", type=int, default=600)
    a = p.parse_args()
    folder = a.work / "mamba"
    if not (folder / "config.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        train(folder, a.steps)
    corpus, fault = pairs(1), Copying()
    subject = with_pool(load(str(folder), shots=4, template="{text} {label}\n"), corpus.part("train"))
    before = fault.audit(subject, corpus.part("test"), seed=0)
    print(before.sentence, {k: round(m.value, 3) for k, m in before.measures.items()})
    remedy = fault.repair(subject, corpus, before, seed=0)
    if isinstance(remedy, NoRemedy):
        print(remedy.reason)
        print(json.dumps(remedy.tried, indent=1, default=str))
        return
    print(remedy.describe())
    with remedy.on(subject) as repaired:
        after = fault.audit(repaired, corpus.part("test"), seed=0)
    print(after.sentence)
    for key, d in fault.compare(before, after, seed=0).items():
        print(f"{key}: {d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}]")
    saved = remedy.save(a.work / "adapter")
    print({p.name: p.stat().st_size for p in saved.glob("adapter_*")})


if __name__ == "__main__":
    main()
