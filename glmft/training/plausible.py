"""What a run shows while it trains if it cannot be right."""

import math
from typing import Any

import torch
from torch import Tensor

MANY_ZEROS = 10  # steps in a row
LOWEST_FIRST_LOSS = 0.01  # nats a token; above: one more than a guess among all tokens


class Doubts:
    """Looks at every step without waiting for the accelerator.

    Args:
        tokens: in the vocabulary.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.run: Tensor | int = 0  # of steps whose gradient is exactly zero
        self.longest: Tensor | int = 0
        self.told = False

    def note(self, step: int, loss: float, norm: Any) -> str | None:
        """Count one step; a warning about the loss of the first.

        Args:
            step: from 1.
            loss: in nats a supervised token.
            norm: of its gradient; a number, or a tensor that stays where it is.
        """
        self.run = (self.run + 1) * (torch.as_tensor(norm) == 0)
        self.longest = torch.maximum(self.run, torch.as_tensor(self.longest, device=self.run.device))
        return first_loss_line(loss, self.tokens) if step == 1 else None

    def of_gradients(self) -> str | None:
        """A warning about gradients of zero, once. The host waits here."""
        if self.told or int(self.longest) < MANY_ZEROS:
            return None
        self.told = True
        return (
            f"warning: the gradient was exactly 0 for {MANY_ZEROS} steps: nothing is learned; does what is trained "
            "(--train_type and its settings) reach the answers, or does a dropout near 1 or a number format lose it?"
        )


def first_loss_line(loss: float, tokens: int) -> str | None:
    """A warning where the loss before any training cannot be that of a fitting model and new data.

    Args:
        loss: of the first optimizer step, in nats a supervised token.
        tokens: in the vocabulary.
    """
    guess = math.log(tokens)
    if loss < LOWEST_FIRST_LOSS:
        return (
            f"warning: the first loss is {loss:.2g}, below {LOWEST_FIRST_LOSS}: the answers are known already; is the "
            "base trained on these records, or does the prompt hold the answer?"
        )
    if loss > guess + 1:
        return (
            f"warning: the first loss is {loss:.2f}, worse than a guess among all tokens (ln {tokens} = {guess:.2f}): "
            "another model's tokenizer or weights, or a --template that the base does not know?"
        )
    return None
