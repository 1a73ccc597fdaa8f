"""The linear map that a layer computes, adapter and all: weight and bias as one matrix and one vector.

PEFT leaves the base's own weight at ``layer.weight``, which is not what the layer computes once a LoRA or an IA3 stands on
it. The head of a classifier is read, replaced and saved as a matrix, so it has to be the right one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.ia3 import IA3Layer
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_module_weight
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn

from trueup.errors import Unsupported


def active(module: Any) -> Any:
    """The module that runs: out of PEFT's ``modules_to_save`` wrapper, where there is one, the active adapter's copy."""
    if not isinstance(module, ModulesToSaveWrapper):
        return module
    names = module.active_adapters
    if module.disable_adapters or not names or names[0] not in module.modules_to_save:
        return module.original_module
    return module.modules_to_save[names[0]]


def map_of(layer: Any, rows: Sequence[int] | None = None) -> tuple[Tensor, Tensor | None]:
    """Weight (k, d) and bias (k,) or None: ``layer(x)`` is ``x @ weight.T + bias`` in eval mode, at the output `rows`.

    Differentiable in the adapter's parameters. LoRA (Hu et al., arXiv 2106.09685, equation 3) with its rank-stabilised scale
    and its bias, DoRA (Liu et al., arXiv 2402.09353, equation 5), IA3 (Liu et al., arXiv 2205.05638) and single trained tokens.

    Raises:
        Unsupported: another kind of layer, which need not be linear. A variant of LoRA that is none is found by `prove`.
    """
    layer = active(layer)

    def some(tensor: Any) -> Tensor:
        return tensor if rows is None else tensor[torch.as_tensor(rows, device=tensor.device)]

    if isinstance(layer, AuxiliaryTrainingWrapper):  # single trained tokens, put into the base's weight
        bias = getattr(layer.original_module, "bias", None)
        return some(layer.weight), None if bias is None else some(bias)
    if not isinstance(layer, BaseTunerLayer):
        if not isinstance(layer, nn.Linear):
            raise _no_matrix(type(layer).__name__)
        weight = layer.weight if layer.weight.is_floating_point() else dequantize_module_weight(layer)
        return some(weight), None if layer.bias is None else some(layer.bias)
    weight, bias = map_of(layer.get_base_layer(), rows)
    if layer.disable_adapters or layer.merged:
        return weight, bias
    for name in layer.active_adapters:
        if isinstance(layer, LoraLayer) and isinstance(layer.lora_A, nn.ModuleDict) and name in layer.lora_A:
            weight, bias = _with_lora(layer, name, weight, bias, some)
        elif isinstance(layer, IA3Layer) and name in layer.ia3_l:
            scale = layer.ia3_l[name].to(weight)
            if layer.is_feedforward:
                weight = weight * scale
            else:
                weight, bias = weight * some(scale), None if bias is None else bias * some(scale)[:, 0]
        elif name in layer._get_available_adapters():
            raise _no_matrix(type(layer).__name__)
    return weight, bias


def _with_lora(layer: Any, name: str, weight: Tensor, bias: Tensor | None, some: Any) -> tuple[Tensor, Tensor | None]:
    down, up, scale = layer.lora_A[name], layer.lora_B[name], layer.scaling[name]
    whole = weight + some(up.weight).to(weight) @ down.weight.to(weight) * scale
    if up.bias is not None:
        more = some(up.bias).to(weight) * scale
        bias = more if bias is None else bias + more
    if name not in layer.lora_magnitude_vector:
        return whole, bias
    length = whole.norm(dim=1, keepdim=True).detach()  # as in training: no gradient goes through the length
    return some(layer.lora_magnitude_vector[name].weight).to(whole).unsqueeze(1) / length * whole, bias


def prove(layer: Any, rows: Sequence[int], what: str) -> None:
    """Raises Unsupported unless `map_of` says what `layer` computes at `rows`, on four random inputs."""
    with torch.no_grad():
        weight, bias = map_of(layer, rows)
        x = torch.randn(4, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
        layer, modes = active(layer), [(m, m.training) for m in layer.modules()]
        try:
            outputs = layer.eval()(x)[:, list(rows)].float()
        finally:
            for m, mode in modes:
                m.training = mode
        computed = (x @ weight.T + (0 if bias is None else bias)).float()
    # Half precision rounds the two in another order.
    near = 1e-4 if weight.dtype == torch.float32 else 0.05
    if not bool(((outputs - computed).abs() <= near * (1 + outputs.abs().max())).all()):
        raise Unsupported(
            f"The head of {what} computes something else than its weights say (off by "
            f"{(outputs - computed).abs().max():.2g} on random "
            "inputs), so it cannot be read as a matrix. Merge the adapter into its base (PEFT's merge_and_unload), save that, and "
            "give its folder without an adapter."
        )


def _no_matrix(kind: str) -> Unsupported:
    return Unsupported(
        f"The model's last layer is a {kind}, which trueup cannot read as a matrix. Merge the adapter into its base (PEFT's "
        "merge_and_unload), save that, and give its folder without an adapter."
    )
