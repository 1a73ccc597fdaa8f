"""Many pieces of work, in this process, in several processes, or on a Ray cluster: all have one method, `each`.

A piece is the argument of one function; both must be picklable. Results are given as soon as they are ready. When a worker dies
(killed, out of memory), only the piece that it worked on is lost, and another worker tries this piece once more.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from trueup.errors import BadInput, Unavailable
from trueup.given import check_fields

TRIES = 2
"""How often a piece is begun before it counts as the cause of its workers' deaths."""

Around = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Lost:
    """Takes the place of a result: the worker died each time that the piece was tried. `why` is a clause without its end."""

    why: str


class Engine(Protocol):
    """Who does the work."""

    def each(
        self, work: Callable[[Any], Any], pieces: Sequence[Any], alike: Sequence[str], around: Around = nullcontext
    ) -> Iterator[tuple[int, Any]]:
        """Each piece's number and result, in the order in which they finish.

        Args:
            work: the function of a piece. alike: a word for each piece; a worker takes pieces with the same word in succession.
            around: makes the context manager that a worker is inside of while it works.
        """
        ...


@dataclass(frozen=True)
class Here:
    """This process, one piece after the other."""

    def each(
        self, work: Callable[[Any], Any], pieces: Sequence[Any], alike: Sequence[str], around: Around = nullcontext
    ) -> Iterator[tuple[int, Any]]:
        with around():
            for i in sorted(range(len(pieces)), key=lambda i: (alike[i], i)):
                yield i, work(pieces[i])


@dataclass(frozen=True)
class Processes:
    """Run the cells of a sweep in `workers` processes on this machine, which share its cores."""

    workers: int

    def __post_init__(self) -> None:
        check_fields(self)
        if self.workers < 1:
            raise BadInput(f"{self.workers} workers do nothing. Give --workers 1 or more.")

    def each(
        self, work: Callable[[Any], Any], pieces: Sequence[Any], alike: Sequence[str], around: Around = nullcontext
    ) -> Iterator[tuple[int, Any]]:
        queue = sorted(range(len(pieces)), key=lambda i: (alike[i], i))
        tries, running = [0] * len(pieces), {}
        threads = max(1, (os.cpu_count() or 1) // self.workers)
        try:
            for _ in range(min(self.workers, len(pieces))):
                worker = _Worker(work, around, threads)
                running[worker.end] = worker
            for worker in running.values():
                worker.take(queue, pieces, alike, running.values(), tries)
            while any(w.at is not None for w in running.values()):
                for end in wait([w.end for w in running.values()]):
                    worker = running[end]  # type: ignore[index]
                    i = worker.at
                    try:
                        result = worker.end.recv()
                    except (EOFError, OSError):  # it died
                        del running[worker.end]
                        why = worker.died()
                        if queue or (i is not None and tries[i] < TRIES):
                            another = _Worker(work, around, threads)
                            running[another.end] = another
                            if i is not None and tries[i] < TRIES:
                                queue.insert(0, i)
                                i = None
                            another.take(queue, pieces, alike, running.values(), tries)
                        if i is not None:
                            yield i, Lost(why)
                        continue
                    worker.take(queue, pieces, alike, running.values(), tries)
                    if isinstance(result, BaseException):
                        raise result
                    assert i is not None
                    yield i, result
        finally:
            for worker in running.values():
                worker.stop()


class _Worker:
    """A process that does one piece after the other, and the end of its pipe."""

    def __init__(self, work: Callable[[Any], Any], around: Around, threads: int) -> None:
        # A forked process would inherit torch's threads in whatever state they are.
        context = multiprocessing.get_context("spawn")
        self.end, child_end = context.Pipe()
        self.process = context.Process(target=_serve, args=(child_end, work, around, threads, os.getpid()), daemon=True)
        self.process.start()
        child_end.close()
        self.at: int | None = None
        self.word = ""

    def take(
        self, left: list[int], pieces: Sequence[Any], alike: Sequence[str], workers: Any, tries: list[int]
    ) -> None:
        """Begin the next piece: one with the word of the last, else one with a word that no other worker has, else any."""
        self.at = None
        if not left:
            return
        words_in_use = {w.word for w in workers if w is not self and w.at is not None}
        i = next(
            (i for i in left if alike[i] == self.word), next((i for i in left if alike[i] not in words_in_use), left[0])
        )
        try:
            self.end.send(pieces[i])
        except (BrokenPipeError, OSError):  # the worker is dead, which the read that follows reports
            return
        left.remove(i)
        tries[i] += 1
        self.at, self.word = i, alike[i]

    def died(self) -> str:
        self.process.join(5)
        code = self.process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            cause = ", as the system does when memory runs out" if -code == signal.SIGKILL else ""
            return f"its worker was ended by {name}{cause}"
        return f"its worker ended with exit code {code}"

    def stop(self) -> None:
        self.end.close()
        if self.at is not None and self.process.is_alive():
            self.process.kill()
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()


def _serve(end: Connection, work: Callable[[Any], Any], around: Around, threads: int, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted as well, and ends its workers
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _use(threads)
    with around():
        while True:
            try:
                piece = end.recv()
            except (EOFError, OSError):
                return
            try:
                result = work(piece)
                pickle.dumps(result)
            except BaseException as e:
                result = e
            try:
                end.send(result)
            except (BrokenPipeError, OSError):
                return
            except Exception:  # an exception that cannot be pickled
                end.send(RuntimeError(f"{type(result).__name__}: {result}"))


def _end_with(parent: int) -> None:
    """End this process when its parent was killed: nobody waits for its results, and the next run would compute them again."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _use(threads: int) -> None:
    if not os.environ.get("OMP_NUM_THREADS"):
        import torch

        torch.set_num_threads(threads)


_around: ExitStack | None = None


@dataclass(frozen=True)
class Ray:
    """Run the cells of a sweep as tasks on a Ray cluster. If a node is lost, its tasks run again on other nodes.

    Attributes:
        address: the address of the cluster: ``auto`` for the cluster of this machine, or for example ``ray://host:10001``.
        gpus, cpus: the number of GPUs and CPU cores for each cell. With a fraction, several cells share a GPU.
        tries: how often a task is tried.
    """

    address: str = "auto"
    gpus: float = 0.0
    cpus: float = 1.0
    tries: int = 4

    def __post_init__(self) -> None:
        check_fields(self)

    def each(
        self, work: Callable[[Any], Any], pieces: Sequence[Any], alike: Sequence[str], around: Around = nullcontext
    ) -> Iterator[tuple[int, Any]]:
        ray = self._joined()
        task = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=self.tries)(_on_ray)
        function = ray.put((work, around, os.getcwd(), max(1, int(self.cpus))))
        order = sorted(range(len(pieces)), key=lambda i: (alike[i], i))
        waiting = {task.remote(function, pieces[i]): i for i in order}
        try:
            while waiting:
                [ready], _ = ray.wait(list(waiting), num_returns=1)
                i = waiting.pop(ready)
                try:
                    yield i, ray.get(ready)
                except ray.exceptions.RayTaskError as e:
                    raise e.cause from e
                except ray.exceptions.RayError as e:
                    yield i, Lost(f"its worker was lost {self.tries + 1} times ({' '.join(str(e).split())[:160]})")
        finally:
            for pending in waiting:
                ray.cancel(pending, force=True)

    def _answers(self) -> None:
        """Raises Unavailable where nothing listens at the address: Ray itself would try for a long time."""
        host, _, port = self.address.removeprefix("ray://").rpartition(":")
        if not host or not port.isdigit():
            return
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError as e:
            raise self._absent(e) from e

    def _absent(self, e: Exception) -> Unavailable:
        return Unavailable(
            f"There is no Ray cluster at '{self.address}' ({' '.join(str(e).split())[:160]}). Start one with `ray start "
            "--head` and give --address auto there, or name the address that it prints."
        )

    def _joined(self) -> Any:
        try:
            import ray
        except ImportError as e:
            raise Unavailable("The engine ray needs Ray, which is not installed: pip install 'trueup[ray]'.") from e
        if not ray.is_initialized():
            self._answers()
            handler = signal.getsignal(signal.SIGTERM)
            try:
                ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR)
            except Exception as e:
                raise self._absent(e) from e
            if callable(handler) and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)  # Ray installs its own handler, which ends with code 15
        if self.gpus and float(ray.cluster_resources().get("GPU", 0)) < self.gpus:
            raise BadInput(
                f"--gpus-per-cell {self.gpus:g} waits for GPUs, and the cluster has {ray.cluster_resources().get('GPU', 0):g}. "
                "Leave it out, or add nodes that have some."
            )
        return ray


def _on_ray(function: Any, piece: Any) -> Any:
    """One piece on a worker of Ray. Ray uses the worker again for the next piece, so its context is left only when it ends."""
    global _around
    work, around, folder, threads = function
    if os.path.isdir(folder):
        os.chdir(folder)
    if _around is None:
        _use(threads)
        _around = ExitStack()
        _around.enter_context(around())
    return work(piece)
