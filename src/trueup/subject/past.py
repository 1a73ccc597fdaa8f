"""What transformers keeps of earlier tokens: keys and values, or recurrent states.

It is known by its type. The arguments that carry it have other names in other families, and transformers 5.24 renamed them
all (``past_key_values``, ``layer_past`` and ``cache_params`` became ``cache``).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import transformers
from torch import nn
from transformers.cache_utils import Cache

from trueup.errors import Unsupported


def named(arguments: Mapping[str, Any]) -> list[str]:
    """The names of those arguments of a call that carry it: one in a layer of a causal model that remembers."""
    return [name for name, value in arguments.items() if isinstance(value, Cache)]


def returned(output: Any) -> Any:
    """What a backbone that was called with ``use_cache=True`` gives back of it."""
    return next(v for v in output.values() if isinstance(v, Cache))


def argument(module: nn.Module) -> str:
    """The argument of a backbone that takes it.

    Raises:
        Unsupported: there is none.
    """
    for name, parameter in inspect.signature(module.forward).parameters.items():
        if "Cache" in str(parameter.annotation):
            return name
    raise Unsupported(
        f"A {type(module).__name__} of transformers {transformers.__version__} takes no keys and values of earlier tokens, so a "
        "prefix cannot be put before its text; use a prompt or a LoRA."
    )
