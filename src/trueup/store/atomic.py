"""Files and folders that appear completely or not at all.

Everything is written next to its target under a hidden temporary name, flushed to disk, and renamed to the target. A process
that dies halfway leaves the old state, and at most a hidden ``.NAME.*.partial``, which a later write removes. A folder that
is replaced has the name ``.NAME.*.replaced`` between two renames. After a kill in between, `there` puts it back.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import os
import platform
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from trueup.errors import BadInput, TrueupError, Unavailable, listing, visible
from trueup.store import schema

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

MANIFEST = "manifest.json"
STALE_SECONDS = 24 * 3600
"""Age at which leftovers of a writer on another machine are removed: it is not possible to ask whether that writer runs."""


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace the file at `path` by `data`, completely or not at all. The parent folder must exist.

    Raises:
        BadInput: the folder is missing, or the file cannot be written there. Unavailable: the disk is full.
    """
    with new_file(path) as f:
        f.write(data)


@contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yield a file to write to; at a clean exit it replaces the one at `path`. The parent folder must exist.

    Raises:
        BadInput: the folder is missing, or the file cannot be written there. Unavailable: the disk is full.
    """
    path = Path(path)
    with suppress(OSError):  # the write below reports the error
        _sweep(path)
    temporary = _beside(path)
    try:
        with open(temporary, "wb") as f:
            free(f.fileno(), alone=True)
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
        _fsync_folder(path.parent)
    except OSError as e:
        raise cannot_write(path, e) from e
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replace the file at `path` by `text` in UTF-8, with its line ends, completely or not at all."""
    write_bytes(path, text.encode("utf-8"))


def refuse_file(path: str | os.PathLike[str]) -> None:
    """Raises BadInput where no file can be written at `path`: a folder is there, or a file where one of its folders should be."""
    path = Path(path)
    if path.is_dir():
        raise BadInput(f"'{path}' is a folder, and a file is to be written. Give the name of a file.")
    nearest_folder = next(p for p in path.absolute().parents if p.exists())
    if not nearest_folder.is_dir() or not os.access(nearest_folder, os.W_OK):
        raise BadInput(
            f"'{path}' cannot be written: '{nearest_folder}' is no folder that may be written to. Give another place."
        )


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write `obj` as strict JSON: keys sorted, numpy and dataclasses as plain values, NaN and infinities as null.

    Raises:
        TypeError: `obj` holds something that has no plain form (nothing is written).
    """
    write_bytes(path, json_bytes(obj))


def json_bytes(obj: Any) -> bytes:
    """The bytes that `write_json` writes: equal for equal objects."""
    plain = _plain(obj)
    try:
        return (json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except UnicodeEncodeError:  # a lone surrogate in some text: escape instead
        return (json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n").encode()


def _plain(obj: Any) -> Any:
    if obj is None or isinstance(obj, (bool, str)):
        return obj
    if isinstance(obj, int):
        return int(obj)
    if isinstance(obj, float):
        return float(obj) if math.isfinite(obj) else None
    if isinstance(obj, np.generic):
        return _plain(obj.item())
    if isinstance(obj, np.ndarray):
        return _plain(obj.tolist())
    if isinstance(obj, Mapping):
        plain = {str(k.item() if isinstance(k, np.generic) else k): _plain(v) for k, v in obj.items()}
        if len(plain) != len(obj):
            raise TypeError("Two keys of one mapping are the same as text, so JSON cannot hold both.")
        return plain
    if isinstance(obj, (list, tuple)):
        return [_plain(v) for v in obj]
    if isinstance(obj, (set, frozenset)):
        return sorted((_plain(v) for v in obj), key=lambda v: (str(type(v)), v))
    if isinstance(obj, PurePath):
        return str(obj)
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {f.name: _plain(getattr(obj, f.name)) for f in dataclasses.fields(obj)}
    raise TypeError(f"A {type(obj).__name__} has no plain form that JSON can hold; convert it before writing.")


@contextmanager
def new_folder(target: str | os.PathLike[str], *, force: bool = False, own: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `target`; at a clean exit it becomes `target`, with a manifest of its files.

    After an exception (also KeyboardInterrupt) the temporary folder is removed and `target` is as before. With `force`
    an old folder is replaced only when the new one is complete, and put back if the replacement fails. Files that its manifest
    does not name were written by others: they are kept, unless the new folder has a file with the same name. A link is followed:
    the folder that it leads to is written.

    Args:
        own: `target` is in a place where only trueup writes, so `force` may replace any folder there.

    Raises:
        BadInput: `target` is a file, or a folder that is not empty and `force` is not given, or that trueup did not write, or
            that cannot be written. Unavailable: the disk is full.
    """
    refuse_other(Path(target))
    target = placed(target)
    refuse_taken(target, force, own=own)
    temporary = _beside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        temporary.mkdir()
    except OSError as e:
        raise cannot_write(target, e) from e
    try:
        with _held(temporary):
            yield temporary
            refuse_taken(target, force, own=own)
            try:
                _seal(temporary)
                if force and not own and target.is_dir():
                    _keep_others(target, temporary)
                _move_onto(temporary, target, force)
            except OSError as e:
                raise cannot_write(target, e) from e
    except BaseException as e:
        shutil.rmtree(temporary, ignore_errors=True)
        if not isinstance(e, TrueupError) and (why := no_room(e)):  # in any library that wrote into the folder
            raise _full(target, why) from e
        if isinstance(e, OSError) and str(e.filename).startswith(str(temporary)):
            raise cannot_write(target, e) from e
        raise


def verify(folder: str | os.PathLike[str], *, contents: bool = True) -> None:
    """Check that every file of the manifest is there and unchanged. Files beyond the manifest do not matter.

    Args:
        contents: also compare sha256; False compares only sizes, which is quick.

    Raises:
        BadInput: no manifest, or a file is missing or changed.
    """
    folder = Path(folder)
    advice = "Make the folder again, or copy it again from where it is whole."
    try:
        manifest_files = _listed(folder)
    except FileNotFoundError as e:
        raise BadInput(f"'{folder}' has no {MANIFEST}, so it was never finished. {advice}") from e
    except (OSError, *_UNREADABLE) as e:
        raise BadInput(f"The {MANIFEST} of '{folder}' cannot be read. {advice}") from e
    missing, changed = [], []
    for name, (size, sha256) in sorted(manifest_files.items()):
        relative_path = PurePosixPath(name)
        if relative_path.is_absolute() or ".." in relative_path.parts:
            raise BadInput(f"The {MANIFEST} of '{folder}' names '{name}', which lies outside the folder. {advice}")
        file = folder / relative_path
        if not file.is_file():
            missing.append(name)
        elif file.stat().st_size != size or (contents and sha256_of(file) != sha256):
            changed.append(name)
    if missing or changed:
        problems = [f"missing {listing(missing, 4)}"] * bool(missing) + [f"changed {listing(changed, 4)}"] * bool(
            changed
        )
        raise BadInput(f"'{folder}' is not as it was written: {'; '.join(problems)}. {advice}")


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Hexadecimal sha256 of a file."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _seal(folder: Path) -> None:
    """Flush every file, give all files the mode of the folder (from the user's umask), and write the manifest last."""
    if (folder / MANIFEST).exists():
        raise ValueError(f"{MANIFEST} is written by new_folder; give your own file another name.")
    files = {}
    folders, mode = [folder], folder.stat().st_mode & 0o666
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            folders.append(path)
        else:
            path.chmod(mode)  # safetensors writes files that nobody else may read
            _fsync_file(path)
            files[path.relative_to(folder).as_posix()] = {"sha256": sha256_of(path), "size": path.stat().st_size}
    for path in reversed(folders):
        _fsync_folder(path)
    write_json(folder / MANIFEST, {"files": files})


def _keep_others(old: Path, new: Path) -> None:
    """Put files of `old` that its manifest does not name into `new` as well, outside of its manifest.

    They are hard links where the disk has them, so that a kill at any time loses nothing.
    """
    manifest_files = _listed(old) if (old / MANIFEST).exists() else {}
    for path in sorted(old.rglob("*")):
        name = path.relative_to(old)
        if (
            name.as_posix() in (*manifest_files, MANIFEST)
            or (path.is_dir() and not path.is_symlink())
            or os.path.lexists(new / name)
        ):
            continue
        if any(
            (new / parent).is_file() for parent in name.parents
        ):  # the new folder has a file with the name of its folder
            continue
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, new / name, follow_symlinks=False)
        except OSError:
            shutil.copy2(path, new / name, follow_symlinks=False)


def _move_onto(temporary: Path, target: Path, force: bool) -> None:
    """Rename `temporary` to `target`. An old folder is renamed first, and renamed back if this fails."""
    old_folder = None
    if target.is_dir() and not force:
        target.rmdir()  # it was empty a moment ago; if another process has filled it, this fails and keeps it
    elif target.is_dir():
        old_folder = _beside(target, "replaced")
    with _held(target) if old_folder is not None else nullcontext():
        if old_folder is not None:
            os.rename(target, old_folder)
        try:
            os.rename(temporary, target)
        except BaseException:
            if old_folder is not None:
                os.rename(old_folder, target)
            raise
        _fsync_folder(target.parent)
        if old_folder is not None:
            to_remove = _beside(target)
            os.rename(
                old_folder, to_remove
            )  # renamed first, so that `there` cannot put back a folder that is partly removed
            shutil.rmtree(to_remove, ignore_errors=True)


def there(folder: str | os.PathLike[str]) -> bool:
    """Whether `folder` is a folder.

    If a run was killed while it replaced the folder, or its parent, between two renames, the old contents are put back first.
    This is reported on standard error.
    """
    folder = Path(os.path.abspath(folder))
    for place in (folder.parent, folder):
        if not os.path.lexists(place):
            _put_back(place)
    return folder.is_dir()


def _put_back(target: Path) -> None:
    for old_folder in sorted(target.parent.glob(f".{_escape(target.name)}.*.replaced")):
        with suppress(OSError, TrueupError), _held(old_folder) as alone:
            if _in_use(old_folder, target, alone):
                continue
            os.rename(old_folder, target)
            _fsync_folder(target.parent)
            sentence = f"'{target}' was being replaced when a run was killed. Its old contents are put back."
            print(f"trueup: {visible(sentence)}", file=sys.stderr)
            return


def placed(target: str | os.PathLike[str]) -> Path:
    """The real path of `target`, so that two names of one folder share one lock, and no link is replaced."""
    return Path(os.path.realpath(target))


def refuse_taken(target: Path, force: bool, *, own: bool = False) -> None:
    """Raises BadInput where `target` is not a folder, or is not empty and `force` is False or trueup did not write it.

    `own`: as in `new_folder`.
    """
    try:
        if not refuse_other(target) or not any(target.iterdir()):
            return
        if not force:
            raise BadInput(
                f"The folder '{target}' exists and is not empty. Give another folder, or --force to replace it."
            )
        if not own and not _written(target):
            names = sorted(p.name for p in target.iterdir())
            raise BadInput(
                f"The folder '{target}' was not written by trueup: it holds {listing(names, 3)}, and no {MANIFEST} that trueup "
                "wrote. --force replaces only folders that trueup wrote. Give another folder, or delete this one yourself."
            )
    except OSError as e:
        raise cannot_write(target, e) from e


def refuse_other(target: Path) -> bool:
    """Whether `target` is a folder. Raises BadInput where it is something else."""
    try:
        if there(target):
            return True
        real_path = placed(target)
        if os.path.islink(target) and not real_path.exists():  # the link may lead to a disk that is not mounted
            raise BadInput(
                f"'{target}' is a link to '{real_path}', and there is no such folder. Make that folder, or give another name."
            )
        if os.path.lexists(real_path):
            raise BadInput(f"'{target}' is a file, but a folder is to be written there. Give another name.")
    except OSError as e:
        raise cannot_write(target, e) from e
    return False


def refuse_read(target: Path, read: Mapping[str, str | Path | None]) -> None:
    """Raises BadInput where the folder `target`, which is to be written, is or holds a file or folder that is read.

    Args:
        read: word for the input -> its name. A name that is not a file or folder on this machine is not checked.
    """
    if not (target_path := placed(target)).is_dir():
        return
    for what, name in read.items():
        with suppress(OSError, ValueError, RuntimeError):  # a name that no file can have is not checked
            if name is None or not (file := Path(name).expanduser()).exists():
                continue
            if target_path in (read_path := placed(file), *read_path.parents):
                raise BadInput(
                    f"'{target}' holds the {what} itself ('{name}'), which writing there would delete. Give another folder."
                )


def _written(folder: Path) -> bool:
    """Whether `folder` has a manifest as `new_folder` writes it."""
    try:
        _listed(folder)
    except (OSError, *_UNREADABLE):
        return False
    return True


_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


def _listed(folder: Path) -> dict[str, tuple[int, str]]:
    """The files of a folder's manifest: size and sha256. Raises OSError, or one of `_UNREADABLE`."""
    files = json.loads(schema.plain_bytes(folder / MANIFEST))["files"]
    return {str(k): (int(v["size"]), str(v["sha256"])) for k, v in files.items()}


def cannot_write(target: Path, e: OSError) -> TrueupError:
    """The error to raise where `e` prevented the writing of `target`: BadInput, or Unavailable where the disk is full."""
    if why := no_room(e):
        return _full(target, why)
    nearest_parent = next((p for p in target.parents if os.path.lexists(p)), None)
    if nearest_parent is not None and not nearest_parent.is_dir():
        return BadInput(f"'{target}' cannot be written, because '{nearest_parent}' is a file. Give another folder.")
    return BadInput(f"'{target}' cannot be written ({e.strerror or e}). Give a folder that you may write to.")


def no_room(e: BaseException | None) -> str:
    """The system's message where an error, or one of its causes, is that a disk is full; else empty.

    Libraries that are not written in Python report this only in the text of their own errors.
    """
    while e is not None:
        for number in (errno.ENOSPC, errno.EDQUOT):
            if getattr(e, "errno", None) == number or os.strerror(number) in str(e) or f"(os error {number})" in str(e):
                return os.strerror(number)
        e = e.__cause__ or e.__context__
    return ""


def _full(target: Path, why: str) -> Unavailable:
    return Unavailable(
        f"There is no room to write '{target}' ({why}). Make room on that disk, then run the same command again: it goes on where "
        "it stopped."
    )


_HERE = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
"""A name for this machine."""


def _beside(target: Path, kind: str = "partial") -> Path:
    return target.parent / f".{target.name}.{_HERE}-{os.getpid()}-{secrets.token_hex(4)}.{kind}"


def _sweep(target: Path) -> None:
    """Remove the leftovers of ended writers next to `target`. A replaced folder is removed only if there is a new `target`."""
    name = f".{_escape(target.name)}.*"
    for leftover in [*target.parent.glob(f"{name}.partial"), *target.parent.glob(f"{name}.replaced")]:
        with suppress(OSError, TrueupError), _held(leftover) as alone:
            if _in_use(leftover, target, alone) or (leftover.suffix == ".replaced" and not os.path.lexists(target)):
                continue
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()


def _in_use(left: Path, target: Path, alone: bool | None) -> bool:
    """Whether a writer may still use the temporary file or folder `left` of `target`; `alone` is the result of `_held`."""
    on_this_machine = left.name.removeprefix(f".{target.name}.").startswith(_HERE)
    return alone is False or (not (alone and on_this_machine) and time.time() - left.stat().st_mtime < STALE_SECONDS)


@contextmanager
def _held(path: Path) -> Iterator[bool | None]:
    """Lock a file or folder inside the block. Yields True; False where another process has the lock; None without locks."""
    if fcntl is None:
        yield None
        return
    try:
        f = os.open(path, os.O_RDONLY)
    except OSError as e:
        raise cannot_write(path, e) from e
    try:
        yield free(f, alone=True)
    finally:
        os.close(f)


def free(f: int, *, alone: bool = False) -> bool | None:
    """Whether no other process has the lock of an open file; if so, this one takes it. None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(f, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


def _escape(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _fsync_file(path: Path) -> None:
    with open(path, "rb+") as f:
        os.fsync(f.fileno())


def _fsync_folder(path: Path) -> None:
    if os.name != "posix":
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError:
        pass  # some file systems refuse to sync a folder; the rename is then as safe as they make it
    finally:
        os.close(fd)
