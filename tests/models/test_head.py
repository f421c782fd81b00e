import math

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
def test_chunks_of_a_head_that_an_adapter_wraps_change_neither_loss_nor_gradients(chunk, parts, monkeypatch):
    hidden, labels, head = parts
    expected = nn.functional.cross_entropy(
        nn.functional.linear(hidden, head.weight, head.bias)[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    )
    wanted = torch.autograd.grad(expected, (hidden, head.weight, head.bias))
    monkeypatch.setattr(module, "CHUNK", chunk)
    loss = supervised_nll(hidden, labels, nn.Sequential(head))
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


# ------------------------------------------------------------------------------------- number formats


def half_precision_parts(words: int, seed: int = 0):
    """hidden [1, 65, 16], labels [1, 65] and a head over some words, in bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(1, 65, 16, generator=generator).bfloat16().requires_grad_()
    head = OutputLayer(16, words, bias=False).bfloat16()
    with torch.no_grad():
        head.weight.copy_(torch.randn(words, 16, generator=generator))
    return hidden, torch.randint(0, words, (1, 65), generator=generator), head


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("chunk", [7, 1000])
def test_the_loss_of_half_precision_logits_is_exact(chunk, wrapped, monkeypatch):
    """Of the logits as they are: bfloat16 has two digits, which is too few for a logarithm and a sum."""
    monkeypatch.setattr(module, "CHUNK", chunk)
    hidden, labels, head = half_precision_parts(words=37)
    logits = nn.functional.linear(hidden[0, :-1], head.weight).double()
    expected = nn.functional.cross_entropy(logits, labels[0, 1:])
    loss = supervised_nll(hidden, labels, nn.Sequential(head) if wrapped else head)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_gradient_of_half_precision_logits_is_exact(wrapped):
    """A head of zeros gives every word the same chance, so all is known: log(words), and (chance - hit) h / n."""
    words, tokens = 256, 64
    hidden, labels, head = half_precision_parts(words)
    with torch.no_grad():
        head.weight.zero_()
    loss = supervised_nll(hidden, labels, nn.Sequential(head) if wrapped else head)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(words), rel=1e-6)
    hits = nn.functional.one_hot(labels[0, 1:], words).double()
    expected = (1 / words - hits).T @ hidden[0, :-1].detach().double() / tokens
    never = hits.sum(0) == 0  # words that are no label, whose gradient is small
    torch.testing.assert_close(head.weight.grad[never].double(), expected[never], rtol=5e-3, atol=0)
    torch.testing.assert_close(head.weight.grad.double(), expected, rtol=5e-3, atol=1e-3)


def test_the_loss_is_the_sum_of_minus_log_probabilities_by_hand():
    """Two words, logits 0 and x: a label of the first costs log(1 + e^x), of the second log(1 + e^-x)."""
    head = OutputLayer(1, 2, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[0.0], [1.0]]))
    hidden = torch.tensor([[[2.0], [-1.0], [0.5], [9.0]]])
    labels = torch.tensor([[-100, 0, 1, -100]])  # token 0 predicts the first word, token 1 the second
    costs = math.log(1 + math.exp(2)), math.log(1 + math.exp(1))
    assert supervised_nll(hidden, labels, head).item() == pytest.approx(sum(costs) / 2)
    assert supervised_nll(hidden, labels, head, num_items_in_batch=8).item() == pytest.approx(sum(costs) / 8)
