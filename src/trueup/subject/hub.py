"""Saved adapters on the Hugging Face hub."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

from trueup.errors import BadInput, Unavailable, listing
from trueup.store import atomic


def allowed(repo: str) -> None:
    """Raises BadInput or Unavailable where pushing to `repo` cannot work, before anything has been computed for it.

    Raises:
        BadInput: the name is no ``owner/name``, or nobody is logged in. Unavailable: the hub is out of reach.
    """
    if "/" not in repo:
        raise BadInput(f"--push-to-hub '{repo}' does not say whose repository it is; give owner/name.")
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except ValueError as e:
        raise BadInput(f"--push-to-hub '{repo}' cannot be a repository's name ({e}). Give owner/name.") from e
    try:
        HfApi().whoami()
    except Exception as e:
        raise _explained(e, repo) from e


def licence_of(base: str) -> str:
    """The licence that a base model's own card names, from its folder or the hub's cache; empty where none is at hand."""
    from huggingface_hub import ModelCard, try_to_load_from_cache

    with suppress(Exception):  # a card of strangers may hold anything, and a licence is no reason to fail
        card = Path(base) / "README.md" if Path(base).is_dir() else try_to_load_from_cache(base, "README.md")
        if isinstance(card, str | Path) and Path(card).is_file():
            found = ModelCard.load(card).data.get("license")
            return found if isinstance(found, str) and re.fullmatch(r"[a-z0-9.+-]{2,40}", found) else ""
    return ""


@contextmanager
def publishable(adapter: Path) -> Iterator[Path]:
    """A copy of a saved adapter in which folders and files of this machine go by their names alone, to be uploaded.

    Raises:
        BadInput: it holds what looks like a token or a key, or still holds a path of this machine.
    """
    with tempfile.TemporaryDirectory(prefix="trueup-") as temporary:
        folder = Path(temporary) / adapter.name
        known: dict[str, str] = {}
        with atomic.new_folder(folder) as new:
            for file in sorted(p for p in adapter.rglob("*") if p.is_file()):
                to = new / file.relative_to(adapter)
                if file.name == atomic.MANIFEST:
                    continue
                to.parent.mkdir(parents=True, exist_ok=True)
                if file.name in _SETTINGS:
                    atomic.write_json(to, _named(json.loads(file.read_text(encoding="utf-8")), known))
                else:
                    shutil.copyfile(file, to)
            for file in (p for p in new.rglob("*") if p.suffix in (".md", ".py")):
                text = file.read_text(encoding="utf-8")
                for path in sorted(known, key=len, reverse=True):
                    text = text.replace(path, known[path])
                atomic.write_text(file, text)
            for file in (p for p in new.rglob("*") if p.name in _SETTINGS or p.suffix in (".md", ".jinja", ".py")):
                _refuse(adapter / file.relative_to(new), file.read_text(encoding="utf-8", errors="replace"), known)
        yield folder


_SETTINGS = ("adapter_config.json", "trueup.json", "tokenizer_config.json")
"""Files whose values may be paths. The words of a vocabulary may look like some, and are none."""
_SECRET = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{30,})|-----BEGIN [A-Z ]*PRIVATE KEY"
)


def _named(value: Any, known: dict[str, str]) -> Any:
    """`value` with the last part of each path in place of the path; `known` collects them."""
    if isinstance(value, dict):
        return {k: _named(v, known) for k, v in value.items()}
    if isinstance(value, list):
        return [_named(v, known) for v in value]
    if not isinstance(value, str) or not _path(value):
        return value
    return known.setdefault(value, PurePath(value).name or "data")


def _path(text: str) -> bool:
    """Whether a setting is a path of this machine: it begins as one, or there is such a file."""
    if text.startswith(("/", "~", "./", "../", "\\\\")) or PureWindowsPath(text).drive:
        return "\n" not in text
    with suppress(OSError, ValueError):
        return ("/" in text or os.sep in text) and Path(text).exists()
    return False


def _refuse(file: Path, text: str, known: Mapping[str, str]) -> None:
    own_folders = {str(Path.home()), str(Path.cwd()), *known} - {"/"}
    found = [p for p in own_folders if p in text and len(p) > 3]
    if (secret := _SECRET.search(text)) is not None:
        found.append(f"{secret[0][:6]}…")
    if found:
        raise BadInput(
            f"'{file}' holds {listing(found, 3)}, a path of this machine or a key, which would be published. Nothing was pushed; "
            "take it out, and upload the folder with `hf upload`."
        )


def contents(folder: Path) -> list[tuple[str, int]]:
    """Each file of a folder and its size."""
    return [(p.relative_to(folder).as_posix(), p.stat().st_size) for p in sorted(folder.rglob("*")) if p.is_file()]


def push(folder: Path, repo: str, *, at: Path, within: str | None = None) -> str:
    """Upload a `publishable` adapter, made if it is not there yet, to the top of `repo` or to its folder `within`.

    Args:
        at: where the adapter itself lies, for a message.

    Returns:
        the repo's address.

    Raises:
        Unavailable: the hub refused or could not be reached. The folder is left as it is.
    """
    from huggingface_hub import HfApi

    try:
        address = str(HfApi().create_repo(repo, exist_ok=True))
        HfApi().upload_folder(
            repo_id=repo, folder_path=folder, path_in_repo=within, commit_message="A repaired adapter, made by trueup"
        )
    except Exception as e:
        raise _explained(e, repo, at) from e
    return address


def _explained(e: Exception, repo: str, folder: Path | None = None) -> BadInput | Unavailable:
    text = " ".join(str(e).split())[:200].rstrip(".")
    if type(e).__name__ == "LocalTokenNotFoundError":
        return BadInput(
            f"Nobody is logged in to the hub, so nothing can be pushed to '{repo}'. Run `hf auth login` first."
        )
    again = (
        f" The adapter is in '{folder}'; upload it with `hf upload {repo} {folder}`."
        if folder
        else " Check name and network."
    )
    return Unavailable(f"'{repo}' could not be pushed to: {text}.{again}")
