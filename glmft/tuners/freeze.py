"""Train some of the base model's own parameters, chosen by name."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import nn

from glmft.settings.config import split_names
from glmft.settings.modules import PARTS, layer_numbers, matching
from glmft.tuners.base import Tuner, cast_trainable, train_only


@dataclass
class Freeze(Tuner):
    """
    Args:
        freeze_module_name: comma-separated parts of the names of what trains.
        freeze_last_n: train this many last layers instead; neither: the last one.
        freeze_part: of those layers, `all`, `attention` or `mlp`.
    """

    freeze_module_name: str | None = None
    freeze_last_n: int | None = None
    freeze_part: str = "all"
    name: ClassVar[str] = "freeze"
    usual_rates: ClassVar[tuple[float, float]] = (1e-6, 1e-3)

    @property
    def last_layers(self) -> int:
        """How many of the last layers train; 0: what `freeze_module_name` says."""
        return self.freeze_last_n or (1 if self.freeze_module_name is None else 0)

    def problems(self, model: nn.Module) -> list[str]:
        names = [name for name, _ in model.named_parameters()]
        if self.last_layers:
            layers = len(layer_numbers(names))
            too_many = f"--freeze_last_n {self.last_layers}: the model has {layers} layers"
            return [too_many] if self.last_layers > layers else []
        return [
            f"--freeze_module_name {pattern}: matches no parameter; there are {', '.join(_kinds(names))}"
            for pattern in split_names(self.freeze_module_name) or ["(empty)"]
            if not matching(names, pattern)
        ]

    def owned_by_base(self, names: list[str]) -> set[str]:
        return self.chosen(names)

    @property
    def needs_floats(self) -> str:
        return (
            f"--train_type {self.name}: trains the base's own weights, which a quantised base does not have in floats; "
            "train lora, ptuning or prompt over it, or take the full-precision base without --quantization_bit"
        )

    def apply(self, model: nn.Module) -> nn.Module:
        train_only(model, self.chosen([name for name, _ in model.named_parameters()]))
        return model

    def load(self, model: nn.Module, folder: Path) -> nn.Module:
        dtype = model.dtype
        model = super().load(model, folder)
        cast_trainable(model, dtype)  # nothing casts between the layers
        return model

    def chosen(self, names: list[str]) -> set[str]:
        """The names of what trains."""
        if not self.last_layers:
            return {n for pattern in split_names(self.freeze_module_name) for n in matching(names, pattern)}
        last = layer_numbers(names)[-self.last_layers :]
        parts = PARTS[self.freeze_part]
        return {n for i in last for n in matching(names, f"layers.{i}") if any(part in n for part in parts)}


def _kinds(names: list[str]) -> list[str]:
    """Parameter names with the layers' numbers folded into one range."""
    layers = layer_numbers(names)
    folded = [n.replace(f".layers.{layers[0]}.", f".layers.{layers[0]}…{layers[-1]}.") for n in names]
    first = f".layers.{layers[0]}…"
    return [n for n in folded if ".layers." not in n or first in n]
