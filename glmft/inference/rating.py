"""The rating of generated questions by hand, as ChatGLM-Finetuning has it: faults cost points.

A record starts with 5 points and loses 0.25 for each repeated question, each repeated or missing answer, each question
that the text does not answer, that is not fluent, or that is harmful; 20 records make 100 points.
"""

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmft.data.answers import Answer
from glmft.errors import DataError

POINTS, COST = 5.0, 0.25
COUNTED = "repeated_questions"  # already there, to be raised where two questions only differ in their words
FAULTS = (COUNTED, "repeated_or_missing_answers", "unanswerable", "not_fluent", "harmful")
COLUMNS = ("record", "text", "label", "prediction", "questions", *FAULTS)
MOST_FAULTS = 1000
_NUMBERING = re.compile(r"^\s*(?:[(（]?\d+[)）.、:：．]|问题?\s*\d*\s*[:：]|Q\d*\s*[:：.]|[-*•])\s*", re.IGNORECASE)
_IGNORED = re.compile(r"[\s，。？！、；：,.?!;:\"'“”‘’]+")


def questions_of(prediction: str) -> list[str]:
    """The questions of a prediction, a line each, without their numbers."""
    lines = (_NUMBERING.sub("", line).strip() for line in prediction.splitlines())
    return [line for line in lines if line]


def repeated(questions: Iterable[str]) -> int:
    """How many questions have stood there before, marks and letter case aside."""
    questions = [_IGNORED.sub("", question).casefold() for question in questions]
    return len(questions) - len(set(questions))


def sheet_rows(answers: Iterable[Answer]) -> Iterator[dict[str, Any]]:
    """Rows to be rated; what can be counted is counted, the other faults are left open."""
    for number, answer in enumerate(answers, 1):
        questions = questions_of(answer.prediction)
        row = {"record": number, "text": answer.question, "label": answer.label, "prediction": answer.prediction}
        yield {**row, "questions": len(questions), COUNTED: repeated(questions)}


def write_sheet(path: Path, answers: Iterable[Answer]) -> int:
    """A sheet to be rated, in the form that spreadsheets open; how many rows it has. Raises OSError."""
    rows = list(sheet_rows(answers))
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return len(rows)


@dataclass
class Rating:
    """What a filled sheet comes to."""

    records: int
    points: float
    faults: dict[str, int]

    @property
    def most(self) -> float:
        return POINTS * self.records


def sum_sheet(path: Path, text: str) -> Rating:
    """Sum a filled sheet.

    Args:
        text: what it holds.

    Raises:
        DataError: columns are missing, or a count is, or is no whole number; with the line, all of them at once.
    """
    text = text.removeprefix("\ufeff")
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)  # as spreadsheets of some countries save
    reader = csv.DictReader(text.splitlines(keepends=True), delimiter=delimiter)
    try:
        missing = [name for name in ("prediction", *FAULTS) if name not in (reader.fieldnames or ())]
        if missing:
            raise DataError(f"{path}:1: has no column {', '.join(missing)}; make a sheet with --make_sheet")
        rows = [(reader.line_num, row) for row in reader if any(value for value in row.values())]
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: is no CSV ({error})") from None
    if not rows:
        raise DataError(f"{path}: holds no rated record")
    problems: list[str] = []
    counts = [[_count(path, line, name, row, problems) for name in FAULTS] for line, row in rows]
    if problems:
        raise DataError(problems)
    points = [points_of(row["prediction"] or "", sum(faults)) for (_, row), faults in zip(rows, counts, strict=True)]
    return Rating(len(rows), sum(points), dict(zip(FAULTS, map(sum, zip(*counts, strict=True)), strict=True)))


def points_of(prediction: str, faults: int) -> float:
    """The points of one record; none for an empty prediction."""
    return max(0.0, POINTS - COST * faults) if questions_of(prediction) else 0.0


def _count(path: Path, line: int, name: str, row: dict[str, Any], problems: list[str]) -> int:
    text = (row[name] or "").strip()
    if not text and not questions_of(row["prediction"] or ""):
        return 0  # nothing that could be rated
    if not re.fullmatch(r"\d{1,4}(\.0+)?", text, re.ASCII) or int(float(text)) > MOST_FAULTS:
        what = "is empty" if not text else f"{text[:20]!r} is no count of faults"
        problems.append(f"{path}:{line}: {name} {what}; write a whole number, 0 where there are none")
        return 0
    return int(float(text))
