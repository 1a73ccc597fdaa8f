"""How an answer moves when the states of a layer move along a concept: directional derivatives (TCAV, arXiv 1711.11279)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trueup.corpus.corpus import Corpus
from trueup.run import forward
from trueup.run.predict import TOKENS, in_batches
from trueup.subject.subject import Subject


def sensitivity(
    subject: Subject, corpus: Corpus, answers: np.ndarray, directions: np.ndarray, which: np.ndarray
) -> np.ndarray:
    """(n, layers + 1), in logits: the sum over concepts of the derivative of an answer along that concept's direction.

    Layers are those of `predict.hidden_states`, embeddings first, and a direction moves what is read there: every token of the
    text, or the last one of a causal model. Where a classifier's last linear layer reads just that state, the answer is linear in
    it, so the derivative is the whole effect. Elsewhere it is the effect to first order.

    Args:
        answers: (K, C) of each concept, what is summed over the class logits.
        directions: (Y, K, layers + 1, d) of each concept, one set for each of Y kinds of examples.
        which: (n,) the kind of each example, below Y.

    Raises:
        Unavailable: one example does not fit in memory.
    """
    wanted = torch.as_tensor(answers, dtype=torch.float32, device=subject.device)

    def read(subject: Subject, batch: forward.Batch) -> Tensor:
        with torch.enable_grad():
            logits, states = _with_states(subject, batch)
            z = logits[:, : wanted.shape[1]].float()
            last = len(wanted) - 1
            each = [torch.autograd.grad((z @ w).sum(), states, retain_graph=k < last) for k, w in enumerate(wanted)]
        mask = batch.mask.to(subject.device)
        if subject.anatomy.causal:
            here = forward.read_up_to(subject, batch.ids.to(subject.device), mask)
            pooled = [torch.stack([forward.at_last(g, here) for g in gs], dim=1) for gs in each]
        else:
            pooled = [
                torch.stack([(g[:, -mask.shape[1] :] * mask.unsqueeze(-1)).sum(dim=1) for g in gs], dim=1)
                for gs in each
            ]
        return torch.stack(pooled, dim=1).float()

    found = np.empty((len(corpus), directions.shape[2]))
    # A backward pass keeps every layer's activations: an eighth of the tokens of a forward pass.
    for take, gradient in in_batches(
        subject, forward.tokenize(subject, corpus), read, "use by layer", tokens=TOKENS // 8
    ):
        found[take] = np.einsum("bkld,bkld->bl", gradient.cpu().numpy(), directions[which[take]])
    return found


def _with_states(subject: Subject, batch: forward.Batch) -> tuple[Tensor, list[Tensor]]:
    """The logits, and the states (b, t, d) that each depends on: what goes into each layer, and what comes out of the last."""
    net: nn.Module = subject.base.base_model  # type: ignore[assignment]
    states: list[Tensor] = []

    def entering(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        state = inputs[0] if inputs else named["hidden_states"]
        # The base is frozen: gradients begin at the first layer's input.
        state = state if states else state.detach().requires_grad_(True)
        states.append(state)
        return ((state, *inputs[1:]), named) if inputs else (inputs, {**named, "hidden_states": state})

    def leaving(_: nn.Module, __: Any, out: Any) -> None:
        states.append(out.last_hidden_state)

    hooks = [m.register_forward_pre_hook(entering, with_kwargs=True) for m in net.get_submodule(subject.anatomy.layers)]  # type: ignore[attr-defined]
    hooks.append(net.register_forward_hook(leaving))
    try:
        return forward.logits(subject, batch), states
    finally:
        for hook in hooks:
            hook.remove()
