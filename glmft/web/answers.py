"""Predictions as a table: question, label, answer and the scores of every record."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmft.data.dataset import read_all
from glmft.errors import ConfigError, GlmftError
from glmft.inference.metrics import text_score, triple_lines, triple_score
from glmft.reading import open_regular, parse_json, read_json_if_there
from glmft.settings.config import DataSettings
from glmft.settings.sources import Source
from glmft.web.places import Root

PREDICTIONS, RESULTS = "generated_predictions.txt", "predict_results.json"
MOST_ROWS = 1000  # that are scored and shown
LONGEST_LINE, LARGEST_DATA = 1 << 20, 16 << 20  # bytes


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
    """The answers in a folder, each with its scores. Raises ConfigError."""
    lines, is_cut = _lines(root.inside(name, PREDICTIONS))
    has_triples = any(triple_lines(label) for _, label, _ in lines)
    rows = [
        Answered(i, question, label, answer, scores_of(answer, label, has_triples))
        for i, (question, label, answer) in enumerate(lines)
    ]
    means: dict[str, float] = {}
    with contextlib.suppress(GlmftError):
        means = _numbers(read_json_if_there(root.inside(name, RESULTS)))
    return Predictions(rows, means, is_cut)


def scores_of(answer: str, label: str, has_triples: bool) -> dict[str, float]:
    """In percent: F1 of triples where the file has any, then the scores of texts."""
    triples = {"f1": 100 * triple_score(answer, label)[2]} if has_triples else {}
    return {name: round(value, 2) for name, value in {**triples, **text_score(answer, label)}.items()}


def _numbers(results: dict[str, Any]) -> dict[str, float]:
    flat = {**results, **(results["triple"] if isinstance(results.get("triple"), dict) else {})}
    return {
        name.removeprefix("predict_"): value
        for name, value in flat.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _lines(path: Path) -> tuple[list[tuple[str, str, str]], bool]:
    """(question, label, answer) of the first lines, and whether there are more."""
    rows: list[tuple[str, str, str]] = []
    try:
        with open_regular(path) as raw, io.BufferedReader(raw) as file:
            for line in iter(lambda: file.readline(LONGEST_LINE + 1), b""):
                if len(rows) == MOST_ROWS:
                    return rows, True
                rows.append(_row(line, f"{path.name}:{len(rows) + 1}"))
    except OSError as error:
        raise ConfigError(f"{path.name}: cannot be read ({error.strerror or error})") from None
    return rows, False


def _row(line: bytes, place: str) -> tuple[str, str, str]:
    try:
        value = parse_json(line.decode("utf-8"))
        label, answer = value["labels"], value["predict"]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{place}: is no JSON object with labels and predict") from None
    question = next((value[key] for key in ("question", "prompt", "input") if isinstance(value.get(key), str)), "")
    return question, str(label), str(answer)


def with_questions(predictions: Predictions, files: Sequence[Path]) -> tuple[Predictions, Path | None]:
    """The questions, of the first file whose records begin with the same labels; also that file, None: there is none.

    Predictions are written without their questions, as the official scripts write them.
    """
    labels = [row.label for row in predictions.rows]
    for path in files if labels else ():
        if not path.is_file() or path.stat().st_size > LARGEST_DATA:
            continue
        with contextlib.suppress(GlmftError):
            records, _ = read_all([Source((path,), None)], DataSettings(on_bad_record="skip"))
            if [record.answer for record in records[: len(labels)]] == labels:
                texts = ["\n".join(str(m.get("content", "")) for m in record.question) for record in records]
                rows = [
                    Answered(row.number, row.question or text, row.label, row.answer, row.scores)
                    for row, text in zip(predictions.rows, texts, strict=False)
                ]
                return Predictions(rows, predictions.means, predictions.is_cut), path
    return predictions, None
