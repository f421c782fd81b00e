"""Files to JSON values, strictly: what JSON or UTF-8 leaves unclear is an error with its place."""

import contextlib
import functools
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from glmft.errors import DataError
from glmft.reading import open_regular, parse_json

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
BUFFER = 1 << 20
LONGEST_LINE, LARGEST_ARRAY = 64 << 20, 4 << 30  # in bytes, unpacked


class DigestedFile(io.RawIOBase):
    """A file that notes the bytes that are read of it.

    Args:
        digest: of hashlib; takes the bytes.
    """

    def __init__(self, path: Path, digest: Any):
        self.file, self.digest = open_regular(path), digest

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
            raw = open_regular(path) if seen is None else DigestedFile(path, digest)
            whole = file = stack.enter_context(io.BufferedReader(raw, BUFFER))
            if path.suffix == ".gz":
                file = stack.enter_context(gzip.open(whole, "rb"))
            first, lines = True, iter(functools.partial(file.readline, LONGEST_LINE + 1), b"")
            for number, line in enumerate(lines, 1):
                line = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
                if first and line.lstrip()[:1] == b"[":
                    yield from _array(_whole(line, file, path), path, number)
                elif len(line) > LONGEST_LINE:
                    raise DataError(f"{path}:{number}: a line of more than {LONGEST_LINE:,} bytes; is it JSON lines?")
                elif line.strip():
                    first = False
                    yield f"{path}:{number}", line
            while whole.read(BUFFER):
                pass
        if seen is not None:
            seen[path] = digest.hexdigest()
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise DataError(f"{path}: is no whole gzip file; pack it again, or name it without .gz") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL byte
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _whole(start: bytes, file: IO[bytes], path: Path) -> bytes:
    """What follows of an array. Raises DataError if it is larger than can be read at once."""
    pieces, size = [start], len(start)
    while piece := file.read(1 << 20):
        pieces.append(piece)
        size += len(piece)
        if size > LARGEST_ARRAY:
            raise DataError(f"{path}: an array of more than {LARGEST_ARRAY:,} bytes; save it as JSON lines (.jsonl)")
    return b"".join(pieces)


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
    """One JSON value. Raises DataError for what `glmft.reading.parse_json` refuses."""
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        line = f":{error.lineno}" if "\n" in text else ""
        raise DataError(f"{place}{line}: broken JSON ({error.msg}, column {error.colno})") from None
    except ValueError as error:
        raise DataError(f"{place}: {error}") from None
