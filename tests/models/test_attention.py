"""Prefixes beside the masks of every backend, by what each token sees."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, create_mask

from glmft.models.attention import mask_with_prefix

P, ROWS, LENGTH = 3, 2, 5


@pytest.fixture
def visible():
    """[b, 1, q, k]: causal, with two tokens of padding left of the second row."""
    seen = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril().expand(ROWS, 1, LENGTH, LENGTH).clone()
    seen[1, :, :, :2] = False
    return seen


def with_all_of_a_prefix(seen: torch.Tensor) -> torch.Tensor:
    return torch.cat((torch.ones(*seen.shape[:-1], P, dtype=seen.dtype), seen), dim=-1)


def test_a_prefix_is_visible_to_every_token_under_a_boolean_mask(visible):
    assert torch.equal(mask_with_prefix(visible, P), with_all_of_a_prefix(visible))


def test_a_prefix_is_visible_to_every_token_under_an_additive_mask(visible):
    hidden = torch.finfo(torch.float32).min
    mask = mask_with_prefix(torch.zeros(visible.shape).masked_fill(~visible, hidden), P)
    assert torch.equal(mask == 0, with_all_of_a_prefix(visible))
    assert torch.equal(mask == hidden, ~with_all_of_a_prefix(visible))


def test_a_prefix_is_visible_to_every_token_under_a_mask_of_1_for_real():
    real = torch.tensor([[1, 1, 1], [0, 0, 1]])
    assert mask_with_prefix(real, P).tolist() == [[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 1]]


def test_a_prefix_is_visible_to_every_token_under_a_block_mask(visible):
    def seen(b, h, q, k):
        return visible[b, 0, q, k]

    mask = mask_with_prefix(create_block_mask(seen, ROWS, None, LENGTH, LENGTH, device="cpu"), P)
    assert mask.seq_lengths == (LENGTH, P + LENGTH)
    dense = create_mask(mask.mask_mod, ROWS, 1, LENGTH, P + LENGTH, device="cpu")
    assert torch.equal(dense, with_all_of_a_prefix(visible))


def test_no_mask_stays_none():
    assert mask_with_prefix(None, P) is None
