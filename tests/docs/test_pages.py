"""The documentation as files: links, pages for every fault, command lines that are accepted, requests that are answered."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from pages import DOCS, PAGES, ROOT, Block, blocks, commands, prose

from trueup.faults.fault import each_fault
from trueup.run.predict import Session, within
from trueup.store.cache import Memo

ALL = [*PAGES, DOCS / "log.md"]
FAULTS = [f.name for f in each_fault()]


README = ROOT / "README.md"
MOST_WORDS = 700
"""Of the front page, outside of its code."""


def named(page: Path) -> str:
    return str(page.relative_to(DOCS if page.is_relative_to(DOCS) else ROOT))


@pytest.fixture(scope="session")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anchors(text: str) -> set[str]:
    """The places of a page that a link can name, as Python-Markdown names them."""
    bare = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", bare, re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", t.lower()).strip()) for t in titles}


# ------------------------------------------------------------------------------------------------------------ links


@pytest.mark.parametrize("page", ALL, ids=named)
def test_links_inside_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            assert target.startswith("https://"), target
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.is_file(), f"{target} in {named(page)}"
        assert there.is_relative_to(DOCS), f"{target} leaves docs, so the built site would not have it"
        if anchor:
            assert anchor in anchors(there.read_text(encoding="utf-8")), f"{target} in {named(page)}"


def test_the_front_page_is_short_and_its_links_resolve() -> None:
    text = prose(README)
    assert len(text.split()) <= MOST_WORDS
    links = [t for t in re.findall(r"\]\(([^)\s]+)\)", text) if not t.startswith("https://")]
    assert "docs/results.md" in links
    for target in links:
        name, _, anchor = target.partition("#")
        assert (ROOT / name).is_file(), target
        assert not anchor or anchor in anchors((ROOT / name).read_text(encoding="utf-8")), target


def test_every_fault_has_a_page_and_its_charts() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    charts = (DOCS / "charts.md").read_text(encoding="utf-8")
    tour = (DOCS / "tour.md").read_text(encoding="utf-8")
    for name in FAULTS:
        page = DOCS / "faults" / f"{name}.md"
        assert page.is_file(), f"The fault '{name}' has no page; write docs/faults/{name}.md."
        for part in ("fault", "details"):
            assert f"<!-- trueup: {part} {name} -->" in page.read_text(encoding="utf-8")
        assert f"faults/{name}.md" in navigation
        assert f"<!-- trueup: charts {name} -->" in charts
        assert f"faults/{name}.md" in tour
    assert {p.stem for p in (DOCS / "faults").glob("*.md")} == set(FAULTS)


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in ALL:
        assert f": {named(page)}" in navigation


def test_the_first_page_has_the_readmes_two_commands() -> None:
    of_readme = blocks_of_text(README.read_text(encoding="utf-8"))
    mine = [b.code for b in blocks(DOCS / "index.md")]
    assert len(mine) == 2
    assert all(code in of_readme for code in mine)


def blocks_of_text(text: str) -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


# --------------------------------------------------------------------------------------------------------- commands


def written() -> list[tuple[str, list[str]]]:
    """Every command line `trueup ...` in a shell block or in code inside a sentence, with where it stands."""
    found = []
    for page in [*PAGES, README]:
        for block in blocks(page):
            if block.language == "bash":
                found += [(block.at, words) for words in commands(block.code) if words[0] == "trueup"]
        for code in re.findall(r"(?<!`)`(trueup [a-z][^`]*)`", prose(page)):
            (words,) = commands(code.replace("...", ""))
            found.append((named(page), words))
    return found


def commands_of_trueup() -> dict:
    import typer.main

    from trueup.cli.entry import app

    return typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize(("at", "words"), written(), ids=lambda v: v if isinstance(v, str) else " ".join(v)[:60])
def test_a_command_line_is_accepted(at: str, words: list[str]) -> None:
    """Options and commands exist; a whole command (one that names its output) is parsed as the command line would."""
    known = commands_of_trueup()
    name, *rest = words[1:]
    assert name in known, f"{at}: there is no command '{name}'"
    if hasattr(known[name], "commands"):  # `trueup bench NAME`
        known = known[name].commands
        name, *rest = rest
        assert name in known, f"{at}: there is no bench '{name}'"
    options = {o for p in known[name].params for o in p.opts} | {"--help"}
    assert {w for w in rest if w.startswith("-")} <= options, at
    if "-o" in rest:
        known[name].make_context(name, list(rest))
    check_names(at, name, rest)


def check_names(at: str, name: str, rest: list[str]) -> None:
    from trueup.corpus import embedded, tasks
    from trueup.subject.embedded import MODELS

    given = [rest[i + 1] for i, w in enumerate(rest[:-1]) if w == "--fault"]
    given += rest[:1] if name in ("audit", "repair") and rest else []
    assert set(given) <= {*FAULTS, "FAULT"}, at
    for i, word in enumerate(rest):
        if word.startswith("embedded:"):
            data = i and rest[i - 1] == "--data"
            known = {*embedded.DATASETS, *MODELS} if name == "fetch" else embedded.DATASETS if data else MODELS
            assert word.partition(":")[2] in known, at
        if word.startswith("task:") and word != "task:NAME":
            tasks.find(word)


def test_knobs_that_are_named_exist() -> None:
    for page in PAGES:
        for fault, knob in re.findall(r"--set (\w+)\.(\w+)=", page.read_text(encoding="utf-8")):
            if fault != "lengthiness" and knob != "SETTING":
                assert knob in {f.name: f for f in each_fault()}[fault].knobs(), named(page)


def test_a_wrong_command_would_be_noticed() -> None:
    with pytest.raises(AssertionError):
        test_a_command_line_is_accepted("here", ["trueup", "check", "MODEL", "--no-such-option", "x", "-o", "OUT"])
    with pytest.raises(AssertionError):
        test_a_command_line_is_accepted(
            "here", ["trueup", "audit", "overconfident", "MODEL", "--data", "x", "-o", "OUT"]
        )


# ------------------------------------------------------------------------------------------------------- generated


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "charts.md"], ids=named)
def test_what_a_page_asks_of_the_code_is_answered(hooks: ModuleType, page: Path) -> None:
    got = hooks.filled(page.read_text(encoding="utf-8"), named(page))
    assert "<!-- trueup:" not in got
    for name in FAULTS:
        if page.stem == name:
            cls = {f.name: f for f in each_fault()}[name]
            assert cls.question in got
            assert all(f"`{knob}`" in got for knob in cls.knobs())
            knobs = got.partition("## Settings")[2].partition("## What")[0]
            assert "|  |" not in knobs, "a knob is not described in its docstring"
            rows = [r for r in knobs.splitlines() if r.startswith("| `")]
            assert all(len(re.findall(r"(?<!\\)\|", r)) == 4 for r in rows), "a bar in a docstring ends its cell"


def test_every_fault_says_what_a_check_needs_to_examine_it() -> None:
    options = {o for p in commands_of_trueup()["check"].params for o in p.opts}
    for cls in each_fault():
        assert cls.needs
        assert set(re.findall(r"--[\w-]+", cls.needs)) <= options
        assert (f"--fault {cls.name}" in cls.needs) == bool(cls.on_request)


def test_all_data_and_tasks_are_told(hooks: ModuleType) -> None:
    from trueup.corpus.embedded import DATASETS
    from trueup.corpus.tasks import TASKS

    data, tasks = hooks.data(), hooks.tasks()
    for d in DATASETS.values():
        (row,) = [r for r in data.splitlines() if f"`embedded:{d.name}`" in r]
        assert all(f"`{a}`" in row for a in d.attributes)
    assert all(f"`task:{name}`" in tasks for name in TASKS)
    reference = (DOCS / "api.md").read_text(encoding="utf-8")
    assert "<!-- trueup: data -->" in reference
    assert "<!-- trueup: tasks -->" in reference


def test_no_page_reads_the_extra_logit_as_a_confidence() -> None:
    for page in [*PAGES, README]:
        for code in re.findall(r"^```python.*?^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            assert not re.search(r"logits\[[^\]]*\]\.sigmoid\(\)", code), page.name


def test_items_that_name_two_attributes_are_read(hooks: ModuleType) -> None:
    got = hooks.items(
        ["    a, b: two of them, and", "        more <here>. c: a third. None: of these."], ["a", "b", "c"]
    )
    assert got == ["`a`, `b`: two of them, and more &lt;here>.", "`c`: a third. None: of these."]
    got = hooks.items(["    BadInput: no file. Unavailable: no network."], [], raises=True)
    assert got == ["`BadInput`: no file.", "`Unavailable`: no network."]


@pytest.mark.parametrize("name", FAULTS)
def test_every_chart_of_a_planted_case_is_drawn_and_explained(hooks: ModuleType, name: str, trainings: Memo) -> None:
    with within(Session(trainings)):
        got = hooks.charts(name)
    charts = hooks.finding(name).charts
    assert charts
    assert got.count("data:image/svg+xml;base64,") == len(charts)
    for chart in charts:
        assert chart.reading.strip().endswith(".")
        assert f"### {chart.title}" in got


def test_nothing_of_a_machine_stands_in_the_pages() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"(?<![\w.<:/])/(?:home|root|work|opt|tmp|usr|mnt)/", text), named(page)
        assert "localhost" not in text


# ----------------------------------------------------------------------------------------------------------- mkdocs


def test_the_site_is_built_without_a_warning(tmp_path: Path, trainings: Memo) -> None:
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("material") is None:
        pytest.skip("mkdocs-material is not installed, so the site was not built: pip install 'trueup[docs]'.")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    with within(Session(trainings)):  # its charts are of planted cases
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True))
    for page in ALL:
        built = named(page).removesuffix(".md").removesuffix("index")
        html = (tmp_path / "site" / built / "index.html").read_text(encoding="utf-8")
        assert "<!-- trueup:" not in html, named(page)
        assert "fonts.googleapis" not in html
    assert not (tmp_path / "site" / "hooks.py").exists()


def test_the_marks_of_the_tour_are_known() -> None:
    for block in blocks(DOCS / "tour.md"):
        assert mark_is_known(block), f"{block.at}: mark the block 'run: fast', 'run: slow' or 'not run: why'"


def mark_is_known(block: Block) -> bool:
    return bool(re.fullmatch(r"run: (fast|slow)(, exit 0 or 1|, without trueup)?|not run: .+", block.mark))
