"""Whether the model hub answers: asked once and briefly. Its libraries ask again for half a minute, and print a line each time."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

KEPT = 60.0
"""Seconds for which an answer is believed: a network can come back."""
PAUSE = 1.0
"""Seconds before the second try: the first after a sleep, or on a new network, often fails."""

_answer: tuple[float, str | None] | None = None


def unanswered() -> str | None:
    """Why the hub cannot be reached, as half a sentence; None where any answer comes, and where it may not be asked
    (HF_HUB_OFFLINE)."""
    global _answer
    from huggingface_hub import constants

    if _answer is not None and time.monotonic() - _answer[0] < KEPT:
        return _answer[1]
    if constants.HF_HUB_OFFLINE:
        return None
    why = _asked(constants.ENDPOINT, constants.HF_HUB_ETAG_TIMEOUT)
    _answer = time.monotonic(), None if why is None else f"{constants.ENDPOINT} does not answer: {why}"
    return _answer[1]


def _asked(address: str, seconds: float) -> str | None:
    """The error of a request, None where it had none. `seconds`: as long as the hub's own library waits for such an answer."""
    from huggingface_hub.utils import get_session

    why = ""
    for again in (True, False):
        try:
            get_session().head(address, timeout=seconds)
        except Exception as e:  # of httpx or requests, by the version of the hub's library
            why = " ".join(str(e).split())[:120].rstrip(".") or type(e).__name__
            if again and "Timeout" not in type(e).__name__:  # which has been waited for already
                time.sleep(PAUSE)
                continue
            return why
        return None
    return why


@contextmanager
def asking_hub(name: str) -> Iterator[None]:
    """Inside the block, where `name` is no folder here and the hub does not answer, its libraries read their cache alone, at once
    and without a word, as under HF_HUB_OFFLINE."""
    if Path(name).exists() or unanswered() is None:
        yield
        return
    from huggingface_hub import constants

    # The datasets library has a copy of its own.
    holders: list[Any] = [constants, *(m for m in [sys.modules.get("datasets.config")] if m is not None)]
    before = [h.HF_HUB_OFFLINE for h in holders]
    for holder in holders:
        holder.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for holder, was in zip(holders, before, strict=True):
            holder.HF_HUB_OFFLINE = was
