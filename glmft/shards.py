"""Named tensors in several safetensors files, written and read one at a time: never all of them in memory."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

SHARD_BYTES = 2 << 30


class Shards:
    """Collects tensors and writes NAME-00001.safetensors, NAME-00002.safetensors, … of at most `size` bytes each.

    A failure is kept until `close`: the caller may be in the middle of something collective.
    """

    def __init__(self, folder: Path, name: str, size: int = SHARD_BYTES):
        self.folder, self.name, self.size = folder, name, size
        self.held: dict[str, Tensor] = {}
        self.bytes = self.written = 0
        self.problem: Exception | None = None

    def add(self, name: str, tensor: Tensor) -> None:
        if self.problem is None:
            if self.bytes + tensor.nbytes > self.size:
                self._write()
            self.held[name] = tensor
            self.bytes += tensor.nbytes

    def close(self) -> None:
        """Write what is left; raise what went wrong."""
        self._write()
        if self.problem is not None:
            raise self.problem

    def _write(self) -> None:
        if self.problem is None and self.held:
            self.written += 1
            try:
                save_file(self.held, self.folder / f"{self.name}-{self.written:05d}.safetensors")
            except Exception as error:
                self.problem = error
        self.held, self.bytes = {}, 0


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of such files by name, each read when it is asked for."""

    def __init__(self, folder: Path, name: str):
        self.files: dict[str, Path] = {}
        for file in sorted(folder.glob(f"{name}-*.safetensors")):
            with safe_open(file, "pt") as held:
                self.files |= dict.fromkeys(held.keys(), file)

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self.files[name], "pt") as held:
            return held.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)
