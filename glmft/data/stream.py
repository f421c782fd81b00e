"""Records one after the other, never all of them in memory."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from glmft.data.dataset import options_of, require_question
from glmft.data.formats import MOST_PROBLEMS, Record, Rejected, good_records, raw_chunks
from glmft.settings.config import DataSettings
from glmft.settings.sources import Source

Refusal = tuple[str, str]  # the place of a bad record, and what is wrong with it


def stream_records(
    sources: Sequence[Source],
    settings: DataSettings,
    reject: Callable[[list[Refusal]], Any] = lambda refusals: None,
    most: int | None = None,
) -> Iterator[Record]:
    """The good records of all sources, in their order, each of which asks something.

    Args:
        reject: takes the bad ones, if the settings let them be left out.
        most: no more than the first, this many.

    Raises:
        DataError: a file that cannot be read or holds no record, or plain text; the first few bad records, if none may
            be.
    """
    options, count = options_of(settings), 0
    rejected, files = Rejected(options), [file for source in sources for file in source.files]
    for record in itertools.islice(_good(files, options, rejected, reject), most):
        require_question(record)
        count += 1
        yield record
    rejected.check(count, files)


def _good(files: Iterable[Path], options: Any, rejected: Rejected, reject: Callable[..., Any]) -> Iterator[Record]:
    for chunk in raw_chunks(files, options, size=1):
        bad: list[Refusal] = []
        yield from good_records(chunk, options, bad)
        if bad:
            rejected.add(bad)
            reject(bad)
            del rejected.reasons[MOST_PROBLEMS:]  # the first few are enough to tell
