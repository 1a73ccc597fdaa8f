"""Whether the model hub can be reached, tested with short requests. Its libraries retry for half a minute and print each time."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

KEPT = 60.0
"""Seconds for which an answer is kept: a network can come back."""
PAUSE = 1.0
"""Seconds before the second try: the first after a sleep, or on a new network, often fails."""

_answer: tuple[float, str | None] | None = None


def unanswered() -> str | None:
    """Why the hub cannot be reached, as a clause; None where it answers, and where it must not be asked (HF_HUB_OFFLINE)."""
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
    """The error of a request; None without an error. `seconds`: how long the hub's own library waits for such an answer."""
    from huggingface_hub.utils import get_session

    why = ""
    for first_try in (True, False):
        try:
            get_session().head(address, timeout=seconds)
        except Exception as e:  # of httpx or requests, by the version of the hub's library
            why = " ".join(str(e).split())[:120].rstrip(".") or type(e).__name__
            if (
                first_try and "Timeout" not in type(e).__name__
            ):  # a timeout is not tried again, because it has taken long already
                time.sleep(PAUSE)
                continue
            return why
        return None
    return why


@contextmanager
def asking_hub(name: str) -> Iterator[None]:
    """Inside the block, the hub's libraries use only their cache if the hub does not answer, as under HF_HUB_OFFLINE.

    So they neither wait nor print. Nothing changes where `name` is a folder on this machine.
    """
    if Path(name).exists() or unanswered() is None:
        yield
        return
    from huggingface_hub import constants

    # The datasets library has its own copy of the setting.
    holders: list[Any] = [constants, *(m for m in [sys.modules.get("datasets.config")] if m is not None)]
    former_values = [h.HF_HUB_OFFLINE for h in holders]
    for holder in holders:
        holder.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for holder, former_value in zip(holders, former_values, strict=True):
            holder.HF_HUB_OFFLINE = former_value
