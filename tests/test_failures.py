import errno

import pytest
import torch

from glmft.errors import CheckpointError, ConfigError, OutOfMemory, RankLost
from glmft.failures import explained


def raised(error: Exception, ranks: int = 2) -> Exception:
    with pytest.raises(Exception) as caught, explained(ranks, lambda: "; do this"):  # noqa: PT011
        raise error
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_a_lack_of_memory_comes_with_advice_and_is_told_by_its_rank(error):
    told = raised(error)
    assert isinstance(told, OutOfMemory)
    assert str(told).startswith("out of memory (")
    assert str(told).endswith("; do this")
    assert told.alone


def test_a_closed_connection_is_another_rank_that_ended():
    error = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Connection closed by peer")
    assert isinstance(raised(error), RankLost)
    assert raised(error, ranks=1) is error


def test_a_full_disk_is_one_line():
    told = raised(OSError(errno.ENOSPC, "No space left on device", "out/x.json"))
    assert isinstance(told, CheckpointError)
    assert str(told) == "out/x.json: cannot be written (No space left on device)"


def test_errors_of_one_rank_are_told_by_it_and_shared_ones_by_rank_0():
    assert raised(ConfigError("own")).alone
    shared = ConfigError("of all")
    shared.agreed = True
    assert not raised(shared).alone


def test_what_is_not_known_passes():
    assert isinstance(raised(KeyError("a bug")), KeyError)
