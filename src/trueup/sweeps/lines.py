"""YAML (and so JSON) as plain values that know their lines.

Scalars are read by the rules of YAML 1.2: ``no`` is a word and ``1e-3`` is a number. PyYAML by itself reads ``no`` as false and
``1e-3`` as a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from trueup.errors import BadInput
from trueup.report.words import clean
from trueup.store.inputs import near
from trueup.store.schema import open_plain

MOST_BYTES = 10_000_000
"""The largest file that is read: a sweep is written by hand or by a short script."""
MOST_VALUES = 1_000_000
"""The most values that a file may expand to: with aliases, a few lines can expand to more than fits in memory."""


@dataclass(frozen=True)
class At:
    """A value and its place in the file. `value` is a dict of `At` by key, a list of `At`, or a scalar.

    Attributes:
        text: a scalar as it was written. key_line: the line of its key, for a value of a mapping.
    """

    value: Any
    file: str
    line: int
    text: str = ""
    key_line: int = 0

    @property
    def where(self) -> str:
        return f"{self.file}, line {self.key_line or self.line}"

    def plain(self) -> Any:
        """The value without its places."""
        if isinstance(self.value, dict):
            return {k: v.plain() for k, v in self.value.items()}
        return [v.plain() for v in self.value] if isinstance(self.value, list) else self.value

    def items(self) -> Iterator[tuple[str, At]]:
        yield from self.value.items()


DEEPEST = 100
"""The deepest nesting of brackets: PyYAML's time grows with the square of the depth."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own way

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        if self.flow_level >= DEEPEST:
            raise RecursionError
        super().fetch_flow_collection_start(TokenClass)


for _tag, _form, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+.0123456789"),
    ("merge", r"<<", "<"),
):  # fmt: skip
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_form})$"), list(_first) + [""] * ("\0" in _first)
    )


_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))  # 010 is ten


def read(path: Path) -> At:
    """The single document of a file.

    Raises:
        BadInput: there is no such file, or it is not YAML, or a key occurs twice; with the line.
    """
    try:
        with open_plain(path) as f:
            raw = f.read(MOST_BYTES + 1)
        if len(raw) > MOST_BYTES:
            raise BadInput(
                f"'{path}' is larger than {MOST_BYTES // 1_000_000} MB, so it is no sweep. Give the YAML file of one."
            )
        text = raw.decode("utf-8-sig")
    except FileNotFoundError:
        raise BadInput(
            f"There is no file '{path}'.{near(path, '*.yaml', '*.yml')} Check the path; a sweep is a YAML file."
        ) from None
    except UnicodeDecodeError as e:
        raise BadInput(
            f"'{path}' is not UTF-8 text (byte {e.start}), so it is no sweep. Give the YAML file of one."
        ) from e
    except (OSError, ValueError) as e:
        why = getattr(e, "strerror", None) or e
        raise BadInput(f"'{path}' cannot be read ({why}). Give a file that you may read.") from e
    loader: Any = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            raise BadInput(f"'{path}' is empty. Write the sweep into it: `defaults`, `matrix` and `steps`.")
        return _at(loader, node, str(path), room=[MOST_VALUES])
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = str(getattr(e, "problem", None) or e).splitlines()[0]
        raise BadInput(
            f"{path}{line}: this is no YAML ({problem}). Correct the line; mind its indentation and quotes."
        ) from e
    except RecursionError:
        raise BadInput(f"'{path}' is nested too deeply to be a sweep. Give the YAML file of one.") from None
    finally:
        if loader is not None:
            loader.dispose()


def _at(loader: Any, node: Any, file: str, above: tuple[int, ...] = (), *, room: list[int]) -> At:
    line = node.start_mark.line + 1
    room[0] -= 1
    if room[0] < 0:
        raise BadInput(
            f"{file}, line {line}: the file comes to more than {MOST_VALUES:,} values. Write fewer, or use fewer aliases."
        )
    if id(node) in above:
        raise BadInput(f"{file}, line {line}: a value holds itself through an alias. Write it out.")
    above = (*above, id(node))
    if node.tag.startswith(("tag:yaml.org,2002:python", "!")):
        raise BadInput(
            f"{file}, line {line}: the tag '{node.tag}' has no place in a sweep. Write the value without it."
        )
    if isinstance(node, yaml.ScalarNode):
        try:
            value = loader.construct_object(node)
        except (ValueError, KeyError) as e:
            raise BadInput(
                f"{file}, line {line}: {clean(node.value, 80)!r} cannot be read ({e}). Put it in quotes."
            ) from e
        if not isinstance(value, str | int | float | bool | None):
            raise BadInput(f"{file}, line {line}: {clean(node.value, 80)!r} is no word or number. Write it as one.")
        if any("\ud800" <= c <= "\udfff" for c in node.value):
            raise BadInput(f"{file}, line {line}: {clean(node.value, 80)!a} holds half a character. Write it whole.")
        return At(value, file, line, node.value)
    if isinstance(node, yaml.SequenceNode):
        return At([_at(loader, n, file, above, room=room) for n in node.value], file, line)
    found: dict[str, At] = {}
    merged: dict[str, At] = {}
    for key, value in node.value:
        at = key.start_mark.line + 1
        if key.tag == "tag:yaml.org,2002:merge":
            parts = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for part in reversed(parts):
                if not isinstance(part, yaml.MappingNode):
                    raise BadInput(
                        f"{file}, line {at}: '<<' merges mappings, and something else stands here. Give it an alias of one."
                    )
                merged |= _at(loader, part, file, above, room=room).value
            continue
        if not isinstance(key, yaml.ScalarNode):
            raise BadInput(f"{file}, line {at}: a key is a word, such as `model`, and here it is a list or a mapping.")
        if key.value in found:
            raise BadInput(
                f"{file}, line {at}: '{key.value}' stands here and in line {found[key.value].line}. Keep one."
            )
        found[key.value] = replace(_at(loader, value, file, above, room=room), key_line=at)
    return At(merged | found, file, line)
