"""A check by several processes: the folder that one process writes, to the byte, and a sentence where they are not alike."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli_cases import check_words, files_of, reviews, write_csv

from trueup.run.processes import Processes, processes

SMALL = "import trueup.run.predict\ntrueup.run.predict.TOKENS = 300\n"
"""Of these short texts one batch would hold all."""
LOG = f"""{SMALL}
import trueup.run.forward
own = trueup.run.forward.collate
def collate(rows, pad):
    with open("rows-" + os.environ["RANK"], "a") as out:
        out.write(str(len(rows)) + "\\n")
    return own(rows, pad)
trueup.run.forward.collate = collate
"""


def launched(*words: object, count: int = 2, data: str = "", before: str = "") -> subprocess.CompletedProcess[str]:
    """`trueup WORDS` by `count` processes; `data`: a file in place of DATA for the last of them. `before`: what each runs first.

    Not accelerate's own launcher: on a processor it starts one process, whatever it is told. It sets what this one sets.
    """
    program = [sys.executable]
    if count > 1:
        program += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    code = (
        f"import os, sys\n{before}\nfrom trueup.cli import main\n"
        f"last = os.environ.get('RANK') == '{count - 1}'\n"
        f"main([{data!r} if last and {data!r} and w == 'DATA' else 'data.csv' if w == 'DATA' else w for w in sys.argv[1:]])\n"
    )
    file = Path("launched.py")
    file.write_text(code)
    return subprocess.run(
        [*program, str(file), *map(str, words)], capture_output=True, text=True, timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.fixture
def words(world: Path, here: Path) -> list[object]:
    (here / "data.csv").write_bytes((world / "data.csv").read_bytes())
    return [w if w != world / "data.csv" else "DATA" for w in check_words(world)]


@pytest.mark.slow
def test_two_processes_write_the_folder_of_one(words: list[object], here: Path):
    one = launched(*words, "-o", "one", count=1, before=SMALL)
    two = launched(*words, "-o", "two", before=SMALL)
    assert one.returncode == two.returncode, two.stderr[-2000:]
    assert two.stdout.count("Report: ") == 1, "only the first one prints"
    assert two.stdout.replace("two", "one") == one.stdout
    assert files_of(here / "one") == files_of(here / "two")
    assert {p.name for p in here.iterdir()} == {"data.csv", "launched.py", "one", "two"}


@pytest.mark.slow
def test_each_makes_its_part_of_the_passes(words: list[object], here: Path):
    """The positive control: three processes, each with a log of the texts that it ran."""
    done = launched("audit", "overconfidence", *words[1:-1], "-o", "three", count=3, before=LOG)
    assert done.returncode in (0, 1), done.stderr[-2000:]
    ran = [sum(map(int, (here / f"rows-{i}").read_text().split())) for i in range(3)]
    texts = json.loads((here / "three" / "findings.json").read_text())["provenance"]["examples"]
    assert max(ran) < 0.8 * sum(ran), f"the texts were shared: {ran}"
    assert sum(ran) < 1.5 * (texts["calibration"] + texts["test"]), f"and none was run by all: {ran} of {texts}"


@pytest.mark.slow
def test_processes_with_other_data_are_refused(words: list[object], here: Path):
    write_csv(here / "other.csv", reviews(300, seed=5))
    done = launched(*words, "-o", "out", data="other.csv")
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("trueup: ")]
    assert len(said) == 1
    assert "Processes 0 and 1 of this run do not have the same data" in said[0]
    assert not (here / "out").exists()


@pytest.mark.slow
def test_what_one_process_cannot_read_is_said_by_the_first(words: list[object], here: Path):
    done = launched(*words, "-o", "out", data="absent.csv")
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("trueup: ")]
    assert len(said) == 1
    assert said[0].startswith("trueup: Process 1 of this run could not go on: ")
    assert "absent.csv" in said[0]
    again = launched(*words, "--fault", "overconfidenc", "-o", "out")
    said = [line for line in again.stderr.splitlines() if line.startswith("trueup: ")]
    assert said == ["trueup: There is no fault 'overconfidenc'. Did you mean 'overconfidence'? There are 'confounding', "
                    "'copying', 'overconfidence', 'rigidity'."]  # fmt: skip


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("number", "said", "code"), [(signal.SIGTERM, "stopped by SIGTERM", 143), (signal.SIGINT, "stopped", 130)]
)
def test_one_process_says_that_the_run_was_stopped(
    rank: int, number: int, said: str, code: int, monkeypatch: pytest.MonkeyPatch
):
    """What one process cannot do ends the others by a signal, which is no news; Ctrl-C reaches all of them."""
    from cli_cases import trueup

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr("trueup.job.read_job", lambda *_: signal.raise_signal(number))
    done = trueup("rerun", "old", "-o", "out")
    assert done.code == code
    assert done.err == ("" if rank else f"trueup: {said}. The same command goes on where it stopped.\n")


def test_what_is_one_process_alone_says_so(monkeypatch: pytest.MonkeyPatch, here: Path):
    from cli_cases import trueup

    monkeypatch.setenv("WORLD_SIZE", "2")
    assert processes() == Processes(0, 2)
    said = trueup("sweep", "x.yaml", "-o", "out")
    assert said.code == 2
    assert "It starts processes of its own: give --workers" in said.err
    said = trueup("scout", "bert", "--data", "x.csv", "-o", "out")
    assert (said.code, "A scout is one process" in said.err) == (2, True)


def test_a_rerun_by_several_processes_speaks_once(monkeypatch: pytest.MonkeyPatch, here: Path):
    from cli_cases import trueup

    said = trueup("rerun", "nowhere", "-o", "out")
    assert (said.code, "'nowhere' is no folder" in said.err) == (2, True)
    monkeypatch.setenv("RANK", "1")
    assert (trueup("rerun", "nowhere", "-o", "out").err) == ""
