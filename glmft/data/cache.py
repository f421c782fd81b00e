"""Encoded rows on disk: made once by several processes, then mapped into memory, however many ranks read them.

A cache is keyed by everything that the rows hang on. It appears whole or not at all; whoever comes first makes it, and
the others on the same host wait for it.
"""

import functools
import hashlib
import itertools
import json
import multiprocessing
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from glmft.data.encode import EncodingReport, Example, LazyRows, Rules, encode_records
from glmft.data.formats import Options, RawChunk, Rejected, good_records, raw_chunks
from glmft.errors import DataError
from glmft.files import new_folder, write_json

LAYOUT = 1  # raise it when rows come out differently
CHUNK = 1000  # records that a process encodes at a time
FEW = 20_000  # so many records are encoded sooner by this process alone
ROWS, SUMMARY = "rows.arrow", "summary.json"


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
    """The rows of a cache, read from the disk as they are asked for."""

    def __init__(self, folder: Path):
        from datasets import Dataset

        self.table = Dataset.from_file(str(folder / ROWS))
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        self.lengths: list[int] = self.table.data.column("length").to_pylist()
        self.report = EncodingReport(**summary["report"], lengths=self.lengths)
        self.rejected = [(place, reason) for place, reason in summary["rejected"]]

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
    from filelock import FileLock

    try:
        home.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=home).close()
    except OSError:
        home = Path(tempfile.mkdtemp(prefix="glmft-cache-"))
    folder = home / key_of(files, recipe, tokenizer)
    if not (folder / SUMMARY).is_file():
        with FileLock(home / f"{folder.name}.lock"):
            if not (folder / SUMMARY).is_file():
                build(folder, files, recipe, tokenizer, workers)
    return CachedRows(folder)


def key_of(files: Sequence[Path], recipe: Recipe, tokenizer: Any) -> str:
    """A hash over the files' places and contents, the recipe and the tokenizer."""
    digest = hashlib.sha256()
    kind = type(tokenizer)
    by = (kind.__module__, kind.__name__, tokenizer.own_settings())
    described = {"layout": LAYOUT, "recipe": asdict(recipe), "tokenizer": by}
    digest.update(json.dumps(described, sort_keys=True, ensure_ascii=False).encode())
    for path in [*files, Path(tokenizer.vocab_file)]:
        digest.update(str(path).encode())
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()[:32]


def build(folder: Path, files: Sequence[Path], recipe: Recipe, tokenizer: Any, workers: int) -> None:
    """Encode all files into `folder`, written aside and renamed. Raises as `cached_rows`."""
    from datasets import Features
    from datasets.arrow_writer import ArrowWriter
    from tqdm import tqdm

    report, rejected = EncodingReport(), Rejected(recipe.options)
    try:
        with new_folder(folder) as aside:
            columns = Features.from_arrow_schema(schema())
            bar = tqdm(desc="encoding", unit=" records", disable=None)  # on a terminal only
            with bar, ArrowWriter(features=columns, path=str(aside / ROWS)) as writer:
                for chunk in encoded_chunks(files, recipe, tokenizer, workers):
                    bar.update(chunk.report.read)
                    rejected.add(chunk.rejected)
                    report.add(chunk.report)
                    writer.write_table(chunk.table)
                writer.finalize()
            rejected.check(report.read, files)
            report.require_rows(recipe.rules.lengths)
            counts = {name: value for name, value in asdict(report).items() if name != "lengths"}
            summary = {"report": counts, "rejected": rejected.reasons}
            write_json(aside / SUMMARY, summary)
    except OSError as error:
        raise DataError(f"{folder}: could not be written ({error.strerror}); make room or name a --cache_dir") from None


def encoded_chunks(files: Sequence[Path], recipe: Recipe, tokenizer: Any, workers: int) -> Iterator[Chunk]:
    """The chunks of all files in their order; no more of them are held at a time than the processes work on."""
    chunks = raw_chunks(files, recipe.options, CHUNK)
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


def schema() -> Any:
    """The columns of a cache."""
    import pyarrow as pa

    numbers = pa.list_(pa.int32())
    return pa.schema({"ids": numbers, "spans": numbers, "place": pa.string(), "length": pa.int32()})


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
