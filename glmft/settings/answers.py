"""Settings of what follows training: how a model answers, and what is done with the answers."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from glmft.settings.config import TEMPLATES, DataSettings, FileSettings, ModelSettings
from glmft.settings.setting import LONG, setting

SAMPLING = ("temperature", "top_p", "top_k")


@dataclass
class SamplingSettings:
    """How an answer comes about, token by token."""

    title: ClassVar[str] = "decoding"

    max_new_tokens: int = setting(256, "longest answer, in tokens", at_least=1, at_most=LONG)
    do_sample: bool = setting(False, "draw every token instead of taking the likeliest")
    temperature: float | None = setting(
        None, "with do_sample: what logits are divided by; none: as the family's chat() has it", more_than=0
    )
    top_p: float | None = setting(
        None,
        "with do_sample: draw among the likeliest tokens that together have this probability; none: as chat() has it",
        more_than=0,
        at_most=1,
    )
    top_k: int | None = setting(None, "with do_sample: draw among this many tokens, 0: all; none: 50", at_least=0)
    repetition_penalty: float = setting(1.0, "divides the logits of tokens that stand there already", more_than=0)
    seed: int = setting(1234, "with do_sample: of the draws; every record has its own", at_least=0, at_most=2**31)


@dataclass
class DecodingSettings(SamplingSettings):
    """How an answer comes about: token by token, or as the best of several beams."""

    num_beams: int = setting(1, "beams; 1: none", at_least=1, at_most=1024)


@dataclass
class PredictConfig(FileSettings, DecodingSettings, DataSettings, ModelSettings):
    """Answer one question, or every record of a file, whose answers are scored.

    What says how records are read and cut is, where it is None, as the model was trained, else as in training.
    """

    input_separator: str | None = setting(None, "triples: what stands between instruction and input; none: as trained")
    source_prefix: str | None = setting(None, "pairs: text before every question; none: as trained")
    template: str | None = setting(
        None, "default, reference or raw, as in training; none: as trained, else default", choices=TEMPLATES
    )
    max_len: int | None = setting(
        None, "longest row, of which a prompt is shorter; none: as trained, else 1024", at_least=8, at_most=LONG
    )
    prompt: str | None = setting(None, "answer this question and print the answer; -: what standard input holds")
    test_path: str | None = setting(
        None,
        "files of records, as train_path; -: JSON lines from standard input; none: the shipped test sample",
    )
    output_dir: str | None = setting(
        None,
        "folder for generated_predictions.txt and predict_results.json; "
        "none: predict/ in the model's folder, or output/predict for the embedded base",
    )
    resume: bool = setting(
        False, "go on behind the answers that output_dir holds; without it, only the same command goes on, if it ended"
    )
    per_device_eval_batch_size: int = setting(16, "prompts generated together on one device", at_least=1)
    max_tokens_per_batch: int | None = setting(
        None,
        "in place of per_device_eval_batch_size: tokens of the prompts generated together, with padding, beams and "
        "room for max_new_tokens",
        at_least=1,
    )
    max_samples: int | None = setting(None, "answer only the first records, this many", at_least=1)
    device_map: str | None = setting(
        None, "auto: spread the layers over all accelerators, what is left over the host", choices=("auto",)
    )
    local_rank: int | None = setting(None, "given by launchers; ignored")


def idle_settings(settings: DecodingSettings) -> list[str]:
    """Flags of sampling that were given though nothing is sampled."""
    given = (f.name for f in dataclasses.fields(DecodingSettings) if getattr(settings, f.name) != f.default)
    return [] if settings.do_sample else [f"--{name}" for name in given if name in (*SAMPLING, "seed")]


@dataclass
class ScoreConfig:
    """Score a file of labels and predictions, or rate generated questions by hand with the help of a sheet."""

    predictions: str | None = setting(
        None, "JSON lines of labels (or label) and predict (or prediction); also the first argument (required)"
    )
    output_file: str | None = setting(None, "new JSON file for all scores; none: they are only printed")
    make_sheet: str | None = setting(
        None, "in place of scores: write this new CSV file, a line for each of the first records, to be rated by hand"
    )
    sheet_records: int = setting(20, "records in that sheet", at_least=1)
    test_path: str | None = setting(
        None, "with make_sheet: the records that were answered, whose questions then stand in the sheet"
    )
    sum_sheet: str | None = setting(None, "in place of scores: sum the points of this CSV file, once it is filled in")
