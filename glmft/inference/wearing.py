"""Adapters that are put onto a base and taken off again, so that several share one copy of its weights."""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from glmft.family import ADAPTER_JSON
from glmft.inference.loading import Place
from glmft.reading import is_file
from glmft.tuners import load_adapter, tuner_class
from glmft.tuners.lora import load_lora
from glmft.tuners.peft_config import changes_base, read_peft_config
from glmft.tuners.peft_prefix import is_peft_prefix

VIRTUAL = (
    "pre_seq_len",
    "prefix_projection",
    "prefix_hidden_size",
    "prompt_seq_len",
    "prompt_encoder",
    "prompt_hidden_size",
)
ENCODERS = ("prefix_encoder", "prompt_encoder")


class Adapter(Protocol):
    """What turns a base into another model. Nothing else is on the base while it is put on."""

    def put_on(self) -> None: ...

    def take_off(self) -> None: ...


class Nothing:
    """The base as it is."""

    def put_on(self) -> None:
        pass

    take_off = put_on


@dataclass
class VirtualTokens:
    """A prefix or a prompt: its encoder, and what the configuration says of it.

    Args:
        bare, worn: the configuration's values and the decoder's encoders, without it and with it.
    """

    model: Any
    bare: tuple[dict[str, Any], dict[str, nn.Module]]
    worn: tuple[dict[str, Any], dict[str, nn.Module]]

    def put_on(self) -> None:
        set_virtual(self.model, *self.worn)

    def take_off(self) -> None:
        set_virtual(self.model, *self.bare)


def virtual_of(model: Any) -> tuple[dict[str, Any], dict[str, nn.Module]]:
    """What a model has of virtual tokens."""
    modules = dict(model.base_model.named_children())
    return (
        {name: getattr(model.config, name) for name in VIRTUAL},
        {name: modules[name] for name in ENCODERS if name in modules},
    )


def set_virtual(model: Any, values: dict[str, Any], encoders: dict[str, nn.Module]) -> None:
    for name, value in values.items():
        setattr(model.config, name, value)
    for name in ENCODERS:
        if hasattr(model.base_model, name):
            delattr(model.base_model, name)
    for name, encoder in encoders.items():
        setattr(model.base_model, name, encoder)


@dataclass
class Swapped:
    """Tensors that take the place of the base's.

    Args:
        tensors: of each parameter, the base's and the other.
    """

    tensors: list[tuple[nn.Parameter, Tensor, Tensor]]

    def put_on(self) -> None:
        for parameter, _, other in self.tensors:
            parameter.data = other

    def take_off(self) -> None:
        for parameter, own, _ in self.tensors:
            parameter.data = own


@dataclass
class SharedLora:
    """One of the LoRA adapters that peft has on a base."""

    peft_model: Any
    name: str

    def put_on(self) -> None:
        self.peft_model.base_model.enable_adapter_layers()
        self.peft_model.base_model.set_adapter(self.name, inference_mode=True)

    def take_off(self) -> None:
        self.peft_model.base_model.disable_adapter_layers()


def is_lora(place: Place) -> bool:
    """Whether an adapter is LoRA, ours or peft's."""
    if is_file(place.adapter / ADAPTER_JSON):
        return place.train_type == "lora"
    return not is_peft_prefix(place.adapter)


def is_shareable(place: Place) -> bool:
    """Whether an adapter can be taken off again."""
    if is_lora(place):
        return not changes_base(read_peft_config(place.adapter))
    return place.train_type in (None, "ptuning", "prompt", "freeze")


def load_wearable(model: Any, place: Place, peft_model: Any = None) -> tuple[Adapter, Any]:
    """An adapter for a base that has nothing on but perhaps LoRA adapters, which are off; it is not put on.

    Args:
        peft_model: what peft made of the base for the LoRA adapters before.

    Returns:
        It, and peft's model.

    Raises:
        ConfigError, CheckpointError: see `glmft.tuners.load_adapter`.
    """
    if is_lora(place):
        model.requires_grad_(False)  # peft sees to it for the first adapter alone
        name = f"adapter{len(peft_model.peft_config) if peft_model else 0}"
        peft_model = load_lora(model, place.adapter, name, peft_model)
        peft_model.eval()
        adapter: Adapter = SharedLora(peft_model, name)
    elif place.train_type == "freeze":
        adapter = _load_freeze(model, place)
    else:
        adapter = _load_virtual(model, place)
    adapter.take_off()
    return adapter, peft_model


def _load_virtual(model: Any, place: Place) -> VirtualTokens:
    bare = virtual_of(model)
    try:
        load_adapter(model, place.adapter, place.train_type)
        model.eval()
        return VirtualTokens(model, bare, virtual_of(model))
    except Exception:
        set_virtual(model, *bare)
        raise


def _load_freeze(model: Any, place: Place) -> Swapped:
    parameters = dict(model.named_parameters())
    chosen = tuner_class("freeze").from_description(place.adapter).owned_by_base(list(parameters))
    own = {name: parameters[name].data for name in chosen}
    try:
        for name in chosen:
            parameters[name].data = own[name].clone()
        load_adapter(model, place.adapter, place.train_type)
        return Swapped([(parameters[name], own[name], parameters[name].data) for name in chosen])
    except Exception:
        for name in chosen:
            parameters[name].data = own[name]
        raise
