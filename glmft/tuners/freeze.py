"""Train some of the base model's own parameters, chosen by name."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from glmft.config import split_names
from glmft.tuners.base import Tuner, train_only


@dataclass
class Freeze(Tuner):
    freeze_module_name: str
    name: ClassVar[str] = "freeze"

    def problems(self, model: nn.Module) -> list[str]:
        names = [name for name, _ in model.named_parameters()]
        return [
            f"--freeze_module_name {pattern}: matches no parameter; there are {', '.join(_kinds(names))}"
            for pattern in split_names(self.freeze_module_name) or ["(empty)"]
            if not matching(names, pattern)
        ]

    def apply(self, model: nn.Module) -> nn.Module:
        names = [name for name, _ in model.named_parameters()]
        train_only(model, {n for pattern in split_names(self.freeze_module_name) for n in matching(names, pattern)})
        return model


def matching(names: list[str], pattern: str) -> list[str]:
    """Names that hold the pattern as whole dotted parts (`layers.1` is not `layers.11`), else as a substring."""
    parts = f".{pattern.strip('.')}."
    return [n for n in names if parts in f".{n}."] or [n for n in names if pattern in n]


def _kinds(names: list[str]) -> list[str]:
    """Parameter names with the layers' numbers folded into one range."""
    layers = sorted({int(n.split(".layers.")[1].split(".")[0]) for n in names if ".layers." in n})
    folded = [n.replace(f".layers.{layers[0]}.", f".layers.{layers[0]}…{layers[-1]}.") for n in names]
    first = f".layers.{layers[0]}…"
    return [n for n in folded if ".layers." not in n or first in n]
