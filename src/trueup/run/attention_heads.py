"""Scores of attention heads: which heads attend to the token that followed an earlier occurrence (induction heads)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trueup.run import forward
from trueup.run.attention import openly, tapped
from trueup.run.forward import Batch
from trueup.run.predict import collect_rows
from trueup.run.prompts import Row
from trueup.subject.few_shot_tokens import text_ids
from trueup.subject.subject import Subject

LENGTH, REPEATS, SEQUENCES = 25, 4, 8
"""Random tokens of a sequence, how often they stand in it (both of Olsson et al.), and how many sequences are read."""


def repeated(subject: Subject, seed: int) -> list[Row]:
    """`SEQUENCES` rows, each of `LENGTH` different ordinary tokens drawn at random and repeated `REPEATS` times.

    Rows are shorter where the model reads less, or its tokenizer has fewer tokens. They begin with the tokens that the tokenizer
    puts before every text.
    """
    lead = text_ids(subject.tokenizer, "")
    special = {*subject.tokenizer.all_special_ids}
    ordinary = np.array([i for i in range(len(subject.tokenizer)) if i not in special])
    length = min(LENGTH, len(ordinary), (subject.max_length - len(lead)) // REPEATS)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 31]))
    return [Row([*lead, *rng.choice(ordinary, length, replace=False).tolist() * REPEATS]) for _ in range(SEQUENCES)]


def prefix_matching(subject: Subject, rows: list[Row]) -> tuple[np.ndarray, float]:
    """(layers, heads) prefix-matching scores, and the score of a head that attends evenly to all tokens so far.

    The score of Olsson et al. 2022 (arXiv 2209.11895), by which they identify induction heads: the attention of a head, at a
    token that occurred before, on the tokens that followed the earlier occurrences. It is the mean over these tokens of `rows`
    (of `repeated`), 0 to 1.

    Raises:
        Unsupported: a state-space model.
    """

    def read(subject: Subject, batch: Batch) -> Tensor:
        ids, mask = batch.ids.to(subject.device), batch.mask.to(subject.device)
        followed, n = followers(ids, mask), ids.shape[1]
        scores_by_layer: list[Tensor] = []

        def look(_: int, weights: Tensor, __: Tensor) -> None:
            mass = (weights[:, :, -n:, -n:].float() * followed[:, None]).sum(dim=-1)
            scores_by_layer.append(mass.sum(dim=-1) / followed.any(dim=-1).sum(dim=-1, keepdim=True).clamp(min=1))

        with tapped(subject, look):
            forward.backbone(subject, ids, mask)
        even = followed.float().sum(dim=-1) / torch.arange(1, n + 1, device=ids.device)
        even = even.sum(dim=-1) / followed.any(dim=-1).sum(dim=-1).clamp(min=1)
        # Even attention is one more layer, so that both are read in one pass.
        scores = torch.stack(scores_by_layer, dim=1)
        return torch.cat([scores, even[:, None, None].expand(-1, 1, scores.shape[2])], dim=1)

    openly(subject, min(rows, key=len))
    means = collect_rows(subject, rows, read, "prefix matching").mean(axis=0)
    return means[:-1], float(means[-1, 0])


def followers(ids: Tensor, mask: Tensor) -> Tensor:
    """(b, q, k) bool: the token before k is the one at q, and k is not after q. Of (b, t) tokens padded on the right."""
    n = ids.shape[1]
    same = ids[:, :, None] == ids[:, None, :]
    before = torch.cat([torch.zeros_like(same[..., :1]), same[..., :-1]], dim=-1)
    so_far = torch.ones(n, n, dtype=torch.bool, device=ids.device).tril()
    return before & so_far & (mask[:, :, None] > 0)
