"""What libraries raise when memory runs out or another rank is gone, in one line that a user can act on."""

import contextlib
import errno
import re
from collections.abc import Callable, Iterator

from glmft.errors import CheckpointError, GlmftError, OutOfMemory, RankLost, one_line

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
_LOST = re.compile(r"connection (closed|reset)|broken pipe|gloo|nccl|socket", re.IGNORECASE)


@contextlib.contextmanager
def explained(ranks: int, advice: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Turn such an exception into an `OutOfMemory` or a `RankLost`; let all others pass.

    Args:
        ranks: how many there are; one alone cannot lose another.
        advice: what helps against a lack of memory.
    """
    try:
        yield
    except GlmftError:
        raise
    except Exception as error:
        if is_lack_of_memory(error):
            reason = one_line(error, 160) or type(error).__name__
            raise OutOfMemory(f"out of memory ({reason}){advice()}") from None
        if ranks > 1 and isinstance(error, RuntimeError) and _LOST.search(str(error)):
            raise RankLost("another rank has ended, so this run cannot go on: see that rank's message") from None
        if isinstance(error, OSError) and error.errno in _FULL:
            raise CheckpointError(f"{error.filename or 'the disk'}: cannot be written ({error.strerror})") from None
        raise


def is_lack_of_memory(error: Exception) -> bool:
    """A device's own class, or the CPU allocator's RuntimeError."""
    import torch

    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or (isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error))))
