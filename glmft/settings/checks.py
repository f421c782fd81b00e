"""What the settings alone show to be wrong, all of it at once, before anything is read."""

import dataclasses
import math
import operator
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from glmft.errors import ConfigError, nearest
from glmft.settings.aliases import VALUES
from glmft.settings.config import TUNERS, DataSettings, TrainConfig
from glmft.settings.defaults import find_ds_file
from glmft.settings.sources import find_sources

LARGEST, LONGEST_TEXT, LONGEST_NAME, MOST_ITERATIONS = 2**31, 4096, 255, 100
STEPS = ("eval_steps", "show_loss_step", "save_model_step", "warmup_steps")
# Attention backends that are libraries of their own: their modules, and how to install them.
FLASH_ATTENTION = {
    "flash_attention_2": ("flash_attn", "pip install flash-attn --no-build-isolation"),
    "flash_attention_3": ("flash_attn_interface", "build it from hopper/ of github.com/Dao-AILab/flash-attention"),
}
KEEPS = {"at least": operator.ge, "more than": operator.gt, "at most": operator.le, "less than": operator.lt}


def check(config: TrainConfig) -> list[str]:
    """All problems that the settings alone show, one line each. Files are looked for, not read."""
    problems = text_problems(config)
    if problems:  # no path of them can be looked at
        return problems
    if config.train_type not in TUNERS:
        near = nearest(config.train_type, (*TUNERS, *VALUES["train_type"]))
        problems.append(f"--train_type {config.train_type}: is none of {', '.join(TUNERS)}, all{near}")
    if config.max_src_len is not None and config.max_src_len >= config.max_len:
        problems.append(
            f"--max_src_len {config.max_src_len} leaves no room for an answer in --max_len {config.max_len}; "
            "make it smaller, or max_len larger"
        )
    problems += length_problems(config)
    if config.resume is not None and config.resume != "yes" and not re.fullmatch(r"[0-9]{1,12}", config.resume):
        problems.append(f"--resume {config.resume}: is neither yes nor the step of a checkpoint in --output_dir")
    if config.resume is not None and config.overwrite_output_dir:
        problems.append("--resume and --overwrite_output_dir exclude each other; give one")
    problems += attention_problems(config.attn_implementation)
    problems += _validation_problems(config)
    problems += _tuner_problems(config)
    problems += range_problems(config)
    problems += [
        f"--{name} {value}: must be a whole number of optimizer steps, or below 1 a share of all"
        for name in STEPS
        if isinstance(value := getattr(config, name), float) and value > 1 and not value.is_integer()
    ]
    problems += _data_problems(config)
    problems += pipeline_problems(config)
    if config.model_name_or_path and not Path(config.model_name_or_path).is_dir():
        problems.append(f"--model_name_or_path {config.model_name_or_path}: no such folder (nothing is downloaded)")
    try:
        find_ds_file(config.ds_file)
    except ConfigError as error:
        problems += error.problems
    return problems


def _data_problems(config: TrainConfig) -> list[str]:
    problems = []
    for flag, path in (("--train_path", config.train_path), ("--val_path", config.val_path)):
        try:
            sources = find_sources(path, flag) if path else []
        except ConfigError as error:
            problems += error.problems
            continue
        weighted = bool(sources) and sources[0].weight is not None
        if weighted and flag == "--val_path":
            problems.append(f"--val_path {path}: validation takes no weights")
        if weighted and config.val_ratio:
            problems.append("--val_ratio: a share of mixed sources would be trained on too; give --val_path")
    if config.val_path and config.val_ratio:
        problems.append("--val_path and --val_ratio exclude each other; give one")
    return problems


def attention_problems(name: str) -> list[str]:
    """A line if an attention backend is not installed."""
    module, how = FLASH_ATTENTION.get(name, (None, ""))
    if module is None or find_spec(module) is not None:
        return []
    return [f"--attn_implementation {name}: flash-attn is not installed; {how}, or leave the flag out for sdpa"]


def require_attention(name: str) -> None:
    """Raises ConfigError if an attention backend is not installed."""
    if problems := attention_problems(name):
        raise ConfigError(problems)


def _validation_problems(config: TrainConfig) -> list[str]:
    validates = bool(config.val_path or config.val_ratio)
    watches = {"save_best": config.save_best, "early_stopping_patience": config.early_stopping_patience}
    needs = "--val_path or --val_ratio"
    problems = [f"--{n} {v}: needs {needs}" for n, v in watches.items() if v is not None and not validates]
    if config.save_best not in (None, "eval_loss") and not config.predict_with_generate:
        problems.append(f"--save_best {config.save_best}: is a score of answers; give --predict_with_generate too")
    return problems


def length_problems(config: DataSettings) -> list[str]:
    """What is wrong with the lengths: half of a pair, or both ways to give them."""
    pair = {"max_source_length": config.max_source_length, "max_target_length": config.max_target_length}
    given = [f"--{name}" for name, value in pair.items() if value is not None]
    if not given:
        return []
    if len(given) == 1:
        return [f"{given[0]}: needs the other of --max_source_length and --max_target_length"]
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    both = [f"--{name}" for name in ("max_len", "max_src_len") if getattr(config, name) != defaults[name]]
    problems = (
        [f"{', '.join(both)}: exclude --max_source_length and --max_target_length; give one pair"] if both else []
    )
    return problems


def _tuner_problems(config: TrainConfig) -> list[str]:
    problems = []
    if config.freeze_last_n is not None and config.freeze_module_name is not None:
        problems.append("--freeze_last_n and --freeze_module_name exclude each other; give one")
    if config.lora_dropout == 1:
        problems.append(
            f"--lora_dropout {config.lora_dropout}: drops all, so that nothing is learned; give less than 1"
        )
    if not is_lora_start(config.init_lora_weights):
        problems.append(
            f"--init_lora_weights {config.init_lora_weights}: is none of default, gaussian, pissa, pissa_niter_N with "
            f"N from 1 to {MOST_ITERATIONS}"
        )
    if config.init_lora_weights.startswith("pissa") and (config.use_dora or config.use_rslora):
        problems.append(
            "--init_lora_weights pissa: its conversion to plain LoRA holds without --use_dora, --use_rslora"
        )
    if config.ptuning_checkpoint and config.train_type != "ptuning":
        problems.append(f"--ptuning_checkpoint: starts a run of --train_type ptuning, not {config.train_type}")
    return problems


def pipeline_problems(config: TrainConfig) -> list[str]:
    """What does not go with stages of layers, one line each."""
    partition, problems = config.pipeline_partition, []
    if partition not in ("parameters", "time") and not re.fullmatch(r"[0-9]{1,4}(,[0-9]{1,4})*", partition):
        problems.append(
            f"--pipeline_partition {partition}: is neither parameters nor time nor layers of each stage, as 10,9,9"
        )
    if config.pipeline_stages == 1:
        return problems
    refused = {
        "--use_reentrant: gives no gradient across stages; leave it out, --gradient_checkpointing alone does": (
            config.use_reentrant
        ),
        "--predict_with_generate: no stage has the whole model; after the run answer with predict.py": (
            config.predict_with_generate
        ),
        "--cache_frozen_activations: keeps what comes into a layer of a whole model; leave it out": (
            config.cache_frozen_activations
        ),
        "--plan: reckons with whole models and ZeRO; leave one of the two out": config.plan,
        "--torch_compile: compiles layers of a whole model; leave it out": config.torch_compile,
        "--dtype fp16: its loss is not scaled across stages; take bf16 or fp32": config.dtype == "fp16",
        "--quantization_bit nf4: is loaded as a whole; take 4 or 8": config.quantization_bit == "nf4",
    }
    place = f"--pipeline_stages {config.pipeline_stages}"
    return problems + [f"{place} with {what}" for what, is_asked in refused.items() if is_asked]


def is_lora_start(name: str) -> bool:
    """Whether initial values of LoRA are called so."""
    iterations = re.fullmatch(r"pissa_niter_([0-9]{1,4})", name)
    return name in ("default", "gaussian", "pissa") or bool(iterations and 0 < int(iterations[1]) <= MOST_ITERATIONS)


def range_problems(config: Any) -> list[str]:
    """Numbers outside the limits that stand beside their settings, and those that are beyond all use."""
    problems = []
    for f in dataclasses.fields(config):
        value, limits = getattr(config, f.name), f.metadata["limits"]
        if value is None or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        limits = {"at most": LARGEST, **limits} if "less than" not in limits else limits
        is_finite = isinstance(value, int) or math.isfinite(value)
        if not (is_finite and all(KEEPS[name](value, limit) for name, limit in limits.items())):
            order = sorted(limits, key=["at least", "more than", "at most", "less than"].index)
            rule = " and ".join(f"{name} {limits[name]}" for name in order)
            problems.append(f"--{f.name} {value}: must be {rule}")
    return problems


def text_problems(config: Any) -> list[str]:
    """Texts that no file name, no JSON and no log line can hold."""
    problems = []
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if not isinstance(value, str):
            continue
        is_path = f.name == "config" or f.name.endswith(("_path", "_dir", "_file", "_checkpoint"))
        names = re.split(r"[/,]", value) if is_path else []
        if "\0" in value or not is_unicode(value):
            problems.append(f"--{f.name} {value}: holds bytes that are no UTF-8, or a NUL")
        elif len(value) > LONGEST_TEXT and f.name != "prompt":
            problems.append(f"--{f.name} {value}: is longer than {LONGEST_TEXT} characters")
        elif any(len(name.encode()) > LONGEST_NAME for name in names):
            problems.append(f"--{f.name} {value}: holds a name of more than {LONGEST_NAME} bytes")
    return problems


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
