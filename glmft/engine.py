"""The training loop.

For each optimizer step: take the rows of its window, split them into micro-batches, count the supervised tokens of all
ranks, sum the loss of every micro-batch over that count, step, log, evaluate, save. The loss is a mean over supervised
tokens of the whole step, so it does not depend on how the rows were split.
"""

import contextlib
import math
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from glmft.console import say
from glmft.data.sampler import Plan, in_steps
from glmft.dist import World, same_fate, sum_over_ranks
from glmft.settings.config import TrainConfig
from glmft.training.boundary import kept_states
from glmft.training.checkpoint import open_optimizer
from glmft.training.divergence import bad_batch
from glmft.training.evaluation import evaluate, is_better
from glmft.training.failures import refusals_of_deepspeed
from glmft.training.job import Batch, Job, Passes, count_supervised, make_batch, summed_loss
from glmft.training.longest_batch import try_longest_batch, wants_trial
from glmft.training.optim import learning_rate, make_optimizer, set_learning_rate, total_norm
from glmft.training.outcome import note_first_answer, outcome_of, sample_weights
from glmft.training.pipeline import Pipeline
from glmft.training.plausible import Doubts
from glmft.training.resuming import load_weights, restore, start_state
from glmft.training.room import room_line
from glmft.training.run_folder import begin
from glmft.training.saving import TrainResult, save_and_stop, save_checkpoint, save_result
from glmft.training.signals import StopSignals
from glmft.training.state import TrainerState
from glmft.training.tracking import Tracker


def train(model: nn.Module, job: Job, resume_from: Path | None = None) -> TrainResult:
    """Train `model`, as `job.tuner` prepared it, on `job.rows`; save into `job.folder`. Collective.

    Raises:
        CheckpointError: `resume_from` belongs to another run, or saving fails.
        DivergenceError: a loss or a gradient is no longer finite.
        Stopped: a signal asked for it; a checkpoint is saved.
    """
    config, world, plan = job.config, job.world, job.plan
    began_with, doubts = sample_weights(model), Doubts(len(job.tokenizer))
    with same_fate():
        state = start_state(job, resume_from)
        if resume_from:
            load_weights(model, open_optimizer(resume_from))
    engine, passes = start_engine(model, job)
    if not is_over(state, config) and wants_trial(model, job):  # before Adam's count is restored: it makes it zero
        fits = try_longest_batch(engine, passes, job, state.step, state.total_steps)
        say([fits] if world.is_main else [])
    if resume_from:
        restore(engine, resume_from, state, job)
    begin(job, state)
    note_first_answer(engine, state, job)
    tracker = tracker_of(job, state)
    tracker.warn(room_line(model, job, saves_to_come(state, plan, config)))

    engine.train()
    states = kept_states(engine.module, job)  # below the lowest layer that trains
    with StopSignals(world) as stop, contextlib.closing(tracker):
        for step, window in plan.windows(state.step, state.total_steps):
            if is_over(state, config):
                break
            rows = plan.micro_batches(window, world.data_rank)
            micro_batches = [make_batch(job.rows, numbers, window, job, states) for numbers in rows]
            supervised, stops = sum_over_ranks(world, count_supervised(micro_batches, world), stop.noted)
            if stops:
                save_and_stop(engine, state, stop, tracker, job)
            rate = learning_rate(step, state.total_steps, config)
            set_learning_rate(engine.optimizer, rate)
            result = train_step(engine, passes, micro_batches, supervised, job)
            state.skipped = 0 if result.applied else state.skipped + 1
            problem = step_problem(result, state.skipped, config.max_skipped_steps if job.scales_loss else 0)
            if problem:
                raise bad_batch(problem, step + 1, window, rows, result.losses, job)
            state.add(result.loss, int(supervised), tokens=sum(job.rows.lengths[i] for i in window))
            tracker.advance()
            tracker.warn(doubts.note(state.step, result.loss / supervised, gradient_norm(engine, result)))
            if is_log_step(state, config):
                tracker.log_step(state.step, state.take(), rate, grad_norm(engine, result))
                tracker.warn(doubts.of_gradients())
            if job.validation and is_eval_step(state, plan, config):
                figures = evaluate(engine, job, stop)
                if figures:  # none, if the run was asked to stop meanwhile
                    tracker.log_evaluation(state.step, figures)
                    note_best(state, figures, config)
            if is_save_step(state, plan, config):
                save_checkpoint(engine, state, tracker, job)
        return save_result(engine, state, tracker, job, outcome_of(engine, began_with, state, job))


def tracker_of(job: Job, state: TrainerState) -> Tracker:
    settings, per_epoch = asdict(job.config), job.plan.steps_per_epoch
    names = job.config.report_names
    return Tracker(job.folder, job.world, state.step, state.total_steps, names, settings, per_epoch)


@dataclass
class StepResult:
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


def start_engine(model: nn.Module, job: Job) -> tuple[Any, Passes]:
    """DeepSpeed's engine, and how micro-batches go through it: one by one, or in a pipeline of stages."""
    optimizer = make_optimizer(model, job.config, job.tuner.learning_rate_ratio)
    with refusals_of_deepspeed(job.config.ds_file):
        if job.cut:
            pipeline = Pipeline(model, optimizer, job)
            return pipeline, pipeline.passes
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=job.ds_config)
    return engine, partial(one_by_one, engine, job.world)


def one_by_one(engine: Any, world: World, micro_batches: list[Batch], scale: float) -> list[Tensor]:
    """See `Passes`."""
    losses, last = [], len(micro_batches) - 1
    for i, batch in enumerate(micro_batches):
        engine.set_gradient_accumulation_boundary(i == last)
        loss = summed_loss(engine, batch, world)
        engine.backward(loss * scale, scale_wrt_gas=False)
        losses.append(loss.detach().float())
        if i < last:
            engine.step()  # only counts
    return losses


def train_step(engine: Any, passes: Passes, micro_batches: list[Batch], supervised: float, job: Job) -> StepResult:
    """Forward and backward of all micro-batches; the optimizer's step if loss and gradient are finite.

    Args:
        supervised: tokens of all ranks' micro-batches that the loss is a mean over.
    """
    # DeepSpeed averages gradients over ranks: times their number makes it a sum.
    losses = passes(micro_batches, job.world.data_size / supervised)
    if engine.zero_optimization_stage() == 0:  # where DeepSpeed would step with a NaN
        losses.append(total_norm(engine.module, job.world))
    # The one time in a step that the host waits; DeepSpeed waits for the gradient's norm right after it anyway.
    numbers = torch.stack(losses).tolist()
    norm = numbers.pop() if len(numbers) > len(micro_batches) else None
    total = sum_over_ranks(job.world, sum(numbers))[0]
    is_finite = math.isfinite(total) and (norm is None or math.isfinite(norm))
    if is_finite:
        engine.step()
    return StepResult(numbers, total, norm, is_finite and engine.was_step_applied())


def step_problem(result: StepResult, skipped: int, most_skipped: int) -> str | None:
    """Why the run must stop after this step; None: it need not.

    Args:
        skipped: steps in a row, with this one, that left the weights as they were.
        most_skipped: how many of them the loss scaler may skip; 0 without one.
    """
    if not math.isfinite(result.loss):
        return f"the loss is {result.loss}"
    if skipped > most_skipped:
        times = f" for {skipped} steps" if skipped > 1 else ""
        return f"the gradient is not finite{times}"
    return None


def gradient_norm(engine: Any, result: StepResult) -> Any:
    """Norm of the last step's gradient before clipping: a number, or a tensor that the host has not waited for."""
    return engine.get_global_grad_norm() if result.norm is None else result.norm


def grad_norm(engine: Any, result: StepResult) -> float | None:
    """The same as a number; None after a step that was skipped."""
    norm = float(gradient_norm(engine, result))
    return norm if math.isfinite(norm) else None


def is_log_step(state: TrainerState, config: TrainConfig) -> bool:
    """Every `show_loss_step`, and at the end of the run."""
    return state.step % in_steps(config.show_loss_step, state.total_steps) == 0 or state.step == state.total_steps


def is_save_step(state: TrainerState, plan: Plan, config: TrainConfig) -> bool:
    """Every `save_model_step`, else at each epoch's end; when the watched metric was never better; and at the end."""
    regular = state.step % save_interval(state, plan, config) == 0
    return regular or is_over(state, config) or (config.save_best is not None and state.best_step == state.step)


def saves_to_come(state: TrainerState, plan: Plan, config: TrainConfig) -> int:
    """Checkpoints that are written from here on, but for those of a best metric."""
    interval = save_interval(state, plan, config)
    ends_between = state.step < state.total_steps and state.total_steps % interval > 0
    return state.total_steps // interval - state.step // interval + ends_between


def save_interval(state: TrainerState, plan: Plan, config: TrainConfig) -> int:
    return in_steps(config.save_model_step or plan.steps_per_epoch, state.total_steps)


def is_eval_step(state: TrainerState, plan: Plan, config: TrainConfig) -> bool:
    """Every `eval_steps`, else at each epoch's end; and at the end of the run."""
    interval = in_steps(config.eval_steps or plan.steps_per_epoch, state.total_steps)
    return state.step % interval == 0 or state.step == state.total_steps


def is_over(state: TrainerState, config: TrainConfig) -> bool:
    """Whether all steps are done, or patience with the watched metric is at its end."""
    patience = config.early_stopping_patience
    return state.step >= state.total_steps or (patience is not None and state.waited >= patience)


def note_best(state: TrainerState, figures: dict[str, float], config: TrainConfig) -> None:
    """Compare the watched metric with its best value so far; of two that are equal the one of lower loss is best.

    Patience waits for a better value.
    """
    value, loss = figures.get(config.watched_metric), figures["eval_loss"]
    betters = value is not None and is_better(config.watched_metric, value, state.best)
    ties = value is not None and value == state.best and state.best_loss is not None and loss < state.best_loss
    if betters or ties:
        state.best, state.best_step, state.best_loss = value, state.step, loss
    state.waited = 0 if betters else state.waited + 1
