"""What `predict` answers, without its files."""

from collections.abc import Sequence
from typing import Any

from glmft.data.encode import encode_prompt
from glmft.inference.generation import AnswerReport, answer_batches, batches
from glmft.settings.answers import DecodingSettings


def predicted(
    model: Any, tokenizer: Any, queries: Sequence[Any], template: str = "default", **decoding: Any
) -> list[str]:
    """An answer to each question or conversation."""
    settings = DecodingSettings(**decoding)
    prompts = [encode_prompt(tokenizer, query, 4096, template)[0] for query in queries]
    groups = batches([len(prompt) for prompt in prompts], settings, 16)
    answers = answer_batches(model, tokenizer, prompts, groups, settings, AnswerReport())
    return [answers[i] for i in range(len(prompts))]
