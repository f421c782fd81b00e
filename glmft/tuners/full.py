"""Train every parameter; what is saved is a complete model folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from glmft.errors import CheckpointError
from glmft.family import RECORD_JSON
from glmft.models.carried import carry_files, name_official_classes
from glmft.tuners.base import Tuner, gather_named, train_only


@dataclass
class Full(Tuner):
    name: ClassVar[str] = "full"
    usual_rates: ClassVar[tuple[float, float]] = (1e-6, 2e-4)
    saves_whole_model: ClassVar[bool] = True

    def owned_by_base(self, names: list[str]) -> set[str]:
        return set(names)

    @property
    def needs_floats(self) -> str:
        return (
            f"--train_type {self.name}: trains the base's own weights, which a quantised base does not have in floats; "
            "train lora, ptuning or prompt over it, or take the full-precision base without --quantization_bit"
        )

    def apply(self, model: nn.Module) -> nn.Module:
        train_only(model)
        return model

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """Parameters, and the buffers that official checkpoints carry."""
        persistent = {name: t.detach().cpu() for name, t in model.named_buffers() if name in model.state_dict()}
        return gather_named(model.named_parameters()) | persistent

    def save(self, model: nn.Module, state: dict[str, Tensor], folder: Path, base: dict[str, Any]) -> None:
        model.save_pretrained(folder, state_dict=state, max_shard_size="2GB")
        self.save_description(folder, base, RECORD_JSON)
        if "base_model_name_or_path" in base:
            carry_files(Path(base["base_model_name_or_path"]), folder)
            name_official_classes(folder)

    def load(self, model: nn.Module, folder: Path) -> nn.Module:
        raise CheckpointError(f"{folder}: holds a whole model, but no config.json; copy it again")
