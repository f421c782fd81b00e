"""The folder of a run: whose it is, from when on it is this run's, which checkpoints stay, where `best` leads."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from glmft.console import say
from glmft.data.dataset import write_rejected
from glmft.dist import World, same_fate
from glmft.errors import CheckpointError, ConfigError
from glmft.files import WRITING, delete_folder, new_file, point_link, write_json
from glmft.settings.config import to_json
from glmft.training.checkpoint import checkpoints
from glmft.training.job import Job
from glmft.training.run_lock import locked
from glmft.training.set_aside import (
    BAD_BATCH,
    BEST,
    RUN_CONFIG,
    TRACES,
    TRAINED,
    drop_old_run,
    is_interrupted,
    leave_line,
    recover,
    set_run_aside,
)
from glmft.training.state import TrainerState


@contextlib.contextmanager
def claimed(folder: Path, overwrite: bool, resume: bool) -> Iterator[None]:
    """Have an output folder for a run alone. What it holds stays as it is until `begin`.

    A run that was to be replaced comes back at the end, if the new one has no whole checkpoint by then.

    Raises:
        ConfigError: it cannot be written, another run has it, it holds a run and neither flag says what to do, or it
            holds foreign files.
    """
    _check_place(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    with contextlib.ExitStack() as stack:
        try:
            stack.callback(_remove_empty, made)
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder))
            say(recover(folder))
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f"--output_dir {folder}: cannot be written ({reason}); name another folder") from None
        if (folder / RUN_CONFIG).is_file() and not (overwrite or resume):
            raise ConfigError(
                f"--output_dir {folder}: holds a run already; go on with --resume yes, replace it with "
                "--overwrite_output_dir, or name another folder"
            )
        stack.callback(_recover_if_possible, folder)
        yield


def _check_place(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output_dir {folder}: is a file; name a new folder")
    if not folder.is_dir() or (folder / RUN_CONFIG).is_file() or is_interrupted(folder):
        return
    ours = (BAD_BATCH, *TRACES)
    if any(not path.name.startswith(WRITING) and path.name not in ours for path in folder.iterdir()):
        raise ConfigError(f"--output_dir {folder}: holds files that are no run of glmft; name a new or empty folder")


def _remove_empty(folders: list[Path]) -> None:
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _recover_if_possible(folder: Path) -> None:
    """At the end of a run; what cannot be mended now, the next start mends."""
    with contextlib.suppress(OSError):
        say(recover(folder))


def begin(job: Job, state: TrainerState) -> None:
    """From here on the folder is this run's: set aside what would be lost, write its settings. Collective.

    Raises:
        CheckpointError: the file system refuses.
    """
    with same_fate(), _refusals_named(job.folder):
        if job.world.is_main:
            if job.config.resume is not None:
                say(leave_line(job.folder, state.step))
            elif (job.folder / RUN_CONFIG).is_file():
                set_run_aside(job.folder)
            point_best(job.folder, state.best_step if job.config.save_best else None)
            write_settings(job)


def write_settings(job: Job) -> None:
    """What the run is, into its folder: settings, DeepSpeed configuration, what trains, records that were left out."""
    with new_file(job.folder / RUN_CONFIG) as aside:
        aside.write_text(to_json(job.config) + "\n", encoding="utf-8")
    write_json(job.folder / "ds_config.json", job.ds_config)
    with new_file(job.folder / TRAINED) as aside:
        aside.write_text(job.trained + "\n", encoding="utf-8")
    write_rejected(job.folder, job.rows.rejected)


def keep_checkpoints(folder: Path, world: World, limit: int | None, best: int | None) -> None:
    """Let the link `best` lead to that step's checkpoint, and delete the oldest beyond `limit`. Collective.

    A run that was replaced goes too, now that this one has a checkpoint.

    Raises:
        CheckpointError: the file system refuses.
    """
    with same_fate(), _refusals_named(folder):
        if world.is_main:
            drop_old_run(folder)
            point_best(folder, best)
            rotate(folder, limit, best)


@contextlib.contextmanager
def _refusals_named(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{error.filename or folder}: cannot be changed ({error.strerror})") from None


def point_best(folder: Path, step: int | None) -> None:
    """Let the link `best` lead to that step's checkpoint; one that leads nowhere goes."""
    if step is not None and (folder / f"checkpoint-{step}").is_dir():
        point_link(folder / BEST, f"checkpoint-{step}")
    elif (folder / BEST).is_symlink() and not (folder / BEST).exists():
        (folder / BEST).unlink()


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
