"""A LoRA adapter of the official layout as one of transformers' own, where query, key and value are three modules.

The rows of B belong to them one after the other, and A to all three: the split is exact.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from glmft.errors import ConfigError
from glmft.models.to_native import pieces_of
from glmft.tuners.base import load_checked, require_adapter
from glmft.tuners.lora import bare_lora, last, shapes_in_files
from glmft.tuners.merging import IN_PEFT, lora_layers
from glmft.tuners.peft_config import PEFT_WEIGHTS, adapter_file, lora_config, read_peft_config, write_peft_config
from glmft.weights import StoredTensors

BY_ROWS = ("lora_B", "lora_magnitude_vector")  # of what peft has beside a linear module


def write_split(model: nn.Module, folder: Path, target: Path, base: str) -> list[str]:
    """Write the adapter of `folder` for transformers' layout into `target`; the modules that it is on.

    Args:
        model: its base, in the official layout, without memory behind its tensors.
        base: where the base in transformers' layout lies.

    Raises:
        ConfigError, CheckpointError: it does not fit the base, or changes what has no counterpart.
    """
    given = read_peft_config(folder)
    if given.get("bias", "none") != "none":
        raise ConfigError(f"{folder}: trains the base's biases, too (bias {given['bias']}); export it merged")
    bare = bare_lora(model, given, folder)
    require_adapter(StoredTensors([adapter_file(folder)]), shapes_in_files(bare), folder)
    layers, config = dict(lora_layers(bare)), model.config
    state: dict[str, Tensor] = {}
    for key, tensor in load_checked(adapter_file(folder)).items():
        module = next((name for name in layers if key.startswith(f"{IN_PEFT}{name}.")), None)
        kind = key.removeprefix(f"{IN_PEFT}{module}.") if module else key.rpartition(".")[2]
        for piece in pieces_of(module or key.removeprefix(IN_PEFT).rpartition(".")[0], config):
            rows = module is None or kind.startswith(BY_ROWS)
            part = tensor[piece.first : piece.end] if rows and piece.end is not None else tensor
            state[f"{IN_PEFT}{piece.name}.{kind}"] = part.contiguous().clone()
    save_file(state, target / PEFT_WEIGHTS, metadata={"format": "pt"})
    named = {piece.name: layer for name, layer in layers.items() for piece in pieces_of(name, config)}
    write_peft_config(_config(given, named, model, base), target)
    return sorted({last(name) for name in named})


def _config(given: dict[str, Any], named: dict[str, Any], model: nn.Module, base: str) -> Any:
    """peft's configuration for modules of transformers' layout, each with the rank and alpha that it had."""
    described = lora_config({**given, "init_lora_weights": True})
    modules = {name: pieces_of(name, model.config) for name in modules_with_weights(model)}
    every = {piece.name for pieces in modules.values() for piece in pieces}
    described.target_modules = _shortest(set(named), every, ".")
    described.layers_to_transform = described.layers_pattern = described.exclude_modules = None
    ranks = {name: layer.r["default"] for name, layer in named.items()}
    alphas = {name: layer.lora_alpha["default"] for name, layer in named.items()}
    described.rank_pattern = {name: rank for name, rank in ranks.items() if rank != described.r}
    described.alpha_pattern = {name: alpha for name, alpha in alphas.items() if alpha != described.lora_alpha}
    saved = tuple(f".{name}" for name in given.get("modules_to_save") or [])
    whole = (
        {piece.name for name in modules if f".{name}".endswith(saved) for piece in modules[name]} if saved else set()
    )
    described.modules_to_save = sorted(_shortest(whole, every, "")) or None
    described.base_model_name_or_path = base
    return described


def modules_with_weights(model: nn.Module) -> list[str]:
    """The names of the modules that have weights of their own."""
    return [name for name, module in model.named_modules() if next(module.parameters(recurse=False), None) is not None]


def _shortest(names: set[str], every: set[str], before: str) -> set[str]:
    """The last parts of the names, if they stand for these modules alone.

    Args:
        before: what peft asks for in front of a last part: of modules to save nothing, so that `norm` is any norm.
    """
    short = {last(name) for name in names}
    meant = {name for name in every if any(f".{name}".endswith(f"{before}{part}") for part in short)}
    return short if meant == names else names
