"""The folder of a run: whose it is, which of its checkpoints stay, and where `best` leads."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from glmft.dist import World, same_fate
from glmft.errors import CheckpointError, ConfigError
from glmft.files import WRITING, delete_folder, point_link
from glmft.training.checkpoint import checkpoints

RUN_CONFIG, BEST = "train_config.json", "best"


def claim_output(folder: Path, overwrite: bool, resume: bool) -> None:
    """Make an output folder ready for a run.

    Raises:
        ConfigError: it cannot be written, holds a run and neither flag says what to do, or holds foreign files.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output_dir {folder}: is a file; name a new folder")
    holds_run = (folder / RUN_CONFIG).is_file()
    foreign = [p for p in folder.iterdir() if not p.name.startswith(WRITING)] if folder.is_dir() else []
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
        (folder / f"{WRITING}test").touch()
        (folder / f"{WRITING}test").unlink()
    except OSError as error:
        raise ConfigError(f"--output_dir {folder}: cannot be written ({error.strerror}); name another folder") from None


def keep_checkpoints(folder: Path, world: World, limit: int | None, best: int | None) -> None:
    """Let the link `best` lead to that step's checkpoint, and delete the oldest beyond `limit`. Collective.

    Raises:
        CheckpointError: the file system refuses.
    """
    with same_fate():
        try:
            if world.is_main:
                point_best(folder, best)
                rotate(folder, limit, best)
        except OSError as error:
            raise CheckpointError(f"{error.filename or folder}: cannot be changed ({error.strerror})") from None


def point_best(folder: Path, step: int | None) -> None:
    """Let the link `best` lead to that step's checkpoint."""
    if step is not None and (folder / f"checkpoint-{step}").is_dir():
        point_link(folder / BEST, f"checkpoint-{step}")


def rotate(folder: Path, limit: int | None, best: int | None) -> None:
    """Delete the oldest checkpoints beyond `limit`."""
    there = checkpoints(folder)
    for step in surplus(there, limit, best):
        delete_folder(there[step])


def surplus(steps: Iterable[int], limit: int | None, best: int | None) -> list[int]:
    """The steps whose checkpoints are too many, oldest first; the newest and the best always stay."""
    steps = sorted(steps)
    deletable = [step for step in steps[:-1] if step != best]
    too_many = max(0, len(steps) - limit) if limit else 0
    return deletable[:too_many]
