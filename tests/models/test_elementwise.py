"""Steps number by number give what their formulas give, gradients too, and keep nothing but their input."""

import pytest
import torch
from torch.nn import functional as F

from glmft.models.elementwise import apply_rotary, rms_norm, swiglu

EPS = 1e-5


def plain_norm(x, weight):
    wide = x.double()
    return wide / (wide.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * weight.double()


def plain_swiglu(x):
    gate, up = x.double().chunk(2, dim=-1)
    return F.silu(gate) * up


def plain_rotary(x, angles):
    """As complex numbers: a pair times e^(i angle)."""
    turned = torch.view_as_complex(x.double()[..., :6].unflatten(-1, (-1, 2)).contiguous())
    turned = torch.view_as_real(turned * torch.polar(torch.ones_like(angles).double(), angles.double()))
    return torch.cat((turned.flatten(-2), x[..., 6:].double()), dim=-1)


def steps():
    torch.manual_seed(0)
    weight, angles = torch.randn(8), torch.randn(2, 1, 5, 3)
    return {
        "norm": (torch.randn(2, 5, 8), lambda x: rms_norm(x, weight, EPS), lambda x: plain_norm(x, weight)),
        "swiglu": (torch.randn(2, 5, 8), swiglu, plain_swiglu),
        "rotary": (
            torch.randn(2, 5, 4, 10).transpose(1, 2),  # not in the order of memory, as heads come
            lambda x: apply_rotary(x, angles.cos().to(x.dtype), angles.sin().to(x.dtype)),
            lambda x: plain_rotary(x, angles),
        ),
    }


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("name", steps())
def test_output_and_gradient_are_those_of_the_formula(name, dtype, tolerance):
    x, ours, formula = steps()[name]
    x = x.to(dtype)
    found = []
    for compute in (ours, formula):
        given = x.clone().requires_grad_()
        out = compute(given)
        factors = torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype)
        found.append((out.detach(), *torch.autograd.grad((out * factors).sum(), given)))
    assert found[0][0].dtype == found[0][1].dtype == dtype
    for got, want in zip(*found, strict=True):
        assert (got.double() - want.double()).abs().max() <= tolerance * want.abs().max()


def test_a_norm_that_trains_has_the_same_gradients_and_one_of_its_weight():
    x, weight = torch.randn(3, 8), torch.randn(8)
    frozen, trained = (weight.clone().requires_grad_(trains) for trains in (False, True))
    first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, again = rms_norm(first, frozen, EPS), rms_norm(second, trained, EPS)
    assert torch.equal(out, again)
    out.square().sum().backward()
    again.square().sum().backward()
    torch.testing.assert_close(first.grad, second.grad)
    assert trained.grad.abs().sum() > 0


@pytest.mark.parametrize(("name", "beside"), [("norm", 10 * 4), ("swiglu", 0), ("rotary", 2 * 30 * 4)])
def test_what_is_kept_is_the_input_and_little_beside(name, beside):
    """The scale of each row; cosine and sine, which all layers share (and rotary keeps no input)."""
    x, ours, _ = steps()[name]
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ours(x)
    weight = 8 * 4 if name == "norm" else 0
    of_input = 0 if name == "rotary" else x.numel() * 4
    assert sum(kept.values()) == of_input + beside + weight
