"""Files of labels and predictions: ours, and those that other programs write."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmft.data.read import raw_records, value_of
from glmft.errors import DataError

LABELS, PREDICTIONS, QUESTIONS = ("labels", "label"), ("predict", "prediction"), ("prompt", "question", "input")


@dataclass(frozen=True)
class Answer:
    """One line.

    Args:
        question: empty, if the file does not have it.
        is_odd: the prediction was no text, and scores nothing.
    """

    label: str
    prediction: str
    question: str = ""
    is_odd: bool = False


def read_answers(path: Path) -> Iterator[Answer]:
    """The answers of a file, one after the other. Raises DataError, with file and line."""
    count = 0
    for place, raw in raw_records(path):
        value = value_of(place, raw)
        if not isinstance(value, dict):
            raise DataError(f"{place}: a {type(value).__name__}, not an object with labels and predict")
        label, prediction = _one_of(value, LABELS, place), _one_of(value, PREDICTIONS, place)
        if _text(label) is None:
            raise DataError(f"{place}: the label is a {type(label).__name__}, not a text")
        question = next((value[key] for key in QUESTIONS if isinstance(value.get(key), str)), "")
        text = _text(prediction)
        yield Answer(_text(label), text or "", question, text is None)
        count += 1
    if not count:
        raise DataError(f"{path}: holds no line of labels and predict")


def _one_of(value: dict[str, Any], names: tuple[str, ...], place: str) -> Any:
    name = next((name for name in names if name in value), None)
    if name is None:
        raise DataError(f"{place}: {names[0]!r} is missing; every line needs labels and predict")
    return value[name]


def _text(value: Any) -> str | None:
    """A text, also that of a number or a truth value; None for anything else."""
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, bool | int | float) else None
