"""Load a model tensor by tensor: what is not kept as it is in the files is never there in full."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glmft.device import giving_back_freed_memory
from glmft.errors import CheckpointError
from glmft.models.quantised import QuantisedLinear, quantise, quantised_layers
from glmft.models.stored import is_of_prefix, require_fit, tie_as_officially, tied_names
from glmft.weights import FLOATS, StoredTensors


@giving_back_freed_memory()
def empty_model(kind: type[nn.Module], config: Any, attn_implementation: str) -> nn.Module:
    """A model whose parameters have no memory yet; its buffers are there."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return kind._from_config(config, attn_implementation=attn_implementation)


@giving_back_freed_memory()
def fill(model: nn.Module, stored: StoredTensors, folder: Path, dtype: torch.dtype) -> nn.Module:
    """Read parameters in `dtype`, and integers as they are stored, or made of the weights that are stored.

    Raises:
        CheckpointError: missing, unexpected or mis-shaped tensors; one line each.
    """
    if model.config.pre_seq_len and not any(is_of_prefix(name) for name in stored):
        model.base_model.add_prefix_encoder()
    require_tensors(model, stored, folder)
    tied = tied_names(model)
    for prefix, module in model.named_modules():
        if isinstance(module, QuantisedLinear):
            module.take(*integers(module, prefix, stored))
        for name in [name for name, p in module._parameters.items() if p is not None]:
            if f"{prefix}.{name}" in stored and f"{prefix}.{name}" not in tied:
                value = stored[f"{prefix}.{name}"].to(dtype, copy=True)
                module._parameters[name] = nn.Parameter(value, requires_grad=value.is_floating_point())
    for name, buffer in other_buffers(model):
        buffer.copy_(stored.get(name, buffer))
    model.tie_weights()
    tie_as_officially(model, folder, stored)
    return model.eval()


def integers(layer: QuantisedLinear, name: str, stored: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The integers and scales of a layer."""
    weight = stored[f"{name}.weight"]
    if f"{name}.weight_scale" not in stored:  # `require_tensors` has seen floats
        return quantise(weight, layer.bits)
    return weight.clone(), stored[f"{name}.weight_scale"].clone()


def other_buffers(model: nn.Module) -> list[tuple[str, Tensor]]:
    """The buffers that are not a layer's integers: small ones."""
    of_layers = {f"{name}.{part}" for name, _ in quantised_layers(model) for part in ("weight", "weight_scale")}
    return [(name, buffer) for name, buffer in model.named_buffers() if name not in of_layers]


def require_told_quantisation(model: nn.Module, stored: StoredTensors, folder: Path) -> None:
    """Raises CheckpointError if the weights are quantised in a way that config.json does not say."""
    if any(name.endswith((".qweight", ".qzeros")) for name in stored):
        raise CheckpointError(f"{folder}: is quantised by GPTQ or AWQ, which is not read; take the full-precision base")
    scaled = [name.removesuffix("_scale") for name in stored if name.endswith(".weight_scale")]
    if not scaled or any(True for _ in quantised_layers(model)):
        return
    whole = {name: p.shape[-1] for name, p in model.named_parameters()}
    packs_two = any(name in stored and stored.shapes[name][-1] * 2 == whole.get(name) for name in scaled)
    bits = 4 if packs_two else 8
    raise CheckpointError(
        f"{folder}: its weights are quantised (INT{bits}, {len(scaled)} layers), but config.json does not say so; copy "
        f'the config.json that belongs to them, or put "quantization_bit": {bits} into it'
    )


def require_tensors(model: nn.Module, stored: StoredTensors, folder: Path) -> None:
    """Raises CheckpointError if a tensor is missing, too many, of another shape, or of no numbers to compute with."""
    require_told_quantisation(model, stored, folder)
    needed = {name: list(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    for name, layer in quantised_layers(model):
        if f"{name}.weight_scale" in stored or f"{name}.weight" in stored.int8:
            needed[f"{name}.weight"], needed[f"{name}.weight_scale"] = list(layer.weight.shape), [layer.out_features]
        else:
            needed[f"{name}.weight"] = [layer.out_features, layer.in_features]
    known = needed.keys() | {name for name, _ in other_buffers(model)}
    misshapen = [
        f"{name} {stored.shapes[name]} has another shape than config.json says ({shape})"
        for name, shape in sorted(needed.items())
        if name in stored and stored.shapes[name] != shape
    ]
    misshapen += [
        f"{name} has a weight_scale beside it and is not int8"
        for name in sorted(needed)
        if f"{name}_scale" in needed and name in stored and name not in stored.int8
    ]
    misshapen += [
        f"{name} holds {stored.formats[name]}, no numbers that a model computes with"
        for name in sorted(known)
        if name in stored
        and stored.formats[name] not in FLOATS
        and not (f"{name}_scale" in needed and name in stored.int8)
    ]
    missing = needed.keys() - stored.keys() - tied_names(model)
    if not any(is_of_prefix(name) for name in stored):  # a prefix is made where there is none
        missing = {name for name in missing if not is_of_prefix(name)}
    require_fit(folder, missing, stored.keys() - known, misshapen)
