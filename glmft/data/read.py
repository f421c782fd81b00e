"""Files to JSON values or rows of tables, strictly: what JSON or UTF-8 leaves unclear is an error with its place."""

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

from glmft.data.tables import DELIMITERS, BadRow, arrow_records, csv_records
from glmft.errors import DataError
from glmft.reading import open_regular, parse_json

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
BUFFER = 1 << 20
NO_JSON = 'is no JSON but text; a table\'s name must end in .csv or .tsv, and a document goes into {"text": …}'
LONGEST_LINE_OF_NAMES = 1 << 16
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
    """(place, line as bytes) of every line of a JSONL file, or (place, value) of a JSON array or of a table.

    JSON, CSV and TSV may be packed (.gz). A place is FILE:LINE, or `FILE: record N` in an array, a Parquet or an Arrow
    file. Records are read a few at a time; an array, with a fault in it or not, is read as a whole.

    Args:
        seen: takes the SHA-256 of the file's bytes, once no further record is there to ask for.

    Raises:
        DataError: the file cannot be opened or unpacked, or is not of the kind that its name says.
    """
    digest = hashlib.sha256()
    kind = path.suffixes[-2:-1] if path.suffix == ".gz" else path.suffixes[-1:]
    by_place = READERS.get("".join(kind).lower())
    try:
        with contextlib.ExitStack() as stack:
            jumps = by_place is not None and by_place[1]  # to the end of the file first
            raw = open_regular(path) if seen is None or jumps else DigestedFile(path, digest)
            whole = file = stack.enter_context(io.BufferedReader(raw, BUFFER))
            if path.suffix == ".gz":
                file = stack.enter_context(gzip.open(whole, "rb"))
            yield from by_place[0](file, path) if by_place else _json_records(file, path)
            if jumps and seen is not None:
                whole.seek(0)
                digest = hashlib.file_digest(whole, "sha256")
            while whole.read(BUFFER):
                pass
        if seen is not None:
            seen[path] = digest.hexdigest()
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise DataError(f"{path}: is no whole gzip file; pack it again, or name it without .gz") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL byte
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _json_records(file: IO[bytes], path: Path) -> Iterator[tuple[str, Any]]:
    first, is_text, lines = True, False, iter(functools.partial(file.readline, LONGEST_LINE + 1), b"")
    for number, line in enumerate(lines, 1):
        line = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
        if first and (other := _other_kind(line)):
            raise DataError(f"{path}: {other}")
        if first and line.lstrip()[:1] == b"[":
            yield from _array(_whole(line, file, path), path, number)
        elif len(line) > LONGEST_LINE:
            raise DataError(f"{path}:{number}: a line of more than {LONGEST_LINE:,} bytes; is it JSON lines?")
        elif line.strip():
            is_text = is_text or (first and _is_text(line))
            first = False
            yield f"{path}:{number}", BadRow(NO_JSON) if is_text and line.lstrip()[:1] != b"{" else line


# Of each kind of table: its reader, and whether that begins at the file's end.
READERS = {
    ".csv": (functools.partial(csv_records, delimiters=DELIMITERS), False),
    ".tsv": (functools.partial(csv_records, delimiters=("\t",)), False),
    ".parquet": (functools.partial(arrow_records, kind="Parquet"), True),
    ".arrow": (functools.partial(arrow_records, kind="Arrow"), True),
}
# What other files begin with, and what to do with them.
OTHER_KINDS = {
    b"PAR1": "is a Parquet file; let its name end in .parquet",
    b"ARROW1": "is an Arrow file; let its name end in .arrow",
    b"\xff\xff\xff\xff": "is an Arrow file; let its name end in .arrow",
    b"\x1f\x8b": "is packed with gzip; let its name end in .gz",
    b"PK\x03\x04": "is a zip archive or an Excel workbook; unpack it, or save the sheet as CSV UTF-8 (.csv)",
    b"\xd0\xcf\x11\xe0": "is an Excel workbook; save the sheet as CSV UTF-8 (.csv)",
    b"\xff\xfe": "is UTF-16; save the file as UTF-8",
    b"\xfe\xff": "is UTF-16; save the file as UTF-8",
}


def _is_text(line: bytes) -> bool:
    """Whether a file's first line is none of JSON lines, but looks like that of a table or of a text."""
    if line.lstrip()[:1] in (b"{", b"["):
        return False
    with contextlib.suppress(ValueError):
        json.loads(line)
        return False
    start = line[:LONGEST_LINE_OF_NAMES].decode("utf-8", "replace").strip()
    return start[:1].isalpha() or any(delimiter in start for delimiter in DELIMITERS)


def _other_kind(start: bytes) -> str | None:
    return next((told for mark, told in OTHER_KINDS.items() if start.startswith(mark)), None)


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
    if isinstance(raw, BadRow):
        raise DataError(f"{place}: {raw.problem}")
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
        raise DataError(f"{place}{line}: {_why_no_json(text, error)}") from None
    except ValueError as error:
        raise DataError(f"{place}: {error}") from None


def _why_no_json(text: str, error: json.JSONDecodeError) -> str:
    more = "; a record of several lines must stand in a list [ … ]" if text in ("{", "}", "},") else ""
    return f"broken JSON ({error.msg}, column {error.colno}){more}"
