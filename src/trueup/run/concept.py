"""The change of an answer when the states of a layer move along a concept: directional derivatives (TCAV, arXiv 1711.11279)."""

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
    """For each of `subjects` (n, K, layers + 1, d) float32: the derivatives of K answers by the state of each layer, in logits per
    unit of the state.

    The product with a direction is the change of the answer, to first order, when the state of a layer moves along the direction
    (`predict.hidden_states`, embeddings first): at every token of the text at once, or at the last one in a causal model. Where a
    classifier's last linear layer reads just that state, the answer is linear in it, and the product is the whole effect.

    Subjects of one live model differ only in their heads, and share one forward pass.

    Args:
        answers: (K, C) the weights of the class logits in each answer.

    Raises:
        Unavailable: one example does not fit in memory.
    """
    subject = subjects[0]
    if any(s.model is not subject.model for s in subjects):
        return [gradients(s, corpus, answers) for s in subjects]
    # Derivatives are linear in the answers, and each costs a backward pass, so answers that are sums of others need no own pass.
    u, size, v = np.linalg.svd(np.asarray(answers, np.float64), full_matrices=False)
    independent = size >= 1e-12 * size.max()
    basis = torch.as_tensor(v[independent], dtype=torch.float32, device=subject.device)
    mixing = torch.as_tensor((u * size)[:, independent], dtype=torch.float32, device=subject.device)

    features_only = "layers" in subject.anatomy.lacks  # the features are all the states there are

    def read(subject: Subject, batch: forward.Batch) -> Tensor:
        with torch.enable_grad():
            if features_only:
                x = forward.features(subject, batch).detach().requires_grad_(True)
                states = [x]
            else:
                # The base is frozen: gradients begin at the first layer's input.
                with forward.entering(subject, lambda h, k: h if k else h.detach().requires_grad_(True)) as states:
                    x = forward.features(subject, batch)
            z = [forward.reader(s)(x)[:, : basis.shape[1]].float() for s in subjects]
            sums = [(logits @ w).sum() for logits in z for w in basis]
            gradients_of_sums = [
                torch.autograd.grad(s, states, retain_graph=k < len(sums) - 1) for k, s in enumerate(sums)
            ]
        ids, mask = batch.ids.to(subject.device), batch.mask.to(subject.device)
        layer_gradients = [
            gs[0][:, None] if features_only else forward.pooled(subject, gs, ids, mask) for gs in gradients_of_sums
        ]
        derivatives = torch.stack(layer_gradients, dim=1).float().unflatten(1, (len(subjects), len(basis)))
        derivatives = torch.einsum("kr,bsrld->sbkld", mixing, derivatives)
        # The state of a text is the mean over its tokens, and the direction is added to each of them.
        return (
            derivatives
            if features_only or subject.anatomy.causal
            else derivatives * mask.sum(dim=1)[None, :, None, None, None]
        )

    found: np.ndarray | None = None
    # A backward pass keeps every layer's activations: an eighth of the tokens of a forward pass.
    for take, derivatives_of_batch in in_batches(
        subject, rows_of(subject, corpus), read, "use by layer", tokens=TOKENS // 8
    ):
        found = (
            np.empty((len(derivatives_of_batch), len(corpus), *derivatives_of_batch.shape[2:]), np.float32)
            if found is None
            else found
        )
        found[:, take] = derivatives_of_batch.cpu().numpy()
    assert found is not None
    return list(found)
