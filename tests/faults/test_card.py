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
    assert "**Reduced**. The verdict is found before the repair and found after it (threshold 0.05)." in text
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


def test_the_hub_is_told_the_licence_the_base_and_the_data():
    measured = comparison()
    origin = {"id": "org/reviews", "config": "en", "split": "train+test", "revision": "abc1234"}
    told = replace(measured.before, provenance={**measured.before.provenance, "dataset": origin})
    data = ModelCard(page(replace(CARD, licence="apache-2.0"), replace(measured, before=told))).data
    assert data.to_dict()["license"] == "apache-2.0"
    assert "base_model:adapter:org/model" in data.to_dict()["tags"]
    assert data.to_dict()["base_model_relation"] == "adapter"
    results = data.eval_results
    assert {(r.dataset_type, r.dataset_config, r.dataset_split, r.dataset_revision) for r in results} == {
        ("org/reviews", "en", "train+test", "abc1234")
    }
    without = ModelCard(page(replace(CARD, base="/a/folder"), measured)).data
    assert "license" not in without.to_dict()
    assert not [t for t in without.to_dict()["tags"] if t.startswith("base_model:")]
    assert {r.dataset_type for r in without.eval_results} == {"held-out"}


def test_the_licence_is_read_off_the_bases_own_card(tmp_path):
    from trueup.subject.hub import licence_of

    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    assert licence_of(str(tmp_path)) == "mit"
    (tmp_path / "README.md").write_text("---\nlicense: [a, b]\n---\n")
    assert licence_of(str(tmp_path)) == ""
    assert licence_of(str(tmp_path / "nothing")) == ""
    assert licence_of("embedded:minilm") == ""


def test_what_does_not_work_is_said_before_all_else():
    text = page(replace(CARD, warning="`pipeline`."), None)
    assert 0 < text.index("> **What does not work:** `pipeline`.") < text.index("It repairs.")
    assert "What does not work" not in page(CARD, None)
