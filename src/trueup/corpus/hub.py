"""Reads a data set of the datasets library into a Table: from the hub, from a saved folder, or from objects in memory."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trueup.corpus.files import KINDS, kind_of
from trueup.corpus.split import SPLIT_NAMES
from trueup.corpus.table import Table
from trueup.errors import BadInput, Unavailable, did_you_mean, listing
from trueup.store.network import asking_hub

PART = "(split)"
"""The column with the part of the data set that a row is from. The name is such that no column of a user has it."""


def hub_table(name: str, wanted: Sequence[str], label: str, hub_split: str | None) -> tuple[Table, str | None]:
    """The wanted columns of a hub dataset, and the column of their splits where the dataset names usable ones."""
    found = _load_hub(name, hub_split)
    parts: dict[str, Any] = dict(found) if isinstance(found, dict) else {hub_split or "train": found}
    table, named = of_parts(parts, f"'{name}'", wanted, label, "choose one with hub_split")
    repo, _, config = name.partition(":")
    repository = {"id": repo} | ({"config": config} if config else {})
    return replace(table, origin={**repository, **table.origin}), named


_FETCHED = re.compile(r"hf://datasets/([^@]+)@([0-9a-f]{7,40})/")


def _origin(part: Any, chosen: Sequence[str]) -> dict[str, str]:
    """The hub repository from which a part of a data set was fetched; empty where the part does not record it."""
    info = getattr(part, "info", None)
    matches = [m for url in getattr(info, "download_checksums", None) or {} if (m := _FETCHED.match(str(url)))]
    if not matches:
        return {}
    config = getattr(info, "config_name", None)
    split = "+".join(filter(None, chosen)) or str(getattr(part, "split", None) or "")
    origin = {"id": matches[0][1], "revision": matches[0][2]} | ({"split": split} if split else {})
    return origin | ({"config": str(config)} if config else {})


def of_parts(
    parts: Mapping[str, Any], source: str, wanted: Sequence[str], label: str, otherwise: str
) -> tuple[Table, str | None]:
    """The wanted columns of the parts of a data set of the datasets library, and the column of their splits where the
    parts have usable names. `otherwise` is what to do about a part that cannot be used, as the end of a sentence.
    """
    usable = {k: v for k, v in parts.items() if _hub_labelled(v, label)} or parts
    named = {k: v for k, v in usable.items() if k.lower() in SPLIT_NAMES}
    if len({SPLIT_NAMES[k.lower()] for k in named}) >= 2:
        chosen, column = named, PART
    elif len(usable) == 1:
        chosen, column = usable, None
    elif named:
        chosen, column = named, None
    else:
        raise BadInput(f"{source} has the splits {listing(parts)}, none of a known name; {otherwise}.")
    first = next(iter(chosen.values()))
    columns_to_read = [c for c in dict.fromkeys(wanted) if c in first.column_names]
    for k, v in chosen.items():
        if lacking := [c for c in columns_to_read if c not in v.column_names]:
            within = source[0].lower() + source[1:]
            raise BadInput(f"Part '{k}' of {within} has no column {listing(lacking)}; {otherwise}.")
    if not any(len(v) for v in chosen.values()):
        raise BadInput(f"{source} has no rows; {otherwise}.")
    columns: dict[str, list[Any]] = {c: [value for v in chosen.values() for value in v[c][:]] for c in columns_to_read}
    columns[PART] = [k for k, v in chosen.items() for _ in range(len(v))]
    # For a column of lists of labels, the names are those of its items.
    kinds = {c: getattr(f, "feature", f) for c, f in first.features.items()}
    names = {c: list(f.names) for c, f in kinds.items() if type(f).__name__ == "ClassLabel" and f.names}
    at = [f"{k}[{i}]" for k, v in chosen.items() for i in range(len(v))]
    return Table(columns, at, "row", source, names, first.column_names, origin=_origin(first, list(chosen))), column


def saved_to_disk(folder: Path) -> Any:
    """The data set that ``datasets``' save_to_disk wrote to `folder`; None where it wrote none."""
    if not (folder / "dataset_dict.json").is_file() and not (folder / "state.json").is_file():
        return None
    import datasets

    try:
        return datasets.load_from_disk(str(folder))
    except Exception as e:  # arrow and json raise their own kinds of errors
        raise BadInput(
            f"'{folder}' looks like a data set that was saved to disk, but cannot be read ({e}). Save it again."
        ) from e


def _hub_labelled(part: Any, label: str) -> bool:
    """Whether a part has labels. False where all are -1: benchmarks hide the labels of their test split so."""
    if label not in part.column_names or not len(part):
        return True
    values = part[label][:]
    return not all(v == -1 or v is None for v in values)


def _load_hub(name: str, hub_split: str | None) -> Any:
    """``datasets.load_dataset`` without its output, and with its errors as sentences."""
    import datasets
    from datasets.exceptions import DatasetNotFoundError
    from datasets.utils import logging as datasets_logging

    repo, _, config = name.partition(":")
    near = _near(name)
    verbosity, bars = datasets_logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets_logging.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        with asking_hub(repo):
            return datasets.load_dataset(repo, config or None, split=hub_split)
    except DatasetNotFoundError as e:
        raise BadInput(
            f"There is no dataset '{repo}' on the hub that you may read, and no such file.{near} Check the id, log in "
            "with `hf auth login` if it is private, or give a file."
        ) from e
    except (ConnectionError, TimeoutError) as e:
        raise Unavailable(
            f"The dataset '{repo}' is not on this machine and the hub cannot be reached.{near} Check the network, or "
            "give a file or an embedded data set (`embedded:movie-reviews`)."
        ) from e
    except Exception as e:
        message = " ".join(str(e).split())[:400]
        if _offline(e):
            raise Unavailable(
                f"The dataset '{repo}' cannot be fetched ({message}).{near} Check the network, or give a file or an "
                "embedded data set (`embedded:movie-reviews`)."
            ) from e
        raise BadInput(
            f"The dataset '{name}' cannot be loaded: {message}. Name a configuration as '{repo}:CONFIG' and a part with "
            "hub_split where it has several, or download it and give a file."
        ) from e
    finally:
        datasets_logging.set_verbosity(verbosity)
        if not bars:
            datasets.enable_progress_bars()


def _near(name: str) -> str:
    """`did_you_mean` for a data set that was not found: a file in the current folder, or data that come with trueup."""
    from trueup.corpus import confounded, embedded, tasks

    shipped_names = [f"embedded:{n}" for n in embedded.DATASETS] + [f"task:{n}" for n in tasks.TASKS]
    shipped_names += [f"{confounded.PREFIX}{n}" for n in confounded.SETS]
    if same_names := [n for n in shipped_names if n.partition(":")[2] == name]:
        return f" Did you mean {listing(same_names)}?"
    data_files = sorted(p.name for p in Path().iterdir() if kind_of(p) in KINDS)
    return did_you_mean(name.partition(":")[0], data_files) or did_you_mean(name, shipped_names)


def _offline(e: BaseException | None) -> bool:
    """Whether an error, or one of its causes, is an error of the network."""
    while e is not None:
        if isinstance(e, (ConnectionError, TimeoutError)) or re.search(
            r"Connect|Timeout|Offline|Proxy|ReadError", type(e).__name__
        ):
            return True
        e = e.__cause__ or e.__context__
    return False
