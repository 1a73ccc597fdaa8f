"""Values as strict JSON and back, for the files of an output folder and its page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

import numpy as np

_TAG = "$float"


def plain(value: Any) -> Any:
    """`value` in types that JSON can hold: NaN and the infinities are tagged, numpy is unpacked, other types become text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value).encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {_TAG: repr(float(value))}
    if isinstance(value, Mapping):
        return {plain(str(k)): plain(v) for k, v in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((plain(v) for v in value), key=repr)
    if isinstance(value, Sequence):
        return [plain(v) for v in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {k: plain(v) for k, v in vars(value).items()}
    return plain(str(value))


def untag(value: dict[str, Any]) -> Any:
    """The object hook of `json.loads` that puts NaN and the infinities back."""
    return float(value[_TAG]) if value.keys() == {_TAG} else value
