"""`glmft score`: score a file of labels and predictions, make a sheet to rate them by hand, sum a filled one."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from glmft.data.answers import Answer, read_answers
from glmft.errors import ConfigError, DataError
from glmft.files import new_file, refusals_as, write_json
from glmft.inference.scores import Scores
from glmft.reading import read_text
from glmft.settings.answers import ScoreConfig
from glmft.settings.checks import range_problems, text_problems
from glmft.settings.config import DataSettings
from glmft.settings.sources import find_sources

ADVICE = "free some space, or name another file"


def score(config: ScoreConfig) -> str:
    """What the settings ask for, as lines to print.

    Raises:
        ConfigError: settings that do not go together, or a file that is there already.
        DataError: a line that holds no label and prediction; a sheet that is not filled in.
    """
    if problems := _problems(config):
        raise ConfigError(problems)
    if config.sum_sheet is not None:
        return _summed(Path(config.sum_sheet))
    if config.make_sheet is not None:
        return _sheet(config)
    results = score_file(Path(config.predictions))
    if config.output_file is not None:
        with refusals_as(Path(config.output_file), ADVICE):
            write_json(Path(config.output_file), results)
    return "\n".join(table(results))


def _problems(config: ScoreConfig) -> list[str]:
    problems = text_problems(config) + range_problems(config)
    if config.sum_sheet is None and config.predictions is None:
        problems.append("name the predictions: glmft score FILE")
    asked = ("output_file", "make_sheet", "sum_sheet")
    given = [f"--{name}" for name in asked if getattr(config, name) is not None]
    if len(given) > 1:
        problems.append(f"{', '.join(given)} exclude each other; give one")
    if config.sum_sheet is not None and config.predictions is not None:
        problems.append(f"{config.predictions}: is not read for --sum_sheet; leave it out")
    if config.test_path is not None and config.make_sheet is None:
        problems.append("--test_path: needs --make_sheet")
    for name in ("output_file", "make_sheet"):
        path = getattr(config, name)
        if path is not None and Path(path).exists():
            problems.append(f"--{name} {path}: is there already; name a new file")
        elif path is not None and not Path(path).absolute().parent.is_dir():
            problems.append(f"--{name} {path}: there is no such folder; make it first")
    return problems


def score_file(path: Path) -> dict[str, Any]:
    """All scores of a file of answers. Raises DataError."""
    scores, odd = Scores(), 0
    for answer in read_answers(path):
        scores.add(answer.prediction, answer.label)
        odd += answer.is_odd
    return {**scores.results(), **({"odd_predictions": odd} if odd else {})}


# ---------------------------------------------------------------------------------------------------- as lines


def table(results: dict[str, Any]) -> list[str]:
    """All scores, with a table of relations or classes where there is one."""
    lines = summary(results)
    for name, title in (("triple_relations", "relation"), ("classes", "label")):
        if name in results:
            lines += ["", f"| {title} | precision | recall | F1 | in labels | in predictions |"]
            lines += ["|---|---:|---:|---:|---:|---:|"]
            lines += [
                "| {} | {precision:.4f} | {recall:.4f} | {f1:.4f} | {gold} | {predicted} |".format(
                    _cell(key), **figures
                )
                for key, figures in results[name].items()
            ]
    if results.get("triple_other_relations"):
        lines.append(f"{results['triple_other_relations']} predicted triples are of relations that no label has")
    return lines


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|") or "(empty)"


def summary(results: dict[str, Any]) -> list[str]:
    """The means of all records."""
    lines = []
    if "triple" in results:
        lines.append("triple precision {precision:.4f} recall {recall:.4f} F1 {f1:.4f}".format(**results["triple"]))
        micro = "triples of all records together: precision {precision:.4f} recall {recall:.4f} F1 {f1:.4f}"
        lines.append(micro.format(**results["triple_micro"]))
    if "accuracy" in results:
        lines.append(f"accuracy {results['accuracy']:.4f}, macro F1 {results['macro_f1']:.4f}")
    texts = {name.removeprefix("predict_"): value for name, value in results.items() if name.startswith("predict_")}
    lines.append(", ".join(f"{name} {value:.4f}" for name, value in texts.items()))
    left = {"are empty": results.get("empty_predictions", 0), "are no texts": results.get("odd_predictions", 0)}
    counts = [f", {count} {what}" for what, count in left.items() if count]
    return [*lines, f"{results['records']} predictions{''.join(counts)}"]


# ---------------------------------------------------------------------------------------------------- sheets


def _sheet(config: ScoreConfig) -> str:
    from glmft.inference.rating import write_sheet

    path, target = Path(config.predictions), Path(config.make_sheet)
    answers = list(islice(read_answers(path), config.sheet_records))
    if config.test_path is not None:
        answers = list(with_questions(answers, config.test_path))
    with refusals_as(target, ADVICE), new_file(target) as aside:
        count = write_sheet(aside, answers)
    return f"{count} records to be rated in {target}; when every fault is counted: glmft score --sum_sheet {target}"


def with_questions(answers: list[Answer], test_path: str) -> Iterator[Answer]:
    """The answers with the questions of the records that they answer. Raises DataError if those are others."""
    from glmft.data.stream import stream_records

    records = stream_records(find_sources(test_path, "--test_path"), DataSettings(), most=len(answers))
    for answer in answers:
        record = next(records, None)
        if record is None or record.answer != answer.label:
            where = record.place if record else "its end"
            raise DataError(f"--test_path {test_path}: at {where} it has another label than the predictions")
        question = "\n".join(message.get("content", "") for message in record.question)
        yield Answer(answer.label, answer.prediction, question)


def _summed(path: Path) -> str:
    from glmft.inference.rating import sum_sheet

    try:
        rating = sum_sheet(path, read_text(path))
    except ConfigError as error:
        raise DataError(error.problems) from None
    lines = [f"{name.replace('_', ' ')}: {count}" for name, count in rating.faults.items()]
    share = f"{100 * rating.points / rating.most:.2f} of 100"
    return "\n".join([*lines, f"{rating.points:.2f} points of {rating.most:.0f} for {rating.records} records: {share}"])
