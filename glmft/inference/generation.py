"""Answer many prompts: batches of similar length, padded on the left, greedy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from glmft.data.dataset import lengths_of
from glmft.data.encode import encode_prompt
from glmft.data.templates import answer_text
from glmft.settings.config import DataSettings, PredictConfig

NOT_RECORDED = 2049  # longest row where nothing tells how a model was trained


@dataclass
class AnswerReport:
    """What was cut of prompts and answers.

    Args:
        longest: the longest prompt as it was given to the model, in tokens.
        unfinished: answers that `max_new_tokens` ended.
    """

    prompts: int = 0
    cut: int = 0
    longest: int = 0
    unfinished: int = 0

    def take_prompt(self, prompt: Sequence[int], was_cut: bool) -> None:
        self.prompts += 1
        self.cut += was_cut
        self.longest = max(self.longest, len(prompt))

    def lines(self, config: PredictConfig, built_for: int | None) -> list[str]:
        """A warning for each way in which something was cut.

        Args:
            built_for: tokens that the model was built for, as its config.json says.
        """
        limit = next(name for name in ("max_source_length", "max_src_len", "max_len") if getattr(config, name))
        most, lines = self.longest + config.max_new_tokens, []
        if self.cut:
            lines.append(
                f"{self.cut} of {self.prompts} prompts were cut to {self.longest} tokens; a larger --{limit} "
                f"than {getattr(config, limit)} keeps more"
            )
        if self.unfinished:
            lines.append(
                f"{self.unfinished} of {self.prompts} answers were ended by --max_new_tokens {config.max_new_tokens}"
            )
        if built_for and most > built_for:
            lines.append(
                f"prompt and answer may take {most} tokens, but the model was built for {built_for} (seq_length)"
            )
        return [f"warning: {line}" for line in lines]


def answer(
    model: Any,
    tokenizer: Any,
    queries: Sequence[str | Sequence[dict[str, Any]]],
    *,
    batch_size: int = 16,
    max_src_len: int | None = None,
    max_new_tokens: int = 256,
    template: str | None = None,
    source_prefix: str | None = None,
    report: AnswerReport | None = None,
    advance: Callable[[int], Any] = lambda count: None,
    known: dict[int, str] | None = None,
    keep: Callable[[dict[int, str]], Any] = lambda answers: None,
) -> list[str]:
    """The model's answer to each query, in the order of the queries.

    Args:
        queries: questions, or conversations of messages with `role` and `content`.
        batch_size: prompts generated together.
        max_src_len: longest prompt, in tokens; longer ones are cut as in training. None: as the model was trained, else
            2048.
        max_new_tokens: longest answer, in tokens.
        template: None: as the model was trained, else `default`.
        source_prefix: what stands before every question that does not begin with it. None: as the model was trained.
        report: takes note of what was cut.
        advance: called with the number of answers finished since its last call.
        known: answers that need not be generated, by the number of their query.
        keep: called with the answers of each batch.
    """
    known, report = known or {}, report or AnswerReport()
    trained = getattr(model, "trained_with", None) or DataSettings(max_len=NOT_RECORDED)
    template, longest = (
        template or trained.template,
        max_src_len or lengths_of(trained, tokenizer.family).longest_prompt,
    )
    prefix = trained.source_prefix if source_prefix is None else source_prefix
    prompts = []
    for query in queries:
        asked = prefix + query if isinstance(query, str) and not query.startswith(prefix) else query
        prompt, was_cut = encode_prompt(tokenizer, asked, longest, template)
        report.take_prompt(prompt, was_cut)
        prompts.append(prompt)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    answers = [known.get(i, "") for i in range(len(prompts))]
    order = [i for i in order if i not in known]
    advance(len(known))
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        generated = generate(model, tokenizer, [prompts[i] for i in chosen], max_new_tokens)
        for i, ids in zip(chosen, generated, strict=True):
            answers[i] = answer_text(tokenizer, ids)
            report.unfinished += not set(tokenizer.stop_ids) & set(ids)
        keep({i: answers[i] for i in chosen})
        advance(len(chosen))
    return answers


@torch.no_grad()
def generate(
    model: Any, tokenizer: Any, prompts: list[list[int]], max_new_tokens: int, synced: bool = False
) -> list[list[int]]:
    """Greedy continuations of prompts given as ids, without them.

    Args:
        synced: go on with empty passes until every rank has finished, as ZeRO-3 needs.
    """
    batch = tokenizer.pad({"input_ids": prompts}, padding=True, return_tensors="pt").to(model.device)
    ids = model.generate(
        **batch,
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.stop_ids,
        pad_token_id=tokenizer.pad_token_id,
        synced_gpus=synced,
    )
    return ids[:, batch["input_ids"].shape[1] :].tolist()
