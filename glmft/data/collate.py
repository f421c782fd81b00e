"""Examples to one padded micro-batch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from glmft.data.encode import IGNORED, Example
from glmft.data.packing import Packed


def collate(examples: Sequence[Example], tokenizer: Any, supervise: bool = True) -> dict[str, Tensor]:
    """Pad on the right. Causal attention never looks there, so no mask is needed and the fast kernels apply.

    ChatGLM-6B, which is not causal, gets its mask and positions [b, 2, s] from here: on the host, where the ids are.

    Args:
        supervise: False gives a micro-batch without any label, for a rank that has no record left in a window.

    Returns:
        input_ids and labels [b, s] (labels by position: -100 on prompt and padding), and loss_positions [n], the flat
        indices of the tokens whose successor has a label.
    """
    longest = max(len(e.ids) for e in examples)
    ids = torch.full((len(examples), longest), tokenizer.pad_token_id)
    labels = torch.full((len(examples), longest), IGNORED)
    positions: list[int] = []
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        for first, end in example.spans if supervise else ():
            labels[row, first:end] = ids[row, first:end]
            positions += range(row * longest + first - 1, row * longest + end - 1)
    batch = {"input_ids": ids, "labels": labels, "loss_positions": torch.tensor(positions, dtype=torch.long)}
    if any(isinstance(example, Packed) for example in examples):
        return batch | {"position_ids": packed_positions(examples, tokenizer, longest)}
    return batch | two_dimensional(examples, tokenizer, longest) if tokenizer.family == "glm" else batch


def packed_positions(examples: Sequence[Example], tokenizer: Any, longest: int) -> Tensor:
    """position_ids [b, s] or, for ChatGLM-6B, [b, 2, s], which start again with every document and with the padding."""
    rows = []
    for example in examples:
        parts, documents, start = getattr(example, "parts", (len(example.ids),)), [], 0
        for length in parts:
            documents.append(torch.tensor(tokenizer.positions(example.ids[start : start + length])))
            start += length
        padding = torch.arange(longest - start).expand(*documents[0].shape[:-1], -1)
        if tokenizer.family == "glm":
            padding = torch.stack((torch.arange(longest - start), torch.zeros(longest - start, dtype=torch.long)))
        rows.append(torch.cat((*documents, padding), dim=-1))
    return torch.stack(rows)


def two_dimensional(examples: Sequence[Example], tokenizer: Any, longest: int) -> dict[str, Tensor]:
    """attention_mask [b, s], 1 = real, and position_ids [b, 2, s]."""
    mask = torch.zeros(len(examples), longest, dtype=torch.long)
    positions = torch.zeros(len(examples), 2, longest, dtype=torch.long)
    for row, example in enumerate(examples):
        mask[row, : len(example.ids)] = 1
        positions[row, :, : len(example.ids)] = torch.tensor(tokenizer.positions(example.ids))
    return {"attention_mask": mask, "position_ids": positions}


def to_device(batch: dict[str, Tensor], device: Any) -> dict[str, Tensor]:
    """Copy a micro-batch without waiting for the accelerator."""
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}
