"""Loss and gradients of a linear head in one pass: the product with the vocabulary is made once, and never kept.

Where the head is frozen, the vocabulary comes block by block. A block gives its part of the softmax's sum and of the
expected word vector, which is the gradient with respect to hidden states but for the target's own; sums of earlier
blocks are scaled as the sum grows (online softmax: Milakov and Gimelshein, 2018). Where it trains, its own gradient
needs finished probabilities: then rows come block by block, each with the whole vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# Logits in one block of words: a CPU wants them in its cache, an accelerator wants large products.
ON_CPU, ON_ACCELERATOR = 1 << 19, 1 << 26
ROWS = 1024  # of hidden states in a block, at most
NARROWEST = 256  # words in a block, at least
WHOLE = 1 << 25  # logits in one block of rows with all words


def summed_nll(hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Negative log likelihood in nats, summed over the rows, in float32.

    Products are in the number format of autocast, else of `hidden`; everything is added up in float32.

    Args:
        hidden: [n, h].
        targets: [n].
        weight: [V, h]; bias: [V].
    """
    kind = hidden.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        hidden = hidden.to(torch.get_autocast_dtype(kind))
    trains = weight.requires_grad or (bias is not None and bias.requires_grad)
    if torch.is_grad_enabled() and (hidden.requires_grad or trains):
        return _SummedNll.apply(hidden, weight, bias, targets, trains)
    return _frozen(hidden, weight, bias, targets, wanted=False)[0]


class _SummedNll(torch.autograd.Function):
    """Its gradients are made on the way forward, for a loss that counts once; backward scales them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, trains: bool) -> Tensor:
        if trains:
            total, *gradients = _trained(hidden, weight, bias, targets)
        else:
            total, *gradients = _frozen(hidden, weight, bias, targets)
        ctx.dtypes = [None if t is None else t.dtype for t in (hidden, weight, bias)]
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        wanted = zip(ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad, strict=False)
        gradients = [(g * scale).to(dtype) if g is not None and needed else None for g, dtype, needed in wanted]
        return *gradients, *[None] * (5 - len(gradients))


def _frozen(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, wanted: bool = True
) -> tuple[Tensor, Tensor | None]:
    """The summed loss and, where wanted, the gradient [n, h] in float32 with respect to hidden states."""
    blocks = zip(hidden.split(ROWS), targets.split(ROWS), strict=True)
    losses, gradients = zip(*(_online(rows, weight, bias, words, wanted) for rows, words in blocks), strict=True)
    return sum(losses), torch.cat(gradients) if wanted else None


def _online(
    rows: Tensor, weight: Tensor, bias: Tensor | None, words: Tensor, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """`_frozen` of some rows."""
    highest = rows.new_full((len(rows), 1), -torch.inf, dtype=torch.float32)  # logit so far
    total = torch.zeros_like(highest)  # of exp(logit - highest)
    of_target = torch.zeros_like(highest)  # its logit
    expected = torch.zeros_like(rows, dtype=torch.float32) if wanted else None  # word vector, times total
    budget = ON_CPU if rows.device.type == "cpu" else ON_ACCELERATOR
    width = max(NARROWEST, min(budget // max(1, len(rows)), 2 * budget // weight.shape[1]))
    for first in range(0, len(weight), width):
        block = weight[first : first + width].to(rows.dtype)
        logits = F.linear(rows, block, None if bias is None else bias[first : first + width].to(rows.dtype)).float()
        place = (words - first)[:, None]
        is_here = (place >= 0) & (place < len(block))
        of_target = torch.where(is_here, logits.gather(1, place.clamp(0, len(block) - 1)), of_target)
        chances = logits.softmax(1)
        top = logits.amax(1, keepdim=True)
        before, highest = highest, torch.maximum(highest, top)
        fade = (before - highest).exp_()
        share = (top - highest).exp_().div_(chances.amax(1, keepdim=True))  # the block's part of `total`
        total.mul_(fade).add_(share)
        if wanted:
            expected.mul_(fade).addcmul_((chances.to(rows.dtype) @ block).float(), share)
    loss = (highest - of_target + total.log()).sum()
    return loss, expected.div_(total).sub_(weight[words]) if wanted else None


def _trained(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The summed loss and all gradients, in float32."""
    of_hidden = torch.empty_like(hidden, dtype=torch.float32)
    of_weight = torch.zeros_like(weight, dtype=torch.float32)
    of_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
    total = hidden.new_zeros((), dtype=torch.float32)
    weight, bias = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
    size = max(1, WHOLE // len(weight))
    for first in range(0, len(hidden), size):
        rows, words = hidden[first : first + size], targets[first : first + size, None]
        log_chances = F.linear(rows, weight, bias).float().log_softmax(1)
        total -= log_chances.gather(1, words).sum()
        errors = log_chances.exp_().scatter_add_(1, words, torch.full_like(words, -1, dtype=torch.float32))
        if of_bias is not None:
            of_bias += errors.sum(0)
        errors = errors.to(hidden.dtype)
        of_hidden[first : first + size] = errors @ weight
        of_weight += errors.T @ rows
    return total, of_hidden, of_weight, of_bias
