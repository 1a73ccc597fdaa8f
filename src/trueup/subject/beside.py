"""trueup's own card beside an adapter: what it holds, read as untrusted input. No torch: it is read before any model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trueup.store import schema
from trueup.store.schema import FLAG, TEXT, lists, number, optional, record, whole

CARD = "trueup.json"
"""What trueup adds beside PEFT's two files: class names, template, seed, fingerprints. PEFT ignores it."""


def read_card(folder: Path | None) -> dict[str, Any]:
    """trueup's own card beside an adapter, or an empty dict."""
    path = folder / CARD if folder else None
    if path is None or not path.is_file():
        return {}
    card = schema.read(
        path, _CARD, otherwise="Delete it, or save the adapter again.", correct="Correct it, or delete '{at}'."
    )
    return {k: v for k, v in card.items() if v is not None}


_TRAINING = {
    "lr": optional(number(0)), "epochs": whole(1), "batch": whole(1), "warmup": number(0, 1), "weight_decay": number(0),
    "clip": number(0), "validation": number(0, 1), "patience": whole(1), "save_every": whole(1),
}  # fmt: skip
_CARD = record({
    "classes": optional(lists(TEXT)), "max_length": optional(whole(4)), "adapter": optional(TEXT), "repairs": optional(TEXT),
    "made_for": optional(TEXT), "words": optional(FLAG),
    "sigmoid": optional(FLAG),
    "template": optional(record({
        "text": TEXT, "words": lists(TEXT), "chat": FLAG, "header": TEXT,
        "shots": optional(record({"number": whole(0, 10_000)}, needed=("number",))),
    }, needed=("text", "words"))),
    "tuned": optional(record({
        "data": optional(TEXT), "seed": optional(whole(0, 2**32 - 1)), "limit": optional(whole()), "train": optional(TEXT),
        "cluster": optional(TEXT), "also": optional(lists(TEXT)), "training": optional(record(_TRAINING)),
    })),
})  # fmt: skip
"""What trueup reads of a card again; it may have been edited by hand, or come from the hub."""
