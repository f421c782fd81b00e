"""Tables to records: CSV and TSV by the csv module, Parquet and Arrow by pyarrow. A row is an object of its columns.

Rows are read a few at a time, however large the file is.
"""

import csv
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from glmft.errors import DataError, one_line

ROWS_AT_A_TIME, READ_AT_A_TIME = 128, 1 << 20
LONGEST_LINE = 64 << 20  # in bytes
DELIMITERS = (",", ";", "\t")  # a spreadsheet writes one of them, as its country has it
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class BadRow:
    """What is wrong with a row that is no record."""

    problem: str


class Lines:
    """The lines of a file as text, and the number of the last one."""

    def __init__(self, file: IO[bytes]):
        self.file, self.number, self.ahead = file, 0, ""

    def __iter__(self) -> "Lines":
        return self

    def __next__(self) -> str:
        self.number += 1
        text, self.ahead = self.ahead or self._read(), ""
        return text

    def look_ahead(self) -> str:
        """The next line; empty if there is none."""
        try:
            self.ahead = self.ahead or self._read()
        except StopIteration:
            return ""
        return self.ahead

    def _read(self) -> str:
        line = self.file.readline(LONGEST_LINE + 1)
        if not line:
            raise StopIteration
        if len(line) > LONGEST_LINE:
            raise DataError(f"a line of more than {LONGEST_LINE:,} bytes; is it a table?")
        return (line.removeprefix(BYTE_ORDER_MARK) if self.number < 2 else line).decode("utf-8")


def csv_records(file: IO[bytes], path: Path, delimiters: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """(FILE:LINE, row by column) of a table whose first line names the columns; a row that is none as a `BadRow`.

    Args:
        delimiters: the first of them that the first line holds is the file's.

    Raises:
        DataError: no such first line, or a line that is too long.
    """
    csv.field_size_limit(LONGEST_LINE)  # 128 KiB is less than a document
    lines = Lines(file)
    try:
        first = lines.look_ahead()
        delimiter = next((d for d in delimiters if d in first), delimiters[0])
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
        names = _header(next(rows, []))
    except (DataError, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}:1: {_why(error)}") from None
    while True:
        place = f"{path}:{lines.number + 1}"
        try:
            row = next(rows, None)
        except (csv.Error, UnicodeDecodeError) as error:
            yield place, BadRow(_why(error))
            continue
        except DataError as error:
            raise DataError(f"{place}: {_why(error)}") from None
        if row is None:
            return
        if len(row) != len(names) and any(row):
            mend = f"put a field that holds {delimiter!r} in quotes"
            yield place, BadRow(f"{len(row)} fields, but line 1 names {len(names)}; {mend}")
        elif any(row):
            yield place, {name: field for name, field in zip(names, row, strict=True) if name}


def _header(row: list[str]) -> list[str]:
    """The names of the columns; one without a name, as that of pandas' index, is empty. Raises DataError."""
    names = [name.strip() for name in row]
    double = [name for name, count in Counter(names).items() if count > 1 and name]
    if double:
        raise DataError(f"column {double[0]!r} stands twice; every column needs a name of its own")
    if row and not any(names):
        raise DataError("the first line names no column")
    return names


def _why(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "is not UTF-8; save the file as UTF-8"
    if isinstance(error, DataError):
        return error.problems[0]
    text = one_line(error, 100)
    if "field larger" in text or "unexpected end" in text:
        return "a quote is opened here and never closed; write a quote inside a field as two"
    if "expected after" in text:
        return f"text behind a closing quote ({text}); write a quote inside a field as two"
    return f"is no row of a table ({text})"


# ---------------------------------------------------------------------------------------------------- pyarrow


def arrow_records(file: IO[bytes], path: Path, kind: str) -> Iterator[tuple[str, Any]]:
    """(`FILE: record N`, row by column) of a Parquet or an Arrow file; columns of dates and times are left out.

    Nulls inside lists and objects are left out too: such files fill in what other records have.

    Raises:
        DataError: it is damaged, or names a column twice.
    """
    number = 0
    try:
        for batch in _parquet_batches(file) if kind == "Parquet" else _arrow_batches(file):
            batch.validate(full=True)
            for row in batch.to_pylist():
                number += 1
                yield f"{path}: record {number}", {key: without_nulls(value) for key, value in row.items()}
    except DataError as error:
        raise DataError(f"{path}: {error.problems[0]}") from None
    except Exception as error:  # Arrow has a class for each kind of harm
        where = f"{path}: record {number + 1}" if number else f"{path}"
        raise DataError(f"{where}: is no readable {kind} file ({one_line(error, 100)}); copy it again") from None


def _parquet_batches(file: IO[bytes]) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile

    table = ParquetFile(file, pre_buffer=False, buffer_size=READ_AT_A_TIME)  # not a whole column of a row group
    names = _readable(table.schema_arrow)
    yield from table.iter_batches(ROWS_AT_A_TIME, columns=names, use_threads=False)


def _arrow_batches(file: IO[bytes]) -> Iterator[Any]:
    import pyarrow as pa

    if file.peek(6)[:6] == b"ARROW1":
        whole = pa.ipc.open_file(file)
        batches = (whole.get_batch(i) for i in range(whole.num_record_batches))
        names = _readable(whole.schema)
    else:
        batches = pa.ipc.open_stream(file)
        names = _readable(batches.schema)
    for batch in batches:
        batch.validate(full=True)  # before anything is looked up by its offsets
        chosen = batch.select(names)
        for first in range(0, chosen.num_rows, ROWS_AT_A_TIME):
            yield chosen.slice(first, ROWS_AT_A_TIME)


def _readable(schema: Any) -> list[str]:
    """Columns that can be part of a record. Raises DataError."""
    import pyarrow as pa

    double = [name for name, count in Counter(schema.names).items() if count > 1]
    if double:
        raise DataError(f"column {double[0][:100]!r} stands twice; every column needs a name of its own")
    return [field.name for field in schema if not pa.types.is_temporal(field.type)]


def without_nulls(value: Any) -> Any:
    """A value whose objects, at any depth, have no nulls."""
    if isinstance(value, dict):
        return {key: without_nulls(part) for key, part in value.items() if part is not None}
    return [without_nulls(part) for part in value] if isinstance(value, list) else value
