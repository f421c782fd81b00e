"""Ways to train, by what they train: names and numbers of parameters."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from glmft.errors import ConfigError, nearest
from glmft.planning.shape import Shape
from glmft.settings.config import split_names
from glmft.settings.modules import GROUPS, PARTS, PRESETS, layer_numbers, matching


@dataclass(frozen=True)
class Way:
    """
    Args:
        names: the base's own parameters that train.
        lora: names of the linear modules under LoRA.
        rank, dropout: LoRA's; the latter also a prefix's.
        virtual: virtual tokens.
        is_prompt: whether they are embeddings that go through the layers, not keys and values of each.
        encoder: inputs and outputs of the linear modules that make them; the first's inputs are the tokens.
        recurrent: numbers of an LSTM before them.
        added: numbers that train beside the base, all together.
    """

    names: frozenset[str] = frozenset()
    lora: frozenset[str] = frozenset()
    rank: int = 0
    dropout: float = 0.0
    virtual: int = 0
    is_prompt: bool = False
    encoder: tuple[tuple[int, int], ...] = ()
    recurrent: int = 0
    added: int = 0

    def numbers(self, shape: Shape) -> int:
        """How many numbers train."""
        parameters = shape.parameters
        return self.added + sum(math.prod(parameters[name]) for name in self.names)


def way_of(config: Any, shape: Shape) -> Way:
    """What settings of `TunerSettings` train. Raises ConfigError for names that match nothing, and unknown tuners."""
    if config.train_type not in _WAYS:
        raise ConfigError(f"--train_type {config.train_type}: its sums are not known; they belong into {__name__}")
    return _WAYS[config.train_type](config, shape)


def _full(config: Any, shape: Shape) -> Way:
    return Way(frozenset(shape.parameters))


def _freeze(config: Any, shape: Shape) -> Way:
    names = list(shape.parameters)
    last = config.freeze_last_n or (1 if config.freeze_module_name is None else 0)
    if not last:
        patterns = {pattern: matching(names, pattern) for pattern in split_names(config.freeze_module_name)}
        if missed := [pattern for pattern, found in patterns.items() if not found] or ([] if patterns else ["(empty)"]):
            raise ConfigError(f"--freeze_module_name {pattern}: matches no parameter" for pattern in missed)
        return Way(frozenset(name for found in patterns.values() for name in found))
    if last > shape.layers:
        raise ConfigError(f"--freeze_last_n {last}: the model has {shape.layers} layers")
    parts, chosen = PARTS[config.freeze_part], layer_numbers(names)[-last:]
    found = [n for i in chosen for n in matching(names, f"layers.{i}") if any(part in n for part in parts)]
    return Way(frozenset(found))


def _lora(config: Any, shape: Shape) -> Way:
    parameters, modules = shape.parameters, shape.linear_modules
    linear = {n.removesuffix(".weight"): p for n, p in parameters.items() if n.endswith(".weight") and len(p) == 2}
    words = next(iter(shape.around)).removesuffix(".weight")  # the embedding is no linear module
    targets: set[str] = set()
    for given in split_names(config.lora_module_name) or ["(empty)"]:
        names = [name for name in GROUPS.get(given, [given]) if name in modules] or [given]
        found = {full for full in linear for name in names if f".{full}".endswith(f".{name}") and full != words}
        if not found:
            near = nearest(given, (*modules, *PRESETS))
            there = ", ".join([*modules, *PRESETS])
            raise ConfigError(f"--lora_module_name {given}: matches no linear module; valid names are {there}{near}")
        targets |= found
    saved = split_names(config.modules_to_save)
    whole = [name for given in saved for name in parameters if f".{given}." in f".{name}."]
    added = config.lora_dim * sum(sum(linear[name]) for name in targets)
    dropout = config.lora_dropout
    return Way(frozenset(whole), frozenset(targets), rank=config.lora_dim, dropout=dropout, added=added)


def _ptuning(config: Any, shape: Shape) -> Way:
    width, tokens = shape.prefix_width, config.pre_seq_len
    if config.prefix_projection:
        inner = config.prefix_hidden_size or shape.hidden
        first = width if shape.layout == "glm2" else shape.hidden
        encoder = ((tokens, first), (first, inner), (inner, width))
    else:
        encoder = ((tokens, width),)
    biases = sum(outputs for _, outputs in encoder[1:])
    added = sum(a * b for a, b in encoder) + biases
    return Way(virtual=tokens, dropout=config.prefix_dropout, encoder=encoder, added=added)


def _prompt(config: Any, shape: Shape) -> Way:
    size, tokens = shape.hidden, config.pre_seq_len
    inner = config.prompt_hidden_size or size
    linear: dict[str, tuple[tuple[int, int], ...]] = {
        "none": (),
        "mlp": ((size, inner), (inner, inner), (inner, size)),
        "lstm": ((2 * inner, 2 * inner), (2 * inner, size)),
    }
    encoder = linear[config.prompt_encoder]
    added = tokens * size + sum(a * b + b for a, b in encoder)
    recurrent = 0
    if config.prompt_encoder == "lstm":  # two layers, two directions, four gates, two biases each
        recurrent = 2 * 4 * inner * (size + inner + 2) + 2 * 4 * inner * (2 * inner + inner + 2)
    encoder = ((tokens, size), *encoder)
    return Way(virtual=tokens, is_prompt=True, encoder=encoder, recurrent=recurrent, added=added + recurrent)


_WAYS: Mapping[str, Callable[[Any, Shape], Way]] = {
    "full": _full,
    "freeze": _freeze,
    "lora": _lora,
    "ptuning": _ptuning,
    "prompt": _prompt,
}
