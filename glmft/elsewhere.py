"""Parameters that only the ranks of some stages of the layers have, and how their values come to others."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Home:
    """Where a parameter is that not every stage of the layers has: the attribute `home` of that parameter.

    Args:
        rank: the first that has it.
        is_here: whether this one has it; else zeros that take no memory stand for it.
        group: of all ranks, by way of the hosts.
    """

    rank: int
    is_here: bool
    group: Any = None


def is_elsewhere(parameter: Any) -> bool:
    """Whether only ranks of another stage have a parameter."""
    home = getattr(parameter, "home", None)
    return home is not None and not home.is_here


def weightless(shape: Any, dtype: Any) -> Any:
    """Zeros of any shape that take no memory."""
    import torch

    return torch.zeros((), dtype=dtype).expand(shape)


def is_weightless(tensor: Any) -> bool:
    """Whether a tensor is such zeros."""
    return tensor.numel() > 1 and not any(tensor.stride())


def at_main(parameter: Any, value: Any, dtype: Any) -> Any:
    """On rank 0, what the first rank that has a parameter has for it; elsewhere nothing. Collective.

    Args:
        parameter: with a `home`.
        value: of the parameter's shape and of `dtype`; not looked at where the parameter is elsewhere.
    """
    import torch
    import torch.distributed as dist

    home, rank = parameter.home, dist.get_rank()
    if home.rank == 0:
        return value if rank == 0 else torch.empty(0)
    if rank == home.rank:
        dist.send(value.detach().to("cpu", dtype).contiguous(), 0, group=home.group)
    if rank != 0:
        return torch.empty(0)
    received = torch.empty(parameter.shape, dtype=dtype)
    dist.recv(received, home.rank, group=home.group)
    return received


@contextlib.contextmanager
def brought(parameter: Any, modified: bool) -> Iterator[None]:
    """A parameter with a `home` is whole on every rank while this lasts. Collective.

    Args:
        modified: its values are about to be replaced, on every rank by the same.
    """
    import torch
    import torch.distributed as dist

    home, kept, value = parameter.home, parameter.data, None
    if not home.is_here or not modified:
        value = torch.empty(parameter.shape, dtype=parameter.dtype)
    if not modified:
        if dist.get_rank() == home.rank:
            value.copy_(parameter.detach())
        dist.broadcast(value, home.rank, group=home.group)
    if not home.is_here:
        parameter.data = value
    yield
    if not home.is_here:
        parameter.data = kept
