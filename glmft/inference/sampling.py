"""Draw tokens so that a record's answer hangs on nothing but the record: not on its batch, its rank or a resume.

transformers draws for a whole batch from one generator. Here every record has draws of its own.
"""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from glmft.settings.answers import SamplingSettings

TOP_K = 50  # that of transformers, which the official chat() takes too
CHAT = {"glm": {"temperature": 0.95, "top_p": 0.7}}  # of the official chat()
CHAT_OF_OTHERS = {"temperature": 0.8, "top_p": 0.8}


def sampling(settings: SamplingSettings, family: str) -> dict[str, Any]:
    """Temperature, top_p and top_k: as given, else as the family's official chat() has them."""
    chosen = {**CHAT.get(family, CHAT_OF_OTHERS), "top_k": TOP_K}
    given = {name: value for name in chosen if (value := getattr(settings, name)) is not None}
    return chosen | given


class OwnDraws(LogitsProcessor):
    """Leaves each row the one token that its own random numbers draw.

    Args:
        seeds: of the rows.
    """

    def __init__(self, seeds: Sequence[str]):
        self.draws = [random.Random(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits [b, vocabulary] to zero for the token drawn, minus infinity for all others."""
        shares = scores.softmax(-1, dtype=torch.float64).cumsum(-1)  # [b, vocabulary]
        points = torch.tensor([[draw.random()] for draw in self.draws], dtype=torch.float64, device=scores.device)
        # The first token whose share ends beyond the point: never one of no probability.
        drawn = torch.searchsorted(shares, points * shares[:, -1:], right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(-1, drawn, 0.0)


def own_draws(settings: SamplingSettings, family: str, numbers: Sequence[int | str]) -> LogitsProcessorList:
    """Processors after which the likeliest token is one drawn as the settings say.

    Args:
        numbers: of the rows' records.
    """
    chosen = sampling(settings, family)
    processors = LogitsProcessorList([TemperatureLogitsWarper(float(chosen["temperature"]))])
    if chosen["top_k"]:
        processors.append(TopKLogitsWarper(chosen["top_k"]))
    if chosen["top_p"] < 1:
        processors.append(TopPLogitsWarper(chosen["top_p"]))
    processors.append(OwnDraws([f"{settings.seed}-{number}" for number in numbers]))
    return processors
