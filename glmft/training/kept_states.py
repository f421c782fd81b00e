"""Hidden states of all rows on disk, mapped into memory.

Each rank writes the rows of its own micro-batches of an epoch, in their order, to a file of its own: where a row lies
follows from the plan. The folder appears whole or not at all, and is sealed with sizes and hashes.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glmft.data.sampler import Plan
from glmft.errors import ConfigError
from glmft.files import flush, is_as_listed, write_json

SEAL = "seal.json"


class DamagedStates(Exception):
    """Hidden states on disk that cannot be what was written; they are made again."""


class KeptStates:
    """The hidden states of a sealed folder.

    Args:
        layers: that run on them, as a range.

    Raises:
        DamagedStates: the folder is none of these rows, or has another size than was sealed.
    """

    def __init__(self, folder: Path, plan: Plan, layers: range):
        self.places, tokens = layout(plan)
        self.plan, self.layers = plan, layers
        try:
            seal = json.loads((folder / SEAL).read_text(encoding="utf-8"))
            dtype, width = getattr(torch, seal["dtype"]), seal["width"]
            files = [folder / name_of(rank) for rank in range(plan.world_size)]
            self.files = [_mapped(path, n, width, dtype) for path, n in zip(files, tokens, strict=True)]
        except OSError as error:
            raise DamagedStates(f"{Path(error.filename or folder).name}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, RecursionError):
            raise DamagedStates(f"{SEAL} is none") from None

    def of(self, rows: Sequence[int]) -> Tensor:
        """[1, tokens, width]: those of some rows, one behind the other."""
        found = []
        for row in rows:
            rank, first = self.places[row]
            found.append(self.files[rank][first : first + self.plan.tokens[row]])
        return torch.cat(found)[None]

    def in_place_of_ids(self, batch: dict[str, Any], rows: Sequence[int]) -> dict[str, Any]:
        """A micro-batch of these rows as the upper layers take it."""
        rest = {name: value for name, value in batch.items() if name != "input_ids"}
        return {**rest, "inputs_embeds": self.of(rows), "layers": self.layers}


class StatesFile:
    """What one rank writes. What the disk refuses is told when it is closed: the ranks may compute together."""

    def __init__(self, folder: Path, rank: int):
        self.path, self.size, self.hash = folder / name_of(rank), 0, hashlib.sha256()
        self.problem: OSError | None = None
        try:
            self.file = self.path.open("wb")
        except OSError as error:
            self.problem = error

    def write(self, states: Tensor) -> None:
        """Append [tokens, width]."""
        data = states.contiguous().cpu().view(torch.uint8).numpy()
        self.size += data.nbytes
        self.hash.update(data)
        if self.problem is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.problem = error

    def close(self) -> list:
        """Size and hash, for the seal. Raises OSError."""
        if self.problem is None:
            self.file.close()
            flush(self.path)
            return [self.size, self.hash.hexdigest()]
        raise self.problem


def seal(folder: Path, files: Sequence[list], dtype: torch.dtype, width: int) -> None:
    """Note what was written, by rank. Raises OSError."""
    listed = {name_of(rank): entry for rank, entry in enumerate(files)}
    write_json(folder / SEAL, {"files": listed, "dtype": str(dtype).removeprefix("torch."), "width": width})


def damage(folder: Path, rank: int) -> str | None:
    """Why a rank's file is not what was sealed; None: it is."""
    try:
        listed = json.loads((folder / SEAL).read_text(encoding="utf-8"))["files"]
        name = name_of(rank)
        return None if is_as_listed(folder / name, listed[name]) else f"{name} has changed"
    except OSError as error:
        return f"{Path(error.filename or folder).name}: {error.strerror}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"{SEAL} is none"


def name_of(rank: int) -> str:
    return f"rank{rank}.states"


def shares(plan: Plan, rank: int) -> Iterator[tuple[list[int], list[int]]]:
    """Window and rows of each of a rank's micro-batches in the first epoch."""
    for _, window in plan.windows(0, plan.steps_per_epoch):
        for rows in plan.micro_batches(window, rank):
            yield window, rows


def layout(plan: Plan) -> tuple[list[tuple[int, int]], list[int]]:
    """For each row its rank and the number of tokens before it in that rank's file; and the tokens of each file."""
    places, tokens = [(0, 0)] * plan.records, [0] * plan.world_size
    for _, window in plan.windows(0, plan.steps_per_epoch):
        for rank, parts in enumerate(plan.shares(window)):
            for row in (row for part in parts for row in part):
                places[row] = (rank, tokens[rank])
                tokens[rank] += plan.tokens[row]
    return places, tokens


def require_room(folder: Path, size: int, flag: str) -> None:
    """Raises ConfigError if there is less room than `size` bytes where a folder is to be."""
    free = shutil.disk_usage(folder.parent).free
    if size > free:
        raise ConfigError(
            f"{flag}: needs {size / 2**30:.2f} GiB, and {folder.parent} has {free / 2**30:.2f} GiB free; name a "
            "--cache_dir with more room, or leave it out"
        )


def _mapped(path: Path, tokens: int, width: int, dtype: torch.dtype) -> Tensor:
    """[tokens, width] of a file, read as it is used."""
    if path.stat().st_size != tokens * width * dtype.itemsize:
        raise ValueError(path)
    if not tokens:
        return torch.empty(0, width, dtype=dtype)
    return torch.from_file(str(path), shared=False, size=tokens * width, dtype=dtype).view(tokens, width)
