"""The language-model head and the loss: only where a label is, and without logits that are kept."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from glmft.models.nll import summed_nll

CHUNK = 512  # rows of logits that a head under an adapter makes at once


class OutputLayer(nn.Linear):
    """hidden [..., h] -> logits [..., vocabulary]; or, with targets [n], the summed loss of hidden [n, h].

    All of the loss lies inside one call, so that ZeRO-3 gathers the weight once, however many tokens a rank has.
    """

    def forward(self, hidden: Tensor, targets: Tensor | None = None) -> Tensor:
        if targets is None:
            return super().forward(hidden)
        return summed_nll(hidden, targets, self.weight, self.bias)


def takes_targets(head: nn.Module) -> bool:
    """Whether a head gives the loss itself: as it is, or as a copy that an adapter trains whole."""
    return isinstance(head, OutputLayer) or (
        hasattr(head, "modules_to_save") and isinstance(head.original_module, OutputLayer)
    )


def nll_of(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    """The summed loss of hidden [n, h] by whatever gives logits; of many rows, the logits are made twice."""
    if len(hidden) <= CHUNK:
        return _nll(head, hidden, targets)
    parts = zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
    return sum(checkpoint(_nll, head, h, t, use_reentrant=False) for h, t in parts)


def _nll(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(head(hidden).float(), targets, reduction="sum")


def positions_with_target(labels: Tensor) -> Tensor:
    """Flat indices [n] into [b, s] of the tokens whose successor in the row has a label."""
    has_target = F.pad(labels[:, 1:] != -100, (0, 1))
    return has_target.flatten().nonzero().squeeze(1)


def supervised_nll(
    hidden: Tensor,
    labels: Tensor | None,
    head: nn.Module,
    positions: Tensor | None = None,
    num_items_in_batch: int | Tensor | None = None,
    shift_labels: Tensor | None = None,
    is_chosen: bool = False,
) -> Tensor:
    """Summed loss over supervised tokens divided by `num_items_in_batch` (default: by their count).

    Args:
        hidden: [b, s, h] after the final norm.
        labels: [b, s], unshifted, -100 = not supervised; token i predicts label i + 1.
        positions: [n], what `positions_with_target` gives; pass it to spare the host's wait for an accelerator.
        is_chosen: whether `hidden` [1, n, h] is of those positions alone already.
        shift_labels: [b, s], in place of `labels`: token i predicts label i.
    """
    if shift_labels is not None:
        positions = (shift_labels != -100).flatten().nonzero().squeeze(1)
        targets = shift_labels.flatten()[positions]
    else:
        positions = positions_with_target(labels) if positions is None else positions
        targets = labels.flatten()[positions + 1]
    chosen = hidden.flatten(0, 1) if is_chosen else hidden.flatten(0, 1).index_select(0, positions)
    # Where an adapter changes the logits, its own forward must run.
    total = head(chosen, targets) if takes_targets(head) else nll_of(head, chosen, targets)
    return total / (torch.numel(positions) if num_items_in_batch is None else num_items_in_batch)
