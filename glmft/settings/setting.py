"""A dataclass field that is a flag."""

from collections.abc import Callable
from dataclasses import field
from typing import Any

# What nobody means is refused before memory is asked for it: tokens of a row, width of what is trained.
LONG, WIDE = 1 << 20, 1 << 16


def setting(
    default: Any,
    help: str,
    *,
    choices: tuple | None = None,
    bare: Any = None,
    words: Callable[[str], Any] | None = None,
    at_least: float | None = None,
    more_than: float | None = None,
    at_most: float | None = None,
    less_than: float | None = None,
) -> Any:
    """A dataclass field that is a flag.

    Args:
        bare: the value of the flag without one.
        words: makes the value of one or more words; raises ConfigError.
        at_least, more_than, at_most, less_than: what a number must keep to.
    """
    limits = {"at least": at_least, "more than": more_than, "at most": at_most, "less than": less_than}
    limits = {name: value for name, value in limits.items() if value is not None}
    metadata = {"help": help, "choices": choices, "bare": bare, "words": words, "limits": limits}
    return field(default=default, metadata=metadata)
