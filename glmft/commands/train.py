"""`glmft train`: a training run, from its settings to the loop."""

import contextlib
import math
import random
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmft import dist
from glmft.commands.quiet import quiet
from glmft.commands.rows import beyond_the_model, dealt, training_rows
from glmft.commands.stages import cut_into_stages, in_stages, require_pipeline
from glmft.console import lasting_output, say
from glmft.device import DTYPES, keep_freed_memory, torch_dtype
from glmft.errors import ConfigError, DataError
from glmft.inference.loading import locate
from glmft.reading import read_json_if_there
from glmft.settings.checks import check
from glmft.settings.config import TrainConfig
from glmft.settings.deepspeed import asked_precision, resolve
from glmft.settings.defaults import find_ds_file, with_defaults
from glmft.settings.recorded import TRAINED_WITH, record_of_settings


def train(config: TrainConfig) -> Any:
    """One training run, from settings to saved weights; with a launcher one rank of it, without one the only rank.

    Returns:
        The run's `TrainResult`.

    Raises:
        GlmftError: settings, data, model or output folder that cannot be used; every rank raises the same lines.
    """
    with lasting_output(), contextlib.ExitStack() as stack:
        with dist.alike_on_all_ranks():
            config, messages = with_defaults(config)
            problems = check(config)
            if problems:
                raise ConfigError(problems)
            precision = asked_precision(find_ds_file(config.ds_file))
        world = dist.start(config.device, config.dtype, precision, config.rank_timeout)
        with dist.alike_on_all_ranks():
            world = in_stages(world, config.pipeline_stages)
        if not config.verbose:
            quiet()
        return show_plan(config, world) if config.plan else run(config, world, messages, stack)


def show_plan(config: TrainConfig, world: dist.World) -> None:
    """What the run would take; nothing is written, no weight is read."""
    from glmft.commands.plan import plan_of_run

    with dist.same_fate():
        lines = plan_of_run(prepare(config, world))
    say([lines] if world.is_main else [])


def run(config: TrainConfig, world: dist.World, messages: list[str], stack: contextlib.ExitStack) -> Any:
    """The run itself, once its ranks have met.

    Args:
        messages: lines for whoever reads the log.
        stack: has the output folder until the end of the run.
    """
    from glmft import engine
    from glmft.engine import is_over
    from glmft.training.checkpoint import ResumePoint, find_resume, open_optimizer
    from glmft.training.failures import explained
    from glmft.training.memory import advice_for
    from glmft.training.resuming import finished_line, finished_result, going_on, require_parameters, start_state
    from glmft.training.run_folder import claimed

    def show(lines: list[str]) -> None:
        say(lines if world.is_main else [])

    with explained(world):
        resume, folder = ResumePoint(), Path(config.output_dir)
        with dist.same_fate():
            if world.is_main:
                stack.enter_context(claimed(folder, config.overwrite_output_dir, config.resume is not None))
            if config.resume and world.is_main:
                resume = find_resume(folder, config.resume)
                check_states(resume.checkpoint, config, world)
        resume = dist.gather_objects(world, resume)[0]
        with dist.same_fate():
            prepared = prepare(config, world)
            job = prepared.job
        notes = data_notes(job)
        show([*messages, world.describe(), *notes, *prepared.messages, *resume.messages])
        if resume.checkpoint:
            with dist.same_fate():
                state = start_state(job, resume.checkpoint)
                require_parameters(prepared.trained, open_optimizer(resume.checkpoint))
            if is_over(state, config) and (result := finished_result(folder, resume.checkpoint, state)):
                show([finished_line(folder, state)])
                return result
            show(going_on(resume.checkpoint, state, config))
        with dist.same_fate():
            model, messages = prepare_model(job, prepared.model_config)
            job.trained = parameter_table(model)
        show([*messages, job.trained])
    with explained(world, lambda: advice_for(job, model)):
        return engine.train(model, job, resume.checkpoint)


@dataclass
class Prepared:
    """Everything but the weights.

    Args:
        trained: names and shapes of what trains.
        messages: lines for whoever reads the log.
    """

    job: Any
    model_config: Any
    trained: dict[str, list[int]]
    messages: list[str] = field(default_factory=list)


def prepare(config: TrainConfig, world: dist.World) -> Prepared:
    """Model configuration, tokenizer, encoded data, tuner and DeepSpeed settings.

    All that can be wrong shows here, in seconds. Raises ConfigError, CheckpointError, DataError.
    """
    from glmft.models.loading import check_folder, load_config, record_of
    from glmft.tokenizers.loading import load_tokenizer
    from glmft.training.ds_sections import check_sections
    from glmft.training.evaluation import has_triples
    from glmft.training.job import Job
    from glmft.training.tracking import check_reporters

    check_reporters(config.report_names)
    place = locate(config.model_name_or_path, config.base_model_path)
    if place.adapter:
        raise ConfigError(
            f"--model_name_or_path {place.adapter}: is an adapter; train on its base {place.base}, "
            "go on with --resume, or merge it first"
        )
    model_config = load_config(place.base, place.mode(config.mode), config.quantization_bit)
    _, bare_model = check_folder(model_config, place.base)
    dtype = next(name for name, torch_name in DTYPES.items() if str(world.dtype).endswith(torch_name))
    resolved = resolve(find_ds_file(config.ds_file), config, world.data_size, dtype, model_config.hidden_size)
    check_sections(resolved.given, resolved.config, config.ds_file, world.data_size if world.stages > 1 else None)
    if world.stages > 1:
        require_pipeline(config, model_config, resolved.config)
    tuner, trained = fitting_tuner(config, bare_model, resolved.config["zero_optimization"].get("stage", 0))
    tokenizer = load_tokenizer(place.base, model_config.family, model_config)
    rows, validation = training_rows(config, tokenizer)
    plan = dealt(config, rows.lengths, world.data_size)
    base = {**record_of(model_config, place.base), TRAINED_WITH: record_of_settings(config)}
    folder = Path(config.output_dir)
    job = Job(config, resolved.config, world, tuner, base, tokenizer, plan, folder, rows, validation)
    if config.save_best == "f1" and not has_triples(job):
        raise ConfigError("--save_best f1: the validation rows have no triples a_b_c to score; name another metric")
    messages = [*resolved.messages, *run_lines(job, model_config)]
    messages += set_boundary(job, trained, model_config) if config.cache_frozen_activations else []
    messages += cut_into_stages(job, bare_model, trained) if world.stages > 1 else []
    return Prepared(job, model_config, trained, messages)


def set_boundary(job: Any, trained: dict[str, list[int]], model_config: Any) -> list[str]:
    """Have the job keep what comes into the lowest trained layer; or a line on why that would be of no use."""
    from glmft.training.boundary import FLAG, boundary_layer, why_not

    layer = boundary_layer(trained, model_config.num_hidden_layers)
    reason = why_not(job.config, model_config, layer, job.plan)
    job.boundary = 0 if reason else layer
    return [f"warning: {FLAG}: without effect, as {reason}"] if reason else []


def run_lines(job: Any, model_config: Any) -> list[str]:
    """What the settings and the data come to, for whoever reads the log."""
    from glmft.data.show import token_table

    config, rows, plan = job.config, job.rows, job.plan
    lines = usual_rate_lines(job.tuner, config)
    if config.predict_with_generate and not job.validation:
        lines.append("warning: --predict_with_generate: without effect, as no --val_path or --val_ratio is given")
    total = plan.total_steps(config.num_train_epochs, config.max_steps)
    if (config.warmup_steps or 0) >= max(total, 1):
        lines.append(
            f"warning: --warmup_steps {config.warmup_steps}: the run has {total} steps, so its rate rises to the end"
        )
    lines += [model_config.rope_line] if model_config.rope_line else []
    lines += data_lines(job, model_config)
    if config.show_first_record:
        lines.append(token_table(rows.examples[0], job.tokenizer))
    return lines


def data_lines(job: Any, model_config: Any) -> list[str]:
    """What became of the records, and how long rows are."""
    config, rows, plan, lines = job.config, job.rows, job.plan, [*job.rows.lines]
    if config.val_path:
        lines += [shortfall.line.replace("data:", "validation:") for shortfall in job.validation.shortfalls]
    built_for = getattr(model_config, "max_position_embeddings", None)
    lines += beyond_the_model(config, rows.lengths, model_config.family, built_for)
    heaviest = sum(rows.lengths[i] for i in plan.heaviest(rows.lengths, 0, plan.steps_per_epoch))
    return [*lines, f"data: no padding is computed; the first epoch's largest micro-batch holds {heaviest:,} tokens"]


def fitting_tuner(config: TrainConfig, model: Any, zero_stage: int) -> tuple[Any, dict[str, list[int]]]:
    """The tuner that the settings name, and the names and shapes of what it trains.

    Args:
        model: without memory behind its tensors.

    Raises:
        ConfigError: it does not fit the model, or this machine.
    """
    from glmft.device import host_memory
    from glmft.models.native import NativeConfig, unsupported
    from glmft.tuners import make_tuner

    tuner = make_tuner(config)
    problems = base_problems(tuner, model, zero_stage)
    if isinstance(model.config, NativeConfig):
        problems += unsupported(config.train_type, config.attn_implementation, config.use_reentrant)
    if config.torch_compile and zero_stage == 3:
        problems.append(
            "--torch_compile: does not go with ZeRO-3, which gathers weights in the midst of a layer; leave it out, or "
            "take a --ds_file of stage 0 to 2"
        )
    if problems:
        raise ConfigError(problems)
    trained, there = tuner.expected(model, f"--train_type {config.train_type}"), dict(model.named_parameters())
    size = 4 * sum(math.prod(shape) for name, shape in trained.items() if name not in there)
    if size > host_memory():
        raise ConfigError(
            f"--train_type {config.train_type}: what is trained would take {size >> 30} GiB, this host has "
            f"{host_memory() >> 30}; give smaller sizes"
        )
    return tuner, trained


def usual_rate_lines(tuner: Any, config: TrainConfig) -> list[str]:
    """A note on a learning rate that the way to train is seldom given."""
    low, high = tuner.usual_rates
    if low <= config.learning_rate <= high:
        return []
    usual = f"{low:g} to {high:g}, as --train_type {config.train_type} is usually given for large models"
    return [f"note: --learning_rate {config.learning_rate:g} is not within {usual}"]


def base_problems(tuner: Any, model: Any, zero_stage: int) -> list[str]:
    """Why the base cannot be trained in this way: as it is quantised, or as the settings do not fit its shape."""
    if model.config.quantisation and tuner.needs_floats:
        return [tuner.needs_floats]
    if model.config.uses_bitsandbytes and zero_stage == 3:
        return [
            "--ds_file: ZeRO-3 cannot partition the weights of bitsandbytes; take --quantization_bit 4 or 8, or a file "
            "of stage 0 to 2"
        ]
    return tuner.problems(model)


def check_states(checkpoint: Path | None, config: TrainConfig, world: dist.World) -> None:
    """Raises CheckpointError if what a whole checkpoint says of its run cannot be, or these settings are of another."""
    from glmft.training.random_state import load_random_states
    from glmft.training.resuming import require_same
    from glmft.training.set_aside import RUN_CONFIG
    from glmft.training.state import load_state

    if checkpoint is not None:
        window = config.per_device_train_batch_size * config.gradient_accumulation_steps * world.data_size
        now = {"window": window, "seed": config.seed, "grouped": config.group_by_length}
        require_same(vars(load_state(checkpoint)), now, checkpoint)
        require_same(read_json_if_there(checkpoint / RUN_CONFIG), {"train_type": config.train_type}, checkpoint)
        load_random_states(checkpoint)


def data_notes(job: Any) -> list[str]:
    """Lines about the data that one rank or another has. Collective.

    Raises DataError if the ranks read different data: on hosts with files of their own, or while one was exchanged.
    """
    parts = [part for part in (job.rows, job.validation) if part is not None]
    keys, notes = [part.keys for part in parts], [note for part in parts for note in part.notes]
    of_ranks = dist.gather_objects(job.world, (keys, notes))
    if any(other != keys for other, _ in of_ranks):
        raise DataError(
            "the ranks read different data or tokenizers: give every host the same files, and leave them as they are",
            of_all_ranks=True,
        )
    return list(dict.fromkeys(note for _, notes_of_rank in of_ranks for note in notes_of_rank))


def prepare_model(job: Any, model_config: Any) -> tuple[Any, list[str]]:
    """The base model with its weights, ready to be trained in the way of the job's tuner; and lines to print."""
    from glmft.models.checkpointing import checkpoint_layers
    from glmft.models.loading import load_model
    from glmft.models.partitioned import load_partitioned
    from glmft.models.stages import load_stage, settle
    from glmft.tuners.base import cast_trainable

    config, world, base, messages = job.config, job.world, job.base["base_model_name_or_path"], []
    trained_in = torch_dtype(config.trainable_dtype)
    partitions = job.zero_stage == 3
    if partitions and (reads := job.tuner.reads_base_weights):
        messages.append(f"ZeRO-3: every rank loads the whole base first, as {reads} reads its weights")
        partitions = False
    owned, attention = job.tuner.owned_by_base, config.attn_implementation
    if job.cut:
        model = load_stage(model_config, base, job.cut, world.dtype, owned, attention)
    elif partitions:
        model = load_partitioned(model_config, base, world, job.ds_config, owned, trained_in, attention)
    else:
        model = load_model(model_config, base, world.dtype, attention)
    if job.zero_stage == 3 and model_config.quantisation:
        messages.append("ZeRO-3: the quantised weights are no parameters; every rank has all of them")
    seed_everything(config.seed)  # equal initial values on all ranks
    model = job.tuner.apply(model)
    cast_trainable(model, trained_in)
    checkpoint_layers(model, config.gradient_checkpointing, config.use_reentrant)
    if job.cut:
        settle(model, job.cut, world)
    if config.torch_compile:
        from glmft.models.compiling import compile_layers, require_compiler

        require_compiler(world.device)
        compile_layers(model)
    seed_everything(config.seed + world.rank)  # dropout of its own on each rank
    keep_freed_memory()
    return model, messages


def seed_everything(seed: int) -> None:
    """Every generator that something here may draw from."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def parameter_table(model: Any) -> str:
    """What trains, by kind and shape of parameter, and the totals. Raises ConfigError if nothing trains."""
    from glmft.models.quantised import numbers_in

    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trained:
        raise ConfigError("nothing would be trained: no parameter is trainable with these settings")
    kinds: Counter[tuple[str, str, str]] = Counter()
    for name, parameter in trained:
        kind = re.sub(r"\.\d+\.", ".*.", name.removeprefix("base_model.model.").replace(".default", ""))
        shape, dtype = list(dist.whole_shape(parameter)), str(parameter.dtype).removeprefix("torch.")
        kinds[kind, str(shape), dtype] += 1
    rows = [f"  {kind}: {times} x {shape} {dtype}" for (kind, shape, dtype), times in kinds.items()]
    count, total = sum(dist.whole_shape(p).numel() for _, p in trained), numbers_in(model)
    size = sum(dist.whole_shape(p).numel() * p.element_size() for _, p in trained)
    summary = f"trainable parameters: {count:,} of {total:,} ({100 * count / total:.4f}%), {size:,} bytes to save"
    return "\n".join(["what trains:", *rows, summary])
