import math

import pytest
import torch

from glmft.training.plausible import Doubts, first_loss_line


def warned_at(norms) -> list[int]:
    """The steps after which a warning comes."""
    doubts, steps = Doubts(1000), []
    for step, norm in enumerate(norms, 1):
        assert doubts.note(step, 3.0, norm) is None
        steps += [step] if doubts.of_gradients() else []
    return steps


@pytest.mark.parametrize("number", [float, torch.tensor], ids=["numbers", "tensors"])
def test_ten_gradients_of_zero_in_a_row_are_told_once(number):
    assert warned_at([number(0.0)] * 25) == [10]
    assert warned_at([number(1.0)] + [number(0.0)] * 10) == [11]
    assert warned_at(([number(0.0)] * 9 + [number(1e-30)]) * 3) == []
    assert warned_at([number(math.inf), number(math.nan)] * 10) == []


def test_zeros_that_ended_before_the_line_is_asked_for_are_told_too():
    doubts = Doubts(1000)
    for step, norm in enumerate([0.0] * 10 + [1.0] * 5, 1):
        doubts.note(step, 3.0, norm)
    assert doubts.of_gradients().startswith("warning: the gradient was exactly 0 for 10 steps")


@pytest.mark.parametrize(
    ("loss", "part"),
    [
        (0.0099, "below 0.01: the answers are known already"),
        (0.01, None),
        (math.log(1000) + 0.99, None),
        (math.log(1000) + 1.01, "worse than a guess among all tokens (ln 1000 = 6.91)"),
    ],
)
def test_a_first_loss_that_no_fitting_model_has_is_told(loss, part):
    line = first_loss_line(loss, 1000)
    assert part in line if part else line is None
    doubts = Doubts(1000)
    assert [doubts.note(step, loss, 1.0) for step in (1, 2)] == [line, None]
