"""A linear module under LoRA as one step for autograd.

peft's module, its parameters and their names stay; what it computes is put together here: the update is added into the
output of the frozen weight, and the backward pass needs the input, which of it dropout kept, and r numbers a token.
"""

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn import functional as F


class OneStepLinear(Linear):
    """peft's `lora.Linear`, for one adapter of plain LoRA on a frozen `nn.Linear`; else peft's own code runs."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        names, is_plain = self.active_adapters, not (args or kwargs or self.disable_adapters or self.merged)
        if not is_plain or len(names) != 1 or names[0] not in self.lora_A:
            return super().forward(x, *args, **kwargs)
        name = names[0]
        base, down, up, dropout = self.base_layer, self.lora_A[name], self.lora_B[name], self.lora_dropout[name]
        drop = dropout.p if dropout.training and isinstance(dropout, nn.Dropout) else 0.0
        if not fits(base, down, up, x) or name in self.lora_variant or drop >= 1:
            return super().forward(x)
        return _Update.apply(
            x.to(base.weight.dtype), base.weight, base.bias, down.weight, up.weight, self.scaling[name], drop
        )


def fits(base: nn.Module, down: nn.Module, up: nn.Module, x: Tensor) -> bool:
    """Whether one step gives what peft's code gives: the base is frozen, here and in the format computed in."""
    kind = x.device.type
    is_cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if is_cast else x.dtype
    frozen = [base.weight] if base.bias is None else [base.weight, base.bias]
    trained = [down.weight, up.weight]
    return (
        all(p.dtype == dtype and not p.requires_grad for p in frozen)
        and all(is_cast or p.dtype == dtype for p in trained)
        and up.bias is None
        and not any(hasattr(p, "ds_id") for p in frozen + trained)  # ZeRO-3 gathers what a module's own call asks for
    )


class _Update(torch.autograd.Function):
    """x W^T + b + s drop(x) A^T B^T; A and B are cast to the format of x, as autocast would."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float, drop: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        kept = torch.empty_like(rows, dtype=torch.bool).bernoulli_(1 - drop) if drop else None
        ctx.scale = scale / (1 - drop)
        low = (rows if kept is None else rows * kept) @ down.to(x.dtype).T  # [n, r]
        out = F.linear(rows, weight, bias).addmm_(low, up.to(x.dtype).T, alpha=ctx.scale)
        ctx.save_for_backward(rows, kept, low, weight, down, up)
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, kept, low, weight, down, up = ctx.saved_tensors
        of_out = gradient.reshape(-1, gradient.shape[-1])
        of_low = (of_out @ up.to(of_out.dtype)).mul_(ctx.scale)
        of_up = (of_out.T @ low).to(up.dtype).mul_(ctx.scale)
        of_down = (of_low.T @ (rows if kept is None else rows * kept)).to(down.dtype)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = of_out @ weight
            if kept is None:
                of_x.addmm_(of_low, down.to(of_x.dtype))
            else:
                of_x.addcmul_(of_low @ down.to(of_x.dtype), kept)
            of_x = of_x.view(*gradient.shape[:-1], of_x.shape[-1])
        return of_x, None, None, of_down, of_up, None, None


def in_one_step(model: nn.Module) -> None:
    """Have every linear module under LoRA computed in this way, where its base is a plain one."""
    for module in model.modules():
        if type(module) is Linear and type(module.base_layer) is nn.Linear:
            module.__class__ = OneStepLinear
