"""What holds where a user gives nothing, and what the project ships."""

import dataclasses
import re
from pathlib import Path

from glmft.errors import ConfigError
from glmft.settings.config import TrainConfig

EMBEDDED = "examples/quickstart"
# As ChatGLM3's demo, ms-swift and LLaMA-Factory call them.
DS_ALIASES = {
    "ds_zero_2.json": "ds_zero2_no_offload.json",
    "ds_zero_3.json": "ds_zero3_no_offload.json",
    "zero0": "ds_zero0.json",
    "zero1": "ds_zero1.json",
    "zero2": "ds_zero2_no_offload.json",
    "zero3": "ds_zero3_no_offload.json",
    "zero2_offload": "ds_zero2_offload.json",
    "zero3_offload": "ds_zero3_offload.json",
    "ds_z0_config.json": "ds_zero0.json",
    "ds_z2_config.json": "ds_zero2_no_offload.json",
    "ds_z3_config.json": "ds_zero3_no_offload.json",
    "ds_z2_offload_config.json": "ds_zero2_offload.json",
    "ds_z3_offload_config.json": "ds_zero3_offload.json",
}


def shipped(relative: str) -> Path:
    """A file or folder that comes with the project: in the checkout, or beside the installed package."""
    package = Path(__file__).resolve().parents[1]
    return next((p for p in (package.parent / relative, package / relative) if p.exists()), package.parent / relative)


def with_defaults(config: TrainConfig) -> tuple[TrainConfig, list[str]]:
    """Fill in the embedded base and sample where nothing is given; also the lines that say so."""
    lines, changes = [], {}
    if config.model_name_or_path is None:
        changes["model_name_or_path"] = str(shipped(f"{EMBEDDED}/base"))
        lines.append(f"no --model_name_or_path given: the embedded tiny base, {changes['model_name_or_path']}")
    if config.train_path is None:
        changes["train_path"] = str(shipped(f"{EMBEDDED}/train.json"))
        lines.append(f"no --train_path given: the shipped sample, {changes['train_path']}")
    config = dataclasses.replace(config, **changes)
    if config.output_dir is None:
        config = dataclasses.replace(config, output_dir=default_output_dir(config))
        lines.append(f"no --output_dir given: {config.output_dir}")
    return config, lines


def default_output_dir(config: TrainConfig) -> str:
    """output/DATA-MODEL-TUNER-LEARNING_RATE."""
    model = Path(config.model_name_or_path).resolve()
    model_name = "tiny" if model == shipped(f"{EMBEDDED}/base").resolve() else model.name
    virtual = f"-{config.pre_seq_len}"
    size = {"lora": f"-{config.lora_dim}", "ptuning": virtual, "prompt": virtual}.get(config.train_type, "")
    rate = f"{config.learning_rate:g}"
    first = Path(config.train_path.split(",")[0].split(":")[0]).name.split(".")[0]
    data = re.sub(r"\W+", "-", first).strip("-") or "data"
    return str(Path("output") / f"{data}-{model_name}-{config.train_type}{size}-{rate}")


def find_ds_file(name: str) -> Path:
    """A DeepSpeed file by path, else by name in ds_configs/, or by the name that another project has for it.

    Raises:
        ConfigError: there is none; the message lists the shipped ones.
    """
    folder = shipped("ds_configs")
    for path in (Path(name), folder / name, folder / f"{name}.json", folder / DS_ALIASES.get(Path(name).name, name)):
        if path.is_file():
            return path
    names = ", ".join(sorted(p.name for p in folder.glob("*.json")))
    raise ConfigError(f"--ds_file {name}: no such file, nor one of {names}")
