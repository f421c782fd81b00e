"""Records to rows for tests, by the path that real runs take."""

from collections.abc import Iterable
from typing import Any

from glmft.data.encode import EncodingReport, Example, Lengths, Rules, encode_records
from glmft.data.formats import Record
from glmft.errors import DataError


def encoded(
    records: Iterable[Record], tokenizer: Any, lengths: Lengths, template: str = "default", loss_on: str = "flagged"
) -> tuple[list[Example], EncodingReport]:
    """Rows and report; raises DataError for what a run would stop at."""
    result = encode_records(records, tokenizer, Rules(lengths, template, loss_on))
    if result.rejected:
        raise DataError([reason for _, reason in result.rejected])
    result.report.require_rows(lengths)
    return result.rows, result.report
