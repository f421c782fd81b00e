"""How a model was trained, as its adapter or its folder records it; it holds wherever no flag says otherwise."""

import dataclasses
import typing
from pathlib import Path
from typing import Any, TypeVar

from glmft.family import FAMILIES
from glmft.schema import FLAG, NULL, OBJECT, Kind, number, one_of, problems, text, whole
from glmft.settings.config import DataSettings

TRAINED_WITH = "trained_with"  # the key in a description
PAIR, SINGLE = ("max_source_length", "max_target_length"), ("max_len", "max_src_len")  # two ways to give lengths
RECORDED = (
    *("template", *SINGLE, *PAIR),
    *("input_separator", "source_prefix", "prompt_column", "response_column", "history_column"),
)
Settings = TypeVar("Settings", bound=DataSettings)


def record_of_settings(config: DataSettings) -> dict[str, Any]:
    """What is recorded of the settings of a run."""
    return {name: getattr(config, name) for name in RECORDED}


def kind_of(f: dataclasses.Field, hint: Any, flag: Any = None) -> Kind:
    """What a setting may be when a file says it: its type, within the limits of its flag.

    Args:
        flag: the metadata of the flag, if the field has none of its own.
    """
    types, flag = set(typing.get_args(hint)) or {hint}, f.metadata if "limits" in f.metadata else flag or {}
    limits, choices = flag.get("limits", {}), flag.get("choices")
    low, high = limits.get("at least", 0), limits.get("at most", limits.get("less than", 2**31))
    named = one_of(*choices) if choices else text()
    plain = {bool: FLAG, int: whole(low, high), float: number(low, high), str: named}
    kind = next(plain[t] for t in plain if t in types)
    return kind | NULL if type(None) in types else kind


# What is read of a description before a model is loaded.
DESCRIBED = {
    "train_type": text(longest=100),
    "family": text(longest=100) | NULL,
    "base_model_name_or_path": text() | NULL,
    "base_fingerprint": text(longest=100) | NULL,
    "base_embedding": text(longest=100) | NULL,
    "base_quantization": text(longest=100) | NULL,
    TRAINED_WITH: OBJECT | NULL,
}


def description_problems(described: dict[str, Any], place: Path) -> list[str]:
    """A line for each value of a description that is not what it must be."""
    families = {"family": one_of(*FAMILIES) | NULL}  # looked up late: a program may add one
    wrong = problems(described, DESCRIBED | families, place)
    trained = described.get(TRAINED_WITH)
    if isinstance(trained, dict):
        hints = typing.get_type_hints(DataSettings)
        kinds = {f.name: kind_of(f, hints[f.name]) for f in dataclasses.fields(DataSettings) if f.name in RECORDED}
        wrong += problems(trained, kinds, f"{place}: {TRAINED_WITH}")
    return wrong


def trained_with(described: dict[str, Any]) -> DataSettings | None:
    """The settings that a description without problems records; None: it is from before they were recorded."""
    trained = described.get(TRAINED_WITH)
    return None if not trained else DataSettings(**{name: trained[name] for name in RECORDED if name in trained})


def as_trained(config: Settings, trained: DataSettings | None) -> tuple[Settings, list[str]]:
    """Settings with what the model was trained with where they are None; else with the defaults of training.

    Returns:
        Them, and lines on what of the training is taken and what is overridden.
    """
    given = {name: value for name in RECORDED if (value := getattr(config, name)) is not None}
    default = DataSettings()
    values = {name: getattr(trained or default, name) for name in RECORDED}
    overridden = [name for name, value in given.items() if value != values[name]]
    left_out = PAIR if any(name in given for name in SINGLE) else SINGLE if any(name in given for name in PAIR) else ()
    values |= {name: getattr(default, name) for name in left_out} | given
    if "max_len" in given and "max_src_len" not in given and (values["max_src_len"] or 0) >= values["max_len"]:
        values["max_src_len"] = None
    lines = []
    if trained is not None:
        taken = [n for n in RECORDED if n not in given and values[n] == getattr(trained, n) != getattr(default, n)]
        lines += [f"as the model was trained: {', '.join(_shown(n, values[n]) for n in taken)}"] if taken else []
        lines += [
            f"--{_shown(name, given[name])}: overrides {_shown(name, getattr(trained, name))}, which the model was "
            "trained with"
            for name in overridden
        ]
    return dataclasses.replace(config, **values), lines


def _shown(name: str, value: Any) -> str:
    return f"{name} {value!r}" if value == "" or (isinstance(value, str) and not value.isalnum()) else f"{name} {value}"
