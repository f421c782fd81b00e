"""Put the parts together: a training run from its settings, and predictions of a file."""

import json
import logging
import os
import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmft import config as settings
from glmft import dist
from glmft.checks import check, length_problems
from glmft.config import InspectConfig, LearningSettings, PredictConfig, TrainConfig
from glmft.ds_config import asked_precision
from glmft.errors import ConfigError
from glmft.loading import load, locate
from glmft.sources import Source, find_sources

if TYPE_CHECKING:
    from glmft.engine import TrainResult
    from glmft.job import Job


def quiet() -> None:
    """Silence what libraries print that a user can do nothing about."""
    dist.name_accelerator()
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in ("transformers", "DeepSpeed", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def train(config: TrainConfig) -> "TrainResult":
    """One training run, from settings to saved weights; with a launcher one rank of it, without one the only rank.

    Raises:
        GlmftError: settings, data, model or output folder that cannot be used; every rank raises the same lines.
    """
    config, said = settings.with_defaults(config)
    problems = check(config)
    if problems:
        raise ConfigError(problems)
    world = dist.start(config.device, config.dtype, asked_precision(settings.find_ds_file(config.ds_file)))
    if not config.verbose:
        quiet()

    from glmft import checkpoint, engine
    from glmft.failures import explained

    def tell(lines: list[str]) -> None:
        for line in lines if world.is_main else []:
            print(line, flush=True)

    with explained(world.size):
        with dist.same_fate():
            (job, loaded, model_config), lines = prepare(config, world)
            if world.is_main:
                checkpoint.claim_output(job.folder, config.overwrite_output_dir, config.resume is not None)
        tell([*said, world.describe(), *lines])
        resume_from, lines = None, []
        with dist.same_fate():
            if config.resume and world.is_main:
                checkpoint.clean(job.folder)
                resume_from, lines = checkpoint.find_resume(job.folder, config.resume)
            if world.is_main:
                write_settings(job, loaded.rejected)
        resume_from = dist.gather_objects(world, resume_from)[0]
        tell(lines)
        with dist.same_fate():
            model, lines = prepare_model(job, model_config)
            lines.append(parameter_table(model))
        tell(lines)
    with explained(world.size, lambda: memory_advice(job, model)):
        return engine.train(model, loaded.examples, job, resume_from)


def prepare_model(job: "Job", model_config: Any) -> tuple[Any, list[str]]:
    """The base model with its weights, ready to be trained in the way of the job's tuner; and lines to print."""
    from glmft.models.loading import load_model
    from glmft.models.partitioned import load_partitioned
    from glmft.tuners.base import hold_trainable

    config, world, base, said = job.config, job.world, job.base["base_model_name_or_path"], []
    trained_in = dist.torch_dtype(config.trainable_dtype)
    partitions = zero_stage(job) == 3
    if partitions and (reads := job.tuner.reads_base_weights):
        said.append(f"ZeRO-3: every rank loads the whole base first, as {reads} reads its weights")
        partitions = False
    if partitions:
        owned = job.tuner.owned_by_base
        model = load_partitioned(
            model_config, base, world, job.ds_config, owned, trained_in, config.attn_implementation
        )
    else:
        model = load_model(model_config, base, world.dtype, config.attn_implementation)
    seed_everything(config.seed)  # equal initial values on all ranks
    model = job.tuner.apply(model)
    hold_trainable(model, trained_in)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": config.use_reentrant})
        if config.use_reentrant:  # it gives no gradient through inputs that need none
            model.enable_input_require_grads()
    seed_everything(config.seed + world.rank)  # dropout of its own on each rank
    return model, said


def zero_stage(job: "Job") -> int:
    return job.ds_config["zero_optimization"].get("stage", 0)


def memory_advice(job: "Job", model: Any) -> str:
    """What would help against a lack of memory."""
    from glmft import planning

    width = job.world.dtype.itemsize
    offloads = "offload_optimizer" in job.ds_config["zero_optimization"]
    found = planning.sizes(model, job.lengths, job.config, width)
    return planning.advice(found, job.config, zero_stage(job), offloads, job.world.size)


def write_settings(job: "Job", rejected: list[tuple[str, str]]) -> None:
    """The resolved settings and DeepSpeed configuration, and the records that were left out, into the run's folder."""
    from glmft.checkpoint import RUN_CONFIG

    (job.folder / RUN_CONFIG).write_text(settings.to_json(job.config) + "\n", encoding="utf-8")
    (job.folder / "ds_config.json").write_text(json.dumps(job.ds_config, indent=2) + "\n", encoding="utf-8")
    write_rejected(job.folder, rejected)


def prepare(config: TrainConfig, world: dist.World) -> tuple[Any, list[str]]:
    """Everything but the weights: model configuration, tokenizer, encoded data, tuner and DeepSpeed settings.

    All that can be wrong shows here, in seconds. Returns (job, loaded data, model configuration) and lines to print.
    """
    from glmft import ds_config
    from glmft.data.sampler import Plan, padding_share
    from glmft.data.show import token_table
    from glmft.evaluation import has_triples
    from glmft.job import Job
    from glmft.models.loading import fingerprint, load_config, meta_model, weight_files
    from glmft.tokenizers.loading import load_tokenizer
    from glmft.tracking import check_reporters
    from glmft.tuners import make_tuner

    check_reporters(config.report_names)
    place = locate(config.model_name_or_path, config.base_model_path)
    if place.adapter:
        raise ConfigError(
            f"--model_name_or_path {place.adapter}: is an adapter; train on its base {place.base}, "
            "go on with --resume, or merge it first"
        )
    model_config = load_config(place.base, config.mode)
    weight_files(place.base)
    tuner = make_tuner(config)
    problems = tuner.problems(meta_model(model_config))
    if problems:
        raise ConfigError(problems)
    dtype = next(name for name, torch_name in dist.DTYPES.items() if str(world.dtype).endswith(torch_name))
    ds_file = settings.find_ds_file(config.ds_file)
    deepspeed_config, lines = ds_config.resolve(ds_file, config, world.size, dtype, model_config.hidden_size)
    tokenizer = load_tokenizer(place.base, model_config.family)
    loaded, validation = training_rows(config, tokenizer)
    sizes = loaded.lengths
    plan = Plan(
        len(sizes),
        config.per_device_train_batch_size,
        config.gradient_accumulation_steps,
        world.size,
        config.seed,
        sizes if config.group_by_length else None,
    )
    loaded.lines.append(f"data: {padding_share(plan, sizes):.1%} of what is computed in the first epoch is padding")
    base = {
        "family": model_config.family,
        "base_model_name_or_path": str(place.base.resolve()),
        "base_fingerprint": fingerprint(place.base),
    }
    folder = Path(config.output_dir)
    held_out = (validation.examples, validation.lengths) if validation else ()
    if config.predict_with_generate and not validation:
        lines.append("warning: --predict_with_generate: without effect, as no --val_path or --val_ratio is given")
    job = Job(config, deepspeed_config, world, tuner, base, tokenizer, plan, folder, sizes, *held_out)
    if config.save_best == "f1" and not has_triples(job):
        raise ConfigError("--save_best f1: the validation rows have no triples a_b_c to score; name another metric")
    if model_config.rope_line:
        lines.append(model_config.rope_line)
    if config.show_first_record:
        loaded.lines.append(token_table(loaded.examples[0], tokenizer))
    return (job, loaded, model_config), [*lines, *loaded.lines]


def training_rows(config: TrainConfig, tokenizer: Any) -> tuple[Any, Any]:
    """What is trained on, packed if so asked, and what is validated on (None: nothing)."""
    from glmft.data.load import lengths_of, packed, split

    loaded, validation = learned_rows(config, find_sources(config.train_path), tokenizer, config.seed), None
    if config.val_ratio:
        loaded, validation = split(loaded, config.val_ratio, config.seed)
    elif config.val_path:
        validation = learned_rows(config, find_sources(config.val_path, "--val_path"), tokenizer, config.seed)
    if config.packing:
        loaded = packed(loaded, lengths_of(config, tokenizer.family).max_len, config.seed)
    return loaded, validation


def learned_rows(settings: LearningSettings, sources: list[Source], tokenizer: Any, seed: int) -> Any:
    """What is learned of some files, from their cache. Raises DataError."""
    from glmft.data.load import load_examples

    home = Path(settings.cache_dir) if settings.cache_dir else dist.cache_home()
    workers = settings.num_proc or min(8, os.cpu_count() or 1)
    return load_examples(sources, settings, tokenizer, seed, home, workers)


def write_rejected(folder: Path, rejected: list[tuple[str, str]]) -> None:
    """The bad records of the data, a line each: where it stands and what is wrong with it."""
    if rejected:
        lines = (json.dumps({"place": p, "reason": r}, ensure_ascii=False) + "\n" for p, r in rejected)
        (folder / "rejected.jsonl").write_text("".join(lines), encoding="utf-8")


def seed_everything(seed: int) -> None:
    """Every generator that something here may draw from."""
    import random

    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def parameter_table(model: Any) -> str:
    """What trains, by kind of parameter, and the totals. Raises ConfigError if nothing trains."""
    parameters = list(model.named_parameters())
    trained = [(name, p) for name, p in parameters if p.requires_grad]
    if not trained:
        raise ConfigError("nothing would be trained: no parameter is trainable with these settings")
    kinds: dict[str, list[Any]] = {}
    for name, parameter in trained:
        kind = re.sub(r"\.\d+\.", ".*.", name.removeprefix("base_model.model.").replace(".default", ""))
        kinds.setdefault(kind, []).append(parameter)
    shapes = {kind: list(dist.whole_shape(ps[0])) for kind, ps in kinds.items()}
    rows = [
        f"  {kind}: {len(ps)} x {shapes[kind]} {str(ps[0].dtype).removeprefix('torch.')}" for kind, ps in kinds.items()
    ]
    count, total = (sum(dist.whole_shape(p).numel() for _, p in some) for some in (trained, parameters))
    size = sum(dist.whole_shape(p).numel() * p.element_size() for _, p in trained)
    summary = f"trainable parameters: {count:,} of {total:,} ({100 * count / total:.4f}%), {size:,} bytes to save"
    return "\n".join(["what trains:", *rows, summary])


def predict(config: PredictConfig) -> dict[str, Any]:
    """Answer every record of a file; write generated_predictions.txt and predict_results.json; return the results."""
    from glmft.data.load import lengths_of, read_all
    from glmft.generation import answer
    from glmft.metrics import text_scores, triple_f1, triples

    test_path = config.test_path or str(settings.shipped(f"{settings.EMBEDDED}/test.json"))
    problems = length_problems(config)
    if problems:
        raise ConfigError(problems)
    sources = find_sources(test_path, "--test_path")
    place = locate(config.model_name_or_path, config.base_model_path)
    folder = prediction_folder(config, place.adapter)
    records, rejected = read_all(sources, config)
    records = records[: config.max_samples]
    write_rejected(folder, rejected)
    quiet()
    model, tokenizer = load(
        config.model_name_or_path,
        mode=config.mode,
        dtype=config.dtype,
        device=config.device,
        base_model_path=config.base_model_path,
        prefix=config.ptuning_checkpoint,
        attn_implementation=config.attn_implementation,
    )
    from tqdm import tqdm

    with tqdm(total=len(records), unit="record", disable=None) as bar:
        answers = answer(
            model,
            tokenizer,
            [record.question for record in records],
            batch_size=config.per_device_eval_batch_size,
            max_src_len=lengths_of(config, tokenizer.family).max_src_len,
            max_new_tokens=config.max_new_tokens,
            template=config.template,
            advance=bar.update,
        )
    labels = [record.answer for record in records]
    rows = [{"labels": label, "predict": text} for label, text in zip(labels, answers, strict=True)]
    results: dict[str, Any] = {"records": len(records)}
    results |= {f"predict_{name}": round(value, 4) for name, value in text_scores(answers, labels).items()}
    if any(triples(label) for label in labels):
        results["triple"] = triple_f1(answers, labels)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "generated_predictions.txt").write_text(lines, encoding="utf-8")
    (folder / "predict_results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return {**results, "folder": str(folder), "rows": rows}


def prediction_folder(config: PredictConfig, adapter: Path | None) -> Path:
    """Where predictions go, made if need be. Raises ConfigError if it cannot be written or holds predictions."""
    folder = Path(config.output_dir) if config.output_dir else (adapter or Path("output")) / "predict"
    if (folder / "generated_predictions.txt").exists():
        raise ConfigError(f"{folder}: holds predictions already; name another folder with --output_dir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output_dir {folder}: cannot be written ({error.strerror})") from None
    return folder


def inspect(config: InspectConfig) -> str:
    """The report on a file and the token tables of chosen rows. Raises ConfigError, DataError."""
    if config.data_path is None:
        raise ConfigError("name the data: glmft inspect DATA --model FOLDER")
    problems = length_problems(config)
    chosen = [part.strip() for part in config.records.split(",") if part.strip() not in ("", "none")]
    problems += [f"--records {part}: is no row number" for part in chosen if not part.isdigit()]
    if problems:
        raise ConfigError(problems)
    from glmft.data.show import token_table
    from glmft.tokenizers.loading import load_tokenizer

    sources = find_sources(config.data_path, "DATA")
    quiet()
    tokenizer = load_tokenizer(locate(config.model_name_or_path).base, config.mode)
    loaded = learned_rows(config, sources, tokenizer, seed=0)
    color = config.color == "always" or (config.color == "auto" and sys.stdout.isatty())
    last = len(loaded.examples) - 1
    beyond = [part for part in chosen if int(part) > last]
    if beyond:
        raise ConfigError(f"--records {','.join(beyond)}: the last row is {last}")
    tables = [token_table(loaded.examples[int(part)], tokenizer, color) for part in chosen]
    reasons = [f"rejected: {reason}" for _, reason in loaded.rejected]
    return "\n".join([*loaded.lines, *reasons, *tables])
