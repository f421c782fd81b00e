"""What the values of a file may be, as a table of names and kinds."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from glmft.errors import one_line


@dataclass(frozen=True)
class Kind:
    """A test, and in words what passes it."""

    rule: str
    passes: Callable[[Any], bool]

    def __or__(self, other: "Kind") -> "Kind":
        return Kind(f"{self.rule} or {other.rule}", lambda value: self.passes(value) or other.passes(value))


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def whole(low: int = 0, high: int = 2**31 - 1) -> Kind:
    return Kind(f"a whole number from {low} to {high}", lambda value: is_whole(value) and low <= value <= high)


def number(low: float = -1e30, high: float = 1e30) -> Kind:
    def passes(value: Any) -> bool:
        return (is_whole(value) or isinstance(value, float)) and low <= value <= high  # which NaN is not

    return Kind(f"a number from {low:g} to {high:g}", passes)


def text(pattern: str = r"[^\0]*", longest: int = 4096, rule: str = "a text") -> Kind:
    matches = re.compile(pattern, re.DOTALL).fullmatch
    return Kind(
        f"{rule} of at most {longest} characters",
        lambda value: isinstance(value, str) and len(value) <= longest and matches(value) is not None,
    )


def one_of(*values: Any) -> Kind:
    def passes(value: Any) -> bool:
        return any(type(value) is type(known) and value == known for known in values)

    return Kind(f"one of {', '.join(map(repr, values))}", passes)


def list_of(kind: Kind, most: int = 10_000) -> Kind:
    return Kind(
        f"a list, each of it {kind.rule}",
        lambda value: isinstance(value, list) and len(value) <= most and all(map(kind.passes, value)),
    )


def table_of(kind: Kind, most: int = 10_000) -> Kind:
    return Kind(
        f"an object, each value of it {kind.rule}",
        lambda value: isinstance(value, dict) and len(value) <= most and all(map(kind.passes, value.values())),
    )


NULL = Kind("null", lambda value: value is None)
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
ANYTHING = Kind("anything", lambda value: True)


def problems(values: Mapping[str, Any], kinds: Mapping[str, Kind], place: object) -> list[str]:
    """A line for each value that is not of its kind; names without a kind are not looked at.

    Args:
        place: the file, for the lines.
    """
    return [
        f"{place}: {name} is {one_line(repr(value)[:400], 60)}; it must be {kinds[name].rule}"
        for name, value in values.items()
        if name in kinds and not kinds[name].passes(value)
    ]
