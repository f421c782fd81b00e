"""P-Tuning v2 (Liu et al., 2021): train keys and values of virtual tokens in front of every layer."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import nn

from glmft.errors import CheckpointError
from glmft.tuners.base import ADAPTER_WEIGHTS, Tuner, load_checked, load_named, train_only


@dataclass
class Prefix(Tuner):
    pre_seq_len: int
    prefix_projection: bool
    name: ClassVar[str] = "ptuning"

    def apply(self, model: nn.Module) -> nn.Module:
        model.config.pre_seq_len = self.pre_seq_len
        model.config.prefix_projection = self.prefix_projection
        model.transformer.add_prefix_encoder()
        encoder = model.transformer.prefix_encoder
        encoder.to(model.get_input_embeddings().weight.device)
        initialise(encoder)
        train_only(model, {n for n, _ in model.named_parameters() if "prefix_encoder." in n})
        return model

    def load(self, model: nn.Module, folder: Path) -> nn.Module:
        model = self.apply(model)
        load_named(model, load_checked(folder / ADAPTER_WEIGHTS), folder)
        model.transformer.prefix_encoder.to(model.dtype)
        return model


def initialise(encoder: nn.Module) -> None:
    """Fill in every value as the official code does: torch's own defaults, so a standard normal embedding."""
    for module in encoder.modules():
        if isinstance(module, nn.Embedding | nn.Linear):
            module.reset_parameters()


def put_prefix(model: nn.Module, file: Path) -> None:
    """Put a trained prefix onto a base model; its length and projection are read off its tensors.

    Raises:
        CheckpointError: the file holds no `transformer.prefix_encoder.*`, or it fits another model.
    """
    state = {name: t for name, t in load_checked(file).items() if "prefix_encoder." in name}
    embedding = state.get("transformer.prefix_encoder.embedding.weight")
    if embedding is None:
        raise CheckpointError(f"{file}: holds no transformer.prefix_encoder.embedding.weight; name a prefix file")
    projected = "transformer.prefix_encoder.trans.0.weight" in state
    Prefix(len(embedding), projected).apply(model)
    load_named(model, state, file)
    model.transformer.prefix_encoder.to(model.dtype)
