"""What was found on a GPU, as JSON and as Markdown."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.work import CHATGLM2_6B, SMALL, WORKS, arithmetic, matmul_rate
from benchmarks.training.report import versions
from glmft.files import new_file, write_json

ARM_NAMES = {"glmft": "glmft", "trainer": "Trainer + peft, logits at labels only"}
FORMULA = """The roof is what the device would do if all arithmetic of a step ran at the rate of one large matrix
product that was measured here: for a token 4 operations a number of the frozen layers (2 forward, 2 for the gradient of
the input), 6 for LoRA's, 4 a number of the head at supervised tokens alone, and 6 s^2 h a layer for causal attention
over a document of s tokens. What checkpointing computes again does not count, so it lowers the share."""


@dataclass
class Findings:
    """What is known so far.

    Args:
        speeds: figures, or the reason why there are none, by work and arm.
        tests: what they print last.
    """

    folder: Path
    command: str
    device: str
    speeds: dict[tuple[str, str], dict[str, Any] | str] = field(default_factory=dict)
    tests: list[str] = field(default_factory=list)
    tests_problem: str | None = None

    @property
    def markdown(self) -> Path:
        return self.folder / "GPU.md"

    @property
    def json(self) -> Path:
        return self.folder / "gpu.json"

    @cached_property
    def rate(self) -> float:
        """Operations a second of a large product."""
        return matmul_rate(self.device) if self.device == "cuda" else matmul_rate("cpu", 128, 2)

    @cached_property
    def machine(self) -> str:
        if self.device == "cpu":
            return "a CPU, at a small size: a trial, no figures"
        about = torch.cuda.get_device_properties(0)
        return f"{about.name}, {about.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"

    @property
    def problems(self) -> list[str]:
        lost = [f"{WORKS[w].title}, {ARM_NAMES[a]}: {v}" for (w, a), v in self.speeds.items() if isinstance(v, str)]
        return lost + ([f"tests: {self.tests_problem}"] if self.tests_problem else [])

    def note(self, work: str, arm: str, found: dict[str, Any] | str) -> None:
        self.speeds[work, arm] = found

    def share(self, figures: dict[str, Any]) -> float:
        """Of the roof."""
        return figures["flops"] / self.rate

    def line(self, work: str, arm: str) -> str:
        """For whoever waits."""
        figures, name = self.speeds[work, arm], f"{WORKS[work].title}, {ARM_NAMES[arm]}"
        if isinstance(figures, str):
            return f"{name}: {figures}"
        return f"{name}: {figures['tokens_per_second']:,.0f} tokens/s, {self.share(figures):.0%} of the roof"

    def write(self, minutes: float) -> None:
        """Both files, each whole or not at all."""
        speeds = {f"{work} {arm}": found for (work, arm), found in self.speeds.items()}
        head = {"command": self.command, "machine": self.machine, "versions": versions(), "minutes": minutes}
        shape = CHATGLM2_6B if self.device == "cuda" else SMALL
        work = {name: vars(arithmetic(WORKS[name], shape)) for name in WORKS}
        tests = {"tests": self.tests, "problems": self.problems}
        write_json(self.json, {**head, "matmul_flops": self.rate, "arithmetic": work, "speeds": speeds, **tests})
        with new_file(self.markdown) as aside:
            aside.write_text(self.text(minutes), encoding="utf-8")

    def text(self, minutes: float) -> str:
        named = ", ".join(f"{name} {number}" for name, number in versions().items())
        about = (
            f"Made by `{self.command}` in {minutes:.1f} minutes on {self.machine}; {named}. ChatGLM2-6B's shape with "
            f"random weights, bf16; a product of two large matrices runs at {self.rate / 1e12:.1f} TFLOP/s."
        )
        head = "| work | arm | tokens/s | ms a step | share of the roof | peak MiB | of them the model | plan's MiB | |"
        rows = [self.row(work, arm) for work, arm in self.speeds if not isinstance(self.speeds[work, arm], str)]
        problems = ["## Without figures", "\n".join(f"- {line}" for line in self.problems)] if self.problems else []
        tests = ["## Tests", "```text\n" + "\n".join(self.tests) + "\n```"] if self.tests else []
        table = "\n".join([head, "|---" * 9 + "|", *rows])
        return "\n\n".join(["# Training steps on a GPU", about, table, FORMULA, *problems, *tests]) + "\n"

    def row(self, work: str, arm: str) -> str:
        figures: Any = self.speeds[work, arm]
        sizes = [figures[name] for name in ("peak_mib", "model_mib", "planned_mib")]
        cells = [
            WORKS[work].title,
            ARM_NAMES[arm],
            f"{figures['tokens_per_second']:,.0f}",
            f"{1000 * figures['step']:,.1f}",
            f"{self.share(figures):.0%}",
            *["–" if size is None else f"{size:,.0f}" for size in sizes],
            "with checkpointing" if figures["checkpointing"] else "",
        ]
        return f"| {' | '.join(cells)} |"
