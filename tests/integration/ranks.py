"""Run the training command in 1 or more ranks, quickly: processes fork from one that has imported the libraries."""

import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from examples.quickstart.run import free_port

SLOW = pytest.mark.slow
NATIVE = ["native-glm", "native-glm4"]
ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "examples" / "quickstart" / "base"
LORA = ["--train_type", "lora", "--lora_module_name", "query_key_value,dense", "--lora_dim", "4", "--lora_dropout", "0"]
STAGED = ["--pipeline_stages", "2"]
SECONDS = 300
# What a run imports, DeepSpeed's check of optimizers (which takes two seconds) included.
PRELOADED = [
    *("glmft.engine", "glmft.tuners", "glmft.commands.train", "glmft.models.partitioned", "glmft.data.show"),
    *("peft", "datasets", "accelerate.tracking", "torch.utils.tensorboard", "deepspeed.runtime.zero.utils"),
    *("deepspeed.runtime.zero.muon.original_muon", "matplotlib.figure", "matplotlib.backends.backend_agg"),
    *("jieba", "nltk.translate.bleu_score", "rouge_chinese", "torch.distributed.tensor", "torch._inductor"),
]


@dataclass(frozen=True)
class Harm:
    """What befalls the ranks of a run.

    Args:
        die_after: forward passes after which each rank gets SIGKILL.
        bad_gradient_at: the optimizer step, counted from 1, in which a gradient of rank 0 is no number.
        bad_loss_with: a token; the loss of a micro-batch that holds it is no number.
        fails: a rank, and the message of the RuntimeError that it alone raises in its second step.
        file_bytes: the largest file that a rank can write.
        address_bytes: the largest address space that a rank can have.
    """

    die_after: int | None = None
    bad_gradient_at: int | None = None
    bad_loss_with: int | None = None
    fails: tuple[int, str] | None = None
    file_bytes: int | None = None
    address_bytes: int | None = None

    def befall(self, rank: int) -> None:
        from glmft import engine
        from glmft.training import evaluation, longest_batch, pipeline

        passes, whole, stage = 0, engine.summed_loss, pipeline.Stage.forward

        def harmed(out, ids):
            nonlocal passes
            if self.bad_loss_with is not None and (ids == self.bad_loss_with).any():
                out = out * float("nan")
            if self.bad_gradient_at == passes and rank == 0:
                out.register_hook(lambda gradient: gradient * float("nan"))
            passes += 1  # the first is that of the longest batch
            return out

        def begin():
            if passes == self.die_after:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fails and (rank, passes) == (self.fails[0], 2):
                raise RuntimeError(self.fails[1])

        def whole_model(*args):
            begin()
            return harmed(whole(*args), args[1].get("input_ids"))  # none where states are kept

        def one_stage(self, received):
            begin()
            return harmed(stage(self, received), received)

        for module in (engine, evaluation, longest_batch):
            module.summed_loss = whole_model
        pipeline.Stage.forward = one_stage
        for kind, limit in ((resource.RLIMIT_FSIZE, self.file_bytes), (resource.RLIMIT_AS, self.address_bytes)):
            if limit:
                resource.setrlimit(kind, (limit, limit))


def _rank(rank: int, size: int, port: int, argv: list[str], log: str, harm: Harm) -> None:
    with open(log, "w", encoding="utf-8", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
        )
        import torch

        from glmft.cli import main

        torch.set_num_threads(1)
        harm.befall(rank)
        first = ["--longest_batch_first", "True"] if argv[0].startswith("-") else []  # none before a demo's own three
        code = main([*first, *argv], command="train", program="train.py")
        sys.stdout.flush()
        os._exit(code)


def _command(command: str, argv: list[str], log: str, harm: Harm) -> None:
    with open(log, "w", encoding="utf-8", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        import torch

        from glmft.cli import main

        torch.set_num_threads(1)
        harm.befall(0)
        os._exit(main(argv, command=command))


def run(command: str, argv: list[str], folder: Path, **harm: Any) -> tuple[int, str]:
    """Exit code of a command without a launcher, and what it printed; `harm` is that of `Harm`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    log = folder / f"{command}.log"
    process = context.Process(target=_command, args=(command, argv, str(log), Harm(**harm)))
    process.start()
    process.join(SECONDS)
    return process.exitcode, log.read_text(encoding="utf-8")


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The figures that a run has written; every line is whole."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def losses(folder: Path) -> list[float]:
    """The training loss of each of its log lines."""
    return [line["loss"] for line in metrics(folder)]


def wait_for(path: Path, text: str, seconds: float = 240) -> None:
    """Until a file holds a text."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if path.is_file() and text in path.read_text(encoding="utf-8", errors="replace"):
            return
        time.sleep(0.02)
    raise AssertionError(f"{path} never held {text!r}")


def start(
    argv: list[str],
    size: int,
    folder: Path,
    harm: Harm = Harm(),
) -> tuple[list[multiprocessing.Process], list[str]]:
    """The ranks of a run, started, and the files that they print into."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    port = free_port()
    logs = [str(folder / f"rank{rank}.log") for rank in range(size)]
    for log in logs:
        Path(log).write_text("")  # nothing of a run before
    ranks = [context.Process(target=_rank, args=(rank, size, port, argv, logs[rank], harm)) for rank in range(size)]
    for process in ranks:
        process.start()
    return ranks, logs


def train(argv: list[str], size: int, folder: Path, **harm: Any) -> tuple[list[int], str]:
    """Exit codes of all ranks, and what they printed; `folder` takes the logs, `harm` is that of `Harm`."""
    ranks, logs = start(argv, size, folder, Harm(**harm))
    for process in ranks:
        process.join(SECONDS)
    late = [process for process in ranks if process.is_alive()]
    for process in late:
        process.kill()
    printed = "".join(Path(log).read_text(encoding="utf-8") for log in logs)
    assert not late, f"still running after {SECONDS} s:\n{printed}"
    return [process.exitcode for process in ranks], printed
