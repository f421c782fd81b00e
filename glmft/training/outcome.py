"""What training came to, in a line: the answer to the first record before and after, and how far the weights moved."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from glmft.data.encode import Example
from glmft.data.packing import Packed
from glmft.data.templates import answer_text
from glmft.dist import gathered, whole_shape
from glmft.errors import one_line, shortened
from glmft.inference.generation import generate
from glmft.settings.answers import DecodingSettings
from glmft.training.evaluation import split_row
from glmft.training.job import Job, autocast
from glmft.training.state import TrainerState

FEW_TOKENS, LONGEST_SHOWN = 16, 60
SAMPLED = 2048  # numbers of each parameter: no second copy of the weights is made


@dataclass(frozen=True)
class Outcome:
    """
    Args:
        before, after: the start of the model's answer to the first record; None: it was not asked.
        change: the norm of what was added to the trained weights over their own, by a sample; None: all began at zero.
        is_moved: whether any of the sampled weights is another now.
    """

    before: str | None
    after: str | None
    change: float | None
    is_moved: bool

    @property
    def line(self) -> str:
        moved = "" if self.change is None else f" by {100 * self.change:.3g}% of their size"
        weights = f"the trained weights moved{moved}" if self.is_moved else "the trained weights did not move"
        warning = "" if self.is_moved and (self.before is None or self.before != self.after) else "warning: "
        if self.before is None or self.after is None:
            return f"{warning}{weights}"
        old, new = (shortened(repr(one_line(text, 400)), LONGEST_SHOWN) for text in (self.before, self.after))
        if self.before == self.after:
            return f"{warning}the first record is answered as before training, {old}; {weights}"
        return f"{warning}the first record is answered {new}, before training {old}: they differ; {weights}"


def sample_weights(model: nn.Module) -> dict[str, Tensor]:
    """Some numbers of each parameter that trains, on the CPU. Collective under ZeRO-3."""
    samples = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            step = max(1, whole_shape(parameter).numel() // SAMPLED)
            with gathered([parameter]):
                samples[name] = parameter.detach().reshape(-1)[::step].to("cpu", copy=True)
    return samples


def first_answer(engine: Any, job: Job) -> str | None:
    """The start of the model's greedy answer to the first record; None if that shall not be asked, or no rank has all
    of the model. Collective.

    Nothing is drawn, so that the random states stay as they are.
    """
    if not job.config.compare_answers or job.cut:
        return None
    prompt, _ = split_row(first_document(job.rows.examples[0]), job.tokenizer)
    decoding = DecodingSettings(max_new_tokens=FEW_TOKENS)
    engine.eval()
    with autocast(job.world):
        [ids] = generate(engine.module, job.tokenizer, [prompt], decoding, synced=job.world.size > 1)
    engine.train()
    return answer_text(job.tokenizer, ids)


def note_first_answer(engine: Any, state: TrainerState, job: Job) -> None:
    """Ask for it where a run begins; one that goes on has it from there. Collective."""
    if state.step == 0:
        state.first_answer = first_answer(engine, job)


def first_document(row: Example) -> Example:
    """The first of the documents that a row is packed of."""
    if not isinstance(row, Packed):
        return row
    end = row.parts[0]
    return Example(row.ids[:end], tuple(span for span in row.spans if span[1] <= end), row.place)


def outcome_of(engine: Any, began_with: dict[str, Tensor], state: TrainerState, job: Job) -> Outcome:
    """What became of weights that began with a sample. Collective."""
    before = state.first_answer
    after = first_answer(engine, job) if before is not None else None
    added = size = 0.0
    is_moved = False
    for name, now in sample_weights(engine.module).items():
        start = began_with[name].to(now.dtype)  # fp16 rounds what began in fp32
        is_moved = is_moved or not torch.equal(now, start)
        added += (now.double() - start.double()).square().sum().item()
        size += start.double().square().sum().item()
    return Outcome(before, after, (added / size) ** 0.5 if size else None, is_moved)
