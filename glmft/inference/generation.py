"""Answer many prompts: batches of similar length, padded on the left, greedy."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from glmft.data.encode import encode_prompt
from glmft.data.templates import answer_text


def answer(
    model: Any,
    tokenizer: Any,
    queries: Sequence[str | Sequence[dict[str, Any]]],
    *,
    batch_size: int = 16,
    max_src_len: int = 2048,
    max_new_tokens: int = 256,
    template: str = "default",
    advance: Callable[[int], Any] = lambda count: None,
    known: dict[int, str] | None = None,
    keep: Callable[[dict[int, str]], Any] = lambda answers: None,
) -> list[str]:
    """The model's answer to each query, in the order of the queries.

    Args:
        queries: questions, or conversations of messages with `role` and `content`.
        batch_size: prompts generated together.
        max_src_len: longest prompt, in tokens; longer ones are cut as in training.
        max_new_tokens: longest answer, in tokens.
        template: as in training.
        advance: called with the number of answers finished since its last call.
        known: answers that need not be generated, by the number of their query.
        keep: called with the answers of each batch.
    """
    known = known or {}
    prompts = [encode_prompt(tokenizer, query, max_src_len, template)[0] for query in queries]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    answers = [known.get(i, "") for i in range(len(prompts))]
    order = [i for i in order if i not in known]
    advance(len(known))
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        generated = generate(model, tokenizer, [prompts[i] for i in chosen], max_new_tokens)
        for i, ids in zip(chosen, generated, strict=True):
            answers[i] = answer_text(tokenizer, ids)
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
