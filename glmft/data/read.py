"""Files to JSON values, strictly: what JSON or UTF-8 leaves unclear is an error with its place."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glmft.errors import DataError


def read_values(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, value or DataError) of every record of a JSON array or JSONL file, plain or .gz, with or without BOM.

    A place is FILE:LINE, or `FILE: record N` in an array. A bad line is given as the error that says so, and the next
    line follows; an array with a fault in it is one error.

    Raises:
        DataError: the file cannot be opened or unpacked.
    """
    data = _content(path)
    if data.lstrip()[:1] == b"[":
        yield from _array(data, path)
        return
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            place = f"{path}:{number}"
            try:
                yield place, parse(_text(line, place), place)
            except DataError as error:
                yield place, error


def _content(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise DataError(f"{path}: is no whole gzip file; pack it again, or name it without .gz") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return data.removeprefix(b"\xef\xbb\xbf")


def _array(data: bytes, path: Path) -> Iterator[tuple[str, Any]]:
    try:
        values = parse(_text(data, str(path)), str(path))
    except DataError as error:
        yield str(path), error
        return
    for number, value in enumerate(values, 1):
        yield f"{path}: record {number}", value


def _text(data: bytes, place: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n")
        place = f"{place}:{line + 1}" if line or ":" not in place else place
        raise DataError(f"{place}: is not UTF-8; save the file as UTF-8") from None


def parse(text: str, place: str) -> Any:
    """One JSON value. Raises DataError for broken JSON, NaN, duplicate keys, or nesting beyond reason."""
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        line = f":{error.lineno}" if "\n" in text else ""
        raise DataError(f"{place}{line}: broken JSON ({error.msg}, column {error.colno})") from None
    except RecursionError:
        raise DataError(f"{place}: JSON nested too deeply") from None
    except ValueError as error:
        raise DataError(f"{place}: {error}") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {double!r} stands twice in one object")
    return value
