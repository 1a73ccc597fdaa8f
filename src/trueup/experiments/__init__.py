"""The papers' own experiments, repeated: one module each, with `Settings`, `run` and `table`, found by being there."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from trueup.errors import BadInput, did_you_mean, listing


def named(name: str) -> ModuleType:
    """The module of the experiment `name`.

    Raises:
        BadInput: there is none of that name.
    """
    known = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if name not in known:
        raise BadInput(f"There is no bench '{name}'.{did_you_mean(name, known)} There is {listing(known)}.")
    return importlib.import_module(f"{__name__}.{name}")
