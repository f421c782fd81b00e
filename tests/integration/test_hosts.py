"""Two launchers on one machine form one job, as two hosts would; one of them is killed, and both go on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ranks import ROOT, free_port, wait_for
from safetensors.torch import load_file

BIN = Path(sys.executable).parent
FLAGS = [
    *("--train_type", "lora", "--lora_dropout", "0.1", "--max_len", "512", "--per_device_train_batch_size", "1"),
    *("--gradient_accumulation_steps", "2", "--show_loss_step", "1", "--save_model_step", "5"),
]


def hosts(launcher: str, flags: list[str], folder: Path) -> list[subprocess.Popen]:
    """The two launchers, each in a process group of its own."""
    port, started = str(free_port()), []
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path, "PYTHONPATH": str(ROOT)}
    hostfile = folder / "hostfile"
    hostfile.write_text("first slots=1\nsecond slots=1\n")
    for number in range(2):
        command = {
            "torchrun": ["torchrun", "--nnodes", "2", "--node_rank", str(number), "--nproc_per_node", "1"],
            "deepspeed": ["deepspeed", "--hostfile", str(hostfile), "--no_ssh", "--node_rank", str(number)],
        }[launcher]
        command += ["--master_addr", "127.0.0.1", "--master_port", port, "train.py", *flags]
        with (folder / f"host{number}.log").open("w") as log:
            started.append(
                subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
            )
    return started


def printed(folder: Path) -> str:
    return "".join((folder / f"host{number}.log").read_text() for number in range(2))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_two_hosts_train_as_one_and_go_on_after_one_was_lost(launcher, uneven, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    common = ["--train_path", str(uneven), *FLAGS, "--max_steps", "30"]
    for host in hosts(launcher, [*common, "--output_dir", str(whole)], tmp_path):
        assert host.wait(120) == 0, printed(tmp_path)
    assert "2 ranks on cpu" in printed(tmp_path)
    common += ["--output_dir", str(out), "--resume", "yes"]
    first, second = hosts(launcher, common, tmp_path)
    wait_for(out / "metrics.jsonl", '"step": 7', seconds=90)
    os.killpg(second.pid, signal.SIGKILL)
    began = time.monotonic()
    assert first.wait(60) != 0, printed(tmp_path)
    assert time.monotonic() - began < 60
    for host in hosts(launcher, common, tmp_path):
        assert host.wait(120) == 0, printed(tmp_path)
    want, got = (load_file(folder / "adapter_model.safetensors") for folder in (whole, out))
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())
