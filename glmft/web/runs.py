"""A run folder as figures: curves, where it stands, what trains, its settings. Nothing in it is changed."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmft.errors import GlmftError
from glmft.reading import is_file, read_json, read_text
from glmft.training.checkpoint import checkpoints
from glmft.training.run_lock import is_owned
from glmft.training.set_aside import RESULTS, RUN_CONFIG, TRAINED
from glmft.training.state import STATE
from glmft.training.tracking import METRICS, read_metrics
from glmft.web.places import Root

MOST_TEXT = 1 << 20
MOST_POINTS = 600  # of a curve: more than a screen has room for
Point = tuple[int, float]


@dataclass(frozen=True)
class Run:
    """
    Args:
        state: `running`, `finished`, or `stopped` before its end.
        curves: (optimizer step, value) of each figure in metrics.jsonl.
        scores: figures of validation rows, but for their loss.
        step, total: optimizer steps done and planned; 0 where the folder does not tell.
        trained: what trains, as the run printed it.
        settings: in the order in which the run has them.
        checkpoints: their steps.
    """

    name: str
    state: str
    curves: dict[str, list[Point]]
    scores: list[str] = field(default_factory=list)
    step: int = 0
    total: int = 0
    trained: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    checkpoints: list[int] = field(default_factory=list)

    def last(self, name: str) -> float | None:
        """The newest value of a figure."""
        return self.curves[name][-1][1] if self.curves.get(name) else None


def runs_in(root: Root) -> list[str]:
    """Names of the run folders below, newest first."""
    return root.listed(lambda path: is_file(path / RUN_CONFIG) and not path.name.startswith("checkpoint-"))


def stamp(root: Root, name: str) -> tuple[int, ...]:
    """Changes whenever what `read_run` gives may have changed. Raises ConfigError."""
    states = [_state_of(root.inside(name, file)) for file in (METRICS, RUN_CONFIG, RESULTS)]
    return (*(number for pair in states for number in pair), is_owned(root.inside(name)))


def _state_of(path: Path) -> tuple[int, int]:
    try:
        state = path.stat()
    except OSError:
        return 0, 0
    return state.st_mtime_ns, state.st_size


def read_run(root: Root, name: str) -> Run:
    """What a run folder tells. Raises ConfigError if it is none, or outside of `root`."""
    folder = root.inside(name)
    settings = read_json(root.inside(name, RUN_CONFIG))
    lines = read_metrics(root.inside(name, METRICS))
    curves = curves_of(lines)
    of_validation = {key for line in lines if "eval_loss" in line for key in line} - {"eval_loss"}
    results = is_file(root.inside(name, RESULTS))
    running, steps = is_owned(folder), sorted(checkpoints(folder))
    return Run(
        name,
        "running" if running else "finished" if results else "stopped",
        curves,
        [key for key in curves if key in of_validation],
        max((points[-1][0] for points in curves.values()), default=0),
        _planned_steps(root, name, settings, steps),
        _text_if_there(root.inside(name, TRAINED)),
        settings,
        steps,
    )


def _planned_steps(root: Root, name: str, settings: dict[str, Any], saved: list[int]) -> int:
    """Optimizer steps of the whole run, as its settings or its newest checkpoint tell; 0: neither does."""
    if saved:
        path = root.inside(name, f"checkpoint-{saved[-1]}", STATE)
        with contextlib.suppress(GlmftError):
            return _whole(read_json(path).get("total_steps"))
    return _whole(settings.get("max_steps"))


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _text_if_there(path: Path) -> str:
    return read_text(path, MOST_TEXT) if is_file(path) else ""


def curves_of(lines: Sequence[dict[str, Any]]) -> dict[str, list[Point]]:
    """The finite numbers of metrics.jsonl by name, in the order of their steps, thinned to `MOST_POINTS`."""
    curves: dict[str, dict[int, float]] = {}
    for line in lines:
        for name, value in line.items():
            if name == "step" or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if math.isfinite(value):
                curves.setdefault(name, {})[line["step"]] = float(value)
    return {name: thinned(sorted(points.items())) for name, points in curves.items()}


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Means over runs of neighbouring points, at most so many; the last point stays as it is."""
    size = -(-len(points) // most)
    if size <= 1:
        return list(points)
    *groups, end = [points[i : i + size] for i in range(0, len(points), size)]
    means = [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]
    return [*means, end[-1]]
