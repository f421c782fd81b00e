"""Several documents in one row, so that nothing is computed on padding."""

import bisect
import random
from collections.abc import Sequence
from dataclasses import dataclass

from glmft.data.encode import Example


@dataclass(frozen=True)
class Packed(Example):
    """A row of several documents, which do not see each other; `parts` are their lengths, in order."""

    parts: tuple[int, ...] = ()


def pack(examples: Sequence[Example], max_len: int, seed: int) -> list[Packed]:
    """Rows of at most `max_len` tokens with every example in one of them.

    Best-fit decreasing: the longest document first, each into the row that it fills best. Examples of one length come
    in a seeded order, and so do the documents inside a row.
    """
    rng = random.Random(seed)
    order = list(range(len(examples)))
    rng.shuffle(order)
    order.sort(key=lambda i: len(examples[i].ids), reverse=True)
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room left, row), sorted
    for i in order:
        length = len(examples[i].ids)
        at = bisect.bisect_left(free, (length, -1))
        room, row = free.pop(at) if at < len(free) else (max(max_len, length), len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(i)
        if room > length:
            bisect.insort(free, (room - length, row))
    for row in rows:
        rng.shuffle(row)
    return [join([examples[i] for i in row]) for row in rows]


def join(examples: Sequence[Example]) -> Packed:
    ids, spans, parts = [], [], []
    for example in examples:
        spans += [(first + len(ids), end + len(ids)) for first, end in example.spans]
        ids += example.ids
        parts.append(len(example.ids))
    return Packed(ids, tuple(spans), examples[0].place, tuple(parts))
