"""Checks arguments against annotations: a wrong type, or an unknown or missing argument, gives an error in one sentence.

Annotations are read as strings, so nothing is imported for them. Arguments whose annotation has a part that `KINDS` does not
know are not checked: the function checks them itself.
"""

from __future__ import annotations

import functools
import inspect
import reprlib
from collections.abc import Callable, KeysView, Mapping, Sequence, ValuesView
from dataclasses import fields
from numbers import Integral, Real
from pathlib import PurePath
from typing import Any, TypeVar, cast

from trueup.errors import BadInput, OutOfMemory, did_you_mean, listing, out_of_memory

F = TypeVar("F", bound=Callable[..., Any])


def is_whole(value: Any) -> bool:
    """Whether a value is a count or a seed: an integer of Python or numpy, not a truth value, of at most 32 bits."""
    return isinstance(value, Integral) and not isinstance(value, bool) and abs(int(value)) <= 2**32


def _number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, Sequence) and not isinstance(value, str | bytes) and all(map(fits, value))


def _named(name: str) -> Callable[[Any], bool]:
    """A test of whether a value is of the class with this name. The class is not imported."""
    return lambda value: any(c.__name__ == name for c in type(value).__mro__)


_WORDS = "a list of words", _list_of(lambda v: isinstance(v, str))

KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "None": ("None", lambda v: v is None),
    "str": ("a word", lambda v: isinstance(v, str)),
    "int": ("a whole number", is_whole),
    "float": ("a number", _number),
    "bool": ("True or False", lambda v: isinstance(v, bool) or type(v).__name__ == "bool"),
    "Path": ("a path", lambda v: isinstance(v, PurePath)),
    "Sequence[str]": _WORDS,
    "tuple[str, ...]": _WORDS,
    "Sequence[float]": ("a list of numbers", _list_of(_number)),
    "Sequence[str | Path]": ("a list of paths", _list_of(lambda v: isinstance(v, str | PurePath))),
    "Mapping[str, Any]": ("a dict", lambda v: isinstance(v, Mapping)),
    "Mapping[str, Mapping[str, Any]]": (
        "a dict of dicts", lambda v: isinstance(v, Mapping) and all(isinstance(x, Mapping) for x in v.values()),
    ),
    **{name: (f"a trueup.{name}", _named(name)) for name in ("Job", "TuneJob", "Report")},
}  # fmt: skip
"""Part of an annotation, as it is written -> words for a message, and a test of a value."""


def checked(function: F) -> F:
    """`function` with a check of its arguments: BadInput for a wrong type, and for an unknown or missing argument.

    If memory runs out it raises OutOfMemory, whichever exception Python or torch raised.
    """
    name = f"trueup.{function.__qualname__}"

    @functools.wraps(function)
    def held(*args: Any, **options: Any) -> Any:
        signature = inspect.signature(held)  # a verb that takes the options of another has them in its signature by now
        open_ = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
        for option in options:
            if option not in signature.parameters and not open_:
                raise BadInput(
                    f"{name} has no argument '{option}'.{did_you_mean(option, signature.parameters)} It has "
                    f"{listing(signature.parameters, 99)}."
                )
        try:
            bound = signature.bind(*args, **options)
        except TypeError as e:
            raise BadInput(f"{name}: {e}. It is called as {name}({', '.join(signature.parameters)}).") from None
        for key, value in bound.arguments.items():
            bound.arguments[key] = _kept(name, key, value, signature.parameters[key].annotation)
        try:
            return function(*bound.args, **bound.kwargs)
        except (RuntimeError, MemoryError) as e:
            if out_of_memory(e):
                raise OutOfMemory from e
            raise

    return cast(F, held)


def check_fields(value: Any) -> None:
    """Raises BadInput where the value of a field of a dataclass does not have the type of its annotation."""
    for f in fields(value):
        value_given = getattr(value, f.name)
        if (converted := _kept(f"trueup.{type(value).__name__}", f.name, value_given, f.type)) is not value_given:
            object.__setattr__(value, f.name, converted)


def shown(value: Any) -> str:
    """A value and its type for a message, in one line."""
    brief = reprlib.Repr()
    brief.maxstring = brief.maxother = brief.maxlong = 80
    return f"{' '.join(brief.repr(value).split())} ({type(value).__name__})"


def _kept(name: str, key: str, value: Any, annotation: Any) -> Any:
    """The value, checked against its annotation. Where names are expected, arrays, series, views of dicts and whole numbers are
    converted to a list of words."""
    parts = _parts(annotation) if isinstance(annotation, str) else []
    if not parts or any(part not in KINDS for part in parts):
        return value
    if any(KINDS[part] is _WORDS for part in parts):
        value = _names(value, tuple if "tuple[str, ...]" in parts else list)
    if not any(KINDS[part][1](value) for part in parts):
        raise BadInput(
            f"{name}: '{key}' is {shown(value)}, which is not {' or '.join(KINDS[part][0] for part in parts)}."
        )
    return value


def _names(value: Any, kind: Callable[[list[str]], Any]) -> Any:
    values = value.tolist() if hasattr(value, "tolist") and getattr(value, "ndim", 0) == 1 else value
    values = (
        values.to_list()
        if hasattr(values, "to_list")
        else list(values)
        if isinstance(values, KeysView | ValuesView)
        else values
    )
    if isinstance(values, list | tuple) and all(isinstance(v, str) or is_whole(v) for v in values):
        return kind([str(v) for v in values])
    return value


def _parts(annotation: str) -> list[str]:
    """An annotation such as ``str | Sequence[str | Path] | None``, split at the bars outside brackets."""
    parts, depth = [""], 0
    for c in annotation:
        depth += {"[": 1, "]": -1}.get(c, 0)
        if c == "|" and not depth:
            parts.append("")
        else:
            parts[-1] += c
    return [part.strip() for part in parts]
