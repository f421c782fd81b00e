"""Adapters of every tuner that have learned something, without a run."""

from pathlib import Path
from typing import Any

import torch

from glmft.models.loading import fingerprint, load_config, load_model, record_of
from glmft.tuners.base import Tuner
from glmft.tuners.freeze import Freeze
from glmft.tuners.lora import Lora
from glmft.tuners.prefix import Prefix
from glmft.tuners.prompt import Prompt

TUNERS: dict[str, Tuner] = {
    "lora": Lora(3, 6, 0.0, "all-linear"),
    "other-lora": Lora(2, 8, 0.0, "query_key_value"),
    "dora": Lora(3, 6, 0.0, "mlp", use_dora=True),
    "pissa": Lora(3, 6, 0.0, "all-linear", init_lora_weights="pissa"),
    "ptuning": Prefix(4, False),
    "projected": Prefix(3, True, 20),
    "prompt": Prompt(4, "none"),
    "lstm": Prompt(3, "lstm", 20),
    "freeze": Freeze("", 1, "mlp"),
}


def disturb(model: Any, seed: int = 5, scale: float = 0.3) -> None:
    """Stand-in for training: move everything that trains."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn_like(parameter))


def make_adapter(folder: Path, base: Path, tuner: Tuner, seed: int = 5, **trained_with: Any) -> Path:
    """A saved adapter of a base, in a new folder, which records how it was trained."""
    model = load_model(load_config(base), base, torch.float32)
    model = tuner.apply(model)
    disturb(model, seed)
    folder.mkdir(parents=True)
    described: dict[str, Any] = {"base_model_name_or_path": str(base), "base_fingerprint": fingerprint(base)}
    described |= {"family": load_config(base).family, "trained_with": trained_with or None}
    tuner.save(model, tuner.state(model), folder, described)
    return folder


def trained(tuner: Tuner, base: Path, folder: Path, seed: int = 2, scale: float = 0.05) -> Any:
    """The model itself, which stands saved in a new folder as a run leaves it."""
    model = tuner.apply(load_model(load_config(base), base, torch.float32)).eval()
    disturb(model, seed, scale)
    folder.mkdir()
    tuner.save(model, tuner.state(model), folder, record_of(load_config(base), base))
    return model
