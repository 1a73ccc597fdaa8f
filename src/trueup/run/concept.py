"""How an answer moves when the states of a layer move along a concept: directional derivatives (TCAV, arXiv 1711.11279)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trueup.corpus.corpus import Corpus
from trueup.run import forward
from trueup.run.predict import TOKENS, in_batches, rows_of
from trueup.subject.subject import Subject


def gradients(subject: Subject, corpus: Corpus, answers: np.ndarray) -> np.ndarray:
    """`gradients_of` one subject."""
    return gradients_of([subject], corpus, answers)[0]


def gradients_of(subjects: Sequence[Subject], corpus: Corpus, answers: np.ndarray) -> list[np.ndarray]:
    """For each of `subjects` (n, K, layers + 1, d) float32: the derivatives of K answers by the state of each layer, in logits a
    unit of the state.

    Times a direction it is how the answer moves, to first order, when what is read of a layer moves along it
    (`predict.hidden_states`, embeddings first): every token of the text at once, or the last one of a causal model. Where a
    classifier's last linear layer reads just that state, the answer is linear in it, and that is the whole effect.

    Subjects of one live model differ in their heads alone, and share one forward pass.

    Args:
        answers: (K, C) what is summed over the class logits.

    Raises:
        Unavailable: one example does not fit in memory.
    """
    subject = subjects[0]
    if any(s.model is not subject.model for s in subjects):
        return [gradients(s, corpus, answers) for s in subjects]
    # Derivatives are linear in the answers, and each costs a backward pass: answers that are sums of others need none of their own.
    u, size, v = np.linalg.svd(np.asarray(answers, np.float64), full_matrices=False)
    apart = size >= 1e-12 * size.max()
    wanted = torch.as_tensor(v[apart], dtype=torch.float32, device=subject.device)
    mixed = torch.as_tensor((u * size)[:, apart], dtype=torch.float32, device=subject.device)

    alone = "layers" in subject.anatomy.lacks  # the features are all the states there are

    def read(subject: Subject, batch: forward.Batch) -> Tensor:
        with torch.enable_grad():
            if alone:
                x = forward.features(subject, batch).detach().requires_grad_(True)
                states = [x]
            else:
                # The base is frozen: gradients begin at the first layer's input.
                with forward.entering(subject, lambda h, k: h if k else h.detach().requires_grad_(True)) as states:
                    x = forward.features(subject, batch)
            z = [forward.reader(s)(x)[:, : wanted.shape[1]].float() for s in subjects]
            sums = [(of @ w).sum() for of in z for w in wanted]
            each = [torch.autograd.grad(s, states, retain_graph=k < len(sums) - 1) for k, s in enumerate(sums)]
        ids, mask = batch.ids.to(subject.device), batch.mask.to(subject.device)
        at = [gs[0][:, None] if alone else forward.pooled(subject, gs, ids, mask) for gs in each]
        moved = torch.stack(at, dim=1).float().unflatten(1, (len(subjects), len(wanted)))
        moved = torch.einsum("kr,bsrld->sbkld", mixed, moved)
        # A text is read as its tokens' mean, and moves with every one of them.
        return moved if alone or subject.anatomy.causal else moved * mask.sum(dim=1)[None, :, None, None, None]

    found: np.ndarray | None = None
    # A backward pass keeps every layer's activations: an eighth of the tokens of a forward pass.
    for take, got in in_batches(subject, rows_of(subject, corpus), read, "use by layer", tokens=TOKENS // 8):
        found = np.empty((len(got), len(corpus), *got.shape[2:]), np.float32) if found is None else found
        found[:, take] = got.cpu().numpy()
    assert found is not None
    return list(found)
