"""What an adapter makes of its base's tensors, a part of one at a time, in float32."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glmft.errors import CheckpointError, ConfigError
from glmft.models.stored import is_finite, tied_names
from glmft.tuners.base import ADAPTER_WEIGHTS, require_adapter
from glmft.tuners.lora import bare_lora, shapes_in_files
from glmft.tuners.peft_config import adapter_file, read_peft_config
from glmft.weights import StoredTensors, Stream

# Rows [first, end) of a base's tensor in float32 -> the adapter's.
Change = Callable[[Tensor, int, int], Tensor]
NUMBERS = 1 << 23  # of a tensor at a time: 32 MiB in float32
IN_PEFT = "base_model.model."


@dataclass(frozen=True)
class Part:
    """An adapter to be merged: its folder, its tuner, and how much of it."""

    folder: Path
    train_type: str
    share: float = 1.0


def merged_streams(
    model: nn.Module, stored: StoredTensors, parts: list[Part], rounded: bool = True, follow_ties: bool = False
) -> tuple[list[Stream], bool]:
    """All tensors of the merged model, and whether embedding and head, one matrix in the base, have become two.

    base + sum over the adapters of share * (base with that adapter alone - base): for LoRA what peft calls `cat`.

    Args:
        model: the base's, without memory behind its tensors.
        rounded: to the base's number format; else they are float32.
        follow_ties: what changes a matrix under one of two names changes the other.

    Raises:
        ConfigError, CheckpointError: an adapter that does not fit, or cannot be merged exactly.
    """
    changes = [(part.share, changes_of(model, part)) for part in parts]
    changed = {name for _, of_part in changes for name in of_part}
    twins = {name: model.all_tied_weights_keys[name] for name in tied_names(model)}
    parted = any((head in changed) != (words in changed) for head, words in twins.items())
    streams = []
    for name in [*stored, *(head for head in twins if head not in stored)]:
        names = {name, twins.get(name, name)} if follow_ties else {name}
        own = [(share, of_part[n]) for share, of_part in changes for n in names & of_part.keys()]
        base = stored.stream(twins.get(name, name))
        dtype = base.dtype if rounded or not base.dtype.is_floating_point else torch.float32
        streams.append(Stream(name, base.shape, dtype, _parts(base, own, dtype)))
    return streams, parted


def in_format(stream: Stream, dtype: torch.dtype) -> Stream:
    """A stream of floating-point numbers rounded to a format; others stay."""
    if not stream.dtype.is_floating_point or not stream.shape:
        return stream
    return Stream(stream.name, stream.shape, dtype, _parts(stream, [], dtype))


def _parts(base: Stream, changes: list[tuple[float, Change]], dtype: torch.dtype) -> Callable[[], Iterable[Tensor]]:
    if not changes and dtype == base.dtype:
        return base.parts

    def parts() -> Iterator[Tensor]:
        (tensor,) = base.parts()
        rows, first = max(1, NUMBERS * len(tensor) // max(1, tensor.numel())), 0
        for part in tensor.split(rows):
            wide, end = part.float(), first + len(part)
            if not changes:
                new = wide
            elif len(changes) == 1 and changes[0][0] == 1:
                new = changes[0][1](wide, first, end)
            else:
                new = wide + sum(share * (change(wide, first, end) - wide) for share, change in changes)
            rounded = new.to(dtype)
            if not is_finite(rounded):
                why = f"do not fit {dtype}, the base's format" if is_finite(new) else "are not finite"
                raise CheckpointError(f"{base.name}: the merged weights {why}; the adapter may be damaged")
            yield rounded
            first = end

    return parts


def changes_of(model: nn.Module, part: Part) -> dict[str, Change]:
    """What an adapter changes, by the names of the base's tensors."""
    if part.train_type == "lora":
        return lora_changes(model, part.folder)
    from glmft.tuners import tuner_class

    stored = StoredTensors([part.folder / ADAPTER_WEIGHTS])
    tuner = tuner_class(part.train_type).from_description(part.folder)
    require_adapter(stored, tuner.expected(model, part.folder), part.folder)
    return {name: _replaced(stored, name) for name in stored}


def _replaced(stored: StoredTensors, name: str) -> Change:
    return lambda base, first, end: stored[name][first:end].float()


def lora_changes(model: nn.Module, folder: Path) -> dict[str, Change]:
    """What a LoRA folder changes."""
    given = read_peft_config(folder)
    start = given.get("init_lora_weights")
    if start == "olora" or str(start).startswith("pissa"):
        raise ConfigError(
            f"{folder}: says that it holds {start} as trained, which hangs on how the base was taken apart; save it as "
            "plain LoRA (glmft does; in peft save_pretrained with path_initial_model_for_weight_conversion)"
        )
    bare = bare_lora(model, given, folder)
    stored = StoredTensors([adapter_file(folder)])
    shapes = shapes_in_files(bare)
    require_adapter(stored, shapes, folder)
    changes: dict[str, Change] = {}
    for name, layer in lora_layers(bare):
        changes[f"{name}.weight"] = _low_rank(stored, name, layer)
        if f"{IN_PEFT}{name}.lora_B.bias" in stored:
            changes[f"{name}.bias"] = _shifted(stored, f"{IN_PEFT}{name}.lora_B.bias", layer.scaling["default"])
            if layer.get_base_layer().bias is None:
                raise ConfigError(f"{folder}: has a bias (lora_bias) for {name}, which has none in the base")
    for key in stored:
        if ".lora_" not in key:  # modules_to_save, and the base's own biases
            changes[key.removeprefix(IN_PEFT).replace(".base_layer.", ".")] = _replaced(stored, key)
    return changes


def lora_layers(bare: nn.Module) -> Iterator[tuple[str, Any]]:
    """peft's layers in a model that it has wrapped, by the names that they have in the base."""
    from peft.tuners.lora import LoraLayer

    for name, module in bare.base_model.model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def _shifted(stored: StoredTensors, key: str, scale: float) -> Change:
    return lambda base, first, end: base + scale * stored[key][first:end].float()


def _low_rank(stored: StoredTensors, name: str, layer: Any) -> Change:
    """base + scale * B A (Hu et al., 2021); with DoRA each row scaled to its length (Liu et al., 2024)."""
    scale, place = layer.scaling["default"], f"{IN_PEFT}{name}."
    embedding = f"{place}lora_embedding_A" in stored
    magnitude = next((key for key in stored if key.startswith(f"{place}lora_magnitude_vector")), None)
    if embedding and magnitude:
        raise ConfigError(f"{name}: DoRA of an embedding cannot be merged row by row; merge it with peft")

    def change(base: Tensor, first: int, end: int) -> Tensor:
        if embedding:  # A [r, rows], B [h, r]
            a, b = stored[f"{place}lora_embedding_A"], stored[f"{place}lora_embedding_B"]
            return torch.addmm(base, a[:, first:end].float().T, b.float().T, alpha=scale)
        a, b = stored[f"{place}lora_A.weight"], stored[f"{place}lora_B.weight"]
        new = torch.addmm(base, b[first:end].float(), a.float(), alpha=scale)
        if magnitude is None:
            return new
        return new * (stored[magnitude].flatten()[first:end].float() / new.norm(dim=1))[:, None]

    return change
