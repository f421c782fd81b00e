"""The settings of a pipeline: what does not go with one, and which layers each stage gets."""

import dataclasses
from collections.abc import Collection
from typing import Any

from glmft.dist import World, gather_objects
from glmft.errors import ConfigError
from glmft.settings.config import TrainConfig


def in_stages(world: World, stages: int) -> World:
    """The ranks, dealt out to stages of layers. Raises ConfigError where that does not come out even, or in fp16."""
    if world.size % stages:
        raise ConfigError(
            f"--pipeline_stages {stages}: does not divide {world.size} rank{'s' * (world.size > 1)}; start with "
            f"--num_gpus {stages} or a multiple of it"
        )
    if stages > 1 and str(world.dtype) == "torch.float16":
        raise ConfigError(f"--pipeline_stages {stages}: fp16 is not scaled across stages; give --dtype bf16 or fp32")
    return dataclasses.replace(world, stages=stages)


def require_pipeline(config: TrainConfig, model_config: Any, ds_config: dict[str, Any]) -> None:
    """Raises ConfigError for a DeepSpeed file, a quantisation or a partition that no pipeline goes with."""
    from glmft.models.partition import by_hand, require_stages

    stages, layers = config.pipeline_stages, model_config.num_hidden_layers
    zero_stage = ds_config["zero_optimization"].get("stage", 0)
    if zero_stage > 1:
        raise ConfigError(
            f"--ds_file {config.ds_file}: ZeRO-{zero_stage} splits gradients as they come, and those of a pipeline are "
            f"summed at the end of a step; with --pipeline_stages {stages} take ds_zero1.json or ds_zero0.json"
        )
    timers = {
        "wall_clock_breakdown": ds_config.get("wall_clock_breakdown"),
        "flops_profiler": ds_config.get("flops_profiler", {}).get("enabled"),
    }
    if asked := [name for name, is_on in timers.items() if is_on]:
        raise ConfigError(
            f"--ds_file {config.ds_file}: {asked[0]} starts a timer twice in DeepSpeed's pipeline, and fails there; "
            "take it out"
        )
    if model_config.uses_bitsandbytes:
        raise ConfigError(f"--pipeline_stages {stages}: nf4 is loaded as a whole; take --quantization_bit 4 or 8")
    require_stages(layers, stages)
    if config.pipeline_partition[0].isdigit():
        by_hand(config.pipeline_partition, layers, stages)


def cut_into_stages(job: Any, model: Any, trained: Collection[str]) -> list[str]:
    """Settle which stage has which layers; lines for whoever reads the log. Collective, if times are measured.

    Args:
        model: without memory behind its tensors.
        trained: names of what trains.
    """
    from glmft.models.partition import balanced, by_hand, stage_lines, weights_by_parameters
    from glmft.models.stages import Cut

    config, world, layers, measured = job.config, job.world, model.config.num_hidden_layers, []
    if config.pipeline_partition == "parameters":
        counts = balanced(*weights_by_parameters(model), world.stages)
    elif config.pipeline_partition == "time":
        weights, line = timed(job, model.config, trained)
        counts, measured = balanced(*weights, world.stages), [line]
    else:
        counts = by_hand(config.pipeline_partition, layers, world.stages)
    job.cut = Cut(counts, world.stage)
    lines = [*measured, *stage_lines(job.cut, model, config.gradient_accumulation_steps, world.data_size)]
    if config.compare_answers:
        lines.append("note: in a pipeline no answers are compared while it trains; predict.py answers after the run")
    return lines


def timed(job: Any, model_config: Any, trained: Collection[str]) -> tuple[Any, str]:
    """What layers and head take with the heaviest micro-batch, as rank 0 finds it, and a line on it. Collective."""
    from glmft.training.job import make_batch
    from glmft.training.layer_times import layer_times, weights_by_time

    found = None
    if job.world.is_main:
        numbers = job.plan.heaviest(job.rows.lengths, 0, job.plan.steps_per_epoch)
        found = layer_times(model_config, make_batch(job.rows, numbers, numbers, job), job.world)
    layer, head = gather_objects(job.world, found)[0]
    layers, recomputes = model_config.num_hidden_layers, job.config.gradient_checkpointing
    weights = weights_by_time(layer, head, layers, trained, recomputes)
    return weights, (
        f"measured: a layer takes {1e3 * layer.forward:.2f} ms forward, {1e3 * layer.frozen:.2f} with the gradient to "
        f"what comes in, {1e3 * layer.trained:.2f} with that of its weights; norm, head and loss {1e3 * head:.2f}"
    )
