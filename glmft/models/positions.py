"""ChatGLM-6B's two-dimensional positions, and who sees whom.

A row is a context, then `<sop>` and an answer. Context tokens count on in the first dimension and stand at block 0;
the answer stays at the place that it fills ([gMASK], else [MASK]) and counts 1, 2, ... in the second. Context tokens
see the whole context, answer tokens also the answer up to themselves.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask


def two_dimensional_positions(config: Any, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Positions of whole rows.

    Args:
        config: with `bos_token_id`, `gmask_token_id` and `mask_token_id`.
        input_ids: [b, s].
        attention_mask: [b, s], 1 = real; padding on the left is not counted and gets (0, 0).

    Returns:
        [b, 2, s]: place and block.

    Raises:
        ValueError: a row without `<sop>`, or without [gMASK] and [MASK].
    """
    real = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
    column = (real.cumsum(1) - 1).clamp(min=0)
    is_start = (input_ids == config.bos_token_id) & (real > 0)
    is_gmask = (input_ids == config.gmask_token_id) & (real > 0)
    is_mask = (input_ids == config.mask_token_id) & (real > 0)
    is_gap = torch.where(is_gmask.any(1, keepdim=True), is_gmask, is_mask)
    for name, is_mark in (("<sop>", is_start), ("[gMASK] or [MASK]", is_gap)):
        if not is_mark.any(1).all():
            row = int((~is_mark.any(1)).nonzero()[0])
            raise ValueError(f"row {row} of input_ids holds no {name}; ChatGLM-6B's positions hang on it")
    start = column.gather(1, is_start.int().argmax(1, keepdim=True))
    gap = column.gather(1, is_gap.int().argmax(1, keepdim=True))
    place = torch.where(column < start, column, gap)
    block = (column - start + 1).clamp(min=0)
    return torch.stack((place, block), dim=1) * real[:, None]


def continued(position_ids: Tensor, new: int) -> Tensor:
    """[b, 2, s] -> [b, 2, s + new]: the place stays, the block counts on."""
    steps = torch.arange(1, new + 1, device=position_ids.device)
    last = position_ids[..., -1:]
    return torch.cat((position_ids, torch.stack((last[:, 0].expand(-1, new), last[:, 1] + steps), dim=1)), dim=-1)


def visibility(
    config: Any, hidden: Tensor, attention_mask: Tensor | None, past_key_values: Cache | None, position_ids: Tensor
) -> Any:
    """The mask for the attention backend: causal, and the context in both directions.

    Args:
        hidden: [b, s, h], for its shape, dtype and device.
        attention_mask: [b, past + s], 1 = real; or the official [b, 1, s, past + s], True = hidden; or None.
        position_ids: [b, 2, s]. Without an attention mask, (0, 0) starts a new document, and documents are kept apart.
    """
    if attention_mask is not None and attention_mask.dim() == 4:
        return official_mask(config, hidden, attention_mask)
    if past_key_values is not None and past_key_values.get_seq_length() > 0:  # what follows a context is causal
        return create_causal_mask(config, hidden, attention_mask, past_key_values)
    place, block = position_ids.expand(hidden.shape[0], -1, -1).unbind(1)
    if attention_mask is not None:
        documents, columns = torch.zeros_like(block), None
    else:
        starts = (place == 0) & (block == 0)
        documents, column = starts.long().cumsum(1), torch.arange(block.shape[1], device=block.device)
        columns = column - torch.where(starts, column, 0).cummax(1).values
    context = torch.where(block == 0, documents, -1)
    return create_causal_mask(config, hidden, attention_mask, past_key_values, columns, block_sequence_ids=context)


def official_mask(config: Any, hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """The official form, True = hidden, as the backend takes it; a token that sees nothing (padding) sees all."""
    if config._attn_implementation not in ("sdpa", "eager"):
        raise ValueError(f"{config._attn_implementation}: takes no mask of four dimensions; give one of two, 1 = real")
    visible = ~attention_mask[:, :, -hidden.shape[1] :].bool()
    visible = visible | ~visible.any(-1, keepdim=True)
    if config._attn_implementation == "sdpa":
        return visible
    return torch.zeros_like(visible, dtype=hidden.dtype).masked_fill(~visible, torch.finfo(hidden.dtype).min)
