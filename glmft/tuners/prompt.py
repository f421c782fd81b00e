"""Prompt tuning and P-Tuning: train embeddings of virtual tokens in front of the text."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from glmft.tuners.base import Tuner, train_only


@dataclass
class Prompt(Tuner):
    """
    Args:
        pre_seq_len: virtual tokens.
        prompt_encoder: `none` (Lester et al., 2021), or `mlp` or `lstm` over the embeddings (Liu et al., 2021).
        prompt_hidden_size: width inside the encoder; None: the model's own.
    """

    pre_seq_len: int
    prompt_encoder: str
    prompt_hidden_size: int | None = None
    name: ClassVar[str] = "prompt"
    usual_rates: ClassVar[tuple[float, float]] = (1e-4, 0.5)

    @property
    def reads_base_weights(self) -> str:
        return "the prompt, which starts from word embeddings,"

    def apply(self, model: nn.Module) -> nn.Module:
        config = model.config
        config.prompt_seq_len = self.pre_seq_len
        config.prompt_encoder, config.prompt_hidden_size = self.prompt_encoder, self.prompt_hidden_size
        model.base_model.add_prompt_encoder()
        words = model.get_input_embeddings().weight
        encoder = model.base_model.prompt_encoder.to(words.device)
        initialise(encoder, words)
        train_only(model, {name for name, _ in model.named_parameters() if "prompt_encoder." in name})
        return model


@torch.no_grad()
def initialise(encoder: nn.Module, words: torch.Tensor) -> None:
    """Fill in every value: virtual tokens start as words drawn from the vocabulary, the rest as torch's defaults."""
    for module in encoder.modules():
        if isinstance(module, nn.Linear | nn.LSTM):
            module.reset_parameters()
    drawn = torch.randint(len(words), (encoder.embedding.num_embeddings,)).to(words.device)
    encoder.embedding.weight.copy_(words[drawn])
