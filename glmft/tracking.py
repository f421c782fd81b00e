"""What a run tells: one clean line at a time, and the same figures in metrics.jsonl."""

import json
import time
from pathlib import Path
from typing import Any

from glmft.dist import World


class Tracker:
    """Writes on rank 0 only; elsewhere every call does nothing.

    Args:
        folder: of metrics.jsonl, which is appended to.
        total: optimizer steps of the run.
    """

    def __init__(self, folder: Path, world: World, total: int):
        self.active, self.total = world.is_main, total
        self.path = folder / "metrics.jsonl"
        self.started = self.mark = time.monotonic()

    def say(self, line: str) -> None:
        if self.active:
            print(line, flush=True)

    def record(self, figures: dict[str, Any]) -> None:
        """Append one JSON line."""
        if self.active:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(figures) + "\n")

    def log_step(self, step: int, loss: float, rate: float, norm: float | None, tokens: int, supervised: int) -> None:
        """One log line: loss in nats a supervised token over the steps since the last line; tokens of all ranks.

        Args:
            tokens, supervised: since the last line; padding is not counted.
        """
        now = time.monotonic()
        seconds, self.mark = max(1e-9, now - self.mark), now
        figures = {
            "step": step,
            "loss": loss,
            "learning_rate": rate,
            "grad_norm": norm,
            "tokens_per_second": tokens / seconds,
            "supervised_tokens_per_second": supervised / seconds,
            "seconds": now - self.started,
        }
        self.record(figures)
        shown = "" if norm is None else f"  grad norm {norm:.3f}"
        self.say(
            f"step {step}/{self.total}  loss {loss:.4f}  lr {rate:.2e}{shown}  "
            f"{tokens / seconds:.0f} tokens/s ({supervised / seconds:.0f} supervised)"
        )

    def log_validation(self, step: int, loss: float) -> None:
        """The validation's loss in nats a supervised token; its time is not the next log line's."""
        self.record({"step": step, "eval_loss": loss})
        self.say(f"step {step}/{self.total}  validation loss {loss:.4f}")
        self.mark = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started
