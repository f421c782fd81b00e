"""What a layer does number by number, as one step for autograd each: no temporaries, and the least is kept.

Each keeps its input, in the input's own format, and computes again what little the backward pass needs beside it. To a
compiler they are plain operations: it joins them with their neighbours, and finds out by itself what to keep.
"""

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn import functional as F


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """h / sqrt(mean(h^2) + eps) * weight (Zhang and Sennrich, 2019), computed in float32; hidden [..., h].

    The same to the bit whether the weight trains or not.
    """
    if not weight.requires_grad and not is_compiling():
        return _FrozenNorm.apply(hidden, weight, eps)
    wide = hidden.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (weight * wide).to(hidden.dtype)


class _FrozenNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = hidden.float()
        scale = wide.pow(2).mean(-1, keepdim=True).add_(eps).rsqrt_()  # [..., 1]
        ctx.save_for_backward(hidden, weight, scale)
        return (wide * scale).mul_(weight).to(hidden.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, scale = ctx.saved_tensors
        wide, inner = hidden.float(), gradient.float() * weight
        along = (inner * wide).sum(-1, keepdim=True).mul_(scale.pow(3)).div_(wide.shape[-1])
        return inner.mul_(scale).addcmul_(wide, along, value=-1).to(hidden.dtype), None, None


def swiglu(fused: Tensor) -> Tensor:
    """silu(first half) * second half (Shazeer, 2020); [..., 2 f] -> [..., f]."""
    if is_compiling():
        gate, up = fused.chunk(2, dim=-1)
        return F.silu(gate) * up
    return _SwiGLU.apply(fused)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fused: Tensor) -> Tensor:
        ctx.save_for_backward(fused)
        gate, up = fused.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (fused,) = ctx.saved_tensors
        gate, up = fused.chunk(2, dim=-1)
        both = torch.empty_like(fused)
        of_gate, of_up = both.chunk(2, dim=-1)
        torch.mul(gradient, up, out=of_gate)
        torch.ops.aten.silu_backward.grad_input(of_gate, gate, grad_input=of_gate)
        torch.ops.aten.silu.out(gate, out=of_up).mul_(gradient)
        return both


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn neighbours (2j, 2j + 1) of the first numbers of each head by angle j.

    Args:
        x: [b, heads, s, d].
        cos, sin: [b, 1, s, r], for the first 2 r numbers.
    """
    if is_compiling():
        even, odd = x[..., : 2 * cos.shape[-1]].unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)
        return torch.cat((turned, x[..., 2 * cos.shape[-1] :]), dim=-1)
    return _Turn.apply(x, cos, sin)


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turned(gradient, cos, -sin), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    out = x.clone(memory_format=torch.contiguous_format)
    pairs = out[..., : 2 * cos.shape[-1]].unflatten(-1, (-1, 2))
    if out.dtype == torch.float32:
        torch.view_as_complex(pairs).mul_(torch.complex(cos, sin))
        return out
    even, odd = x[..., : 2 * cos.shape[-1]].unflatten(-1, (-1, 2)).unbind(-1)
    pairs[..., 0] = even * cos - odd * sin
    pairs[..., 1] = odd * cos + even * sin
    return out
