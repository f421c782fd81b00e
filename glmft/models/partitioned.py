"""Load a base model under ZeRO-3: every parameter is split among the ranks as soon as it is read.

Rank 0 reads the files, one module's tensors at a time; no rank ever holds the whole model. (transformers' own way, by
its process-wide DeepSpeed settings, reads all shards into rank 0 first, takes the number format from DeepSpeed's
configuration, and reports no unexpected tensors.)
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from glmft.device import giving_back_freed_memory
from glmft.dist import World, gather_objects, same_fate, to_all
from glmft.models.loading import check_folder, model_class
from glmft.models.quantised import quantised_layers
from glmft.models.stored import is_finite, require_fit, tie_as_officially, tied_names
from glmft.models.streaming import empty_model, integers, other_buffers


@giving_back_freed_memory()
def load_partitioned(
    config: Any,
    folder: str | Path,
    world: World,
    ds_config: dict[str, Any],
    trains: Callable[[list[str]], set[str]],
    trained_in: torch.dtype,
    attn_implementation: str = "sdpa",
) -> nn.Module:
    """The model with its weights, partitioned. Collective.

    Args:
        ds_config: of a ZeRO-3 run.
        trains: of all parameter names, those that will be trained; they get `trained_in`, the rest the
            run's number format.

    Raises:
        CheckpointError: missing, unexpected or mis-shaped tensors, or an unreadable file; one line each.
    """
    import deepspeed

    model = empty_model(model_class(config), config, attn_implementation)
    tied = tied_names(model)
    chosen = trains([name for name, _ in model.named_parameters(remove_duplicate=False)])
    with same_fate():
        stored = check_folder(config, folder)[0] if world.is_main else None
    wrong = []
    for prefix, module in model.named_modules():
        for name, parameter in list(module._parameters.items()):
            full = f"{prefix}.{name}"
            if parameter is None or full in tied:
                continue
            dtype = trained_in if full in chosen else world.dtype
            value = torch.empty(parameter.shape, dtype=dtype)
            if stored is not None:
                value.copy_(stored[full])
                wrong += [] if is_finite(value) else [f"{full} holds numbers that are not finite"]
            module._parameters[name] = nn.Parameter(value, requires_grad=False)
            deepspeed.zero.Init(module=wrapped(module._parameters[name]), config_dict_or_path=ds_config)
    for name, buffer in other_buffers(model):  # small, and the same on every rank
        value = buffer if stored is None else stored.get(name, buffer)
        buffer.copy_(gather_objects(world, value)[0])
    for name, layer in quantised_layers(model):  # no parameters, so every rank has them whole
        weight, scale = (layer.weight, layer.weight_scale) if stored is None else integers(layer, name, stored)
        layer.take(to_all(world, weight), to_all(world, scale.float()))
    with same_fate():
        require_fit(Path(folder), (), (), wrong)
    model.tie_weights()
    if stored is not None:
        tie_as_officially(model, Path(folder), stored)
    return model.eval()


def wrapped(parameter: nn.Parameter) -> nn.Module:
    """A module of one parameter, for what takes a module."""
    module = nn.Module()
    module.parameter = parameter
    return module
