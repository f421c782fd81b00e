"""Flags to settings: every field of a settings class is a flag of its name."""

import argparse
import dataclasses
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from glmft.dist import is_main
from glmft.errors import MOST_LINES, ConfigError, nearest
from glmft.settings.checks import text_problems
from glmft.settings.yaml_file import read_yaml, yaml_arguments

# Flags that users' scripts carry and that mean nothing here: accepted with one warning. Value: whether one follows.
IGNORED_FLAGS = {
    "--do_train": False,
    "--do_eval": False,
    "--do_predict": False,
    "--overwrite_cache": False,
    "--dataloader_num_workers": True,
    "--remove_unused_columns": True,
    "--save_strategy": True,
    "--eval_strategy": True,
    "--evaluation_strategy": True,
    "--test_path": True,
    "--test_file": True,
    "--validation_file": True,
    "--pre_seq_len": True,
    "--predict_with_generate": False,
    "--overwrite_output_dir": False,
    "--log_level": True,
    "--logging_strategy": True,
    "--freezeV": True,
    "--num_attention_heads": True,
    "--token_dim": True,
}
Settings = TypeVar("Settings")


def parse_arguments(
    kind: type[Settings],
    argv: list[str],
    program: str,
    settings_of: Callable[[str], list[dataclasses.Field]] = lambda train_type: [],
) -> Settings:
    """Flags to a settings object.

    Args:
        settings_of: what a --train_type has of settings of its own; asked only if it goes wrong without them.

    Raises:
        ConfigError: flags that are unknown (with the nearest name), repeated values or values of a wrong type.
    """
    parser = _parser(kind, program)
    try:
        return _parse(kind, argv, parser)
    except ConfigError:
        more = settings_of(_train_type(argv))
        if not more:
            raise
    group = parser.add_argument_group("settings of this --train_type")
    for f in more:
        _add_flag(group, f, f.type)
    return _parse(kind, argv, parser)


def parse_known(kind: type[Settings], argv: list[str], program: str) -> tuple[Settings, list[str]]:
    """Flags to a settings object, and the flags that it does not have. Raises ConfigError for wrong values."""
    values, rest = _parser(kind, program).parse_known_args(argv)
    return kind(**vars(values)), rest


def _parse(kind: type[Settings], argv: list[str], parser: argparse.ArgumentParser) -> Settings:
    known = [option for action in parser._actions for option in action.option_strings]
    argv, ignored = _without_ignored(_with_config(argv, known), kind)
    flags = [argument.split("=")[0] for argument in argv if argument.startswith("--")]
    unknown = [flag for flag in flags if flag not in known]
    if unknown:
        see = f"see {parser.prog} --help"
        hints = [nearest(flag, known) for flag in unknown[:MOST_LINES]] + [""] * len(unknown[MOST_LINES:])
        raise ConfigError(f"{flag}: no such setting{hint}; {see}" for flag, hint in zip(unknown, hints, strict=True))
    values = vars(parser.parse_args(argv))
    names = {f.name for f in dataclasses.fields(kind)}
    common = {name: value for name, value in values.items() if name in names}
    more = {name: value for name, value in values.items() if name not in names}
    config = kind(**common, tuner_settings=more) if more else kind(**common)
    if problems := text_problems(config):
        raise ConfigError(problems)
    if ignored and is_main():
        print(f"warning: {', '.join(ignored)}: without effect here", flush=True)
    return config


def _train_type(argv: list[str]) -> str:
    """The tuner that flags or the YAML file name; empty if none does."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--train_type")
    parser.add_argument("--config")
    given, _ = parser.parse_known_args(argv)
    if given.train_type is None and given.config is not None:
        return str(read_yaml(Path(given.config)).get("train_type", ""))
    return given.train_type or ""


def _with_config(argv: list[str], known: list[str]) -> list[str]:
    """The flags of the file that --config names, then those given, which override them."""
    if "--config" not in known:
        return argv
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    parser.add_argument("--data_dir")
    given, _ = parser.parse_known_args(argv)
    if given.config is None:
        return argv
    names = {flag.removeprefix("--") for flag in [*known, *IGNORED_FLAGS]}
    return [*yaml_arguments(Path(given.config), names, given.data_dir), *argv]


def _without_ignored(argv: list[str], kind: type) -> tuple[list[str], list[str]]:
    known = {name for f in dataclasses.fields(kind) for name in (f"--{f.name}", *f.metadata["aliases"])}
    kept, ignored, position = [], [], 0
    while position < len(argv):
        flag, _, value = argv[position].partition("=")
        if flag in IGNORED_FLAGS and flag not in known:
            ignored.append(flag)
            follows = position + 1 < len(argv) and not argv[position + 1].startswith("--")
            position += 1 if IGNORED_FLAGS[flag] and not value and follows else 0
        else:
            kept.append(argv[position])
        position += 1
    return kept, ignored


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def _parser(kind: type, program: str) -> argparse.ArgumentParser:
    parser = _Parser(prog=program, description=kind.__doc__, allow_abbrev=False)
    hints = typing.get_type_hints(kind)
    groups: dict[str, Any] = {}
    for f in dataclasses.fields(kind):
        if "help" not in f.metadata:
            continue
        owner = next(c for c in kind.__mro__ if f.name in c.__dict__.get("__annotations__", {}))
        title = owner.__dict__.get("title", "settings")
        group = groups.get(title) or groups.setdefault(title, parser.add_argument_group(title))
        _add_flag(group, f, hints[f.name])
    return parser


def _add_flag(group: Any, f: dataclasses.Field, hint: Any) -> None:
    types_ = [t for t in typing.get_args(hint) if t is not types.NoneType] if typing.get_args(hint) else [hint]
    shown = "none" if f.default is None else f.default
    aliases = f.metadata["aliases"]
    also = f"; also {', '.join(aliases)}" if aliases else ""
    text = f"{f.metadata['help']} (default: {shown}{also})".replace("%", "%%")
    options: dict[str, Any] = {"dest": f.name, "default": f.default, "help": text, "choices": f.metadata["choices"]}
    if f.metadata["bare"] is not None:
        options.update(nargs="?", const=f.metadata["bare"])
    if types_[0] is bool:
        options.update(type=_boolean, nargs="?", const=True, metavar="True|False", choices=None)
    else:
        options.update(type=types_[0], metavar=None if options["choices"] else types_[0].__name__.upper())
    group.add_argument(f"--{f.name}", *aliases, **options)


def _boolean(text: str) -> bool:
    values = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return values[text.lower()]
