"""What a training run works on, and one micro-batch of it: shared by the loop and its evaluations."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glmft.data.collate import one_row, to_device
from glmft.data.dataset import Rows
from glmft.data.sampler import Plan
from glmft.dist import World
from glmft.models.stages import Cut
from glmft.settings.config import TrainConfig
from glmft.training.kept_states import KeptStates
from glmft.tuners.base import Tuner

Batch = dict[str, Any]
# Forward and backward of some micro-batches, their losses times a number: the loss of each, summed over its supervised
# tokens, where this rank sees it.
Passes = Callable[[list[Batch], float], list[Tensor]]


@dataclass
class Job:
    """What does not change while training.

    Args:
        base: what an adapter records of its base model and of the settings that it was trained with.
        rows: what is trained on.
        validation: rows that are not trained on; None: there are none.
        trained: what trains, as lines for a reader.
        boundary: the lowest layer that trains, if what comes into it is kept on disk; 0: nothing is.
        cut: which stage has which layers; None: the model is in one piece.
    """

    config: TrainConfig
    ds_config: dict[str, Any]
    world: World
    tuner: Tuner
    base: dict[str, Any]
    tokenizer: Any
    plan: Plan
    folder: Path
    rows: Rows
    validation: Rows | None = None
    trained: str = ""
    boundary: int = 0
    cut: Cut | None = None

    @property
    def scales_loss(self) -> bool:
        """Whether DeepSpeed scales the loss, as fp16 needs."""
        return "fp16" in self.ds_config

    @property
    def zero_stage(self) -> int:
        return self.ds_config["zero_optimization"].get("stage", 0)


def make_batch(rows: Rows, numbers: list[int], window: list[int], job: Job, states: KeptStates | None = None) -> Batch:
    """A micro-batch on this rank's device, without padding.

    A rank left without rows runs one of the window's, unsupervised.

    Args:
        states: what is known of the rows: the layers below need not run.
    """
    chosen = numbers or window[:1]
    batch = one_row([rows.examples[i] for i in chosen], job.tokenizer, supervise=bool(numbers))
    return to_device(states.in_place_of_ids(batch, chosen) if states else batch, job.world.device)


def count_supervised(micro_batches: list[Batch], world: World) -> int:
    """The supervised tokens of some micro-batches of this rank; those of a pipeline count on its last stage."""
    return sum(len(batch["loss_positions"]) for batch in micro_batches) if world.sees_loss else 0


def summed_loss(engine: Any, batch: Batch, world: World) -> Tensor:
    """The loss of a micro-batch in nats, summed over its supervised tokens."""
    with autocast(world):
        return engine(**batch, num_items_in_batch=1, return_logits=False, use_cache=False).loss


def autocast(world: World) -> torch.autocast:
    """bf16 for the operations that profit, in a bf16 run; fp16 is DeepSpeed's own business.

    A forward pass uses a weight once: a cache of those that are cast would only hold them to its end.
    """
    return torch.autocast(world.device.type, world.dtype, world.dtype == torch.bfloat16, cache_enabled=False)
