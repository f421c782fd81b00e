"""`glmft merge`: fold LoRA weights into a copy of their base model, which then needs no adapter."""

from pathlib import Path

from glmft.commands.model_folder import check_target, write_model
from glmft.commands.quiet import quiet
from glmft.errors import ConfigError
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
    place = locate(config.model_dir, config.ori_model_dir)
    if place.adapter is None or place.train_type != "lora":
        raise ConfigError(f"--model_dir {config.model_dir}: holds no LoRA adapter; only LoRA weights can be merged")
    target = Path(config.output_dir) if config.output_dir else place.adapter / "merged"
    check_target(target, config.max_shard_size)

    import torch

    quiet()
    from glmft.models.loading import load_config, load_model, stored_dtype
    from glmft.tokenizers.loading import load_tokenizer
    from glmft.tuners.lora import load_lora

    base_config = load_config(place.base, place.mode(config.mode))
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
    write_model(merged, tokenizer, place.base, target, config.max_shard_size, place.record)
    return target
