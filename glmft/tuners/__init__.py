"""The tuners by name: what is trained, and what is saved of it."""

from pathlib import Path

from torch import nn

from glmft.errors import ConfigError
from glmft.family import ADAPTER_JSON
from glmft.settings.config import TrainConfig
from glmft.tuners.base import Tuner
from glmft.tuners.freeze import Freeze
from glmft.tuners.full import Full
from glmft.tuners.lora import Lora, load_lora
from glmft.tuners.prefix import Prefix
from glmft.tuners.prompt import Prompt

TUNERS: dict[str, type[Tuner]] = {
    "full": Full,
    "freeze": Freeze,
    "ptuning": Prefix,
    "prompt": Prompt,
    "lora": Lora,
}


def make_tuner(config: TrainConfig) -> Tuner:
    """The tuner that `config.train_type` names."""
    return TUNERS[config.train_type].from_config(config)


def load_adapter(model: nn.Module, folder: Path, train_type: str | None) -> nn.Module:
    """Put a saved adapter, ours or one that peft wrote, onto its base model.

    Raises:
        ConfigError: no tuner of that name.
        CheckpointError: the weights are missing, torn, or of another base.
    """
    if not (folder / ADAPTER_JSON).is_file():
        return load_lora(model, folder)
    if train_type not in TUNERS:
        raise ConfigError(f"{folder}: train_type {train_type!r} is none of {', '.join(TUNERS)}")
    return TUNERS[train_type].from_description(folder).load(model, folder)
