"""Saved adapters on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from trueup.errors import BadInput, Unavailable


def allowed(repo: str) -> None:
    """Raises BadInput or Unavailable where pushing to `repo` cannot work, before anything has been computed for it.

    Raises:
        BadInput: the name is no ``owner/name``, or nobody is logged in. Unavailable: the hub is out of reach.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except ValueError as e:
        raise BadInput(f"--push-to-hub '{repo}' cannot be a repository's name ({e}). Give owner/name.") from e
    if "/" not in repo:
        raise BadInput(f"--push-to-hub '{repo}' does not say whose repository it is; give owner/name.")
    try:
        HfApi().whoami()
    except Exception as e:
        raise _explained(e, repo) from e


def push(folder: Path, repo: str, *, within: str | None = None) -> str:
    """Upload a saved adapter, made if it is not there yet, to the top of `repo` or to its folder `within`; the repo's address.

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
        raise _explained(e, repo, folder) from e
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
