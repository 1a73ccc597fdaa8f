"""A repair that is an adapter: the same files on disk and on a live model. Shared by every fault whose repair is one."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from trueup.errors import BadInput
from trueup.faults.fault import Remedy
from trueup.store import atomic
from trueup.subject import adapter as files
from trueup.subject.subject import Head, Subject, model_fingerprint
from trueup.subject.wear import wear


@dataclass(frozen=True, eq=False)
class Adapted(Remedy):
    """The subject with another adapter in place of its own.

    Attributes:
        fault: the fault it repairs. made_for: fingerprint of the model it was made for.
        settings, tensors: the PEFT adapter.
        head: stands in for the last layer of a subject that answers with words, whose repaired head is saved as that of
            a sequence classifier on the same base; None elsewhere.
        card: what is written beside the adapter: the choice and what was tried.
    """

    fault: str
    made_for: str
    settings: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    head: Head | None
    card: Mapping[str, Any]

    @contextlib.contextmanager
    def on(self, subject: Subject) -> Iterator[Subject]:
        if model_fingerprint(subject.model) != self.made_for:
            raise BadInput(
                f"This repair of {self.fault} was made for another model or adapter (the weights differ). Load the adapter it "
                f"was made for, or repair this one: `trueup repair {self.fault} MODEL --adapter DIR --data ...`."
            )
        if self.head is not None:
            here = Head(self.head.weight.to(subject.device), self.head.bias.to(subject.device))
            yield replace(subject, head=here)
        else:
            yield wear(subject, self.settings, self.tensors)

    def save(self, folder: Path) -> Path:
        folder = Path(folder)
        with atomic.new_folder(folder, force=folder.exists()) as new:
            files.write_adapter(new, self.settings, self.tensors)
            card = dict(self.card) | {"repairs": self.fault, "made_for": self.made_for, "words": self.head is not None}
            atomic.write_json(new / files.CARD, card)
            atomic.write_text(new / "README.md", _readme(self))
        return folder

    def describe(self) -> str:
        return str(self.card["describe"])


def adapted(
    fault: str, subject: Subject, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], card: Mapping[str, Any],
    *, head: Head | None = None,
) -> Adapted:  # fmt: skip
    """The remedy for `subject` that is this adapter. `card` says what was chosen; how to load it is added here."""
    template = None if subject.template is None else asdict(subject.template)
    about = {
        "classes": list(subject.classes), "base": subject.source.base, "adapter": subject.source.adapter,
        "revision": subject.source.revision, "max_length": subject.max_length, "shape": template,
        "dtype": str(next(subject.model.parameters()).dtype).removeprefix("torch."),
    }  # fmt: skip
    # A user may go on from the repaired adapter: what the loader reads in a card of its own stands here as well.
    if template is not None and head is None:
        about["template"] = template
    return Adapted(fault, model_fingerprint(subject.model), settings, tensors, head, about | dict(card))


def with_head(fault: str, subject: Subject, head: Head, card: Mapping[str, Any]) -> Adapted:
    """The remedy for `subject` that is another last layer.

    Raises:
        Unsupported: as `subject.adapter.adapter_with_head`.
    """
    settings, tensors = files.adapter_with_head(subject, head)
    return adapted(fault, subject, settings, tensors, card, head=head if subject.template is not None else None)


def read_adapted(fault: str, folder: Path, subject: Subject) -> Adapted:
    """The remedy that `Adapted.save` wrote.

    Raises:
        BadInput: the folder holds no repair of this fault, or is damaged.
    """
    folder = Path(folder)
    card = files.read_card(folder)
    if card.get("repairs") != fault or "made_for" not in card:
        raise BadInput(f"'{folder}' holds no repair of {fault} saved by trueup; give the folder of a saved remedy.")
    atomic.verify(folder)
    tensors = load_file(str(folder / "adapter_model.safetensors"))
    settings = json.loads((folder / "adapter_config.json").read_text())
    head = files.head_in(tensors, subject.anatomy) if card["words"] else None
    rest = {k: v for k, v in card.items() if k not in ("repairs", "made_for", "words")}
    return Adapted(fault, card["made_for"], settings, tensors, head, rest)


def _readme(remedy: Adapted) -> str:
    card = remedy.card
    base, names = json.dumps(card["base"]).replace("`", "'"), card["classes"]
    classes = ", ".join(json.dumps(n, ensure_ascii=False).replace("`", "'") for n in names)
    shape = card.get("shape")
    words = shape if remedy.head is None else None
    given = [f"dtype={card['dtype']!r}"] + ([f"revision={card['revision']!r}"] if card.get("revision") else [])
    if not words:
        given = [f"num_labels={len(names)}", "ignore_mismatched_sizes=True", *given]
    kind = "CausalLM" if words else "SequenceClassification"
    text, cut = "text", f", truncation=True, max_length={card['max_length']}"
    if shape is not None:
        text, cut = f"{shape['text']!r}.replace('{{text}}', text, 1)", ""
    read = "label = model(**inputs).logits.argmax(-1)"
    if words:
        read = (
            f"words = [tok(w, add_special_tokens=False)['input_ids'][0] for w in {list(words['words'])!r}]\n"
            "label = model(**inputs).logits[:, -1, words].argmax(-1)"
        )
    where = f"`BASE` is {base}"
    if str(card["base"]).startswith("embedded:"):
        where += ", a folder in trueup's cache (`trueup.subject.load.resolve` names it; a copy of it serves anywhere)"
    rows = "\n".join(
        f"| {r['title']} | {r['variant']} | {r['level']:.3f} | {r['here']:.3f} | {r['mirrored']:.3f} | "
        f"{r['severity']:+.3f} [{r['low']:+.3f}, {r['high']:+.3f}] |"
        for r in sorted(card.get("candidates", ()), key=lambda r: -r["level"])
    )
    tried = (
        "\n## What was tried\n\nAUPRC on calibration examples weighted to other mixes, and the paired difference of the drop "
        "under a reversed coupling to the adapter as it was.\n\n"
        "| repair | setting | all mixes | as here | reversed | change of the drop [95%] |\n|---|---|---|---|---|---|\n"
        f"{rows}\n"
        if rows
        else ""
    )
    return f"""---
library_name: peft
base_model: {base}
tags: [trueup, {remedy.fault}, text-classification]
---

# A repaired adapter ({remedy.fault})

{remedy.describe()}

Classes, in the order of the logits: {classes}. No trueup is needed:

```python
from transformers import AutoModelFor{kind}, AutoTokenizer
from peft import PeftModel
base = AutoModelFor{kind}.from_pretrained(BASE, {", ".join(given)})
model, tok = PeftModel.from_pretrained(base, FOLDER).eval(), AutoTokenizer.from_pretrained(BASE)
inputs = tok({text}, return_tensors="pt"{cut})
{read}
```

{where}. Give one text at a time, or pad as PEFT can bear it for this kind of adapter.
{tried}"""
