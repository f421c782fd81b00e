"""Run the training command in 1 or more ranks, quickly: processes fork from one that has imported the libraries."""

import contextlib
import multiprocessing
import os
import signal
import sys
from pathlib import Path

from examples.quickstart.run import free_port

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "examples" / "quickstart" / "base"
LORA = ["--train_type", "lora", "--lora_module_name", "query_key_value,dense", "--lora_dim", "4", "--lora_dropout", "0"]
SECONDS = 120


def _die_after(forward_passes: int) -> None:
    """Let this process be killed in the middle of training: before the forward pass after so many."""
    from glmft import engine

    done, real = 0, engine.summed_loss

    def counted(*args):
        nonlocal done
        if done == forward_passes:
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1
        return real(*args)

    engine.summed_loss = counted


def _rank(rank: int, size: int, port: int, argv: list[str], log: str, die_after: int | None) -> None:
    with open(log, "w", encoding="utf-8", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
        )
        import torch

        from glmft.cli import main

        torch.set_num_threads(1)
        if die_after is not None:
            _die_after(die_after)
        code = main(argv, command="train", program="train.py")
        with contextlib.suppress(Exception):
            torch.distributed.destroy_process_group()
        sys.stdout.flush()
        os._exit(code)


def start(
    argv: list[str], size: int, folder: Path, die_after: int | None = None
) -> tuple[list[multiprocessing.Process], list[str]]:
    """The ranks of a run, started, and the files that they print into."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["glmft.engine", "glmft.tuners", "glmft.run", "glmft.models.loading", "peft"])
    port = free_port()
    logs = [str(folder / f"rank{rank}.log") for rank in range(size)]
    ranks = [
        context.Process(target=_rank, args=(rank, size, port, argv, logs[rank], die_after)) for rank in range(size)
    ]
    for process in ranks:
        process.start()
    return ranks, logs


def train(argv: list[str], size: int, folder: Path, die_after: int | None = None) -> tuple[list[int], str]:
    """Exit codes of all ranks, and what they printed; `folder` takes the logs.

    Args:
        die_after: forward passes of each rank after which it gets SIGKILL.
    """
    ranks, logs = start(argv, size, folder, die_after)
    for process in ranks:
        process.join(SECONDS)
    late = [process for process in ranks if process.is_alive()]
    for process in late:
        process.kill()
    printed = "".join(Path(log).read_text(encoding="utf-8") for log in logs)
    assert not late, f"still running after {SECONDS} s:\n{printed}"
    return [process.exitcode for process in ranks], printed
