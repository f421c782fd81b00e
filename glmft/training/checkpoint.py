"""Checkpoints that appear whole or not at all: written aside, listed in a manifest, flushed, then renamed."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from glmft.dist import World, same_fate
from glmft.errors import CheckpointError, ConfigError
from glmft.files import (
    is_as_listed,
    listed,
    place_files,
    place_folder,
    refusals_as,
    remove_folder,
    start_folder,
    write_json,
)
from glmft.reading import read_json
from glmft.training.random_state import RANDOM
from glmft.training.state import STATE
from glmft.weights import StoredTensors

MANIFEST, OPTIMIZER = "manifest.json", "optimizer"


def checkpoints(folder: Path) -> dict[int, Path]:
    """The checkpoints of a run by their steps, oldest first."""
    named = ((path.name.split("-")[1], path) for path in folder.glob("checkpoint-*"))
    return dict(sorted((int(step), path) for step, path in named if step.isdigit()))


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint to go on from (None: from the beginning), and lines for whoever reads the log."""

    checkpoint: Path | None = None
    messages: list[str] = field(default_factory=list)


def find_resume(folder: Path, resume: str) -> ResumePoint:
    """The checkpoint that `--resume` means, and a line for each torn one that was passed over.

    Args:
        resume: `yes` for the newest whole one, or a step.

    Raises:
        CheckpointError: that step has no checkpoint, or it is torn.
    """
    if resume != "yes":
        return _resume_from_step(folder, int(resume))
    messages = []
    for candidate in reversed(checkpoints(folder).values()):
        problem = damage(candidate)
        if not problem:
            return ResumePoint(candidate, messages)
        messages.append(f"warning: {problem}; trying the one before")
    return ResumePoint(None, [*messages, f"{folder} holds no whole checkpoint: starting from the beginning"])


def _resume_from_step(folder: Path, step: int) -> ResumePoint:
    chosen = folder / f"checkpoint-{step}"
    if not chosen.is_dir():
        steps = ", ".join(map(str, checkpoints(folder))) or "none"
        raise CheckpointError(f"--resume {step}: {folder} has no such checkpoint; there are: {steps}")
    problem = damage(chosen)
    if problem:
        raise CheckpointError(f"--resume {step}: {problem}; resume from another step")
    return ResumePoint(chosen)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None: every file must have the size and hash that the manifest lists."""
    try:
        files = read_json(checkpoint / MANIFEST)["files"]
        if not {STATE, RANDOM} <= files.keys():
            return f"{checkpoint} is not whole"
        for name, entry in files.items():
            if not is_as_listed(checkpoint / name, entry):
                return f"{checkpoint / name} is not what was saved"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError):
        return f"{checkpoint} is not whole"
    return None


def seal(folder: Path) -> None:
    """List every file with its size and hash in the manifest."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    write_json(folder / MANIFEST, {"files": listed(folder, [str(p.relative_to(folder)) for p in files])})


@contextlib.contextmanager
def publishing(folder: Path, world: World, into: bool = False) -> Iterator[Path | None]:
    """An empty folder on rank 0 (None elsewhere) that takes the place of `folder` when the block ends. Collective.

    Args:
        into: move its files into `folder`, which stays, instead.

    Raises:
        CheckpointError: on all ranks, if rank 0 could not write; what stood there before stays as it is.
    """
    aside = None
    with same_fate(), refusals_as(folder, "free some space and go on with --resume yes"):
        if world.is_main:
            aside = start_folder(folder / "result" if into else folder)
    with same_fate(), refusals_as(folder, "free some space and go on with --resume yes"):
        try:
            yield aside
            if aside is not None and into:
                place_files(aside, folder)
            elif aside is not None:
                seal(aside)
                place_folder(aside, folder)
        finally:
            if aside is not None:
                remove_folder(aside)


def open_optimizer(checkpoint: Path) -> StoredTensors:
    """A checkpoint's tensors by name, each read when it is asked for."""
    return StoredTensors(sorted(checkpoint.glob(f"{OPTIMIZER}-*.safetensors")))
