"""What a run shows: a bar or clean lines, metrics.jsonl, TensorBoard, other trackers, and a picture of the losses."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from glmft.device import peak_memory
from glmft.dist import World
from glmft.errors import ConfigError
from glmft.files import new_file
from glmft.reading import is_file
from glmft.schema import is_whole
from glmft.training.state import LogFigures

METRICS, CURVE = "metrics.jsonl", "loss.png"
DECADE = 10
PLOT_SECONDS = 60.0  # at least so long between two pictures


def check_reporters(names: list[str]) -> None:
    """Raises ConfigError if a tracker is unknown or its library is not installed."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    there = [str(name) for name in get_available_trackers()]
    others = ", ".join(name for name in LOGGER_TYPE_TO_CLASS if name != "tensorboard")
    problems = [
        f"--report_to {name}: "
        + (f"is none of {others}" if name not in LOGGER_TYPE_TO_CLASS else f"is not installed; pip install {name}")
        for name in names
        if name not in there
    ]
    if problems:
        raise ConfigError(problems)


class Tracker:
    """Writes on rank 0 only; elsewhere every call does nothing.

    Args:
        folder: of metrics.jsonl, loss.png and tensorboard/.
        step, total: optimizer steps that are done, and those of the run.
        report_to: further trackers, by accelerate's names.
        settings: what those trackers note beside the run.
        steps_per_epoch: optimizer steps in one pass over the data.
    """

    def __init__(
        self,
        folder: Path,
        world: World,
        step: int,
        total: int,
        report_to: Sequence[str] = (),
        settings: dict[str, Any] | None = None,
        steps_per_epoch: int = 1,
    ):
        self.active, self.world, self.folder, self.total = world.is_main, world, folder, total
        self.started = self.mark = self.plotted = time.monotonic()
        self.first = self.marked_step = step
        self.steps_per_epoch = steps_per_epoch
        self.warned = False
        self.board: Any = None
        self.writers: list[Any] = []
        self.bar = tqdm(total=total, initial=step, unit="step", disable=not (self.active and sys.stderr.isatty()))
        if self.active:
            with self.surviving():
                forget_after(folder / METRICS, step)
            self.start_writers(step, report_to, settings or {})

    def start_writers(self, step: int, report_to: Sequence[str], settings: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        with self.surviving():
            self.board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1)
        if not report_to:
            return
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        plain = {key: value for key, value in settings.items() if isinstance(value, str | int | float)}
        for name in report_to:
            kind = LOGGER_TYPE_TO_CLASS[name]
            folder = {"logging_dir": str(self.folder)} if kind.requires_logging_directory else {}
            writer = kind("glmft", **folder)
            writer.start()
            writer.store_init_configuration(plain)
            self.writers.append(writer)

    @contextlib.contextmanager
    def surviving(self) -> Iterator[None]:
        """A full disk costs figures, not the run; with one warning."""
        try:
            yield
        except OSError as error:
            if not self.warned:
                self.print(f"warning: figures cannot be written into {self.folder} ({error.strerror or error})")
            self.warned = True

    def print(self, line: str) -> None:
        if self.active:
            if self.bar.disable:
                print(line, flush=True)
            else:
                self.bar.write(line)

    def warn(self, line: str | None) -> None:
        """Print a line, if there is one."""
        if line is not None:
            self.print(line)

    def advance(self) -> None:
        """One optimizer step is done."""
        self.bar.update()

    def record(self, figures: dict[str, Any]) -> None:
        """Append one JSON line; hand its numbers to the other trackers."""
        if not self.active:
            return
        with self.surviving(), (self.folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")
        step = figures["step"]
        numbers = {k: v for k, v in figures.items() if k != "step" and v is not None}
        with self.surviving():
            for name, value in numbers.items() if self.board else ():
                self.board.add_scalar(name, value, step)
        for writer in self.writers:
            writer.log(numbers, step)
        if time.monotonic() - self.plotted > PLOT_SECONDS:
            self.plot()

    def log_step(self, step: int, recent: LogFigures, rate: float, norm: float | None) -> None:
        """One log line.

        Args:
            recent: of the steps since the last line; padding is not counted.
            norm: of the last step's gradient; None: it was skipped.
        """
        now = time.monotonic()
        seconds, self.mark = max(1e-9, now - self.mark), now
        left = seconds / max(1, step - self.marked_step) * (self.total - step)
        self.marked_step = step
        memory = peak_memory(self.world.device)
        figures = {
            "step": step,
            "epoch": round(step / self.steps_per_epoch, 4),
            "loss": recent.loss,
            "learning_rate": rate,
            "grad_norm": norm,
            "tokens_per_second": recent.tokens / seconds,
            "supervised_tokens_per_second": recent.supervised / seconds,
            "peak_memory_bytes": memory,
            "seconds": now - self.started,
        }
        self.record(figures)
        shown = f"epoch {figures['epoch']:.2f}  loss {recent.loss:.4f}  lr {rate:.2e}" + (
            "" if norm is None else f"  grad norm {norm:.3f}"
        )
        speed = f"{recent.tokens / seconds:.0f} tokens/s ({recent.supervised / seconds:.0f} supervised)"
        shown += f"  {speed}  {memory / 2**30:.2f} GiB"
        if self.bar.disable:
            self.print(f"step {step}/{self.total}  {shown}  {clock(left)} left")
        else:
            self.bar.set_postfix_str(shown)

    def log_evaluation(self, step: int, figures: dict[str, float]) -> None:
        """Figures of the validation rows; the time they took does not count into the next log line."""
        self.record({"step": step, **figures})
        shown = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
        self.print(f"step {step}/{self.total}  validation: {shown}")
        self.plot()
        self.mark = time.monotonic()

    def plot(self) -> None:
        """loss.png from metrics.jsonl."""
        self.plotted = time.monotonic()
        if self.active:
            with self.surviving():
                draw_losses(self.folder / METRICS, self.folder / CURVE)

    def close(self) -> None:
        if self.active:
            self.plot()
            with self.surviving():
                if self.board:
                    self.board.close()
            for writer in self.writers:
                writer.finish()
        self.bar.close()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; one that a kill cut short, or that is none of ours, is left out."""
    figures = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if is_file(path) else []:
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(line)
            figures += [value] if isinstance(value, dict) and is_whole(value.get("step")) else []
    return figures


def forget_after(path: Path, step: int) -> None:
    """Drop the lines of steps that a resumed run will do again."""
    if path.is_file():
        kept = [figures for figures in read_metrics(path) if figures["step"] <= step]
        with new_file(path) as aside:
            aside.write_text("".join(json.dumps(figures) + "\n" for figures in kept), encoding="utf-8")


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def draw_losses(metrics: Path, picture: Path) -> None:
    """Both curves; on a logarithmic axis where they span a power of ten or more."""
    from matplotlib.figure import Figure

    lines = read_metrics(metrics)
    axes = (figure := Figure(figsize=(7, 4), layout="constrained")).subplots()
    drawn: list[float] = []
    for name, label in (("loss", "training"), ("eval_loss", "validation")):
        points = [(line["step"], line[name]) for line in lines if is_number(line.get(name))]
        drawn += [loss for _, loss in points]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 30 else None)
    if not drawn:
        return
    if min(drawn) > 0 and max(drawn) / min(drawn) >= DECADE:
        axes.set_yscale("log")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats a supervised token)")
    axes.legend()
    axes.grid(alpha=0.3)
    with new_file(picture) as aside:
        figure.savefig(aside, format="png", dpi=120)
