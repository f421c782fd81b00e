"""CPU time per real token with `--torch_compile` and without, and what compiling costs.

    python -m benchmarks.compiled [--columns lora,lora-small,lora-1x8,ptuning,freeze] [--data FILE] [--steps 4]

Models and records are those of `python -m benchmarks.training`. Both models run the same records in one process on one
thread, in random turns; time is the processes' own. Their losses have to agree. The first step compiles: what it takes
longer than the other's first step is given, from an empty cache of the compiler.
"""

import argparse
import random
import resource
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from benchmarks.training.columns import COLUMNS, DATA, RATE, Case, Padding, our_model, steps_of, trained
from glmft.data.collate import one_row
from glmft.data.encode import Example


def cpu_seconds() -> float:
    """Of this process and of the compilers that it has run."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


class Arm:
    """One of the two models, and its optimizer."""

    def __init__(self, case: Case, is_compiled: bool):
        from glmft.models.compiling import compile_layers

        self.model: nn.Module = our_model(case)
        self.optimizer = torch.optim.AdamW(trained(self.model), RATE)
        self.tokenizer, self.seconds = Padding(case.first_position, case.vocabulary), 0.0
        if is_compiled:
            compile_layers(self.model)

    def step(self, micro_batches: list[list[Example]]) -> float:
        """One optimizer step; its mean loss. Adds up the time that it takes."""
        began, total = cpu_seconds(), 0.0
        supervised = sum(row.supervised for rows in micro_batches for row in rows)
        for rows in micro_batches:
            batch = one_row(rows, self.tokenizer)
            loss = self.model(**batch, num_items_in_batch=supervised, return_logits=False, use_cache=False).loss
            loss.backward()
            total += loss.item()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.seconds += cpu_seconds() - began
        return total


def measure(column: str, data: Path, steps: int) -> str:
    """A line on one column. Raises SystemExit if the two models compute different things."""
    from torch._dynamo.utils import counters

    case = Case(column, "compiled", 256, 4, 65_024, data, steps)
    first, *rest = steps_of(case, "grouped")[-steps - 1 :]
    arms = [Arm(case, is_compiled) for is_compiled in (False, True)]
    torch._dynamo.reset()
    counters.clear()
    losses = [arm.step(first) for arm in arms]
    if abs(losses[0] - losses[1]) > 1e-5 * losses[0]:
        raise SystemExit(f"{column}: the first losses differ: {losses}")
    compiling = arms[1].seconds - arms[0].seconds
    for arm in arms:
        arm.seconds = 0.0
    for step in rest:
        for arm in random.sample(arms, 2):
            arm.step(step)
    tokens = sum(len(row.ids) for step in rest for rows in step for row in rows)
    eager, compiled = (1000 * arm.seconds / tokens for arm in arms)
    graphs = counters["stats"]["unique_graphs"]
    return (
        f"{column:>10}: {eager:.3f} ms of CPU a token, compiled {compiled:.3f} ({eager / compiled:.2f}x); "
        f"compiling {graphs} graphs {compiling:.0f} s of CPU"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", default=",".join(COLUMNS))
    parser.add_argument("--data", type=Path, default=DATA, help="file whose records' lengths the rows have")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps that are measured, of 8 records each")
    args = parser.parse_args()
    torch.set_num_threads(1)
    import torch._inductor.config as inductor
    from torch._inductor.utils import fresh_inductor_cache

    inductor.compile_threads = 1  # all in this process, whose clock counts
    for column in args.columns.split(","):
        with tempfile.TemporaryDirectory() as folder, fresh_inductor_cache(dir=folder):
            print(measure(column, args.data, args.steps), flush=True)


if __name__ == "__main__":
    main()
