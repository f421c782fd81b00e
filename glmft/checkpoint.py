"""Checkpoints that appear whole or not at all: written aside, flushed, listed in a manifest, then renamed."""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from glmft.dist import World, barrier
from glmft.errors import CheckpointError, ConfigError

MANIFEST, RUN_CONFIG = "manifest.json", "train_config.json"
STATE, OPTIMIZER = "trainer_state.json", "optimizer.safetensors"


@dataclass
class TrainerState:
    """Where a run stands; all it needs besides weights, moments and random states."""

    step: int = 0
    total_steps: int = 0
    adam_step: int = 0
    tokens: int = 0
    supervised: int = 0
    loss_sum: float = 0.0
    window: int = 0
    records: int = 0
    seed: int = 0
    grouped: bool = False


def claim_output(folder: Path, overwrite: bool, resume: bool) -> None:
    """Make an output folder ready for a run.

    Raises:
        ConfigError: it cannot be written, holds a run and neither flag says what to do, or holds foreign files.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output_dir {folder}: is a file; name a new folder")
    holds_run = (folder / RUN_CONFIG).is_file()
    if folder.is_dir() and any(folder.iterdir()) and not holds_run:
        raise ConfigError(f"--output_dir {folder}: holds files that are no run of glmft; name a new or empty folder")
    if holds_run and not (overwrite or resume):
        raise ConfigError(
            f"--output_dir {folder}: holds a run already; go on with --resume yes, replace it with "
            "--overwrite_output_dir, or name another folder"
        )
    try:
        if holds_run and overwrite:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise ConfigError(f"--output_dir {folder}: cannot be written ({error.strerror}); name another folder") from None


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = [p for p in folder.glob("checkpoint-*") if p.name.split("-")[1].isdigit()]
    return sorted(found, key=lambda p: int(p.name.split("-")[1]))


def find_resume(folder: Path, resume: str) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, and a line for each torn one that was passed over.

    Args:
        resume: `yes` for the newest whole one, or a step.

    Raises:
        CheckpointError: that step has no checkpoint, or it is torn.
    """
    if resume != "yes":
        chosen = folder / f"checkpoint-{int(resume)}"
        if not chosen.is_dir():
            steps = ", ".join(p.name.split("-")[1] for p in checkpoints(folder)) or "none"
            raise CheckpointError(f"--resume {resume}: {folder} has no such checkpoint; there are: {steps}")
        problem = damage(chosen)
        if problem:
            raise CheckpointError(f"--resume {resume}: {problem}; resume from another step")
        return chosen, []
    said = []
    for candidate in reversed(checkpoints(folder)):
        problem = damage(candidate)
        if not problem:
            return candidate, said
        said.append(f"warning: {problem}; trying the one before")
    return None, [*said, f"{folder} holds no whole checkpoint: starting from the beginning"]


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None: every file must have the size and hash that the manifest lists."""
    try:
        listed = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, (size, digest) in listed.items():
            if (checkpoint / name).stat().st_size != size or _digest(checkpoint / name) != digest:
                return f"{checkpoint / name} is not what was saved"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{checkpoint} is not whole"
    return None


def save(folder: Path, state: TrainerState, world: World, write: Any, optimizer: dict[str, torch.Tensor]) -> Path:
    """Write checkpoint-STEP. Collective: every rank writes its own random state, rank 0 the rest.

    Args:
        write: function of a folder that writes what was trained (called on rank 0).
        optimizer: what `zero_state.pack` gave.

    Raises:
        CheckpointError: the disk is full or fails; the checkpoints before stay as they are.
    """
    target = folder / f"checkpoint-{state.step}"
    aside = folder / f".writing-{target.name}"
    if world.is_main:
        shutil.rmtree(aside, ignore_errors=True)
    barrier()
    try:
        aside.mkdir(parents=True, exist_ok=True)
        save_file(random_state(world), aside / f"random-{world.rank}.safetensors")
        if world.is_main:
            write(aside)
            save_file(optimizer, aside / OPTIMIZER)
            (aside / STATE).write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{target}: could not be saved ({error.strerror or error}); free some space") from None
    barrier()
    if world.is_main:
        seal(aside)
        if target.exists():  # the same step, saved before a resume
            shutil.rmtree(target)
        os.replace(aside, target)
        _flush(folder)
    barrier()
    return target


def seal(folder: Path) -> None:
    """Flush every file to the disk and list all with size and hash."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    listed = {str(p.relative_to(folder)): [p.stat().st_size, _digest(p)] for p in files}
    (folder / MANIFEST).write_text(json.dumps({"files": listed}, indent=2) + "\n", encoding="utf-8")
    for path in (*files, folder / MANIFEST, folder):
        _flush(path)


def publish(aside: Path, folder: Path) -> None:
    """Move files that were written aside to their place, each in one step."""
    for path in sorted(aside.iterdir()):
        _flush(path)
        os.replace(path, folder / path.name)
    aside.rmdir()
    _flush(folder)


def load_state(checkpoint: Path) -> TrainerState:
    return TrainerState(**json.loads((checkpoint / STATE).read_text(encoding="utf-8")))


def load_optimizer(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / OPTIMIZER)


def random_state(world: World) -> dict[str, torch.Tensor]:
    """The states of torch's generators, which drive dropout."""
    states = {"cpu": torch.get_rng_state()}
    if world.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(world.device)
    return states


def restore_random_state(checkpoint: Path, world: World) -> None:
    """Go on with this rank's random numbers; a rank that did not exist before keeps its fresh ones."""
    path = checkpoint / f"random-{world.rank}.safetensors"
    if path.is_file():
        states = load_file(path)
        torch.set_rng_state(states["cpu"])
        if world.device.type == "cuda" and "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"], world.device)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
