"""The law of costs: its counts are a model's own, and its fit gives back what the rows were made with."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from trueup.experiments import cost
from trueup.subject.load import load
from trueup.subject.tiny import random_llama

TINY = cost.Shape("tiny", 2, 64, 128, 50, 4, 2)


def rows(rate: float, kept: float, kind: str = "float32") -> list[dict]:
    return [
        {"shape": asdict(s), "type": kind, "texts": n, "tokens": t, "prompt": m, "seconds": cost.work(s, n, t, m) / rate,
         "weights_bytes": s.bytes_in(kind), "pass_bytes": kept * n * (t + m) * s.units}
        for s in cost.MEASURED for n, t, m in cost.POINTS
    ]  # fmt: skip


def test_the_weights_of_a_shape_are_those_of_the_model(tmp_path):
    random_llama(
        tmp_path, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=50,
    )  # fmt: skip
    net = load(str(tmp_path), classes=("a", "b"), device="cpu").base
    norms = sum(p.numel() for n, p in net.named_parameters() if "norm" in n)
    head = sum(p.numel() for n, p in net.named_parameters() if "score" in n)
    assert TINY.inside + TINY.embedded == sum(p.numel() for p in net.parameters()) - norms - head
    assert TINY.bytes_in("float32") == 4 * (TINY.inside + TINY.embedded)
    assert TINY.bytes_in("4 bits") < 0.6 * TINY.inside + 2 * TINY.embedded


def test_the_fit_gives_back_what_the_rows_were_made_with():
    found = cost.law([*rows(1e10, 8.0), *rows(3e10, 4.0, "bfloat16")])
    assert found["float32"] == pytest.approx((1e10, 1.0, 8.0))
    assert found["bfloat16"] == pytest.approx((3e10, 1.0, 4.0))
    slow = rows(1e10, 8.0)
    slow[0]["seconds"] *= 4
    assert cost.law(slow)["float32"][1] > 3, "the control: a row off the law is told"


def test_a_prompt_counts_as_its_tokens():
    assert cost.work(TINY, 4, 32, 96) == cost.work(TINY, 4, 128, 0) == 2 * TINY.inside * 512


def test_what_is_carried_on_is_marked():
    told = cost.table({"rows": rows(1e10, 8.0)})
    assert "extrapolated, not measured" in told
    assert "| 8B | 16 GB |" in told or "| 8B | 15 GB |" in told
    assert "The times of the last table assume" in told


def test_it_is_measured_in_a_process_of_its_own(tmp_path):
    got = cost.run(
        tmp_path / "out", cost.Settings((TINY,), ("float32", "bfloat16"), ((2, 8, 0), (2, 8, 8))), say=lambda s: None
    )
    assert [(r["type"], r["prompt"]) for r in got["rows"]] == [(k, m) for k in ("float32", "bfloat16") for m in (0, 8)]
    assert all(r["seconds"] > 0 for r in got["rows"])
    assert (tmp_path / "out" / "cost.md").read_text() == cost.table(got)
