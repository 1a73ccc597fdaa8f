"""How a base's weights are loaded: their number type, whether they are quantised, and on which devices they lie."""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trueup.errors import BadInput, Unavailable, Unsupported, did_you_mean, listing
from trueup.subject.places import BITS, MAPS, check_weights

QUANTISED: dict[str, dict[str, Any]] = dict(zip(BITS, (
    {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}, {"load_in_8bit": True},
), strict=True))  # fmt: skip
"""Settings of bitsandbytes by name: QLoRA's 4 bits (Dettmers et al., arXiv 2305.14314) and LLM.int8 (arXiv 2208.07339)."""
_PACKAGES = {
    "bitsandbytes": "pip install 'trueup[quantize]'", "gptq": "pip install gptqmodel optimum", "awq": "pip install gptqmodel",
    "torchao": "pip install torchao", "hqq": "pip install hqq", "quanto": "pip install optimum-quanto",
    "compressed-tensors": "pip install compressed-tensors", "aqlm": "pip install aqlm", "auto-round": "pip install auto-round",
}  # fmt: skip
"""What transformers needs for a checkpoint of each kind of quantisation."""


@dataclass(frozen=True)
class Weights:
    """How a base's weights are loaded. The default: float32 on a processor, the type of the checkpoint elsewhere, on one device.

    Attributes:
        dtype: of `places.DTYPES`, or None. quantize: of `QUANTISED`, or settings of bitsandbytes, or None.
        device_map: of `places.MAPS`; a JSON file, or a mapping, of modules to devices (``cpu``, ``disk``, ``cuda:0``); or None.
    """

    dtype: str | None = None
    quantize: str | Mapping[str, Any] | None = None
    device_map: str | Mapping[str, Any] | None = None

    def checked(self, device: str | None) -> Weights:
        """The same, with the settings of bitsandbytes and of the map themselves in place of their names.

        Raises:
            BadInput: a name that is none, a map that cannot be read or names a device that is not here, a type that `device` does
                not compute, bitsandbytes missing.
        """
        check_weights(self.dtype, self.quantize, self.device_map, device)
        if self.dtype is not None:
            _computes(self.dtype, device or "cpu")
        return Weights(self.dtype, _settings(self.quantize), _mapping(self.device_map))

    def options(self, device: str, heads: list[str]) -> dict[str, Any]:
        """The arguments of ``from_pretrained``. `heads`: modules that are not quantised, as they are read as matrices."""
        dtype: Any = self.dtype or ("float32" if device == "cpu" else "auto")
        dtype = dtype if dtype == "auto" else getattr(torch, dtype)
        found: dict[str, Any] = {"dtype": dtype}
        if (settings := _settings(self.quantize)) is not None:
            from transformers import BitsAndBytesConfig

            computes = None if dtype == "auto" else dtype
            settings |= {"bnb_4bit_compute_dtype": computes, "llm_int8_skip_modules": heads}
            found["quantization_config"] = BitsAndBytesConfig(**settings)
        if self.device_map is not None:
            found |= {"device_map": self.device_map if isinstance(self.device_map, str) else dict(self.device_map)}
        return found


def _computes(dtype: str, device: str) -> None:
    """Raises BadInput where what every layer does cannot be done in `dtype` on `device`."""
    if dtype == "auto":
        return
    try:
        x = torch.ones(1, 2, 8, dtype=getattr(torch, dtype), device=device)
        x = F.layer_norm(F.gelu(F.linear(x, x[0].repeat(4, 1))), (8,))
        F.scaled_dot_product_attention(x[None], x[None], x[None]).softmax(-1)
    except RuntimeError as e:
        raise BadInput(
            f"This machine does not compute in {dtype} on '{device}' ({' '.join(str(e).split())[:120]}). Take --dtype float32."
        ) from e


def _settings(quantize: str | Mapping[str, Any] | None) -> dict[str, Any] | None:
    if quantize is None:
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise BadInput(
            f"A base is loaded in 4 or 8 bits by bitsandbytes, which is not installed. {_PACKAGES['bitsandbytes']} brings it."
        )
    return dict(QUANTISED[quantize] if isinstance(quantize, str) else quantize)


def _mapping(device_map: str | Mapping[str, Any] | None) -> str | dict[str, Any] | None:
    """The map itself, every device of it tried."""
    if device_map is None or (isinstance(device_map, str) and device_map in MAPS):
        return device_map
    if isinstance(device_map, str):
        file = Path(device_map).expanduser()
        try:
            device_map = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as e:
            raise BadInput(f"The device map '{file}' is no JSON ({str(e)[:120]}). Correct it.") from e
    if not isinstance(device_map, Mapping) or not device_map:
        raise BadInput('A device map is an object of module names and devices, such as {"model.layers.0": "cpu"}.')
    found = {}
    for name, where in device_map.items():
        if isinstance(where, bool) or not isinstance(where, str | int):
            raise BadInput(f"The device map puts '{name}' on {where!r}, which is no device. Give cpu, disk or cuda:0.")
        where = f"cuda:{where}" if isinstance(where, int) else where
        found[str(name)] = where if where == "disk" else device_of(where)
    return found


def laid_out(net: nn.Module, device_map: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The device of every part of a model of the shape `net`, once: a part's own, or that of the smallest part named around it.

    accelerate wants each weight under one name alone.

    Raises:
        BadInput: the map names a part that the model `name` does not have, or leaves one without a device.
    """
    parts = {n for n, _ in net.named_modules()} | {n for n, _ in net.named_parameters()}
    for part in device_map:
        if part not in parts:
            raise BadInput(
                f"The device map names '{part}', and '{name}' has no such part.{did_you_mean(part, sorted(parts))} Name modules as "
                "`model.named_modules()` does; '' stands for the rest."
            )
    found: dict[str, Any] = {}

    def spread(path: str, module: nn.Module | None, around: Any) -> None:
        own_device = device_map.get(path, around)
        inside = f"{path}." if path else ""
        if module is not None and any(p.startswith(inside) and p != path for p in device_map):
            for child, below in module.named_children():
                spread(inside + child, below, own_device)
            for child, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                spread(inside + child, None, own_device)
        elif own_device is None:
            raise BadInput(
                f"The device map gives '{path}' of '{name}' no device. Give it one, or the rest one under ''."
            )
        else:
            found[path] = own_device

    spread("", net, None)
    return found


def not_loaded(e: Exception, weights: Weights, name: str, method: str | None) -> BadInput | Unavailable | None:
    """What an exception of ``from_pretrained`` says where it is about the type, the bits or the devices; None where it is not.

    `method`: the quantisation that the checkpoint's own config names.
    """
    message = " ".join(str(e).split())[:240].rstrip(".")
    if method is not None and (isinstance(e, ImportError) or "GPU" in message):
        how = _PACKAGES.get(method.replace("_", "-"), "")
        return BadInput(
            f"'{name}' is quantised ({method}), and transformers cannot load that here: {message}. "
            + (f"What it needs comes with: {how}. " if how and isinstance(e, ImportError) else "")
            + "Or give a base that is not quantised."
        )
    if weights.device_map is not None and not isinstance(e, OSError):
        return BadInput(
            f"'{name}' cannot be laid out by this device map: {message}. Give every part a device, or --device-map auto."
        )
    if weights.quantize is not None and not isinstance(e, OSError):
        return BadInput(f"'{name}' cannot be loaded in fewer bits: {message}. Leave --quantize out.")
    return None


def placed(net: Any, device: Any) -> Any:
    """`net` on `device`, or as it is where a device map has laid it out."""
    return net if getattr(net, "hf_device_map", None) else net.to(device)


def device_in(net: Any) -> torch.device:
    """Where a model reads its tokens: the first device of its map that computes, else that of its first parameter."""
    if (laid := getattr(net, "hf_device_map", None)) is None:
        return next(net.parameters()).device
    found = [d for d in laid.values() if d not in ("cpu", "disk")]
    return torch.device(found[0] if found else "cpu")


def in_memory(net: Any) -> None:
    """Brings the parts of an offloaded model that are not in its blocks into memory: embeddings, norms and heads.

    They are read as matrices, and small beside the blocks, which stay where the map puts them.
    """
    blocks = [f"{n}." for n, m in net.named_modules() if isinstance(m, nn.ModuleList)]
    for name, module in net.named_modules():
        hook = _hook(module)
        if hook is None or any(f"{name}.".startswith(b) for b in blocks):
            continue
        for key, parameter in list(module.named_parameters(recurse=False)):
            if parameter.device.type == "meta":
                placed_tensor = hook.weights_map[key].to(hook.execution_device)
                setattr(module, key, nn.Parameter(placed_tensor, requires_grad=parameter.requires_grad))
        hook.offload = False
    net.tie_weights()


def _hook(module: nn.Module) -> Any:
    """The hook of accelerate that fetches a module's weights when it runs, or None."""
    hook = getattr(module, "_hf_hook", None)
    found = [h for h in getattr(hook, "hooks", [hook]) if getattr(h, "weights_map", None) is not None]
    return found[0] if found and found[0].offload else None


def offloaded(net: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """The parameters that are not in memory between passes: name -> what fetches it."""
    found: dict[str, Callable[[], Tensor]] = {}
    for name, module in net.named_modules():
        if (hook := _hook(module)) is None:
            continue
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.device.type == "meta":
                fetch: Callable[[], Tensor] = lambda of=hook.weights_map, key=key: of[key]  # noqa: E731
                found[f"{name}.{key}" if name else key] = fetch
    return found


def numbers(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter with its numbers, one after the other: what is offloaded is fetched for as long as it is looked at."""
    away = offloaded(net)
    for name, parameter in net.named_parameters():
        for inner, tensor in inside(away[name]() if name in away else parameter):
            yield f"{name}{inner}", tensor


def inside(tensor: Tensor) -> list[tuple[str, Tensor]]:
    """The plain tensors of which a weight is made, and what each is called: itself, or the several that torchao keeps for one."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [("", tensor)]
    names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    return [(f".{name}{suffix}", t) for name in names for suffix, t in inside(getattr(tensor, name))]


def scales(module: nn.Module) -> list[bytes | Tensor]:
    """What a layer of bitsandbytes computes with beside the numbers of its weight: its scales, the type that it computes in, and
    from which size on an input is an outlier. Empty for any other layer."""
    weight: Any = getattr(module, "weight", None)
    if (bits := getattr(weight, "quant_state", None)) is not None:
        return [str(getattr(module, "compute_dtype", None)).encode(), *bits.as_dict(packed=True).values()]
    if (state := getattr(module, "state", None)) is not None and hasattr(weight, "SCB"):
        # The first pass moves them from the weight to the layer.
        return [str(state.threshold).encode(), state.SCB if state.SCB is not None else weight.SCB]
    return []


def settled(net: Any) -> Any:
    """`net` in eval mode, after a first pass through each of its 4-bit layers.

    On processors with AVX512-BF16 bitsandbytes lays a weight out anew there, and rounds its scales. What is examined, remembered
    and saved under a fingerprint is the model after that. Not in inference mode: a weight that was made there cannot be trained
    through.
    """
    with torch.no_grad():
        for module in net.modules():
            kind = getattr(module, "compute_dtype", None)
            if kind is not None and getattr(getattr(module, "weight", None), "quant_state", None) is not None:
                module(torch.zeros(1, module.in_features, dtype=kind, device=module.weight.device))
    return net


def filled(net: nn.Module, device: torch.device) -> None:
    """Gives what an adapter added beside offloaded weights its memory: PEFT makes it where the weights are, which is nowhere."""
    away = offloaded(net)
    for name, module in net.named_modules():
        for key, parameter in list(module.named_parameters(recurse=False)):
            if parameter.device.type == "meta" and (f"{name}.{key}" if name else key) not in away:
                zeros = torch.zeros_like(parameter, device=device)
                setattr(module, key, nn.Parameter(zeros, requires_grad=parameter.requires_grad))


def offload_folder(net_options: dict[str, Any]) -> tempfile.TemporaryDirectory[str] | None:
    """A folder for weights that transformers has to write anew before it can leave them on disk; None without a device map."""
    if "device_map" not in net_options:
        return None
    folder = tempfile.TemporaryDirectory(prefix="trueup-offload-")
    net_options["offload_folder"] = folder.name
    return folder


def kept_with(folder: tempfile.TemporaryDirectory[str] | None, net: Any) -> None:
    """The folder goes when the model does."""
    if folder is not None:
        weakref.finalize(net, folder.cleanup)


def laid(subject: Any) -> dict[str, Any]:
    """What a reader must know of how a subject's base is kept: its quantisation, and how many of its parts lie on each device."""
    settings = getattr(subject.base.config, "quantization_config", None)
    configured = settings if isinstance(settings, dict) or settings is None else settings.to_dict()
    found: dict[str, Any] = {}
    if configured is not None:
        bits = {"load_in_4bit": "4 bits", "load_in_8bit": "8 bits"}
        kind = next((b for k, b in bits.items() if configured.get(k)), str(configured.get("bits") or ""))
        found["quantisation"] = " ".join(
            filter(None, (str(getattr(configured.get("quant_method"), "value", configured.get("quant_method"))), kind))
        )
    if layout := getattr(subject.base, "hf_device_map", None):
        where = [str(v) for v in layout.values()]
        found["device map"] = {d: f"{where.count(d)} parts" for d in dict.fromkeys(where)}
    return found


def need_memory(net: nn.Module, what: str) -> None:
    """Raises Unsupported where weights that `what` reads or trains are offloaded."""
    if away := sorted(offloaded(net)):
        raise Unsupported(
            f"{what} needs all weights in memory, and the device map leaves {len(away)} of them elsewhere, such as {away[0]}. "
            "Leave --device-map out, or take --quantize 4bit."
        )


def best_device() -> str:
    """``cuda``, ``mps`` or ``cpu``: the first there is; of several GPUs the one that a launcher gives this process."""
    if torch.cuda.is_available():
        return f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def device_of(name: str | None) -> str:
    """`name`, once a tensor has been there; the fastest device there is for None.

    Raises:
        BadInput: there is no such device here.
    """
    if name is None:
        return best_device()
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        known = ["cpu", *(d for d, there in (("cuda", torch.cuda.is_available()),
                                             ("mps", torch.backends.mps.is_available())) if there)]  # fmt: skip
        raise BadInput(
            f"There is no device '{name}' on this machine.{did_you_mean(name, known)} There are {listing(known)}; without "
            "--device the fastest is taken."
        ) from e
    return name
