"""Whether the disk has room for all checkpoints that a run is going to keep."""

import contextlib
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from glmft.dist import whole_shape
from glmft.training.checkpoint import checkpoints
from glmft.training.job import Job
from glmft.training.zero_state import MOMENTS

FP32 = 4  # bytes, in which weights to go on from and moments are kept


def room_line(model: nn.Module, job: Job, saves: int) -> str | None:
    """A warning if the disk has less room than is needed.

    Args:
        saves: checkpoints that are still to be written.
    """
    size, result = sizes(model, job.tokenizer)
    there, limit = len(checkpoints(job.folder)), job.config.save_total_limit
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(job.folder).free
        needed = new_checkpoints(saves, there, limit) * size + result
        if needed > free:
            return _lacking(job.folder, saves, needed, free, fitting_limit(free - result, size, there))
    return None


def sizes(model: nn.Module, tokenizer: Any) -> tuple[int, int]:
    """Bytes of a checkpoint, and of what a run leaves beside its checkpoints."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    numbers = sum(whole_shape(parameter).numel() for parameter in trained)
    result = sum(whole_shape(parameter).numel() * parameter.element_size() for parameter in trained)
    with contextlib.suppress(OSError):
        result += Path(tokenizer.vocab_file).stat().st_size
    return (1 + len(MOMENTS)) * FP32 * numbers + result, result


def new_checkpoints(saves: int, there: int, limit: int | None) -> int:
    """By how many checkpoints a folder grows at most: a new one is whole before the oldest goes."""
    return saves if limit is None else min(saves, max(0, limit - there) + 1)


def fitting_limit(room: int, size: int, there: int) -> int:
    """The largest `save_total_limit` for which there is room; less than 1 if there is none."""
    return room // size - 1 + there if room >= size else 0


def _lacking(folder: Path, saves: int, needed: int, free: int, limit: int) -> str:
    mend = f"--save_total_limit {limit} fits" if limit > 0 else "not even --save_total_limit 1 fits: free some space"
    return (
        f"warning: {saves} checkpoints and the result need {needed / 2**30:.2f} GiB, and {folder} has "
        f"{free / 2**30:.2f} GiB free: {mend}, or save less often with --save_model_step"
    )
