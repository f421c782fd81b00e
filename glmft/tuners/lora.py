"""LoRA (Hu et al., 2021) through peft."""

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from glmft.errors import CheckpointError, one_line
from glmft.models.stored import require_finite
from glmft.settings.config import split_names
from glmft.settings.modules import GROUPS, PRESETS
from glmft.tuners.base import (
    Tuner,
    cast_trainable,
    gather_named,
    load_checked,
    require_adapter,
    save_checked,
    without_weights,
)
from glmft.tuners.peft_config import PEFT_WEIGHTS, adapter_file, lora_config, read_peft_config, write_peft_config
from glmft.weights import StoredTensors

NO_TARGETS = {"output_layer", "lm_head"}


@dataclass
class Lora(Tuner):
    """
    Args:
        lora_module_name: comma-separated names of linear modules, or of `PRESETS`.
        use_rslora: scale by alpha / sqrt(r) (Kalajdzievski, 2023).
        use_dora: weight-decomposed (Liu et al., 2024).
        init_lora_weights: `default`, `gaussian`, `pissa` or `pissa_niter_N` (Meng et al., 2024). PiSSA takes the main
            components out of the base weights; what is saved is converted to plain LoRA of twice the rank, which
            holds on the untouched base.
        loraplus_lr_ratio: learning rate of B over that of A (Hayou et al., 2024).
        modules_to_save: comma-separated modules that are trained whole and saved beside.
    """

    lora_dim: int
    lora_alpha: float
    lora_dropout: float
    lora_module_name: str
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: str = "default"
    loraplus_lr_ratio: float | None = None
    modules_to_save: str = ""
    name: ClassVar[str] = "lora"
    usual_rates: ClassVar[tuple[float, float]] = (1e-5, 5e-3)

    def target_modules(self, model: nn.Module) -> list[str]:
        """The names given; groups, and names of the other layout, as the names that the model has for them."""
        linear = {last(name) for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        found: list[str] = []
        for given in split_names(self.lora_module_name):
            found += [name for name in GROUPS.get(given, []) if name in linear] or [given]
        return list(dict.fromkeys(found))

    def problems(self, model: nn.Module) -> list[str]:
        modules = dict(model.named_modules())
        linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
        valid = sorted({last(name) for name in linear} - NO_TARGETS)
        there = ", ".join(sorted({last(name) for name in modules if name}))
        problems = [
            f"--lora_module_name {name}: matches no linear module; valid names are {', '.join([*valid, *PRESETS])}"
            for name in self.target_modules(model) or ["(empty)"]
            if not any(is_at(full, name) for full in linear)
        ]
        for name in split_names(self.modules_to_save):
            whole = [full for full in modules if is_at(full, name)]
            if not whole:
                problems.append(f"--modules_to_save {name}: matches no module; there are {there}")
            elif model.config.quantisation and any(holds_linear_of_layers(model, full) for full in whole):
                problems.append(
                    f"--modules_to_save {name}: holds quantised weights, which cannot train; name others, or leave "
                    "--quantization_bit out"
                )
        return problems

    @property
    def reads_base_weights(self) -> str:
        given = {"PiSSA": self.is_pissa, "DoRA": self.use_dora, "--modules_to_save": bool(self.modules_to_save)}
        return next((name for name, is_on in given.items() if is_on), "")

    @property
    def needs_floats(self) -> str:
        reads = {
            "--use_dora: takes the norms of the base's weights in every step": self.use_dora,
            f"--init_lora_weights {self.init_lora_weights}: takes the main components out of the base's weights": (
                self.is_pissa
            ),
        }
        mend = ", which a quantised base does not have in floats; leave it out, or --quantization_bit"
        return next((f"{what}{mend}" for what, is_on in reads.items() if is_on), "")

    def apply(self, model: nn.Module) -> nn.Module:
        from peft import LoraConfig, get_peft_model

        from glmft.tuners.lora_linear import in_one_step

        alpha = int(self.lora_alpha) if float(self.lora_alpha).is_integer() else self.lora_alpha
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=self.lora_dim,
            lora_alpha=alpha,
            lora_dropout=self.lora_dropout,
            target_modules=self.target_modules(model),
            bias="none",
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
            init_lora_weights=True if self.init_lora_weights == "default" else self.init_lora_weights,
            modules_to_save=split_names(self.modules_to_save) or None,
        )
        model = get_peft_model(model, config)
        in_one_step(model)
        cast_trainable(model, torch.float32)  # peft does so with its own parameters, not with whole modules
        if self.is_pissa:
            self.initial = {n: p.detach().to("cpu", copy=True) for n, p in model.named_parameters() if "lora_" in n}
        return model

    def expected(self, model: nn.Module, place: str | Path) -> dict[str, list[int]]:
        """The main components of weights that are not there would take an hour: their shapes are those of any start."""
        plain = dataclasses.replace(self, init_lora_weights="default") if self.is_pissa else self
        return super(Lora, plain).expected(model, place)

    @property
    def is_pissa(self) -> bool:
        return self.init_lora_weights.startswith("pissa")

    def learning_rate_ratio(self, name: str) -> float:
        return self.loraplus_lr_ratio if self.loraplus_lr_ratio and "lora_B." in name else 1.0

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """Under the names that peft gives them in files; PiSSA as plain LoRA."""
        from peft import get_peft_model_state_dict

        trained = gather_named((name, p) for name, p in model.named_parameters() if p.requires_grad)
        if not trained:  # not on rank 0
            return {}
        if self.is_pissa:
            trained |= as_plain_lora(trained, self.initial)
        return get_peft_model_state_dict(model, state_dict=trained)

    def save(self, model: nn.Module, state: dict[str, Tensor], folder: Path, base: dict[str, Any]) -> None:
        save_checked(state, folder / PEFT_WEIGHTS)
        config = copy.deepcopy(model.peft_config["default"])
        config.base_model_name_or_path = base["base_model_name_or_path"]
        config.inference_mode = True  # as peft's own save_pretrained writes it
        if self.is_pissa:
            config.r, config.lora_alpha, config.init_lora_weights = 2 * config.r, 2 * config.lora_alpha, True
        write_peft_config(config, folder)
        self.save_description(folder, base)

    def load(self, model: nn.Module, folder: Path) -> nn.Module:
        return load_lora(model, folder)


def load_lora(model: nn.Module, folder: Path, name: str = "default", peft_model: Any = None) -> Any:
    """Put a LoRA folder, ours or one that peft wrote, onto its base model.

    Args:
        name: of the adapter on that model.
        peft_model: what peft made of the base for an adapter before, which stays.

    Returns:
        peft's model.

    Raises:
        ConfigError: its description says what it must not.
        CheckpointError: the weights are missing, torn, or not exactly those that the description asks for.
    """
    from peft import get_peft_model, set_peft_model_state_dict

    from glmft.tuners.lora_linear import in_one_step

    given = read_peft_config(folder)
    file = adapter_file(folder)
    require_adapter(StoredTensors([file]), expected_lora(model, given, folder), folder)
    state = load_checked(file)
    require_finite(state.items(), folder)
    if peft_model is None:
        peft_model = get_peft_model(model, lora_config(given), adapter_name=name)
    else:
        peft_model.add_adapter(name, lora_config(given))
    set_peft_model_state_dict(peft_model, state, adapter_name=name)
    in_one_step(peft_model)  # it then computes to the bit what was trained
    return peft_model


def expected_lora(model: nn.Module, given: dict[str, Any], folder: Path) -> dict[str, list[int]]:
    """Names and shapes of the weights that a description asks for on a model, found without memory for them."""
    return shapes_in_files(bare_lora(model, given, folder))


def bare_lora(model: nn.Module, given: dict[str, Any], folder: Path) -> nn.Module:
    """A model with the layers that a description asks for, without memory. Raises CheckpointError if it has others."""
    from peft import get_peft_model

    try:
        with torch.device("meta"):
            return get_peft_model(without_weights(model), lora_config({**given, "init_lora_weights": True}))
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise CheckpointError(f"{folder}: does not fit the base model ({one_line(error)})") from None


def shapes_in_files(bare: nn.Module) -> dict[str, list[int]]:
    """What peft would save of a model."""
    from peft import get_peft_model_state_dict

    with torch.device("meta"):
        state = get_peft_model_state_dict(bare)
    return {name: list(tensor.shape) for name, tensor in state.items()}


def as_plain_lora(trained: dict[str, Tensor], initial: dict[str, Tensor]) -> dict[str, Tensor]:
    """PiSSA's weights as LoRA of twice the rank on the untouched base: B A - B0 A0 = [B, -B0] [A; A0]."""
    plain = {}
    for name, tensor in trained.items():
        if "lora_A." in name:
            plain[name] = torch.cat((tensor, initial[name].to(tensor)), dim=0)
        elif "lora_B." in name:
            plain[name] = torch.cat((tensor, -initial[name].to(tensor)), dim=1)
    return plain


def last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def is_at(full: str, name: str) -> bool:
    """Whether a module's dotted name ends with `name`, as peft matches."""
    return full == name or full.endswith(f".{name}")


def holds_linear_of_layers(model: nn.Module, name: str) -> bool:
    """Whether a module is, or holds, one of those linear modules that quantisation is about."""
    linear = (full for full, module in model.named_modules() if isinstance(module, nn.Linear) and ".layers." in full)
    return any(f"{full}.".startswith(f"{name}.") for full in linear)
