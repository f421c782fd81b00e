"""Documents of a row, attended each by itself: one after the other, and by a kernel for variable lengths."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from glmft.models import documents
from glmft.models.attention import eager_attention
from glmft.models.documents import Documents, attend_documents

HEADS, GROUPS, SIZE, LENGTHS = 4, 2, 8, (3, 1, 6, 2)
CASES = {"causal": (None, 0), "two-way": ((2, 1, 0, 2), 0), "prefix": (None, 3), "both": ((2, 0, 5, 1), 2)}


def layer(backend: str) -> SimpleNamespace:
    config = SimpleNamespace(_attn_implementation=backend)
    return SimpleNamespace(config=config, num_key_value_groups=HEADS // GROUPS, is_causal=True, training=True)


def tensors(in_front: int, **kind):
    torch.manual_seed(0)
    shapes = [(1, HEADS, sum(LENGTHS), SIZE), *[(1, GROUPS, sum(LENGTHS), SIZE)] * 2]
    shapes += [(2, len(LENGTHS), GROUPS, in_front, SIZE)] if in_front else []
    found = [torch.randn(shape, **kind, requires_grad=True) for shape in shapes]
    return found if in_front else [*found, None]


def attended(backend: str, contexts, in_front: int, **kind):
    """What comes out, and its gradients with respect to queries, keys, values and prefix."""
    *inputs, prefix = tensors(in_front, **kind)
    function = ALL_ATTENTION_FUNCTIONS.get_interface(backend, eager_attention)
    row = Documents(LENGTHS, contexts)
    out = attend_documents(function, layer(backend), *inputs, row, prefix, scaling=SIZE**-0.5, dropout=0.0)
    weights = torch.linspace(-1, 1, out.numel(), device=out.device, dtype=out.dtype).view_as(out)
    asked = inputs if prefix is None else [*inputs, prefix]
    return [out, *torch.autograd.grad((out * weights).sum(), asked)]


def one_by_one(query, key, value, starts_q, starts_k, longest_q, longest_k, *, scale, window_size, enable_gqa):
    """What the kernel for variable lengths is documented to compute; its causal mask is aligned with the last key."""
    assert enable_gqa
    assert longest_q == starts_q.diff().max()
    assert longest_k == starts_k.diff().max()
    found = []
    for q, k, v in zip(
        *(
            t.tensor_split(s[1:-1].long())
            for t, s in zip((query, key, value), (starts_q, starts_k, starts_k), strict=True)
        ),
        strict=True,
    ):
        seen = torch.ones(len(q), len(k), dtype=torch.bool)
        seen = seen.tril(len(k) - len(q)) if window_size == (-1, 0) else seen
        heads = (t.transpose(0, 1) for t in (q, k, v))
        found.append(F.scaled_dot_product_attention(*heads, seen, scale=scale, enable_gqa=True).transpose(0, 1))
    return torch.cat(found)


@pytest.mark.parametrize(("contexts", "in_front"), CASES.values(), ids=CASES)
def test_each_document_attends_to_itself_alone_whatever_the_backend(contexts, in_front):
    for one, other in zip(attended("sdpa", contexts, in_front), attended("eager", contexts, in_front), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("contexts", "in_front"), CASES.values(), ids=CASES)
def test_the_kernel_for_variable_lengths_gets_every_document_once(contexts, in_front, monkeypatch):
    expected = attended("sdpa", contexts, in_front)
    monkeypatch.setattr(documents, "has_varlen", lambda query: True)
    monkeypatch.setattr(documents, "varlen_attn", one_by_one)
    for one, other in zip(attended("sdpa", contexts, in_front), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("contexts", "in_front"), CASES.values(), ids=CASES)
def test_torch_takes_what_its_kernel_is_given_and_looks_at_no_value(contexts, in_front, monkeypatch):
    monkeypatch.setattr(documents, "has_varlen", lambda query: True)
    found = attended("sdpa", contexts, in_front, device="meta", dtype=torch.bfloat16)
    assert found[0].shape == (1, sum(LENGTHS), HEADS, SIZE)


@pytest.mark.gpu
@pytest.mark.parametrize(("contexts", "in_front"), CASES.values(), ids=CASES)
def test_the_kernel_on_a_gpu_computes_what_eager_attention_computes(contexts, in_front):
    found = attended("sdpa", contexts, in_front, device="cuda", dtype=torch.bfloat16)
    expected = attended("eager", contexts, in_front, device="cuda", dtype=torch.bfloat16)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0.05)


def test_only_half_precision_on_a_recent_gpu_goes_to_the_kernel(monkeypatch):
    for dtype, size, capability, fits in (
        (torch.bfloat16, 128, (8, 0), True),
        (torch.float16, 64, (9, 0), True),
        (torch.float32, 128, (9, 0), False),
        (torch.float16, 128, (7, 5), False),
        (torch.bfloat16, 20, (9, 0), False),
        (torch.bfloat16, 320, (9, 0), False),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        query = SimpleNamespace(dtype=dtype, shape=(1, 1, 5, size), device=SimpleNamespace(type="cuda"))
        assert documents.has_varlen(query) == fits
    assert not documents.has_varlen(torch.empty(1, 1, 5, 64, dtype=torch.bfloat16))
