"""Slips that are told before the libraries are loaded that a command needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def refuse_taken(out: Path, force: bool) -> None:
    """Raises BadInput where `out` is taken and `force` is not given."""
    from trueup.store import atomic

    atomic.refuse_taken(out, force)


def check_names(model: str, data: Sequence[str]) -> None:
    """Raises BadInput where a model or data of that name cannot be had."""
    from trueup.corpus.read import check_source
    from trueup.prepare import CHECKED, check_model

    check_model(model)
    for name in data:
        check_source(name, (), CHECKED)
