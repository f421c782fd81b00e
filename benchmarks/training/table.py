"""A column of the table: its arms by turns, their losses compared before anything is measured."""

import multiprocessing
import random
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.training.arms import ARMS
from benchmarks.training.columns import GATE, Case, steps_of
from benchmarks.training.turns import Lost, Running

AGREE = 3e-6  # relative difference of losses, at most
# What the arms import: their processes fork from one that has it.
PRELOADED = [
    *("peft", "transformers.trainer", "transformers.models.glm.modeling_glm", "glmft.engine", "glmft.tuners"),
    *("glmft.models.chatglm2", "datasets", "accelerate", "torch.utils.tensorboard", "deepspeed.runtime.zero.utils"),
    *("deepspeed.runtime.zero.muon.original_muon", "torch.distributed.tensor", "torch._inductor"),
]


@dataclass
class Figures:
    """Of one arm in one column.

    Args:
        losses: of the first steps, in nats.
        seconds: of CPU, in the measured steps.
        tokens: real ones, in those steps.
        memory_mib: the most over the loaded model.
        problem: why there are no figures.
    """

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    tokens: int = 0
    memory_mib: float = 0.0
    problem: str | None = None

    @property
    def milliseconds(self) -> float | None:
        """Of CPU, for a real token."""
        return None if self.problem or not self.tokens else 1000 * self.seconds / self.tokens

    def as_json(self) -> dict:
        return {**asdict(self), "ms_per_token": self.milliseconds}


def measure_column(cases: dict[str, Case], logs: Path, seconds: float) -> dict[str, Figures]:
    """Figures by arm.

    Args:
        cases: by arm, the first of which the others' losses are compared with.
        logs: folder of what the arms print.
        seconds: that a step may take by the clock on the wall.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    figures = {name: Figures() for name in cases}
    running: dict[str, Running] = {}

    def lose(name: str, problem: object) -> None:
        figures[name].problem = str(problem)
        if name in running:
            running.pop(name).stop()

    try:
        for name, case in cases.items():
            try:
                running[name] = Running(context, ARMS[name].run, case, logs / f"{case.column_name}-{name}.log", seconds)
            except Lost as problem:
                lose(name, problem)
        for name in list(running):
            try:
                figures[name].losses = [running[name].step()[1] for _ in range(GATE)]
            except Lost as problem:
                lose(name, problem)
        for name, problem in differences({name: figures[name].losses for name in running}).items():
            lose(name, problem)
        take_turns(running, cases, figures, lose)
    finally:
        for name, arm in running.items():
            figures[name].memory_mib = arm.peak
            arm.stop()
    return figures


def differences(losses: dict[str, list[float]]) -> dict[str, str]:
    """Arms whose losses are not those of the first arm, and where they leave them."""
    problems = {}
    names = list(losses)
    for name in names[1:]:
        for step, (loss, right) in enumerate(zip(losses[name], losses[names[0]], strict=True), 1):
            if not abs(loss - right) <= AGREE * abs(right):
                problems[name] = f"computes something else: loss {loss:.7f} in step {step}, {names[0]} {right:.7f}"
                break
    return problems


def take_turns(running: dict[str, Running], cases: dict[str, Case], figures: dict[str, Figures], lose) -> None:
    """All measured steps, arm by arm in random order; one with fewer or more steps takes its turns evenly."""
    tokens = {name: [real_tokens(s) for s in steps_of(cases[name], ARMS[name].order)[GATE:]] for name in running}
    turns = [((i + random.random()) / len(steps), name, i) for name, steps in tokens.items() for i in range(len(steps))]
    for _, name, _ in sorted(turns):
        if name not in running:
            continue
        try:
            spent, _ = running[name].step()
        except Lost as problem:
            lose(name, problem)
            continue
        done = figures[name]
        done.seconds += spent
    for name in running:
        figures[name].tokens = sum(tokens[name])


def real_tokens(step: list) -> int:
    return sum(len(row.ids) for rows in step for row in rows)


def estimate(began: float, finished: int, of: int) -> str:
    """How long it has taken, and about how long it will."""
    passed = time.monotonic() - began
    return f"{passed / 60:.1f} min, about {passed / max(1, finished) * (of - finished) / 60:.0f} more"


def cases_of(column: str, arms: Iterable[str], **sizes) -> dict[str, Case]:
    return {arm: Case(column, arm, **sizes) for arm in arms if ARMS[arm].is_in(column)}
