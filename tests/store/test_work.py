"""One run at a time in a folder, and what becomes of the work it has finished."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from trueup.errors import BadInput, Unavailable
from trueup.store.work import work_folder

HOLDER = """
import sys
from pathlib import Path
from trueup.store.work import work_folder
with work_folder(Path(sys.argv[1])) as work:
    work.mkdir()
    print("held", flush=True)
    sys.stdin.read()
"""


def begin(out: Path) -> None:
    with work_folder(out) as work:
        work.mkdir(exist_ok=True)


def test_a_second_run_is_refused_while_the_first_lives_and_goes_on_after_it(tmp_path):
    out = tmp_path / "new" / "out"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(
            BadInput, match=f"Another run is writing '{out}': process {holder.pid} on {platform.node()}"
        ):
            begin(out)
        with pytest.raises(BadInput, match="Another run"):
            begin(Path(os.path.relpath(out)))
        assert (out.parent / ".out.work").is_dir(), "the first one's work is where it was"
        begin(tmp_path / "new" / "beside")
    finally:
        holder.kill()
        holder.wait()
    begin(out)  # it has died, however young its lock is
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize(("error", "kept"), [(BadInput, False), (Unavailable, True), (KeyboardInterrupt, True)])
def test_finished_work_is_kept_but_after_input_that_cannot_be_used(tmp_path, error, kept):
    def work():
        with work_folder(tmp_path / "out") as folder:
            folder.mkdir()
            raise error("said")

    with pytest.raises(error):
        work()
    assert [p.name for p in tmp_path.iterdir()] == [".out.work"] * kept
