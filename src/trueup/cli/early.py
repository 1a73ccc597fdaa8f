"""Checks of arguments that need no large library, so that an error is reported at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def refuse_taken(out: Path, force: bool) -> None:
    """Raises BadInput where the folder `out` is not empty and `force` is not given."""
    from trueup.store import atomic

    atomic.refuse_taken(out, force)


def check_names(model: str, data: Sequence[str]) -> None:
    """Raises BadInput where there is no model or no data with such a name."""
    from trueup.corpus.read import check_source
    from trueup.prepare import CHECKED, check_model

    check_model(model)
    for name in data:
        check_source(name, (), CHECKED)
