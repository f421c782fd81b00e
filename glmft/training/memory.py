"""A run's memory as `glmft.planning` sums it up, and what would help when there is too little."""

from dataclasses import replace
from typing import Any

from glmft.data.collate import one_row
from glmft.data.dataset import Rows
from glmft.errors import ConfigError
from glmft.family import FAMILY_KEY
from glmft.planning.cards import GIB
from glmft.planning.memory import Zero
from glmft.planning.network import Load
from glmft.planning.run import FILES, Run, part_of, setting_of, shipped_zero
from glmft.planning.shape import shape_of
from glmft.training.job import Job

DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def advice_for(job: Job, model: Any) -> list[str]:
    """What would help a run against a lack of memory; nothing, where the tuner's sums are not known."""
    try:
        run = run_of(job, model.config)
    except ConfigError:
        return []
    ways = advice(run, can_quantise=not job.tuner.needs_floats and run.setting.zero.stage < 3)
    if not job.cut:
        return ways
    more = f"more --pipeline_stages, now {job.world.stages}, leave each rank fewer weights"
    return [*(way for way in ways if not way.startswith("--ds_file")), more]


def run_of(job: Job, model_config: Any) -> Run:
    """A job, as far as its memory and time go: its largest micro-batch of the first epoch."""
    config, lengths = job.config, job.rows.lengths
    shape = shape_of({**model_config.to_dict(), FAMILY_KEY: model_config.family})
    load = load_of(job.rows, job.plan.heaviest(lengths, 0, job.plan.steps_per_epoch), job.tokenizer)
    dtype = DTYPES[str(job.world.dtype).removeprefix("torch.")]
    zero, on_gpu = Zero.of(job.ds_config["zero_optimization"]), job.world.device.type != "cpu"
    setting = setting_of(config, shape, load, dtype, zero, job.world.size, on_gpu, model_config.quantisation)
    batch = min(config.per_device_train_batch_size, len(lengths))
    return Run(setting, len(lengths), batch, config.gradient_accumulation_steps)


def load_of(rows: Rows, numbers: list[int], tokenizer: Any) -> Load:
    """A micro-batch of some rows as the sums take it."""
    batch = one_row([rows.examples[i] for i in numbers], tokenizer)
    return Load(batch["documents"], len(batch["loss_positions"]), batch.get("contexts"))


def advice(run: Run, can_quantise: bool) -> list[str]:
    """What to change, in the order that costs least, and about what each would save of the most on one device."""
    s, most = run.setting, run.memory.peak
    ways: list[tuple[str, Run]] = []

    def way(flags: str, **changes: Any) -> None:
        ways.append((flags, replace(run, setting=replace(s, **changes))))

    everything = frozenset(range(s.shape.layers))
    if s.recomputed != everything:
        flag = "--gradient_checkpointing" if not s.recomputed else "--gradient_checkpointing full"
        way(flag, recomputed=everything)
    if run.batch > 1:
        half, accumulation = run.batch // 2, run.accumulation * 2
        flags = f"--per_device_train_batch_size {half} with --gradient_accumulation_steps {accumulation}"
        halved = replace(s, load=part_of(s.load, half, run.batch))
        ways.append((flags, replace(run, setting=halved, batch=half, accumulation=accumulation)))
    elif s.load.tokens > 256:
        way("half the --max_len", load=_halved(s.load))
    for stage, offloads in ((2, False), (3, False), (max(2, s.zero.stage), True)):
        is_further = s.zero.stage < stage and s.ranks > 1 and not s.zero.offloads_optimizer
        if is_further or (offloads and not s.zero.offloads_optimizer):
            way(f"--ds_file {FILES[stage, offloads]}", zero=shipped_zero(stage, offloads, s.shape.hidden))
    if can_quantise and s.bits not in ("4", "nf4"):
        way("--quantization_bit 4", bits="4")
    saved = [(flags, most - changed.memory.peak) for flags, changed in ways]
    return [f"{flags} saves about {gib(size)} of {gib(most)}" for flags, size in saved if size > 0]


def _halved(load: Load) -> Load:
    """Rows of half their length."""
    return Load(
        tuple(max(1, length // 2) for length in load.documents),
        max(1, load.supervised // 2),
        None if load.contexts is None else tuple(length // 2 for length in load.contexts),
    )


def gib(count: int) -> str:
    return f"{count / GIB:.2f} GiB"
