"""What a run saves: checkpoints on its way, and at its end what was trained with the run's figures."""

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from glmft.data.shortfall import GRAVE
from glmft.device import peak_memory
from glmft.dist import barrier, gather_objects, whole_shape
from glmft.errors import Stopped
from glmft.files import write_json
from glmft.models.quantised import numbers_in
from glmft.settings.config import to_json
from glmft.training.checkpoint import OPTIMIZER, publishing
from glmft.training.job import Job
from glmft.training.outcome import Outcome
from glmft.training.random_state import RANDOM, random_state
from glmft.training.run_folder import keep_checkpoints
from glmft.training.set_aside import BEST, RESULTS, RUN_CONFIG
from glmft.training.signals import StopSignals
from glmft.training.state import STATE, TrainerState
from glmft.training.tracking import METRICS, Tracker, clock, read_metrics
from glmft.training.zero_state import adam_step, packed, scaler_numbers
from glmft.weights import Shards

LAUNCHERS_WAIT = 30  # seconds between a launcher's SIGTERM and its SIGKILL


@dataclass
class TrainResult:
    """What a run came to; also written as train_results.json.

    Args:
        train_loss: mean over all supervised tokens of the whole run, in nats.
        last_loss: mean over the supervised tokens behind the last log line, in nats.
        seconds: of this process; a resumed run counts from the resumption.
        peak_memory_bytes: of rank 0: the accelerator's, or the process's without one.
        trainable_parameters, total_parameters: how many numbers trained, and how many the model has.
        best: best value of the watched metric, and the step it was seen at.
        first_answer, last_answer: the start of the answers to the first record before and after training.
        weight_change: norm of what was added to the trained weights over their own, by a sample.
    """

    output_dir: str
    steps: int
    train_loss: float
    last_loss: float
    seconds: float
    tokens: int
    supervised_tokens: int
    peak_memory_bytes: int
    trainable_parameters: int
    total_parameters: int
    best: float | None = None
    best_step: int | None = None
    first_answer: str | None = None
    last_answer: str | None = None
    weight_change: float | None = None


def save_checkpoint(engine: Any, state: TrainerState, tracker: Tracker, job: Job) -> None:
    """Write checkpoint-STEP with weights, moments and random states; then delete the oldest. Collective.

    Raises:
        CheckpointError: the disk is full or fails; the checkpoints before stay as they are.
    """
    began = time.monotonic()
    state.adam_step, state.saved_step = adam_step(engine), state.step
    state.loss_scaler = scaler_numbers(engine) if job.scales_loss else {}
    trained = job.tuner.state(engine.module)
    random_states = gather_objects(job.world, random_state(job.world))
    place = job.folder / f"checkpoint-{state.step}"
    with publishing(place, job.world) as aside:
        write_optimizer(engine, aside, job)
        if aside is not None:
            write_trained(engine, trained, aside, job)
            (aside / RANDOM).write_text(json.dumps(random_states), encoding="utf-8")
            write_json(aside / STATE, asdict(state))
    best = state.best_step if job.config.save_best else None
    keep_checkpoints(job.folder, job.world, job.config.save_total_limit, best)
    tracker.print(f"saved {place}")
    seconds = time.monotonic() - began
    if seconds > LAUNCHERS_WAIT / 2:
        tracker.print(
            f"warning: saving took {seconds:.0f} s; launchers kill {LAUNCHERS_WAIT} s after SIGTERM, so a stopped run "
            "may lose what follows its last checkpoint; save more often with --save_model_step"
        )


def write_optimizer(engine: Any, folder: Path | None, job: Job) -> None:
    """Trained weights and moments as named tensors. Every rank walks through all of them, also when writing fails."""
    shards = Shards(folder, OPTIMIZER) if folder is not None else None
    for name, tensor in packed(engine, keep=job.world.is_main):
        if shards is not None:
            shards.add(name, tensor)
    if shards is not None:
        shards.close()


def write_trained(engine: Any, trained: dict[str, Tensor], folder: Path, job: Job) -> None:
    """What was trained, in the form in which it is loaded, with its settings; beside a whole model its tokenizer.

    An adapter's tokenizer is its base's: beside it peft's Auto classes would ask for code and resize the embedding.
    """
    job.tuner.save(engine.module, trained, folder, job.base)
    if job.tuner.saves_whole_model:
        job.tokenizer.save_pretrained(folder)
    (folder / RUN_CONFIG).write_text(to_json(job.config) + "\n", encoding="utf-8")


def save_and_stop(engine: Any, state: TrainerState, stop: StopSignals, tracker: Tracker, job: Job) -> None:
    """Save, if the last step is not saved yet, and end the run. Collective. Raises Stopped."""
    if state.step not in (0, state.saved_step):
        save_checkpoint(engine, state, tracker, job)
    kept = f"checkpoint-{state.step} is saved; go on with --resume yes" if state.step else "nothing was trained yet"
    barrier()
    reason = stop.reason or "a signal to another rank"
    raise Stopped(f"by {reason} after step {state.step}: {kept}", of_all_ranks=True)


def save_result(engine: Any, state: TrainerState, tracker: Tracker, job: Job, outcome: Outcome) -> TrainResult:
    """Save what was trained, and the run's figures, into the output folder itself. Collective."""
    trained = job.tuner.state(engine.module)
    result = result_of(engine.module, state, tracker, job, outcome)
    with publishing(job.folder, job.world, into=True) as aside:
        if aside is not None:
            write_trained(engine, trained, aside, job)
            write_json(aside / RESULTS, asdict(result))
            write_json(aside / STATE, history(result, state.total_steps, job))
    for line in [outcome.line, *summary(result, job)]:
        tracker.print(line)
    return result


def result_of(model: Any, state: TrainerState, tracker: Tracker, job: Job, outcome: Outcome) -> TrainResult:
    if state.open_supervised:  # the run ended between two log lines
        state.take()
    return TrainResult(
        output_dir=str(job.folder),
        steps=state.step,
        train_loss=state.loss_sum / max(1, state.supervised),
        last_loss=math.nan if state.last_loss is None else state.last_loss,
        seconds=tracker.seconds,
        tokens=state.tokens,
        supervised_tokens=state.supervised,
        peak_memory_bytes=peak_memory(job.world.device),
        trainable_parameters=sum(whole_shape(p).numel() for p in model.parameters() if p.requires_grad),
        total_parameters=numbers_in(model),
        best=state.best,
        best_step=state.best_step,
        first_answer=outcome.before,
        last_answer=outcome.after,
        weight_change=outcome.change,
    )


def history(result: TrainResult, total_steps: int, job: Job) -> dict[str, Any]:
    """The run's log lines under the keys that transformers' trainer_state.json has."""
    return {
        "global_step": result.steps,
        "max_steps": total_steps,
        "best_metric": result.best,
        "best_model_checkpoint": None if result.best is None else str(job.folder / f"checkpoint-{result.best_step}"),
        "log_history": read_metrics(job.folder / METRICS),
    }


def summary(result: TrainResult, job: Job) -> list[str]:
    """What a run came to, and where everything lies."""
    kind = "memory of the accelerator" if job.world.device.type == "cuda" else "memory of a process"
    lines = [
        f"trained {result.steps} steps in {clock(result.seconds)}; mean loss {result.train_loss:.4f}, last "
        f"{result.last_loss:.4f}",
        f"{result.tokens:,} tokens, {result.supervised_tokens:,} of them supervised; peak {kind} "
        f"{result.peak_memory_bytes / 2**30:.2f} GiB",
    ]
    if result.best is not None:
        place = f" ({job.folder / BEST})" if job.config.save_best else ""
        lines.append(f"best {job.config.watched_metric} {result.best:.4f} at step {result.best_step}{place}")
    lines += [shortfall.line for shortfall in job.rows.shortfalls if shortfall.share > GRAVE]
    return [*lines, f"what was trained, metrics.jsonl, loss.png, tensorboard/ and checkpoints are in {job.folder}"]
