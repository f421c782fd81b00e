"""Which records make up which optimizer step, on which rank: pure functions of seed, epoch and step.

The order of an epoch does not depend on the number of ranks: a window (the records of one optimizer step) is cut from
one global permutation and then dealt out.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Plan:
    """Step arithmetic shared by loop, schedule and log lines.

    Args:
        records: records in the data set.
        micro_batch: records in one micro-batch of one rank.
        accumulation: micro-batches of one rank in one optimizer step.
        world_size: ranks.
        seed: of the order.
    """

    records: int
    micro_batch: int
    accumulation: int
    world_size: int
    seed: int

    @property
    def window(self) -> int:
        """Records in a full optimizer step, all ranks together."""
        return self.micro_batch * self.accumulation * self.world_size

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch; a short last window is a step too."""
        return math.ceil(self.records / self.window)

    def total_steps(self, epochs: int, max_steps: int | None) -> int:
        return max_steps or epochs * self.steps_per_epoch

    def order(self, epoch: int) -> list[int]:
        """The permutation of all records in epoch `epoch`."""
        generator = torch.Generator().manual_seed(self.seed + epoch)
        return torch.randperm(self.records, generator=generator).tolist()

    def windows(self, start: int, total: int) -> Iterator[tuple[int, list[int]]]:
        """(step, record numbers) for optimizer steps `start` to `total - 1`."""
        epoch, order = -1, []
        for step in range(start, total):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = self.order(epoch)
            first = (step % self.steps_per_epoch) * self.window
            yield step, order[first : first + self.window]

    def micro_batches(self, window: list[int], rank: int) -> list[list[int]]:
        """This rank's share of a window, micro-batch by micro-batch. All ranks get equally many; some may be empty."""
        width = self.micro_batch * self.world_size
        first = rank * self.micro_batch
        return [window[i + first : min(i + first + self.micro_batch, i + width)] for i in range(0, len(window), width)]
