"""Attention pieces that the families share: the eager backend, and prefixes beside every backend of transformers.

A prefix is visible to every token. Cached keys never hold it, so caches, masks and beams stay those of transformers.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from glmft.models.documents import Documents, attend_documents


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """softmax(q k / sqrt(d) + mask) v, spelled out; softmax in float32.

    Args:
        query: [b, heads, q, d]; key, value: [b, groups, k, d].
        attention_mask: additive, [b, 1, q, k].

    Returns:
        output [b, q, heads, d] and probabilities [b, heads, q, k].
    """
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.dropout(scores.softmax(-1, dtype=torch.float32).to(query.dtype), dropout, module.training)
    return (weights @ value).transpose(1, 2), weights


def attend(
    layer: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    prefix: Tensor | None,
    past_key_values: Cache | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Cache, prefix and the backend of `config._attn_implementation`.

    Args:
        layer: with `config`, `layer_idx`, `scaling` and what the backends of transformers ask for.
        query: [b, heads, s, d]; key, value: [b, groups, s, d]; all after rotation.
        attention_mask: what the backend takes, or `Documents`.
        prefix: [2, 1 or b, groups, P, d]; of documents, one of each or one of all.

    Returns:
        heads side by side [b, s, heads d] and, if eager, the attention probabilities.
    """
    if past_key_values is not None:
        key, value = past_key_values.update(key, value, layer.layer_idx)
    length = query.shape[2]
    backend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(layer.config._attn_implementation, eager_attention)
    kwargs = {"scaling": layer.scaling, "dropout": 0.0, **kwargs}
    if isinstance(attention_mask, Documents):
        return attend_documents(backend, layer, query, key, value, attention_mask, prefix, **kwargs).flatten(2), None
    if prefix is not None:
        query, key, value = with_prefix(layer.config, query, key, value, prefix, attention_mask)
    attended, weights = backend(layer, query, key, value, attention_mask, **kwargs)
    return attended[:, -length:].flatten(2), weights


def with_prefix(
    config: Any, query: Tensor, key: Tensor, value: Tensor, prefix: Tensor, attention_mask: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Put the prefix's keys and values in front.

    Where a backend would get plain `is_causal` (no mask, several queries), as many empty queries stand in front
    too: the score matrix is square again and the fast kernels apply. The caller drops those outputs.

    Args:
        query: [b, heads, s, d]; key, value: [b, groups, k, d]; prefix: [2, 1 or b, groups, P, d].
    """
    keys, values = prefix.expand(-1, query.shape[0], -1, -1, -1)
    if attention_mask is None and query.shape[2] > 1 and "flash" not in config._attn_implementation:
        query = F.pad(query, (0, 0, keys.shape[2], 0))
    return query, torch.cat((keys, key), dim=2), torch.cat((values, value), dim=2)


def mask_with_prefix(mask: Any, length: int) -> Any:
    """Make `length` more columns, visible to all, in front of any kind of mask that transformers makes."""
    if mask is None or isinstance(mask, Documents):
        return mask
    if not isinstance(mask, Tensor):
        return _block_mask_with_prefix(mask, length)
    visible = 0.0 if mask.is_floating_point() else 1  # additive; or boolean / 1 = real
    return F.pad(mask, (length, 0), value=visible)


def _block_mask_with_prefix(mask: Any, length: int) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k < length) | mask.mask_mod(b, h, q, (k - length).clamp(min=0))

    queries, keys = mask.seq_lengths
    rows = mask.kv_num_blocks.shape[0]
    return create_block_mask(visible, rows, None, queries, keys + length, device=mask.kv_num_blocks.device)
