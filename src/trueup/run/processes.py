"""Several processes that do one job, as ``accelerate launch`` and ``torchrun`` start them: the rank of each, and a shared audit.

Every process runs the whole check on the same data. Passes over texts are the exception: the batches are the same as with one
process, each is computed by one of the processes, and all of them get every result. So all processes take the same decisions, and
the findings are those of one process. For the same reason each process does the whole of a training inside a check.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from trueup.errors import TrueupError, Unavailable
from trueup.store import atomic
from trueup.store.cache import Memo
from trueup.store.work import work_folder

PATIENCE = timedelta(days=7)
"""How long a process waits for the others. One of them may be fitting or writing alone for a long time."""


@dataclass(frozen=True)
class Processes:
    """The processes of an ``accelerate launch``: this one's rank, and how many there are."""

    rank: int
    count: int

    @contextlib.contextmanager
    def writing(self, out: Path, force: bool) -> Iterator[Path | None]:
        """The new folder to write to in the first process, None in the others."""
        if self.rank == 0:
            with atomic.new_folder(out, force=force) as new:
                yield new
        else:
            yield None


def processes() -> Processes:
    """Where this process stands, from the environment that ``accelerate launch`` sets."""
    return Processes(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


class Parted(SystemExit):
    """The processes no longer do the same. As a SystemExit it passes through code that continues after the failure of one fault."""

    def __init__(self, sentence: str) -> None:
        super().__init__(2)
        self.sentence = sentence


class Team:
    """The processes of one check. They talk through gloo, on processors and GPUs alike: what they exchange is small."""

    def __init__(self, here: Processes) -> None:
        import torch.distributed as dist

        self.rank, self.count, self.over = here.rank, here.count, False
        self._own = not dist.is_initialized()
        if self._own:
            dist.init_process_group("gloo", timeout=PATIENCE)
        self._group = dist.group.WORLD if self._own else dist.new_group(backend="gloo", timeout=PATIENCE)

    @property
    def main(self) -> bool:
        return self.rank == 0

    def exchange(self, what: str, mine: Any = None) -> list[Any]:
        """The values that all processes give under the name `what`, by rank.

        Raises:
            Parted: another process gives something else, has failed, or has ended.
        """
        import torch.distributed as dist

        replies: list[Any] = [None] * self.count
        try:
            dist.all_gather_object(replies, (what, mine), group=self._group)
        except RuntimeError as e:
            self.over = True
            raise Parted("Another process of this run has ended. What it printed, or its launcher, says why.") from e
        names = [name for name, _ in replies]
        if set(names) == {what}:
            return [value for _, value in replies]
        self.over = True
        failed = [(i, value) for i, (name, value) in enumerate(replies) if name == "failed"]
        if failed:
            raise Parted(f"Process {failed[0][0]} of this run could not go on: {failed[0][1]}")
        rank = next(i for i, name in enumerate(names) if name != names[0])
        raise Parted(
            f"The processes of this run do not do the same: process 0 is at {names[0]}, and process {rank} at {names[rank]}. "
            "Give all of them the same command, the same data and the same versions."
        )

    def agree(self, what: str, value: Any) -> None:
        """Raises Parted where `what` is not the same in every process."""
        values = self.exchange(what, value)
        if len(set(values)) > 1:
            self.over = True
            rank = next(i for i, v in enumerate(values) if v != values[0])
            raise Parted(
                f"Processes 0 and {rank} of this run do not have the same {what} ({values[0]} and {values[rank]}). Give all of "
                "them the same files."
            )

    def close(self) -> None:
        import torch.distributed as dist

        if self._own:
            dist.destroy_process_group()


@dataclass(frozen=True)
class TeamMemo(Memo):
    """The first process' memory of passes, which answers for all: with different memories the processes would do different work."""

    team: Team

    def get(self, key: str) -> dict[str, np.ndarray] | None:
        return self.team.exchange(f"what is kept under {key[:12]}", super().get(key) if self.team.main else None)[0]

    def put(self, key: str, arrays: Mapping[str, np.ndarray]) -> bool:
        return super().put(key, arrays) if self.team.main else True


@contextlib.contextmanager
def together() -> Iterator[Team | None]:
    """The team of this run; None where there is only one process. After an error only the first process reports it and ends with
    an error code; the others end silently.

    Raises:
        Unavailable: the processes have parted.
    """
    this_process = processes()
    if this_process.count == 1:
        yield None
        return
    team = Team(this_process)
    try:
        try:
            yield team
            team.exchange("the end")
        except TrueupError as e:
            if not team.over:
                with contextlib.suppress(Parted):
                    team.exchange("failed", str(e))
            raise
    except (TrueupError, Parted) as e:
        if not team.main:
            raise SystemExit(0) from e
        raise Unavailable(e.sentence) if isinstance(e, Parted) else e from e
    finally:
        team.close()


@contextlib.contextmanager
def folders(team: Team | None, out: Path, force: bool) -> Iterator[tuple[Path, Path]]:
    """The folder of finished passes, and the new folder: `out` itself in the first process, and temporary folders in the others."""
    if team is not None and not team.main:
        with tempfile.TemporaryDirectory(prefix="trueup-") as folder:
            work, new = Path(folder, "work"), Path(folder, "new")
            new.mkdir()
            yield work, new
        return
    with work_folder(out) as work, atomic.new_folder(out, force=force) as new:
        yield work, new
