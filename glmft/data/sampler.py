"""Which records make up which optimizer step, on which rank: pure functions of seed, epoch and step.

The order of an epoch does not depend on the number of ranks: a window (the records of one optimizer step) is cut from
one global permutation and then dealt out.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

GROUPED = 50  # windows' worth of shuffled records that are sorted by length together


@dataclass(frozen=True)
class Plan:
    """Step arithmetic shared by loop, schedule and log lines.

    Args:
        records: records in the data set.
        micro_batch: records in one micro-batch of one rank.
        accumulation: micro-batches of one rank in one optimizer step.
        world_size: ranks.
        seed: of the order.
        lengths: tokens of each record: records of similar length then share a window, in random windows, and a
            micro-batch; None: no grouping.
    """

    records: int
    micro_batch: int
    accumulation: int
    world_size: int
    seed: int
    lengths: Sequence[int] | None = None

    @property
    def window_size(self) -> int:
        """Records in a full optimizer step, all ranks together."""
        return self.micro_batch * self.accumulation * self.world_size

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch; a short last window is a step too."""
        return math.ceil(self.records / self.window_size)

    def total_steps(self, epochs: float, max_steps: int | None) -> int:
        """Optimizer steps of a run; a part of an epoch is as many steps as hold it."""
        return max_steps or max(1, rounded_up(epochs * self.steps_per_epoch))

    def order(self, epoch: int) -> list[int]:
        """The permutation of all records in epoch `epoch`."""
        generator = torch.Generator().manual_seed(self.seed + epoch)
        order = torch.randperm(self.records, generator=generator).tolist()
        if self.lengths is None:
            return order
        size, windows = self.window_size, []
        in_full_windows = len(order) // size * size
        for first in range(0, in_full_windows, GROUPED * size):
            end = min(first + GROUPED * size, in_full_windows)
            group = sorted(order[first:end], key=self.lengths.__getitem__)
            windows += [group[i : i + size] for i in range(0, len(group), size)]
        shuffled = torch.randperm(len(windows), generator=generator).tolist()
        return [record for i in shuffled for record in windows[i]] + order[in_full_windows:]

    def windows(self, start: int, total: int) -> Iterator[tuple[int, list[int]]]:
        """(step, record numbers) for optimizer steps `start` to `total - 1`."""
        epoch, order = -1, []
        for step in range(start, total):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = self.order(epoch)
            first = (step % self.steps_per_epoch) * self.window_size
            yield step, order[first : first + self.window_size]

    def micro_batches(self, window: list[int], rank: int) -> list[list[int]]:
        """This rank's share of a window, micro-batch by micro-batch. All ranks get equally many; some may be empty."""
        if self.lengths is not None:
            window = sorted(window, key=self.lengths.__getitem__)
        width = self.micro_batch * self.world_size
        first = rank * self.micro_batch
        return [window[i + first : min(i + first + self.micro_batch, i + width)] for i in range(0, len(window), width)]


def rounded_up(steps: float) -> int:
    """Up to the next whole step, where a share of all comes to a part of one; not for what floats make of 0.1 * 30."""
    return math.ceil(round(steps, 6))


def in_steps(interval: float, total: int) -> int:
    """An interval in optimizer steps; below 1 it is a share of all `total`."""
    return max(1, rounded_up(interval * total)) if interval < 1 else int(interval)


def padding_share(plan: Plan, lengths: Sequence[int]) -> float:
    """Padding among all tokens that the first epoch's micro-batches hold."""
    real = padded = 0
    for _, window in plan.windows(0, plan.steps_per_epoch):
        for rank in range(plan.world_size):
            for rows in plan.micro_batches(window, rank):
                sizes = [lengths[i] for i in rows]
                real += sum(sizes)
                padded += len(sizes) * max(sizes, default=0)
    return 1 - real / padded
