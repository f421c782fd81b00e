"""LoRA (Hu et al., 2021) through peft."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from glmft.config import split_names
from glmft.errors import CheckpointError
from glmft.tuners.base import Tuner, gather_named, load_checked, save_checked

WEIGHTS, DESCRIPTION = "adapter_model.safetensors", "adapter_config.json"


@dataclass
class Lora(Tuner):
    lora_dim: int
    lora_alpha: float
    lora_dropout: float
    lora_module_name: str
    name: ClassVar[str] = "lora"

    def problems(self, model: nn.Module) -> list[str]:
        linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        valid = sorted({name.rsplit(".", 1)[-1] for name in linear} - {"output_layer", "lm_head"})
        return [
            f"--lora_module_name {name}: matches no linear module; valid names are {', '.join(valid)}"
            for name in split_names(self.lora_module_name) or ["(empty)"]
            if not any(full == name or full.endswith(f".{name}") for full in linear)
        ]

    def apply(self, model: nn.Module) -> nn.Module:
        from peft import LoraConfig, get_peft_model

        alpha = int(self.lora_alpha) if float(self.lora_alpha).is_integer() else self.lora_alpha
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=self.lora_dim,
            lora_alpha=alpha,
            lora_dropout=self.lora_dropout,
            target_modules=split_names(self.lora_module_name),
            bias="none",
        )
        return get_peft_model(model, config)  # makes its own parameters float32

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """Under the names that peft gives them in files."""
        from peft import get_peft_model_state_dict

        trained = gather_named((name, p) for name, p in model.named_parameters() if p.requires_grad)
        return get_peft_model_state_dict(model, state_dict=trained)

    def save(self, model: nn.Module, state: dict[str, Tensor], folder: Path, base: dict[str, Any]) -> None:
        save_checked(state, folder / WEIGHTS)
        config = model.peft_config["default"]
        config.base_model_name_or_path, training = base["base_model_name_or_path"], config.inference_mode
        config.inference_mode = True  # as peft's own save_pretrained writes it
        config.save_pretrained(folder)
        config.inference_mode = training
        self.save_description(folder, base)

    def load(self, model: nn.Module, folder: Path) -> nn.Module:
        from peft import PeftModel

        load_checked(folder / WEIGHTS)
        try:
            return PeftModel.from_pretrained(model, folder)
        except (RuntimeError, ValueError, TypeError, json.JSONDecodeError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{folder}: the LoRA weights do not fit the base model ({reason})") from None
