"""Some cells of the matrix, each family and each kind in at least one: the others are run by ``python tests/matrix/matrix.py``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import torch

import matrix
from trueup.run import forward
from trueup.subject.anatomy import FAMILIES

CELLS = [
    matrix.Cell(f, matrix.KINDS[i % len(matrix.KINDS)], "words" if FAMILIES[f].causal and i % 2 else "head")
    for i, f in enumerate(FAMILIES)
]
LIVE = matrix.Cell("bert", "lora", "head")


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_cell(cell: matrix.Cell, base_of: Callable[[str], Path], tmp_path: Path) -> None:
    counts = matrix.Counts()
    matrix.run(counts, cell, base_of(cell.family), tmp_path / "cell")
    assert not counts.wrong
    assert counts.refused["cell"] or counts.held["batch"] == 12, "of two number types and two sides, three batches"
    print(f"{cell}: {dict(counts.held)}, refused: {dict(counts.refused)}")


@pytest.mark.parametrize("mode", ["head", "words"])
def test_what_a_live_model_is_asked_is_examined(mode: str, base_of: Callable[[str], Path], tmp_path: Path) -> None:
    """A check that is refused at once leaves every model as it was."""
    cell, counts = matrix.Cell("gpt2", "lora", mode), matrix.Counts()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrix, "ENDS", {"success": None})
        matrix.restored(
            counts, cell, matrix.adapted(cell, base_of(cell.family), tmp_path / "made"), ("overconfidence",)
        )
    assert counts.held == {"live model": 1}
    assert not counts.refused


@pytest.mark.parametrize("fault", ["overconfidence"])
def test_a_live_model_is_as_it_was(fault: str, base_of: Callable[[str], Path], tmp_path: Path) -> None:
    counts = matrix.Counts()
    matrix.restored(counts, LIVE, matrix.adapted(LIVE, base_of(LIVE.family), tmp_path / "made"), (fault,))
    assert not counts.wrong
    assert counts.held["live model"] == 9, "it ends well once, and in four other ways early and late"


def test_a_soft_prompt_on_a_decoder_is_examined_where_memory_runs_out(
    base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """What PEFT says of it in padded batches is told beside the findings. That pass cannot be halved, and they do not need it."""
    cell, counts = matrix.Cell("gpt2", "prompt", "head"), matrix.Counts()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrix, "ENDS", {"success": None, "memory ran out": matrix._memory})
        made = matrix.adapted(cell, base_of(cell.family), tmp_path / "made")
        matrix.restored(counts, cell, made, ("overconfidence",))
    assert not counts.wrong
    assert counts.held == {"live model": 3}


def test_the_cells_cover_all() -> None:
    assert {c.family for c in CELLS} == set(FAMILIES)
    assert {c.kind for c in CELLS} == set(matrix.KINDS)


# ------------------------------------------------------------------------------------------------- what the checks see


def test_a_batch_that_shows_is_seen(
    base_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the batch: tokens of padding that are read as words."""
    cell, real = matrix.Cell("bert", "lora", "head"), forward.collate

    def collate(*given: Any, **more: Any) -> Any:
        batch = real(*given, **more)
        return matrix.replace(batch, mask=torch.ones_like(batch.mask))

    made, counts = matrix.adapted(cell, base_of("bert"), tmp_path / "made"), matrix.Counts()
    monkeypatch.setattr(forward, "collate", collate)
    with matrix.within(matrix.replace(matrix.session(), memo=None)):
        matrix.no_batch(counts, cell, made)
    assert counts.held["batch"] == 4, "of two number types and two sides, the batches of one text"
    assert len(counts.wrong) == 8


def test_a_model_that_was_changed_is_seen(base_of: Callable[[str], Path], tmp_path: Path) -> None:
    """The control of the live model."""
    cell = matrix.Cell("bert", "lora", "head")
    made = matrix.adapted(cell, base_of("bert"), tmp_path / "made")
    for change in (
        lambda m: m.register_forward_hook(lambda *_: None),
        lambda m: m.eval(),
        lambda m: next(p for p in m.parameters() if p.requires_grad).requires_grad_(False),
        lambda m: next(m.parameters()).data.add_(1e-6),
        lambda m: m.zero_grad(),
        lambda m: setattr(m.get_base_model().config, "pad_token_id", 1),
        lambda m: torch.rand(1),
    ):
        model, tokenizer = matrix.live(cell, made)
        before = matrix.state(model, tokenizer)
        assert matrix.state(model, tokenizer) == before
        change(model)
        assert matrix.state(model, tokenizer) != before
