"""The one place that knows about processes, ranks, devices and the environment."""

import atexit
import contextlib
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from glmft.errors import ConfigError, GlmftError, RankLost

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class World:
    """This process among all: its rank, how many there are, and what it computes on.

    `host_group` carries the few numbers that ranks tell one another from host to host: no accelerator waits for them.
    """

    rank: int
    local_rank: int
    size: int
    device: Any
    dtype: Any
    host_group: Any = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def describe(self) -> str:
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        ranks = f"{self.size} rank{'s' if self.size > 1 else ''}"
        return f"{ranks} on {self.device.type}, {str(self.dtype).removeprefix('torch.')}, {backend}"


def env_rank() -> int:
    """The rank that a launcher gave this process, 0 without one; known before anything is set up."""
    return int(os.environ.get("RANK", 0))


def launchers() -> tuple[int, ...]:
    """Ids of the processes that started this rank: its parent, and behind DeepSpeed's `launch` the command itself.

    Empty without a launcher. If these change, whoever stops the launcher no longer reaches this rank.
    """
    if "RANK" not in os.environ:
        return ()
    parent, proc = os.getppid(), Path("/proc")
    try:
        if b"deepspeed.launcher.launch" in (proc / str(parent) / "cmdline").read_bytes().split(b"\0"):
            # pid (name) state parent …; the name may hold anything
            return parent, int((proc / str(parent) / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):  # no such file system, or the parent has just gone
        pass
    return (parent,)


def cache_home() -> Path:
    """Where encoded data is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "glmft"


def choose_device(device: str) -> Any:
    """`auto`: this process's accelerator if there is one, else the CPU. Raises ConfigError if `cuda` is not there."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no CUDA device here; use --device cpu or auto")
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


def name_accelerator() -> None:
    """Tell DeepSpeed that there is none, where there is none: it warns if it has to find out by itself."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def torch_dtype(dtype: str) -> Any:
    """torch's number format for a flag's."""
    import torch

    return getattr(torch, DTYPES[dtype])


def choose_dtype(dtype: str, device: Any, preferred: str | None = None) -> Any:
    """`auto`: what is preferred if the device has it, else bf16 where the accelerator has it, fp32 on a CPU."""
    import torch

    if dtype == "auto":
        on_gpu = device.type == "cuda"
        has = {"fp16": on_gpu, "bf16": not on_gpu or torch.cuda.is_bf16_supported(), None: False}
        dtype = preferred if has[preferred] else "bf16" if on_gpu and has["bf16"] else "fp32"
    return torch_dtype(dtype)


def start(device: str = "auto", dtype: str = "auto", preferred: str | None = None) -> World:
    """Join the other ranks; without a launcher, be a world of one, which needs no port.

    Args:
        preferred: the number format that `auto` takes if the device has it.

    Raises:
        ConfigError: a device that is not there, or fp16 on a CPU.
    """
    chosen = choose_device(device)
    number_format = choose_dtype(dtype, chosen, preferred)
    if dtype == "fp16" and chosen.type == "cpu":
        raise ConfigError("--dtype fp16: DeepSpeed has no fp16 on a CPU; use bf16 or fp32")
    if chosen.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it
    # Old names of collectives inside DeepSpeed: nothing that a user could mend.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    import deepspeed
    import deepspeed.ops
    import torch

    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    else:
        deepspeed.ops.__compatible_ops__ = {}  # read by one thing only: the compiled shared-memory collective
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    if "RANK" not in os.environ and not torch.distributed.is_initialized():
        torch.distributed.init_process_group(backend, rank=0, world_size=1, store=torch.distributed.HashStore())
    deepspeed.init_distributed(backend, verbose=False)
    host_group = torch.distributed.new_group(backend="gloo") if backend == "nccl" else None
    return World(
        torch.distributed.get_rank(),
        int(os.environ["LOCAL_RANK"]),
        torch.distributed.get_world_size(),
        chosen,
        number_format,
        host_group,
    )


def give_back_freed_memory() -> None:
    """Let the C library return every large freed block to the system at once, as far as it can be told to.

    glibc raises its own threshold as blocks are freed, and then keeps as much memory as was ever in use.
    """
    import ctypes

    threshold, fixed = -3, 1 << 17  # M_MMAP_THRESHOLD in <malloc.h>, and its initial value
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(threshold, fixed)


def peak_memory(device: Any) -> int:
    """The most bytes that this process has held: of the accelerator's memory, or of the host's without one."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextlib.contextmanager
def parting() -> Iterator[None]:
    """Part from the other ranks in order when this block ends.

    A process that ends with the threads of a group still running may abort, and a launcher then takes a run that has
    finished for one that failed. Where another rank is lost there is nothing to part from.
    """
    try:
        yield
    except RankLost:
        raise
    except GlmftError:
        _leave()
        raise
    _leave()


def end_process(code: int) -> NoReturn:
    """Exit; a launched rank does so without the C++ destructors of libraries, whose threads can abort it at its end."""
    if "RANK" not in os.environ:
        sys.exit(code)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _leave() -> None:
    dist = sys.modules.get("torch.distributed")
    if "RANK" in os.environ and dist is not None and dist.is_initialized():
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def is_main() -> bool:
    """Whether this is rank 0, or the only process."""
    import torch.distributed as dist

    return not dist.is_initialized() or dist.get_rank() == 0


def barrier() -> None:
    """Wait until every rank is here."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def sum_over_ranks(world: World, *own: float) -> list[float]:
    """Sums of some numbers over all ranks, by way of the hosts. Collective."""
    import torch
    import torch.distributed as dist

    if world.size == 1:
        return list(own)
    numbers = torch.tensor(own, dtype=torch.float64)
    dist.all_reduce(numbers, group=world.host_group)
    return numbers.tolist()


def gather_objects(world: World, own: Any) -> list[Any]:
    """What every rank has, in the order of the ranks. Collective; for small things."""
    import torch.distributed as dist

    if world.size == 1:
        return [own]
    all_: list[Any] = [None] * world.size
    dist.all_gather_object(all_, own, group=world.host_group)
    return all_


@contextlib.contextmanager
def same_fate() -> Iterator[None]:
    """All ranks leave this block together: if one of them met a `GlmftError`, every rank raises all their problems."""
    import torch.distributed as dist

    own: GlmftError | None = None
    try:
        yield
    except GlmftError as error:
        own = error
    errors: list[GlmftError | None] = [own]
    if dist.is_initialized() and dist.get_world_size() > 1:
        errors = [None] * dist.get_world_size()
        dist.all_gather_object(errors, own)
    raised = [error for error in errors if error is not None]
    if raised:
        problems = dict.fromkeys(problem for error in raised for problem in error.problems)
        error = type(raised[0])(problems)
        error.agreed = True
        raise error from None


def whole_shape(parameter: Any) -> Any:
    """The shape of a parameter, of which ZeRO-3 may leave an empty tensor here."""
    return getattr(parameter, "ds_shape", parameter.shape)


@contextlib.contextmanager
def gathered(parameters: Iterable[Any], modified: bool = False) -> Iterator[None]:
    """Inside, ZeRO-3 parameters are whole on every rank; without ZeRO-3 nothing happens.

    Args:
        modified: keep what rank 0 makes of them.
    """
    parameters = [p for p in parameters if hasattr(p, "ds_id")]
    if not parameters:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if modified else None):
        yield
