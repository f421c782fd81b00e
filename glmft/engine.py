"""The training loop.

For each optimizer step: take the window's records, split them into micro-batches, count the supervised tokens of all
ranks, sum the loss of every micro-batch over that count, step, log, save. The loss is a mean over supervised tokens of
the whole step, so it does not depend on how the records were split.
"""

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from glmft import checkpoint as saved
from glmft.checkpoint import TrainerState
from glmft.config import TrainConfig
from glmft.data.collate import collate, to_device
from glmft.data.encode import Example
from glmft.data.sampler import Plan
from glmft.dist import World, all_reduce_sum, barrier
from glmft.errors import CheckpointError, DivergenceError
from glmft.optim import learning_rate, make_optimizer, set_learning_rate
from glmft.tracking import Tracker
from glmft.tuners.base import Tuner
from glmft.zero_state import pack, unpack

Batch = dict[str, Tensor]


@dataclass
class TrainResult:
    """What a run came to; also written as train_results.json.

    Args:
        train_loss: mean over all supervised tokens of the whole run, in nats.
        last_loss: the same since the log line before the last.
        seconds: of this process; a resumed run counts from the resumption.
    """

    output_dir: str
    steps: int
    train_loss: float
    last_loss: float
    seconds: float
    tokens: int
    supervised_tokens: int


@dataclass
class Job:
    """What does not change while training."""

    config: TrainConfig
    ds_config: dict[str, Any]
    world: World
    tuner: Tuner
    base: dict[str, Any]
    tokenizer: Any
    plan: Plan
    folder: Path
    lengths: Sequence[int]
    validation: Sequence[Example] = ()
    validation_lengths: Sequence[int] = ()


def train(model: nn.Module, data: Sequence[Example], job: Job, resume_from: Path | None = None) -> TrainResult:
    """Train `model`, as `job.tuner` prepared it, on `data`; save into `job.folder`.

    Raises:
        CheckpointError: `resume_from` belongs to another run, or saving fails.
        DivergenceError: the loss is no longer finite.
    """
    config, world, plan = job.config, job.world, job.plan
    state = TrainerState(total_steps=plan.total_steps(config.num_train_epochs, config.max_steps))
    state.window, state.records, state.seed = plan.window, plan.records, plan.seed
    state.grouped = plan.lengths is not None
    if resume_from:
        state = resumed_state(resume_from, state)
        load_weights(model, saved.load_optimizer(resume_from))
    optimizer = make_optimizer(model, config, job.tuner.learning_rate_ratio)
    engine, optimizer, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=job.ds_config)
    if resume_from:
        unpack(engine, saved.load_optimizer(resume_from), state.adam_step)
        saved.restore_random_state(resume_from, world)
    tracker = Tracker(job.folder, world, state.total_steps)
    log = LossLog(tracker, world, state)

    engine.train()
    for step, window in plan.windows(state.step, state.total_steps):
        shares = plan.micro_batches(window, world.rank)
        micro_batches = [make_batch(data, rows, window, job) for rows in shares]
        targets = count_targets(micro_batches, world)
        rate = learning_rate(step, state.total_steps, config)
        set_learning_rate(optimizer, rate)
        loss = train_step(engine, micro_batches, targets, world)
        state.step = step + 1
        log.add(loss, targets, tokens=sum(job.lengths[i] for rows in shares for i in rows))
        if state.step % config.show_loss_step == 0 or state.step == state.total_steps:
            log.write(rate, grad_norm(engine))
        if job.validation and is_eval_step(state, plan, config):
            tracker.log_validation(state.step, validate(engine, job))
        if is_save_step(state.step, plan, config) and state.step < state.total_steps:
            log.require_finite()
            tracker.say(f"saved {save_checkpoint(engine, state, job)}")

    return finish(engine, state, log, tracker, job)


def train_step(engine: Any, micro_batches: list[Batch], targets: Tensor, world: World) -> Tensor:
    """One optimizer step. Returns this rank's summed loss over its supervised tokens, a tensor nothing waits for."""
    total = torch.zeros((), device=world.device)
    for i, batch in enumerate(micro_batches):
        engine.set_gradient_accumulation_boundary(i == len(micro_batches) - 1)
        loss = summed_loss(engine, batch, world)
        # DeepSpeed averages gradients over ranks: times their number makes it a sum.
        engine.backward(loss * (world.size / targets), scale_wrt_gas=False)
        engine.step()
        total += loss.detach()
    return total


def summed_loss(engine: Any, batch: Batch, world: World) -> Tensor:
    """The loss of a micro-batch, summed over its supervised tokens."""
    with torch.autocast(world.device.type, world.dtype, enabled=world.dtype == torch.bfloat16):
        return engine(**batch, num_items_in_batch=1).loss


def make_batch(data: Sequence[Example], rows: list[int], window: list[int], job: Job) -> Batch:
    """A micro-batch on this rank's device. A rank left without records runs one of the window's, unsupervised."""
    examples = [data[i] for i in rows or window[:1]]
    return to_device(collate(examples, job.tokenizer, supervise=bool(rows)), job.world.device)


def count_targets(micro_batches: list[Batch], world: World) -> Tensor:
    """Supervised tokens of one optimizer step over all ranks, a float tensor on the device."""
    own = sum(len(batch["loss_positions"]) for batch in micro_batches)
    return all_reduce_sum(torch.tensor(float(own), device=world.device))


def grad_norm(engine: Any) -> float | None:
    """Norm of the last step's gradient before clipping; DeepSpeed knows none under ZeRO-0 in float32."""
    norm = engine.get_global_grad_norm()
    return None if norm is None else float(norm)


def is_save_step(step: int, plan: Plan, config: TrainConfig) -> bool:
    """Every `save_model_step`, else at each epoch's end."""
    return step % (config.save_model_step or plan.steps_per_epoch) == 0


def is_eval_step(state: TrainerState, plan: Plan, config: TrainConfig) -> bool:
    """Every `eval_steps`, else at each epoch's end; and at the end of the run."""
    return state.step % (config.eval_steps or plan.steps_per_epoch) == 0 or state.step == state.total_steps


@torch.no_grad()
def validate(engine: Any, job: Job) -> float:
    """Mean loss over all supervised tokens of the validation rows, each of which is seen once by one rank."""
    world, size = job.world, job.config.per_device_eval_batch_size
    order = sorted(range(len(job.validation)), key=job.validation_lengths.__getitem__, reverse=True)
    deal = Plan(len(order), size, 1, world.size, seed=0)
    sums = torch.zeros(2, device=world.device)  # loss, supervised tokens
    engine.eval()
    for first in range(0, len(order), deal.window):
        window = order[first : first + deal.window]
        batch = make_batch(job.validation, deal.micro_batches(window, world.rank)[0], window, job)
        sums[0] += summed_loss(engine, batch, world)
        sums[1] += len(batch["loss_positions"])
    engine.train()
    loss, supervised = all_reduce_sum(sums).tolist()
    return loss / supervised


class LossLog:
    """Sums loss and tokens on the device between two log lines; the host waits for them only when a line is written."""

    def __init__(self, tracker: Tracker, world: World, state: TrainerState):
        self.tracker, self.world, self.state = tracker, world, state
        self.last = math.nan
        self.clear()

    def clear(self) -> None:
        self.loss = torch.zeros((), device=self.world.device)
        self.targets = torch.zeros((), device=self.world.device)
        self.tokens = 0

    def add(self, loss: Tensor, targets: Tensor, tokens: int) -> None:
        """Count one step: this rank's summed loss and tokens (no padding), and the supervised tokens of all ranks."""
        self.loss += loss
        self.targets += targets
        self.tokens += tokens

    def read(self) -> tuple[float, int, int]:
        """Mean loss of a supervised token, tokens and supervised tokens, over all ranks since the last `clear`."""
        sums = torch.stack((self.loss, torch.tensor(float(self.tokens), device=self.world.device)))
        loss, tokens = all_reduce_sum(sums).tolist()
        supervised = self.targets.item()
        return loss / max(1.0, supervised), int(tokens), int(supervised)

    def write(self, rate: float, norm: float | None) -> None:
        self.last, tokens, supervised = self.read()
        self.state.loss_sum += self.last * supervised
        self.state.tokens += tokens
        self.state.supervised += supervised
        self.tracker.log_step(self.state.step, self.last, rate, norm, tokens, supervised)
        self.clear()
        self.check(self.last)

    def require_finite(self) -> None:
        """Look at what was not logged yet, so that no checkpoint holds the weights after a bad step."""
        self.check(self.read()[0])

    def check(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise DivergenceError(
                f"the loss is {loss} at step {self.state.step}: training stops; go on from the last checkpoint with a "
                "lower --learning_rate"
            )


# ---------------------------------------------------------------------------------------------------- saving


def save_checkpoint(engine: Any, state: TrainerState, job: Job) -> Path:
    """Collective: checkpoint-STEP with weights, moments and random states."""
    optimizer, state.adam_step = pack(engine)
    trained = job.tuner.state(engine.module)
    write = functools.partial(write_trained, engine, trained, job)
    return saved.save(job.folder, state, job.world, write, optimizer)


def write_trained(engine: Any, trained: dict[str, Tensor], job: Job, folder: Path) -> None:
    job.tuner.save(engine.module, trained, folder, job.base)
    job.tokenizer.save_pretrained(folder)


def finish(engine: Any, state: TrainerState, log: LossLog, tracker: Tracker, job: Job) -> TrainResult:
    """Save what was trained, and the run's figures, into the output folder itself."""
    trained = job.tuner.state(engine.module)
    mean = state.loss_sum / max(1, state.supervised)
    result = TrainResult(str(job.folder), state.step, mean, log.last, tracker.seconds, state.tokens, state.supervised)
    if job.world.is_main:
        aside = job.folder / ".writing-result"
        aside.mkdir(exist_ok=True)
        write_trained(engine, trained, job, aside)
        (aside / "train_results.json").write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
        saved.publish(aside, job.folder)
    barrier()
    took = f"{state.step} steps in {tracker.seconds:.1f} s"
    tracker.say(f"trained {took}; mean loss {mean:.4f}, last {log.last:.4f}; saved in {job.folder}")
    return result


def resumed_state(checkpoint: Path, fresh: TrainerState) -> TrainerState:
    """Raises CheckpointError if data, seed or the records of a step differ: the order could not go on."""
    state = saved.load_state(checkpoint)
    for name in ("window", "records", "seed", "grouped"):
        was, now = getattr(state, name), getattr(fresh, name)
        if was != now:
            raise CheckpointError(f"{checkpoint}: {name} was {was}, now it is {now}; give the same settings")
    state.total_steps = fresh.total_steps
    return state


def load_weights(model: nn.Module, packed: dict[str, Tensor]) -> None:
    """Put the checkpoint's trained weights into the model before DeepSpeed takes it."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    stored = {key.removeprefix("param/"): t for key, t in packed.items() if key.startswith("param/")}
    if trainable.keys() != stored.keys() or any(trainable[n].shape != t.shape for n, t in stored.items()):
        raise CheckpointError("the checkpoint trained other parameters; give the same --train_type and its settings")
    with torch.no_grad():
        for name, tensor in stored.items():
            trainable[name].copy_(tensor)
