"""A model folder that a command writes: where it may go, and that it appears whole or not at all."""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmft.errors import CheckpointError, ConfigError
from glmft.family import RECORD_JSON
from glmft.files import new_folder, refusals_as, write_json

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
FREE_SPACE = "free some space and give the same command again"


def check_target(target: Path, max_shard_size: str) -> None:
    """Raises ConfigError if something stands there, or the size of a weight file is none."""
    if not re.fullmatch(r"[1-9][0-9]{0,5}(KB|MB|GB)", max_shard_size.upper()):
        raise ConfigError(f"--max_shard_size {max_shard_size}: is no size such as 500MB or 2GB")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target}: exists already; name another folder with --output_dir")


def write_model(
    model: Any,
    tokenizer: Any,
    base: Path,
    target: Path,
    max_shard_size: str,
    record: dict[str, Any],
) -> None:
    """Write a model, its tokenizer and what else its base's folder has.

    Args:
        record: how it was trained, if it was.

    Raises:
        CheckpointError: the disk is full.
    """
    from glmft.models.carried import carry_files, name_official_classes

    with refusals_as(target, FREE_SPACE), new_folder(target) as aside:
        model.save_pretrained(aside, max_shard_size=max_shard_size.upper())
        tokenizer.save_pretrained(aside)
        write_record(record, aside)
        carry_files(base, aside)
        name_official_classes(aside)


@dataclass
class Merged:
    """A model that is not written yet.

    Args:
        model: without memory behind its tensors.
        base: the folder that other files are carried from.
        streams: its tensors.
        reference: makes a model that computes what the written one must.
        rounded_to: the format that weights are rounded to on the way; None: none is.
        record: how it was trained.
    """

    model: Any
    base: Path
    streams: list[Any]
    reference: Callable[[], Any]
    rounded_to: Any = None
    record: dict[str, Any] = field(default_factory=dict)


def write_merged(merged: Merged, target: Path, max_shard_size: str, ending: str, verify: bool) -> str:
    """Write a model whose tensors are made on the way, in its base's layout.

    Returns:
        what the check of it came to, which is made before it takes its place.
    """
    from glmft.inference.verification import compare
    from glmft.models.carried import carry_files, name_official_classes
    from glmft.tokenizers.loading import load_tokenizer
    from glmft.weights import write_streams

    tokenizer = load_tokenizer(merged.base, merged.model.config.family)
    require_room(target, sum(stream.nbytes for stream in merged.streams))
    with refusals_as(target, FREE_SPACE), new_folder(target) as aside:
        write_streams(merged.streams, aside, size_of(max_shard_size), ending)
        write_settings(merged.model, tokenizer, merged.base, aside)
        write_record(merged.record, aside)
        carry_files(merged.base, aside)
        name_official_classes(aside)
        if not verify:
            return "not verified"
        return compare(merged.reference(), aside, tokenizer, merged.rounded_to)


def write_record(record: dict[str, Any], folder: Path) -> None:
    """How a model was trained, if it was, beside it."""
    if record:
        write_json(folder / RECORD_JSON, record)


def size_of(text: str) -> int:
    """Bytes of a size that `check_target` has seen."""
    return int(text[:-2]) * UNITS[text[-2:].upper()]


def write_settings(model: Any, tokenizer: Any, base: Path, folder: Path) -> None:
    """config.json, tokenizer and, unless the base has one that is carried, generation_config.json."""
    from glmft.models.configuration import ChatGLM2Config
    from glmft.models.stops import stop_ids

    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if (base / "generation_config.json").is_file():
        return
    generation = model.generation_config
    stops = stop_ids(model.config, base) if isinstance(model.config, ChatGLM2Config) else None
    if stops and isinstance(generation.eos_token_id, int | None):
        generation.eos_token_id = stops
    generation.save_pretrained(folder)


def require_room(target: Path, needed: int) -> None:
    """Raises CheckpointError if the disk has less room than the weights take."""
    there = next(parent for parent in target.absolute().parents if parent.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise CheckpointError(
            f"{target}: takes {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB left; {FREE_SPACE}, or name "
            "another place with --output_dir"
        )
