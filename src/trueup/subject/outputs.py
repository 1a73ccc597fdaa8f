"""What the files of a model and of an adapter say of the classes, read before any library of models is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trueup.errors import BadInput, listing
from trueup.store import schema
from trueup.store.inputs import path_of
from trueup.subject.anatomy import FAMILIES, Anatomy
from trueup.subject.places import SETTINGS, WEIGHTS

MULTI_LABEL = "multi_label_classification"
"""The ``problem_type`` of a config whose head gives each text any number of labels."""


@dataclass(frozen=True)
class Outputs:
    """The classification head that a check will read.

    Attributes:
        classes: how many classes it chooses between; a head of one logit chooses between two.
        names: their names, in the order of the logits; empty where no file names them.
        brought: the adapter brings the head. The names are then the base's, and may be those of another task.
        multi_label: the model's config says that a text can have any number of labels.
    """

    classes: int
    names: tuple[str, ...]
    brought: bool
    multi_label: bool


def model_config(model: str, revision: str | None = None) -> dict[str, Any]:
    """What the config.json of a model holds; empty where it is not on this machine, or is no object."""
    if model.startswith("embedded:"):
        from trueup.subject.embedded import MODELS

        return {"model_type": MODELS[model.removeprefix("embedded:")].family, "architectures": []}  # none has a head
    file: Any = path_of(model) / "config.json"
    if not path_of(model).exists():
        from huggingface_hub import try_to_load_from_cache

        with suppress(ValueError):  # no name that the hub could know
            file = try_to_load_from_cache(model, "config.json", revision=revision)
    return _json(file) if isinstance(file, str | Path) else {}


def family_of(config: Mapping[str, Any]) -> Anatomy | None:
    """The family of a config; None where it is not among those of the table, whose parts only the model itself shows."""
    return FAMILIES.get(str(config.get("model_type")))


def outputs_of(config: Mapping[str, Any], adapter: Path | None, card: Mapping[str, Any]) -> Outputs | None:
    """The head of a model of this config with the adapter in a folder, and trueup's `card` beside that; None where their files do
    not say what it will be."""
    family = family_of(config)
    if family is None or not family.head or "score" in card:
        return None
    brought = 0
    if adapter is not None:
        if not (adapter / WEIGHTS).is_file() or _json(adapter / SETTINGS).get("task_type") == "CAUSAL_LM":
            return None
        brought, _ = _head_in(_shapes(adapter / WEIGHTS), family)
    labels = config.get("id2label")
    labels = labels if isinstance(labels, dict) else {}
    rows = brought or len(labels) or config.get("num_labels") or 2
    architectures = str(config.get("architectures"))
    kind = None if brought else config.get("problem_type")
    if type(rows) is not int or kind == "regression" or not (brought or "ForSequenceClassification" in architectures):
        return None
    try:
        ordered = {int(k): str(v) for k, v in labels.items()}
    except (TypeError, ValueError):
        return None
    names = card.get("classes") or own_names(ordered, rows)
    if names == tuple(map(str, range(max(rows, 2)))):
        names = ()
    return Outputs(max(rows, 2), tuple(names), bool(brought) and not card.get("classes"), kind == MULTI_LABEL)


def own_names(labels: Mapping[int, Any] | None, rows: int) -> tuple[str, ...]:
    """The class names of a classifier of `rows` outputs: those of its config's ``id2label`` where they are names, else ``0``, ``1``
    ...; two of a single output."""
    names = tuple(str(v) for _, v in sorted((labels or {}).items()))
    named = len(names) == rows and not all(n.startswith("LABEL_") for n in names)
    if rows == 1:
        return (f"not {names[0]}", names[0]) if named else ("0", "1")
    return names if named else tuple(str(i) for i in range(rows))


def no_head(model: str, adapter: str | None) -> BadInput:
    """The refusal of a model that is asked as a classifier, where neither it nor its adapter has a head."""
    words = "For a causal model that answers with a word, give --template and --verbaliser"
    if adapter:
        return BadInput(
            f"The adapter '{adapter}' has no classification head. {words}. If it was trained as a classifier, its head was neither "
            'trained nor saved: modules_to_save=["classifier"] (or the name of the head) in its config does both, and so does '
            'task_type="SEQ_CLS" with get_peft_model, but not with add_adapter of transformers. Train it again so, or with trueup: '
            f"`trueup tune lora {model} --data ...`."
        )
    return BadInput(
        f"'{model}' has no classification head. {words}; otherwise train a classifier first: `trueup tune lora {model} --data ...`."
    )


def does_not_fit(adapter: str, model: str, made_for: object) -> str:
    """How the refusal of an adapter begins that was made for another base. `made_for`: the base that its settings name."""
    whose = f" (it says it was made for '{made_for}')" if made_for else ""
    return f"The adapter '{adapter}' does not fit '{model}'{whose}"


def other_head(adapter: str, model: str, made_for: object, family: str) -> BadInput:
    """The refusal of an adapter whose head is that of another family than the model's."""
    return BadInput(
        f"{does_not_fit(adapter, model, made_for)}: its classification head is not one of '{family}'. Give the base model it was "
        "trained on."
    )


def check_base(config: Mapping[str, Any], adapter: Path, called: str, model: str) -> None:
    """Raises BadInput where the head in an adapter's file was surely made for another base than one of this config.

    Args:
        called: how the user gave the adapter.
    """
    family = family_of(config)
    if family is None or not (adapter / WEIGHTS).is_file():
        return
    made_for, shapes = _json(adapter / SETTINGS).get("base_model_name_or_path"), _shapes(adapter / WEIGHTS)
    rows, columns = _head_in(shapes, family)
    if not rows and any(_head_in(shapes, other)[0] for other in FAMILIES.values()):
        raise other_head(called, model, made_for, family.model_type)
    # The head of some families reads another width than that of the layers; the model itself then shows whether it fits.
    named = {config.get(k) for k in (family.width, "word_embed_proj_dim", "pooler_hidden_size") if k in config}
    if rows and len(named) == 1 and type(width := named.pop()) is int and width != columns:
        raise BadInput(
            f"{does_not_fit(called, model, made_for)}: its classification head reads {columns} numbers a text, and the layers of "
            f"the model are {width} wide. Give the base model it was trained on."
        )


def headless(config: Mapping[str, Any]) -> bool:
    """Whether a model of this config has certainly no classification head."""
    architectures = config.get("architectures")
    return isinstance(architectures, list) and not any(
        str(a).endswith("ForSequenceClassification") for a in architectures
    )


def check_names(names: Sequence[str], rows: int) -> None:
    """Raises BadInput when there is not one class name for each of `rows` classes."""
    if len(names) != rows:
        raise BadInput(
            f"The classifier has {rows} classes, but {len(names)} class names were given: {listing(names)}. "
            "Give one name per class, in the order of its logits."
        )


def _json(file: Path | str) -> dict[str, Any]:
    """The object that a JSON file holds; empty where it holds none. Who needs the file reads it again, and says what is wrong."""
    with suppress(OSError, ValueError, RecursionError, BadInput):
        held = json.loads(schema.plain_bytes(Path(file)))
        return held if isinstance(held, dict) else {}
    return {}


def _shapes(weights: Path) -> dict[str, list[int]]:
    """The shape of each tensor in an adapter's file, by its header; empty where it cannot be read, which who loads it says."""
    from safetensors import SafetensorError, safe_open

    with suppress(OSError, SafetensorError, ValueError), safe_open(str(weights), "np") as saved:
        return {k: list(saved.get_slice(k).get_shape()) for k in saved.keys()}  # noqa: SIM118
    return {}


def _head_in(shapes: Mapping[str, Sequence[int]], family: Anatomy) -> tuple[int, int]:
    """Rows and columns of the head of a family among an adapter's tensors; twice 0 where there is none."""
    ends = f".{family.head}.weight"
    head = next((of for k, of in shapes.items() if family.head and k.endswith(ends) and len(of) == 2), (0, 0))
    return int(head[0]), int(head[1])
