"""Linear layers whose weights are integers of 8 or 4 bits with one scale a row, in ChatGLM's own layout.

A row w of a weight [out, in] is kept as round(w / scale) with scale = max|w| / (2^(bits - 1) - 1), in the weight's own
number format; 4 bits pack two columns in a byte, the even one in the high half. Files hold them as `weight`, int8
[out, in * bits / 8], and `weight_scale` [out] (`quantization.py` of the official THUDM/chatglm2-6b folder).

Nothing is computed in integers: a layer's weight is made anew from them for the forward pass and again for the backward
pass, so that only one at a time is there in full.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glmft.dist import whole_shape
from glmft.errors import ConfigError

BITS = (4, 8)
ROWS = 1024  # quantised at a time: what a tensor needs in between stays small


def quantise(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """weight [out, in] -> integers [out, in * bits / 8] in int8, packed if of 4 bits, and scales [out] in its dtype.

    A row of zeros keeps a scale of zero; the official code divides by it.
    """
    largest = 2 ** (bits - 1) - 1
    integers = torch.empty(len(weight), weight.shape[1] * bits // 8, dtype=torch.int8, device=weight.device)
    scale = torch.empty(len(weight), dtype=weight.dtype, device=weight.device)
    parts = zip(weight.split(ROWS), integers.split(ROWS), scale.split(ROWS), strict=True)
    for rows, of_integers, of_scale in parts:
        of_scale.copy_(rows.abs().amax(dim=-1) / largest)
        divisor = torch.where(of_scale > 0, of_scale, 1)[:, None]
        if rows.dtype == torch.bfloat16:  # whose eight digits would round a quotient to 128
            rows, divisor = rows.float(), divisor.float()
        whole = (rows / divisor).round_().clamp_(-largest, largest).to(torch.int8)
        of_integers.copy_(packed(whole) if bits == 4 else whole)
    return integers, scale


def packed(integers: Tensor) -> Tensor:
    """Integers from -8 to 7 [out, in] -> bytes [out, in / 2]: of two neighbours the first in the high half."""
    first, second = integers.unflatten(-1, (-1, 2)).unbind(-1)
    return (first << 4) | (second & 15)


def unpacked(weight: Tensor) -> Tensor:
    """The reverse of `packed`. Shifting an int8 to the right carries its sign along."""
    return torch.stack((weight >> 4, (weight << 4) >> 4), dim=-1).flatten(-2)


def dequantise(weight: Tensor, scale: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """Integers and scales -> the weight [out, in]: the products, exact in float32, rounded once to `dtype`."""
    integers = unpacked(weight) if bits == 4 else weight
    product = torch.empty(integers.shape, dtype=dtype, device=weight.device)
    return torch.mul(integers, scale.float()[:, None], out=product)


class LinearOverIntegers(torch.autograd.Function):
    """x W^T + b, where W is made of integers in the forward pass, and again in the backward pass instead of kept."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, scale: Tensor, bits: int, bias: Tensor | None) -> Tensor:
        """x [..., in] -> [..., out], in the dtype of x."""
        return F.linear(x, dequantise(weight, scale, bits, x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, weight, scale, ctx.bits, bias = inputs
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.save_for_backward(weight, scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, None, Tensor | None]:
        of_input = of_bias = None
        if ctx.needs_input_grad[0]:
            of_input = gradient @ dequantise(*ctx.saved_tensors, ctx.bits, gradient.dtype)
        if ctx.needs_input_grad[4]:
            of_bias = gradient.flatten(0, -2).sum(0).to(ctx.bias_dtype)
        return of_input, None, None, None, of_bias


class QuantisedLinear(nn.Linear):
    """A frozen linear layer: `weight` and `weight_scale` are buffers, so nothing trains, partitions or decays them.

    A linear layer to all that asks, peft for one; what it does with `weight` itself fails loudly on integers.
    """

    def __init__(self, in_features: int, out_features: int, bits: int, bias: bool = True):
        nn.Module.__init__(self)
        if bits == 4 and in_features % 2:
            raise ConfigError(f"quantization_bit 4: packs two columns in a byte, and a layer has {in_features}")
        self.in_features, self.out_features, self.bits = in_features, out_features, bits
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_features)) if bias else None)
        self.register_buffer("weight", torch.empty(out_features, in_features * bits // 8, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.empty(out_features, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        if torch.is_autocast_enabled(x.device.type):  # which knows nothing of this function
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return LinearOverIntegers.apply(x, self.weight, self.weight_scale, self.bits, self.bias)

    def dequantised(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight [out, in]."""
        return dequantise(self.weight, self.weight_scale, self.bits, dtype)

    def take(self, weight: Tensor, scale: Tensor) -> None:
        """Hold these integers and scales, in the formats they have."""
        self.weight, self.weight_scale = weight, scale

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As of every module; but `half()` and its like leave the scales their format: a rounded one moves a row."""
        scale = self.weight_scale
        super()._apply(fn, recurse)
        if self.weight_scale.dtype != scale.dtype and not scale.is_meta:
            self.weight_scale = scale.to(self.weight_scale.device)
        return self

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.bits}"


class KeepsIntegers:
    """A part of a `PreTrainedModel`: integers come from files alone and get no initial values."""

    def _init_weights(self, module: nn.Module) -> None:
        if not isinstance(module, QuantisedLinear):
            super()._init_weights(module)


def replace_linear_layers(layers: nn.Module, bits: int | None) -> None:
    """Put a `QuantisedLinear` in the place of every linear layer in there, without values yet; no bits: leave them."""
    for module in list(layers.modules()) if bits else []:
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                new = QuantisedLinear(child.in_features, child.out_features, bits, child.bias is not None)
                setattr(module, name, new)


def quantised_layers(model: nn.Module) -> Iterable[tuple[str, QuantisedLinear]]:
    """All of them with their names."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, QuantisedLinear))


def numbers_in(model: nn.Module) -> int:
    """How many numbers a model's weights are, those counted that lie several in a byte or apart on other ranks."""
    packed_in_buffers = sum(layer.in_features * layer.out_features for _, layer in quantised_layers(model))
    return packed_in_buffers + sum(_numbers(parameter) for parameter in model.parameters())


def bytes_of_integers(model: nn.Module) -> int:
    """Bytes of a model's integers and their scales."""
    return sum(layer.weight.nbytes + layer.weight_scale.nbytes for _, layer in quantised_layers(model))


def _numbers(parameter: nn.Parameter) -> int:
    packed_by_bitsandbytes = getattr(parameter, "quant_state", None)
    return math.prod(packed_by_bitsandbytes.shape) if packed_by_bitsandbytes else whole_shape(parameter).numel()
