"""Predictions as a table: question, label, answer and the scores of every record."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from glmft.commands.predictions import PREDICTIONS, RESULTS
from glmft.data.answers import Answer, read_answers
from glmft.data.stream import stream_records
from glmft.errors import GlmftError
from glmft.inference.metrics import text_score, triple_lines, triple_score
from glmft.reading import read_json_if_there
from glmft.settings.config import DataSettings
from glmft.settings.sources import Source
from glmft.web.places import Root

MOST_ROWS = 1000  # that are scored and shown
LARGEST_DATA = 16 << 20  # bytes of a file that is looked through for questions


@dataclass(frozen=True)
class Answered:
    """One record."""

    number: int
    question: str
    label: str
    answer: str
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Predictions:
    """
    Args:
        rows: the first `MOST_ROWS` records.
        means: predict_results.json, as far as it holds numbers.
        is_cut: whether there are more.
    """

    rows: list[Answered]
    means: dict[str, float]
    is_cut: bool = False

    @property
    def score_names(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.rows for name in row.scores))


def predictions_in(root: Root) -> list[str]:
    """Names of the folders below that hold predictions, newest first."""
    names = root.listed(lambda path: path.name == PREDICTIONS and path.is_file())
    return [str(Path(name).parent.as_posix()) for name in names]


def read_predictions(root: Root, name: str) -> Predictions:
    """The answers in a folder, each with its scores. Raises ConfigError, DataError."""
    read = list(islice(read_answers(root.inside(name, PREDICTIONS)), MOST_ROWS + 1))
    has_triples = any(triple_lines(answer.label) for answer in read)
    rows = [
        Answered(i, answer.question, answer.label, answer.prediction, scores_of(answer, has_triples))
        for i, answer in enumerate(read[:MOST_ROWS])
    ]
    means: dict[str, float] = {}
    with contextlib.suppress(GlmftError):
        means = _numbers(read_json_if_there(root.inside(name, RESULTS)))
    return Predictions(rows, means, len(read) > MOST_ROWS)


def scores_of(answer: Answer, has_triples: bool) -> dict[str, float]:
    """In percent: F1 of triples where the file has any, then the scores of texts."""
    triples = {"f1": 100 * triple_score(answer.prediction, answer.label)[2]} if has_triples else {}
    scores = {**triples, **text_score(answer.prediction, answer.label)}
    return {name: round(value, 2) for name, value in scores.items()}


def _numbers(results: dict[str, Any]) -> dict[str, float]:
    flat = {**results, **(results["triple"] if isinstance(results.get("triple"), dict) else {})}
    return {
        name.removeprefix("predict_"): value
        for name, value in flat.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def with_questions(predictions: Predictions, files: Sequence[Path]) -> tuple[Predictions, Path | None]:
    """The questions, of the first file whose records begin with the same labels; also that file, None: there is none.

    Predictions are written without their questions, as the official scripts write them.
    """
    for path in files if predictions.rows else ():
        if path.is_file() and path.stat().st_size <= LARGEST_DATA and (questions := _questions(predictions.rows, path)):
            pairs = zip(predictions.rows, questions, strict=True)
            rows = [replace(row, question=row.question or question) for row, question in pairs]
            return replace(predictions, rows=rows), path
    return predictions, None


def _questions(rows: Sequence[Answered], path: Path) -> list[str]:
    """What the first records of a file ask, if they have the labels of these rows; else nothing."""
    questions = []
    try:
        records = stream_records([Source((path,), None)], DataSettings(on_bad_record="skip"), most=len(rows))
        for row, record in zip(rows, records, strict=True):
            if record.answer != row.label:
                return []
            questions.append("\n".join(str(message.get("content", "")) for message in record.question))
    except (GlmftError, ValueError):  # no records, or not as many
        return []
    return questions
