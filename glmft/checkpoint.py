"""Checkpoints that appear whole or not at all: written aside, flushed, listed in a manifest, then renamed."""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glmft.dist import World, gather_objects, same_fate
from glmft.errors import CheckpointError, ConfigError, one_line
from glmft.family import read_json
from glmft.weights import Shards, StoredTensors

MANIFEST, RUN_CONFIG = "manifest.json", "train_config.json"
STATE, RANDOM, OPTIMIZER = "trainer_state.json", "random_states.json", "optimizer"
BEST = "best"


@dataclass
class TrainerState:
    """Where a run stands; all it needs besides weights, moments and random states.

    Args:
        step: optimizer steps done.
        adam_step: those that the optimizer counted.
        loss_sum, supervised, tokens: over the whole run up to the last log line.
        open_loss, open_supervised, open_tokens: since that line.
        last_loss: mean of the last log line.
        window, records, seed, grouped: what the order of the records follows from.
        skipped: steps in a row that the loss scaler skipped.
        loss_scaler: its numbers, for fp16.
        best, best_step: best value of the watched metric, and when it was seen.
        waited: evaluations since then.
        saved_step: that of the newest checkpoint.
    """

    step: int = 0
    total_steps: int = 0
    adam_step: int = 0
    tokens: int = 0
    supervised: int = 0
    loss_sum: float = 0.0
    open_loss: float = 0.0
    open_supervised: int = 0
    open_tokens: int = 0
    last_loss: float | None = None
    window: int = 0
    records: int = 0
    seed: int = 0
    grouped: bool = False
    skipped: int = 0
    loss_scaler: dict[str, float] = field(default_factory=dict)
    best: float | None = None
    best_step: int | None = None
    waited: int = 0
    saved_step: int = 0

    def add(self, loss: float, supervised: int, tokens: int) -> None:
        """Count one optimizer step: its summed loss and its tokens, of all ranks."""
        self.open_loss += loss
        self.open_supervised += supervised
        self.open_tokens += tokens

    def take(self) -> tuple[float, int, int]:
        """Mean loss of a supervised token, supervised tokens and tokens since the last call."""
        taken = self.open_loss / max(1, self.open_supervised), self.open_supervised, self.open_tokens
        self.loss_sum += self.open_loss
        self.supervised += self.open_supervised
        self.tokens += self.open_tokens
        self.open_loss, self.open_supervised, self.open_tokens = 0.0, 0, 0
        self.last_loss = taken[0]
        return taken


def claim_output(folder: Path, overwrite: bool, resume: bool) -> None:
    """Make an output folder ready for a run.

    Raises:
        ConfigError: it cannot be written, holds a run and neither flag says what to do, or holds foreign files.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output_dir {folder}: is a file; name a new folder")
    holds_run = (folder / RUN_CONFIG).is_file()
    foreign = [p for p in folder.iterdir() if not p.name.startswith(".writing-")] if folder.is_dir() else []
    if foreign and not holds_run:
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
        (folder / ".writing-test").touch()
        (folder / ".writing-test").unlink()
    except OSError as error:
        raise ConfigError(f"--output_dir {folder}: cannot be written ({error.strerror}); name another folder") from None


def checkpoints(folder: Path) -> dict[int, Path]:
    """The checkpoints of a run by their steps, oldest first."""
    named = ((path.name.split("-")[1], path) for path in folder.glob("checkpoint-*"))
    return dict(sorted((int(step), path) for step, path in named if step.isdigit()))


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
            steps = ", ".join(map(str, checkpoints(folder))) or "none"
            raise CheckpointError(f"--resume {resume}: {folder} has no such checkpoint; there are: {steps}")
        problem = damage(chosen)
        if problem:
            raise CheckpointError(f"--resume {resume}: {problem}; resume from another step")
        later = [path.name for step, path in checkpoints(folder).items() if step > int(resume)]
        replaced = f"warning: {', '.join(later)} are of the run before; each is replaced when this one gets there"
        return chosen, [replaced] if later else []
    said = []
    for candidate in reversed(checkpoints(folder).values()):
        problem = damage(candidate)
        if not problem:
            return candidate, said
        said.append(f"warning: {problem}; trying the one before")
    return None, [*said, f"{folder} holds no whole checkpoint: starting from the beginning"]


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None: every file must have the size and hash that the manifest lists."""
    try:
        listed = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
        if not {STATE, RANDOM} <= listed.keys():
            return f"{checkpoint} is not whole"
        for name, (size, digest) in listed.items():
            if (checkpoint / name).stat().st_size != size or _digest(checkpoint / name) != digest:
                return f"{checkpoint / name} is not what was saved"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{checkpoint} is not whole"
    return None


def save(
    folder: Path,
    state: TrainerState,
    world: World,
    write: Callable[[Path], None],
    tensors: Iterator[tuple[str, Tensor]],
) -> Path:
    """Write checkpoint-STEP on rank 0. Collective.

    Args:
        write: of a folder; writes what was trained.
        tensors: what `zero_state.packed` yields; every rank walks through it.

    Raises:
        CheckpointError: the disk is full or fails; the checkpoints before stay as they are.
    """
    target = folder / f"checkpoint-{state.step}"
    aside = folder / f".writing-{target.name}"
    states = gather_objects(world, random_state(world))
    shards = Shards(aside, OPTIMIZER)
    with same_fate():
        try:
            if world.is_main:
                discard(aside)
                aside.mkdir()
                write(aside)
        except Exception as error:  # safetensors has a class of its own for a full disk
            shards.problem = error
        for name, tensor in tensors:
            if world.is_main:
                shards.add(name, tensor)
        try:
            if world.is_main:
                shards.close()
                (aside / RANDOM).write_text(json.dumps(states), encoding="utf-8")
                (aside / STATE).write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
                seal(aside)
                replace_folder(aside, target)
        except Exception as error:
            discard(aside)
            raise CheckpointError(_unsaved(target, error)) from None
    return target


def _unsaved(target: Path, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or one_line(error)
    return f"{target}: could not be saved ({reason}); free some space and go on with --resume yes"


def replace_folder(aside: Path, target: Path) -> None:
    """Put a finished folder in its place; one that is there already (the same step, before a resume) goes first."""
    old = target.with_name(f".deleting-{target.name}")
    if target.exists():
        discard(old)
        os.replace(target, old)
    os.replace(aside, target)
    _settle(target.parent)
    discard(old)


def discard(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def clean(folder: Path) -> None:
    """Remove what a kill left half written or half deleted."""
    for left in (*folder.glob(".writing-*"), *folder.glob(".deleting-*")):
        if left.is_dir() and not left.is_symlink():
            discard(left)
        else:
            left.unlink()


def tidy(folder: Path, world: World, limit: int | None, best: int | None) -> None:
    """`point_best` and `rotate` on rank 0. Collective. Raises CheckpointError if the file system refuses."""
    with same_fate():
        try:
            if world.is_main:
                point_best(folder, best)
                rotate(folder, limit, best)
        except OSError as error:
            raise CheckpointError(f"{error.filename or folder}: cannot be changed ({error.strerror})") from None


def rotate(folder: Path, limit: int | None, keep: int | None) -> None:
    """Delete the oldest checkpoints beyond `limit`; that of step `keep` stays."""
    others = [path for step, path in checkpoints(folder).items() if step != keep]
    spare = len(others) + (keep is not None) - (limit or len(others) + 1)
    for old in others[: max(0, min(spare, len(others) - 1))]:
        going = folder / f".deleting-{old.name}"
        os.replace(old, going)  # first out of sight, so that a kill leaves no torn checkpoint
        discard(going)


def point_best(folder: Path, step: int | None) -> None:
    """Let the link `best` lead to that step's checkpoint."""
    if step is not None and (folder / f"checkpoint-{step}").is_dir():
        aside = folder / ".writing-best"
        aside.unlink(missing_ok=True)
        aside.symlink_to(f"checkpoint-{step}", target_is_directory=True)
        os.replace(aside, folder / BEST)


def seal(folder: Path) -> None:
    """Flush every file to the disk and list all with size and hash."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    listed = {str(p.relative_to(folder)): [p.stat().st_size, _digest(p)] for p in files}
    (folder / MANIFEST).write_text(json.dumps({"files": listed}, indent=2) + "\n", encoding="utf-8")
    for path in (*files, folder / MANIFEST, folder):
        _settle(path)


def publish(folder: Path, world: World, write: Callable[[Path], None]) -> None:
    """Write files aside on rank 0, then move each to its place in one step. Collective.

    Raises:
        CheckpointError: they could not be written; what stood there before stays.
    """
    aside = folder / ".writing-result"
    with same_fate():
        if not world.is_main:
            return
        try:
            discard(aside)
            aside.mkdir()
            write(aside)
            for path in sorted(aside.iterdir()):
                _settle(path)
            for path in sorted(aside.iterdir()):
                os.replace(path, folder / path.name)
            aside.rmdir()
            _settle(folder)
        except Exception as error:
            discard(aside)
            raise CheckpointError(_unsaved(folder, error)) from None


def load_state(checkpoint: Path) -> TrainerState:
    """Raises CheckpointError if another program wrote it."""
    stored = read_json(checkpoint / STATE)
    if not isinstance(stored.get("step"), int):
        raise CheckpointError(f"{checkpoint / STATE}: is no state of a run of glmft; resume from another checkpoint")
    return TrainerState(**{f.name: stored[f.name] for f in fields(TrainerState) if f.name in stored})


def open_optimizer(checkpoint: Path) -> StoredTensors:
    """A checkpoint's tensors by name, each read when it is asked for."""
    return StoredTensors(sorted(checkpoint.glob(f"{OPTIMIZER}-*.safetensors")))


def random_state(world: World) -> dict[str, Any]:
    """The states of all random generators of this rank: torch's (which drive dropout), Python's and numpy's."""
    _, keys, *rest = np.random.get_state()
    states = {
        "cpu": torch.get_rng_state().numpy().tobytes().hex(),
        "python": random.getstate(),
        "numpy": [keys.tolist(), *rest],
    }
    if world.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(world.device).numpy().tobytes().hex()
    return states


def set_random_state(states: dict[str, Any], world: World) -> None:
    torch.set_rng_state(_bytes(states["cpu"]))
    if world.device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(_bytes(states["cuda"]), world.device)
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    keys, *rest = states["numpy"]
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), *rest))


def restore_random_state(checkpoint: Path, world: World) -> None:
    """Go on with this rank's random numbers; a rank that did not exist before keeps its fresh ones."""
    states = json.loads((checkpoint / RANDOM).read_text(encoding="utf-8"))
    if world.rank < len(states):
        set_random_state(states[world.rank], world)


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _settle(path: Path) -> None:
    """Flush a file or a folder to the disk; let a file be read by whoever may read its folder.

    safetensors writes for the owner alone.
    """
    if path.is_file():
        path.chmod(path.parent.stat().st_mode & 0o666)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
