"""Whoever does the work, all of it is done once, and a worker's death costs its own piece alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from operator import pow as power
from pathlib import Path

import pytest
from sweep_cases import die, die_once, fail, where

from trueup.errors import BadInput, Unavailable
from trueup.run.engine import Here, Lost, Processes, Ray

ENGINES = [Here(), Processes(1), Processes(2)]


@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_every_piece_is_done_once(engine):
    got = list(engine.each(partial(power, 2), range(7), list("abababa")))
    assert sorted(got) == [(i, 2**i) for i in range(7)]


def test_pieces_of_one_word_follow_each_other():
    order = [i for i, _ in Here().each(partial(power, 2), range(6), list("bababa"))]
    assert order == [1, 3, 5, 0, 2, 4]
    got = dict(Processes(2).each(where, range(6), list("aaabbb")))
    assert len({got[i] for i in range(3)}) == len({got[i] for i in range(3, 6)}) == 1
    assert got[0] != got[3]


@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_what_a_piece_raises_is_raised(engine):
    with pytest.raises(ValueError, match="no 5"):
        list(engine.each(fail, [5], ["a"]))


def test_no_piece_is_no_work():
    assert list(Processes(2).each(fail, [], [])) == []
    with pytest.raises(BadInput, match="0 workers do nothing"):
        Processes(0)


def test_a_worker_that_dies_is_replaced_and_its_piece_tried_again(tmp_path):
    pieces = [(str(tmp_path), n) for n in range(6)]
    assert sorted(Processes(2).each(die_once, pieces, ["a"] * 6)) == [(n, n * n) for n in range(6)]
    assert (tmp_path / "died").exists(), "the control: one did die"


def test_a_piece_that_kills_its_workers_is_lost_and_no_other():
    got = dict(Processes(2).each(die, [("", n) for n in range(6)], ["a"] * 6))
    assert {n: v for n, v in got.items() if n != 3} == {n: n * n for n in range(6) if n != 3}
    assert isinstance(got[3], Lost)
    assert "SIGKILL, as the system does when memory runs out" in got[3].why


def test_workers_end_with_the_process_that_they_work_for(tmp_path):
    mark = tmp_path / "pid"
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from trueup.run.engine import Processes; from sweep_cases import wait_long\n"
        f"if __name__ == '__main__': list(Processes(1).each(wait_long, [{str(mark)!r}], ['a']))\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    parent = subprocess.Popen([sys.executable, str(script)])
    try:
        for _ in range(600):
            if mark.exists() and mark.read_text():
                break
            time.sleep(0.1)
        worker = int(mark.read_text())
        os.kill(worker, 0)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        for _ in range(200):
            if not Path(f"/proc/{worker}").exists() and _gone(worker):
                break
            time.sleep(0.1)
        assert _gone(worker)
    finally:
        parent.kill()


def _gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Unavailable, match=r"pip install 'trueup\[ray\]'"):
        list(Ray().each(partial(power, 2), [1], ["a"]))


@pytest.fixture(scope="module")
def cluster():
    """Three nodes of one core on this machine: separate raylets."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'trueup[ray]'")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.spare = [cluster.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_a_cluster_does_every_piece_though_a_node_is_killed(cluster):
    import ray

    assert sum(n["Alive"] for n in ray.nodes()) == 3
    done = []
    for i, got in Ray(cluster.address).each(partial(power, 2), range(8), ["a"] * 8):
        done.append((i, got))
        if len(done) == 1:
            cluster.remove_node(cluster.spare[0], allow_graceful=False)
    assert sorted(done) == [(i, 2**i) for i in range(8)]
    for _ in range(600):  # the cluster takes its time to notice
        if sum(n["Alive"] for n in ray.nodes()) == 2:
            break
        time.sleep(0.1)
    assert sum(n["Alive"] for n in ray.nodes()) == 2, "the control: one is gone"


def test_gpus_that_no_node_has_are_refused(cluster):
    with pytest.raises(BadInput, match=r"--gpus-per-cell 0\.5 waits for GPUs, and the cluster has 0"):
        list(Ray(cluster.address, gpus=0.5).each(partial(power, 2), [1], ["a"]))


def test_an_unreachable_cluster_says_how_to_start_one(monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def refuse(**_):
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(Unavailable, match=r"no Ray cluster at '192.0.2.1:6379'.*ray start --head"):
        list(Ray("192.0.2.1:6379").each(partial(power, 2), [1], ["a"]))


def test_joining_a_cluster_leaves_the_way_in_which_signals_end_it(monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: signal.signal(signal.SIGTERM, lambda *_: sys.exit(15)))

    def end(number, frame):
        raise AssertionError(number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        Ray("auto")._joined()
        assert signal.getsignal(signal.SIGTERM) is end
    finally:
        signal.signal(signal.SIGTERM, before)
