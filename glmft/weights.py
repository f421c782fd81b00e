"""Named tensors in files, .safetensors or .bin: read one at a time, written in shards, never all of them in memory."""

import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from glmft.errors import CheckpointError, one_line

SHARD_BYTES = 2 << 30


class Shards:
    """Collects tensors and writes NAME-00001.safetensors, NAME-00002.safetensors, … of at most `size` bytes each.

    A failure is kept until `close`: the caller may be in the middle of something collective.
    """

    def __init__(self, folder: Path, name: str, size: int = SHARD_BYTES):
        self.folder, self.name, self.size = folder, name, size
        self.waiting: dict[str, Tensor] = {}
        self.bytes = self.written = 0
        self.problem: Exception | None = None

    def add(self, name: str, tensor: Tensor) -> None:
        if self.problem is None:
            if self.bytes + tensor.nbytes > self.size:
                self._write()
            self.waiting[name] = tensor
            self.bytes += tensor.nbytes

    def close(self) -> None:
        """Write what is left; raise what went wrong."""
        self._write()
        if self.problem is not None:
            raise self.problem

    def _write(self) -> None:
        if self.problem is None and self.waiting:
            self.written += 1
            try:
                save_file(self.waiting, self.folder / f"{self.name}-{self.written:05d}.safetensors")
            except Exception as error:
                self.problem = error
        self.waiting, self.bytes = {}, 0


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of some files by name. A file is opened anew for each of them, so that no mapped page stays.

    Raises:
        CheckpointError: a file is torn, or something else.
    """

    def __init__(self, files: Iterable[Path]):
        self.files: dict[str, Path] = {}
        self.shapes: dict[str, list[int]] = {}
        self.int8: set[str] = set()
        for file in files:
            stored = open_weights(file)
            for name in stored.keys():  # noqa: SIM118  safetensors' handle cannot be iterated
                self.files[name] = file
                if isinstance(stored, dict):
                    shape, is_int8 = stored[name].shape, stored[name].dtype == torch.int8
                else:
                    shape, is_int8 = stored.get_slice(name).get_shape(), stored.get_slice(name).get_dtype() == "I8"
                self.shapes[name] = list(shape)
                self.int8 |= {name} if is_int8 else set()

    def __getitem__(self, name: str) -> Tensor:
        return tensor_of(open_weights(self.files[name]), name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def tensor_of(stored: Any, name: str) -> Tensor:
    """A tensor of what `open_weights` gave."""
    return stored[name] if isinstance(stored, dict) else stored.get_tensor(name)


def open_weights(file: Path) -> Any:
    """A weight file, its tensors still on the disk: a dict, or safetensors' own handle.

    Raises:
        CheckpointError: it is torn, or something else.
    """
    try:
        if file.suffix == ".safetensors":
            return safe_open(file, "pt")
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # whatever a torn or foreign file makes the readers raise
        raise CheckpointError(f"{file}: is torn or no weight file ({one_line(error)}); copy it again") from None
