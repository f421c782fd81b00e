"""What a run looks at while it trains: the loss of validation rows, and scores of answers to some of them."""

from collections.abc import Sequence
from typing import Any

import torch

from glmft.data.encode import Example
from glmft.data.sampler import Plan
from glmft.data.templates import answer_text
from glmft.dist import gather_objects, sum_over_ranks
from glmft.inference.generation import generate
from glmft.inference.metrics import text_scores, triple_f1, triple_lines
from glmft.settings.answers import DecodingSettings
from glmft.training.job import Job, autocast, count_supervised, make_batch, summed_loss
from glmft.training.signals import StopSignals

LOWER_IS_BETTER = ("eval_loss",)
UNDER_WAY = 4  # validation batches that go through a pipeline together, for each of its stages


def evaluate(engine: Any, job: Job, stop: StopSignals) -> dict[str, float]:
    """Figures by name: `eval_loss`, and with `predict_with_generate` the scores of `answer_scores`. Collective.

    Empty if the run was asked to stop meanwhile.
    """
    engine.eval()
    loss = validation_loss(engine, job, stop)
    scores: dict[str, float] | None = {}
    if loss is not None and job.config.predict_with_generate:
        scores = answer_scores(engine, job, stop)
    engine.train()
    return {} if loss is None or scores is None else {"eval_loss": loss, **scores}


@torch.no_grad()
def validation_loss(engine: Any, job: Job, stop: StopSignals) -> float | None:
    """Mean loss in nats over all supervised tokens of the validation rows, each of which is seen once by one rank."""
    world, rows = job.world, job.validation
    plan = Plan(len(rows.lengths), job.config.per_device_eval_batch_size, 1, world.data_size, seed=0)
    order = longest_first(range(plan.records), rows.lengths)
    loss, supervised = torch.zeros((), device=world.device), 0
    together = plan.window_size * (UNDER_WAY * world.stages if job.cut else 1)
    for first in range(0, len(order), together):
        if stop.agreed():
            return None
        part = order[first : first + together]
        windows = [part[i : i + plan.window_size] for i in range(0, len(part), plan.window_size)]
        batches = [make_batch(rows, plan.micro_batches(w, world.data_rank)[0], w, job) for w in windows]
        losses = engine.losses(batches) if job.cut else [summed_loss(engine, batch, world) for batch in batches]
        loss += sum(losses)
        supervised += count_supervised(batches, world)
    total, count = sum_over_ranks(world, loss.item(), supervised)
    return total / count


def answer_scores(engine: Any, job: Job, stop: StopSignals) -> dict[str, float] | None:
    """ROUGE and BLEU of the model's own answers to the first `eval_samples` validation rows; F1 if they are triples.

    A row's question is what stands before its last learned answer. The rows are dealt out to the ranks, which run
    equally many batches: under ZeRO-3 every one of them is collective.
    """
    world, size = job.world, job.config.per_device_eval_batch_size
    rows, decoding = answered_rows(job), DecodingSettings(max_new_tokens=job.config.max_new_tokens)
    order = longest_first(rows, job.validation.lengths)
    answers: dict[int, str] = {}
    for first in range(0, len(order), size * world.size):
        if stop.agreed():
            return None
        window = order[first : first + size * world.size]
        numbers = window[world.rank :: world.size] or window[:1]
        prompts = [split_row(job.validation.examples[i], job.tokenizer)[0] for i in numbers]
        with autocast(world):
            ids = generate(engine.module, job.tokenizer, prompts, decoding, synced=world.size > 1)
        answers |= {i: answer_text(job.tokenizer, answer) for i, answer in zip(numbers, ids, strict=True)}
    answers = {i: text for part in gather_objects(world, answers) for i, text in part.items()}
    return scores([answers[i] for i in rows], labels(job))


def longest_first(numbers: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """Row numbers, so that what needs most memory comes first and rows of like length share a batch."""
    return sorted(numbers, key=lengths.__getitem__, reverse=True)


def answered_rows(job: Job) -> range:
    """The validation rows that the model answers: the first `eval_samples`."""
    return range(min(job.config.eval_samples, len(job.validation.lengths)))


def labels(job: Job) -> list[str]:
    """What those rows would have the model answer."""
    rows = (job.validation.examples[i] for i in answered_rows(job))
    return [answer_text(job.tokenizer, split_row(row, job.tokenizer)[1]) for row in rows]


def has_triples(job: Job) -> bool:
    """Whether those answers can have an F1."""
    return any(triple_lines(label) for label in labels(job))


def split_row(row: Example, tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids of a row up to its last learned answer, and those of that answer."""
    first, end = row.spans[-1]
    if row.ids[first] == tokenizer.bos_token_id:  # some templates have ChatGLM-6B learn the start mark too
        first += 1
    return row.ids[:first], row.ids[first:end]


def scores(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Text scores; for references that are triples also the mean `f1`."""
    by_name = text_scores(predictions, references)
    if any(triple_lines(reference) for reference in references):
        by_name["f1"] = triple_f1(predictions, references)["f1"]
    return by_name


def is_better(metric: str, value: float, best: float | None) -> bool:
    """Whether a figure beats the best so far."""
    return best is None or (value < best if metric in LOWER_IS_BETTER else value > best)
