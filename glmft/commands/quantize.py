"""`glmft quantize`: write a base model with the weights of its layers in 8 or 4 bits, as the official folders are."""

from pathlib import Path

from glmft.commands.model_folder import check_target, write_model
from glmft.commands.quiet import quiet
from glmft.errors import ConfigError
from glmft.inference.loading import locate
from glmft.settings.tools import QuantizeConfig


def quantize(config: QuantizeConfig) -> str:
    """Write the quantised model beside the base, which stays as it is. Returns a line on what came out.

    Raises:
        ConfigError: no base, one that is quantised already, or an output folder that holds something.
        CheckpointError: the base's files do not fit its config.json, or the disk is full.
    """
    if config.model_name_or_path is None or config.output_dir is None:
        raise ConfigError("name the model and a new folder: glmft quantize MODEL --bits 4 --output_dir FOLDER")
    place = locate(config.model_name_or_path)
    if place.adapter:
        raise ConfigError(f"{place.adapter}: is an adapter; quantise its base {place.base}, or merge it first")
    target = Path(config.output_dir)
    check_target(target, config.max_shard_size)

    quiet()
    from glmft.models.loading import is_quantised, load_config, load_model, stored_dtype, weight_files
    from glmft.tokenizers.loading import load_tokenizer

    if is_quantised(place.base):
        raise ConfigError(f"{place.base}: is quantised already; name the full-precision base")
    base_config = load_config(place.base, place.mode(config.mode), str(config.bits))
    model = load_model(base_config, place.base, stored_dtype(place.base))
    tokenizer = load_tokenizer(place.base, base_config.family)
    write_model(model, tokenizer, place.base, target, config.max_shard_size, place.record)
    before, after = (sum(file.stat().st_size for file in weight_files(folder)) for folder in (place.base, target))
    return f"quantised model in {target}: {after:,} bytes of weights, {after / before:.0%} of the base's"
