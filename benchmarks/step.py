"""Time of one optimizer step of the loop, beside a bare DeepSpeed loop and raw torch on the same model and batches.

    python -m benchmarks.step [--steps 40] [--ds_file ds_zero2_no_offload.json] [--device auto]

All three run in one process and take turns at every step, so that a noisy machine slows them alike. The loop's time is
that of the whole iteration in `glmft/engine.py`: collating, counting, the step, checks and log lines. The other two get
batches that are collated already. Medians, and their ratios, are printed.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from glmft import engine as loop
from glmft.commands.quiet import quiet
from glmft.commands.train import prepare, prepare_model
from glmft.data.sampler import Plan
from glmft.dist import start
from glmft.settings.config import TrainConfig
from glmft.settings.defaults import with_defaults
from glmft.training.job import Job, autocast, count_supervised, make_batch
from glmft.training.optim import make_optimizer

SHAPE = {"hidden_size": 384, "num_layers": 6, "num_attention_heads": 6, "kv_channels": 64, "ffn_hidden_size": 1024}
SHAPE_CUDA = {"hidden_size": 2048, "num_layers": 16, "num_attention_heads": 16, "kv_channels": 128}
WARM = 3  # first steps, which are not counted


@dataclass(frozen=True)
class TakingTurns(Plan):
    """A plan whose windows are handed to the loop and then to the others; the time of each is noted."""

    others: dict[str, Callable[[list[int]], None]] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    settle: Callable[[], None] = lambda: None

    def windows(self, start: int, total: int) -> Iterator[tuple[int, list[int]]]:
        for step, window in super().windows(start, total):
            self.settle()
            began = time.perf_counter()
            yield step, window
            self.settle()
            self.seconds.setdefault("loop", []).append(time.perf_counter() - began)
            for name, other in self.others.items():
                batches = other.__self__.batches(window)
                self.settle()
                began = time.perf_counter()
                other(batches)
                self.settle()
                self.seconds.setdefault(name, []).append(time.perf_counter() - began)


class Bare:
    """What a script without a library would do, with DeepSpeed's engine or with torch alone."""

    def __init__(self, model: Any, job: Job, with_deepspeed: bool):
        self.model, self.job = model, job
        self.optimizer = make_optimizer(model, job.config)
        if with_deepspeed:
            import deepspeed

            self.model = deepspeed.initialize(model=model, optimizer=self.optimizer, config=job.ds_config)[0]
        self.model.train()

    def batches(self, window: list[int]) -> tuple[list[dict], int]:
        rows = self.job.plan.micro_batches(window, 0)
        batches = [make_batch(self.job.rows, numbers, window, self.job) for numbers in rows]
        return batches, count_supervised(batches)

    def deepspeed_step(self, given: tuple[list[dict], int]) -> None:
        for batch in given[0]:
            with autocast(self.job.world):
                loss = self.model(**batch, num_items_in_batch=given[1]).loss
            self.model.backward(loss, scale_wrt_gas=False)
            self.model.step()

    def torch_step(self, given: tuple[list[dict], int]) -> None:
        for batch in given[0]:
            with autocast(self.job.world):
                loss = self.model(**batch, num_items_in_batch=given[1]).loss
            loss.backward()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def measure(folder: Path, args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of every counted step, by name."""
    from examples.official_layout import make_checkpoint, sentencepiece_model
    from examples.quickstart.make_base import CHARACTERS, corpus

    world = start(args.device, "auto")
    shape = SHAPE_CUDA if world.device.type == "cuda" else SHAPE
    vocabulary = sentencepiece_model("glm2", corpus(), CHARACTERS)
    base = make_checkpoint(folder / "base", "glm2", vocabulary, shape, safetensors=True)
    config = TrainConfig(
        model_name_or_path=str(base),
        mode="glm2",
        lora_module_name="all-linear",
        max_steps=args.steps + WARM,
        per_device_train_batch_size=args.batch,
        gradient_accumulation_steps=2,
        save_model_step=10**6,
        ds_file=args.ds_file,
        output_dir=str(folder / "out"),
    )
    quiet()
    config = with_defaults(config)[0]
    prepared = prepare(config, world)
    job = prepared.job
    job.folder.mkdir()
    models = [prepare_model(job, prepared.model_config)[0] for _ in range(3)]
    bare = Bare(models[1], job, with_deepspeed=True)
    raw = Bare(models[2].to(world.device), job, with_deepspeed=False)
    settle = torch.cuda.synchronize if world.device.type == "cuda" else lambda: None
    plain = {f.name: getattr(job.plan, f.name) for f in dataclasses.fields(Plan)}
    others = {"bare DeepSpeed": bare.deepspeed_step, "raw torch": raw.torch_step}
    job.plan = TakingTurns(**plain, others=others, settle=settle)
    loop.train(models[0], job)
    return {name: seconds[WARM:] for name, seconds in job.plan.seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=16, help="records in a micro-batch; two of them make a step")
    parser.add_argument("--ds_file", default="ds_zero2_no_offload.json")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(Path(folder), args)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        fastest, slowest = min(seconds[name]), max(seconds[name])
        print(f"{name:>14}: {1000 * median:.1f} ms a step (from {1000 * fastest:.1f} to {1000 * slowest:.1f})")
    for name in ("bare DeepSpeed", "raw torch"):
        turns = [own / other for own, other in zip(seconds["loop"], seconds[name], strict=True)]
        print(f"loop over {name}: {medians['loop'] / medians[name]:.3f}; by turns {statistics.median(turns):.3f}")


if __name__ == "__main__":
    main()
