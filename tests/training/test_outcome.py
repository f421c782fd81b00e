import pytest
import torch
from torch import nn

from glmft.data.encode import Example
from glmft.data.packing import join
from glmft.training.outcome import SAMPLED, Outcome, first_document, sample_weights


@pytest.mark.parametrize(
    ("outcome", "line"),
    [
        (
            Outcome("云", "川", 0.0321, True),
            "the first record is answered '川', before training '云': they differ; the trained weights moved by 3.21% "
            "of their size",
        ),
        (
            Outcome("云", "云", 0.5, True),
            "warning: the first record is answered as before training, '云'; the trained weights moved by 50% of their "
            "size",
        ),
        (
            Outcome("云", "云", 0.0, False),
            "warning: the first record is answered as before training, '云'; the trained weights did not move",
        ),
        (Outcome(None, None, 0.01, True), "the trained weights moved by 1% of their size"),
        (Outcome(None, None, None, True), "the trained weights moved"),
    ],
)
def test_the_line_compares_the_answers_and_says_how_far_the_weights_moved(outcome, line):
    assert outcome.line == line


def test_an_answer_of_several_lines_stays_one_line():
    line = Outcome("a\nb" * 500, "\x1b[2J", 0.1, True).line
    assert "\n" not in line
    assert "\x1b" not in line
    assert len(line) < 300


def test_a_sample_holds_only_what_trains_and_is_no_copy_of_the_whole():
    model = nn.ModuleDict({"large": nn.Linear(1000, 1000), "frozen": nn.Linear(3, 3), "small": nn.Linear(3, 3)})
    model["frozen"].requires_grad_(False)
    samples = sample_weights(model)
    assert samples.keys() == {"large.weight", "large.bias", "small.weight", "small.bias"}
    assert SAMPLED <= samples["large.weight"].numel() < 2 * SAMPLED
    assert torch.equal(samples["small.weight"], model["small"].weight.flatten())
    with torch.no_grad():
        model["small"].weight.add_(1)
    assert not torch.equal(samples["small.weight"], model["small"].weight.flatten())


def test_of_a_packed_row_the_first_document_is_answered():
    first, second = Example([1, 2, 3], ((1, 3),), "a:1"), Example([4, 5], ((1, 2),), "a:2")
    assert first_document(join([first, second])).ids == first.ids
    assert first_document(join([first, second])).spans == first.spans
    assert first_document(first) is first
