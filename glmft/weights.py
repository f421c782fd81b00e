"""Named tensors in files, .safetensors or .bin: read one at a time, written in shards, never all of them in memory."""

import json
import math
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from glmft.errors import CheckpointError, one_line
from glmft.reading import is_file

SHARD_BYTES = 2 << 30
FLOATS = ("F16", "BF16", "F32", "F64")  # number formats that models come in, as safetensors calls them
_SAFETENSORS_NAMES = {
    **dict(zip((torch.float16, torch.bfloat16, torch.float32, torch.float64), FLOATS, strict=True)),
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.bool: "BOOL",
}


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


@dataclass(frozen=True)
class Stream:
    """A tensor that is made while it is written.

    Args:
        parts: makes its rows from the first to the last, some at a time, in `dtype`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: Callable[[], Iterable[Tensor]]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def whole(self) -> Tensor:
        """The tensor, in memory of its own."""
        tensor, row = torch.empty(self.shape, dtype=self.dtype), 0
        for part in self.parts():
            if not self.shape:
                return part.clone()
            tensor[row : row + len(part)] = part
            row += len(part)
        return tensor


class Unwritten(Mapping[str, Tensor]):
    """Streams as tensors by name, each made anew when it is asked for."""

    def __init__(self, streams: Iterable[Stream]):
        self.streams = {stream.name: stream for stream in streams}

    def __getitem__(self, name: str) -> Tensor:
        return self.streams[name].whole()

    def __iter__(self) -> Iterator[str]:
        return iter(self.streams)

    def __len__(self) -> int:
        return len(self.streams)


NAMES = {"safetensors": "model", "bin": "pytorch_model"}  # of a model's weight files, by their ending


def write_streams(streams: Sequence[Stream], folder: Path, size: int, ending: str = "safetensors") -> None:
    """Write a model's weights in files of at most `size` bytes (or one tensor) and, if several, their index.

    Args:
        ending: `safetensors`, of which no more than one part of one tensor is in memory, or `bin`, of which a file is.
    """
    groups: list[list[Stream]] = [[]]
    for stream in streams:
        if groups[-1] and sum(s.nbytes for s in groups[-1]) + stream.nbytes > size:
            groups.append([])
        groups[-1].append(stream)
    name, index = NAMES[ending], {}
    for i, group in enumerate(groups, 1):
        file = f"{name}-{i:05d}-of-{len(groups):05d}.{ending}" if groups[1:] else f"{name}.{ending}"
        if ending == "bin":
            torch.save({stream.name: stream.whole() for stream in group}, folder / file)
        else:
            _write_safetensors(group, folder / file)
        index |= {stream.name: file for stream in group}
    if groups[1:]:
        total = {"total_size": sum(stream.nbytes for stream in streams)}
        text = json.dumps({"metadata": total, "weight_map": index}, indent=2, sort_keys=True) + "\n"
        (folder / f"{name}.{ending}.index.json").write_text(text, encoding="utf-8")


def _write_safetensors(streams: Sequence[Stream], file: Path) -> None:
    """The format is that of https://github.com/huggingface/safetensors: a length, a JSON header, the bytes."""
    streams, end = sorted(streams, key=lambda s: (-s.dtype.itemsize, s.name)), 0
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for stream in streams:
        place = [end, end + stream.nbytes]
        header[stream.name] = {
            "dtype": _SAFETENSORS_NAMES[stream.dtype],
            "shape": list(stream.shape),
            "data_offsets": place,
        }
        end = place[1]
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(head)) + head)
        for stream in streams:
            for part in stream.parts():
                opened.write(part.contiguous().flatten().view(torch.uint8).numpy().data)
        if opened.tell() != 8 + len(head) + end:
            raise CheckpointError(f"{file}: came out with another size than planned")


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of some files by name. A file is opened anew for each of them, so that no mapped page stays.

    Args:
        formats: the number format of each, as safetensors calls it.

    Raises:
        CheckpointError: a file is torn, or something else; or two of them hold a tensor of one name.
    """

    def __init__(self, files: Iterable[Path]):
        self.files: dict[str, Path] = {}
        self.shapes: dict[str, list[int]] = {}
        self.formats: dict[str, str] = {}
        for file in files:
            stored = open_weights(file)
            for name in stored.keys():  # noqa: SIM118  safetensors' handle cannot be iterated
                if name in self.files:
                    raise CheckpointError(f"{file}: holds {one_line(name, 60)}, and so does {self.files[name].name}")
                self.files[name] = file
                self.shapes[name], self.formats[name] = shape_and_format(stored, name)

    def stream(self, name: str) -> Stream:
        """A tensor as it is in its file."""
        dtype = next((dtype for dtype, known in _SAFETENSORS_NAMES.items() if known == self.formats[name]), None)
        if dtype is None:
            raise CheckpointError(f"{self.files[name]}: {name} is of a number format that is not known here")
        return Stream(name, tuple(self.shapes[name]), dtype, lambda: [self[name]])

    @property
    def int8(self) -> set[str]:
        """Names of the tensors of whole numbers that quantised layers are."""
        return {name for name, format_ in self.formats.items() if format_ == "I8"}

    def __getitem__(self, name: str) -> Tensor:
        return tensor_of(open_weights(self.files[name]), name)

    def __contains__(self, name: object) -> bool:
        return name in self.files  # else it would be read

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def tensor_of(stored: Any, name: str) -> Tensor:
    """A tensor of what `open_weights` gave."""
    return stored[name] if isinstance(stored, dict) else stored.get_tensor(name)


def shape_and_format(stored: Any, name: str) -> tuple[list[int], str]:
    """Of a tensor of what `open_weights` gave; the number format as safetensors calls it."""
    if isinstance(stored, dict):
        tensor = stored[name]
        return list(tensor.shape), _SAFETENSORS_NAMES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
    header = stored.get_slice(name)
    return list(header.get_shape()), header.get_dtype()


def open_weights(file: Path) -> Any:
    """A weight file, its tensors still on the disk: a dict, or safetensors' own handle.

    Raises:
        CheckpointError: it is torn, or something else. Nothing that it holds has been run.
    """
    if not is_file(file):
        raise CheckpointError(f"{file}: is missing")
    try:
        if file.suffix == ".safetensors":
            return safe_open(file, "pt")
        stored = _unpickled(file)
    except Exception as error:  # whatever a torn or foreign file makes the readers raise
        why = one_line(error) if file.suffix == ".safetensors" else "nothing but tensors by name is read"
        raise CheckpointError(f"{file}: is torn or no weight file ({why}); copy it again") from None
    if not isinstance(stored, dict) or not all(
        isinstance(name, str) and isinstance(t, Tensor) and t.layout == torch.strided for name, t in stored.items()
    ):
        raise CheckpointError(f"{file}: holds something other than named tensors; copy it again")
    return stored


def _unpickled(file: Path) -> Any:
    """By torch's reader of weights alone, from a file that takes no more memory than its size."""
    is_zip = zipfile.is_zipfile(file)
    if is_zip:
        with zipfile.ZipFile(file) as members:
            if any(member.compress_type != zipfile.ZIP_STORED for member in members.infolist()):
                raise ValueError("compressed")
    return torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
