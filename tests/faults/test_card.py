"""The model card: read by Hugging Face's own parser, with what was measured, and closed to hostile names."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from huggingface_hub import ModelCard

from trueup.faults.card import Card, cell, page
from trueup.faults.fault import Comparison, Difference, Finding, Measure
from trueup.faults.loading import class_names

CARD = Card(
    "copying", "A repaired adapter", "It repairs.", "org/model", "text-classification", "Classes: a, b.", "x = 1", "`BASE` is it.",
    (("What was tried", "| a |\n|---|\n| b |"),),
)  # fmt: skip


def finding(severity: float, accuracy: float) -> Finding:
    measures = {
        "accuracy": Measure(accuracy, accuracy - 0.1, accuracy + 0.1, "share", "higher", "accuracy"),
        "same": Measure(0.5, 0.4, 0.6, "share", "higher", "left alone"),
        "empty": Measure(float("nan"), float("nan"), float("nan"), "share", "higher", "no value"),
    }
    provenance = {"paper": "arXiv 2410.01288", "departures": ["One | of them."]}
    return Finding(
        "copying", "share", severity, severity - 0.01, severity + 0.01, 0.05, "Found.", measures, provenance=provenance
    )


def comparison() -> Comparison:
    gone = {"severity": Difference(-0.2, -0.3, -0.1, 0.01), "accuracy": Difference(0.1, 0.05, 0.2, 0.01)}
    return Comparison(
        finding(0.3, 0.6), finding(0.1, 0.7), "It repairs.", gone, {"nll": Difference(0.01, -0.1, 0.1, 0.9)}
    )


def test_hugging_face_reads_it():
    card = ModelCard(page(CARD, comparison()))
    data = card.data.to_dict()
    assert data["library_name"] == "peft"
    assert data["base_model"] == "org/model"
    assert data["pipeline_tag"] == "text-classification"
    assert {"trueup", "copying"} <= set(data["tags"])
    metrics = {r.metric_type: r for r in card.data.eval_results}
    assert metrics["severity"].metric_value == pytest.approx(0.1)
    assert "0.09 to 0.11" in metrics["severity"].metric_name
    assert metrics["accuracy"].metric_value == pytest.approx(0.7)
    assert "empty" not in metrics


def test_what_was_measured_stands_in_it_with_intervals():
    text = page(CARD, comparison())
    assert "| severity: share | 0.300 [0.290, 0.310] | 0.100 [0.090, 0.110] | -0.200 [-0.300, -0.100] |" in text
    assert "| accuracy | 0.600 [0.500, 0.700] | 0.700 [0.600, 0.800] | +0.100 [+0.050, +0.200] |" in text
    assert "**Reduced**. The audit before the repair says found, the one after it found (threshold 0.05)." in text
    dear = page(CARD, replace(comparison(), harm={"accuracy": Difference(-0.05, -0.1, -0.01, 0.01)}))
    assert "**Trade-off**: it costs more accuracy than the budget of 2 points." in dear
    assert "left alone" not in text.split("## What was measured")[1].split("##")[0]
    assert "| nll | +0.010 [-0.100, +0.100] |" in text
    assert "arXiv 2410.01288" in text
    for heading in ("How to use it", "What was tried", "Intended use and limits"):
        assert f"## {heading}" in text
    plain = page(CARD, None)
    assert "What was measured" not in plain
    assert "model-index" not in plain
    assert ModelCard(plain).data.library_name == "peft"


@pytest.mark.parametrize("base", ["embedded:minilm", "/a/folder", "./here", "a/b/c", "x: y\n---\n# evil"])
def test_a_base_that_is_no_hub_id_is_not_claimed_to_be_one(base: str):
    text = page(replace(CARD, base=base), None)
    assert "base_model" not in ModelCard(text).data.to_dict()
    assert text.count("\n---\n") == 1


def test_hostile_text_stays_in_its_cell():
    assert cell("a | b\n# c `d` <script>") == "a \\| b # c 'd' &lt;script>"
    assert cell("![x](http://y) \u202eb\x1b[31m") == "!\\[x](http://y) \ufffdb\ufffd\\[31m"


def test_class_names_are_no_markup():
    names = ["no", "[x](http://y)", "**b** <img src=x>", "`a` \u202eb", "two\nlines\x1b[0m"]
    assert class_names(names) == (
        '`"no"`, `"[x](http://y)"`, `"**b** <img src=x>"`, `"\'a\' \ufffdb"`, `"two\\nlines\\u001b[0m"`'
    )
    names = Measure(0.5, 0.4, 0.6, "share", "higher", "x |\n\n```python\nimport os\n```")
    evil = comparison()
    assert evil.after is not None
    before = replace(evil.before, measures={"accuracy": names})
    after = replace(evil.after, measures={"accuracy": replace(names, value=0.55)})
    text = page(CARD, replace(evil, before=before, after=after))
    assert text.count("```python\n") == 1
    assert np.all([line.count(" | ") == 3 for line in text.splitlines() if line.startswith("| x")])
