"""Which records make up which optimizer step, on which rank: pure functions of seed, epoch and step.

The order of an epoch does not depend on the number of ranks: a window (the records of one optimizer step) is cut from
one global permutation and then dealt out.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from heapq import nlargest

import torch

GROUPED = 50  # windows' worth of shuffled records that are sorted by length together
FEW = 512  # tokens that are always worth a pass: fewer keep a processor waiting, and their memory is small
LOOKED_AT = 1 << 20  # records, at most, to find the heaviest micro-batch


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
        tokens: of each record, for the bounds below.
        max_tokens: a micro-batch holds no more, but for a record that is longer; None: no bound.
        joins: micro-batches of a rank's step run together while they hold no more than `max_tokens`, or than the
            longest records that may meet in one, or `FEW`. The step is a sum over its tokens, whatever the parts.
    """

    records: int
    micro_batch: int
    accumulation: int
    world_size: int
    seed: int
    lengths: Sequence[int] | None = None
    tokens: Sequence[int] | None = None
    max_tokens: int | None = None
    joins: bool = False
    found: dict[tuple[int, int], list[int]] = field(default_factory=dict, repr=False, compare=False)  # by `heaviest`

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
        return self.shares(window)[rank]

    def shares(self, window: list[int]) -> list[list[list[int]]]:
        """The micro-batches of every rank."""
        if self.lengths is not None:
            window = sorted(window, key=self.lengths.__getitem__)
        dealt = [self._dealt(window, rank) for rank in range(self.world_size)]
        if self.room is None:
            return dealt
        if self.joins:
            dealt = [[[record for batch in batches for record in batch]] for batches in dealt]
        bounded = [[part for batch in batches for part in self._bounded(batch)] for batches in dealt]
        most = max(len(parts) for parts in bounded)
        return [split_up(parts, most) for parts in bounded]

    @cached_property
    def room(self) -> int | None:
        """Tokens of a micro-batch, at most; None: as many as come."""
        if self.max_tokens is not None or not self.joins:
            return self.max_tokens
        return max(FEW, sum(nlargest(self.micro_batch, self.tokens)))

    def _dealt(self, window: list[int], rank: int) -> list[list[int]]:
        width = self.micro_batch * self.world_size
        first = rank * self.micro_batch
        return [window[i + first : min(i + first + self.micro_batch, i + width)] for i in range(0, len(window), width)]

    def _bounded(self, batch: list[int]) -> list[list[int]]:
        """The same records in the same order, in parts for which there is room."""
        parts, total = [], 0
        for record in batch:
            if not parts or total + self.tokens[record] > self.room:
                parts.append([])
                total = 0
            parts[-1].append(record)
            total += self.tokens[record]
        return parts

    def heaviest(self, lengths: Sequence[int], start: int, total: int) -> list[int]:
        """The micro-batch of most tokens of optimizer steps `start` to `total - 1`, on whatever rank."""
        last = min(total, start + max(self.steps_per_epoch, LOOKED_AT // self.window_size))
        if (start, last) not in self.found:  # lines, sums and a trial ask for the same
            shares = (share for _, window in self.windows(start, last) for share in self.shares(window))
            batches = (rows for share in shares for rows in share)
            self.found[start, last] = max(batches, key=lambda rows: sum(lengths[i] for i in rows))
        return self.found[start, last]


def split_up(parts: list[list[int]], count: int) -> list[list[int]]:
    """The same records in the same order, in `count` parts: those of most records halved, or empty ones behind."""
    while len(parts) < count:
        i = max(range(len(parts)), key=lambda i: len(parts[i]), default=0)
        if not parts or len(parts[i]) < 2:
            return parts + [[] for _ in range(count - len(parts))]
        half = len(parts[i]) // 2
        parts = [*parts[:i], parts[i][:half], parts[i][half:], *parts[i + 1 :]]
    return parts


def rounded_up(steps: float) -> int:
    """Up to the next whole step, where a share of all comes to a part of one; not for what floats make of 0.1 * 30."""
    return math.ceil(round(steps, 6))


def in_steps(interval: float, total: int) -> int:
    """An interval in optimizer steps; below 1 it is a share of all `total`."""
    return max(1, rounded_up(interval * total)) if interval < 1 else int(interval)
