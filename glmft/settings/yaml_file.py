"""Settings from YAML: our own names at the top level, or the nested files of ChatGLM3's and GLM-4's demos, unchanged.

Both become flags, so that what is checked and overridden is the same wherever a value comes from.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from glmft.errors import ConfigError, nearest

# The demo's sections; what they hold is taken as if it stood at the top level.
SECTIONS = ("data_config", "training_args", "peft_config", "generation_config")
DATA_FILES = ("train_file", "val_file", "test_file")
PEFT_TYPES = {"LORA": "lora", "PREFIX_TUNING": "ptuning"}
PEFT_NAMES = {"r": "lora_dim", "num_virtual_tokens": "pre_seq_len", "target_modules": "lora_module_name"}
# What its library's trainer does where a file says nothing.
DEMO_DEFAULTS = {
    "weight_decay": 0.0,
    "warmup_ratio": 0.0,
    "lr_scheduler_type": "linear",
    "min_lr_ratio": 0.0,
    "adam_beta2": 0.999,
}
DEMO_FORM = "DATA_DIR MODEL CONFIG.yaml [yes|STEP]"


def demo_arguments(argv: list[str]) -> list[str]:
    """The demo's positional form `DATA_DIR MODEL CONFIG.yaml [yes|STEP]` as flags; other arguments as they are.

    Raises:
        ConfigError: fewer or more words than that.
    """
    count = next((i for i, argument in enumerate(argv) if argument.startswith("-")), len(argv))
    words, flags = argv[:count], argv[count:]
    if not words:
        return argv
    if len(words) not in (3, 4) or not words[2].endswith((".yaml", ".yml")):
        raise ConfigError(f"{' '.join(words)}: give flags, or {DEMO_FORM}")
    resume = ["--resume", words[3]] if len(words) == 4 else []
    return ["--data_dir", words[0], "--model_name_or_path", words[1], "--config", words[2], *resume, *flags]


def yaml_arguments(path: Path, known: Collection[str], data_dir: str | None = None) -> list[str]:
    """The settings of a YAML file as flags.

    Args:
        known: all names of settings, without dashes.
        data_dir: what the file's data paths are relative to.

    Raises:
        ConfigError: no readable YAML mapping, or keys that are no settings; all of them at once.
    """
    given = read_yaml(path)
    is_demo = any(section in given for section in SECTIONS)
    values = dict(DEMO_DEFAULTS) if is_demo else {}
    problems = []
    for key, value in flat(given, path):
        name = PEFT_NAMES.get(key, key)
        if name == "peft_type":
            name, value = "train_type", PEFT_TYPES.get(str(value).upper())
            if value is None:
                problems.append(f"{path}: peft_type is none of {', '.join(PEFT_TYPES)}")
            elif value == "ptuning":
                values["prefix_projection"] = False
        elif name == "combine":  # GLM-4's demo
            if not isinstance(value, bool):
                problems.append(f"{path}: combine is {value!r}; give True or False")
            name, value = "loss_on", "combined" if value else "all"
        elif name == "task_type":
            continue
        elif name not in known:
            problems.append(f"{path}: {key}: no such setting{nearest(name, known)}")
        if value is not None:
            values[name] = in_folder(value, data_dir) if name in DATA_FILES and data_dir else value
    if problems:
        raise ConfigError(problems)
    if is_demo and "peft_config" not in given:
        values.setdefault("train_type", "full")
    return [part for name, value in values.items() for part in (f"--{name}", as_text(value))]


def read_yaml(path: Path) -> dict[str, Any]:
    """Raises ConfigError if it is missing, broken or no mapping."""
    import yaml

    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: is no YAML ({' '.join(str(error).split())})") from None
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise ConfigError(f"--config {path}: must hold settings as `name: value`")
    return given


def flat(given: dict[str, Any], path: Path) -> Iterator[tuple[str, Any]]:
    """Names and values, those of sections too."""
    for key, value in given.items():
        if key in SECTIONS and isinstance(value, dict):
            yield from flat(value, path)
        elif isinstance(value, dict):
            raise ConfigError(f"{path}: {key}: is a section; the sections are {', '.join(SECTIONS)}")
        elif key not in SECTIONS:
            yield key, value


def in_folder(value: Any, folder: str) -> str:
    return str(Path(folder) / str(value))


def as_text(value: Any) -> str:
    return ",".join(str(part) for part in value) if isinstance(value, list) else str(value)
