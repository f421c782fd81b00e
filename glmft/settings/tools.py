"""Settings of what is done beside training: a look at data, and folders that are made ready."""

from dataclasses import dataclass

from glmft.family import FAMILIES
from glmft.settings.config import FileSettings, LearningSettings
from glmft.settings.setting import setting


@dataclass
class InspectConfig(FileSettings, LearningSettings):
    """Show what a model would learn of a file: a report, and the tokens and labels of chosen records."""

    data_path: str | None = setting(None, "files of records, as train_path; also the first argument (required)")
    model_name_or_path: str | None = setting(None, "folder with the tokenizer; none: the embedded tiny base")
    mode: str | None = setting(None, "model family; read off the folder where that shows it", choices=FAMILIES)
    records: str = setting("0", "comma-separated numbers of rows to show, counted from 0; none: the report alone")
    color: str = setting("auto", "color what is learned; auto: on a terminal", choices=("auto", "always", "never"))


@dataclass
class MergeConfig(FileSettings):
    """Make one servable model folder of a base and what was trained on it; neither input is changed."""

    ori_model_dir: str | None = setting(None, "folder of the base model; none: the path that the adapter recorded")
    model_dir: str | None = setting(
        None, "folder of what was trained (required); of LoRA also several with weights, a:0.7,b:0.3"
    )
    mode: str | None = setting(None, "model family; read off the folder where that shows it", choices=FAMILIES)
    output_dir: str | None = setting(None, "new folder for the merged model; none: merged/ in model_dir")
    max_shard_size: str = setting("2GB", "largest weight file")
    format: str = setting("safetensors", "kind of weight file; bin for old servers", choices=("safetensors", "bin"))
    verify: bool = setting(True, "compare the written model's logits with those of base and adapter")


@dataclass
class ExportConfig(FileSettings):
    """Hand a model or an adapter over to other programs; nothing that is there is changed."""

    model_name_or_path: str | None = setting(
        None, "folder of a model or an adapter; also the first argument (required)"
    )
    to: str = setting(
        "official",
        "transformers: its own GlmForCausalLM; official: the official layout; peft, official-ptuning: adapters",
        choices=("official", "transformers", "peft", "official-ptuning"),
    )
    base_model_path: str | None = setting(None, "an adapter's base model; none: the path that it recorded")
    layout: str = setting(
        "transformers", "peft: whose names of modules LoRA gets", choices=("transformers", "official")
    )
    mode: str | None = setting(None, "model family; read off the folder where that shows it", choices=FAMILIES)
    output_dir: str | None = setting(None, "new folder; none: the model's with -transformers, -peft … behind its name")
    max_shard_size: str = setting("2GB", "largest weight file")
    format: str = setting("safetensors", "kind of weight file; bin for old servers", choices=("safetensors", "bin"))
    verify: bool = setting(True, "compare the written model's logits with those of what it was made of")


@dataclass
class QuantizeConfig(FileSettings):
    """Write a base model with the weights of its layers in 8 or 4 bits, in the layout of the official INT4 folders."""

    model_name_or_path: str | None = setting(None, "folder of the base model; also the first argument (required)")
    bits: int = setting(4, "bits of a weight", choices=(4, 8))
    mode: str | None = setting(None, "model family; read off the folder where that shows it", choices=FAMILIES)
    output_dir: str | None = setting(None, "new folder for the quantised model (required)")
    max_shard_size: str = setting("2GB", "largest weight file")
