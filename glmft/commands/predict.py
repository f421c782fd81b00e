"""`glmft predict`: answer every record of a file and score the answers."""

import os
from pathlib import Path
from typing import Any

from glmft.commands.kept_answers import PARTIAL, KeptAnswers, key_of
from glmft.commands.quiet import quiet
from glmft.console import say
from glmft.errors import ConfigError
from glmft.files import place_files, refusals_as, remove_folder, start_folder, write_json, write_lines
from glmft.inference.loading import load, locate
from glmft.inference.metrics import text_scores, triple_f1, triple_lines
from glmft.settings.checks import length_problems, range_problems
from glmft.settings.config import PredictConfig
from glmft.settings.defaults import EMBEDDED, shipped
from glmft.settings.recorded import as_trained
from glmft.settings.sources import find_sources

PREDICTIONS = "generated_predictions.txt"
RETRY = "free some space and give the same command again"


def predict(config: PredictConfig) -> dict[str, Any]:
    """Answer every record of a file; write generated_predictions.txt and predict_results.json; return the results."""
    from glmft.data.dataset import lengths_of, read_all
    from glmft.inference.generation import AnswerReport, answer

    test_path = config.test_path or str(shipped(f"{EMBEDDED}/test.json"))
    problems = length_problems(config) + range_problems(config)
    if problems:
        raise ConfigError(problems)
    sources = find_sources(test_path, "--test_path")
    place = locate(config.model_name_or_path, config.base_model_path)
    folder = prediction_folder(config, place.trained_folder)
    config, lines = as_trained(config, place.trained_with)
    say(lines)
    records, rejected = read_all(sources, config)
    records = records[: config.max_samples]
    questions = [record.question for record in records]
    quiet()
    model, tokenizer = load(
        config.model_name_or_path,
        mode=config.mode,
        dtype=config.dtype,
        device=config.device,
        base_model_path=config.base_model_path,
        prefix=config.ptuning_checkpoint,
        quantization_bit=config.quantization_bit,
        attn_implementation=config.attn_implementation,
    )
    from tqdm import tqdm

    with refusals_as(folder, RETRY):
        folder.mkdir(parents=True, exist_ok=True)
        kept = KeptAnswers(folder / PARTIAL, key_of(config, questions, place.base, place.adapter))
    report = AnswerReport()
    with tqdm(total=len(records), unit="record", disable=None) as bar:
        answers = answer(
            model,
            tokenizer,
            questions,
            batch_size=config.per_device_eval_batch_size,
            max_src_len=lengths_of(config, tokenizer.family).longest_prompt,
            max_new_tokens=config.max_new_tokens,
            template=config.template,
            source_prefix="",  # the records have it
            report=report,
            advance=bar.update,
            known=kept.answers,
            keep=kept.add,
        )
    labels = [record.answer for record in records]
    rows = [{"labels": label, "predict": text} for label, text in zip(labels, answers, strict=True)]
    results: dict[str, Any] = {"records": len(records)}
    results |= {f"predict_{name}": round(value, 4) for name, value in text_scores(answers, labels).items()}
    if any(triple_lines(label) for label in labels):
        results["triple"] = triple_f1(answers, labels)
    with refusals_as(folder, RETRY):
        write_predictions(folder, rows, results, rejected)
    say(report.lines(config, model.config.max_position_embeddings))
    return {**results, "folder": str(folder), "rows": rows}


def write_predictions(
    folder: Path, rows: list[dict[str, str]], results: dict[str, Any], rejected: list[tuple[str, str]]
) -> None:
    """All files or, if the disk is full, none. Raises OSError."""
    from glmft.data.dataset import write_rejected

    aside = start_folder(folder / "result")
    try:
        write_lines(aside / PREDICTIONS, rows)
        write_json(aside / "predict_results.json", results)
        write_rejected(aside, rejected)
        place_files(aside, folder)
    finally:
        remove_folder(aside)
    (folder / PARTIAL).unlink()


def prediction_folder(config: PredictConfig, trained: Path | None) -> Path:
    """Where predictions go; nothing is made yet. Raises ConfigError if it cannot be written or holds predictions."""
    folder = Path(config.output_dir) if config.output_dir else (trained or Path("output")) / "predict"
    if (folder / PREDICTIONS).exists():
        raise ConfigError(f"{folder}: holds predictions already; name another folder with --output_dir")
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(f"--output_dir {folder}: cannot be written below {there}")
    return folder
