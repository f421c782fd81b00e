"""glmft's own loop, `glmft.engine.train`, with its windows handed out by turns."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.training.arms import deepspeed_config
from benchmarks.training.columns import WINDOW, Case, Padding, Steps, our_model, settings
from benchmarks.training.turns import Turns
from glmft.data.dataset import Rows
from glmft.data.sampler import Plan
from glmft.device import giving_back_freed_memory

CACHED = "cache_frozen_activations"


@dataclass(frozen=True)
class ByTurns(Plan):
    """A plan of given steps, before each of which the loop waits for its turn."""

    steps: list[list[list[int]]] = field(default_factory=list)
    turns: Turns | None = None

    def windows(self, start: int, total: int) -> Iterator[tuple[int, list[int]]]:
        is_loop = total > self.steps_per_epoch  # others look at an epoch ahead
        for number, micro_batches in enumerate(self.turns.each(self.steps) if is_loop else self.steps):
            yield number, [row for rows in micro_batches for row in rows]

    def micro_batches(self, window: list[int], rank: int) -> list[list[int]]:
        return next(step for step in self.steps if step[0][0] == window[0])


def run_loop(case: Case, steps: Steps, turns: Turns, **flags: Any) -> None:
    from glmft import engine
    from glmft.dist import start
    from glmft.training.job import Job
    from glmft.tuners import make_tuner

    without = {"longest_batch_first": False, "compare_answers": False, "save_model_step": 10**6}
    config = settings(case, **flags, **without, max_steps=len(steps) + 1)  # the last of a run would be saved
    with giving_back_freed_memory():  # as where a run loads its model
        model = our_model(case)
    turns.loaded()
    world = start("cpu", "fp32")
    rows, numbers = numbered(steps)
    tokenizer = Padding(case.first_position, case.vocabulary)
    plan = ByTurns(
        len(rows.examples),
        config.per_device_train_batch_size,
        WINDOW // case.column.rows,
        1,
        config.seed,
        tokens=rows.lengths,
        steps=numbers,
        turns=turns,
    )
    with tempfile.TemporaryDirectory() as folder:
        config.cache_dir = folder
        base = {"family": "glm2", "base_fingerprint": "random", "base_quantization": None}
        job = Job(config, deepspeed_config(case), world, make_tuner(config), base, tokenizer, plan, Path(folder), rows)
        if flags.get(CACHED):
            job.boundary = case.layers - 1
        note_losses(model, turns, steps)
        engine.train(model, job)


def numbered(steps: Steps) -> tuple[Rows, list[list[list[int]]]]:
    """All rows, one behind the other, and the steps as numbers of them."""
    examples = [row for step in steps for rows in step for row in rows]
    counter = iter(range(len(examples)))
    numbers = [[[next(counter) for _ in rows] for rows in step] for step in steps]
    return Rows(examples, [len(row.ids) for row in examples], [], []), numbers


def note_losses(model: nn.Module, turns: Turns, steps: Steps) -> None:
    """The loop's losses are sums: their shares of a step's mean."""
    shares = iter([sum(row.supervised for r in step for row in r) for step in steps for _ in step])
    model.register_forward_hook(lambda module, given, out: turns.note(out.loss / next(shares)))
