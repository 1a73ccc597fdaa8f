"""Names of models, adapters and of how weights are loaded, held against what there is before any library of models is loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trueup.errors import BadInput, Unavailable, did_you_mean, listing
from trueup.store.atomic import there
from trueup.store.inputs import near, path_of
from trueup.store.network import unanswered

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""PEFT's two files of an adapter: settings, which make a folder one, and weights."""


_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?", re.ASCII)
"""What an id on the hub looks like, with or without an owner."""

DTYPES = ("float32", "bfloat16", "float16", "auto")
"""Number types by name; ``auto`` is the one in which the weights were saved."""
SHORT = {"fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}
"""Short names of number types, which other libraries take."""
BITS = ("4bit", "8bit")
"""In how many bits a base can be loaded, by name (`trueup.subject.weights.QUANTISED`)."""
MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Device maps that accelerate makes itself, from the memory that is free."""


DEVICES = (
    "cpu", "cuda", "mps", "xpu", "npu", "hpu", "mtia", "mlu", "musa", "maia", "xla", "ipu", "hip", "ve", "vulkan", "privateuseone",
)  # fmt: skip
"""Kinds of device that PyTorch, or a package that extends it, has a name for. A number may follow: ``cuda:1``."""


def check_weights(dtype: Any, quantize: Any, device_map: Any, device: str | None) -> None:
    """Raises BadInput where a name of how weights are loaded is none; what is no name passes (`trueup.subject.weights.Weights`)."""
    if device_map is not None and device is not None:
        raise BadInput("A device map says where each part of the model lies; leave --device out, or the map.")
    if device is not None and not re.fullmatch(rf"({'|'.join(DEVICES)})(:\d+)?", device):
        meant = " Did you mean 'cuda'?" if device == "gpu" else did_you_mean(device, DEVICES)
        raise BadInput(
            f"There is no device '{device}'.{meant} Give cpu, cuda, cuda:1 or mps; without --device the fastest is taken."
        )
    if dtype is not None and dtype not in DTYPES:
        raise BadInput(
            f"There is no number type '{dtype}'.{did_you_mean(SHORT.get(dtype, str(dtype)), DTYPES)} There are {listing(DTYPES)}."
        )
    if not isinstance(quantize, str | Mapping | None):
        raise BadInput(
            f"quantize is {quantize!r} ({type(quantize).__name__}). Give one of {listing(BITS)}, or a dict of settings."
        )
    if isinstance(quantize, str) and quantize not in BITS:
        raise BadInput(
            f"There is no quantisation '{quantize}'.{did_you_mean(quantize, BITS)} There are {listing(BITS)}."
        )
    if isinstance(device_map, str) and device_map not in MAPS and not path_of(device_map).is_file():
        raise BadInput(
            f"'{device_map}' is neither a device map nor a file that holds one.{did_you_mean(device_map, MAPS)} Give one of "
            f'{listing(MAPS)}, or a JSON file such as {{"model.layers.0": "cpu", "": "disk"}}.'
        )


def check_model(where: str, name: str) -> None:
    """Raises BadInput where the folder `where` holds no model, or is none. `name` is how the user gave it; a hub id passes."""
    path = path_of(where)
    if path.is_dir() and not (path / "config.json").is_file():
        if (path / "adapter_config.json").is_file():
            raise BadInput(
                f"'{name}' is a PEFT adapter, not a model. Give the base model first and this folder as --adapter {name}."
            )
        found = sorted(p.name for p in path.iterdir())
        if below := sorted(p.parent.name for p in path.glob("*/config.json")):
            raise BadInput(f"'{name}' holds models in folders below it: {listing(below)}. Give one of these folders.")
        raise BadInput(f"'{name}' holds no model: there is no config.json in it (found {listing(found, 6)}).")
    if path.is_file():
        raise BadInput(f"'{name}' is a file, not a model folder. Give the folder that holds its config.json.")
    if not path.exists() and not _HUB_ID.fullmatch(name):
        raise BadInput(
            f"There is no folder '{name}'.{meant(name, 'config.json')} Check the path, or give a hub id such as 'org/name'."
        )


def meant(name: str, holds: str) -> str:
    """`did_you_mean` of a model or adapter that was not found: a folder beside it with the file `holds`, or an embedded model."""
    similar = near(path_of(name), f"*/{holds}")
    if similar or holds == SETTINGS:
        return similar
    from trueup.subject.embedded import MODELS

    return (
        f" Did you mean 'embedded:{name}'?" if name in MODELS else did_you_mean(name, [f"embedded:{m}" for m in MODELS])
    )


def check_hub_id(name: str, holds: str = "config.json") -> None:
    """Raises Unavailable where the hub is out of bounds (``--offline``) or does not answer, and its cache has nothing of the
    repository `name`. `holds`: the file that makes a folder what is looked for."""
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    home = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")  # as huggingface_hub reads them
    cache = Path(named or f"{home}/hub").expanduser()
    if (cache / f"models--{name.replace('/', '--')}").exists():
        return
    lacking = f"'{name}' is no folder here, and the cache of the Hugging Face Hub ('{cache}') does not have it."
    if offline:
        raise Unavailable(
            f"{lacking} trueup runs offline (--offline or HF_HUB_OFFLINE), so it downloads nothing. Correct the name, or fetch it "
            f"first: `hf download {name}`."
        )
    if (why := unanswered()) is not None:
        raise Unavailable(
            f"{lacking} The hub cannot be reached ({why}).{meant(name, holds)} Check the name and the network, or give a folder."
        )


def adapter_path(adapter: str) -> Path | None:
    """The folder of an adapter; None where it can only be a hub id.

    Raises:
        BadInput: there is no such folder.
    """
    path = path_of(adapter)
    if there(path):
        return path
    if path.is_file():
        raise BadInput(f"The adapter '{adapter}' is a file. Give the folder that holds it: --adapter '{path.parent}'.")
    if path.exists() or adapter.startswith((".", "/", "~")) or adapter.count("/") != 1:
        raise BadInput(
            f"There is no adapter folder '{adapter}'.{near(path, f'*/{SETTINGS}')} Check the path, or give a hub id such as "
            "'org/name'."
        )
    return None


def check_adapter(folder: Path, called: str) -> None:
    """Raises BadInput when `folder` holds no adapter; it names the adapters in folders below, where there are any.

    Args:
        called: how the user gave it.
    """
    if (folder / SETTINGS).is_file():
        return
    below = sorted(
        (p.parent.relative_to(folder) for d in (1, 2) for p in folder.glob("*/" * d + SETTINGS)), key=_in_steps
    )
    if below:
        last = f"{called.rstrip('/')}/{below[-1]}"
        both_folders = folder.is_dir() and Path(called).expanduser().is_dir()
        fetch = (
            ""
            if both_folders
            else f" Fetch it first: `hf download {called} --include '{below[-1]}/*' --local-dir {called}`."
        )
        raise BadInput(
            f"'{called}' holds {len(below)} adapter{'s' * (len(below) > 1)} in folders below it: {listing(below)}. Give "
            f"{'that folder' if len(below) == 1 else 'one of these folders'}: --adapter {last}.{fetch}"
        )
    found = sorted(p.name for p in folder.iterdir())[:8] if folder.is_dir() else []
    whole = "config.json" in found
    step = (
        "It is a whole model: give it as the model, without --adapter, if the adapter was merged into it."
        if whole
        else "Give the folder that `save_pretrained` or `trueup tune` wrote."
    )
    holds = f"it holds {listing(found)}, and no {SETTINGS}" if found else f"it holds no {SETTINGS}"
    raise BadInput(f"'{called}' is no PEFT adapter: {holds}. {step}")


def _in_steps(folder: Path) -> tuple[Any, ...]:
    """A key under which ``checkpoint-60`` comes before ``checkpoint-120``."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", str(folder)))
