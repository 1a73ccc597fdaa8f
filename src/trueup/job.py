"""The settings of a check as data: a Job, its faults with their settings (knobs), and the equivalent command line."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from trueup.errors import BadInput, check_within, did_you_mean, listing
from trueup.faults.fault import Fault, each_fault
from trueup.given import check_fields, checked, is_whole

Depth = Literal["audit", "check", "methods"]


@dataclass(frozen=True)
class Job:
    """The settings of one check: the options of the command line, which ``job.json`` keeps so that the check can be repeated.

    Attributes:
        model, adapter, template, verbaliser, shots, chat, classes, max_length, device, dtype, quantize, device_map,
            revision, allow_pickle, trust_remote_code: as in `trueup.load`. In-context tasks (``task:NAME``) have 4 shots by
            default.
        demos: for a few-shot prompt: a file with the demonstrations of every query, with the same columns as `data`. header: a
            line before the first demonstration (in a chat, the system message).
        data, text, label, second, confounder, cluster, split, held_out, test, allow_leak, limit: as in `trueup.read`; `confounder`
            is its `attributes`. With `shots`, the labels are answers and need not be classes.
        faults: the names of the faults to examine. Empty: every fault that applies.
        depth: ``audit`` stops after the first finding. ``check`` also repairs and audits again. ``methods`` compares all methods
            of repair on the test examples and chooses none.
        seed: the seed of all random choices. None: the seed in the card of an adapter that `trueup tune` made, otherwise 0. A
            tuned adapter is then examined on the test rows of its own split.
        keep: also save repairs that show no measurable gain on the test examples.
        knobs: name of a fault -> name of a setting -> value.
    """

    model: str
    data: str
    adapter: str | None = None
    text: str = "text"
    label: str = "label"
    second: str | None = None
    confounder: tuple[str, ...] = ()
    cluster: str | None = None
    split: str | None = None
    held_out: bool = False
    test: str | None = None
    allow_leak: bool = False
    limit: int | None = None
    faults: tuple[str, ...] = ()
    depth: Depth = "check"
    seed: int | None = None
    classes: tuple[str, ...] | None = None
    template: str | None = None
    verbaliser: tuple[str, ...] | None = None
    shots: int | None = None
    chat: bool = False
    demos: str | None = None
    header: str | None = None
    max_length: int | None = None
    device: str | None = None
    dtype: str | None = None
    quantize: str | Mapping[str, Any] | None = None
    device_map: str | Mapping[str, Any] | None = None
    revision: str | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False
    keep: bool = False
    knobs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def inputs(self) -> dict[str, str | None]:
        """The inputs of the check: the name used in messages -> a file, a folder, or another name such as a hub id."""
        return {
            "base": self.model, "adapter": self.adapter, "data": self.data, "test data": self.test, "demonstrations": self.demos,
        }  # fmt: skip

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Job:
        """The job from the contents of ``job.json``.

        Raises:
            BadInput: a key is unknown, or `model` or `data` is missing.
        """
        field_names = {f.name for f in fields(Job)}
        for key in data:
            if key not in field_names:
                raise BadInput(
                    f"A job has no setting '{key}'.{did_you_mean(key, field_names)} It has {listing(field_names, 99)}."
                )
        for key in ("model", "data"):
            if key not in data:
                raise BadInput(f"The job does not say which {key}; add it.")
        check_types(data, "job's setting")
        tuples = {k: tuple(v) for k, v in data.items() if isinstance(v, list)}
        return Job(**{**data, **tuples})


def read_job(folder: str | Path) -> Job:
    """The job of a folder that `trueup check` or `trueup audit` wrote.

    Raises:
        BadInput: the folder holds no ``job.json``, or an empty one: the check was made in Python on live objects without names.
    """
    from trueup.store.atomic import there
    from trueup.store.inputs import near
    from trueup.store.schema import ANYTHING, mapping, read

    file = Path(folder) / "job.json"
    if not file.is_file():
        problem = "holds no job.json." if there(folder) else f"is no folder.{near(folder, '*/job.json')}"
        raise BadInput(
            f"'{folder}' {problem} {check_within(Path(folder), 'Give the folder that `trueup check ... -o` wrote.')}"
        )
    if (Path(folder) / "scout.json").is_file():
        raise BadInput(
            f"'{folder}' is of a scout, and a check would take its place. Make it again with `trueup scout`."
        )
    data = read(file, mapping(ANYTHING), otherwise="Give the folder of another check.", correct="Correct it.")
    if not data:
        raise BadInput(
            f"'{file}' is empty: the check was made in Python on live objects, and no names repeat it. Make it there again."
        )
    return Job.from_dict(data)


def check_types(given: Mapping[str, Any], what: str) -> None:
    """Raises BadInput where a value does not have the type of the `Job` setting with its name. `confounder` may be one word."""
    for key, hint in get_type_hints(Job).items():
        if key not in given or _fits(given[key], hint) or (key == "confounder" and isinstance(given[key], str)):
            continue
        value, fit = given[key], _spelt(hint)
        raise BadInput(f"The {what} '{key}' is {repr(value)[:80]} ({type(value).__name__}), which is not {fit}.")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from JSON has the type of a setting."""
    if isinstance(hint, UnionType):
        return any(_fits(value, h) for h in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)
    if get_origin(hint) is not None:
        return isinstance(value, Mapping) and (
            Any in get_args(hint) or all(isinstance(v, Mapping) for v in value.values())
        )
    if hint is int:
        return is_whole(value)
    return isinstance(value, hint)


def _spelt(hint: Any) -> str:
    if isinstance(hint, UnionType):
        return " or ".join(_spelt(h) for h in get_args(hint))
    if get_origin(hint) is Literal:
        return f"one of {listing(get_args(hint))}"
    if Any in get_args(hint):
        return "a table"
    names = {str: "a word", int: "a whole number", bool: "true or false", tuple: "a list of words", NoneType: "null"}
    return names.get(get_origin(hint) or hint, "a table of settings for each fault")


@checked
def faults_of(names: Any = (), knobs: Mapping[str, Mapping[str, Any]] | None = None) -> list[Fault]:
    """Faults by name with their knobs set. Without names: all faults except those examined on request, unless they have a knob set.

    Raises:
        BadInput: an unknown fault or knob.
    """
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise BadInput(f"faults_of takes a list of names, and {names!r} is none. Give one, such as ['overconfidence'].")
    fault_class = {f.name: f for f in each_fault()}
    for name in [*names, *(knobs or {})]:
        if name not in fault_class:
            raise BadInput(
                f"There is no fault '{name}'.{did_you_mean(name, fault_class)} There are {listing(fault_class)}."
            )
    faults = []
    default_names = [k for k, f in fault_class.items() if not f.on_request or k in (knobs or {})]
    for name in dict.fromkeys(names or default_names):
        knob_values = (knobs or {}).get(name, {})
        allowed = fault_class[name].knobs()
        for knob in knob_values:
            if knob not in allowed:
                raise BadInput(
                    f"'{name}' has no setting '{knob}'.{did_you_mean(knob, allowed)} It has {listing(allowed)}."
                )
        faults.append(fault_class[name](**knob_values))
    return faults


def names_in(line: str) -> tuple[str, ...]:
    """Names separated by commas. A name that holds a comma is in double quotes, as in a csv file."""
    return tuple(name for row in csv.reader(io.StringIO(line, newline="")) for name in row)


def one_line(names: Sequence[object]) -> str:
    """The inverse of `names_in`: the line that it reads as these names."""
    line = io.StringIO()
    csv.writer(line).writerow(names)
    return line.getvalue().removesuffix("\r\n")


_TABLES = ("quantize", "device_map")


def command_line(job: Mapping[str, Any]) -> str | None:
    """The command that repeats a job; None where no single command does.

    The command line audits one fault at a time, compares methods only in a sweep, and has no option for a table.
    """
    faults, audit = list(job.get("faults") or ()), job.get("depth") == "audit"
    if (
        (audit and len(faults) != 1)
        or job.get("depth") == "methods"
        or any(isinstance(job.get(k), dict) for k in _TABLES)
    ):
        return None
    words = ["trueup", *(["audit", faults[0]] if audit else ["check"])]
    words.append(str(job["model"]))
    for key, value in job.items():
        option = {"faults": "--fault", "max_length": "--max-length"}.get(key, "--" + key.replace("_", "-"))
        if (
            key in ("model", "depth", "knobs")
            or value is None
            or value is False
            or value in ((), [])
            or (key == "faults" and audit)
        ):
            continue
        if key in ("text", "label") and value == key:
            continue
        if value is True:
            words.append(option)
        elif key in ("faults", "confounder"):
            for v in value:
                words += [option, str(v)]
        elif isinstance(value, list | tuple):
            words += [option, one_line(value)]
        else:
            words += [option, str(value)]
    for fault, knobs in (job.get("knobs") or {}).items():
        for knob, value in knobs.items():
            words += ["--set", f"{fault}.{knob}={json.dumps(value)}"]
    return shlex.join([*words, "-o", "OUT"])
