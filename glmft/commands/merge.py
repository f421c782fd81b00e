"""`glmft merge`: fold LoRA weights into a copy of their base model, which then needs no adapter."""

import re
from pathlib import Path

from glmft.commands.quiet import quiet
from glmft.errors import ConfigError
from glmft.files import new_folder, refusals_as
from glmft.inference.loading import locate, warn_of_quantisation
from glmft.settings.tools import MergeConfig


def merge(config: MergeConfig) -> Path:
    """Write the merged model and return its folder. The inputs stay as they are.

    Raises:
        ConfigError: no LoRA adapter, no base, or an output folder that holds something.
        CheckpointError: the adapter does not fit the base, or the disk is full.
    """
    if config.model_dir is None:
        raise ConfigError("--model_dir: name the folder of the LoRA adapter")
    if not re.fullmatch(r"[1-9][0-9]{0,5}(KB|MB|GB)", config.max_shard_size.upper()):
        raise ConfigError(f"--max_shard_size {config.max_shard_size}: is no size such as 500MB or 2GB")
    place = locate(config.model_dir, config.ori_model_dir)
    if place.adapter is None or place.train_type != "lora":
        raise ConfigError(f"--model_dir {config.model_dir}: holds no LoRA adapter; only LoRA weights can be merged")
    target = Path(config.output_dir) if config.output_dir else place.adapter / "merged"
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target}: exists already; name another folder with --output_dir")

    import torch

    quiet()
    from glmft.models.loading import load_config, load_model, stored_dtype
    from glmft.tokenizers.loading import load_tokenizer
    from glmft.tuners.lora import load_lora

    base_config = load_config(place.base, config.mode)
    if base_config.quantisation:
        raise ConfigError(
            f"{place.base}: is quantised ({base_config.quantisation}), so that what is merged would be rounded away; "
            "name the full-precision base with --ori_model_dir"
        )
    warn_of_quantisation(place, base_config)
    model = load_model(base_config, place.base, stored_dtype(place.base))
    model = load_lora(model, place.adapter)
    with torch.no_grad():
        merged = model.merge_and_unload(safe_merge=True)
    tokenizer = load_tokenizer(place.base, base_config.family)
    with refusals_as(target, "free some space and give the same command again"):
        _write(merged, tokenizer, place.base, target, config.max_shard_size.upper())
    return target


def _write(model: object, tokenizer: object, base: Path, target: Path, max_shard_size: str) -> None:
    from glmft.models.loading import copy_texts

    with new_folder(target) as aside:
        model.save_pretrained(aside, max_shard_size=max_shard_size)
        tokenizer.save_pretrained(aside)
        copy_texts(base, aside)
