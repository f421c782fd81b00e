"""`glmft predict`: answer one question, or every record of a file, whose answers are scored."""

import contextlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any

from glmft.commands import predictions
from glmft.commands.predictions import PREDICTIONS, RESULTS, Kept, Predictions, kept_answers
from glmft.commands.quiet import quiet
from glmft.console import say
from glmft.dist import World, gather_objects, is_launched, is_main, join, same_fate, sum_over_ranks
from glmft.errors import ConfigError, DataError
from glmft.files import refusals_as, write_json
from glmft.inference.loading import Place, load, locate
from glmft.settings.answers import DecodingSettings, PredictConfig, idle_settings
from glmft.settings.checks import length_problems, range_problems
from glmft.settings.defaults import EMBEDDED, shipped
from glmft.settings.recorded import as_trained
from glmft.settings.sources import Source, find_sources
from glmft.training.failures import explained

RETRY = "free some space and give the same command again"
WINDOW_BATCHES = 8  # of each rank, which are answered and written together: what a kill costs at most
MOST_IN_WINDOW = 4096  # records
LESS_MEMORY = ["a smaller --per_device_eval_batch_size", "a smaller --max_new_tokens", "--quantization_bit 8 or 4"]


@dataclass
class Task:
    """What is to be answered.

    Args:
        records: how many there are.
        kept: what is answered already.
        hangs_on: what the answers hang on.
        report: of what is cut.
        built_for: tokens that the model was built for.
        rejected: (place, reason) of every bad record.
    """

    config: PredictConfig
    sources: Sequence[Source]
    tokenizer: Any
    folder: Path
    hangs_on: dict[str, Any]
    report: Any
    built_for: int | None
    records: int = 0
    kept: Kept = field(default_factory=Kept)
    rejected: list[tuple[str, str]] = field(default_factory=list)


def predict(config: PredictConfig) -> dict[str, Any]:
    """Answer every record of a file into generated_predictions.txt, in order, and score them in predict_results.json.

    With a launcher the records are split among the ranks; rank 0 writes.

    Returns:
        the scores (on other ranks nothing); for `config.prompt` its `answer`.

    Raises:
        GlmftError: settings, data, model or output folder that cannot be used, or a full disk.
    """
    problems = length_problems(config) + range_problems(config) + _contradictions(config)
    if problems:
        raise ConfigError(problems)
    place = locate(config.model_name_or_path, config.base_model_path)  # before libraries that take seconds to import
    quiet()
    if idle := idle_settings(config):
        logging.getLogger("glmft").warning(f"warning: {', '.join(idle)}: without effect; give --do_sample too")
    if config.prompt is not None:
        return {"answer": answer_one(config, place)} if is_main() else {}
    with contextlib.ExitStack() as stack:
        sources = _sources(config, stack)
        folder = prediction_folder(config, place.trained_folder)
        config, lines = as_trained(config, place.trained_with)
        world = join(config.device, config.dtype)
        with same_fate():
            task = survey(config, sources, place, folder)
        task.kept = gather_objects(world, task.kept)[0]
        say([*lines, *notes(task)] if world.is_main else [])
        with explained(world, lambda: LESS_MEMORY):
            answer_all(task, world)
            task.report.unfinished = int(sum_over_ranks(world, task.report.unfinished)[0])
    return finish(task) if world.is_main else {}


def _contradictions(config: PredictConfig) -> list[str]:
    problems = []
    if config.prompt is not None and config.test_path is not None:
        problems.append("--prompt and --test_path exclude each other; give one")
    if config.prompt is not None and not config.prompt.strip():
        problems.append("--prompt: is empty")
    return problems


# ---------------------------------------------------------------------------------------------------- one question


def answer_one(config: PredictConfig, place: Place) -> str:
    """The answer to `config.prompt`; all else goes to standard error. Raises ConfigError, CheckpointError."""
    from glmft.data.dataset import lengths_of
    from glmft.inference.generation import AnswerReport, answer

    question = standard_input() if config.prompt == "-" else config.prompt
    config, lines = as_trained(config, place.trained_with)
    print(*lines, sep="\n", end="\n" * bool(lines), file=sys.stderr, flush=True)
    (model, tokenizer), report = load_for(config), AnswerReport()
    longest = lengths_of(config, tokenizer.family).longest_prompt
    reading = {"max_src_len": longest, "template": config.template, "source_prefix": config.source_prefix}
    decoding = {f.name: getattr(config, f.name) for f in fields(DecodingSettings)}
    try:
        [text] = answer(model, tokenizer, [question], report=report, **reading, **decoding)
    except ValueError as error:
        raise ConfigError(f"--prompt: {error}") from None
    lines = report.lines(config, model.config.max_position_embeddings)
    print(*lines, sep="\n", end="\n" * bool(lines), file=sys.stderr, flush=True)
    return text


def standard_input() -> str:
    """A question. Raises ConfigError if it is empty or no text."""
    try:
        question = sys.stdin.buffer.read().decode("utf-8").strip()
    except UnicodeDecodeError:
        raise ConfigError("--prompt -: standard input is not UTF-8") from None
    if not question:
        raise ConfigError("--prompt -: standard input holds no question")
    return question


def load_for(config: PredictConfig) -> tuple[Any, Any]:
    """The model and the tokenizer that the settings name."""
    return load(
        config.model_name_or_path,
        mode=config.mode,
        dtype=config.dtype,
        device=config.device,
        base_model_path=config.base_model_path,
        prefix=config.ptuning_checkpoint,
        quantization_bit=config.quantization_bit,
        attn_implementation=config.attn_implementation,
        device_map=config.device_map,
    )


# ---------------------------------------------------------------------------------------------------- many records


def _sources(config: PredictConfig, stack: contextlib.ExitStack) -> list[Source]:
    """The files of records; what comes from standard input is put into one first, as it is read twice."""
    if config.test_path != "-":
        return find_sources(config.test_path or str(shipped(f"{EMBEDDED}/test.json")), "--test_path")
    if is_launched():
        raise ConfigError("--test_path -: a launcher's ranks have no standard input; name a file")
    path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "standard_input.jsonl"
    with path.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    return [Source((path,), None)]


def prediction_folder(config: PredictConfig, trained: Path | None) -> Path:
    """Where predictions go; nothing is made yet. Raises ConfigError if it cannot be written."""
    folder = Path(config.output_dir) if config.output_dir else (trained or Path("output")) / "predict"
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(f"--output_dir {folder}: cannot be written below {there}")
    return folder


def survey(config: PredictConfig, sources: Sequence[Source], place: Place, folder: Path) -> Task:
    """Read everything once: every record can be expressed, and the answers that are there are to the first of them.

    Raises:
        ConfigError: the folder holds other answers.
        DataError: a bad record, or a label that is not the record's.
    """
    from glmft.inference.generation import AnswerReport
    from glmft.models.loading import load_config
    from glmft.tokenizers.loading import load_tokenizer

    now = predictions.hangs_on(config, place.base, place.adapter)
    resumes = predictions.require_usable(folder, config.resume, now)
    model_config = load_config(place.base, place.mode(config.mode), config.quantization_bit)
    tokenizer = load_tokenizer(place.base, model_config.family, model_config)
    built_for = getattr(model_config, "max_position_embeddings", None)
    task = Task(config, sources, tokenizer, folder, now, AnswerReport(), built_for)
    known = kept_answers(folder / PREDICTIONS) if resumes else iter(())
    for record, prompt, was_cut in prompts_of(task, reject=task.rejected.extend):
        task.records += 1
        task.report.take_prompt(prompt, was_cut)
        label, size = next(known, (None, 0))
        if label is None:
            continue
        if label != record.answer:
            raise DataError(
                f"{folder / PREDICTIONS}:{task.records}: its label is not that of {record.place}, so the answers are "
                "to other records; name another folder with --output_dir"
            )
        task.kept = Kept(task.records, size)
    if next(known, None):
        raise DataError(
            f"{folder / PREDICTIONS}: holds more answers than the {task.records} records that are to be answered; name "
            "another folder with --output_dir"
        )
    return task


def notes(task: Task) -> list[str]:
    """Lines for whoever reads along."""
    if not 0 < task.kept.lines < task.records:
        return []
    return [f"going on behind {task.kept.lines} of {task.records} answers in {task.folder / PREDICTIONS}"]


def prompts_of(
    task: Task, first: int = 0, reject: Callable[..., Any] = lambda refusals: None
) -> Iterator[tuple[Any, list[int], bool]]:
    """Each record from the given one on with its prompt's ids, and whether these were cut. Raises DataError."""
    from glmft.data.dataset import lengths_of
    from glmft.data.encode import encode_prompt
    from glmft.data.stream import stream_records

    config = task.config
    longest = lengths_of(config, task.tokenizer.family).longest_prompt
    for record in islice(stream_records(task.sources, config, reject, config.max_samples), first, None):
        try:
            prompt, was_cut = encode_prompt(task.tokenizer, record.question, longest, config.template)
        except ValueError as error:
            raise DataError(f"{record.place}: {error}") from None
        yield record, prompt, was_cut


def windows(task: Task, ranks: int) -> Iterator[list[tuple[str, list[int]]]]:
    """(label, prompt) of the records that are left, some batches of every rank at a time."""
    config = task.config
    most = ranks * WINDOW_BATCHES * (config.max_tokens_per_batch or config.per_device_eval_batch_size)
    window, tokens = [], 0
    for record, prompt, _ in prompts_of(task, task.kept.lines):
        size = (len(prompt) + config.max_new_tokens) * config.num_beams if config.max_tokens_per_batch else 1
        if window and (tokens + size > most or len(window) >= MOST_IN_WINDOW * ranks):
            yield window
            window, tokens = [], 0
        window.append((record.answer, prompt))
        tokens += size
    if window:
        yield window


def answer_all(task: Task, world: World) -> None:
    """Answer what is not answered yet; window by window all ranks answer, and rank 0 writes."""
    from tqdm import tqdm

    from glmft.inference.generation import answer_batches, batches

    config, kept = task.config, task.kept
    if kept.lines == task.records:
        return
    model, tokenizer = load_for(config)
    file, first = Predictions(task.folder / PREDICTIONS, kept), kept.lines
    with tqdm(total=task.records, initial=first, unit="record", disable=None if world.is_main else True) as bar:
        for window in windows(task, world.size):
            prompts = [prompt for _, prompt in window]
            groups = batches(
                [len(prompt) for prompt in prompts],
                config,
                config.per_device_eval_batch_size,
                config.max_tokens_per_batch,
            )
            mine = groups[world.rank :: world.size]
            answers = answer_batches(model, tokenizer, prompts, mine, config, task.report, first, bar.update)
            answers = {i: text for part in gather_objects(world, answers) for i, text in part.items()}
            with same_fate():
                if world.is_main:
                    with refusals_as(task.folder, RETRY):
                        predictions.begin(task.folder, task.hangs_on)
                    file.add([(label, answers[i]) for i, (label, _) in enumerate(window)])
            first += len(window)
            bar.update(first - bar.n)


def finish(task: Task) -> dict[str, Any]:
    """Score all answers, and write the scores and the records that were left out. Raises CheckpointError."""
    from glmft.commands.score import score_file
    from glmft.data.dataset import write_rejected

    results = score_file(task.folder / PREDICTIONS)
    with refusals_as(task.folder, RETRY):
        write_rejected(task.folder, task.rejected)
        write_json(task.folder / RESULTS, results)
    say(task.report.lines(task.config, task.built_for))
    return {**results, "folder": str(task.folder)}
