"""A whole step with the heaviest micro-batch there is, so that a lack of memory shows now and not hours later."""

import contextlib
import math
from typing import Any

from torch import nn

from glmft.device import host_memory, peak_memory
from glmft.dist import sum_over_ranks
from glmft.errors import ConfigError
from glmft.training.divergence import bad_batch
from glmft.training.job import Job, Passes, make_batch
from glmft.training.memory import run_of
from glmft.training.optim import set_learning_rate
from glmft.training.random_state import random_state, set_random_state
from glmft.training.zero_state import forget_steps


def wants_trial(model: nn.Module, job: Job) -> bool:
    """Whether the settings, or else what the sums say of the memory, ask for a trial; so does the lack of sums."""
    asked = job.config.longest_batch_first
    if asked is not None or job.world.device.type != "cpu":
        return asked is not False
    with contextlib.suppress(ConfigError):
        return job.world.size * run_of(job, model.config).memory.peak > host_memory() / 2
    return True


def try_longest_batch(engine: Any, passes: Passes, job: Job, start: int, total: int) -> str:
    """Hold all memory of a step once; a line that says how much that was.

    Learning rate and gradient are zero, and the random states are put back. Adam's count starts at zero again, so this
    must come before a checkpoint is restored. Raises DivergenceError if the loss is not finite.

    Args:
        passes: of the engine.
        start, total: the run's optimizer steps are `start` to `total - 1`; tried is their micro-batch of most tokens,
            in a pipeline as often as there can be micro-batches under way.
    """
    world, lengths = job.world, job.rows.lengths
    numbers = job.plan.heaviest(lengths, start, total)
    before = random_state(world)
    set_learning_rate(engine.optimizer, 0.0)
    engine.train()
    batch = make_batch(job.rows, numbers, numbers, job)
    losses = [loss.item() for loss in passes([batch] * min(world.stages, job.plan.accumulation), 0.0)]
    if not math.isfinite(sum_over_ranks(world, sum(losses))[0]):
        raise bad_batch("the loss is not finite", 0, numbers, [numbers] * len(losses), losses, job)
    engine.step()
    forget_steps(engine)
    set_random_state(before, world)
    size = f"{len(numbers)} row{'s' * (len(numbers) > 1)} of at most {max(lengths[i] for i in numbers):,} tokens"
    return f"the longest micro-batch fits: {size}, peak {peak_memory(world.device) / 2**30:.2f} GiB"
