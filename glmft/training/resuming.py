"""Go on from a checkpoint: state first, then the weights before DeepSpeed takes them, the rest after."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glmft.dist import gathered, whole_shape
from glmft.errors import CheckpointError
from glmft.family import ADAPTER_JSON
from glmft.reading import read_json_if_there
from glmft.training.checkpoint import open_optimizer
from glmft.training.job import Job
from glmft.training.random_state import restore_random_state
from glmft.training.state import TrainerState, load_state
from glmft.training.zero_state import MOMENTS, set_scaler_numbers, unpack


def start_state(job: Job, resume_from: Path | None) -> TrainerState:
    """Raises CheckpointError if data, seed or the rows of a step differ, or the base's quantisation."""
    plan = job.plan
    fresh = TrainerState(
        total_steps=plan.total_steps(job.config.num_train_epochs, job.config.max_steps),
        window=plan.window_size,
        records=plan.records,
        seed=plan.seed,
        grouped=plan.lengths is not None,
    )
    if resume_from is None:
        return fresh
    state = load_state(resume_from)
    for name in ("window", "records", "seed", "grouped"):
        was, now = getattr(state, name), getattr(fresh, name)
        if was != now:
            raise CheckpointError(f"{resume_from}: {name} was {was}, now it is {now}; give the same settings")
    records = (read_json_if_there(resume_from / ADAPTER_JSON), job.base)
    was, now = (record.get("base_quantization") or "none" for record in records)
    if was != now:
        raise CheckpointError(
            f"{resume_from}: quantization_bit of the base was {was}, now it is {now}; give the same settings"
        )
    state.total_steps = fresh.total_steps
    return state


def load_weights(model: nn.Module, stored: Mapping[str, Tensor]) -> None:
    """Put the checkpoint's trained weights into the model before DeepSpeed takes it. Collective."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    names = {key.removeprefix("param/") for key in stored if key.startswith("param/")}
    if trainable.keys() != names or any(f"{key}/{name}" not in stored for key in MOMENTS for name in names):
        raise CheckpointError("the checkpoint trained other parameters; give the same --train_type and its settings")
    shapes = getattr(stored, "shapes", {})
    for name, parameter in trainable.items():
        tensor = stored[f"param/{name}"]
        moments = [shapes.get(f"{key}/{name}", list(tensor.shape)) for key in MOMENTS]
        if whole_shape(parameter) != tensor.shape or any(shape != list(tensor.shape) for shape in moments):
            raise CheckpointError(f"{name} has another shape in the checkpoint; give the same --train_type settings")
        with gathered([parameter], modified=True), torch.no_grad():
            parameter.copy_(tensor)


def restore(engine: Any, checkpoint: Path, state: TrainerState, job: Job) -> None:
    """Put back moments, loss scaler and random states. Collective."""
    unpack(engine, open_optimizer(checkpoint), state.adam_step)
    if job.scales_loss:
        set_scaler_numbers(engine, state.loss_scaler)
    restore_random_state(checkpoint, job.world)
