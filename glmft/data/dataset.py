"""Files to rows: encode or take from the cache, mix sources by weight, pack."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from glmft.data.cache import Recipe, cached_rows
from glmft.data.encode import Example, LazyRows, Lengths, Rules
from glmft.data.formats import described, read_records
from glmft.data.packing import PackedRows, pack
from glmft.data.record import Options, Record
from glmft.data.shortfall import Shortfall, shortfalls
from glmft.errors import DataError
from glmft.files import write_lines
from glmft.settings.config import DataSettings
from glmft.settings.sources import Source


@dataclass
class Rows:
    """Rows in the order of their files (mixed sources: as often as their weight asks for).

    Args:
        lengths: tokens of each row.
        rejected: (place, reason) of every bad record.
        lines: what became of the records, for whoever reads the log.
        keys: of the caches that they come from: the same on all ranks, or these read different data.
        notes: further lines, which this rank alone may have.
        shortfalls: what is lost of the records, where it is more than a little.
    """

    examples: Sequence[Example]
    lengths: list[int]
    rejected: list[tuple[str, str]]
    lines: list[str]
    keys: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    shortfalls: list[Shortfall] = field(default_factory=list)


class Picked(LazyRows):
    """Rows of several sources, each as often as `picks` names it: (source, row)."""

    def __init__(self, sources: Sequence[Sequence[Example]], picks: list[tuple[int, int]]):
        self.sources, self.picks = sources, picks

    def __len__(self) -> int:
        return len(self.picks)

    def row(self, index: int) -> Example:
        source, row = self.picks[index]
        return self.sources[source][row]


def write_rejected(folder: Path, rejected: list[tuple[str, str]]) -> None:
    """The bad records, a line each: where it stands and what is wrong with it. Raises OSError."""
    if rejected:
        write_lines(folder / "rejected.jsonl", ({"place": place, "reason": reason} for place, reason in rejected))


def options_of(settings: DataSettings) -> Options:
    return Options(**{f.name: getattr(settings, f.name) for f in fields(Options)})


def lengths_of(settings: DataSettings, family: str, is_skip: bool = False) -> Lengths:
    """The lengths that the flags mean: `max_source_length` and `max_target_length` give the sum, and one for the end
    token that the second and third generation put behind it.
    """
    if settings.max_source_length is None or settings.max_target_length is None:
        return Lengths(settings.max_len, settings.max_src_len, is_skip=is_skip)
    source, target = settings.max_source_length, settings.max_target_length
    return Lengths(source + target + (family != "glm"), source, target, is_skip)


def read_all(sources: Sequence[Source], settings: DataSettings) -> tuple[list[Record], list[tuple[str, str]]]:
    """Records of all sources, each of which asks something, and what was refused. Raises DataError."""
    records, rejected = read_records([file for source in sources for file in source.files], options_of(settings))
    for record in records:
        require_question(record)
    return records, rejected.reasons


def require_question(record: Record) -> None:
    """Raises DataError for plain text."""
    if record.is_text:
        raise DataError(
            f"{record.place}: is plain text, which asks nothing; give records with a question and an answer"
        )


def load_rows(
    sources: Sequence[Source], settings: Any, tokenizer: Any, seed: int, cache: Path, workers: int = 1
) -> Rows:
    """Everything that is trained on.

    Args:
        settings: what is read, cut and learned (`LearningSettings`).
        cache: folder of all caches.
        workers: processes that encode.

    Raises:
        DataError: records that cannot be read or expressed, or nothing left.
    """
    lengths = lengths_of(settings, tokenizer.family, settings.is_skip)
    recipe = Recipe(options_of(settings), Rules(lengths, settings.template, settings.loss_on))
    weighted = sources[0].weight is not None
    groups = [source.files for source in sources] if weighted else [[f for source in sources for f in source.files]]
    parts = [cached_rows(files, recipe, tokenizer, cache, workers) for files in groups]
    names = sorted({name for part in parts for name in part.formats})
    formats = ", ".join(described(name, recipe.options) for name in names)
    lines = [f"data: read as {formats}", *(line for part in parts for line in part.report.lines())]
    rejected = [refused for part in parts for refused in part.rejected]
    lost = shortfalls([part.report for part in parts], lengths, len(rejected))
    if rejected:
        lines.append(f"data: {len(rejected)} bad records left out; rejected.jsonl says why")
    lines += [shortfall.line for shortfall in lost]
    keys, notes = [part.key for part in parts], [note for part in parts for note in part.notes]
    if not weighted:
        return Rows(parts[0], parts[0].lengths, rejected, lines, keys, notes, lost)
    counts = rows_per_source([len(part) for part in parts], [source.weight for source in sources])
    picks = []
    for i, (part, count) in enumerate(zip(parts, counts, strict=True)):
        picks += [(i, row) for row in draw(len(part), count, seed + i)]
        name, times = groups[i][0], count / len(part)
        lines.append(f"data: {name} gives {count} of {sum(counts)} rows ({times:.2f} times its own)")
    lengths = [parts[i].lengths[row] for i, row in picks]
    return Rows(Picked(parts, picks), lengths, rejected, lines, keys, notes, lost)


def split(rows: Rows, ratio: float, seed: int) -> tuple[Rows, Rows]:
    """A seeded share of the rows, at least one, held out: (the rest, the share). Raises DataError if it is all."""
    count = len(rows.lengths)
    order = list(range(count))
    random.Random(seed).shuffle(order)
    held_out = max(1, round(ratio * count))
    if held_out >= count:
        raise DataError(f"--val_ratio {ratio:g}: leaves nothing of {count} rows to train on")
    trained, validation = chosen(rows, sorted(order[held_out:])), chosen(rows, sorted(order[:held_out]))
    lines = [*rows.lines, f"data: {held_out} of {count} rows held out for validation"]
    return replace(trained, lines=lines), replace(validation, notes=[], shortfalls=[])


def chosen(rows: Rows, numbers: list[int]) -> Rows:
    """Some of the rows, in this order."""
    examples = Picked([rows.examples], [(0, i) for i in numbers])
    return replace(rows, examples=examples, lengths=[rows.lengths[i] for i in numbers], lines=[])


def packed(rows: Rows, max_len: int, seed: int) -> Rows:
    """Several documents in a row."""
    groups = pack(rows.lengths, max_len, seed)
    lines = [*rows.lines, f"data: {len(rows.lengths)} documents packed into {len(groups)} rows"]
    lengths = [sum(rows.lengths[i] for i in group) for group in groups]
    return replace(rows, examples=PackedRows(rows.examples, groups), lengths=lengths, lines=lines)


def rows_per_source(sizes: Sequence[int], weights: Sequence[float]) -> list[int]:
    """How many rows of each source make up an epoch of as many rows as all of them hold; at least one of each."""
    total = sum(weights)
    return [max(1, round(sum(sizes) * weight / total)) for weight in weights]


def draw(size: int, count: int, seed: int) -> list[int]:
    """`count` rows of `size`: every one equally often, give or take one, in a seeded choice."""
    whole, rest = divmod(count, size)
    return list(range(size)) * whole + random.Random(seed).sample(range(size), rest)
