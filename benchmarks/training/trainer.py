"""transformers' Trainer on transformers' GLM with peft: its defaults, its best flags, and a loss at labels only."""

import tempfile
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
from benchmarks.training.columns import RATE, WINDOW, Case, Padding, steps_of, their_model
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
    """With logits at labels only."""

    case: Case

    def compute_loss(
        self, model: nn.Module, inputs: dict, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        return expert_loss(model, inputs, self.case) / num_items_in_batch


def run_trainer(case: Case, order: str, turns: Turns, has_best_flags: bool = False, is_expert: bool = False) -> None:
    """
    Args:
        order: of the records, see `steps_of`; the Trainer takes them as they come. Grouping by length is one of its
            flags, whose sampler gives windows like these.
    """
    model = their_model(case)
    turns.loaded()
    steps = steps_of(case, order)
    rows = [row for step in steps for micro_batch in step for row in micro_batch]
    # What the defaults spend a little on: a figure of each step, and a look for NaN in it.
    flags = {"logging_strategy": "no", "logging_nan_inf_filter": False, "dataloader_pin_memory": False}
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=len(steps),
            per_device_train_batch_size=case.column.rows,
            gradient_accumulation_steps=WINDOW // case.column.rows,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            train_sampling_strategy="sequential",
            remove_unused_columns=not is_expert,
            use_cpu=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            **flags if has_best_flags else {},
        )
        kind = Expert if is_expert else Noting
        collator = (lambda given: collate(given, Padding())) if is_expert else DataCollatorForSeq2Seq(tokenizer())
        data = rows if is_expert else [features(row) for row in rows]
        trainer = kind(model, arguments, collator, data, callbacks=[ByTurns(turns)])
        trainer.turns, trainer.case = turns, case
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
