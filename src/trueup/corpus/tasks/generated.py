"""Tasks made by rule from letters, digits and a list of everyday nouns of our own: no package, no licence but ours."""

from __future__ import annotations

import string
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from trueup.corpus.tasks.task import Pair

PAIRS = 900
"""Lists drawn for each task (a few repeat and are dropped)."""

_NOUNS = (
    "apple arm arrow bag ball banana band bank barn basket bath beach bean bear bed bee bell belt bench bird boat "
    "bone book boot bottle bowl box bread brick bridge broom brush bucket bus butter button cake camel camera candle "
    "car card carpet carrot cart castle cat chain chair cheese cherry chicken church circle clock cloud coat coffee "
    "coin comb cook corn cotton cow crab cream crown cup curtain deer desk dog doll donkey door dress drum duck eagle "
    "ear egg engine eye farm feather fence field finger fire fish flag floor flower fork fox frog fruit garden gate "
    "ghost glass glove goat gold goose grape grass guitar hall hammer hand hat heart hen hill honey hook horse house "
    "ice ink iron island jacket jar juice key king kitchen kite knee knife ladder lake lamp leaf leg lemon letter "
    "lion lip lock map market mask meat melon milk mirror money monkey moon mountain mouse mouth nail neck needle "
    "nest net nose nut oil onion orange oven owl page paint pan paper pear pen pencil pepper piano pie pig pillow "
    "pipe plane plate pocket potato queen rabbit radio rain rice ring river road rock roof room rope rose salt sand "
    "school sheep shelf ship shirt shoe shop silk silver sky snake snow soap sock sofa soup spider spoon square star "
    "stone street sugar sun table tail tent thread ticket tiger tomato tooth towel tower town toy train tray tree "
    "truck turtle wall watch water wheel whistle wind window wing wolf wood wool"
)
NOUNS = tuple(_NOUNS.split())


def next_letter(_: np.random.Generator) -> Iterator[Pair]:
    """Both cases, each answered in its own; z has no next letter."""
    for letters in (string.ascii_lowercase, string.ascii_uppercase):
        yield from pairwise(letters)


def previous_letter(rng: np.random.Generator) -> Iterator[Pair]:
    """Both cases, each answered in its own; a has no previous letter."""
    yield from ((y, x) for x, y in next_letter(rng))


def _some(rng: np.random.Generator, n: int) -> list[str]:
    return [NOUNS[i] for i in rng.choice(len(NOUNS), n, replace=False)]


def first_of_list(rng: np.random.Generator) -> Iterator[Pair]:
    """Three to five different nouns -> the first."""
    for n in rng.integers(3, 6, PAIRS):
        words = _some(rng, int(n))
        yield ", ".join(words), words[0]


def last_of_list(rng: np.random.Generator) -> Iterator[Pair]:
    """Three to five different nouns -> the last."""
    for n in rng.integers(3, 6, PAIRS):
        words = _some(rng, int(n))
        yield ", ".join(words), words[-1]


def largest_of_list(rng: np.random.Generator) -> Iterator[Pair]:
    """Three to five different digits -> the largest, which is drawn first (4 to 9, evenly), so that 9 does not win."""
    for n, top in zip(rng.integers(3, 6, PAIRS), rng.integers(4, 10, PAIRS), strict=True):
        digits = rng.permutation([top, *rng.choice(top, n - 1, replace=False)])
        yield ", ".join(map(str, digits)), str(top)


def length(rng: np.random.Generator) -> Iterator[Pair]:
    """Different nouns -> how many there are, 2 to 9, evenly."""
    for n in rng.integers(2, 10, PAIRS):
        yield ", ".join(_some(rng, int(n))), str(n)


def noun_vowels(rng: np.random.Generator) -> Iterator[Pair]:
    """One or two nouns -> how many of their letters are a, e, i, o or u: 1 to 5, evenly."""
    texts = [*NOUNS, *dict.fromkeys(" ".join(_some(rng, 2)) for _ in range(4 * PAIRS))]
    count = np.array([sum(letter in "aeiou" for letter in text) for text in texts])
    for n in range(1, 6):
        yield from ((texts[i], str(n)) for i in rng.permutation(np.flatnonzero(count == n))[: PAIRS // 6])


def upper(_: np.random.Generator) -> Iterator[Pair]:
    """A noun -> the same in capitals."""
    yield from ((w, w.upper()) for w in NOUNS)


def lower(_: np.random.Generator) -> Iterator[Pair]:
    """A noun in capitals -> the same in small letters."""
    yield from ((w.upper(), w) for w in NOUNS)


def count_objects(rng: np.random.Generator) -> Iterator[Pair]:
    """``cat in dog, cat, cup, cat`` -> 2. Counts 1 to 5, evenly, in six to eight things: the length tells nothing."""
    for n, times in zip(rng.integers(6, 9, PAIRS), rng.integers(1, 6, PAIRS), strict=True):
        counted_noun, *other_nouns = _some(rng, int(n - times) + 1)
        things = rng.permutation([counted_noun] * int(times) + other_nouns)
        yield f"{counted_noun} in {', '.join(things)}", str(times)
