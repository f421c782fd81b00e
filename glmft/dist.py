"""The one place that knows about processes, ranks and the environment."""

import atexit
import contextlib
import os
import re
import socket
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

from glmft.console import end_output
from glmft.device import choose_device, choose_dtype
from glmft.elsewhere import brought
from glmft.errors import ConfigError, GlmftError, RankLost, one_line

LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # of the environment
MOST_RANKS = 1 << 20


@dataclass(frozen=True)
class World:
    """This process among all: its rank, how many there are, and what it computes on.

    `host_group` carries the few numbers that ranks send one another from host to host: no accelerator waits for them.
    `store` is where they first met, `timeout` how many seconds one of them may keep the others waiting. The layers are
    cut into `stages`: the first ranks have the first of them, each for a share of the data.
    """

    rank: int
    local_rank: int
    size: int
    device: Any
    dtype: Any
    host_group: Any = None
    store: Any = None
    timeout: int = 1800
    stages: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def data_size(self) -> int:
        """Shares that the data is dealt out in."""
        return self.size // self.stages

    @property
    def data_rank(self) -> int:
        """This rank's share."""
        return self.rank % self.data_size

    @property
    def stage(self) -> int:
        """The stage of the layers that this rank has, from 0."""
        return self.rank // self.data_size

    @property
    def sees_loss(self) -> bool:
        """Whether this rank has the last layers, and the loss with them."""
        return self.stage == self.stages - 1

    def describe(self) -> str:
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        ranks = f"{self.size} rank{'s' if self.size > 1 else ''}"
        return f"{ranks} on {self.device.type}, {str(self.dtype).removeprefix('torch.')}, {backend}"


def env_rank() -> int:
    """The rank that a launcher gave this process, 0 without one; known before anything is set up."""
    return _number_given("RANK") or 0


def env_local_rank() -> int:
    """The rank among those of this host."""
    return _number_given("LOCAL_RANK") or 0


def _number_given(name: str) -> int | None:
    """A small whole number of the environment, None for anything else."""
    text = os.environ.get(name, "")
    return int(text) if re.fullmatch(r"[0-9]{1,7}", text) else None


def launch_problems() -> list[str]:
    """What is wrong with what a launcher left in the environment, one line each."""
    given = {name: os.environ[name] for name in LAUNCH if name in os.environ}
    if "RANK" not in given:  # no launcher: a world of one
        return []
    mend = "start with deepspeed or torchrun, or unset RANK"
    missing = [name for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if not given.get(name)]
    problems = [f"RANK is set, but {', '.join(missing)} not: {mend}"] if missing else []
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"):
        number, most = _number_given(name), 65535 if name == "MASTER_PORT" else MOST_RANKS
        least = 0 if "RANK" in name else 1
        if name in given and name not in missing and (number is None or not least <= number <= most):
            problems.append(f"{name}={given[name]}: must be a whole number from {least} to {most}; {mend}")
    rank, size = _number_given("RANK"), _number_given("WORLD_SIZE")
    if not problems and rank is not None and size is not None and rank >= size:
        problems.append(f"RANK={rank}: must be less than WORLD_SIZE={size}; {mend}")
    return problems


def port_problem() -> str | None:
    """Why rank 0 could not listen at MASTER_PORT, or no rank find MASTER_ADDR."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        socket.getaddrinfo(address, port)
    except (OSError, UnicodeError):
        return f"MASTER_ADDR={address}: no such host; name the first host by --master_addr"
    if env_rank() or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # somebody else listens
        return None
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(("", port))
            listening.listen()
    except PermissionError:
        return f"MASTER_PORT={port}: ports below 1024 are not for ordinary users; give --master_port 29500"
    except OSError as error:
        return f"MASTER_PORT={port}: cannot be listened at ({error.strerror}); give another by --master_port"
    return None


def is_main() -> bool:
    """Whether this is rank 0, or the only process."""
    return env_rank() == 0


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


def name_accelerator() -> None:
    """Tell DeepSpeed that there is none, where there is none: it warns if it has to find out by itself."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def start(device: str = "auto", dtype: str = "auto", preferred: str | None = None, timeout: int = 1800) -> World:
    """Join the other ranks; without a launcher, be a world of one, which needs no port.

    Args:
        preferred: the number format that `auto` takes if the device has it.
        timeout: seconds that a rank may keep the others waiting in one exchange.

    Raises:
        ConfigError: a device that is not there, fp16 on a CPU, or a launch that makes no sense.
    """
    if problems := launch_problems():
        raise ConfigError(problems)
    with alike_on_all_ranks():
        chosen = choose_device(device, env_local_rank())
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
    store, longest = None, timedelta(seconds=timeout)
    try:
        if not torch.distributed.is_initialized():
            if "RANK" in os.environ and (problem := port_problem()):
                raise ConfigError(problem)
            store, rank, size = _meet()
            _limit_waiting(longest)
            torch.distributed.init_process_group(backend, timeout=longest, rank=rank, world_size=size, store=store)
        deepspeed.init_distributed(backend, verbose=False)
    except (RuntimeError, ValueError) as error:  # torch's own classes of network errors among them
        raise ConfigError(f"the ranks cannot meet ({one_line(error)}); look at MASTER_ADDR and MASTER_PORT") from None
    host_group = torch.distributed.new_group(backend="gloo", timeout=longest) if backend == "nccl" else None
    return World(
        torch.distributed.get_rank(),
        env_local_rank(),
        torch.distributed.get_world_size(),
        chosen,
        number_format,
        host_group,
        store,
        timeout,
    )


def is_launched() -> bool:
    """Whether a launcher started this process."""
    return "RANK" in os.environ


def join(device: str = "auto", dtype: str = "auto") -> World:
    """As `start`; without a launcher at once, as nothing is set up.

    Raises ConfigError as `start` does.
    """
    if is_launched():
        return start(device, dtype)
    chosen = choose_device(device)
    return World(0, 0, 1, chosen, choose_dtype(dtype, chosen))


def _limit_waiting(longest: timedelta) -> None:
    """Have the groups that DeepSpeed makes wait so long, too: it gives them no limit of its own."""
    from torch.distributed import distributed_c10d

    distributed_c10d.default_pg_timeout = distributed_c10d.default_pg_nccl_timeout = longest


def _meet() -> tuple[Any, int, int]:
    """Where all ranks come together, this one's number, and how many they are."""
    from torch.distributed import HashStore, PrefixStore, rendezvous

    if "RANK" not in os.environ:
        return HashStore(), 0, 1
    store, rank, size = next(rendezvous("env://"))
    return PrefixStore("glmft", store), rank, size


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
    if "RANK" in os.environ:
        atexit._run_exitfuncs()
    end_output()
    if "RANK" not in os.environ:
        sys.exit(code)
    os._exit(code)


def _leave() -> None:
    dist = sys.modules.get("torch.distributed")
    if "RANK" in os.environ and dist is not None and dist.is_initialized():
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def barrier() -> None:
    """Wait until every rank is here."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def sum_over_ranks(world: World, *numbers: float) -> list[float]:
    """Sums of some numbers over all ranks, by way of the hosts. Collective."""
    import torch
    import torch.distributed as dist

    if world.size == 1:
        return list(numbers)
    sums = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(sums, group=world.host_group)
    return sums.tolist()


def gather_objects(world: World, value: Any) -> list[Any]:
    """What every rank has, in the order of the ranks. Collective; for small things."""
    import torch.distributed as dist

    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value, group=world.host_group)
    return values


@contextlib.contextmanager
def alike_on_all_ranks() -> Iterator[None]:
    """What fails in this block, fails on every rank in the same way: rank 0 alone prints it."""
    try:
        yield
    except GlmftError as error:
        raise type(error)(error.problems, of_all_ranks=True) from None


def to_all(world: World, tensor: Any) -> Any:
    """Rank 0's values of a tensor on the host, of one shape and dtype everywhere, in every rank's. Collective."""
    import torch.distributed as dist

    if world.size > 1:
        tensor = tensor.contiguous()
        dist.broadcast(tensor, 0, group=world.host_group)
    return tensor


@contextlib.contextmanager
def same_fate() -> Iterator[None]:
    """All ranks leave this block together: if one of them met a `GlmftError`, every rank raises all their problems."""
    import torch.distributed as dist

    problem: GlmftError | None = None
    try:
        yield
    except GlmftError as error:
        problem = error
    of_ranks: list[GlmftError | None] = [problem]
    if dist.is_initialized() and dist.get_world_size() > 1:
        of_ranks = [None] * dist.get_world_size()
        dist.all_gather_object(of_ranks, problem)
    raised = [error for error in of_ranks if error is not None]
    if raised:
        lines = dict.fromkeys(line for error in raised for line in error.problems)
        raise type(raised[0])(lines, of_all_ranks=True) from None


def whole_shape(parameter: Any) -> Any:
    """The shape of a parameter, of which ZeRO-3 may leave an empty tensor here."""
    return getattr(parameter, "ds_shape", parameter.shape)


@contextlib.contextmanager
def gathered(parameters: Iterable[Any], modified: bool = False) -> Iterator[None]:
    """Inside, parameters of ZeRO-3 and of other stages are whole on every rank; with neither nothing happens.

    Args:
        modified: keep what every rank makes of them, in the same way.
    """
    parameters = list(parameters)
    partitioned = [p for p in parameters if hasattr(p, "ds_id")]
    with contextlib.ExitStack() as stack:
        for parameter in parameters:
            if hasattr(parameter, "home"):
                stack.enter_context(brought(parameter, modified))
        if partitioned:
            import deepspeed

            stack.enter_context(deepspeed.zero.GatheredParameters(partitioned, modifier_rank=0 if modified else None))
        yield
