"""The training loop.

For each optimizer step: take the window's records, split them into micro-batches, count the supervised tokens of all
ranks, sum the loss of every micro-batch over that count, step, log, evaluate, save. The loss is a mean over supervised
tokens of the whole step, so it does not depend on how the records were split.
"""

import contextlib
import functools
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from glmft import checkpoint as saved
from glmft.checkpoint import TrainerState
from glmft.config import TrainConfig, to_json
from glmft.data.encode import Example
from glmft.data.sampler import Plan
from glmft.dist import barrier, gathered, peak_memory, same_fate, sum_over_ranks, whole_shape
from glmft.divergence import bad_batch
from glmft.errors import CheckpointError, Stopped
from glmft.evaluation import evaluate, is_better
from glmft.job import Batch, Job, make_batch, summed_loss
from glmft.optim import learning_rate, make_optimizer, set_learning_rate
from glmft.signals import StopSignals
from glmft.tracking import METRICS, Tracker, clock, read_metrics
from glmft.zero_state import adam_step, forget_steps, packed, scaler_numbers, set_scaler_numbers, unpack

LAUNCHERS_WAIT = 30  # seconds between SIGTERM and SIGKILL


@dataclass
class TrainResult:
    """What a run came to; also written as train_results.json.

    Args:
        train_loss: mean over all supervised tokens of the whole run, in nats.
        last_loss: the same since the log line before the last.
        seconds: of this process; a resumed run counts from the resumption.
        peak_memory_bytes: of rank 0: the accelerator's, or the process's without one.
        best: best value of the watched metric, and the step it was seen at.
    """

    output_dir: str
    steps: int
    train_loss: float
    last_loss: float
    seconds: float
    tokens: int
    supervised_tokens: int
    peak_memory_bytes: int
    best: float | None = None
    best_step: int | None = None


def train(model: nn.Module, data: Sequence[Example], job: Job, resume_from: Path | None = None) -> TrainResult:
    """Train `model`, as `job.tuner` prepared it, on `data`; save into `job.folder`. Collective.

    Raises:
        CheckpointError: `resume_from` belongs to another run, or saving fails.
        DivergenceError: a loss or a gradient is no longer finite.
        Stopped: a signal asked for it; a checkpoint is saved.
    """
    config, world, plan = job.config, job.world, job.plan
    with same_fate():
        state = start_state(job, resume_from)
        if resume_from:
            load_weights(model, saved.open_optimizer(resume_from))
    optimizer = make_optimizer(model, config, job.tuner.learning_rate_ratio)
    engine, optimizer, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=job.ds_config)
    tracker = Tracker(job.folder, world, state.step, state.total_steps, config.report_names, asdict(config))
    if config.longest_batch_first and not is_over(state, config):
        tracker.say(try_longest_batch(engine, optimizer, data, job))
    if resume_from:
        restore(engine, resume_from, state, job)

    engine.train()
    with StopSignals(world) as stop, contextlib.closing(tracker):
        for step, window in plan.windows(state.step, state.total_steps):
            if is_over(state, config):
                break
            shares = plan.micro_batches(window, world.rank)
            micro_batches = [make_batch(data, rows, window, job) for rows in shares]
            targets, stops = sum_over_ranks(world, count_targets(micro_batches), stop.noted)
            if stops:
                stop_here(engine, state, stop, tracker, job)
            rate = learning_rate(step, state.total_steps, config)
            set_learning_rate(optimizer, rate)
            done = train_step(engine, micro_batches, targets, job)
            if problem := step_problem(done, state, config, scales=job.scales_loss):
                raise bad_batch(problem, step + 1, data, window, shares, done.losses, job)
            state.step = step + 1
            state.add(done.loss, int(targets), tokens=sum(job.lengths[i] for i in window))
            tracker.advance()
            if state.step % config.show_loss_step == 0 or state.step == state.total_steps:
                loss, supervised, tokens = state.take()
                tracker.log_step(state.step, loss, rate, grad_norm(engine, done), tokens, supervised)
            if job.validation and is_eval_step(state, plan, config) and (figures := evaluate(engine, job, stop)):
                tracker.log_evaluation(state.step, figures)
                note_best(state, figures, config)
            if is_save_step(state, plan, config):
                save_checkpoint(engine, state, tracker, job)
        return finish(engine, state, tracker, job)


@dataclass
class Step:
    """What one optimizer step came to.

    Args:
        losses: of this rank's micro-batches, each summed over its supervised tokens.
        loss: their sum over all ranks.
        norm: of the gradient, where DeepSpeed knows none: under ZeRO-0.
        applied: whether the weights have moved.
    """

    losses: list[float]
    loss: float
    norm: float | None
    applied: bool


def train_step(engine: Any, micro_batches: list[Batch], targets: float, job: Job) -> Step:
    """Forward and backward of all micro-batches; the optimizer's step if loss and gradient are finite."""
    losses, last = [], len(micro_batches) - 1
    for i, batch in enumerate(micro_batches):
        engine.set_gradient_accumulation_boundary(i == last)
        loss = summed_loss(engine, batch, job.world)
        # DeepSpeed averages gradients over ranks: times their number makes it a sum.
        engine.backward(loss * (job.world.size / targets), scale_wrt_gas=False)
        losses.append(loss.detach().float())
        if i < last:
            engine.step()  # only counts
    if engine.zero_optimization_stage() == 0:  # where DeepSpeed would step with a NaN
        gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
        losses.append(torch.nn.utils.get_total_norm(gradients).float())
    # The one time in a step that the host waits; DeepSpeed waits for the gradient's norm right after it anyway.
    numbers = torch.stack(losses).tolist()
    norm = numbers.pop() if len(numbers) > len(micro_batches) else None
    total = sum_over_ranks(job.world, sum(numbers))[0]
    stepped = math.isfinite(total) and (norm is None or math.isfinite(norm))
    if stepped:
        engine.step()
    return Step(numbers, total, norm, stepped and engine.was_step_applied())


def step_problem(done: Step, state: TrainerState, config: TrainConfig, scales: bool) -> str | None:
    """Why the run must stop after this step; the loss scaler, if there is one, may skip some steps in a row."""
    if not math.isfinite(done.loss):
        return f"the loss is {done.loss}"
    state.skipped = 0 if done.applied else state.skipped + 1
    if state.skipped > (config.max_skipped_steps if scales else 0):
        times = f" for {state.skipped} steps" if state.skipped > 1 else ""
        return f"the gradient is not finite{times}"
    return None


def count_targets(micro_batches: list[Batch]) -> int:
    """This rank's supervised tokens of one optimizer step."""
    return sum(len(batch["loss_positions"]) for batch in micro_batches)


def grad_norm(engine: Any, done: Step) -> float | None:
    """Norm of the last step's gradient before clipping; None after a step that was skipped."""
    norm = float(engine.get_global_grad_norm() if done.norm is None else done.norm)
    return norm if math.isfinite(norm) else None


def is_save_step(state: TrainerState, plan: Plan, config: TrainConfig) -> bool:
    """Every `save_model_step`, else at each epoch's end; when the watched metric was never better; and at the end."""
    regular = state.step % (config.save_model_step or plan.steps_per_epoch) == 0
    return regular or is_over(state, config) or (config.save_best is not None and state.best_step == state.step)


def is_eval_step(state: TrainerState, plan: Plan, config: TrainConfig) -> bool:
    """Every `eval_steps`, else at each epoch's end; and at the end of the run."""
    return state.step % (config.eval_steps or plan.steps_per_epoch) == 0 or state.step == state.total_steps


def note_best(state: TrainerState, figures: dict[str, float], config: TrainConfig) -> None:
    """Compare the watched metric with its best value so far."""
    value = figures.get(config.watched_metric)
    if value is not None and is_better(config.watched_metric, value, state.best):
        state.best, state.best_step, state.waited = value, state.step, 0
    else:
        state.waited += 1


def is_over(state: TrainerState, config: TrainConfig) -> bool:
    """Whether all steps are done, or patience with the watched metric is at its end."""
    patience = config.early_stopping_patience
    return state.step >= state.total_steps or (patience is not None and state.waited >= patience)


def try_longest_batch(engine: Any, optimizer: Any, data: Sequence[Example], job: Job) -> str:
    """A whole step with the longest rows there are, so that a lack of memory shows now and not hours later.

    Learning rate and gradient are zero, the optimizer's count and the random states are put back: nothing has changed
    but that all memory of a step has been held once. Returns a line that tells how much that was.
    """
    world, rows = job.world, sorted(range(len(job.lengths)), key=job.lengths.__getitem__)
    rows = rows[-job.config.per_device_train_batch_size :]
    before = saved.random_state(world)
    set_learning_rate(optimizer, 0.0)
    engine.train()
    engine.set_gradient_accumulation_boundary(True)
    loss = summed_loss(engine, make_batch(data, rows, rows, job), world)
    if not math.isfinite(sum_over_ranks(world, loss.item())[0]):
        raise bad_batch("the loss is not finite", 0, data, rows, [rows], [loss.item()], job)
    engine.backward(loss * 0.0, scale_wrt_gas=False)
    engine.step()
    forget_steps(engine)
    saved.set_random_state(before, world)
    size = f"{len(rows)} row{'s' * (len(rows) > 1)} of at most {job.lengths[rows[-1]]:,} tokens"
    return f"the longest micro-batch fits: {size}, peak {peak_memory(world.device) / 2**30:.2f} GiB"


# ------------------------------------------------------------------------------------------- saving and going on


def save_checkpoint(engine: Any, state: TrainerState, tracker: Tracker, job: Job) -> None:
    """Collective: checkpoint-STEP with weights, moments and random states; then make room."""
    began = time.monotonic()
    state.adam_step, state.saved_step = adam_step(engine), state.step
    state.loss_scaler = scaler_numbers(engine) if job.scales_loss else {}
    trained = job.tuner.state(engine.module)
    write = functools.partial(write_trained, engine, trained, job)
    place = saved.save(job.folder, state, job.world, write, packed(engine, keep=job.world.is_main))
    best = state.best_step if job.config.save_best else None
    saved.tidy(job.folder, job.world, job.config.save_total_limit, best)
    seconds = time.monotonic() - began
    tracker.say(f"saved {place}")
    if seconds > LAUNCHERS_WAIT / 2:
        tracker.say(
            f"warning: saving took {seconds:.0f} s; launchers kill {LAUNCHERS_WAIT} s after SIGTERM, so a stopped run "
            "may lose what follows its last checkpoint; save more often with --save_model_step"
        )


def write_trained(engine: Any, trained: dict[str, Tensor], job: Job, folder: Path) -> None:
    job.tuner.save(engine.module, trained, folder, job.base)
    job.tokenizer.save_pretrained(folder)
    (folder / saved.RUN_CONFIG).write_text(to_json(job.config) + "\n", encoding="utf-8")


def stop_here(engine: Any, state: TrainerState, stop: StopSignals, tracker: Tracker, job: Job) -> None:
    """Save, if the last step is not saved yet, and end the run. Collective. Raises Stopped."""
    if state.step not in (0, state.saved_step):
        save_checkpoint(engine, state, tracker, job)
    kept = f"checkpoint-{state.step} is saved; go on with --resume yes" if state.step else "nothing was trained yet"
    error = Stopped(f"by {stop.reason or 'a signal to another rank'} after step {state.step}: {kept}")
    error.agreed = True
    barrier()
    raise error


def finish(engine: Any, state: TrainerState, tracker: Tracker, job: Job) -> TrainResult:
    """Save what was trained, and the run's figures, into the output folder itself. Collective."""
    trained = job.tuner.state(engine.module)
    if state.open_supervised:  # the run ended between two log lines
        state.take()
    result = TrainResult(
        output_dir=str(job.folder),
        steps=state.step,
        train_loss=state.loss_sum / max(1, state.supervised),
        last_loss=math.nan if state.last_loss is None else state.last_loss,
        seconds=tracker.seconds,
        tokens=state.tokens,
        supervised_tokens=state.supervised,
        peak_memory_bytes=peak_memory(job.world.device),
        best=state.best,
        best_step=state.best_step,
    )
    write = functools.partial(write_result, engine, trained, result, state.total_steps, job)
    saved.publish(job.folder, job.world, write)
    for line in summary(result, job):
        tracker.say(line)
    return result


def write_result(
    engine: Any, trained: dict[str, Tensor], result: TrainResult, total_steps: int, job: Job, folder: Path
) -> None:
    write_trained(engine, trained, job, folder)
    figures = {"train_results.json": asdict(result), "trainer_state.json": {"global_step": result.steps}}
    figures["trainer_state.json"] |= {
        "max_steps": total_steps,
        "best_metric": result.best,
        "best_model_checkpoint": None if result.best is None else str(job.folder / f"checkpoint-{result.best_step}"),
        "log_history": read_metrics(job.folder / METRICS),
    }
    for name, content in figures.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


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
        metric, kept = job.config.watched_metric, job.folder / saved.BEST
        place = f" ({kept})" if job.config.save_best else ""
        lines.append(f"best {metric} {result.best:.4f} at step {result.best_step}{place}")
    return [*lines, f"what was trained, metrics.jsonl, loss.png, tensorboard/ and checkpoints are in {job.folder}"]


def start_state(job: Job, resume_from: Path | None) -> TrainerState:
    """Raises CheckpointError if data, seed or the records of a step differ: the order could not go on."""
    plan = job.plan
    fresh = TrainerState(
        total_steps=plan.total_steps(job.config.num_train_epochs, job.config.max_steps),
        window=plan.window,
        records=plan.records,
        seed=plan.seed,
        grouped=plan.lengths is not None,
    )
    if resume_from is None:
        return fresh
    state = saved.load_state(resume_from)
    for name in ("window", "records", "seed", "grouped"):
        was, now = getattr(state, name), getattr(fresh, name)
        if was != now:
            raise CheckpointError(f"{resume_from}: {name} was {was}, now it is {now}; give the same settings")
    state.total_steps = fresh.total_steps
    return state


def load_weights(model: nn.Module, stored: Mapping[str, Tensor]) -> None:
    """Put the checkpoint's trained weights into the model before DeepSpeed takes it. Collective."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    names = {key.removeprefix("param/") for key in stored if key.startswith("param/")}
    if trainable.keys() != names:
        raise CheckpointError("the checkpoint trained other parameters; give the same --train_type and its settings")
    for name, parameter in trainable.items():
        tensor = stored[f"param/{name}"]
        if whole_shape(parameter) != tensor.shape:
            raise CheckpointError(f"{name} has another shape in the checkpoint; give the same --train_type settings")
        with gathered([parameter], modified=True), torch.no_grad():
            parameter.copy_(tensor)


def restore(engine: Any, checkpoint: Path, state: TrainerState, job: Job) -> None:
    """Put back moments, loss scaler and random states. Collective."""
    unpack(engine, saved.open_optimizer(checkpoint), state.adam_step)
    if job.scales_loss:
        set_scaler_numbers(engine, state.loss_scaler)
    saved.restore_random_state(checkpoint, job.world)
    saved.tidy(job.folder, job.world, None, state.best_step if job.config.save_best else None)
