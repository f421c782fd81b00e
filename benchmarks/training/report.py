"""The table as JSON and as Markdown, with machine, versions and command."""

import platform
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.training.arms import ARMS
from benchmarks.training.table import AGREE, Figures
from glmft.files import new_file, write_json

LIBRARIES = ("torch", "transformers", "peft", "deepspeed", "accelerate")
ABOUT = """Made by `{command}` in {minutes:.0f} minutes; docs/performance.md says what the arms and columns are.

{machine}; {versions}. Hidden size {hidden}, {layers} layers, a vocabulary of {words:,} words, lengths of `{data}`, \
{steps} steps of 8 records of at most {longest:,} tokens. The losses of the first five steps agree to {agree:g}, or \
the arm has no figures."""


@dataclass
class Results:
    """What is known so far.

    Args:
        folder: of the two files.
        sizes: of the model and the run.
        columns: figures by arm, by column.
        start: of a run, see `measure_start`.
        minutes: that it took by the clock on the wall.
    """

    folder: Path
    command: str
    sizes: dict[str, Any]
    columns: dict[str, dict[str, Figures]] = field(default_factory=dict)
    start: dict[str, Any] = field(default_factory=dict)
    minutes: float = 0.0

    @property
    def markdown(self) -> Path:
        return self.folder / "RESULTS.md"

    @property
    def json(self) -> Path:
        return self.folder / "results.json"

    @property
    def problems(self) -> list[str]:
        """Arms without figures, and why."""
        of_arms = [
            f"{ARMS[arm].title} ({column}): {figures.problem}"
            for column, arms in self.columns.items()
            for arm, figures in arms.items()
            if figures.problem
        ]
        return [*of_arms, f"start: {self.start['problem']}"] if "problem" in self.start else of_arms

    def write(self) -> None:
        """Both files, each whole or not at all."""
        columns = {
            column: {arm: figures.as_json() for arm, figures in arms.items()} for column, arms in self.columns.items()
        }
        head = {"command": self.command, "machine": machine(), "versions": versions(), "minutes": self.minutes}
        write_json(self.json, {**head, "sizes": self.sizes, "columns": columns, "start": self.start})
        with new_file(self.markdown) as aside:
            aside.write_text(self.text(), encoding="utf-8")

    def text(self) -> str:
        named = ", ".join(f"{name} {number}" for name, number in versions().items())
        about = ABOUT.format(
            command=self.command, minutes=self.minutes, machine=machine(), versions=named, agree=AGREE, **self.sizes
        )
        tables = [
            "## Milliseconds of CPU for a real token",
            self.table(lambda figures: figures.milliseconds, "{:.3f}"),
            "## MiB over the loaded model, at most",
            self.table(lambda figures: None if figures.problem else figures.memory_mib, "{:,.0f}"),
        ]
        problems = ["## Without figures", "\n".join(f"- {line}" for line in self.problems)] if self.problems else []
        return "\n\n".join(["# Training steps", about, *tables, *problems, *start_lines(self.start)]) + "\n"

    def table(self, figure: Any, shown: str) -> str:
        """Arms by columns."""
        lines = [f"| | {' | '.join(self.columns)} |", f"|---|{'---|' * len(self.columns)}"]
        for arm in ARMS:
            if any(arm in arms for arms in self.columns.values()):
                values = [figure(arms[arm]) if arm in arms else None for arms in self.columns.values()]
                cells = ["–" if value is None else shown.format(value) for value in values]
                lines.append(f"| {ARMS[arm].title} | {' | '.join(cells)} |")
        lines += [f"| {title} | {' | '.join(map(ratio, arms))} |" for title, arms in self.ratios(figure).items()]
        return "\n".join(lines)

    def ratios(self, figure: Any) -> dict[str, list[tuple[float | None, float | None]]]:
        """What others take beside glmft, by column."""
        found = [{arm: figure(figures) for arm, figures in arms.items()} for arms in self.columns.values()]
        best = [min((v for arm, v in arms.items() if v and ARMS[arm].is_other), default=None) for arms in found]
        return {
            "the plain loop over glmft": [(arms.get("plain"), arms.get("glmft")) for arms in found],
            "the best of the others over glmft": [
                (other, arms.get("glmft")) for other, arms in zip(best, found, strict=True)
            ],
        }

    def lines_of(self, column: str) -> str:
        """For whoever waits."""
        shown = [f"{column}: ms of CPU a token, MiB over the loaded model"]
        for arm, figures in self.columns[column].items():
            found = figures.problem or f"{figures.milliseconds:.3f}  {figures.memory_mib:,.0f}"
            shown.append(f"  {ARMS[arm].title:<36} {found}")
        return "\n".join(shown)


def ratio(pair: tuple[float | None, float | None]) -> str:
    other, ours = pair
    return f"{other / ours:.1f}x" if other and ours else "–"


def start_lines(start: dict[str, Any]) -> list[str]:
    if "first_step" not in start:
        return []
    ratio = start["first_step"] / (start["imports"] + start["step"])
    line = (
        f"From its start to the end of the first step a run takes {start['first_step']:.1f} s of CPU: {ratio:.2f} "
        f"times the imports alone ({start['imports']:.1f} s) plus one ordinary step ({start['step']:.1f} s)."
    )
    parts = "\n".join(f"| {name} | {share:.0%} |" for name, share in start["parts"].items())
    return ["## Start of a run", line, f"| import of | share (`python -X importtime`) |\n|---|---|\n{parts}"]


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def machine() -> str:
    """The processor, how many there are, and the memory."""
    about = Path("/proc/cpuinfo").read_text().split("model name")
    name = about[1].partition(":")[2].partition("\n")[0].strip() if len(about) > 1 else platform.machine()
    total = int(Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0]) / 2**20
    return f"{name}, {len(about) - 1 or 1} cores, {total:.0f} GiB"
