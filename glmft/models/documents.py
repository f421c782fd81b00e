"""Documents that stand one behind the other in a row without padding, each of which attends to itself alone.

Where they begin and end comes from the host, with the batch: nobody looks for it in the values of the positions, which
an accelerator would have to be waited for, and no mask is made of [tokens, tokens].
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glmft.device import handed_over

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    varlen_attn = None

# It came to torch without these.
HAS_KERNEL = varlen_attn and inspect.signature(varlen_attn).parameters.keys() >= {"window_size", "enable_gqa"}


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
        """As transformers' flash attention takes them.

        Args:
            in_front: keys of virtual tokens before each document's own.
        """
        counts = {"q": self.lengths, "k": tuple(n + in_front for n in self.lengths)}
        return {
            **{f"cu_seq_lens_{side}": self.starts(n, device) for side, n in counts.items()},
            **{f"max_length_{side}": max(n) for side, n in counts.items()},
        }

    def starts(self, lengths: tuple[int, ...], device: torch.device) -> Tensor:
        """[parts + 1]: where parts of these lengths begin, one behind the other, and where the last one ends."""
        if lengths not in self.kept:
            self.kept[lengths] = handed_over(torch.tensor([0, *accumulate(lengths)], dtype=torch.int32), device)
        return self.kept[lengths]

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
    causal: list[bool] = []
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for q, k, v, context in zip(queries, keys, values, documents.contexts or [0] * len(sizes), strict=True):
        if context:  # sees itself in both directions
            seen = in_front + context
            causal.append(False)
            parts.append((q[:, :, :context], k[:, :, :seen], v[:, :, :seen]))
        if context < q.shape[2]:
            causal.append(True)
            parts.append((q[:, :, context:], k, v))
    if layer.config._attn_implementation.endswith("sdpa") and has_varlen(query):
        return _varlen(parts, causal, documents, kwargs["scaling"])
    attended = [
        _causal(backend, layer, *part, documents, **kwargs)
        if is_causal
        else backend(layer, *part, None, **kwargs, is_causal=False)[0]
        for part, is_causal in zip(parts, causal, strict=True)
    ]
    return torch.cat(attended, dim=1)


def has_varlen(query: Tensor) -> bool:
    """Whether torch's own kernel for variable lengths takes queries: of half precision, on an Ampere GPU or later."""
    if not HAS_KERNEL or query.device.type != "cuda" or query.dtype not in (torch.float16, torch.bfloat16):
        return False
    fits = query.shape[-1] % 8 == 0 and query.shape[-1] <= 256
    return fits and torch.cuda.get_device_capability(query.device) >= (8, 0)


def _varlen(
    parts: list[tuple[Tensor, Tensor, Tensor]], causal: list[bool], documents: Documents, scale: float
) -> Tensor:
    """All causal parts in one call of the kernel, and in one more those that see themselves in both directions.

    Args:
        parts: query [1, heads, q, d]; key, value [1, groups, k, d]; queries are the last of the keys.
        causal: of each part.

    Returns:
        [1, tokens, heads, d], in the order of the parts.
    """
    attended: list[Tensor] = [parts[0][0]] * len(parts)
    for kind in set(causal):
        chosen = [i for i, is_causal in enumerate(causal) if is_causal == kind]
        query, key, value = (torch.cat([parts[i][n][0] for i in chosen], dim=1).transpose(0, 1) for n in range(3))
        queries, keys = (tuple(parts[i][n].shape[2] for i in chosen) for n in (0, 1))
        out = varlen_attn(
            query,
            key,
            value,
            documents.starts(queries, query.device),
            documents.starts(keys, query.device),
            max(queries),
            max(keys),
            scale=scale,
            window_size=(-1, 0) if kind else (-1, -1),
            enable_gqa=True,
        )
        for i, part in zip(chosen, out.split(queries), strict=True):
            attended[i] = part
    return torch.cat(attended)[None]


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
