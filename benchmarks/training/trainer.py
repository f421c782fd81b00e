"""transformers' Trainer on transformers' GLM with peft: its defaults, its best flags, and a loss at labels only."""

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks.training.arms import expert_loss
from benchmarks.training.columns import RATE, WINDOW, Case, Padding, Steps, steps_of, their_model
from benchmarks.training.turns import Turns
from glmft.data.collate import collate
from glmft.data.encode import IGNORED, Example


class ByTurns(TrainerCallback):
    """A turn lasts from the end of one step to that of the next: data, forward, backward, optimizer, bookkeeping."""

    def __init__(self, turns: Turns):
        self.turns = turns

    def on_train_begin(self, *given: Any, **named: Any) -> None:
        self.turns.wait()

    def on_step_end(self, *given: Any, **named: Any) -> None:
        self.turns.wait()


class Noting(Trainer):
    """The Trainer as it is; its losses are noted."""

    turns: Turns

    def training_step(self, *given: Any, **named: Any) -> Tensor:
        loss = super().training_step(*given, **named)
        self.turns.note(loss)
        return loss


class Expert(Noting):
    """With a loss of its own, summed over the supervised tokens."""

    summed_loss: Callable[[nn.Module, dict[str, Tensor]], Tensor]

    def compute_loss(
        self, model: nn.Module, inputs: dict, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        return self.summed_loss(model, inputs) / num_items_in_batch


def run_trainer(case: Case, order: str, turns: Turns, has_best_flags: bool = False, is_expert: bool = False) -> None:
    """A case of the table on the CPU.

    Args:
        order: of the records, see `steps_of`; the Trainer takes them as they come. Grouping by length is one of its
            flags, whose sampler gives windows like these.
    """
    model = their_model(case)
    turns.loaded()
    loss = (lambda model, batch: expert_loss(model, batch, case.first_position)) if is_expert else None
    accumulation = WINDOW // case.column.rows
    train_by_turns(model, steps_of(case, order), turns, loss, has_best_flags, accumulation, use_cpu=True)


def train_by_turns(
    model: nn.Module,
    steps: Steps,
    turns: Any,
    summed_loss: Callable[[nn.Module, dict[str, Tensor]], Tensor] | None,
    has_best_flags: bool,
    accumulation: int = 1,
    **flags: Any,
) -> None:
    """All steps in the Trainer.

    Args:
        summed_loss: of a batch that `collate` gives; None: the Trainer's own, of `DataCollatorForSeq2Seq`.
        flags: of `TrainingArguments`.
    """
    rows = [row for step in steps for micro_batch in step for row in micro_batch]
    if has_best_flags:  # what the defaults spend a little on: a figure of each step, and a look for NaN in it
        flags = {"logging_strategy": "no", "logging_nan_inf_filter": False, "dataloader_pin_memory": False, **flags}
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=len(steps),
            per_device_train_batch_size=len(steps[0][0]),
            gradient_accumulation_steps=accumulation,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            train_sampling_strategy="sequential",
            remove_unused_columns=summed_loss is None,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            **flags,
        )
        if summed_loss:
            trainer = Expert(model, arguments, lambda given: collate(given, Padding()), rows)
            trainer.summed_loss = summed_loss
        else:
            data = [features(row) for row in rows]
            trainer = Noting(model, arguments, DataCollatorForSeq2Seq(tokenizer()), data)
        trainer.turns = turns
        trainer.add_callback(ByTurns(turns))
        trainer.train()


def features(row: Example) -> dict[str, list[int]]:
    """What a data set holds for the Trainer."""
    labels = torch.full((len(row.ids),), IGNORED)
    for first, end in row.spans:
        labels[first:end] = torch.tensor(row.ids[first:end])
    return {"input_ids": row.ids, "labels": labels.tolist()}


def tokenizer() -> PreTrainedTokenizerFast:
    """One that can pad."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"[PAD]": 0}, unk_token="[PAD]")), pad_token="[PAD]", padding_side="right"
    )
