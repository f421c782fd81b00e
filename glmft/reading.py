"""Text files that others wrote, read so that nothing in them can surprise: what is no regular file is not opened, what
is too large or too deep is not taken in, and what JSON leaves unclear is an error.
"""

import io
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from glmft.errors import ConfigError

LARGEST = 64 << 20  # bytes of a text file: tokenizers and indices of large models have tens of megabytes
DEEPEST = 64  # objects and lists inside one another
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether a regular file is there; False for a name that no file can have, too."""
    return os.path.isfile(path)


def open_regular(path: Path) -> io.FileIO:
    """A regular file, to be read, without a buffer. Raises OSError for anything else, and never waits for a pipe."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise OSError(None, "is no regular file", str(path))
    return io.FileIO(handle, "rb")


def read_text(path: Path, largest: int = LARGEST) -> str:
    """The text of a UTF-8 file.

    Raises:
        ConfigError: it cannot be read, is no regular file, is larger than `largest` bytes, or is no UTF-8.
    """
    try:
        with open_regular(path) as file:
            data = io.BufferedReader(file).read(largest + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL byte
        raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if len(data) > largest:
        raise ConfigError(f"{path}: is larger than {largest:,} bytes, too much for a file of its kind")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8; copy it again") from None


def read_json_value(path: Path, largest: int = LARGEST) -> Any:
    """The JSON value in a file. Raises ConfigError if there is none that `parse_json` takes."""
    try:
        return parse_json(read_text(path, largest))
    except ValueError as error:
        raise ConfigError(f"{path}: is not valid JSON ({error})") from None


def read_json(path: Path, largest: int = LARGEST) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ConfigError: the file is missing, unreadable or not a JSON object.
    """
    value = read_json_value(path, largest)
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: holds a {type(value).__name__}, not a JSON object")
    return value


def read_json_if_there(path: Path) -> dict[str, Any]:
    """As `read_json`; {} for a file that is not there."""
    return read_json(path) if os.path.lexists(path) else {}


def parse_json(text: str) -> Any:
    """One JSON value.

    Raises:
        ValueError: broken JSON (`json.JSONDecodeError`), NaN, a number beyond all bounds, a key that stands twice in
            one object, half a surrogate pair, or nesting deeper than `DEEPEST`.
    """
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise ValueError(f"JSON nested too deeply: more than {DEEPEST} levels") from None
    if text.count("[") + text.count("{") > DEEPEST and depth_exceeds(value, DEEPEST):
        raise ValueError(f"JSON nested too deeply: more than {DEEPEST} levels")
    if _HALF_PAIR.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("a text holds half a surrogate pair, which is no character; remove it") from None
    return value


def depth_exceeds(value: Any, most: int) -> bool:
    """Whether objects and lists are nested more than `most` times; goes no deeper than that."""
    if not isinstance(value, dict | list):
        return False
    parts = value.values() if isinstance(value, dict) else value
    return most == 0 or any(depth_exceeds(part, most - 1) for part in parts)


def _number(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:40]} is beyond every number")
    return value


def _whole_number(text: str) -> int:
    if len(text) > 40:
        raise ValueError(f"{text[:40]}… is beyond every number")
    return int(text)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        met: set[str] = set()
        double = next(name for name, _ in pairs if name in met or met.add(name))
        raise ValueError(f"key {double!r} stands twice in one object")
    return value


_DECODER = json.JSONDecoder(
    parse_constant=_refuse_constant, parse_float=_number, parse_int=_whole_number, object_pairs_hook=_unique
)
