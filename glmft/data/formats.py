"""Read records and check them, so that no bad one reaches the model."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmft.errors import DataError

MOST_PROBLEMS = 5


@dataclass(frozen=True)
class Record:
    """One example: what is asked, what is to be answered, and where it stands (FILE:LINE)."""

    query: str
    answer: str
    place: str


def read_records(path: str | Path) -> list[Record]:
    """All records of a JSON array or JSONL file of instruction/input/output objects; UTF-8, with or without BOM.

    `input` may be absent or empty; instruction and input are joined with nothing between. An empty `output` is an
    answer too (a text without triples): the end token alone is learned.

    Raises:
        DataError: the file cannot be read or holds no record, or the first few bad lines, each with file and line.
    """
    path = Path(path)
    records, problems = [], []
    for place, value in _values(path):
        try:
            records.append(_record(value, place))
        except DataError as error:
            problems += error.problems
            if len(problems) == MOST_PROBLEMS:
                break
    if problems:
        raise DataError(problems)
    if not records:
        raise DataError(f"{path}: holds no record")
    return records


def _values(path: Path) -> list[tuple[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: is not UTF-8; save the file as UTF-8") from None
    if text.lstrip()[:1] == "[":
        values = _parse(text, path, 1)
        return [(f"{path}: record {i}", value) for i, value in enumerate(values, 1)]
    lines = enumerate(text.split("\n"), 1)
    return [(f"{path}:{number}", _parse(line, path, number)) for number, line in lines if line.strip()]


def _parse(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise DataError(f"{path}:{line}: broken JSON ({error.msg}, column {error.colno})") from None
    except RecursionError:
        raise DataError(f"{path}:{first_line}: JSON nested too deeply") from None


def _record(value: Any, place: str) -> Record:
    if not isinstance(value, dict):
        raise DataError(f"{place}: a {type(value).__name__}, not an object with instruction, input, output")
    for key in ("instruction", "output"):
        if key not in value:
            raise DataError(f"{place}: {key!r} is missing; every record needs instruction, input, output")
    parts = [value["instruction"], value.get("input") or "", value["output"]]
    for key, part in zip(("instruction", "input", "output"), parts, strict=True):
        if not isinstance(part, str):
            raise DataError(f"{place}: {key!r} is a {type(part).__name__}, not a string")
        if not part.isprintable() and any("\ud800" <= c <= "\udfff" for c in part):
            raise DataError(f"{place}: {key!r} holds half a surrogate pair, which is no character; remove it")
    if not (parts[0] + parts[1]).strip():
        raise DataError(f"{place}: instruction and input are both empty")
    return Record(query=parts[0] + parts[1], answer=parts[2], place=place)
