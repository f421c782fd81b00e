"""Virtual tokens in front of the text; among them the prefix encoder of P-Tuning v2 (Liu et al., 2021)."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache

from glmft.models.prompt import PromptEncoder

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


class VirtualTokens:
    """A part of a model: keys and values that stand in front of every layer's own, from one of two sources.

    `prefix_encoder` (where `config.pre_seq_len` is set) gives them for each layer: P-Tuning v2. `prompt_encoder` (where
    `config.prompt_seq_len` is set) gives embeddings, which go through the layers once and leave their keys and values
    there; they take the first positions. They see one another and never the text, so one pass serves a whole batch.
    """

    config: Any
    blocks: nn.ModuleList
    prefix_encoder: PrefixEncoder
    prompt_encoder: PromptEncoder
    dropout: nn.Dropout

    def add_prefix_encoder(self) -> None:
        """Make `prefix_encoder` after `config.pre_seq_len`, `prefix_projection` and `prefix_hidden_size`."""
        config = self.config
        self.prefix_encoder = PrefixEncoder(
            config.pre_seq_len,
            *config.key_value_shape,
            config.prefix_projection,
            embedding_size=config.prefix_embedding_size,
            hidden_size=config.prefix_hidden_size or config.hidden_size,
        )
        self.dropout = nn.Dropout(PREFIX_DROPOUT).train(self.training)

    def add_prompt_encoder(self) -> None:
        """Make `prompt_encoder` after `config.prompt_seq_len`, `prompt_encoder` and `prompt_hidden_size`."""
        config = self.config
        self.prompt_encoder = PromptEncoder(
            config.prompt_seq_len, config.hidden_size, config.prompt_encoder, config.prompt_hidden_size
        )

    def add_virtual_tokens(self) -> None:
        """Make what the configuration asks for."""
        if self.config.pre_seq_len:
            self.add_prefix_encoder()
        if self.config.prompt_seq_len:
            self.add_prompt_encoder()

    def prompt_geometry(self, hidden: Tensor) -> tuple[Any, tuple[Tensor, Tensor]]:
        """Mask and rotary tables of the virtual tokens [1, P, h] alone."""
        raise NotImplementedError

    def prefix(self, dtype: torch.dtype, past_key_values: Cache | None, rows: int) -> Tensor | None:
        """[L, 2, 1 or rows, g, P, d], or None without any: one of each row where dropout draws for each.

        It is computed once for each cache that generation carries on.
        """
        if not (self.config.pre_seq_len or self.config.prompt_seq_len):
            return None
        kept = getattr(past_key_values, "prefix", None)
        if kept is None:
            if self.config.pre_seq_len:
                kept = self.prefix_encoder().to(dtype)[:, :, None]
                if self.training and self.dropout.p:
                    kept = self.dropout(kept.expand(-1, -1, rows, -1, -1, -1))
            else:
                kept = self.prompt_keys_values(dtype)[:, :, None]
            if past_key_values is not None:
                past_key_values.prefix = kept
        return kept

    def prompt_keys_values(self, dtype: torch.dtype) -> Tensor:
        """Send the virtual tokens through the layers.

        Their activations are few and are kept, also where those of the text are computed again: gradient checkpointing
        would leave no cache to read the keys and values from.
        """
        hidden, cache = self.prompt_encoder().to(dtype)[None], DynamicCache(config=self.config)
        mask, rotary = self.prompt_geometry(hidden)
        for layer in self.blocks:
            checkpointing, layer.gradient_checkpointing = layer.gradient_checkpointing, False
            hidden = layer(hidden, mask, rotary, None, past_key_values=cache)
            layer.gradient_checkpointing = checkpointing
        return torch.stack([torch.cat((layer.keys, layer.values)) for layer in cache.layers])
