"""From the name of a tuner to what trains and what is saved of it."""

import dataclasses
import importlib
from pathlib import Path

from torch import nn

from glmft.errors import ConfigError
from glmft.family import ADAPTER_JSON
from glmft.reading import is_file
from glmft.settings.config import TUNERS, TrainConfig
from glmft.tuners.base import Tuner
from glmft.tuners.lora import load_lora
from glmft.tuners.peft_prefix import is_peft_prefix
from glmft.tuners.prefix import put_prefix


def tuner_class(train_type: str) -> type[Tuner]:
    """The class that the table of tuners names."""
    module, _, name = TUNERS[train_type].rpartition(".")
    return getattr(importlib.import_module(module), name)


def settings_of(train_type: str) -> list[dataclasses.Field]:
    """Settings that a tuner alone has: its fields made by `setting` that are no flags of every run."""
    if train_type not in TUNERS:
        return []
    common = {f.name for f in dataclasses.fields(TrainConfig)}
    return [f for f in dataclasses.fields(tuner_class(train_type)) if "help" in f.metadata and f.name not in common]


def make_tuner(config: TrainConfig) -> Tuner:
    """The tuner that `config.train_type` names."""
    return tuner_class(config.train_type).from_config(config)


def load_adapter(model: nn.Module, folder: Path, train_type: str | None) -> nn.Module:
    """Put a saved adapter, ours or one that peft wrote, onto its base model.

    Raises:
        ConfigError: no tuner of that name.
        CheckpointError: the weights are missing, torn, or of another base.
    """
    if not is_file(folder / ADAPTER_JSON):
        if is_peft_prefix(folder):
            put_prefix(model, folder)
            return model
        return load_lora(model, folder)
    if train_type not in TUNERS:
        raise ConfigError(f"{folder}: train_type {train_type!r} is none of {', '.join(TUNERS)}")
    return tuner_class(train_type).from_description(folder).load(model, folder)
