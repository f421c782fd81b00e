"""Several documents in one row, so that nothing is computed on padding."""

import bisect
import random
from collections.abc import Sequence
from dataclasses import dataclass

from glmft.data.encode import Example, LazyRows


@dataclass(frozen=True)
class Packed(Example):
    """A row of several documents, which do not see each other; `parts` are their lengths, in order."""

    parts: tuple[int, ...] = ()


def pack(lengths: Sequence[int], max_len: int, seed: int) -> list[list[int]]:
    """Rows of at most `max_len` tokens, as numbers of documents, with every document in one of them.

    Best-fit decreasing: the longest document first, each into the row that it fills best. Documents of one length come
    in a seeded order, and so do those inside a row.
    """
    rng = random.Random(seed)
    order = list(range(len(lengths)))
    rng.shuffle(order)
    order.sort(key=lengths.__getitem__, reverse=True)
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room left, row), sorted
    for i in order:
        at = bisect.bisect_left(free, (lengths[i], -1))
        room, row = free.pop(at) if at < len(free) else (max(max_len, lengths[i]), len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(i)
        if room > lengths[i]:
            bisect.insort(free, (room - lengths[i], row))
    for row in rows:
        rng.shuffle(row)
    return rows


class PackedRows(LazyRows):
    """Documents joined into rows as they are asked for."""

    def __init__(self, documents: Sequence[Example], rows: list[list[int]]):
        self.documents, self.rows = documents, rows

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> Packed:
        return join([self.documents[i] for i in self.rows[index]])


def join(examples: Sequence[Example]) -> Packed:
    """One row of several documents."""
    ids, spans, parts = [], [], []
    for example in examples:
        spans += [(first + len(ids), end + len(ids)) for first, end in example.spans]
        ids += example.ids
        parts.append(len(example.ids))
    return Packed(ids, tuple(spans), ", ".join(e.place for e in examples), tuple(parts))
