"""Settings of what makes folders ready, beside training."""

from dataclasses import dataclass

from glmft.family import FAMILIES
from glmft.settings.config import setting


@dataclass
class MergeConfig:
    """Fold LoRA weights into their base model; neither input is changed."""

    ori_model_dir: str | None = setting(None, "folder of the base model; none: the path that the adapter recorded")
    model_dir: str | None = setting(None, "folder of the LoRA adapter (required)")
    mode: str | None = setting(None, "model family; read off the folder where that shows it", choices=FAMILIES)
    output_dir: str | None = setting(None, "new folder for the merged model; none: merged/ in model_dir")
    max_shard_size: str = setting("2GB", "largest weight file")


@dataclass
class QuantizeConfig:
    """Write a base model with the weights of its layers in 8 or 4 bits, in the layout of the official INT4 folders."""

    model_name_or_path: str | None = setting(None, "folder of the base model; also the first argument (required)")
    bits: int = setting(4, "bits of a weight", ("--quantization_bit",), choices=(4, 8))
    mode: str | None = setting(None, "model family; read off the folder where that shows it", choices=FAMILIES)
    output_dir: str | None = setting(None, "new folder for the quantised model (required)")
    max_shard_size: str = setting("2GB", "largest weight file")
