"""How many tokens a model takes, and whether PEFT runs an adapter on it at all."""

from __future__ import annotations

from typing import Any

import peft
import torch
import transformers

from trueup.errors import TESTED, BadInput, Unsupported
from trueup.subject.anatomy import Anatomy
from trueup.subject.quiet import quiet
from trueup.subject.weights import (
    device_in,
)


def check_runs(model: peft.PeftModel, anatomy: Anatomy) -> None:
    """One token through a prompt or prefix as PEFT runs it, so that what it cannot run is said before anything is made of it.

    Raises:
        Unsupported: this PEFT cannot run it with this transformers. BadInput: as `position_limit`.
    """
    settings: Any = model.peft_config[model.active_adapter]  # type: ignore[index]
    if not settings.is_prompt_learning:
        return
    position_limit(model.get_base_model().config, anatomy, settings)
    ids = torch.zeros((1, 1), dtype=torch.long, device=device_in(model))
    try:
        with quiet(), torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except Exception as e:  # whatever the libraries disagree on
        base = type(model.get_base_model()).__name__
        raise Unsupported(
            f"PEFT {peft.__version__} cannot run an adapter of kind '{settings.peft_type.value}' on a {base} of transformers "
            f"{transformers.__version__}: {' '.join(str(e).split())[:160] or type(e).__name__} Take another kind, such as a LoRA "
            f"or a prompt. Or: {TESTED}"
        ) from e


def position_limit(config: Any, anatomy: Anatomy, settings: peft.PeftConfig | None = None) -> int:
    """How many tokens of text fit: the model's positions less the adapter's virtual tokens and RoBERTa's offset.

    Raises:
        BadInput: fewer than 4.
    """
    text = config.get_text_config()
    positions = next((n for k in _POSITIONS if isinstance(n := getattr(text, k, None), int) and n > 0), 1_000_000)
    offset = 2 if anatomy.after_padding else 0
    virtual = int(getattr(settings, "num_virtual_tokens", 0) or 0)
    room = int(positions) - offset - virtual
    if room < 4:
        raise BadInput(
            f"{virtual} virtual tokens leave no room for text: the model has {int(positions) - offset} positions. "
            "Take fewer tokens."
        )
    return room


def longest(asked: int | None, usual: int, room: int) -> int:
    """The tokens of the longest input: as many as were asked for, else the `usual`, and at most `room`.

    Raises:
        BadInput: fewer than 4 were asked for.
    """
    if asked is not None and asked < 4:
        raise BadInput(
            f"A max_length of {asked} tokens leaves no room for text. Give 4 or more, or leave it out for the usual length."
        )
    return min(usual if asked is None else asked, room)


_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx")
"""What configs call the number of their positions."""


def most_tokens(config: Any, anatomy: Anatomy, tokenizer: Any, settings: peft.PeftConfig | None = None) -> int:
    """`position_limit`, or less where the tokenizer says that it cuts earlier (``model_max_length``, as pipelines do)."""
    return min(position_limit(config, anatomy, settings), max(4, int(min(tokenizer.model_max_length, 1e9))))
