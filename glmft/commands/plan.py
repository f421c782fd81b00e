"""`glmft plan`: what a run would take, by its settings alone or with the lengths of its data."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from glmft.errors import ConfigError
from glmft.planning.cards import ANY, CPU, Card, find_card
from glmft.planning.memory import Zero
from glmft.planning.network import Load
from glmft.planning.report import figures, lines
from glmft.planning.run import Run, fixed_load, setting_of
from glmft.planning.shape import OFFICIAL, Shape, find_shape
from glmft.planning.time import pace_of
from glmft.settings.checks import length_problems, range_problems, text_problems
from glmft.settings.config import TUNERS, TrainConfig
from glmft.settings.deepspeed import asked_precision, resolve
from glmft.settings.defaults import find_ds_file
from glmft.settings.plan import PlanConfig

MOST_ROWS = 1 << 16


def plan(config: PlanConfig) -> str:
    """The plan, as lines or JSON. Raises ConfigError, DataError."""
    if config.published:
        from glmft.planning.published import table

        return table()
    if problems := _problems(config):
        raise ConfigError(problems)
    shape = find_shape(config.model_name_or_path)
    card = find_card(config.gpu) if config.gpu else None
    dtype = dtype_of(config, card)
    load, rows, notes = _of_data(config) if config.train_path else _assumed(config, shape)
    batch = min(config.per_device_train_batch_size, rows) if config.train_path else len(load.documents)
    zero = zero_of(config, config.gpus, dtype, shape.hidden)
    bits = config.quantization_bit or shape.quantisation
    run = Run(
        setting_of(config, shape, load, dtype, zero, config.gpus, True, bits),
        rows,
        max(1, batch),
        config.gradient_accumulation_steps,
    )
    pace = (config.flops, config.interconnect, config.network, config.gpus_per_host)
    return shown(run, card, config, Path(config.model_name_or_path).name, notes, pace)


def _problems(config: PlanConfig) -> list[str]:
    problems = text_problems(config)
    if problems:
        return problems
    if config.model_name_or_path is None:
        problems.append(f"name a model's folder or one of {', '.join(OFFICIAL)}: glmft plan MODEL")
    if config.train_type not in TUNERS:
        problems.append(f"--train_type {config.train_type}: is none of {', '.join(TUNERS)}, all")
    if config.train_path and config.model_name_or_path and not Path(config.model_name_or_path).is_dir():
        problems.append(
            "--train_path: lengths in tokens need the tokenizer of a model's folder; name one, or leave this out"
        )
    return problems + length_problems(config) + range_problems(config)


def shown(run: Run, card: Card | None, config: TrainConfig, name: str, notes: list[str], pace: tuple[Any, ...]) -> str:
    """A plan as lines, or as JSON.

    Args:
        pace: rate, link, network, devices of a host, as `pace_of` takes them.
    """
    if config.pipeline_stages > 1:
        raise ConfigError(
            f"--pipeline_stages {config.pipeline_stages}: plans are of all layers on every rank; leave it out, and "
            "divide weights and activations by the stages"
        )
    if (run.setting.bits and needs_floats(config)) or (run.setting.bits == "nf4" and run.setting.zero.stage == 3):
        raise ConfigError(
            f"--quantization_bit {run.setting.bits}: does not go with --train_type {config.train_type} and ZeRO-"
            f"{run.setting.zero.stage}; leave it out"
        )
    device = card or (ANY if run.setting.on_gpu else CPU)
    found = pace_of(device, run.setting.dtype, *pace)
    made = figures(run, found, card, needs_floats(config))
    if getattr(config, "json", False):
        return json.dumps({"name": name, **made, "notes": notes}, indent=2)
    if card is None and pace[0] is None:
        notes = [*notes, f"no --gpu is named: {device.name} of {found.rate / 1e12:.3g} TFLOP/s is assumed"]
    return "\n".join(lines(run, found, card, made, name, notes))


def needs_floats(config: TrainConfig) -> bool:
    """Whether what trains cannot stand over weights of few bits."""
    return config.train_type in ("full", "freeze") or config.use_dora or config.init_lora_weights.startswith("pissa")


def dtype_of(config: TrainConfig, card: Card | None) -> str:
    """As a run chooses it on an accelerator."""
    if config.dtype != "auto":
        return config.dtype
    asked = asked_precision(find_ds_file(config.ds_file))
    return asked or ("fp32" if card is not None and not card.has_bf16 else "bf16")


def zero_of(config: TrainConfig, ranks: int, dtype: str, hidden: int) -> Zero:
    return Zero.of(resolve(find_ds_file(config.ds_file), config, ranks, dtype, hidden).config["zero_optimization"])


def _assumed(config: PlanConfig, shape: Shape) -> tuple[Load, int, list[str]]:
    """Rows that are as long as they may be."""
    length, answer = config.max_len, config.answer_len
    if config.max_source_length is not None and config.max_target_length is not None:
        length = config.max_source_length + config.max_target_length + (shape.layout != "glm")
        answer = answer or config.max_target_length
    answer = answer or length // 2
    if answer >= length:
        raise ConfigError(f"--answer_len {answer}: leaves nothing of rows of {length} tokens for a prompt")
    rows = config.per_device_train_batch_size
    if config.max_tokens_per_batch is not None:
        rows = max(1, min(rows, config.max_tokens_per_batch // length))
    if rows > MOST_ROWS:
        raise ConfigError(f"--per_device_train_batch_size {rows}: a plan goes up to {MOST_ROWS} rows; give fewer")
    note = f"assumed: rows of {length:,} tokens, {answer:,} of them learned; --train_path has real lengths"
    return fixed_load(rows, length, answer, shape.layout), config.rows, [note]


def _of_data(config: PlanConfig) -> tuple[Load, int, list[str]]:
    """The largest micro-batch of the first epoch."""
    from glmft.commands.quiet import quiet
    from glmft.commands.rows import dealt, training_rows
    from glmft.inference.loading import locate
    from glmft.tokenizers.loading import load_tokenizer
    from glmft.training.memory import load_of

    quiet()
    place = locate(config.model_name_or_path)
    tokenizer = load_tokenizer(place.base, place.mode(config.mode))
    rows, _ = training_rows(config, tokenizer)
    deal = dealt(config, rows.lengths, config.gpus)
    heaviest = deal.heaviest(rows.lengths, 0, deal.steps_per_epoch)
    return load_of(rows, heaviest, tokenizer), len(rows.lengths), [*rows.lines]


def plan_of_run(prepared: Any) -> str:
    """The plan of a prepared run, on the device that it would have, or on the card that it names."""
    from glmft.training.memory import run_of

    config = prepared.job.config
    card = find_card(config.gpu) if config.gpu else None
    run = run_of(prepared.job, prepared.model_config)
    if card is not None:
        run = replace(run, setting=replace(run.setting, on_gpu=True))
    note = "the micro-batch of most tokens of the first epoch"
    name = Path(prepared.job.base["base_model_name_or_path"]).name
    return shown(run, card, config, name, [note], (None, None, PlanConfig.network, PlanConfig.gpus_per_host))
