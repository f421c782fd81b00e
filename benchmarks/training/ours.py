"""glmft's own loop, `glmft.engine.train`, with its windows handed out by turns."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.training.columns import Case, Padding, Steps, our_model, settings
from benchmarks.training.turns import Turns
from glmft.data.dataset import Rows
from glmft.data.sampler import Plan
from glmft.device import giving_back_freed_memory
from glmft.settings.config import TrainConfig
from glmft.settings.deepspeed import resolve
from glmft.settings.defaults import find_ds_file

CACHED = "cache_frozen_activations"
# A run's looks ahead and back, and its checkpoints: no part of a step.
STEPS_ALONE = {"longest_batch_first": False, "compare_answers": False, "save_model_step": 10**6}


@dataclass(frozen=True)
class ByTurns(Plan):
    """A plan of given steps, before each of which the loop waits for its turn."""

    steps: list[list[int]] = field(default_factory=list)
    turns: Turns | None = None

    def windows(self, start: int, total: int) -> Iterator[tuple[int, list[int]]]:
        is_loop = total > self.steps_per_epoch  # others look at an epoch ahead
        yield from enumerate(self.turns.each(self.steps) if is_loop else self.steps)


def run_loop(case: Case, steps: Steps, turns: Turns, **flags: Any) -> None:
    """A case of the table on the CPU."""
    from glmft.dist import start

    config = settings(case, **flags, **STEPS_ALONE)
    with giving_back_freed_memory():  # as where a run loads its model
        model = our_model(case)
    turns.loaded()
    note_losses(model, turns, steps)
    boundary = case.layers - 1 if flags.get(CACHED) else 0
    tokenizer = Padding(case.first_position, case.vocabulary)
    train_by_turns(model, config, start("cpu", "fp32"), steps, turns, tokenizer, boundary)


def train_by_turns(
    model: nn.Module, config: TrainConfig, world: Any, steps: Steps, turns: Any, tokenizer: Any, boundary: int = 0
) -> None:
    """All steps in the loop.

    Args:
        boundary: the lowest trained layer, where what comes into it is kept on disk.
    """
    from glmft import engine
    from glmft.training.job import Job
    from glmft.tuners import make_tuner

    examples = [row for step in steps for rows in step for row in rows]
    rows = Rows(examples, [len(row.ids) for row in examples], [], [])
    counter = iter(range(len(examples)))
    numbers = [[next(counter) for rows in step for _ in rows] for step in steps]
    config.max_steps = len(steps) + 1  # the last of a run would be saved
    batch, accumulation = config.per_device_train_batch_size, config.gradient_accumulation_steps
    plan = ByTurns(
        len(examples),
        batch,
        accumulation,
        1,
        config.seed,
        tokens=rows.lengths,
        max_tokens=config.max_tokens_per_batch,
        joins=config.join_micro_batches,
        steps=numbers,
        turns=turns,
    )
    base = {"family": "glm2", "base_fingerprint": "random", "base_quantization": None}
    ds_config = deepspeed_config(config, str(world.dtype), model.config.hidden_size)
    with tempfile.TemporaryDirectory() as folder:
        config.cache_dir = folder
        job = Job(config, ds_config, world, make_tuner(config), base, tokenizer, plan, Path(folder), rows)
        if boundary:
            job.boundary = boundary
        engine.train(model, job)


def deepspeed_config(config: TrainConfig, dtype: str, hidden: int) -> dict[str, Any]:
    """That of the settings' file.

    Args:
        dtype: as torch or as the flags call it.
    """
    short = {"torch.bfloat16": "bf16", "torch.float16": "fp16", "torch.float32": "fp32"}.get(dtype, dtype)
    return resolve(find_ds_file(config.ds_file), config, 1, short, hidden).config


def note_losses(model: nn.Module, turns: Turns, steps: Steps) -> None:
    """The loop's losses are sums: their shares of a step's mean."""
    supervised = [sum(row.supervised for rows in step for row in rows) for step in steps]

    def note(module: nn.Module, given: Any, out: Any) -> None:
        if getattr(out, "loss", None) is not None:
            turns.note(out.loss / supervised[turns.step])

    model.register_forward_hook(note)
