"""Trainable weights and Adam's moments as whole named tensors, whatever the ZeRO stage and the number of ranks.

A state packed by one topology unpacks into any other.
"""

from collections.abc import Iterator
from typing import Any

import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")


def pack(engine: Any) -> tuple[dict[str, Tensor], int]:
    """Collective. `param/NAME`, `exp_avg/NAME`, `exp_avg_sq/NAME` on the CPU, and Adam's step count."""
    inner, flat = _inner(engine)
    _relink(engine.optimizer)
    packed = {}
    for name, parameter in _trainable(engine):
        shape = getattr(parameter, "ds_shape", parameter.shape)
        if _is_partitioned(parameter):
            values = [safe_get_full_fp32_param(parameter)]
            values += [safe_get_full_optimizer_state(parameter, key) for key in MOMENTS]
        else:
            values = [parameter.detach()] + [inner.state[parameter][key] for key in MOMENTS]
        for key, value in zip(("param", *MOMENTS), values, strict=True):
            packed[f"{key}/{name}"] = value.detach().reshape(shape).to("cpu", copy=True)
    return packed, int(inner.state[flat[0]]["step"])


def unpack(engine: Any, packed: dict[str, Tensor], step: int) -> None:
    """Collective; `packed` is the same on every rank. The module itself must hold the weights already."""
    inner, flat = _inner(engine)
    for parameter in flat:
        zeros = {key: torch.zeros_like(parameter) for key in MOMENTS}
        inner.state[parameter] = {"step": torch.tensor(float(step)), **zeros}
    _relink(engine.optimizer)
    for name, parameter in _trainable(engine):
        for key in MOMENTS:
            value = packed[f"{key}/{name}"]
            if _is_partitioned(parameter):
                safe_set_full_optimizer_state(parameter, value.to(engine.device), key)
            else:
                inner.state[parameter][key].copy_(value)
        if _is_partitioned(parameter):
            safe_set_full_fp32_param(parameter, packed[f"param/{name}"].to(engine.device))


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
