"""The ways to train that are compared. Each takes its turns at steps of the same records, with the same weights.

Every arm is a function of a case and of `Turns`: it builds its model, calls `turns.loaded`, and waits before each step.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from benchmarks.training.columns import (
    LONGEST,
    OPTIMIZER,
    RATE,
    Case,
    Padding,
    our_model,
    settings,
    steps_of,
    supervised,
    their_model,
    trained,
)
from benchmarks.training.turns import Turns
from glmft.data.collate import collate
from glmft.data.encode import Example
from glmft.device import keep_freed_memory
from glmft.settings.config import TrainConfig


@dataclass(frozen=True)
class Arm:
    """
    Args:
        title: in the table.
        order: of its records, see `steps_of`.
        run: the arm itself.
        setting: of glmft, which it needs; the arm is left out where there is none of that name.
        columns: where it is run; (): everywhere.
    """

    title: str
    order: str
    run: Callable[[Case, Turns], None]
    setting: str | None = None
    columns: tuple[str, ...] = ()

    @property
    def is_other(self) -> bool:
        """Whether nothing of glmft's computes."""
        return "glmft" not in self.title

    def is_in(self, column: str) -> bool:
        is_there = self.setting is None or self.setting in {f.name for f in fields(TrainConfig)}
        return is_there and column in (self.columns or (column,))


def plain_loop(case: Case, turns: Turns) -> None:
    """All logits of rows padded to the longest, in float32; records in the order of the file; torch's AdamW."""
    model = their_model(case)

    def loss(rows: list[Example]) -> Tensor:
        batch = collate(rows, Padding())
        logits = model(input_ids=batch["input_ids"], use_cache=False).logits.float()
        return F.cross_entropy(
            logits[:, :-1].contiguous().flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
        )

    bare_loop(model, loss, steps_of(case, "file"), turns)


def raw_torch(case: Case, turns: Turns) -> None:
    """The expert's forward pass in a bare loop."""
    model = their_model(case)

    def loss(rows: list[Example]) -> Tensor:
        return expert_loss(model, collate(rows, Padding()), case.first_position)

    bare_loop(model, loss, steps_of(case, "grouped"), turns)


def raw_torch_kept(case: Case, turns: Turns) -> None:
    """The same with the C library told to keep freed memory, as MALLOC_MMAP_THRESHOLD_ and its like do."""
    keep_freed_memory()
    raw_torch(case, turns)


def bare_loop(model: nn.Module, summed_loss: Callable[[list[Example]], Tensor], steps: list, turns: Turns) -> None:
    turns.loaded()
    optimizer = torch.optim.AdamW(trained(model), RATE, weight_decay=0.0)
    for step in turns.each(steps):
        for rows in step:
            loss = summed_loss(rows) / supervised(step)
            loss.backward()
            turns.note(loss)
        clip_grad_norm_(trained(model), OPTIMIZER["max_grad_norm"])
        optimizer.step()
        optimizer.zero_grad()


def expert_loss(model: nn.Module, batch: dict[str, Tensor], virtual: int = 0) -> Tensor:
    """Summed over the supervised tokens, whose logits alone are computed; rows are padded on the right, without a mask.

    Args:
        model: transformers' GLM, with peft or without.
        batch: what `collate` gives.
        virtual: tokens of a prefix.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    ids, chosen = batch["input_ids"], batch["loss_positions"]
    given: dict[str, Any] = {"use_cache": False}
    if virtual:
        positions = torch.arange(virtual, virtual + ids.shape[1], device=ids.device)[None]
        given = {"past_key_values": model.get_prompt(len(ids)), "position_ids": positions}
    hidden = base.model(input_ids=ids, **given).last_hidden_state
    targets = batch["labels"].flatten()[chosen + 1]
    return F.cross_entropy(base.lm_head(hidden.flatten(0, 1)[chosen]).float(), targets, reduction="sum")


class Summed(nn.Module):
    """A model whose forward pass is a summed loss, for DeepSpeed's engine."""

    def __init__(self, model: nn.Module, loss: Callable[[list[Example]], Tensor]):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, rows: list[Example]) -> Tensor:
        return self.loss(rows)


def bare_deepspeed(case: Case, turns: Turns) -> None:
    """The expert's forward pass in a loop around DeepSpeed's engine."""
    model = their_model(case)
    deepspeed_loop(model, lambda rows: expert_loss(model, collate(rows, Padding()), case.first_position), case, turns)


def ours_padded(case: Case, turns: Turns) -> None:
    """glmft's model on padded rows."""
    model = our_model(case)

    def loss(rows: list[Example]) -> Tensor:
        batch = collate(rows, Padding())
        positions = torch.arange(case.first_position, case.first_position + batch["input_ids"].shape[1])[None]
        return model(**batch, position_ids=positions, num_items_in_batch=1, return_logits=False, use_cache=False).loss

    deepspeed_loop(model, loss, case, turns)


def deepspeed_loop(model: nn.Module, loss: Callable, case: Case, turns: Turns) -> None:
    import deepspeed

    from benchmarks.training.ours import deepspeed_config
    from glmft.dist import start

    turns.loaded()
    start("cpu", "fp32")
    optimizer = torch.optim.AdamW(trained(model), RATE, weight_decay=0.0)
    config = deepspeed_config(settings(case), "fp32", case.hidden)
    engine = deepspeed.initialize(model=Summed(model, loss), optimizer=optimizer, config=config)[0]
    for step in turns.each(steps_of(case, "grouped")):
        for i, rows in enumerate(step):
            engine.set_gradient_accumulation_boundary(i == len(step) - 1)
            part = engine(rows) / supervised(step)
            engine.backward(part, scale_wrt_gas=False)
            engine.step()
            turns.note(part)


def ours(case: Case, turns: Turns) -> None:
    """glmft as it trains: rows of documents."""
    from benchmarks.training.ours import run_loop

    run_loop(case, steps_of(case, "grouped"), turns)


def ours_packed(case: Case, turns: Turns) -> None:
    from benchmarks.training.ours import run_loop

    run_loop(case, steps_of(case, "packed"), turns, packing=True, max_len=LONGEST)


def ours_cached(case: Case, turns: Turns) -> None:
    """With what comes into the trained layer read from the disk, where it is before the first turn."""
    from benchmarks.training.ours import CACHED, run_loop

    run_loop(case, steps_of(case, "grouped"), turns, **{CACHED: True})


def trainer_defaults(case: Case, turns: Turns) -> None:
    from benchmarks.training.trainer import run_trainer

    run_trainer(case, "file", turns)


def trainer_flags(case: Case, turns: Turns) -> None:
    from benchmarks.training.trainer import run_trainer

    run_trainer(case, "grouped", turns, has_best_flags=True)


def trainer_expert(case: Case, turns: Turns) -> None:
    from benchmarks.training.trainer import run_trainer

    run_trainer(case, "grouped", turns, has_best_flags=True, is_expert=True)


ARMS = {
    "plain": Arm("plain loop, all logits", "file", plain_loop),
    "trainer": Arm("Trainer + peft, defaults", "file", trainer_defaults),
    "trainer-flags": Arm("Trainer + peft, best flags", "grouped", trainer_flags),
    "trainer-expert": Arm("the same, logits at labels only", "grouped", trainer_expert),
    "torch": Arm("that forward pass in raw torch", "grouped", raw_torch),
    "torch-kept": Arm("raw torch, freed memory kept", "grouped", raw_torch_kept),
    "deepspeed": Arm("that forward pass in bare DeepSpeed", "grouped", bare_deepspeed),
    "padded": Arm("glmft's model, padded", "grouped", ours_padded),
    "glmft": Arm("glmft", "grouped", ours),
    "packing": Arm("glmft --packing", "packed", ours_packed),
    "cached": Arm(
        "glmft --cache_frozen_activations", "grouped", ours_cached, "cache_frozen_activations", columns=("freeze",)
    ),
}
