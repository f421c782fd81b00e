"""Flags to settings: every field of a settings class is a flag of its name."""

import argparse
import dataclasses
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from glmft.dist import is_main
from glmft.errors import ConfigError
from glmft.settings.aliases import ALREADY, SWITCHES, VALUES, aliases_of, meant_value, names_of, unknown_lines
from glmft.settings.checks import text_problems
from glmft.settings.config import TrainConfig
from glmft.settings.hardware import TRUTHS
from glmft.settings.yaml_file import read_yaml, yaml_settings

# Names that users' scripts carry and that mean nothing here: accepted with one warning.
IGNORED = frozenset(
    """do_train do_eval do_predict overwrite_cache dataloader_num_workers remove_unused_columns save_strategy
    eval_strategy evaluation_strategy test_path test_file validation_file pre_seq_len predict_with_generate
    overwrite_output_dir log_level logging_strategy freezeV num_attention_heads token_dim plot_loss
    trust_remote_code logging_dir run_name save_only_model logging_first_step dataloader_pin_memory
    ddp_find_unused_parameters use_fast_tokenizer include_num_input_tokens_seen save_safetensors ddp_backend
    eval_accumulation_steps logging_nan_inf_filter eval_on_start""".split()
)
# What takes several words in other projects, or such as [a,b], and a list with commas here.
MODULES = ("lora_module_name", "modules_to_save", "freeze_module_name")
LISTS = (*MODULES, "train_path", "val_path", "test_path", "report_to")
Settings = TypeVar("Settings")
Fields = list[dataclasses.Field]


def parse_arguments(
    kind: type[Settings],
    argv: list[str],
    program: str,
    settings_of: Callable[[str], Fields] = lambda train_type: [],
) -> Settings:
    """Flags to a settings object.

    Args:
        settings_of: what a --train_type has of settings of its own; asked only if it goes wrong without them.

    Raises:
        ConfigError: flags that are unknown (with the nearest name), repeated values or values of a wrong type.
    """
    try:
        return _parse(kind, argv, program, [])
    except ConfigError:
        more = settings_of(_train_type(argv, kind))
        if not more:
            raise
    return _parse(kind, argv, program, more)


def _parse(kind: type[Settings], argv: list[str], program: str, more: Fields) -> Settings:
    names = names_of([*_names(kind), *(f.name for f in more)])
    parser = _parser(kind, program, names, more)
    twice = two_names(argv, names)
    argv, unknown, ignored = in_our_names(argv, names)
    lines = [f"{line}; see {program} --help" for line in unknown_lines(unknown, names, names_of(_names(TrainConfig)))]
    if lines or twice:
        raise ConfigError([*lines, *twice])
    if "config" in names:
        of_file, passed_over = _of_file(argv, names)
        argv, ignored = [*of_file, *argv], [*passed_over, *ignored]
    values = vars(parser.parse_args(argv))
    for name in LISTS:
        if isinstance(given := values.get(name), list):
            values[name] = ",".join(given).strip("[]" if name in MODULES else "")
    values |= {f.name: _of_words(f, values[f.name]) for f in dataclasses.fields(kind) if f.metadata.get("words")}
    own = {name: values.pop(name) for name in _names(kind)}
    config = kind(**own, tuner_settings=values) if values else kind(**own)
    if problems := text_problems(config):
        raise ConfigError(problems)
    if ignored and is_main():
        print(f"warning: {', '.join(dict.fromkeys(ignored))}: without effect here", flush=True)
    return config


def split_flags(argv: Sequence[str], own: type, other: type) -> tuple[list[str], list[str]]:
    """Arguments of a command that hands on what it does not have: its own, and those of the other settings class.

    A name that both have an alias for is the other's.
    """
    names = names_of(_names(own)) | names_of(_names(other)) | {name: name for name in _names(own)}
    mine: list[str] = []
    rest: list[str] = []
    current = mine
    for argument in argv:
        if argument.startswith("--"):
            name = argument.partition("=")[0].removeprefix("--").replace("-", "_")
            current = mine if names.get(name) in _names(own) or name == "help" else rest
        current.append(argument)
    return mine, rest


def _names(kind: type) -> list[str]:
    return [f.name for f in dataclasses.fields(kind) if "help" in f.metadata]


def two_names(argv: list[str], names: dict[str, str]) -> list[str]:
    """A line for each setting that is given under two names, which may mean two things where they come from."""
    given: dict[str, dict[str, None]] = {}
    for name in (part.partition("=")[0][2:].replace("-", "_") for part in argv if part.startswith("--")):
        if name in names:
            given.setdefault(names[name], {})[name] = None
    several = {name: aliases for name, aliases in given.items() if len(aliases) > 1 and "deepspeed" not in aliases}
    return [f"--{' and --'.join(aliases)} both set --{name}; give one" for name, aliases in several.items()]


def in_our_names(argv: list[str], names: dict[str, str]) -> tuple[list[str], list[str], list[str]]:
    """Arguments with our flags in the place of aliases and switches.

    Args:
        names: as `names_of` gives them.

    Returns:
        Them, the flags that are unknown, and those that are ignored.
    """
    ours, unknown, ignored, rest = [], [], [], list(argv)
    while rest:
        given, equals, value = rest.pop(0).partition("=")
        name = given.removeprefix("--").replace("-", "_")
        if not given.startswith("--") or not name:
            ours.append(given + equals + value)
        elif name == "deepspeed" and not value and (not rest or rest[0].startswith("--")):
            continue  # what DeepSpeed's own scripts have beside --deepspeed_config FILE
        elif name in names or name == "help":
            ours.append(f"--{names.get(name, name)}{equals}{value}")
        elif name in SWITCHES and SWITCHES[name][0] in names:
            truth = value if equals else rest.pop(0) if rest and rest[0].lower() in TRUTHS else "true"
            setting, meaning = SWITCHES[name]
            ours += [f"--{setting}", meaning] if _boolean(truth, name) else []
        elif name in ALREADY and (value if equals else (rest or [""])[0]) in ALREADY[name]:
            rest = rest if equals else rest[1:]
        elif name in IGNORED:
            ignored.append(given)
            if not equals and rest and not rest[0].startswith("--"):
                rest.pop(0)
        else:
            unknown.append(name)
    return ours, unknown, ignored


def _train_type(argv: list[str], kind: type) -> str:
    """The tuner that flags or the YAML file name; empty if none does."""
    names = names_of(_names(kind))
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--train_type")
    parser.add_argument("--config")
    given, _ = parser.parse_known_args(in_our_names(argv, names)[0])
    if given.train_type is None and given.config is not None:
        return str(read_yaml(Path(given.config)).get("train_type", ""))
    return given.train_type or ""


def _of_file(argv: list[str], names: dict[str, str]) -> tuple[list[str], list[str]]:
    """The flags of the file that --config names, which those given override; and what it has for training alone."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    parser.add_argument("--data_dir")
    given, _ = parser.parse_known_args(argv)
    if given.config is None:
        return [], []
    of_training = names_of(_names(TrainConfig))
    known = {*names, *of_training, *SWITCHES, *ALREADY, *IGNORED}
    settings = yaml_settings(Path(given.config), names, known, given.data_dir)
    passed_over = [name for name in settings if name not in names and name in of_training]
    flags = [part for name, value in settings.items() if name not in passed_over for part in (f"--{name}", value)]
    ours, unknown, ignored = in_our_names(flags, names)
    if unknown:  # what does here with another value alone
        raise ConfigError(f"{given.config}: {line}" for line in unknown_lines(unknown, names, dashes=""))
    return ours, [*passed_over, *ignored]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def _parser(kind: type, program: str, names: dict[str, str], more: Fields) -> argparse.ArgumentParser:
    parser = _Parser(prog=program, description=kind.__doc__, allow_abbrev=False)
    hints = typing.get_type_hints(kind)
    groups: dict[str, Any] = {}
    for f in dataclasses.fields(kind):
        if "help" not in f.metadata:
            continue
        owner = next(c for c in kind.__mro__ if f.name in c.__dict__.get("__annotations__", {}))
        title = owner.__dict__.get("title", "settings")
        group = groups.get(title) or groups.setdefault(title, parser.add_argument_group(title))
        _add_flag(group, f, hints[f.name], aliases_of(f.name, names))
    if more:
        group = parser.add_argument_group("settings of this --train_type")
        for f in more:
            _add_flag(group, f, f.type, aliases_of(f.name, names))
    return parser


def _add_flag(group: Any, f: dataclasses.Field, hint: Any, aliases: list[str]) -> None:
    kinds = [t for t in typing.get_args(hint) if t is not types.NoneType] if typing.get_args(hint) else [hint]
    notes = [] if "default: " in f.metadata["help"] else [f"default: {'none' if f.default is None else f.default}"]
    notes += [f"also --{', --'.join(aliases)}"] if aliases else []
    text = f"{f.metadata['help']} ({'; '.join(notes)})" if notes else f.metadata["help"]
    options: dict[str, Any] = {"default": f.default, "help": text.replace("%", "%%")}
    if f.metadata["bare"] is not None and not f.metadata["words"]:
        options.update(nargs="?", const=f.metadata["bare"])
    if f.name in LISTS:
        options["nargs"] = "+"
    if f.metadata["words"]:
        options.update(nargs="*", metavar="WORD")
    elif kinds[0] is bool:
        options.update(type=_boolean, nargs="?", const=True, metavar="True|False")
    else:
        choices = f.metadata["choices"]
        kind, name = (_number, "NUMBER") if set(kinds) == {int, float} else (kinds[0], kinds[0].__name__.upper())
        metavar = f"{{{','.join(map(str, choices))}}}" if choices else name
        options.update(type=_value_of(f.name, kind, choices), metavar=metavar)
    group.add_argument(f"--{f.name}", **options)


def _of_words(f: dataclasses.Field, given: Any) -> Any:
    """The value of a flag that takes several words; its default as it is. Raises ConfigError."""
    if not isinstance(given, list):
        return given
    return f.metadata["words"](" ".join(given)) if given else f.metadata["bare"]


def _value_of(setting: str, kind: Callable[[str], Any], choices: tuple | None) -> Callable[[str], Any]:
    """A conversion that knows other names of the values, and refuses what is no choice."""

    def convert(text: str) -> Any:
        value = kind(VALUES.get(setting, {}).get(text, text))
        if choices and value not in choices:
            rule = f"invalid choice: {text!r} (choose from {', '.join(map(repr, choices))})"
            raise argparse.ArgumentTypeError(rule + meant_value(setting, text, choices))
        return value

    convert.__name__ = getattr(kind, "__name__", "value").strip("_")  # argparse calls a wrong value by it
    return convert


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _boolean(text: str, flag: str = "") -> bool:
    if text.lower() not in TRUTHS:
        problem = f"{text!r} is neither True nor False"
        raise ConfigError(f"--{flag}: {problem}") if flag else argparse.ArgumentTypeError(problem)
    return TRUTHS[text.lower()]
