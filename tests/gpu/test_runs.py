"""Whole runs in every number format, ZeRO stage and offload, against one in float32 on the same device.

On an accelerator each is a process of its own, as users start it; the CPU's run here by the same function.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
GPU, SLOW = pytest.mark.gpu, pytest.mark.slow
STEPS = 6
LORA = ["--train_type", "lora", "--lora_module_name", "all-linear", "--lora_dim", "4", "--lora_dropout", "0"]
RUN = ["--max_steps", str(STEPS), "--show_loss_step", "1", "--per_device_train_batch_size", "8", "--max_len", "128"]
RUN += ["--learning_rate", "3e-3", "--compare_answers", "False", "--show_first_record", "False"]
PREFIX = ["--train_type", "ptuning", "--prefix_dropout", "0", "--learning_rate", "1e-3"]
PACKED = ["--packing", "True"]
# Flags, and how far a loss may be from float32's; none: its weights are others.
CASES = {
    "bf16": (["--dtype", "bf16"], 3e-2),
    "fp16": (["--dtype", "fp16"], 1e-2),
    "ZeRO-3": (["--dtype", "fp32", "--ds_file", "ds_zero3_no_offload.json"], 1e-3),
    "offload of the optimizer": (["--dtype", "fp32", "--ds_file", "ds_zero2_offload.json"], 1e-3),
    "ZeRO-3 with offload": (["--dtype", "bf16", "--ds_file", "ds_zero3_offload.json"], 3e-2),
    "INT4": (["--dtype", "bf16", "--quantization_bit", "4"], None),
    "P-Tuning": (["--dtype", "bf16", *PREFIX], 3e-2),
    "packing": (["--dtype", "bf16", *PACKED], 3e-2),
}
TWINS = {"P-Tuning": PREFIX, "packing": PACKED}  # flags of the run in float32 too
ON_CPU = [pytest.param("cpu", name, marks=SLOW) for name in ("bf16", "ZeRO-3 with offload", "INT4", "P-Tuning")]


def run(device: str, flags: list[str], folder: Path, launcher: tuple[str, ...] = ()) -> tuple[list[float], str]:
    """The losses of each step, and what was printed."""
    start = [sys.executable, *launcher, "train.py", "--device", device, "--output_dir", str(folder / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    ended = subprocess.run(
        [*start, *RUN, *LORA, *flags], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    printed = ended.stdout + ended.stderr
    assert ended.returncode == 0, printed[-4000:]
    lines = (folder / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines], printed


@pytest.fixture(scope="module")
def in_float32(tmp_path_factory):
    """The losses of such a run on a device, with more flags."""
    known: dict[tuple[str, ...], list[float]] = {}

    def losses(device: str, flags: list[str]) -> list[float]:
        key = (device, *flags)
        if key not in known:
            known[key] = run(device, ["--dtype", "fp32", *flags], tmp_path_factory.mktemp("float32"))[0]
        return known[key]

    return losses


@pytest.mark.parametrize(("device", "case"), [*ON_CPU, *[pytest.param("cuda", name, marks=GPU) for name in CASES]])
def test_a_run_learns_what_it_learns_in_float32(device, case, in_float32, tmp_path):
    require(device)
    flags, near = CASES[case]
    losses, printed = run(device, flags, tmp_path)
    assert f"1 rank on {device}" in printed
    assert ("nccl" if device == "cuda" else "gloo") in printed
    assert len(losses) == STEPS
    if near is None:
        assert losses[-1] < losses[0]
    else:
        assert losses == pytest.approx(in_float32(device, TWINS.get(case, [])), rel=near)
    if case == "fp16":
        state = json.loads((tmp_path / "out" / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
        assert state["loss_scaler"]


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=SLOW), pytest.param("cuda", marks=GPU)])
def test_a_launcher_with_one_rank_does_the_same(device, in_float32, tmp_path):
    require(device)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1")
    losses, _ = run(device, ["--dtype", "fp32"], tmp_path, launcher)
    assert losses == pytest.approx(in_float32(device, []), rel=1e-4)


def require(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
