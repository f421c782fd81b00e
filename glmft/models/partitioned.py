"""Load a base model under ZeRO-3: every parameter is split among the ranks as soon as it is read.

Rank 0 reads the files, one module's tensors at a time; no rank ever holds the whole model. (transformers' own way, by
its process-wide DeepSpeed settings, reads all shards into rank 0 first, takes the number format from DeepSpeed's
configuration, and reports no unexpected tensors.)
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glmft.dist import World, gather_objects, give_back_freed_memory, same_fate
from glmft.errors import CheckpointError
from glmft.models.loading import MODELS, limited, open_weights, weight_files


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
        trains: of all parameter names, those that will be trained; they are held in `trained_in`, the rest in the
            run's number format.

    Raises:
        CheckpointError: missing, unexpected or mis-shaped tensors, or an unreadable file; one line each.
    """
    import deepspeed
    from accelerate import init_empty_weights

    give_back_freed_memory()
    with init_empty_weights(include_buffers=False):
        model = MODELS[config.family][1]._from_config(config, attn_implementation=attn_implementation)
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    chosen = trains([name for name, _ in model.named_parameters(remove_duplicate=False)])
    with same_fate():
        stored = Stored(Path(folder)) if world.is_main else None
        if stored:
            stored.check(model)
    for prefix, module in model.named_modules():
        for name, parameter in list(module._parameters.items()):
            full = f"{prefix}.{name}"
            if parameter is None or full in tied:
                continue
            dtype = trained_in if full in chosen else world.dtype
            value = stored.get(full).to(dtype, copy=True) if stored else torch.empty(parameter.shape, dtype=dtype)
            module._parameters[name] = nn.Parameter(value, requires_grad=False)
            deepspeed.zero.Init(module=holder(module._parameters[name]), config_dict_or_path=ds_config)
        for name, buffer in module._buffers.items():  # small, and the same on every rank
            own = stored.get(f"{prefix}.{name}") if stored and f"{prefix}.{name}" in stored.files else buffer
            buffer.copy_(gather_objects(world, own)[0])
    model.tie_weights()
    return model.eval()


def holder(parameter: nn.Parameter) -> nn.Module:
    """A module of one parameter, for what takes a module."""
    module = nn.Module()
    module.held = parameter
    return module


class Stored:
    """The tensors of a folder's files. A file is opened anew for every tensor, so that no mapped page stays."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.files: dict[str, Path] = {}
        self.shapes: dict[str, list[int]] = {}
        for file in weight_files(folder):
            held = open_weights(file)
            for name in held.keys():  # noqa: SIM118  safetensors' handle cannot be iterated
                self.files[name] = file
                self.shapes[name] = list(shape_of(held, name))

    def check(self, model: nn.Module) -> None:
        """Raises CheckpointError as `load_model` does."""
        tied = set(getattr(model, "all_tied_weights_keys", None) or {})
        needed = {name: list(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
        known = needed.keys() | dict(model.named_buffers()).keys()
        problems = [
            f"{self.folder}: {n} is missing from the weights" for n in sorted(needed.keys() - self.shapes.keys() - tied)
        ]
        problems += [f"{self.folder}: {n} belongs to no part of the model" for n in sorted(self.shapes.keys() - known)]
        problems += [
            f"{self.folder}: {n} {self.shapes[n]} has another shape than config.json says ({shape})"
            for n, shape in sorted(needed.items())
            if n in self.shapes and self.shapes[n] != shape
        ]
        if problems:
            raise CheckpointError(limited(problems, self.folder))

    def get(self, name: str) -> Tensor:
        held = open_weights(self.files[name])
        return held.get_tensor(name) if self.files[name].suffix == ".safetensors" else held[name]


def shape_of(held: Any, name: str) -> Any:
    return held[name].shape if isinstance(held, dict) else held.get_slice(name).get_shape()
