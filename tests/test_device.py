"""Where a process computes and in which number format, on machines of every kind; torch.cuda is stood in for."""

from pathlib import Path

import pytest
import torch

from glmft.device import choose_device, choose_dtype, peak_memory, torch_dtype
from glmft.errors import ConfigError

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def machine(monkeypatch):
    """Makes this machine one with that many CUDA devices, which have bf16 or do not."""

    def make(devices: int, has_bf16: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: devices > 0 and has_bf16)

    return make


@pytest.mark.parametrize(
    ("asked", "devices", "local_rank", "device"),
    [
        ("auto", 0, 0, "cpu"),
        ("auto", 1, 0, "cuda:0"),
        ("cpu", 0, 0, "cpu"),
        ("cpu", 4, 2, "cpu"),
        ("cuda", 4, 0, "cuda:0"),
        ("cuda", 4, 3, "cuda:3"),
        ("auto", 2, 3, "cuda:1"),  # more ranks than devices share them in turn
        ("auto", 0, 3, "cpu"),
    ],
)
def test_each_rank_takes_its_own_accelerator_if_there_is_one(asked, devices, local_rank, device, machine):
    machine(devices)
    assert choose_device(asked, local_rank) == torch.device(device)


def test_a_cuda_device_that_is_not_there_is_one_line(machine):
    machine(0)
    with pytest.raises(ConfigError, match=r"--device cuda: torch sees no CUDA device here; use --device cpu or auto"):
        choose_device("cuda")


@pytest.mark.parametrize(
    ("asked", "preferred", "device", "has_bf16", "chosen"),
    [
        # A flag holds on every device, whatever is preferred.
        ("fp16", "bf16", CPU, True, torch.float16),
        ("bf16", None, GPU, False, torch.bfloat16),
        ("fp32", "fp16", GPU, True, torch.float32),
        # Nothing preferred: half precision where an accelerator has it.
        ("auto", None, CPU, True, torch.float32),
        ("auto", None, GPU, True, torch.bfloat16),
        ("auto", None, GPU, False, torch.float32),
        # What is preferred holds where the device has it.
        ("auto", "fp16", GPU, True, torch.float16),
        ("auto", "fp16", GPU, False, torch.float16),
        ("auto", "bf16", GPU, True, torch.bfloat16),
        ("auto", "bf16", CPU, False, torch.bfloat16),
        # Where it has not, as without a preference.
        ("auto", "fp16", CPU, True, torch.float32),
        ("auto", "bf16", GPU, False, torch.float32),
    ],
)
def test_the_number_format_is_the_flags_else_the_preferred_else_the_devices(
    asked, preferred, device, has_bf16, chosen, machine
):
    machine(int(device.type == "cuda"), has_bf16)
    assert choose_dtype(asked, device, preferred) is chosen


def test_the_flags_number_formats_are_torchs():
    assert [torch_dtype(name) for name in ("fp32", "bf16", "fp16")] == [torch.float32, torch.bfloat16, torch.float16]


def test_peak_memory_is_in_bytes_and_of_what_computes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1234)
    assert peak_memory(GPU) == 1234
    status = Path("/proc/self/status")
    if status.is_file():  # Linux counts the peak there in KiB, a few pages behind
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        assert peak_memory(CPU) == pytest.approx(1024 * int(line.split()[1]), rel=0.02)
