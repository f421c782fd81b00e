"""Documents that stand one behind the other in a row without padding, each of which attends to itself alone.

Where they begin and end comes from the host, with the batch: nobody looks for it in the values of the positions, which
an accelerator would have to be waited for, and no mask is made of [tokens, tokens].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Documents:
    """
    Args:
        lengths: tokens of each, in order; together those of the row.
        contexts: how many tokens of each see one another in both directions, from its start; None: all are causal.
        kept: what the layers share: small masks by shape, boundaries on the device.
    """

    lengths: tuple[int, ...]
    contexts: tuple[int, ...] | None = None
    kept: dict[Any, Any] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, config: Any, lengths: Sequence[int] | None, contexts: Sequence[int] | None = None) -> Self | None:
        """None where they are not told, or where the attention backend finds them in the positions."""
        backend = config._attn_implementation
        if lengths is None or "flex" in backend or ("flash" in backend and contexts is not None):
            return None
        return cls(tuple(lengths), None if contexts is None else tuple(contexts))

    def boundaries(self, device: torch.device, in_front: int = 0) -> dict[str, Any]:
        """As variable-length kernels take them.

        Args:
            in_front: keys of virtual tokens before each document's own.
        """
        if in_front not in self.kept:
            counts = {"q": list(self.lengths), "k": [n + in_front for n in self.lengths]}
            starts = {side: torch.tensor([0, *accumulate(n)], dtype=torch.int32) for side, n in counts.items()}
            self.kept[in_front] = {
                **{f"cu_seq_lens_{side}": t.to(device, non_blocking=True) for side, t in starts.items()},
                **{f"max_length_{side}": max(n) for side, n in counts.items()},
            }
        return self.kept[in_front]

    def causal_mask(self, query: Tensor, key: Tensor, additive: bool) -> Tensor:
        """[q, k] for queries that are the last of the keys: True, or 0 if additive, where one is seen."""
        shape = (query.shape[2], key.shape[2], additive)
        if shape not in self.kept:
            mask = torch.ones(shape[:2], dtype=torch.bool, device=query.device).tril(shape[1] - shape[0])
            if additive:
                mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)
            self.kept[shape] = mask[None, None]
        return self.kept[shape]


def attend_documents(
    backend: Callable,
    layer: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    documents: Documents,
    prefix: Tensor | None,
    **kwargs: Any,
) -> Tensor:
    """Attention of a row, document by document.

    Args:
        backend: an attention function of transformers'.
        query: [1, heads, s, d]; key, value: [1, groups, s, d].
        prefix: [2, 1 or documents, groups, P, d], in front of each.

    Returns:
        [1, s, heads, d].
    """
    sizes = list(documents.lengths)
    queries, keys, values = (list(t.split(sizes, dim=2)) for t in (query, key, value))
    in_front = 0
    if prefix is not None:
        in_front = prefix.shape[-2]
        fronts = prefix.expand(-1, len(sizes), -1, -1, -1).split(1, dim=1)  # [2, 1, groups, P, d] each
        keys = [torch.cat((front[0], k), dim=2) for front, k in zip(fronts, keys, strict=True)]
        values = [torch.cat((front[1], v), dim=2) for front, v in zip(fronts, values, strict=True)]
    if "flash" in layer.config._attn_implementation:
        key, value = torch.cat(keys, dim=2), torch.cat(values, dim=2)
        return backend(layer, query, key, value, None, **kwargs, **documents.boundaries(query.device, in_front))[0]
    attended = []
    for q, k, v, context in zip(queries, keys, values, documents.contexts or [0] * len(sizes), strict=True):
        if context:  # sees itself in both directions
            seen = in_front + context
            attended.append(
                backend(layer, q[:, :, :context], k[:, :, :seen], v[:, :, :seen], None, **kwargs, is_causal=False)[0]
            )
        if context < q.shape[2]:
            attended.append(_causal(backend, layer, q[:, :, context:], k, v, documents, **kwargs))
    return torch.cat(attended, dim=1)


def _causal(
    backend: Callable, layer: nn.Module, query: Tensor, key: Tensor, value: Tensor, documents: Documents, **kwargs: Any
) -> Tensor:
    """Queries that are the last of the keys, each of which sees the keys up to its own; [1, q, heads, d]."""
    length, before = query.shape[2], key.shape[2] - query.shape[2]
    mask = None
    if layer.config._attn_implementation.endswith("eager"):
        mask = documents.causal_mask(query, key, additive=True)
    elif before > length:
        mask = documents.causal_mask(query, key, additive=False)
    elif before:  # empty queries make the scores square: the kernels then need no mask
        query = F.pad(query, (0, 0, before, 0))
    return backend(layer, query, key, value, mask, **kwargs)[0][:, -length:]
