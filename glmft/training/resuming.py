"""Go on from a checkpoint: state first, then the weights before DeepSpeed takes them, the rest after."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glmft.dist import gathered, whole_shape
from glmft.errors import CheckpointError, ConfigError, one_line
from glmft.family import ADAPTER_JSON
from glmft.reading import is_file, read_json_if_there
from glmft.schema import NULL, number, problems, text, whole
from glmft.settings.config import TrainConfig
from glmft.training.checkpoint import MANIFEST, OPTIMIZER, open_optimizer
from glmft.training.job import Job
from glmft.training.random_state import RANDOM, restore_random_state
from glmft.training.saving import TrainResult
from glmft.training.set_aside import RESULTS, RUN_CONFIG
from glmft.training.state import STATE, TrainerState, load_state
from glmft.training.zero_state import MOMENTS, set_scaler_numbers, unpack

# Settings that say how a run is started, not what it trains.
OF_ONE_START = frozenset(
    """config data_dir output_dir overwrite_output_dir resume local_rank verbose cache_dir num_proc rank_timeout
    show_first_record longest_batch_first report_to""".split()
)
OF_CHECKPOINTS = (MANIFEST, OPTIMIZER, RANDOM, RUN_CONFIG)  # files that no loader of what was trained needs
MOST_CHANGES = 8
KINDS = {int: whole(0, 2**62), float: number(-1e300, 1e300), str: text(longest=1 << 20)}
KINDS |= {kind | None: rule | NULL for kind, rule in KINDS.items()}


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
    now = {name: getattr(fresh, name) for name in ("window", "records", "seed", "grouped")}
    require_same(vars(state), now, resume_from)
    records = (read_json_if_there(resume_from / ADAPTER_JSON), job.base)
    was, now = (record.get("base_quantization") or "none" for record in records)
    if was != now:
        raise CheckpointError(
            f"{resume_from}: quantization_bit of the base was {was}, now it is {now}; give the same settings"
        )
    state.total_steps = fresh.total_steps
    return state


def require_same(before: Mapping[str, Any], now: Mapping[str, Any], checkpoint: Path) -> None:
    """Raises CheckpointError if what a run cannot go on without is not what it was; what was not noted is passed."""
    for name, value in now.items():
        was = before.get(name, value)
        if was != value:
            raise CheckpointError(
                f"{checkpoint}: {name} was {one_line(was, 60)}, now it is {value}; give the same settings"
            )


def going_on(checkpoint: Path, state: TrainerState, config: TrainConfig) -> list[str]:
    """From where to where a run goes on, and which settings have changed since."""
    changes = changed_settings(read_json_if_there(checkpoint / RUN_CONFIG), config)
    shown = ", ".join(changes[:MOST_CHANGES]) + (
        f" and {len(changes) - MOST_CHANGES} more" * (len(changes) > MOST_CHANGES)
    )
    return [
        f"going on from {checkpoint.name} of {state.total_steps} steps",
        *([f"changed since {checkpoint.name}: {shown}"] if changes else []),
    ]


def changed_settings(before: Mapping[str, Any], config: TrainConfig) -> list[str]:
    """`name was -> is` for each setting that hangs on more than this start."""
    names = [f.name for f in dataclasses.fields(config) if f.name in before and f.name not in OF_ONE_START]
    pairs = {name: (before[name], getattr(config, name)) for name in names}
    text = lambda value: "none" if value is None else one_line(value, 60)  # noqa: E731
    return [f"{name} {text(was)} -> {text(now)}" for name, (was, now) in pairs.items() if was != now]


def finished_result(folder: Path, checkpoint: Path, state: TrainerState) -> TrainResult | None:
    """What a run whose last checkpoint this is came to; None if its end was not written, or not all of it is there."""
    try:
        stored = read_json_if_there(folder / RESULTS)
    except ConfigError:
        return None
    kinds = {f.name: KINDS[f.type] for f in dataclasses.fields(TrainResult)}
    needed = {f.name for f in dataclasses.fields(TrainResult) if f.default is dataclasses.MISSING}
    files = [path for path in checkpoint.iterdir() if path.is_file()]
    trained = [path for path in files if not path.name.startswith((*OF_CHECKPOINTS, STATE))]
    there = all(is_file(folder / p.name) and (folder / p.name).stat().st_size == p.stat().st_size for p in trained)
    if (
        stored.get("steps") != state.step
        or not needed <= stored.keys() <= kinds.keys()
        or problems(stored, kinds, "")
        or not there
    ):
        return None
    return TrainResult(**stored)


def finished_line(folder: Path, state: TrainerState) -> str:
    """What a finished run says when it is told to go on."""
    early = state.step < state.total_steps
    more = "a larger --early_stopping_patience" if early else "--num_train_epochs or --max_steps"
    return (
        f"the run in {folder} is finished: {state.step} of {state.total_steps} steps{', stopped early' * early}, and "
        f"all it leaves is there. For more steps give {more}, for other settings another --output_dir"
    )


def load_weights(model: nn.Module, stored: Mapping[str, Tensor]) -> None:
    """Put the checkpoint's trained weights into the model before DeepSpeed takes it. Collective."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    require_parameters({name: list(whole_shape(p)) for name, p in trainable.items()}, stored)
    for name, parameter in trainable.items():
        with gathered([parameter], modified=True), torch.no_grad():
            parameter.copy_(stored[f"param/{name}"])


def require_parameters(trained: Mapping[str, list[int]], stored: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError unless a checkpoint holds exactly what trains, by names and shapes, with its moments."""
    names = {key.removeprefix("param/") for key in stored if key.startswith("param/")}
    if trained.keys() != names or any(f"{key}/{name}" not in stored for key in MOMENTS for name in names):
        raise CheckpointError("the checkpoint trained other parameters; give the same --train_type and its settings")
    shapes = getattr(stored, "shapes", None) or {key: list(tensor.shape) for key, tensor in stored.items()}
    for name, shape in trained.items():
        if any(shapes[f"{key}/{name}"] != shape for key in ("param", *MOMENTS)):
            raise CheckpointError(f"{name} has another shape in the checkpoint; give the same --train_type settings")


def restore(engine: Any, checkpoint: Path, state: TrainerState, job: Job) -> None:
    """Put back moments, loss scaler and random states. Collective."""
    unpack(engine, open_optimizer(checkpoint), state.adam_step)
    if job.scales_loss:
        set_scaler_numbers(engine, state.loss_scaler)
    restore_random_state(checkpoint, job.world)
