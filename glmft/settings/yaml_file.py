"""Settings from YAML: our own names at the top level, or the nested files of ChatGLM3's and GLM-4's demos, unchanged.

Both become flags, so that what is checked and overridden is the same wherever a value comes from.
"""

import datetime
import functools
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from glmft.errors import ConfigError, one_line
from glmft.reading import read_text
from glmft.settings.aliases import unknown_lines

LARGEST = 64 << 10  # bytes of a file of settings
# The demo's sections; what they hold is taken as if it stood at the top level.
SECTIONS = ("data_config", "training_args", "peft_config", "generation_config")
DATA_FILES = ("train_file", "val_file", "test_file")
PEFT_TYPES = {"LORA": "lora", "PREFIX_TUNING": "ptuning"}
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


def yaml_settings(
    path: Path, own: Collection[str], known: Collection[str], data_dir: str | None = None
) -> dict[str, str]:
    """The settings of a YAML file: names as they stand there, and values as flags have them.

    Args:
        own: the names that the command has.
        known: all names that may stand there, those without effect too.
        data_dir: what the file's data paths are relative to.

    Raises:
        ConfigError: no readable YAML mapping, or keys that are no settings; all of them at once.
    """
    given = read_yaml(path)
    is_demo = any(section in given for section in SECTIONS)
    values = {name: value for name, value in DEMO_DEFAULTS.items() if name in own} if is_demo else {}
    problems, unknown = [], []
    for name, value in flat(given, path):
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
            unknown.append(name)
        if value is not None:
            values[name] = in_folder(value, data_dir) if name in DATA_FILES and data_dir else value
    problems += [f"{path}: {line}" for line in unknown_lines(unknown, known, dashes="")]
    if problems:
        raise ConfigError(problems)
    if is_demo and "peft_config" not in given and "train_type" in own:
        values.setdefault("train_type", "full")
    return {name: as_text(value, name, path) for name, value in values.items()}


def read_yaml(path: Path) -> dict[str, Any]:
    """Raises ConfigError if it is missing, broken, no mapping, or holds what settings do not need."""
    import yaml

    try:
        text = read_text(path, LARGEST)
    except ConfigError as error:
        raise ConfigError(f"--config {error}") from None
    try:
        given = yaml.load(text, _strict_loader())
    except RecursionError:
        raise ConfigError(f"--config {path}: YAML nested too deeply") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ConfigError(f"--config {path}: is no YAML ({one_line(error)})") from None
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise ConfigError(f"--config {path}: must hold settings as `name: value`")
    return given


@functools.cache
def _strict_loader() -> Any:
    """PyYAML's safe loader without aliases, which can make a small file a huge one, and without keys given twice."""
    import yaml

    class StrictLoader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                event = self.peek_event()
                raise yaml.YAMLError(f"line {event.start_mark.line + 1}: an alias; write the value out")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            value = super().construct_mapping(node, deep)
            if len(value) < len(node.value):
                raise yaml.YAMLError(f"line {node.start_mark.line + 1}: a key stands twice")
            return value

    return StrictLoader


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


def as_text(value: Any, name: str, path: Path) -> str:
    """A value as a flag has it. Raises ConfigError for anything but a scalar or a list of them."""
    parts = value if isinstance(value, list) else [value]
    if not all(isinstance(part, str | int | float | datetime.date) for part in parts):
        raise ConfigError(f"--config {path}: {name}: must be a text, a number, true, false, or a list of those")
    return ",".join(map(str, parts))
