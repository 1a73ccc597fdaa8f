"""What every test shares: one thread, no network, and a cache folder of its own unless a test is `slow`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from trueup.store.cache import Memo

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
_CHILDREN = str(Path(__file__).parent / "children")
"""The first folder on the path of the processes that tests start: see children/sitecustomize.py."""
if _CHILDREN not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (_CHILDREN, os.environ.get("PYTHONPATH"))))


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Memo:
    """A memory of trainings that all tests of this run share, in whichever of its processes.

    Rigidity's planted case trains 51 adapters. A test takes the memory up by `within(Session(trainings))`, if it is not about
    what is trained.
    """
    from trueup.store.cache import Memo

    base = tmp_path_factory.getbasetemp()
    return Memo((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "trainings")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first: two processes that share the files then end at the same time."""
    items.sort(key=lambda item: item.path.name != "test_real.py")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:
    """A test that needs a prefix on a classifier skips where PEFT cannot run one; test_prefix_ability.py says so loudly."""
    from abilities import prefix_classifiers

    report = yield
    said = (
        str(call.excinfo.value)
        if call.excinfo is not None and type(call.excinfo.value).__name__ == "Unsupported"
        else ""
    )
    if "cannot run an adapter of kind 'PREFIX_TUNING' on a" in said and "ForSequenceClassification" in said:
        if not prefix_classifiers():
            report.outcome, report.longrepr = "skipped", (str(item.path), None, f"Skipped: {said}")
    return report


@pytest.fixture(scope="session")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's tiny base model, made once."""
    from trueup.subject.tiny import make_base

    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            made[family] = make_base(family, tmp_path_factory.mktemp("bases") / family)
        return made[family]

    return get
