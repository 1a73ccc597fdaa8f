"""Files and folders that appear whole or not at all.

Everything is written beside its target under a hidden temporary name, flushed to disk, and renamed onto the target. A
process that dies halfway leaves the old state, and at most a hidden ``.NAME.*.partial`` which a later write removes. A folder that
is replaced stands aside as ``.NAME.*.replaced`` for as long as two renames take; whoever looks for it later puts it back (`there`).
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
"""How long what a writer on another machine has left is let lie: whether that one still runs cannot be asked."""


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace the file at `path` by `data`, whole or not at all. The parent folder must exist.

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
    with suppress(OSError):  # said where it is written
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
    """Replace the file at `path` by `text` in UTF-8, line ends as given, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def refuse_file(path: str | os.PathLike[str]) -> None:
    """Raises BadInput where no file can be written at `path`: a folder is there, or a file where one of its folders should be."""
    path = Path(path)
    if path.is_dir():
        raise BadInput(f"'{path}' is a folder, and a file is to be written. Give the name of a file.")
    first = next(p for p in path.absolute().parents if p.exists())
    if not first.is_dir() or not os.access(first, os.W_OK):
        raise BadInput(
            f"'{path}' cannot be written: '{first}' is no folder that may be written to. Give another place."
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

    After an exception (also KeyboardInterrupt) the temporary folder is removed and `target` is as it was. With `force`
    an old folder is replaced only once the new one is complete, and put back if the replacement fails. Files that its manifest does
    not name are somebody else's: they stay, but for those whose name the new folder has. A link is followed: the folder that it
    leads to is written.

    Args:
        own: nobody but trueup writes where `target` is, so that `force` may replace whatever is there.

    Raises:
        BadInput: `target` is a file, or a folder that is not empty and `force` is not given, or that no trueup has written, or
            cannot be written. Unavailable: the disk is full.
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
        if not isinstance(e, TrueupError) and (why := no_room(e)):  # whatever library wrote into the folder
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
        listed = _listed(folder)
    except FileNotFoundError as e:
        raise BadInput(f"'{folder}' has no {MANIFEST}, so it was never finished. {advice}") from e
    except (OSError, *_UNREADABLE) as e:
        raise BadInput(f"The {MANIFEST} of '{folder}' cannot be read. {advice}") from e
    missing, changed = [], []
    for name, (size, sha256) in sorted(listed.items()):
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts:
            raise BadInput(f"The {MANIFEST} of '{folder}' names '{name}', which lies outside the folder. {advice}")
        file = folder / inside
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
    """Flush every file, give all one mode (the folder's, which is the user's umask), then write the manifest last."""
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
    """Put what somebody else laid into `old` into `new` as well, outside of its manifest.

    It is a second name of the same file, where the disk has such, so that a kill at any time loses nothing."""
    own = _listed(old) if (old / MANIFEST).exists() else {}
    for path in sorted(old.rglob("*")):
        name = path.relative_to(old)
        if (
            name.as_posix() in (*own, MANIFEST)
            or (path.is_dir() and not path.is_symlink())
            or os.path.lexists(new / name)
        ):
            continue
        if any((new / above).is_file() for above in name.parents):  # a file now stands where its folder was
            continue
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, new / name, follow_symlinks=False)
        except OSError:
            shutil.copy2(path, new / name, follow_symlinks=False)


def _move_onto(temporary: Path, target: Path, force: bool) -> None:
    """Rename `temporary` to `target`; an old folder goes aside first, and comes back if the rename fails."""
    aside = None
    if target.is_dir() and not force:
        target.rmdir()  # it was empty a moment ago; if another process has filled it, this fails and keeps it
    elif target.is_dir():
        aside = _beside(target, "replaced")
    with _held(target) if aside is not None else nullcontext():
        if aside is not None:
            os.rename(target, aside)
        try:
            os.rename(temporary, target)
        except BaseException:
            if aside is not None:
                os.rename(aside, target)
            raise
        _fsync_folder(target.parent)
        if aside is not None:
            going = _beside(target)
            os.rename(aside, going)  # what is half removed must not be put back
            shutil.rmtree(going, ignore_errors=True)


def there(folder: str | os.PathLike[str]) -> bool:
    """Whether `folder` is a folder. Where it is not, because a run that was to replace it, or the folder that it is in, was killed
    between two renames, its old contents are put back first, and that is said on standard error."""
    folder = Path(os.path.abspath(folder))
    for place in (folder.parent, folder):
        if not os.path.lexists(place):
            _put_back(place)
    return folder.is_dir()


def _put_back(target: Path) -> None:
    for aside in sorted(target.parent.glob(f".{_escape(target.name)}.*.replaced")):
        with suppress(OSError, TrueupError), _held(aside) as alone:
            if _in_use(aside, target, alone):
                continue
            os.rename(aside, target)
            _fsync_folder(target.parent)
            sentence = f"'{target}' was being replaced when a run was killed. Its old contents are put back."
            print(f"trueup: {visible(sentence)}", file=sys.stderr)
            return


def placed(target: str | os.PathLike[str]) -> Path:
    """The absolute path that `target` leads to: two names of one folder have one lock, and what is replaced is no link."""
    return Path(os.path.realpath(target))


def refuse_taken(target: Path, force: bool, *, own: bool = False) -> None:
    """Raises BadInput where `target` holds something and `force` is False, or what no trueup has written, or is no folder to write
    to. `own`: as of `new_folder`."""
    try:
        if not refuse_other(target) or not any(target.iterdir()):
            return
        if not force:
            raise BadInput(
                f"The folder '{target}' exists and is not empty. Give another folder, or --force to replace it."
            )
        if not own and not _written(target):
            found = sorted(p.name for p in target.iterdir())
            raise BadInput(
                f"The folder '{target}' was not written by trueup: it holds {listing(found, 3)}, and no {MANIFEST} that trueup "
                "wrote. --force replaces only folders that trueup wrote. Give another folder, or delete this one yourself."
            )
    except OSError as e:
        raise cannot_write(target, e) from e


def refuse_other(target: Path) -> bool:
    """Whether `target` is a folder. Raises BadInput where it is something else."""
    try:
        if there(target):
            return True
        here = placed(target)
        if os.path.islink(target) and not here.exists():  # perhaps of a disk that is not mounted
            raise BadInput(
                f"'{target}' is a link to '{here}', and there is no such folder. Make that folder, or give another name."
            )
        if os.path.lexists(here):
            raise BadInput(f"'{target}' is a file, but a folder is to be written there. Give another name.")
    except OSError as e:
        raise cannot_write(target, e) from e
    return False


def refuse_read(target: Path, read: Mapping[str, str | Path | None]) -> None:
    """Raises BadInput where the folder `target`, which is to be written, is or holds something that is read.

    Args:
        read: what it is called -> its name; one that is no file or folder here may be anything.
    """
    if not (here := placed(target)).is_dir():
        return
    for what, name in read.items():
        with suppress(OSError, ValueError, RuntimeError):  # a name that no file can have is no file's
            if name is None or not (file := Path(name).expanduser()).exists():
                continue
            if here in (there := placed(file), *there.parents):
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
    """The error to raise where `e` kept `target` from being written: BadInput, or Unavailable where the disk is full."""
    if why := no_room(e):
        return _full(target, why)
    taken = next((p for p in target.parents if os.path.lexists(p)), None)
    if taken is not None and not taken.is_dir():
        return BadInput(f"'{target}' cannot be written, because '{taken}' is a file. Give another folder.")
    return BadInput(f"'{target}' cannot be written ({e.strerror or e}). Give a folder that you may write to.")


def no_room(e: BaseException | None) -> str:
    """What the system says where an error, or what it came from, is that a disk is full; empty where it is not.

    Libraries that are not written in Python tell it in their own errors' text alone.
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
"""This machine, in a name."""


def _beside(target: Path, kind: str = "partial") -> Path:
    return target.parent / f".{target.name}.{_HERE}-{os.getpid()}-{secrets.token_hex(4)}.{kind}"


def _sweep(target: Path) -> None:
    """Remove what writers that have ended left beside `target`: of what stood aside, only where something has taken its place."""
    name = f".{_escape(target.name)}.*"
    for left in [*target.parent.glob(f"{name}.partial"), *target.parent.glob(f"{name}.replaced")]:
        with suppress(OSError, TrueupError), _held(left) as alone:
            if _in_use(left, target, alone) or (left.suffix == ".replaced" and not os.path.lexists(target)):
                continue
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()


def _in_use(left: Path, target: Path, alone: bool | None) -> bool:
    """Whether a writer may still be at what lies beside `target`; `alone` as of `_held`."""
    here = left.name.removeprefix(f".{target.name}.").startswith(_HERE)
    return alone is False or (not (alone and here) and time.time() - left.stat().st_mtime < STALE_SECONDS)


@contextmanager
def _held(path: Path) -> Iterator[bool | None]:
    """Hold a file or folder locked inside the block: True, False where a process of this machine does, None without locks."""
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
    """Whether no process holds the lock of an open file, which this one then holds; None where there are no locks."""
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
