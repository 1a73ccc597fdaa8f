"""Silence for libraries that talk while they load."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

import transformers


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' and peft's own reports: what matters of them is raised as a sentence here."""
    logger = logging.getLogger("transformers")
    level = logger.level
    bar = transformers.utils.logging.is_progress_bar_enabled()
    logger.setLevel(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if bar:
            transformers.utils.logging.enable_progress_bar()
