import errno

import pytest
import torch

from glmft.dist import World
from glmft.errors import CheckpointError, ConfigError, OutOfMemory, RankLost, shown
from glmft.training.failures import explained, numbered, refusals_of_deepspeed


def raised(error: Exception, ranks: int = 2) -> Exception:
    world = World(0, 0, ranks, torch.device("cpu"), torch.float32)
    with pytest.raises(Exception) as caught, explained(world, lambda: ["do this", "or that"]):  # noqa: PT011
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
def test_a_lack_of_memory_comes_with_advice_and_is_printed_by_its_rank(error):
    explanation = raised(error)
    assert isinstance(explanation, OutOfMemory)
    assert str(explanation).startswith("out of memory (")
    assert str(explanation).endswith("; in this order: (1) do this, (2) or that")
    assert not explanation.of_all_ranks


def test_a_closed_connection_is_another_rank_that_ended():
    error = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Connection closed by peer")
    assert isinstance(raised(error), RankLost)
    assert raised(error, ranks=1) is error


def test_a_full_disk_is_one_line():
    explanation = raised(OSError(errno.ENOSPC, "No space left on device", "out/x.json"))
    assert isinstance(explanation, CheckpointError)
    assert str(explanation) == "out/x.json: cannot be written (No space left on device)"


def test_our_own_errors_pass_as_they_are():
    error = ConfigError("of all ranks", of_all_ranks=True)
    assert raised(error) is error


def test_what_is_not_known_passes():
    assert isinstance(raised(KeyError("a bug")), KeyError)


def test_ways_out_of_a_problem_stand_in_lines_that_are_printed_whole():
    ways = [f"way {'x' * 80}"] * 6
    lines = numbered("out of memory (no room)", ways)
    assert shown(lines) == [f"error: {lines[0]}", *lines[1:]]
    assert " ".join(lines).replace(",   then:", ",") == "out of memory (no room); in this order: " + ", ".join(
        f"({i}) {way}" for i, way in enumerate(ways, 1)
    )
    assert numbered("out of memory", []) == ["out of memory"]


def test_what_deepspeed_refuses_at_its_start_names_the_file():
    refusal = r"--ds_file a\.json: DeepSpeed refuses it \(no such stage\)"
    with pytest.raises(ConfigError, match=refusal), refusals_of_deepspeed("a.json"):
        raise AssertionError("no such stage")
