"""What a run takes from where it is started, and whom it tells of it: no module of the current folder, and nobody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

GUARD = """
import json, os, sys

def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "subprocess.Popen"):
        if event == "socket.connect" and isinstance(args[1], (str, bytes)):
            return  # a socket of this machine
        if event == "subprocess.Popen" and str(args[0]).endswith("ldconfig"):
            return  # which libraries this machine has: torch 2.14 asks
        with open(os.environ["TRIED"], "a") as f:
            f.write(f"{event} {args!r}"[:200] + chr(10))
        if "STOP" in os.environ:
            os._exit(9)
        raise OSError(101, "Network is unreachable")

sys.addaudithook(watch)
from trueup.cli import main
for words in json.loads(sys.argv[1]):
    try:
        main(words)
    except SystemExit as e:
        print(json.dumps([words, e.code]))
"""
"""The command line, told of by an audit hook that lets nothing out of this machine."""


def guarded(here: Path, commands: list[list[object]], **env: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """What the commands did, one after the other, and each attempt to reach for something outside."""
    tried = here / "tried.txt"
    tried.unlink(missing_ok=True)
    words = json.dumps([[str(w) for w in command] for command in commands])
    plain = {k: v for k, v in os.environ.items() if "OFFLINE" not in k}
    done = subprocess.run(
        [sys.executable, "-c", GUARD, words], cwd=here, capture_output=True, text=True, check=False,
        env=plain | {"TRIED": str(tried), "TRUEUP_CACHE": str(here / "cache"), "HF_HOME": str(here / "hf")} | env,
    )  # fmt: skip
    return done, tried.read_text().splitlines() if tried.exists() else []


REACHES = {
    "base": ("check", "org-nobody/model", "--data", "data.csv", "-o", "out"),
    "adapter": ("check", "BERT", "--adapter", "org-nobody/adapter", "--data", "data.csv", "-o", "out"),
    "data": ("check", "BERT", "--data", "org-nobody/data", "-o", "out"),
    "embedded model": ("tune", "lora", "embedded:minilm", "--data", "data.csv", "-o", "out"),
    "embedded data": ("tune", "lora", "BERT", "--data", "embedded:tweets", "-o", "out"),
    "push": ("repair", "overconfidence", "BERT", "--data", "data.csv", "-o", "out", "--push-to-hub", "org-nobody/x"),
    "fetch": ("fetch", "minilm"),
}


def commands(world: Path, here: Path, *names: str) -> list[list[object]]:
    (here / "data.csv").write_bytes((world / "data.csv").read_bytes())
    return [[world / "bert" if w == "BERT" else w for w in REACHES[name]] for name in names]


def refusals(done: subprocess.CompletedProcess[str]) -> list[int]:
    """The exit code of each command, once it is known that each said one sentence."""
    codes = [json.loads(line)[1] for line in done.stdout.splitlines()]
    said = done.stderr.splitlines()
    assert len(said) == len(codes), done
    assert all(line.startswith("trueup: ") for line in said), done
    return codes


def test_offline_means_no_attempt_at_all(world: Path, here: Path) -> None:
    asked = commands(world, here, *REACHES)
    # The option stands before the command, or behind it.
    asked = [["--offline", *c] if i % 2 else [*c, "--offline"] for i, c in enumerate(asked)]
    done, tried = guarded(here, asked)
    assert tried == []
    assert refusals(done) == [2] * len(REACHES)
    assert not (here / "out").exists()


@pytest.mark.parametrize("name", ["base", "embedded model"])
def test_without_it_there_is_an_attempt(world: Path, here: Path, name: str) -> None:
    """The control: the guard sees what is tried."""
    done, tried = guarded(here, commands(world, here, name), STOP="1")
    assert (done.returncode, len(tried)) == (9, 1), done


def test_the_hubs_own_variable_keeps_from_the_hub(world: Path, here: Path) -> None:
    done, tried = guarded(here, commands(world, here, "base", "adapter", "data"), HF_HUB_OFFLINE="1")
    assert (refusals(done), tried) == ([2, 2, 2], [])


PLAIN = {
    k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"
}  # which a command run in this process leaves here


@pytest.mark.parametrize("module", ["safetensors", "typer", "shlex"])
def test_modules_beside_the_data_are_not_imported(here: Path, module: str) -> None:
    (here / f"{module}.py").write_text("import os\nopen('ran', 'w').close()\nos._exit(9)\n")
    words = ["-m", "trueup", "report", "no-such-folder"]
    done = subprocess.run([sys.executable, *words], cwd=here, capture_output=True, text=True, check=False, env=PLAIN)
    assert (done.returncode, (here / "ran").exists()) == (2, False), done
    # The control: Python itself looks there first.
    done = subprocess.run([sys.executable, "-c", f"import {module}"], cwd=here, check=False, env=PLAIN)
    assert (done.returncode, (here / "ran").exists()) == (9, True)


def test_processes_of_a_sweep_import_none_either(world: Path, here: Path) -> None:
    for module in ("multiprocessing", "struct", "safetensors", "pickle"):
        (here / f"{module}.py").write_text("import os\nopen('ran', 'w').close()\nos._exit(9)\n")
    cell = {
        "model": str(world / "bert"),
        "adapter": str(world / "adapter"),
        "data": str(world / "data.csv"),
        "limit": 200,
    }
    sweep = {"steps": "audit", "defaults": cell | {"max_length": 32}, "matrix": {"seed": [0, 1]}}
    (here / "sweep.yaml").write_text(json.dumps(sweep))
    command = Path(sys.executable).parent / "trueup"
    env = PLAIN | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    words = [command, "sweep", "sweep.yaml", "-o", "out", "--workers", "2"]
    done = subprocess.run(words, cwd=here, capture_output=True, text=True, check=False, env=env)
    assert not (here / "ran").exists(), done
    assert done.returncode in (0, 1), done


def test_nobody_is_told_unless_the_user_says_so(here: Path) -> None:
    code = (
        "import os, sys\nfrom trueup.cli import main\ntry:\n    main(['--version'])\nexcept SystemExit:\n    pass\n"
        "from huggingface_hub import constants\nprint(constants.HF_HUB_DISABLE_TELEMETRY)\n"
    )
    for given, off in (({}, "True"), ({"HF_HUB_DISABLE_TELEMETRY": "0"}, "False")):
        env = {k: v for k, v in os.environ.items() if "TELEMETRY" not in k and "OFFLINE" not in k} | given
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
        assert done.stdout.splitlines()[-1] == off


def test_waiting_threads_sleep_unless_the_user_says_otherwise() -> None:
    """The library that runs torch's threads reads it when it is loaded, so it has to be there before torch is."""
    code = (
        "import os, sys\nfrom trueup.cli import main\ntry:\n    main(['--version'])\nexcept SystemExit:\n    pass\n"
        "print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)\n"
    )
    for given, policy in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        env = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | given
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
        assert done.stdout.splitlines()[-1] == f"{policy} False"
