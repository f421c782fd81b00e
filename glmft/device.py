"""What this process computes on, in which number format, and how much memory that takes."""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from typing import Any

from glmft.errors import ConfigError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>, in bytes
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def choose_device(device: str, local_rank: int = 0) -> Any:
    """`auto`: this rank's accelerator if there is one, else the CPU. Raises ConfigError if `cuda` is not there."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no CUDA device here; use --device cpu or auto")
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def torch_dtype(dtype: str) -> Any:
    """torch's number format for a flag's."""
    import torch

    return getattr(torch, DTYPES[dtype])


def choose_dtype(dtype: str, device: Any, preferred: str | None = None) -> Any:
    """`auto`: what is preferred if the device has it, else bf16 where the accelerator has it, fp32 on a CPU."""
    import torch

    if dtype != "auto":
        return torch_dtype(dtype)
    on_gpu = device.type == "cuda"
    available = {"fp16": on_gpu, "bf16": not on_gpu or torch.cuda.is_bf16_supported()}
    if preferred is not None and available[preferred]:
        return torch_dtype(preferred)
    return torch_dtype("bf16" if on_gpu and available["bf16"] else "fp32")


def handed_over(tensor: Any, device: Any) -> Any:
    """A tensor of the host's on a device, without a wait for what the device is still at."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def peak_memory(device: Any) -> int:
    """The most bytes that this process has had: of the accelerator's memory, or of the host's without one."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def host_memory() -> int:
    """Bytes of memory of this host."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@contextlib.contextmanager
def giving_back_freed_memory() -> Iterator[None]:
    """Inside, the C library returns every large freed block to the system at once, as far as it can be made to.

    glibc raises its own threshold as blocks are freed, and then keeps as much memory as was ever in use.
    """
    tell_malloc(M_MMAP_THRESHOLD, 1 << 17)
    yield
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Have the C library keep freed blocks for the next step: each large tensor would cost its page faults again."""
    for threshold in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
        tell_malloc(threshold, 1 << 30)


def tell_malloc(parameter: int, value: int) -> None:
    """Where the C library has parameters to set."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(parameter, value)
