"""The prefix encoder of P-Tuning v2 (Liu et al., 2021): one trained key and value a layer and virtual token."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

PREFIX_DROPOUT = 0.1


class PrefixEncoder(nn.Module):
    """Keys and values of `pre_seq_len` virtual tokens for every layer, under the official parameter names.

    Args:
        pre_seq_len: virtual tokens P.
        layers, heads, head_dim: of the keys and values; their product times 2 is the width of one virtual token.
        projection: reparameterise by embedding -> linear -> tanh -> linear, as the official code does.
        embedding_size: width of the embedding when projected (the official ChatGLM2 code takes the full width).
        hidden_size: width inside the projection.
    """

    def __init__(
        self,
        pre_seq_len: int,
        layers: int,
        heads: int,
        head_dim: int,
        projection: bool,
        embedding_size: int,
        hidden_size: int,
    ):
        super().__init__()
        self.shape = (pre_seq_len, layers, 2, heads, head_dim)
        width = layers * 2 * heads * head_dim
        self.embedding = nn.Embedding(pre_seq_len, embedding_size if projection else width)
        if projection:
            self.trans = nn.Sequential(nn.Linear(embedding_size, hidden_size), nn.Tanh(), nn.Linear(hidden_size, width))

    def forward(self) -> Tensor:
        """[layers, 2 (key, value), heads, P, head_dim], in the encoder's own dtype."""
        tokens = torch.arange(self.shape[0], device=self.embedding.weight.device)
        prefix = self.embedding(tokens)
        if hasattr(self, "trans"):
            prefix = self.trans(prefix)
        return prefix.view(self.shape).permute(1, 2, 3, 0, 4)


class WithPrefix:
    """To be mixed into a model with `config`, and `prefix_encoder` and `dropout` where `config.pre_seq_len` is set."""

    config: Any
    prefix_encoder: PrefixEncoder
    dropout: nn.Dropout

    def prefix(self, dtype: torch.dtype, past_key_values: Cache | None) -> Tensor | None:
        """[L, 2, g, P, d], or None without a prefix. It is computed once for each cache that generation carries on."""
        if not self.config.pre_seq_len:
            return None
        kept = getattr(past_key_values, "prefix", None)
        if kept is None:
            kept = self.dropout(self.prefix_encoder()).to(dtype)
            if past_key_values is not None:
                past_key_values.prefix = kept
        return kept
