"""From a sweep's file to its cells: expands `defaults`, `matrix`, `include` and `exclude` into cells, each a job with a name.

```yaml
steps: [tune, check]          # tune, check, audit or methods alone, or tune before another of them; the default is check
defaults:                     # for every cell: the settings of `trueup.Job`, and with tune those of training
  model: embedded:minilm
  data: reviews.csv
  kind: lora
matrix:                       # every combination of these
  seed: [0, 1, 2]
  confounder: [site, source]
include:                      # further cells, each on top of the defaults
  - {name: long, max_length: 256}
exclude:                      # cells with all of these values are left out; * matches any value
  - {seed: 2, confounder: site}
```

An adapter in the matrix may be a pattern, such as ``runs/*/checkpoint-best``. It gives one value for each folder that matches.
"""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from trueup.errors import BadInput, did_you_mean, listing
from trueup.faults.fault import LARGEST
from trueup.job import Job, faults_of
from trueup.report.words import clean
from trueup.sweeps.lines import At, read
from trueup.tuning import TRAINED, TuneJob, tune_job

STEPS = ("tune", "check", "audit", "methods")
_LAST = ("check", "audit", "methods")
PARTS = ("defaults", "matrix", "include", "exclude", "steps")
MOST = 100_000
"""The most cells of one sweep."""
LONGEST = 120
"""The longest name of a cell, in characters: it is also the name of a folder."""
READ = ("model", "adapter", "data", "test", "demos", "device_map")
"""Settings that may name files or folders, which a cell reads."""


@dataclass(frozen=True)
class Cell:
    """One job of a sweep: a tuning, a check, or a tuning and a check of its adapter.

    Attributes:
        name: name of the cell and of its folder. steps: some of `STEPS`, in order. settings: the requested settings, with the
            names of `Job`, `TuneJob` and `TRAINED`.
    """

    name: str
    steps: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tuned(self) -> bool:
        return "tune" in self.steps

    def tune_job(self) -> TuneJob:
        """The training of a cell with the step ``tune``."""
        job_fields = {f.name for f in fields(TuneJob)} - {"recipe", "training"}
        return tune_job(
            {k: _tuple(v) for k, v in self.settings.items() if k in job_fields},
            **{k: v for k, v in self.settings.items() if k in TRAINED},
        )

    def job(self, adapter: str | None = None) -> Job | None:
        """The last step, if it is not ``tune``, else None. `adapter` is the tuned adapter of a cell with the step ``tune``."""
        if self.steps[-1] == "tune":
            return None
        job_settings = {k: v for k, v in self.settings.items() if k in _CHECK}
        if self.tuned:
            job_settings |= {"adapter": adapter}
        return Job.from_dict({**job_settings, "depth": self.steps[-1]})

    @property
    def asked(self) -> dict[str, Any]:
        """The steps and settings as JSON values. Cells with equal ones do the same work."""
        return {"steps": list(self.steps), "settings": json.loads(json.dumps(dict(self.settings)))}


@dataclass(frozen=True)
class _Found:
    """A cell, its place in the file, and the place of each of its settings."""

    cell: Cell
    where: str
    places: Mapping[str, At]


def cells_of(path: str | Path, out: str | Path | None = None) -> list[Cell]:
    """The cells of a sweep's file, sorted by base model, so that each base is loaded as rarely as possible.

    Args:
        path: the file. out: the folder that the cells will write to, where that is known.

    Raises:
        BadInput: the file cannot be read, a setting is unknown or of the wrong kind (with its line), there are no cells or too
            many, two cells have one name or are one job, or cells read files in `out` or a folder around it.
    """
    root = read(Path(path))
    parts = _mapping(root, "A sweep", PARTS)
    steps = _steps(parts.get("steps"))
    kinds = _kinds(steps)
    defaults = _settings(parts["defaults"], kinds, steps) if "defaults" in parts else {}
    axes_at = _mapping(parts["matrix"], "The matrix", tuple(kinds), _elsewhere(steps)) if "matrix" in parts else {}
    axes = _axes(axes_at, kinds)
    found_cells: list[_Found] = []
    if number := math.prod(len(v) for v in axes.values()) if axes else int("include" not in parts):
        if number > MOST:
            raise BadInput(
                f"{parts['matrix'].where}: the matrix comes to {number:,} cells, and a sweep has at most {MOST:,}. Take values "
                "away, or part it into several sweeps."
            )
        entries = _list(parts["exclude"], "`exclude`") if "exclude" in parts else []
        patterns = [_pattern(at, kinds, steps) for at in entries]
        varying = {k: v for k, v in axes.items() if len(v) > 1} or axes
        words_of_axis = {k: _called(k, [v.plain() for v in values]) for k, values in varying.items()}
        where = parts["matrix"].where if axes else root.where
        used_entries: set[int] = set()
        for at in product(*(range(len(v)) for v in axes.values())):
            places_of_cell = defaults | {k: axes[k][i] for k, i in zip(axes, at, strict=True)}
            settings = _plain(places_of_cell)
            matching = [i for i, pattern in enumerate(patterns) if _matches(settings, pattern)]
            used_entries.update(matching)
            if matching:
                continue
            name = "_".join(words_of_axis[k][i] for k, i in zip(axes, at, strict=True) if k in words_of_axis)
            found_cells.append(_Found(Cell(_short(name or "cell"), steps, settings), where, places_of_cell))
        for i, entry in enumerate(entries):
            if i not in used_entries:
                raise BadInput(
                    f"{entry.where}: this entry of `exclude` is of no cell of the matrix. Correct it, or take it away."
                )
    for at in _list(parts["include"], "`include`") if "include" in parts else ():
        places_of_cell = dict(_mapping(at, "A cell under `include`", ("name", *kinds)))
        name = places_of_cell.pop("name", None)
        if name is not None and not (name.text and _slug(name.text) == name.text):
            raise BadInput(
                f"{name.where}: the name {name.text or name.plain()!r} is no name of a folder. Use letters, digits, '-', '_', '.' "
                "and '='."
            )
        entry_settings = _settings(replace(at, value=places_of_cell), kinds, steps)
        spelt_name = (
            name.text
            if name is not None
            else "_".join(f"{k}={_slug(word(v.plain()))}" for k, v in entry_settings.items())
        )
        places = defaults | entry_settings
        found_cells.append(_Found(Cell(_short(spelt_name or "cell"), steps, _plain(places)), at.where, places))
    if not found_cells:
        raise BadInput(
            f"{root.file}: no cell is left of the matrix and `include`. Take something out of `exclude`, or give a matrix values."
        )
    proven: set[str] = set()
    for found_cell in found_cells:
        _possible(found_cell, proven)
    _distinct(found_cells)
    if out is not None:
        _apart(found_cells, axes_at.get("adapter"), Path(out))
    order = sorted(range(len(found_cells)), key=lambda i: (str(found_cells[i].cell.settings["model"]), i))
    return [found_cells[i].cell for i in order]


def part_of(part: str) -> tuple[int, int]:
    """i and n of a part ``i/n``.

    Raises:
        BadInput: as `shard`.
    """
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", part.strip())
    i, n = (int(g) for g in match.groups()) if match else (0, 0)
    if not 1 <= i <= n:
        raise BadInput(
            f"--shard '{clean(part, 80)}' is no part of a sweep. Parts are 1/4, 2/4, 3/4 and 4/4, for example."
        )
    return i, n


def shard(cells: Sequence[Cell], part: str) -> list[Cell]:
    """The cells of part i of n, written ``i/n`` and counted from 1: consecutive cells, most of which share a base model.

    Raises:
        BadInput: `part` is not of this form, or there is no such part.
    """
    i, n = part_of(part)
    return list(cells[len(cells) * (i - 1) // n : len(cells) * i // n])


# ------------------------------------------------------------------------------------------------- settings and their kinds


_CHECK = tuple(f.name for f in fields(Job) if f.name != "depth")


def _kinds(steps: tuple[str, ...]) -> dict[str, tuple[type, bool]]:
    """Every setting of the steps -> the type of its value, and whether it may have several values."""
    hints: dict[str, Any] = {}
    if "tune" in steps:
        hints |= get_type_hints(TuneJob, localns={"Recipe": object}) | TRAINED
        hints = {k: v for k, v in hints.items() if k not in ("recipe", "training")}
    if steps[-1] != "tune":
        hints |= {k: v for k, v in get_type_hints(Job).items() if k != "depth"}
    if "tune" in steps:
        hints.pop("adapter", None)  # the first step makes it
    return {name: _kind(hint) for name, hint in hints.items()}


def _kind(hint: Any) -> tuple[type, bool]:
    if isinstance(hint, UnionType):
        hint = next(a for a in get_args(hint) if a is not NoneType)
    if get_origin(hint) is tuple:
        return get_args(hint)[0], True
    return (hint, False) if get_origin(hint) is None else (dict, False)


_RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1), "limit": (3, LARGEST), "max_length": (4, LARGEST), "shots": (0, LARGEST), "rank": (1, LARGEST),
    "tokens": (1, LARGEST), "epochs": (1, LARGEST), "batch": (1, LARGEST), "lr": (0, math.inf),
}  # fmt: skip
"""The smallest and largest value of each number, as on the command line. An integer is bounded by its type as well."""


def _settings(at: At, known: Mapping[str, tuple[type, bool]], steps: tuple[str, ...]) -> dict[str, At]:
    entries = _mapping(at, "The settings", tuple(known), _elsewhere(steps))
    if (
        (adapter := entries.get("adapter")) is not None
        and isinstance(adapter.value, str)
        and glob.has_magic(adapter.value)
    ):
        if not os.path.isdir(os.path.expanduser(adapter.value)):
            raise BadInput(
                f"{adapter.where}: the pattern {adapter.value!r} stands for several adapters. Patterns go under `matrix`."
            )
    return {k: _proven(k, _value(k, v, known[k])) for k, v in entries.items()}


def _axes(given: Mapping[str, At], known: Mapping[str, tuple[type, bool]]) -> dict[str, list[At]]:
    """The values of each axis. A pattern of adapters is replaced by the folders that match it."""
    axes = {}
    for key, values in given.items():
        checked = [_proven(key, _value(key, v, known[key])) for v in _listed(values)]
        if key == "adapter":
            checked = [folder for v in checked for folder in _folders(v)]
        values_seen: dict[str, At] = {}
        for v in checked:
            spelt = json.dumps(v.plain(), sort_keys=True)
            if spelt in values_seen:
                raise BadInput(f"{v.where}: {word(v.plain())!r} stands twice under {key}. Keep one.")
            values_seen[spelt] = v
        if not checked:
            raise BadInput(
                f"{values.where}: the matrix has no value for '{key}', so it comes to nothing. Give it one or more."
            )
        axes[key] = checked
    return axes


def _listed(at: At) -> list[At]:
    return at.value if isinstance(at.value, list) else [at]


def _folders(at: At) -> list[At]:
    pattern = at.value
    if not isinstance(pattern, str) or not glob.has_magic(pattern):
        return [at]
    folders = sorted(p for p in glob.glob(os.path.expanduser(pattern), recursive=True) if os.path.isdir(p))
    adapters = [p for p in folders if (Path(p) / "adapter_config.json").is_file()]
    if not adapters:
        sentence = (
            f"matches {len(folders)} folders, none of which holds an adapter_config.json, such as {folders[0]!r}"
            if folders
            else f"matches no folder (seen from '{os.getcwd()}')"
        )
        raise BadInput(
            f"{at.where}: the pattern {pattern!r} {sentence}. Give one that matches folders of PEFT adapters."
        )
    return [replace(at, value=p, text=p) for p in adapters]


def _pattern(at: At, known: Mapping[str, tuple[type, bool]], steps: tuple[str, ...]) -> dict[str, Any]:
    entries = _mapping(at, "An entry of `exclude`", tuple(known), _elsewhere(steps))
    if not entries:
        raise BadInput(f"{at.where}: an entry of `exclude` says nothing, so it would exclude every cell. Take it away.")
    return {k: "*" if v.value == "*" else _value(k, v, known[k]).plain() for k, v in entries.items()}


def _matches(settings: Mapping[str, Any], pattern: Mapping[str, Any]) -> bool:
    def fits(own: Any, wanted: Any) -> bool:
        if wanted == "*":
            return True
        if isinstance(own, list) and isinstance(wanted, list):
            return len(own) == len(wanted) and all(map(fits, own, wanted))
        return fnmatch.fnmatchcase(own, wanted) if isinstance(own, str) and isinstance(wanted, str) else own == wanted

    return all(k in settings and fits(settings[k], v) for k, v in pattern.items())


def _value(key: str, at: At, kind: tuple[type, bool]) -> At:
    """`at`, checked against the type of its setting. A number in place of a word becomes the word as it was written."""
    wanted_type, several = kind
    if at.value is None:
        raise BadInput(f"{at.where}: '{key}' has no value. Give it one, or take it away.")
    if several:
        return replace(at, value=[_value(key, v, (wanted_type, False)) for v in _listed(at)])
    if wanted_type is dict:
        if not isinstance(at.value, dict) or not all(isinstance(v.value, dict) for v in at.value.values()):
            raise BadInput(
                f"{at.where}: '{key}' maps names to values, such as `{key}: {{overconfidence: {{threshold: 0.25}}}}`."
            )
        return at
    value = at.value
    scalar = not isinstance(value, list | dict)
    if wanted_type is str and scalar:
        if key in ("model", "data", "adapter") and not at.text.strip():
            raise BadInput(f"{at.where}: '{key}' is empty. Name one, or take it away.")
        if "\0" in at.text:
            raise BadInput(f"{at.where}: '{key}' holds a NUL character, which no name has. Take it out.")
        return replace(at, value=at.text)
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if wanted_type is float and is_integer and abs(value) < 1e300:
        return _value(key, replace(at, value=float(value)), kind)
    if (is_integer if wanted_type is int else isinstance(value, wanted_type)) and not (
        wanted_type is float and not math.isfinite(value)
    ):
        least, most = _RANGES.get(key, (-math.inf, math.inf))
        if wanted_type in (int, float) and not least <= value <= most:
            upper = f" and at most {most:,}" if math.isfinite(most) else ""
            raise BadInput(
                f"{at.where}: '{key}' is at least {least:g}{upper}, and {at.text[:40]} was given. Correct it."
            )
        return at
    names = {str: "a word", int: "a whole number", float: "a number", bool: "true or false"}
    found = clean(at.text, 80) if scalar else "a list" if isinstance(value, list) else "a mapping"
    raise BadInput(f"{at.where}: '{key}' is {names[wanted_type]}, and {found!r} was given. Correct it.")


def _proven(key: str, at: At) -> At:
    """`at`, if the faults, their knobs and the kind of adapter in it exist. Otherwise raises BadInput with the line."""
    if key == "faults":
        for v in at.value:
            _tried(v.where, lambda name=v.value: faults_of([name]))
    elif key == "knobs":
        for fault, knobs in at.items():
            _tried(knobs.where, lambda name=fault: faults_of([name]))
            one_by_one = [(v.where, {knob: v.plain()}) for knob, v in knobs.items()]
            for where, knobs_to_try in [*one_by_one, (knobs.where, knobs.plain())]:
                _tried(where, lambda name=fault, knobs_to_try=knobs_to_try: faults_of([name], {name: knobs_to_try}))
    elif key == "kind":
        _tried(at.where, lambda: tune_job({"model": "", "data": ""}, kind=at.value))
    return at


def _tried(where: str, make: Callable[[], object]) -> None:
    try:
        make()
    except BadInput as e:
        raise BadInput(f"{where}: {e}") from e


def _mapping(at: At, what: str, known: Sequence[str], elsewhere: Mapping[str, str] | None = None) -> dict[str, At]:
    """The entries of a mapping whose keys are all in `known`. `elsewhere`: error sentences for other existing settings."""
    if at.value is None:
        return {}
    if not isinstance(at.value, dict):
        raise BadInput(
            f"{at.where}: {what[0].lower() + what[1:]} is a mapping of names to values, such as `model: org/name`."
        )
    for key, value in at.items():
        if key not in known:
            if elsewhere and key in elsewhere:
                raise BadInput(f"{value.where}: {elsewhere[key]}")
            raise BadInput(
                f"{value.where}: there is no '{clean(key, 80)}' here.{did_you_mean(key, known)} There are "
                f"{listing(sorted(known), 99)}."
            )
    return dict(at.items())


def _elsewhere(steps: tuple[str, ...]) -> dict[str, str]:
    """Settings that exist but do not belong to these steps -> the sentence that says why."""
    all_of = {**_kinds(("tune",)), **_kinds(("check",))}
    own_settings = _kinds(steps)
    cure = {
        k: f"'{k}' goes with the step {'tune' if k in TRAINED else 'check'}, and the steps are {listing(steps)}. Add the step, or "
        f"take '{k}' away."
        for k in all_of
        if k not in own_settings
    }
    if "tune" in steps and "adapter" in cure:
        cure["adapter"] = (
            "'adapter' is what the step tune makes, so it cannot be given beside it. Take it away, or leave tune out of `steps`."
        )
    return cure


def _list(at: At, what: str) -> list[At]:
    if not isinstance(at.value, list):
        raise BadInput(f"{at.where}: {what} is a list: each entry begins with '- '.")
    return at.value


def _steps(at: At | None) -> tuple[str, ...]:
    if at is None:
        return ("check",)
    listed = _listed(at)
    for step in listed:
        if step.value not in STEPS:
            raise BadInput(
                f"{step.where}: there is no step {step.text or step.plain()!r}.{did_you_mean(step.text, STEPS)} There are "
                f"{listing(STEPS)}."
            )
    steps = tuple(step.value for step in listed)
    if steps not in (("tune",), *((last,) for last in _LAST), *(("tune", last) for last in _LAST)):
        raise BadInput(
            f"{at.where}: the steps {listing(steps)} do not follow each other. Give [tune] or one of {listing(_LAST)}, or both."
        )
    return steps


def _possible(one: _Found, proven: set[str]) -> None:
    """Raises BadInput where the cell's jobs cannot be made: a setting is missing, or does not fit the kind of adapter.

    `proven`: training settings that were checked before, as JSON; those of this cell are added.
    """
    cell = one.cell
    for key in ("model", "data", *(["kind"] if cell.tuned else [])):
        if key not in cell.settings:
            raise BadInput(
                f"{one.where}: the cell '{cell.name}' does not say which {key}; add it under `defaults` or `matrix`."
            )
    training_settings = {k: cell.settings[k] for k in TRAINED if k in cell.settings}
    settings_json = json.dumps(training_settings)
    if settings_json in proven or not cell.tuned:
        return
    proven.add(settings_json)
    kind = training_settings.pop("kind")
    for key, value in training_settings.items():
        _tried(
            f"{one.places[key].where}, cell '{cell.name}'",
            lambda setting={key: value}: tune_job({"model": "", "data": ""}, kind=kind, **setting),
        )


def _plain(places: Mapping[str, At]) -> dict[str, Any]:
    """Settings in a fixed order, which does not depend on the part of the file that they come from."""
    order = ["model", "adapter", "data", *_CHECK, *TRAINED]
    return {k: places[k].plain() for k in dict.fromkeys(order) if k in places}


def _apart(found: Sequence[_Found], adapters: At | None, out: Path) -> None:
    """Raises BadInput where cells read files that the sweep writes: the cells would be others at each start."""
    roots = {os.path.abspath(out), os.path.realpath(out)}
    written_paths = [
        [*root.split(os.sep), kind_of_folder, "", *inner_path]
        for root in roots
        for kind_of_folder in ("cells", "previous")
        for inner_path in (["adapter"], ["report", ""])
    ]
    for at in [] if adapters is None else _listed(adapters):
        pattern = os.path.abspath(os.path.expanduser(at.text)).split(os.sep)
        if glob.has_magic(at.text) and any(_reaches(pattern, path) for path in written_paths):
            raise BadInput(
                f"{at.where}: the pattern {at.text!r} reaches into '{out}', where the sweep writes adapters of its own, and "
                "the next start would take them for cells. Give -o a folder that it does not reach."
            )
    for at, key in {
        found_cell.places[k].value: (found_cell.places[k], k)
        for found_cell in found
        for k in READ
        if k in found_cell.places
    }.values():
        read_path = os.path.realpath(os.path.expanduser(at.value))
        if not os.path.exists(read_path):
            continue
        for root in roots:
            if os.path.isdir(read_path) and Path(root).is_relative_to(read_path):
                raise BadInput(
                    f"{at.where}: the folder '{out}' that the sweep writes to lies in the {key} '{at.value}' that its cells "
                    "read, so each start would do them anew. Give -o a folder outside of it."
                )
            if Path(read_path).is_relative_to(root):
                raise BadInput(
                    f"{at.where}: the {key} '{at.value}' lies in '{out}', where the sweep itself writes. Give -o another folder."
                )


def _reaches(pattern: Sequence[str], path: Sequence[str]) -> bool:
    """Whether a pattern can match a path, part by part. A part '' of the path stands for any name."""
    if not path or not pattern:
        return not path and all(p == "**" for p in pattern)
    if pattern[0] == "**":
        return _reaches(pattern[1:], path) or _reaches(pattern, path[1:])
    return (not path[0] or fnmatch.fnmatchcase(path[0], pattern[0])) and _reaches(pattern[1:], path[1:])


# ------------------------------------------------------------------------------------------------------------------- names


def _called(key: str, values: Sequence[Any]) -> list[str]:
    """A short word for each value of an axis: for paths the parts in which they differ, for other values ``key=value``."""
    if not all(isinstance(v, str | list) for v in values):
        return [f"{key}={'-' * word(v).startswith('-')}{_slug(word(v))}" for v in values]
    words = [word(v) for v in values]
    parts = [w.split("/") for w in words]
    if len(words) > 1:
        common_start = _alike(parts)
        common_end = _alike([p[common_start:][::-1] for p in parts])
        parts = [p[common_start : len(p) - common_end] for p in parts]
    slugs = [_slug("/".join(p)) for p in parts]
    if len(set(map(str.lower, slugs))) == len(slugs) and all(slugs):
        return slugs
    # Words that are not distinct or empty as names of folders get a hash of the value.
    return [
        f"{s or key}-{hashlib.blake2b(w.encode(), digest_size=3).hexdigest()}"
        for s, w in zip(slugs, words, strict=True)
    ]


def _alike(lists: Sequence[Sequence[str]]) -> int:
    """The number of items with which all lists begin."""
    return next((i for i, items in enumerate(zip(*lists, strict=False)) if len(set(items)) > 1), min(map(len, lists)))


def word(value: Any) -> str:
    """A setting's value as a reader sees it."""
    if isinstance(value, list):
        return "+".join(map(word, value))
    if isinstance(value, dict):
        return "+".join(f"{k}={word(v)}" for k, v in value.items())
    return {True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.=+-]+", "-", text).strip("-.")


def _short(name: str) -> str:
    if len(name) <= LONGEST:
        return name
    return f"{name[: LONGEST - 9]}-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"


def _distinct(found: Sequence[_Found]) -> None:
    """Raises BadInput where two cells would write to one folder, or are one job.

    Names that differ only in case count as one folder, because some file systems ignore case.
    """
    cells_by_name: dict[str, _Found] = {}
    jobs: dict[str, _Found] = {}
    names = {item.places[k].value for item in found for k in READ if k in item.places}
    leads = {name: _leads(name) for name in names}
    for item in found:
        cell = item.cell
        if (twin := cells_by_name.setdefault(cell.name.lower(), item)) is not item:
            differences = _differ(item, twin)
            what = f"They differ in {listing(differences)}." if differences else "They ask the same."
            raise BadInput(
                f"{item.where}: two cells have the name '{cell.name}' (the other: {twin.where}). {what} Give one of them a name of "
                "its own under `include`, or take it away."
            )
        if (twin := jobs.setdefault(_work(cell, leads), item)) is not item:
            differences = _differ(item, twin)
            place, other_place = item.where, twin.where
            what = "They ask the same."
            if differences:
                key = differences[0]
                place, other_place = (o.places[key].where if key in o.places else o.where for o in (item, twin))
                values = [repr(word(o.cell.settings[key])) if key in o.places else "left out" for o in (item, twin)]
                what = f"Their {key} is {values[0]} and {values[1]}, which comes to the same."
            raise BadInput(
                f"{place}: the cells '{cell.name}' and '{twin.cell.name}' ({other_place}) are one job, which would be done "
                f"twice. {what} Take one of them away."
            )


def _differ(one: _Found, other: _Found) -> list[str]:
    a, b = one.cell.settings, other.cell.settings
    return sorted(k for k in {**a, **b} if a.get(k) != b.get(k))


def _work(cell: Cell, leads: Mapping[str, str]) -> str:
    """The cell's jobs as a word that is equal for equal work: with resolved paths, and with defaults written out."""
    resolved = replace(cell, settings={k: leads[v] if k in READ else v for k, v in cell.settings.items()})
    jobs = [resolved.job("ADAPTER"), resolved.tune_job() if cell.tuned else None]
    return json.dumps([None if job is None else vars(job) for job in jobs], sort_keys=True, default=repr)


def _leads(name: str) -> str:
    path = os.path.expanduser(name)
    return os.path.abspath(path) if os.path.exists(path) else os.path.normpath(path)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
