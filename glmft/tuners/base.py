"""The protocol of a tuner: four plain things, and a check of its settings before any weight is loaded."""

import copy
import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Self, get_type_hints

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from glmft.dist import gathered, is_main
from glmft.elsewhere import is_weightless, weightless
from glmft.errors import CheckpointError, ConfigError, one_line
from glmft.family import ADAPTER_JSON
from glmft.files import share
from glmft.models.stored import require_finite, require_fit
from glmft.reading import read_json
from glmft.schema import Kind, problems, text
from glmft.settings.config import TrainConfig
from glmft.settings.recorded import kind_of
from glmft.weights import FLOATS, StoredTensors, open_weights

ADAPTER_WEIGHTS = "glmft_adapter.safetensors"


class Tuner(ABC):
    """A way to train; subclasses are dataclasses whose fields are the settings that the adapter records."""

    name: ClassVar[str]
    usual_rates: ClassVar[tuple[float, float]] = (0.0, float("inf"))  # of learning, over models of billions of numbers
    saves_whole_model: ClassVar[bool] = False  # what is saved is a model folder, which needs no base

    @classmethod
    def from_config(cls, config: TrainConfig) -> Self:
        """Take the fields from the settings of the same names."""
        given = {**vars(config), **config.tuner_settings}
        return cls(**{f.name: given[f.name] for f in dataclasses.fields(cls) if f.name in given})

    def problems(self, model: nn.Module) -> list[str]:
        """What is wrong with the settings for this model (which may lie on the meta device), one line each."""
        return []

    def owned_by_base(self, names: list[str]) -> set[str]:
        """Which of the base model's parameters train."""
        return set()

    @property
    def reads_base_weights(self) -> str:
        """What of the settings makes `apply` look at the base's weights or copy them; empty if nothing does."""
        return ""

    @property
    def needs_floats(self) -> str:
        """Why this cannot train over quantised weights, and what to do instead; empty if it can."""
        return ""

    @abstractmethod
    def apply(self, model: nn.Module) -> nn.Module:
        """Mark what trains (float32) and freeze the rest; may wrap the model."""

    def learning_rate_ratio(self, name: str) -> float:
        """Learning rate of a parameter over the run's."""
        return 1.0

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """What was trained, by name, on the CPU of rank 0; empty elsewhere.

        Collective under ZeRO-3, where only these tensors are gathered.
        """
        return gather_named((name, p) for name, p in model.named_parameters() if p.requires_grad)

    def save(self, model: nn.Module, state: dict[str, Tensor], folder: Path, base: dict[str, Any]) -> None:
        """Write `state` and what it needs to be loaded again.

        Args:
            base: what the adapter records of its base (path, family and fingerprint) and of the settings of its run.
        """
        save_checked(state, folder / ADAPTER_WEIGHTS)
        self.save_description(folder, base)

    def save_description(self, folder: Path, base: dict[str, Any], name: str = ADAPTER_JSON) -> None:
        described = {"train_type": self.name, **dataclasses.asdict(self), **base}
        (folder / name).write_text(json.dumps(described, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_description(cls, folder: Path) -> Self:
        """The tuner that a saved adapter describes."""
        described = read_json(folder / ADAPTER_JSON)
        if wrong := problems(described, kinds_of(cls), folder / ADAPTER_JSON):
            raise ConfigError(wrong)
        fields = dataclasses.fields(cls)
        missing = [f.name for f in fields if f.name not in described and f.default is dataclasses.MISSING]
        if missing:
            raise CheckpointError(f"{folder / ADAPTER_JSON}: lacks {', '.join(missing)}")
        return cls(**{f.name: described[f.name] for f in fields if f.name in described})

    def load(self, model: nn.Module, folder: Path) -> nn.Module:
        """Put a saved adapter onto its base model. Raises CheckpointError unless it is exactly what was trained."""
        require_adapter(StoredTensors([folder / ADAPTER_WEIGHTS]), self.expected(model, folder), folder)
        model = self.apply(model)
        load_named(model, load_checked(folder / ADAPTER_WEIGHTS), folder)
        return model

    def expected(self, model: nn.Module, place: str | Path) -> dict[str, list[int]]:
        """Names and shapes of what is trained on a model, found without memory for them.

        Args:
            place: for the message of the CheckpointError, where these settings do not fit the model.
        """
        try:
            with torch.device("meta"):
                bare = self.apply(without_weights(model))
        except (RuntimeError, ValueError, TypeError) as error:
            raise CheckpointError(f"{place}: does not fit the base model ({one_line(error)})") from None
        return {name: list(p.shape) for name, p in bare.named_parameters() if p.requires_grad}


def kinds_of(tuner: type) -> dict[str, Kind]:
    """What a description may say: for each field of a tuner its type, within the limits of the flag of its name."""
    flags = {f.name: f.metadata for f in dataclasses.fields(TrainConfig)}
    kinds, hints = {"base_model_name_or_path": text(), "base_fingerprint": text(longest=100)}, get_type_hints(tuner)
    for f in dataclasses.fields(tuner):
        kinds[f.name] = kind_of(f, hints[f.name], flags.get(f.name))
    return kinds


def without_weights(model: nn.Module) -> nn.Module:
    """A model of the same shape, without memory behind its tensors."""
    with torch.device("meta"):
        return type(model)(copy.deepcopy(model.config))


def require_adapter(stored: StoredTensors, expected: dict[str, list[int]], folder: str | Path) -> None:
    """Raises CheckpointError unless there are exactly the expected names, in their shapes, and as floats."""
    wrong = [
        f"{name} {stored.shapes[name]} does not fit the model's {shape}"
        for name, shape in expected.items()
        if name in stored and stored.shapes[name] != shape
    ]
    wrong += [f"{name} holds {f}, no floating-point numbers" for name, f in stored.formats.items() if f not in FLOATS]
    require_fit(Path(folder), expected.keys() - stored.keys(), stored.keys() - expected.keys(), wrong)


def train_only(model: nn.Module, names: Iterable[str] | None = None) -> None:
    """Train exactly these parameters, in float32; None: all."""
    chosen = None if names is None else set(names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(chosen is None or name in chosen)
    cast_trainable(model, torch.float32)


def cast_trainable(model: nn.Module, dtype: torch.dtype) -> None:
    """Give what trains a number format."""
    for parameter in model.parameters():
        # What ZeRO-3 has partitioned was loaded in its number format.
        if parameter.requires_grad and parameter.dtype != dtype and not hasattr(parameter, "ds_id"):
            here = parameter.data
            parameter.data = weightless(here.shape, dtype) if is_weightless(here) else here.to(dtype)


def gather_named(named: Iterable[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
    """Whole CPU copies of parameters on rank 0, gathered one at a time under ZeRO-3; elsewhere nothing."""
    state = {}
    for name, parameter in named:
        with gathered([parameter]):
            if not is_main():
                continue
            state[name] = parameter.detach().to("cpu", copy=True).contiguous()
    return state


def save_checked(state: dict[str, Tensor], path: Path) -> None:
    """Write tensors and read them back: an adapter never comes out empty or torn.

    Raises:
        CheckpointError: nothing to save, or the file does not hold what was written.
    """
    if not state or any(t.numel() == 0 for t in state.values()):
        raise CheckpointError(f"{path}: refused to write an empty adapter ({len(state)} tensors)")
    save_file(state, path, metadata={"format": "pt"})
    share(path)
    again = load_checked(path)
    if again.keys() != state.keys() or not all(torch.equal(again[k], t) for k, t in state.items()):
        raise CheckpointError(f"{path}: the file does not hold what was written; check the disk")


def load_checked(path: Path) -> dict[str, Tensor]:
    """Tensors of a weight file. Raises CheckpointError with one line for a missing or torn one."""
    if path.suffix != ".safetensors":
        return open_weights(path)
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: is missing") from None
    except Exception as error:  # safetensors' own class is no subclass of a public one
        raise CheckpointError(f"{path}: is no readable safetensors file ({error}); copy it again") from None


def load_named(model: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    """Copy tensors into the parameters of the same names. Raises CheckpointError on any mismatch."""
    parameters = dict(model.named_parameters())
    problems = [
        f"{folder}: {name} {list(t.shape)} does not fit "
        + (f"the model's {list(parameters[name].shape)}" if name in parameters else "any parameter of the model")
        for name, t in state.items()
        if name not in parameters or parameters[name].shape != t.shape
    ]
    if problems:
        raise CheckpointError(problems[:5])
    require_finite(state.items(), folder)
    with torch.no_grad():
        for name, tensor in state.items():
            parameters[name].copy_(tensor)
