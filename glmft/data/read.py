"""Files to JSON values, strictly: what JSON or UTF-8 leaves unclear is an error with its place."""

import contextlib
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glmft.errors import DataError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
BUFFER = 1 << 20


class DigestedFile(io.RawIOBase):
    """A file that notes the bytes that are read of it.

    Args:
        digest: of hashlib; takes the bytes.
    """

    def __init__(self, path: Path, digest: Any):
        self.file, self.digest = path.open("rb", buffering=0), digest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self.file.readinto(buffer)
        self.digest.update(memoryview(buffer)[:count])
        return count

    def close(self) -> None:
        self.file.close()
        super().close()


def raw_records(path: Path, seen: dict[Path, str] | None = None) -> Iterator[tuple[str, Any]]:
    """(place, line as bytes) of every line of a JSONL file, or (place, value) of a JSON array; plain or .gz.

    A place is FILE:LINE, or `FILE: record N` in an array. Lines are read one at a time; an array, with a fault in it or
    not, is read as a whole.

    Args:
        seen: takes the SHA-256 of the file's bytes, once no further record is there to ask for.

    Raises:
        DataError: the file cannot be opened or unpacked, or an array is no JSON.
    """
    digest = hashlib.sha256()
    try:
        with contextlib.ExitStack() as stack:
            raw = path.open("rb", buffering=0) if seen is None else DigestedFile(path, digest)
            whole = file = stack.enter_context(io.BufferedReader(raw, BUFFER))
            if path.suffix == ".gz":
                file = stack.enter_context(gzip.open(whole, "rb"))
            first = True
            for number, line in enumerate(file, 1):
                line = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
                if first and line.lstrip()[:1] == b"[":
                    yield from _array(line + file.read(), path, number)
                elif line.strip():
                    first = False
                    yield f"{path}:{number}", line
            while whole.read(BUFFER):
                pass
        if seen is not None:
            seen[path] = digest.hexdigest()
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise DataError(f"{path}: is no whole gzip file; pack it again, or name it without .gz") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def value_of(place: str, raw: Any) -> Any:
    """The value of what `raw_records` gave. Raises DataError."""
    return parse(_text(raw.strip(), place), place) if isinstance(raw, bytes) else raw


def _array(data: bytes, path: Path, line: int) -> Iterator[tuple[str, Any]]:
    lines_before = b"\n" * (line - 1)
    values = parse(_text(lines_before + data, str(path)), str(path))
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
        return DECODER.decode(text)
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


DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_unique)
