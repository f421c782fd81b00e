"""Files to examples: read, encode, and mix sources by weight."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from glmft.config import DataSettings
from glmft.data.encode import Example, Lengths, encode_records
from glmft.data.formats import Options, Record, read_records
from glmft.sources import Source


@dataclass
class Loaded:
    """Examples in the order of their files (mixed sources: as often as their weight asks for), and what to tell."""

    examples: list[Example]
    rejected: list[tuple[str, str]]
    lines: list[str]


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
    """Records of all sources, and what was refused. Raises DataError."""
    read = read_records([file for source in sources for file in source.files], options_of(settings))
    return read.records, read.rejected


def load_examples(sources: Sequence[Source], settings: Any, tokenizer: Any, seed: int) -> Loaded:
    """Everything that is trained on.

    Args:
        settings: of a training run.

    Raises:
        DataError: records that cannot be read or expressed, or nothing left.
    """
    lengths, parts, rejected, lines = lengths_of(settings, tokenizer.family, settings.is_skip), [], [], []
    weighted = sources[0].weight is not None
    for group in [[source] for source in sources] if weighted else [list(sources)]:
        records, refused = read_all(group, settings)
        examples, report = encode_records(records, tokenizer, lengths, settings.template, settings.loss_on)
        parts.append(examples)
        rejected += refused
        lines += report.lines()
    if rejected:
        lines.append(f"data: {len(rejected)} bad records left out; rejected.jsonl says why")
    if not weighted:
        return Loaded(parts[0], rejected, lines)
    counts = shares([len(part) for part in parts], [source.weight for source in sources])
    for source, part, count in zip(sources, parts, counts, strict=True):
        lines.append(
            f"data: {source.files[0]} gives {count} of {sum(counts)} rows ({count / len(part):.2f} times its own)"
        )
    mixed = [
        example for i, (part, n) in enumerate(zip(parts, counts, strict=True)) for example in draw(part, n, seed + i)
    ]
    return Loaded(mixed, rejected, lines)


def shares(sizes: Sequence[int], weights: Sequence[float]) -> list[int]:
    """How many rows of each source make up an epoch of as many rows as all of them hold; at least one of each."""
    total = sum(weights)
    return [max(1, round(sum(sizes) * weight / total)) for weight in weights]


def draw(examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """`count` examples: every one equally often, give or take one, in a seeded choice."""
    whole, rest = divmod(count, len(examples))
    return list(examples) * whole + random.Random(seed).sample(list(examples), rest)
