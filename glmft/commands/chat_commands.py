"""The commands of `glmft chat`, which begin with a slash."""

import json
from collections.abc import Callable
from pathlib import Path

from glmft.commands.talk import Talk
from glmft.errors import ConfigError, nearest
from glmft.reading import read_json_value

HELP = "Ask, or /help. Ctrl-C stops an answer, Ctrl-D leaves."


class Leave(Exception):
    """The user wants to go."""


def run_command(talk: Talk, line: str) -> list[str]:
    """Run one command; the lines that it says. Raises ConfigError for one that cannot be run, and Leave."""
    name, _, argument = line.partition(" ")
    if name not in SLASH_COMMANDS:
        raise ConfigError(f"{name}: no such command{nearest(name, SLASH_COMMANDS)}; see /help")
    return SLASH_COMMANDS[name](talk, argument.strip())


def show_help(talk: Talk, argument: str) -> list[str]:
    """list the commands"""
    return [f"{name:10}{command.__doc__}" for name, command in SLASH_COMMANDS.items()]


def model(talk: Talk, argument: str) -> list[str]:
    """NAME: ask this model; without a name, list them"""
    if argument:
        talk.current, talk.compares = talk.models[argument].name, False
    return [f"{'*' if name in talk.asked else ' '} {name}" for name in talk.models.names]


def compare(talk: Talk, argument: str) -> list[str]:
    """have all models answer, or one again"""
    if len(talk.models.names) == 1:
        raise ConfigError("/compare: there is one model; name several: glmft chat PATH PATH …")
    talk.compares = not talk.compares
    return [f"asking {', '.join(talk.asked)}"]


def reset(talk: Talk, argument: str) -> list[str]:
    """forget the conversation"""
    talk.reset()
    return ["(a new conversation)"]


def system(talk: Talk, argument: str) -> list[str]:
    """TEXT: what the models are told first (glm3, glm4); without it, nothing"""
    talk.set_system(argument or None)
    return ["(a new conversation)"]


def tools(talk: Talk, argument: str) -> list[str]:
    """FILE: a JSON list of the tools that may be called (glm3, glm4); without it, none"""
    given = read_json_value(Path(argument), 1 << 20) if argument else []
    talk.set_tools(given.get("tools") if isinstance(given, dict) else given)
    return [f"(a new conversation, {len(talk.tools)} tools; type what a called one returns)"]


def save(talk: Talk, argument: str) -> list[str]:
    """FILE: write the conversation into a new JSONL file, which training reads"""
    if not argument:
        raise ConfigError("/save: name a new file")
    if not (records := talk.records()):
        raise ConfigError("/save: nothing has been asked yet")
    try:
        with open(argument, "x", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    except FileExistsError:
        raise ConfigError(f"/save {argument}: is there already; name a new file") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"/save {argument}: cannot be written ({getattr(error, 'strerror', error)})") from None
    return [f"(saved {len(records)} conversation{'s' if len(records) > 1 else ''} to {argument})"]


def leave(talk: Talk, argument: str) -> list[str]:
    """end"""
    raise Leave


SLASH_COMMANDS: dict[str, Callable[[Talk, str], list[str]]] = {
    "/help": show_help,
    "/model": model,
    "/compare": compare,
    "/reset": reset,
    "/system": system,
    "/tools": tools,
    "/save": save,
    "/exit": leave,
    "/quit": leave,
}
