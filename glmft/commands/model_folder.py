"""A model folder that a command writes: where it may go, and that it appears whole or not at all."""

import re
from pathlib import Path
from typing import Any

from glmft.errors import ConfigError
from glmft.family import RECORD_JSON
from glmft.files import new_folder, refusals_as, write_json


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
    record: dict[str, Any] | None = None,
) -> None:
    """Write a model, its tokenizer and the texts of its base's folder.

    Args:
        record: how it was trained.

    Raises:
        CheckpointError: the disk is full.
    """
    from glmft.models.loading import copy_texts

    with refusals_as(target, "free some space and give the same command again"), new_folder(target) as aside:
        model.save_pretrained(aside, max_shard_size=max_shard_size.upper())
        tokenizer.save_pretrained(aside)
        copy_texts(base, aside)
        if record:
            write_json(aside / RECORD_JSON, record)
