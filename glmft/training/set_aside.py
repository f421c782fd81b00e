"""What of a run folder makes way for a new run or a new line, so that a kill at any moment loses nothing.

A run that is to be replaced waits in OLD_RUN until the first checkpoint of the new one is whole, else it comes back.
What lies behind the checkpoint that a run goes back to is kept in a folder set-aside-N. Both take several renames:
names in the folder tell how far they got, and `recover` finishes what was begun or undoes it.
"""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from glmft.files import delete_folder, flush, new_file, remove_folder, remove_leftovers, write_json
from glmft.training.checkpoint import checkpoints, damage
from glmft.training.divergence import BAD_BATCH
from glmft.training.run_lock import LOCK
from glmft.training.state import STATE
from glmft.training.tracking import METRICS

RUN_CONFIG, RESULTS, BEST = "train_config.json", "train_results.json", "best"
TRAINED = "trained_parameters.txt"
OLD_RUN, MOVING, GOING_BACK, SET_ASIDE = ".old-run", ".old-run-moving", ".going-back.json", "set-aside-"
TRACES = (LOCK, OLD_RUN, MOVING, GOING_BACK)  # of our work; no part of a run


def is_interrupted(folder: Path) -> bool:
    """Whether a kill left a run there that `recover` brings back."""
    return any((folder / name).exists() for name in (OLD_RUN, MOVING, GOING_BACK))


def recover(folder: Path) -> list[str]:
    """Finish or undo what a run began and could not end; lines for the log. Raises OSError."""
    remove_leftovers(folder)
    messages = []
    if (folder / GOING_BACK).is_file():
        _finish_going_back(folder)
    if (folder / OLD_RUN).is_dir():
        if any(damage(checkpoint) is None for checkpoint in checkpoints(folder).values()):
            drop_old_run(folder)
        else:
            _remove_new_run(folder)
            os.replace(folder / OLD_RUN, folder / MOVING)
    if (folder / MOVING).is_dir():
        _move(folder / MOVING, folder, _names(folder / MOVING))
        (folder / MOVING).rmdir()
        messages.append(f"{folder}: the run before is back, as the one to replace it ended before its first checkpoint")
    return messages


# ------------------------------------------------------------------------------------------ a run that is replaced


def set_run_aside(folder: Path) -> None:
    """Put everything in the folder into OLD_RUN. Raises OSError."""
    moving = folder / MOVING
    moving.mkdir()
    _move(folder, moving, _names(folder))
    os.replace(moving, folder / OLD_RUN)  # from here on what stands in the folder is the new run's
    flush(folder)


def drop_old_run(folder: Path) -> None:
    """Delete the run that was replaced, if there is one: the new one has a whole checkpoint. Raises OSError."""
    if (folder / OLD_RUN).is_dir():
        delete_folder(folder / OLD_RUN)


def _remove_new_run(folder: Path) -> None:
    """What is left of a run that ended too early, but for the report on what ended it."""
    for name in _names(folder):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            remove_folder(path)
        elif name != BAD_BATCH:
            path.unlink()


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in TRACES)


def _move(source: Path, target: Path, names: Iterable[str]) -> None:
    for name in names:
        if name == BAD_BATCH and (target / name).exists():
            (source / name).unlink()  # the newer report stays
        else:
            os.replace(source / name, target / name)
    for folder in (target, source):
        flush(folder)


# ----------------------------------------------------------------------------------------------- a line that is left


def leave_line(folder: Path, step: int) -> list[str]:
    """Go back to a step: what lies behind it goes into a folder of its own; lines for the log. Raises OSError.

    That is the later checkpoints, the trained weights and figures of a run that had finished, and copies of its
    settings and metrics.
    """
    later = [path.name for other, path in checkpoints(folder).items() if other > step]
    if not later:
        return []
    taken = [path.name.removeprefix(SET_ASIDE) for path in folder.glob(f"{SET_ASIDE}*")]
    number = 1 + max((int(name) for name in taken if name.isdecimal()), default=0)
    write_json(folder / GOING_BACK, {"step": step, "into": number})
    flush(folder)
    _finish_going_back(folder)
    shown = ", ".join(later) if len(later) < 5 else f"{later[0]} to {later[-1]}"
    return [f"going back to step {step}: {shown} of the line before are kept in {folder / SET_ASIDE}{number}"]


def _finish_going_back(folder: Path) -> None:
    plan = json.loads((folder / GOING_BACK).read_text(encoding="utf-8"))
    step, target = plan["step"], folder / f"{SET_ASIDE}{plan['into']}"
    target.mkdir(exist_ok=True)
    later = [path for other, path in checkpoints(folder).items() if other > step]
    for name in (RUN_CONFIG, METRICS):
        if (folder / name).is_file():
            with new_file(target / name) as aside:
                shutil.copyfile(folder / name, aside)
    if (folder / BEST).is_symlink() and os.readlink(folder / BEST) in [path.name for path in later]:
        os.replace(folder / BEST, target / BEST)
    # First what follows from the checkpoints: which files those are is seen from their own.
    results = {path.name for checkpoint in later for path in checkpoint.iterdir()} | {RESULTS, STATE}
    _move(folder, target, [name for name in results - {RUN_CONFIG} if (folder / name).is_file()])
    _move(folder, target, [path.name for path in later])
    (folder / GOING_BACK).unlink()
    flush(folder)
