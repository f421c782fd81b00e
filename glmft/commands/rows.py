"""From data settings to the rows that a model learns, for training and for a look at them."""

import os
from pathlib import Path
from typing import Any

from glmft.data.dataset import Rows, lengths_of, load_rows, packed, split
from glmft.data.sampler import Plan
from glmft.dist import cache_home
from glmft.settings.config import DataSettings, LearningSettings, TrainConfig
from glmft.settings.sources import Source, find_sources


def training_rows(config: TrainConfig, tokenizer: Any) -> tuple[Rows, Rows | None]:
    """What is trained on, packed if so asked, and what is validated on (None: nothing). Raises DataError."""
    rows, validation = learned_rows(config, find_sources(config.train_path), tokenizer, config.seed), None
    if config.val_ratio:
        rows, validation = split(rows, config.val_ratio, config.seed)
    elif config.val_path:
        validation = learned_rows(config, find_sources(config.val_path, "--val_path"), tokenizer, config.seed)
    if config.packing:
        rows = packed(rows, lengths_of(config, tokenizer.family).max_len, config.seed)
    return rows, validation


def dealt(config: TrainConfig, lengths: list[int], ranks: int) -> Plan:
    """Which rows make up which micro-batch, on which rank."""
    return Plan(
        len(lengths),
        config.per_device_train_batch_size,
        config.gradient_accumulation_steps,
        ranks,
        config.seed,
        lengths if config.group_by_length else None,
        lengths,
        config.max_tokens_per_batch,
        config.join_micro_batches and config.pipeline_stages == 1,  # many of them keep a pipeline's stages busy
    )


def beyond_the_model(settings: DataSettings, lengths: list[int], family: str, built_for: int | None) -> list[str]:
    """A warning where rows are, or a length that was asked for is, longer than what a model was built for.

    Args:
        lengths: of rows, in tokens.
        built_for: tokens, as its config.json says.
    """
    longest, longer = lengths_of(settings, family).max_len, sum(length > (built_for or 0) for length in lengths)
    is_asked = settings.max_len != DataSettings.max_len or settings.max_source_length is not None
    if not built_for or longest <= built_for or not (longer or is_asked):
        return []
    flag = "max_source_length and --max_target_length" if settings.max_source_length is not None else "max_len"
    return [
        f"warning: rows of up to {longest} tokens (--{flag}) are allowed, but the model was built for {built_for} "
        f"(seq_length); {longer} of {len(lengths)} rows are longer"
    ]


def learned_rows(settings: LearningSettings, sources: list[Source], tokenizer: Any, seed: int) -> Rows:
    """What is learned of some files, from their cache. Raises DataError."""
    home = Path(settings.cache_dir) if settings.cache_dir else cache_home()
    workers = settings.num_proc or min(8, os.cpu_count() or 1)
    return load_rows(sources, settings, tokenizer, seed, home, workers)
