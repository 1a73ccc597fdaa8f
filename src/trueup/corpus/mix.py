"""Samples of a corpus with a chosen dependence (coupling) of label and confounder: the confounding-shift protocol.

An attribute (site, source, group) is the confounder z, the label is y. Tables are (C, G) as in `trueup.measure.shift`:
rows are the corpus' classes, columns are the attribute's values in sorted order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

from trueup.corpus.corpus import Corpus
from trueup.corpus.values import MISSING
from trueup.errors import BadInput, did_you_mean, listing
from trueup.measure.shift import feasible_alphas, table_at

Seed = int | np.random.SeedSequence
Whole = NDArray[np.intp]

FEWEST = 10
"""Examples that every (label, group) cell of a sample must have (the protocol's rule)."""

ALPHAS = tuple(float(a) for a in 10 ** np.linspace(-1, 1, 9))
"""Couplings at test time: log-uniform and symmetric about 1, so that the slope favours neither direction."""

GRID = tuple(float(f"{a:.2g}") for a in 10 ** np.linspace(-2, 2, 81))
"""Couplings that the advice in an error message tries. They have two digits, so that it can print them exactly."""


@dataclass(frozen=True)
class Shift:
    """Training data at one coupling, and tests at many; P(y) and P(z) are the same in all of them.

    Attributes:
        train: examples at the training coupling, split ``train`` and ``calibration``.
        tests: alpha -> draws (split ``test``) from one pool that shares no text with `train`; draws overlap.
        dropped: alpha -> why it has no draws, as a sentence.
        attribute: the confounder's column. groups: its two values; z = 1 is the second.
        table: (2, 2) the joint of label and group in training.
    """

    train: Corpus
    tests: Mapping[float, tuple[Corpus, ...]]
    dropped: Mapping[float, str]
    attribute: str
    groups: tuple[str, ...]
    table: NDArray[np.float64]


def groups_of(corpus: Corpus, attribute: str) -> tuple[str, ...]:
    """The values of `attribute` that occur, sorted. There are two or more, and they do not determine the label.

    Raises:
        BadInput: there is no such attribute; it has one value; it determines the label or is determined by it; or it has so
            many values that most cells are empty. In these cases its effect cannot be separated from that of the label.
    """
    values = column(corpus, attribute)
    where = f"Attribute '{attribute}' of '{corpus.name}'"
    groups, member = np.unique(values, return_inverse=True)
    if groups.size < 2:
        raise BadInput(
            f"{where} is '{groups[0]}' in every example, so nothing can be confounded with it; name another column with "
            "`--confounder COLUMN`, or add examples of another value."
            if groups.size
            else f"'{corpus.name}' has no examples; give a corpus with some."
        )
    if 2 * groups.size > len(corpus):
        raise BadInput(
            f"{where} has {groups.size} different values in {len(corpus)} examples, as an id has; {_fewer(groups)}, or name a "
            "column of few values with `--confounder COLUMN`."
        )
    table = _counted(corpus, member, groups.size)
    present = table[table.sum(axis=1) > 0] > 0
    sets_label, set_by_label = bool((present.sum(axis=0) == 1).all()), bool((present.sum(axis=1) == 1).all())
    if sets_label or set_by_label:
        problem = (
            "is the label under another name"
            if sets_label and set_by_label
            else "settles the label: each of its values occurs with one label only"
            if sets_label
            else "is settled by the label: each label occurs with one of its values only"
        )
        raise BadInput(
            f"{where} {problem}, so no measurement can tell the two apart; add examples of other combinations, or name "
            "another column with `--confounder COLUMN`."
        )
    if not np.median(present):
        raise BadInput(
            f"{where} has {groups.size} values, and {(~present).sum()} of the {present.size} combinations of label and "
            f"value have no example; {_fewer(groups)}, or name another column with `--confounder COLUMN`."
        )
    return tuple(str(g) for g in groups)


def _fewer(groups: NDArray[np.str_]) -> str:
    """Advice on how to reduce the number of values of a column."""
    try:
        np.asarray(groups[groups != MISSING], dtype=np.float64)
    except ValueError:
        return "merge or drop rare values"
    return "cut its numbers into a few ranges (`pandas.qcut` does)"


def group_index(corpus: Corpus, attribute: str, groups: Sequence[str] | None = None) -> Whole:
    """(n,) the index of each example's value in `groups`, or in :func:`groups_of` when None.

    Raises:
        BadInput: there is no such attribute, or it has values that `groups` does not hold.
    """
    groups = groups_of(corpus, attribute) if groups is None else tuple(groups)
    values, member = np.unique(column(corpus, attribute), return_inverse=True)
    place = {g: i for i, g in enumerate(groups)}
    unknown = [v for v in values.tolist() if str(v) not in place]
    if unknown:
        raise BadInput(
            f"Attribute '{attribute}' of '{corpus.name}' has values that were not seen before: {listing(unknown)}. "
            f"Known are {listing(groups)}; drop or rename those examples, or put some of them among the earlier ones."
        )
    return np.array([place[str(v)] for v in values], dtype=np.intp)[member]


def counts(corpus: Corpus, attribute: str, groups: Sequence[str]) -> NDArray[np.int64]:
    """(C, G) the number of examples of each class in each of `groups`. Raises BadInput as :func:`group_index`."""
    return _counted(corpus, group_index(corpus, attribute, groups), len(groups))


def draw(
    corpus: Corpus,
    attribute: str,
    table: ArrayLike,
    size: int,
    *,
    seed: Seed,
    fewest: int = FEWEST,
    groups: Sequence[str] | None = None,
) -> Corpus:
    """`size` examples without replacement whose (label, group) cells follow `table`, in random order.

    The counts are size * table rounded up or down, such that the margins are rounded up or down too (controlled rounding), and
    the nearest of such counts. So margins that are whole numbers stay exact at every coupling.

    Args:
        table: (C, G) masses, in any unit. Rows are `corpus.classes`, columns are `groups`.
        fewest: the least number of examples in every cell.
        groups: the attribute's values in the order of the columns; None for :func:`groups_of`.

    Raises:
        BadInput: a cell would have fewer than `fewest`, or needs more than the corpus has; the message names the worst cell,
            and what would work. Also as :func:`groups_of`, and on a table of another shape.
    """
    groups = groups_of(corpus, attribute) if groups is None else tuple(groups)
    cell_of_row, available = _cells(corpus, attribute, groups)
    t = _shares(table, available.shape, corpus, attribute)
    _check_size(size)
    counts_to_draw = _whole(t, size)
    if fault := _offence(corpus, attribute, groups, available, counts_to_draw, fewest):
        raise BadInput(f"{fault} {_advice(t, size, available, fewest)}")
    return corpus.take(_pick(cell_of_row, counts_to_draw, np.random.default_rng(seed)))


def shift(
    corpus: Corpus,
    attribute: str,
    *,
    alpha_train: float,
    positive: float = 0.3,
    share: float = 0.5,
    sizes: tuple[int, int, int] = (800, 200, 1000),
    alphas: Sequence[float] = ALPHAS,
    draws: int = 5,
    seed: int,
) -> Shift:
    """Training data at one coupling and test data at many (confounding-shift protocol, as in DeconDTN's code).

    y = 1 is the second class, z = 1 the second value of the attribute. Training and calibration take from each cell
    exactly what they need. Tests are drawn from all the remaining examples, each `draws` times. The split of the corpus is
    not used. Only the first row of a cluster (such as equal texts) is used, so that no cluster is in training and test. A
    test coupling is dropped, with the reason, where these margins or the remaining examples do not allow `FEWEST` examples in
    each cell. The draws of one alpha do not depend on the other alphas.

    Args:
        alpha_train: P(y=1 | z=1) / P(y=1 | z=0) in training. 5, with the defaults: .5 and .1.
        positive: P(y=1). share: P(z=1). In training and in every test.
        sizes: examples of train, of calibration, and of each test draw.

    Raises:
        BadInput: as :func:`groups_of`; not two classes and two groups; shares or couplings out of range; too few
            examples for training, or for every test.
    """
    groups = groups_of(corpus, attribute)
    for number, what in ((len(corpus.classes), "classes"), (len(groups), f"values of '{attribute}'")):
        if number != 2:
            raise BadInput(
                f"'{corpus.name}' has {number} {what}, and a coupling alpha is between two; keep or merge to two, or "
                "give `draw` a table of all."
            )
    for name, value in (("positive", positive), ("share", share)):
        if not 0 < value < 1:
            raise BadInput(f"{name} is {value}; give a share between 0 and 1, such as 0.5.")
    for size in sizes:
        _check_size(size)
    if draws < 1 or not len(alphas):
        raise BadInput(f"There are {draws} draws at {len(alphas)} alphas; give at least 1 of each.")
    corpus = _distinct(corpus)
    cell, available = _cells(corpus, attribute, groups)
    independent = np.outer([1 - positive, positive], [1 - share, share])
    table = table_at(independent, alpha_train)
    of_train, of_calibration = (_whole(table, size) for size in sizes[:2])
    counts_to_draw = of_train + of_calibration
    if fault := _offence(corpus, attribute, groups, available, counts_to_draw, FEWEST):
        raise BadInput(f"For training and calibration: {fault} {_advice(table, sum(sizes[:2]), available, FEWEST)}")
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0]))
    rows = _pick(cell, counts_to_draw, rng)
    at = np.concatenate(
        [rng.permutation(np.flatnonzero(cell[rows] == c))[:k] for c, k in enumerate(of_calibration.ravel())]
    )
    split = np.full(rows.size, "train", dtype="U11")
    split[at] = "calibration"
    train = replace(corpus.take(rows), split=split)
    pool = corpus.take(np.setdiff1d(np.arange(len(corpus)), rows))
    cell, available = _cells(pool, attribute, groups)
    tests: dict[float, tuple[Corpus, ...]] = {}
    dropped: dict[float, str] = {}
    for alpha in (float(a) for a in alphas):
        try:
            target = table_at(independent, alpha)
        except BadInput as e:
            dropped[alpha] = str(e)
            continue
        counts_to_draw = _whole(target, sizes[2])
        if fault := _offence(pool, attribute, groups, available, counts_to_draw, FEWEST):
            dropped[alpha] = fault
            continue
        bits = int(np.float64(alpha).view(np.uint64))
        drawn = []
        for d in range(draws):
            chosen = _pick(cell, counts_to_draw, np.random.default_rng(np.random.SeedSequence([seed, 1, bits, d])))
            drawn.append(replace(pool.take(chosen), split=np.full(chosen.size, "test", dtype="U11")))
        tests[alpha] = tuple(drawn)
    if not tests:
        alpha = min(dropped, key=lambda a: abs(np.log(a)) if a > 0 else np.inf)
        low, high = feasible_alphas(independent)
        advice = f" {_advice(table_at(independent, alpha), sizes[2], available, FEWEST)}" if low < alpha < high else ""
        raise BadInput(
            f"After training took its {rows.size} examples no test is left. At alpha {alpha:g}: {dropped[alpha]}{advice}"
        )
    return Shift(train, tests, dropped, attribute, groups, table)


# ---------------------------------------------------------------------------------------------------------------------
# Cells


CROSSED = "*"
"""``A*B`` is the attribute whose groups are the pairs of the values of A and B."""


def column(corpus: Corpus, attribute: str) -> NDArray:
    """(n,) of strings: the values of the attribute; for two attributes with `CROSSED` between their names, the pairs of values.

    Raises BadInput where the corpus has no such attribute.
    """
    first_name, crossed, second_name = attribute.partition(CROSSED)
    if attribute not in corpus.attributes and crossed and {first_name, second_name} <= set(corpus.attributes):
        pairs = zip(corpus.attributes[first_name], corpus.attributes[second_name], strict=True)
        return np.array([f"{a}, {b}" for a, b in pairs])
    if attribute not in corpus.attributes:
        known_attributes = (
            f"Its attributes are {listing(corpus.attributes)}"
            if corpus.attributes
            else "It was read without attributes"
        )
        raise BadInput(
            f"'{corpus.name}' has no attribute '{attribute}'.{did_you_mean(attribute, corpus.attributes)} {known_attributes}; name "
            "a column of the data with `--confounder COLUMN`."
        )
    return np.asarray(corpus.attributes[attribute])


def _counted(corpus: Corpus, member: NDArray, groups: int) -> NDArray[np.int64]:
    size = len(corpus.classes) * groups
    return np.bincount(corpus.label * groups + member, minlength=size).reshape(-1, groups)


def _cells(corpus: Corpus, attribute: str, groups: Sequence[str]) -> tuple[Whole, NDArray[np.int64]]:
    """(n,) the cell of each example, numbered along the rows of the table; and (C, G) the number of examples of each cell."""
    member = group_index(corpus, attribute, groups)
    return (corpus.label * len(groups) + member).astype(np.intp), _counted(corpus, member, len(groups))


def _distinct(corpus: Corpus) -> Corpus:
    return corpus.take(np.sort(np.unique(corpus.cluster, return_index=True)[1]))


def _pick(cell: Whole, need: NDArray, rng: np.random.Generator) -> Whole:
    """Indices of `need` random examples of each cell, shuffled. One cell's choice does not depend on another's size."""
    rows = [rng.permutation(np.flatnonzero(cell == c))[:k] for c, k in enumerate(need.ravel())]
    return rng.permutation(np.concatenate(rows))


def _shares(table: ArrayLike, shape: tuple[int, ...], corpus: Corpus, attribute: str) -> NDArray[np.float64]:
    t = np.asarray(table, np.float64)
    if t.shape != shape:
        raise BadInput(
            f"The table has shape {t.shape}; '{corpus.name}' has {shape[0]} classes and {shape[1]} values of "
            f"'{attribute}', so give one of {shape[0]} x {shape[1]}."
        )
    if not (t >= 0).all() or not 0 < t.sum() < np.inf:
        raise BadInput("The table must be finite, at least 0 and not 0 everywhere; give the mass of each cell.")
    return t / t.sum()


def _check_size(size: int) -> None:
    if size < 1:
        raise BadInput(f"A sample of {size} examples cannot be drawn; give a size of 1 or more.")


def _whole(table: NDArray[np.float64], size: int) -> NDArray[np.int64]:
    """Integer cells that sum to `size`, each cell and each margin rounded up or down: the nearest margins, then the nearest cells.

    Such a rounding always exists (Bacharach 1966). Largest remainders of the cells alone need not find it: with ties
    they can change a margin that was an integer. The rounding is a vertex of a transport problem, so the relaxation of the
    problem already has an integer solution.
    """
    exact = size * table / table.sum()
    # 1e-9: 299.9999999 is 300 with a rounding error
    floor = np.floor(exact + 1e-9)
    fraction = np.clip(exact - floor, 0.0, 1.0)
    fraction[fraction < 1e-9] = 0.0
    classes, groups = table.shape
    margins = [fraction.sum(axis=1), fraction.sum(axis=0)]
    margin_fraction = [e - np.floor(e + 1e-9) for e in margins]
    # Rounding a part f up rather than down changes the squared distance by 1 - 2 f.
    cost = (
        1 - 2 * fraction + table.size * ((1 - 2 * margin_fraction[0])[:, None] + (1 - 2 * margin_fraction[1])[None, :])
    )
    sums = np.vstack(
        [np.kron(np.eye(classes), np.ones(groups)), np.kron(np.ones(classes), np.eye(groups)), np.ones(table.size)]
    )
    margin_sums, total = np.concatenate(margins), size - floor.sum()
    low, high = np.append(np.floor(margin_sums + 1e-9), total), np.append(np.ceil(margin_sums - 1e-9), total)
    solution = milp(
        cost.ravel(),
        integrality=1,
        bounds=Bounds(0, (fraction.ravel() > 0).astype(float)),
        constraints=LinearConstraint(sums, low, high),  # pyright: ignore[reportArgumentType]
        options={"mip_rel_gap": 0.0},
    )
    assert solution.x is not None, solution.message  # Bacharach 1966
    return (floor + np.round(solution.x).reshape(table.shape)).astype(np.int64)


# ---------------------------------------------------------------------------------------------------------------------
# Refusals


def _offence(
    corpus: Corpus, attribute: str, groups: Sequence[str], have: NDArray, need: NDArray, fewest: int
) -> str | None:
    """A sentence about the worst cell of a draw that cannot be made; None when it can be made."""
    size = int(need.sum())

    def name(cell: int) -> str:
        c, g = divmod(cell, len(groups))
        return f"class '{corpus.classes[c]}' with {attribute} '{groups[g]}'"

    if need.min() < fewest:
        worst_cell = int(need.argmin())
        return f"Of {size} examples {need.min()} would be of {name(worst_cell)}, where {fewest} are the fewest that will do."
    if (need > have).any():
        worst_cell = int((have / np.maximum(need, 1)).argmin())
        return (
            f"'{corpus.name}' has {have.ravel()[worst_cell]} examples of {name(worst_cell)} to draw from, and "
            f"{need.ravel()[worst_cell]} are needed for {size}."
        )
    return None


def _advice(table: NDArray[np.float64], size: int, have: NDArray, fewest: int) -> str:
    """A sentence on possible draws instead: couplings at this size, and sizes at this coupling."""
    options = []
    if table.shape == (2, 2) and table.sum(axis=0).all() and table.sum(axis=1).all():
        low, high = feasible_alphas(table)
        candidates = [(a, _whole(table_at(table, a), size)) for a in GRID if low < a < high]
        possible = [a for a, need in candidates if need.min() >= fewest and (need <= have).all()]
        if possible:
            options.append(f"with {size} examples alpha can be {min(possible):g} to {max(possible):g}")
    with np.errstate(divide="ignore", invalid="ignore"):
        least = np.ceil(np.max(fewest / table) - 1e-9) if fewest else 1
        most = np.floor(np.min(np.where(table > 0, have / table, np.inf)) + 1e-9)
    if 1 <= least <= most:
        options.append(f"at this coupling {int(least)} to {int(most)} examples can be drawn")
    if not options:
        return "No coupling at this size and no size at this coupling will do; give more examples of that combination."
    return (
        f"Of what there is, {', and '.join(options)}; change one of these, or give more examples of that combination."
    )
