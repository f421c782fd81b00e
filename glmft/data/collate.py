"""Examples to one micro-batch: one behind the other in one row, or padded."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from glmft.data.encode import IGNORED, Example
from glmft.data.packing import Packed
from glmft.device import handed_over


def one_row(examples: Sequence[Example], tokenizer: Any, supervise: bool = True) -> dict[str, Any]:
    """Documents one behind the other, without padding; those of packed rows too.

    Args:
        supervise: see `collate`.

    Returns:
        input_ids and labels [1, s], loss_positions [n], position_ids [1, s] (ChatGLM-6B: [1, 2, s]) that start again
        with each document, and on the host `documents`, their lengths. ChatGLM-6B: and `contexts`, how many tokens
        of each stand before its answer.
    """
    ids = torch.tensor([token for example in examples for token in example.ids])
    labels, targets, positions, documents, contexts = torch.full_like(ids, IGNORED), [], [], [], []
    first = 0
    for example in examples:
        for start, end in example.spans if supervise else ():
            labels[first + start : first + end] = ids[first + start : first + end]
            targets += range(first + start - 1, first + end - 1)
        first += len(example.ids)
        start = 0
        for length in getattr(example, "parts", (len(example.ids),)):
            positions.append(torch.tensor(tokenizer.positions(example.ids[start : start + length])))
            documents.append(length)
            if tokenizer.family == "glm":
                contexts.append(positions[-1][1].eq(0).sum().item())
            start += length
    batch = {
        "input_ids": ids[None],
        "labels": labels[None],
        "loss_positions": torch.tensor(targets, dtype=torch.long),
        "position_ids": torch.cat(positions, dim=-1)[None],
        "documents": tuple(documents),
    }
    return batch | {"contexts": tuple(contexts)} if contexts else batch


def collate(examples: Sequence[Example], tokenizer: Any, supervise: bool = True) -> dict[str, Any]:
    """Packed rows: see `one_row`. Others: pad on the right, where causal attention never looks: no mask is needed.

    ChatGLM-6B, which is not causal, gets its mask and positions [b, 2, s] from here: on the host, where the ids are.

    Args:
        supervise: False gives a micro-batch without any label, for a rank that has no record left in a window.

    Returns:
        input_ids and labels [b, s] (labels by position: -100 on prompt and padding), and loss_positions [n], the flat
        indices of the tokens whose successor has a label.
    """
    if any(isinstance(example, Packed) for example in examples):
        return one_row(examples, tokenizer, supervise)
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
    return batch | two_dimensional(examples, tokenizer, longest) if tokenizer.family == "glm" else batch


def two_dimensional(examples: Sequence[Example], tokenizer: Any, longest: int) -> dict[str, Tensor]:
    """attention_mask [b, s], 1 = real, and position_ids [b, 2, s]."""
    mask = torch.zeros(len(examples), longest, dtype=torch.long)
    positions = torch.zeros(len(examples), 2, longest, dtype=torch.long)
    for row, example in enumerate(examples):
        mask[row, : len(example.ids)] = 1
        positions[row, :, : len(example.ids)] = torch.tensor(tokenizer.positions(example.ids))
    return {"attention_mask": mask, "position_ids": positions}


def to_device(batch: dict[str, Any], device: Any) -> dict[str, Any]:
    """Copy a micro-batch without waiting for the accelerator."""
    return {k: handed_over(v, device) if isinstance(v, Tensor) else v for k, v in batch.items()}
