"""glmft's loop and the best Trainer arm on one piece of work, timed by the clock on the wall."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.work import Work, arithmetic, documents, our_model, settings, their_model
from benchmarks.training.columns import Padding

WARM = 3  # steps that are not counted
MIB = 1 << 20


class Finished(Exception):
    """All steps are timed: nothing of what comes behind them is wanted."""


class Clock:
    """Takes the place of `Turns`: steps follow each other, and the device is waited for between them.

    Args:
        seconds: that counted steps take together, about; at least one is counted, at most `steps`.
    """

    def __init__(self, device: str, steps: int, seconds: float):
        self.on_gpu, self.most, self.budget = device == "cuda", steps, seconds
        self.taken: list[float] = []
        self.base, self.began, self.begun = 0, None, 0

    @property
    def steps(self) -> int:
        """That are made, at most."""
        return WARM + self.most

    def loaded(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.base = torch.cuda.memory_allocated()

    def note(self, loss: Tensor) -> None:
        """Losses are not looked at."""

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self.began is not None and self.begun > WARM:
            self.taken.append(now - self.began)
        if len(self.taken) >= self.most or sum(self.taken) > self.budget:
            raise Finished
        self.begun += 1
        self.began = time.perf_counter()

    def each(self, steps: list) -> Iterator[Any]:
        for step in steps:
            self.wait()
            yield step
        self.wait()

    @property
    def step(self) -> float:
        """Seconds of the middle one of the counted steps."""
        return sorted(self.taken)[len(self.taken) // 2]


@dataclass(frozen=True)
class Speed:
    """Of one arm.

    Args:
        tokens_per_second: real ones.
        flops: operations a second of the step's arithmetic, which checkpointing does not add to.
        peak_mib: most of the device's memory, with the model; None: on a CPU.
        model_mib: of the model alone.
        planned_mib: what the plan says of the peak; None: of another arm.
        checkpointing: whether layers were computed again, as there was no room otherwise.
    """

    step: float
    steps: int
    tokens_per_second: float
    flops: float
    peak_mib: float | None
    model_mib: float | None
    planned_mib: float | None
    checkpointing: bool

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(arm: str, work: Work, shape: dict[str, Any], device: str, clock: Clock, checkpointing: bool) -> Speed:
    """An arm on its work. Raises torch.OutOfMemoryError."""
    with contextlib.suppress(Finished):
        ARMS[arm](work, shape, device, clock, documents(work, shape["padded_vocab_size"], clock.steps), checkpointing)
    gpu = torch.cuda if device == "cuda" else None
    return Speed(
        clock.step,
        len(clock.taken),
        sum(work.lengths) / clock.step,
        arithmetic(work, shape).total / clock.step,
        gpu and gpu.max_memory_allocated() / MIB,
        gpu and clock.base / MIB,
        planned_mib(work, shape, device, checkpointing) if arm == "glmft" else None,
        checkpointing,
    )


def ours(work: Work, shape: dict[str, Any], device: str, clock: Clock, steps: list, checkpointing: bool) -> None:
    """glmft's own loop with DeepSpeed's ZeRO-2."""
    from benchmarks.training.ours import STEPS_ALONE, train_by_turns
    from glmft.dist import start

    config = settings(work, device, gradient_checkpointing=int(checkpointing), **STEPS_ALONE)
    world = start(device, config.dtype)
    model = our_model(shape, config, device)
    clock.loaded()
    train_by_turns(model, config, world, steps, clock, Padding(size=shape["padded_vocab_size"]))


def trainer(work: Work, shape: dict[str, Any], device: str, clock: Clock, steps: list, checkpointing: bool) -> None:
    """transformers' GLM and peft in the Trainer: SDPA, documents of like length, logits at labels only."""
    from benchmarks.training.arms import expert_loss
    from benchmarks.training.trainer import train_by_turns

    model = their_model(shape, work, device, checkpointing)
    clock.loaded()
    on_gpu, virtual = device == "cuda", work.flags.get("pre_seq_len", 0)

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=on_gpu):  # the Trainer's is around the model's own call
            return expert_loss(model, batch, virtual)

    flags = {"use_cpu": not on_gpu, "bf16": on_gpu, "optim": "adamw_torch_fused", "dataloader_pin_memory": on_gpu}
    train_by_turns(model, steps, clock, loss, True, **flags)


ARMS = {"glmft": ours, "trainer": trainer}


def planned_mib(work: Work, shape: dict[str, Any], device: str, checkpointing: bool) -> float:
    """The peak that `glmft plan` expects."""
    from glmft.planning.memory import memory
    from glmft.planning.network import Load
    from glmft.planning.run import setting_of, shipped_zero
    from glmft.planning.shape import shape_of

    config = settings(work, device, gradient_checkpointing=int(checkpointing))
    [[rows]] = documents(work, shape["padded_vocab_size"], 1)
    load = Load(work.lengths, sum(row.supervised for row in rows), None)
    zero = shipped_zero(2, False, shape["hidden_size"])
    described = shape_of({"model_type": "chatglm", "multi_query_attention": True, "add_qkv_bias": True, **shape})
    return memory(setting_of(config, described, load, config.dtype, zero, 1, device == "cuda", None)).peak / MIB
