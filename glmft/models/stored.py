"""Whether the weights of a folder are those of the model that its config.json describes: by their headers, before
anything is built or read, and by their numbers, once they are there.
"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glmft.errors import CheckpointError
from glmft.models.config_file import layers_of
from glmft.weights import StoredTensors

EMBEDDINGS = (
    "transformer.embedding.word_embeddings.weight",
    "transformer.word_embeddings.weight",
    "model.embed_tokens.weight",
)


def is_of_prefix(name: str) -> bool:
    """Whether a tensor belongs to a P-Tuning prefix."""
    return ".prefix_encoder." in name


def require_size(config: Any, stored: StoredTensors, folder: Path) -> None:
    """Raises CheckpointError if the model would have other layers or another width than the weights, or there is none.

    Called before a model is built, even without memory behind it.
    """
    embedding = next((name for name in EMBEDDINGS if name in stored), None)
    if embedding is None and any(is_of_prefix(name) for name in stored):
        raise CheckpointError(
            f"{folder}: holds a P-Tuning prefix and no model; name its base with --model_name_or_path, and this folder "
            "with --ptuning_checkpoint"
        )
    if embedding is None:
        raise CheckpointError(
            f"{folder}: the embedding of words ({' or '.join(EMBEDDINGS)}) is missing from the weights"
        )
    there, shape = layers_of(stored), [config.vocab_size, config.hidden_size]
    if there < config.num_hidden_layers:
        raise CheckpointError(
            f"{folder}: the weights have {there} layers, config.json says "
            f"{config.num_hidden_layers}; copy the folder again"
        )
    if stored.shapes[embedding] != shape:
        raise CheckpointError(
            f"{folder}: {embedding} {stored.shapes[embedding]} has another shape than config.json says ({shape})"
        )


def require_fit(folder: Path, missing: Iterable[str], unexpected: Iterable[str], misshapen: Iterable[str]) -> None:
    """Raises CheckpointError if any tensor does not fit the model: the first five, and how many more there are.

    Args:
        misshapen: what is wrong with each tensor of another shape.
    """
    problems = [f"{folder}: {name} is missing from the weights" for name in sorted(missing)]
    problems += [f"{folder}: {name} belongs to no part of the model" for name in sorted(unexpected)]
    problems += [f"{folder}: {problem}" for problem in misshapen]
    if problems:
        raise CheckpointError(problems[:5] + ([f"{folder}: and {len(problems) - 5} more"] if problems[5:] else []))


def tied_names(model: nn.Module) -> set[str]:
    """Parameters that are another one under a second name."""
    return set(getattr(model, "all_tied_weights_keys", None) or {})


def tie_as_officially(model: nn.Module, folder: Path, stored: Mapping[str, Tensor] | None = None) -> None:
    """Give ChatGLM-6B's head the embedding's weight, as the official code does whatever the files hold, and say so.

    Args:
        stored: the files' tensors, where the model has no head of its own any more that shows it.
    """
    config = model.config
    if config.family != "glm" or not config.tie_word_embeddings:
        return
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    differ = head.weight is not embedding.weight
    if stored is not None:
        (name, other), *_ = model.all_tied_weights_keys.items()
        differ = name in stored and not torch.equal(stored[name], stored[other])
    if differ:
        head.weight = embedding.weight
        logging.getLogger("glmft").warning(
            f"warning: {folder}: lm_head.weight is not the embedding's; it is left out, as the official code does, "
            'unless config.json says "tie_word_embeddings": false'
        )


def require_finite(named: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """Raises CheckpointError if a weight is infinite or not a number.

    It takes one pass over the memory: 10 GB/s and core, an eighth of a second for a gigabyte.
    """
    require_fit(folder, (), (), [f"{name} holds numbers that are not finite" for name, t in named if not is_finite(t)])


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are. A sum tells at the speed of the memory; where it overflows, the extremes do."""
    if tensor.numel() == 0 or tensor.is_meta or not tensor.is_floating_point():
        return True
    return bool(tensor.sum().isfinite()) or all(bool(extreme.isfinite()) for extreme in torch.aminmax(tensor))
