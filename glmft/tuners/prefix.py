"""P-Tuning v2 (Liu et al., 2021): train keys and values of virtual tokens in front of every layer."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from glmft.errors import CheckpointError
from glmft.models.prefix import PrefixEncoder
from glmft.models.stored import require_finite, require_fit
from glmft.reading import is_file
from glmft.tuners.base import ADAPTER_WEIGHTS, Tuner, load_checked, load_named, save_checked, train_only
from glmft.tuners.peft_prefix import is_peft_prefix, read_peft_prefix

# Under the base model's own prefix: `transformer.` in the official layout, `model.` in transformers' own.
EMBEDDING = "prefix_encoder.embedding.weight"
PROJECTION, PROJECTED = "prefix_encoder.trans.0.weight", "prefix_encoder.trans.2.weight"
OFFICIAL_WEIGHTS = "pytorch_model.bin"


@dataclass
class Prefix(Tuner):
    """
    Args:
        pre_seq_len: virtual tokens.
        prefix_projection: make keys and values by embedding, linear, tanh, linear.
        prefix_hidden_size: width between the two linear layers; None: the model's own, as in the official code.
        prefix_dropout: of its keys and values, drawn for each record, as in the official code.
        ptuning_checkpoint: a trained prefix to start from; its shape then replaces the settings above.
    """

    pre_seq_len: int
    prefix_projection: bool
    prefix_hidden_size: int | None = None
    ptuning_checkpoint: str | None = None
    prefix_dropout: float = 0.1
    name: ClassVar[str] = "ptuning"
    usual_rates: ClassVar[tuple[float, float]] = (1e-4, 5e-2)

    def problems(self, model: nn.Module) -> list[str]:
        if self.ptuning_checkpoint is None:
            return []
        try:
            check_fit(model, read_prefix(Path(self.ptuning_checkpoint), model), self.ptuning_checkpoint)
        except CheckpointError as error:
            return list(error.problems)
        return []

    def apply(self, model: nn.Module) -> nn.Module:
        start = None
        if self.ptuning_checkpoint is not None:
            start = read_prefix(Path(self.ptuning_checkpoint), model)
            check_fit(model, start, self.ptuning_checkpoint)
            self.pre_seq_len, self.prefix_projection, self.prefix_hidden_size = shape_of(start)
        config = model.config
        config.pre_seq_len, config.prefix_projection = self.pre_seq_len, self.prefix_projection
        config.prefix_hidden_size = self.prefix_hidden_size
        model.base_model.add_prefix_encoder()
        model.base_model.dropout.p = self.prefix_dropout
        encoder = model.base_model.prefix_encoder
        encoder.to(model.get_input_embeddings().weight.device)
        initialise(encoder)
        train_only(model, {n for n, _ in model.named_parameters() if "prefix_encoder." in n})
        if start is not None:
            named = {f"{model.base_model_prefix}.{name}": tensor for name, tensor in start.items()}
            load_named(model, named, Path(self.ptuning_checkpoint))
        return model

    def save(self, model: nn.Module, state: dict[str, Tensor], folder: Path, base: dict[str, Any]) -> None:
        """Also in the form of the official P-Tuning checkpoints."""
        save_checked(state, folder / ADAPTER_WEIGHTS)
        torch.save(state, folder / OFFICIAL_WEIGHTS)
        dataclasses.replace(self, ptuning_checkpoint=None).save_description(folder, base)

    def load(self, model: nn.Module, folder: Path) -> nn.Module:
        model = super(Prefix, dataclasses.replace(self, ptuning_checkpoint=None)).load(model, folder)
        model.base_model.prefix_encoder.to(model.dtype)
        return model


def initialise(encoder: nn.Module) -> None:
    """Fill in every value as the official code does: torch's own defaults, so a standard normal embedding."""
    for module in encoder.modules():
        if isinstance(module, nn.Embedding | nn.Linear):
            module.reset_parameters()


def read_prefix(path: Path, model: nn.Module | None = None) -> dict[str, Tensor]:
    """The `prefix_encoder.*` tensors of an official P-Tuning checkpoint, an adapter (ours or peft's), or one file.

    Both layouts hold the same numbers, so a prefix of either goes onto a base of either. peft's hangs on the model.

    Raises:
        CheckpointError: no such file, one that cannot be read, or one without a prefix.
    """
    if model is not None and is_peft_prefix(path):
        return {EMBEDDING: read_peft_prefix(model, path)}
    file = path
    if path.is_dir():
        file = next((path / name for name in (ADAPTER_WEIGHTS, OFFICIAL_WEIGHTS) if is_file(path / name)), path)
    if not is_file(file):
        raise CheckpointError(f"{path}: no prefix here; name a folder with {OFFICIAL_WEIGHTS}, or the file")
    state = load_checked(file)
    parts = {name: name.partition("prefix_encoder.")[1:] for name in state}
    state = {"".join(parts[name]): tensor for name, tensor in state.items() if parts[name][0]}
    if EMBEDDING not in state:
        raise CheckpointError(f"{file}: holds no transformer.{EMBEDDING}; name a P-Tuning v2 checkpoint")
    if any(t.ndim != (1 if name.endswith("bias") else 2) or not t.is_floating_point() for name, t in state.items()):
        raise CheckpointError(f"{file}: holds tensors that are no matrices of floating-point numbers")
    require_finite(state.items(), file)
    return state


def shape_of(state: dict[str, Tensor]) -> tuple[int, bool, int | None]:
    """Length, whether it is projected, and the width inside the projection."""
    projection = state.get(PROJECTION)
    return len(state[EMBEDDING]), projection is not None, None if projection is None else len(projection)


def flattened(model: nn.Module, state: dict[str, Tensor], place: str | Path) -> Tensor:
    """The embedding [P, 2 layers groups d] of a prefix without projection that says what this one says, in float32.

    Raises:
        CheckpointError: it was trained on a model of another shape.
    """
    check_fit(model, state, place)
    length, projected, hidden_size = shape_of(state)
    config = model.config
    encoder = PrefixEncoder(
        length,
        *config.key_value_shape,
        projected,
        embedding_size=state[EMBEDDING].shape[1],
        hidden_size=hidden_size or config.hidden_size,
    )
    encoder.load_state_dict({name.partition(".")[2]: tensor.float() for name, tensor in state.items()})
    with torch.no_grad():
        return encoder().permute(3, 0, 1, 2, 4).flatten(1).contiguous()


def check_fit(model: nn.Module, state: dict[str, Tensor], place: str | Path) -> None:
    """Raises CheckpointError if a prefix was trained on a model of another shape."""
    config = model.config
    layers_there, heads, size = config.key_value_shape
    layer = 2 * heads * size
    projected = state.get(PROJECTED)
    width = state[EMBEDDING].shape[1] if projected is None else len(projected)
    if width != layer * layers_there:
        layers = f"{width // layer} layers" if width % layer == 0 else f"width {width}"
        raise CheckpointError(
            f"{place}: a prefix of {layers}, the model has {layers_there} of {layer}; name the prefix's base"
        )
    trained = Prefix(*shape_of(state)).expected(model, place)
    expected = {name.partition(".")[2]: shape for name, shape in trained.items()}
    wrong = [f"{n} {list(t.shape)} has another shape" for n, t in state.items() if list(t.shape) != expected.get(n)]
    require_fit(Path(place), expected.keys() - state.keys(), state.keys() - expected.keys(), wrong)


def put_prefix(model: nn.Module, path: Path) -> None:
    """Put a trained prefix onto a base model; its length and projection are read off its tensors.

    Raises:
        CheckpointError: it holds no `transformer.prefix_encoder.*`, or fits another model.
    """
    Prefix(0, False, ptuning_checkpoint=str(path)).apply(model)
    model.base_model.prefix_encoder.to(model.dtype)
