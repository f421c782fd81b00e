import pytest
import torch
from torch import nn

from glmft.models import head as module
from glmft.models.head import OutputLayer, positions_with_target, supervised_nll


@pytest.fixture
def parts():
    torch.manual_seed(0)
    hidden = torch.randn(2, 9, 8, requires_grad=True)
    labels = torch.randint(0, 11, (2, 9))
    labels[0, :4] = labels[1, 5:] = -100
    return hidden, labels, OutputLayer(8, 11, bias=True)


def test_positions_are_those_whose_successor_in_the_same_row_has_a_label():
    labels = torch.tensor([[7, -100, 5, 6], [-100, -100, -100, 9], [4, 3, -100, -100]])
    assert positions_with_target(labels).tolist() == [1, 2, 6, 8]


@pytest.mark.parametrize("chunk", [1, 3, 4, 1000])
def test_chunks_change_neither_loss_nor_gradients(chunk, parts, monkeypatch):
    hidden, labels, head = parts
    expected = nn.functional.cross_entropy(
        nn.functional.linear(hidden, head.weight, head.bias)[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    )
    wanted = torch.autograd.grad(expected, (hidden, head.weight, head.bias))
    monkeypatch.setattr(module, "CHUNK", chunk)
    loss = supervised_nll(hidden, labels, head)
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(torch.autograd.grad(loss, (hidden, head.weight, head.bias)), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_head_sees_supervised_positions_only(parts, monkeypatch):
    hidden, labels, head = parts
    rows = []
    monkeypatch.setattr(
        OutputLayer, "forward", lambda self, hidden, targets=None: rows.append(len(hidden)) or hidden.sum()
    )
    supervised_nll(hidden, labels, head)
    assert rows == [int((labels[:, 1:] != -100).sum())]


def test_a_head_that_an_adapter_wraps_runs_its_own_forward(parts):
    hidden, labels, head = parts
    wrapped = nn.Sequential(head)
    torch.testing.assert_close(supervised_nll(hidden, labels, wrapped), supervised_nll(hidden, labels, head))


def test_given_positions_and_count_are_used(parts):
    hidden, labels, head = parts
    positions = positions_with_target(labels)
    total = supervised_nll(hidden, labels, head) * len(positions)
    torch.testing.assert_close(supervised_nll(hidden, labels, head, positions, num_items_in_batch=1), total)
