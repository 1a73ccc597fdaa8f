"""Cues: columns derived from the texts themselves, and the remaining columns of the data, to search for shortcuts.

A cue gives every example a group, like a column that the user names. No cue uses a label.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array

from trueup.corpus.corpus import Corpus

Kind = Literal["column", "surface", "pair", "word", "cluster"]
THERE, NOT_THERE = "there", "not there"
"""The two groups of a cue that a text either has or lacks."""
ENDS = 8
"""How many of the most frequent first words are cues, and how many of the most frequent last words."""
PHRASES = 2000
"""How many of the most frequent words and phrases of two words are tried."""
UNSEGMENTED = 0.3
"""Texts are read by characters if more than this share of their letters is of scripts without spaces between words."""

_WORD = re.compile(r"[#@]?\w+(?:['’]\w+)*")
_NO_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ffff]"
)
_LETTER = re.compile(r"[^\W\d_]")
_LATIN = re.compile("[A-Za-z\u00c0-\u024f]")
_NEGATION = re.compile(
    r"\b(?:not?|never|nobody|nothing|none|nor|neither|nowhere|without|cannot)\b|n['’]t\b", re.IGNORECASE
)
_EMOJI = re.compile("[\u2600-\u27bf\U0001f300-\U0001faff]|[:;=]-?[()DPp](?!\\w)")


@dataclass(frozen=True, eq=False)
class Cue:
    """A derived column.

    Attributes:
        name: a name such that "where NAME is GROUP" reads as a clause. kind: how it was derived.
        of: a corpus -> (n,) of strings, the group of each example. It depends only on the example's own contents.
        token: for a word or phrase, the same in lower case. by_character: its script has no spaces between words.
    """

    name: str
    kind: Kind
    of: Callable[[Corpus], NDArray[np.str_]]
    token: str = ""
    by_character: bool = False


def words_of(text: str, *, by_character: bool) -> list[str]:
    """The words of a text in lower case; its characters where the script puts no space between words."""
    found = _WORD.findall(text.lower())
    return [c for word in found for c in word] if by_character else found


def unsegmented(texts: Iterable[str]) -> bool:
    """Whether many letters of the texts are of scripts without spaces between words, such as Chinese, Japanese and Thai."""
    joined = "".join(t[:400] for t in texts)
    return len(_NO_SPACES.findall(joined)) > UNSEGMENTED * max(len(_LETTER.findall(joined)), 1)


def cues(corpus: Corpus) -> list[Cue]:
    """All cues for examples like those of `corpus`, except words and phrases (`phrases`).

    Medians, and the most frequent first and last words, are taken from `corpus`.
    """
    by_character = unsegmented(corpus.text)
    return [
        *(_column(name) for name in (*corpus.attributes, *corpus.others)), *_surface(corpus, by_character),
        *_ends(corpus, by_character), *(_pair(corpus, by_character) if corpus.second is not None else ()),
    ]  # fmt: skip


def phrases(corpus: Corpus, least: int) -> list[Cue]:
    """A cue for each of the most frequent words and pairs of adjacent words that at least `least` texts have and as many lack.

    For pairs of texts, both texts are read. In a script without spaces, characters take the place of words.
    """
    by_character = unsegmented(corpus.text)
    counted = Counter(t for text in _whole(corpus) for t in set(_tokens(text, by_character)))
    most = len(corpus) - least
    frequent = sorted((t for t, n in counted.items() if least <= n <= most), key=lambda t: (-counted[t], t))[:PHRASES]
    unit = "character" if by_character else "word"
    return [_word(t, unit if len(_parts(t, by_character)) == 1 else "phrase", by_character) for t in frequent]


def occurrences(corpus: Corpus, found: Sequence[Cue]) -> csc_array:
    """(n, m) bool: whether each text has the token of each of m words or phrases. The texts are read once."""
    place = {c.token: i for i, c in enumerate(found)}
    by_character = any(c.by_character for c in found)
    rows, columns = [], []
    for i, text in enumerate(_whole(corpus)):
        columns_of_text = [place[t] for t in set(_tokens(text, by_character)) if t in place]
        rows += [i] * len(columns_of_text)
        columns += columns_of_text
    return csc_array((np.ones(len(rows), bool), (rows, columns)), shape=(len(corpus), len(found)))


def table(corpus: Corpus, found: Sequence[Cue]) -> list[NDArray[np.str_]]:
    """`Cue.of` the corpus for each cue. For all words and phrases together the texts are read once."""
    words = [c for c in found if c.token]
    has = iter(occurrences(corpus, words).toarray().T)
    return [there(next(has)) if c.token else c.of(corpus) for c in found]


def _tokens(text: str, by_character: bool) -> list[str]:
    words = words_of(text, by_character=by_character)
    space = "" if by_character else " "
    return [*words, *(f"{a}{space}{b}" for a, b in pairwise(words))]


def _parts(token: str, by_character: bool) -> Sequence[str]:
    return token if by_character else token.split(" ")


def _whole(corpus: Corpus) -> Sequence[str]:
    return (
        corpus.text if corpus.second is None else [f"{a}\n{b}" for a, b in zip(corpus.text, corpus.second, strict=True)]
    )


def there(mask: NDArray[np.bool_]) -> NDArray[np.str_]:
    return np.where(mask, THERE, NOT_THERE)


def _column(name: str) -> Cue:
    return Cue(name, "column", lambda c: np.asarray(c.attributes[name] if name in c.attributes else c.others[name]))


def _word(token: str, what: str, by_character: bool) -> Cue:
    def of(corpus: Corpus) -> NDArray[np.str_]:
        return there(np.array([token in _tokens(t, by_character) for t in _whole(corpus)], bool))

    return Cue(f'the {what} "{token}"', "word", of, token, by_character)


def _has(name: str, pattern: str, kind: Kind = "surface") -> Cue:
    searched = re.compile(pattern)
    return Cue(name, kind, lambda c: there(np.array([searched.search(t) is not None for t in _whole(c)], bool)))


def halves(name: str, kind: Kind, values: Callable[[Corpus], NDArray], corpus: Corpus) -> Cue:
    """A cue of two groups, from a number that is split at its median in `corpus`.

    Texts with exactly the median go to the side that makes the groups more even. So where more than half of the texts have the
    largest number, these texts are one group.
    """
    numbers = values(corpus)
    middle = float(np.median(numbers))
    if abs(float((numbers >= middle).mean()) - 0.5) < abs(float((numbers > middle).mean()) - 0.5):
        low, high = f"below {middle:.3g}", f"{middle:.3g} or more"
        return Cue(name, kind, lambda c: np.where(values(c) >= middle, high, low))
    low, high = f"up to {middle:.3g}", f"above {middle:.3g}"
    return Cue(name, kind, lambda c: np.where(values(c) > middle, high, low))


def _share(pattern: re.Pattern[str]) -> Callable[[Corpus], NDArray]:
    """Percent of a text's characters that match."""
    return lambda c: np.array([100 * len(pattern.findall(t)) / max(len(t), 1) for t in _whole(c)])


def _length(by_character: bool) -> Callable[[Corpus], NDArray]:
    return lambda c: np.array([len(words_of(t, by_character=by_character)) for t in c.text], float)


def _surface(corpus: Corpus, by_character: bool) -> list[Cue]:
    unit = "characters" if by_character else "words"
    found = [
        halves(f"length in {unit}", "surface", _length(by_character), corpus),
        halves("percent of capitals", "surface", _share(re.compile(r"[A-Z\u00c0-\u00de\u0410-\u042f]")), corpus),
        halves("percent of punctuation", "surface", _share(re.compile(r"[^\w\s]")), corpus),
        _has("a digit", r"\d"), _has("a link", r"https?://|www\.\w"), _has("a mention", r"(?<!\w)@\w"),
        _has("a hashtag", r"(?<!\w)#\w"), _has("an emoji", _EMOJI.pattern), _has("an exclamation mark", "[!\uff01]"),
        _has("a question mark", "[?\uff1f]"), _has("a quotation mark", "[\"\u201c\u201d\u00ab\u00bb\u300c]"),
        _has("a comma", "[,\uff0c\u3001]"), _has("a bracket", r"[(\[\uff08]"), _has("a dash", r"--|[\u2013\u2014]|\s-\s"),
        _has("dots", r"\.\.\.|\u2026"), _has("a word in capitals", r"\b[A-Z]{3,}\b"),
        _has("a capital at the start", r"^\W*[A-Z]"), _has("a full stop at the end", "[.\u3002]\\s*$"),
        _has("a line break", r"\n(?!$)"), _has("a letter drawn out", r"([a-zA-Z])\1\1"), _has("markup", r"<[a-zA-Z/][^>]*>|&\w+;"),
    ]  # fmt: skip
    scripts = Counter(s for text in corpus.text for s in {_script(text)} if s)
    if len(scripts) > 1:
        most_frequent_script = scripts.most_common(1)[0][0]
        found.append(Cue("script", "surface", lambda c: np.array([_script(t) or most_frequent_script for t in c.text])))
    return found


def _script(text: str) -> str:
    """The most frequent script of the first letters of a text, by its Unicode name; empty where there is no letter."""
    letters = _LETTER.findall(text[:200])[:40]
    named = Counter("LATIN" if _LATIN.match(c) else unicodedata.name(c, "OTHER").split(" ")[0] for c in letters)
    return named.most_common(1)[0][0].title() if named else ""


def _ends(corpus: Corpus, by_character: bool) -> list[Cue]:
    found = []
    for first_or_last, place in (("first", 0), ("last", -1)):
        unit = "character" if by_character else "word"

        def end(corpus: Corpus, place: int = place) -> list[str]:
            split = (words_of(t, by_character=by_character) for t in corpus.text)
            return [w[place] if w else "" for w in split]

        for word, _ in Counter(filter(None, end(corpus))).most_common(ENDS):

            def of(corpus: Corpus, word: str = word, end: Callable[[Corpus], list[str]] = end) -> NDArray[np.str_]:
                return there(np.array([w == word for w in end(corpus)], bool))

            found.append(Cue(f'"{word}" as the {first_or_last} {unit}', "surface", of))
    return found


def _pair(corpus: Corpus, by_character: bool) -> list[Cue]:
    """Cues of pairs: known shortcuts in inference data (McCoy et al., arXiv 1902.01007; Gururangan et al., arXiv 1803.02324)."""

    def seconds(c: Corpus) -> Sequence[str]:
        return c.second if c.second is not None else [""] * len(c)

    def overlap(c: Corpus) -> NDArray:
        percents = []
        for a, b in zip(c.text, seconds(c), strict=True):
            first_words, second_words = (set(words_of(t, by_character=by_character)) for t in (a, b))
            percents.append(100 * len(first_words & second_words) / max(len(second_words), 1))
        return np.array(percents)

    def length(c: Corpus) -> NDArray:
        return np.array([len(words_of(t, by_character=by_character)) for t in seconds(c)], float)

    first = _length(by_character)
    unit = "characters" if by_character else "words"
    return [
        halves("percent of the second text's words that stand in the first", "pair", overlap, corpus),
        Cue("every word of the second text in the first", "pair", lambda c: there(overlap(c) >= 100)),
        Cue("a negation in the second text", "pair",
            lambda c: there(np.array([_NEGATION.search(t) is not None for t in seconds(c)], bool))),
        halves(f"length of the second text in {unit}", "pair", length, corpus),
        halves(f"{unit} by which the first text is longer", "pair", lambda c: first(c) - length(c), corpus),
    ]  # fmt: skip
