"""Trainable weights and Adam's moments as whole named tensors, whatever the ZeRO stage and the number of ranks.

A state packed by one topology unpacks into any other.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor

from glmft.dist import whole_shape
from glmft.elsewhere import at_main, is_elsewhere

MOMENTS = ("exp_avg", "exp_avg_sq")


def packed(engine: Any, keep: bool) -> Iterator[tuple[str, Tensor]]:
    """Collective. Yields `param/NAME`, `exp_avg/NAME` and `exp_avg_sq/NAME` on the CPU, one at a time.

    Args:
        keep: whether this rank wants the values; where not, it gets empty tensors.
    """
    inner, _ = _inner(engine)
    _relink(engine.optimizer)
    for name, parameter in _trainable(engine):
        shape = whole_shape(parameter)
        for key in ("param", *MOMENTS):
            if is_elsewhere(parameter):
                value = None
            elif not _is_partitioned(parameter):
                value = parameter.detach() if key == "param" else inner.state[parameter][key]
            elif key == "param":
                value = safe_get_full_fp32_param(parameter)
            else:
                value = safe_get_full_optimizer_state(parameter, key)
            if hasattr(parameter, "home"):
                dtype = torch.float32 if engine.zero_optimization_stage() else parameter.dtype
                value = at_main(parameter, value, dtype)
            yield f"{key}/{name}", value.detach().reshape(shape).to("cpu", copy=True) if keep else torch.empty(0)


def adam_step(engine: Any) -> int:
    """Steps that the optimizer has counted."""
    inner, flat = _inner(engine)
    return int(inner.state[flat[0]]["step"])


def unpack(engine: Any, tensors: Mapping[str, Tensor], step: int) -> None:
    """Collective; `tensors` are the same on every rank. The module itself must hold the weights already."""
    inner, flat = _inner(engine)
    for parameter in flat:
        zeros = {key: torch.zeros_like(parameter) for key in MOMENTS}
        inner.state[parameter] = {"step": torch.tensor(float(step)), **zeros}
    _relink(engine.optimizer)
    for name, parameter in _trainable(engine):
        if is_elsewhere(parameter):
            continue
        for key in MOMENTS:
            value = tensors[f"{key}/{name}"]
            if _is_partitioned(parameter):
                safe_set_full_optimizer_state(parameter, value.to(engine.device), key)
            else:
                inner.state[parameter][key].copy_(value)
        if _is_partitioned(parameter):
            safe_set_full_fp32_param(parameter, tensors[f"param/{name}"].to(engine.device))


def forget_steps(engine: Any) -> None:
    """Set the optimizer's count back to zero, after steps whose gradients were zero."""
    for state in _inner(engine)[0].state.values():
        state["step"].zero_()


def scaler_numbers(engine: Any) -> dict[str, float]:
    """The numbers of DeepSpeed's loss scaler."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    return {key: value for key, value in getattr(scaler, "__dict__", {}).items() if isinstance(value, int | float)}


def set_scaler_numbers(engine: Any, numbers: dict[str, float]) -> None:
    for key, value in numbers.items():
        setattr(engine.optimizer.loss_scaler, key, value)


def _trainable(engine: Any) -> Iterator[tuple[str, Any]]:
    return ((name, p) for name, p in engine.module.named_parameters() if p.requires_grad)


def _is_partitioned(parameter: Any) -> bool:
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def _inner(engine: Any) -> tuple[Any, list[Any]]:
    """The torch optimizer inside DeepSpeed's, and the tensors that it steps (flat partitions under ZeRO)."""
    zero = engine.optimizer
    for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups"):  # ZeRO-3; ZeRO-1 and 2
        if hasattr(zero, name):
            return zero.optimizer, list(getattr(zero, name))
    return zero, [p for group in zero.param_groups for p in group["params"]]


def _relink(zero: Any) -> None:
    """ZeRO-1 and 2 link parameters to their moments once, before groups after the first have any: link them again."""
    if hasattr(zero, "_hp_optimizer_states_linked"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()
