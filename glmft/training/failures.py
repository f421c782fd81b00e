"""What libraries raise when memory runs out or another rank is gone, in one line that a user can act on."""

import contextlib
import errno
import re
from collections.abc import Callable, Iterator

from glmft.dist import World
from glmft.errors import (
    CONTINUED,
    LONGEST_LINE,
    CheckpointError,
    ConfigError,
    GlmftError,
    OutOfMemory,
    RankLost,
    one_line,
)
from glmft.training.roll_call import silent_ranks
from glmft.training.signals import hold_signals

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
_LATE = re.compile(r"timed? ?out", re.IGNORECASE)
_LOST = re.compile(r"connection (closed|reset|refused)|broken pipe|gloo|nccl|socket|timed? ?out", re.IGNORECASE)


@contextlib.contextmanager
def explained(world: World, advice: Callable[[], list[str]] = list) -> Iterator[None]:
    """Turn such an exception into an `OutOfMemory` or a `RankLost`; let all others pass.

    Args:
        world: one rank alone cannot lose another.
        advice: what helps against a lack of memory, the cheapest first.
    """
    try:
        yield
    except GlmftError:
        raise
    except Exception as error:
        if is_lack_of_memory(error):
            reason = one_line(error, 60) or type(error).__name__
            raise OutOfMemory(numbered(f"out of memory ({reason})", advice())) from None
        if world.size > 1 and isinstance(error, RuntimeError) and _LOST.search(str(error)):
            raise RankLost(_what_was_lost(world, error)) from None
        if isinstance(error, OSError) and error.errno in _FULL:
            raise CheckpointError(f"{error.filename or 'the disk'}: cannot be written ({error.strerror})") from None
        raise


def _what_was_lost(world: World, error: Exception) -> str:
    """A rank that hangs by its number; one that has ended says by itself why, if it can."""
    hold_signals()
    silent = silent_ranks(world, bool(_LATE.search(str(error)))) if world.store is not None else []
    if not silent:
        return "another rank has ended, so this run cannot go on: see its message, if it left one (SIGKILL leaves none)"
    ranks = f"rank{'s' * (len(silent) > 1)} {', '.join(map(str, silent))}"
    return (
        f"{ranks} did not answer for {world.timeout} s, so this run cannot go on: see what hangs there, or give "
        "a longer --rank_timeout"
    )


@contextlib.contextmanager
def refusals_of_deepspeed(ds_file: str) -> Iterator[None]:
    """What DeepSpeed does not take of a configuration that its own models let pass, as a ConfigError."""
    try:
        yield
    except (AssertionError, KeyError, NotImplementedError, TypeError, ValueError) as error:
        reason = one_line(error) or type(error).__name__
        raise ConfigError(f"--ds_file {ds_file}: DeepSpeed refuses it ({reason})") from None


def numbered(problem: str, ways: list[str]) -> list[str]:
    """A problem and the ways out of it, in as few lines as are printed whole."""
    lines = [f"{problem}; in this order:" if ways else problem]
    for i, way in enumerate(ways, 1):
        part = f" ({i}) {way}" + ("," if i < len(ways) else "")
        if len(lines[-1]) + len(part) > LONGEST_LINE - len("error: rank 1048576: "):
            lines.append(f"{CONTINUED}then:")
        lines[-1] += part
    return lines


def is_lack_of_memory(error: Exception) -> bool:
    """A device's own class, or the CPU allocator's RuntimeError."""
    import torch

    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or (isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error))))
