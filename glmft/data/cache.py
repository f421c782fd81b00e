"""Encoded rows on disk: made once by several processes, then mapped into memory, however many ranks read them.

A cache is keyed by everything that the rows hang on. It appears whole or not at all; whoever comes first makes it, and
the others on the same host wait for it.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from glmft.data.encode import EncodingReport, Example, LazyRows, Rules, encode_records
from glmft.data.formats import Options, RawChunk, Rejected, good_records, raw_chunks
from glmft.data.seal import ROWS, SUMMARY, DamagedCache, require_rows, require_seal, schema, seal
from glmft.errors import DataError, one_line
from glmft.files import digest_of, new_folder, write_json

LAYOUT = 3  # raise it when rows come out differently
CHUNK = 1000  # records that a process encodes at a time
FEW = 20_000  # so many records are encoded sooner by this process alone


@dataclass(frozen=True)
class Recipe:
    """All that the rows of some files hang on, but for the tokenizer."""

    options: Options
    rules: Rules


@dataclass
class Chunk:
    """What a process made of some records; `table` holds the rows."""

    table: Any
    report: EncodingReport
    rejected: list[tuple[str, str]]


class CachedRows(LazyRows):
    """The rows of a cache, read from the disk as they are asked for.

    Args:
        vocabulary: ids must be below it.
        notes: lines for whoever reads the log.

    Raises:
        DamagedCache: the folder does not hold what was written into it, or no rows.
    """

    def __init__(self, folder: Path, vocabulary: int, notes: list[str]):
        from datasets import Dataset

        require_seal(folder)
        try:
            summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
            self.table = Dataset.from_file(str(folder / ROWS))
            require_rows(self.table.data.table, vocabulary)
            self.lengths: list[int] = self.table.data.column("length").to_pylist()
            self.report = EncodingReport(**summary["report"], lengths=self.lengths)
            self.rejected = [(place, reason) for place, reason in summary["rejected"]]
        except DamagedCache:
            raise
        except Exception as error:  # Arrow has a class for each kind of harm
            raise DamagedCache(one_line(error, 100)) from None
        self.key, self.notes = folder.name, notes

    def __len__(self) -> int:
        return len(self.lengths)

    def row(self, index: int) -> Example:
        row = self.table[index]
        flat = row["spans"]
        return Example(row["ids"], tuple(zip(flat[::2], flat[1::2], strict=True)), row["place"])


def cached_rows(files: Sequence[Path], recipe: Recipe, tokenizer: Any, home: Path, workers: int) -> CachedRows:
    """The rows of some files, from their cache, which is made first if need be.

    Args:
        home: folder of all caches; one that cannot be written is replaced by a temporary one.
        workers: processes that encode; 1: this one.

    Raises:
        DataError: files that cannot be read, bad records, or nothing left.
    """
    with contextlib.ExitStack() as stack:
        try:
            home.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=home).close()
        except OSError:
            # What is mapped into memory stays there when the folder goes, which it does before the run begins.
            temporary = tempfile.TemporaryDirectory(prefix="glmft-cache-", ignore_cleanup_errors=True)
            home = Path(stack.enter_context(temporary))
        read = [*files, Path(tokenizer.vocab_file)]
        digests = digests_of(read)
        folder = home / key_of(read, digests, recipe, tokenizer)
        return _opened(folder, len(tokenizer), lambda: build(folder, files, digests, recipe, tokenizer, workers))


def _opened(folder: Path, vocabulary: int, make: Callable[[], None]) -> CachedRows:
    """The rows in `folder`, made by this process if they are not there, and made again if they are damaged."""
    from filelock import FileLock

    notes: list[str] = []
    with contextlib.suppress(DamagedCache):
        return CachedRows(folder, vocabulary, notes)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        try:
            return CachedRows(folder, vocabulary, notes)  # another process has made it meanwhile
        except DamagedCache as damage:
            if folder.exists():
                notes.append(f"warning: the encoded data in {folder} was damaged ({damage}): made again")
        make()
    return CachedRows(folder, vocabulary, notes)


def digests_of(files: Sequence[Path]) -> dict[Path, str]:
    """SHA-256 of each file's bytes. Raises DataError."""
    digests = {}
    for path in files:
        try:
            digests[path] = digest_of(path)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return digests


def key_of(read: Sequence[Path], digests: dict[Path, str], recipe: Recipe, tokenizer: Any) -> str:
    """A hash over the files' places and contents, the recipe and the tokenizer."""
    kind = type(tokenizer)
    described = {
        "layout": LAYOUT,
        "recipe": asdict(recipe),
        "tokenizer": (kind.__module__, kind.__name__, tokenizer.own_settings()),
        "files": [(str(path), digests[path]) for path in read],
    }
    text = json.dumps(described, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def build(
    folder: Path, files: Sequence[Path], digests: dict[Path, str], recipe: Recipe, tokenizer: Any, workers: int
) -> None:
    """Encode all files into `folder`, written aside and renamed.

    Args:
        digests: of the files, and of the tokenizer's, as the folder's name says.

    Raises:
        DataError: as `cached_rows`, or a file changes meanwhile.
    """
    from datasets import Features
    from datasets.arrow_writer import ArrowWriter
    from tqdm import tqdm

    report, rejected, seen = EncodingReport(), Rejected(recipe.options), {}
    try:
        with new_folder(folder) as aside:
            columns = Features.from_arrow_schema(schema())
            bar = tqdm(desc="encoding", unit=" records", disable=None)  # on a terminal only
            with bar, ArrowWriter(features=columns, path=str(aside / ROWS)) as writer:
                for chunk in encoded_chunks(files, recipe, tokenizer, workers, seen):
                    bar.update(chunk.report.read)
                    rejected.add(chunk.rejected)
                    report.add(chunk.report)
                    writer.write_table(chunk.table)
                writer.finalize()
            require_unchanged(digests, {**seen, **digests_of([Path(tokenizer.vocab_file)])})
            rejected.check(report.read, files)
            report.require_rows(recipe.rules.lengths)
            counts = {name: value for name, value in asdict(report).items() if name != "lengths"}
            summary = {"report": counts, "rejected": rejected.reasons}
            write_json(aside / SUMMARY, summary)
            seal(aside)
    except OSError as error:
        raise DataError(f"{folder}: could not be written ({error.strerror}); make room or name a --cache_dir") from None


def require_unchanged(digests: dict[Path, str], seen: dict[Path, str]) -> None:
    """Raises DataError if the bytes that were read are not those that the cache is named after."""
    for path, digest in seen.items():
        if digests[path] != digest:
            raise DataError(f"{path}: changed while it was read; start again once nothing writes it any more")


def encoded_chunks(
    files: Sequence[Path], recipe: Recipe, tokenizer: Any, workers: int, seen: dict[Path, str]
) -> Iterator[Chunk]:
    """The chunks of all files in their order; no more of them are held at a time than the processes work on.

    Args:
        seen: takes the SHA-256 of the bytes that were read of each file.
    """
    chunks = raw_chunks(files, recipe.options, CHUNK, seen)
    first = list(islice(chunks, FEW // CHUNK))
    everything = itertools.chain(first, chunks)
    if workers < 2 or len(first) < FEW // CHUNK:
        yield from (encode_chunk(raw, recipe, tokenizer) for raw in everything)
        return
    context = multiprocessing.get_context("spawn")  # forking would copy the threads of torch and of the launcher
    with ProcessPoolExecutor(workers, context, _start_worker, (tokenizer,)) as pool:
        yield from in_order(pool, functools.partial(_encode_here, recipe=recipe), everything, 2 * workers)


def in_order(pool: Any, work: Any, pieces: Iterator[Any], ahead: int) -> Iterator[Chunk]:
    """`pool.map` with at most `ahead` results waiting."""
    waiting = [pool.submit(work, piece) for piece in islice(pieces, ahead)]
    while waiting:
        result = waiting.pop(0).result()
        waiting += [pool.submit(work, piece) for piece in islice(pieces, 1)]
        yield result


def encode_chunk(raw: RawChunk, recipe: Recipe, tokenizer: Any) -> Chunk:
    """The rows of a chunk as a table; the lengths, which the table has, are not sent between processes twice."""
    rejected: list[tuple[str, str]] = []
    records = good_records(raw, recipe.options, rejected)
    encoded = encode_records(records, tokenizer, recipe.rules, rejected)
    encoded.report.lengths = []
    return Chunk(as_table(encoded.rows), encoded.report, rejected)


def as_table(rows: Sequence[Example]) -> Any:
    import pyarrow as pa

    columns = {
        "ids": as_lists([row.ids for row in rows]),
        "spans": as_lists([list(itertools.chain.from_iterable(row.spans)) for row in rows]),
        "place": [row.place for row in rows],
        "length": [len(row.ids) for row in rows],
    }
    return pa.table(columns, schema=schema())


def as_lists(rows: Sequence[list[int]]) -> Any:
    """An array of lists, by one flat array: pyarrow takes nested lists apart several times slower."""
    import numpy as np
    import pyarrow as pa

    edges = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    flat = np.fromiter(itertools.chain.from_iterable(rows), dtype=np.int32, count=edges[-1])
    return pa.ListArray.from_arrays(pa.array(edges), pa.array(flat))


# ---------------------------------------------------------------------------------------------------- processes

_worker_tokenizer: Any = None  # the one global of a worker process, set when it starts


def _start_worker(tokenizer: Any) -> None:
    global _worker_tokenizer
    _worker_tokenizer = tokenizer


def _encode_here(raw: RawChunk, recipe: Recipe) -> Chunk:
    return encode_chunk(raw, recipe, _worker_tokenizer)
