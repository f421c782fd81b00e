"""What a cache of encoded rows holds is what was written: sizes and hashes, and values in their ranges."""

import json
from pathlib import Path
from typing import Any

from glmft.files import is_as_listed, listed, write_json

ROWS, SUMMARY, SEAL = "rows.arrow", "summary.json", "seal.json"


def schema() -> Any:
    """The columns of a cache."""
    import pyarrow as pa

    numbers = pa.list_(pa.int32())
    return pa.schema({"ids": numbers, "spans": numbers, "place": pa.string(), "length": pa.int32()})


class DamagedCache(Exception):
    """Encoded data that cannot be what was written; it is made again."""


def seal(folder: Path) -> None:
    """Note size and hash of what was written. Raises OSError."""
    write_json(folder / SEAL, listed(folder, (ROWS, SUMMARY)))


def require_seal(folder: Path) -> None:
    """Raises DamagedCache if a file is missing or is not what was written."""
    try:
        sealed = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        for name in (ROWS, SUMMARY):
            if not is_as_listed(folder / name, sealed[name]):
                raise DamagedCache(f"{name} has changed")
    except OSError as error:
        raise DamagedCache(f"{Path(error.filename or folder).name}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DamagedCache(f"{SEAL} is none") from None


def require_rows(table: Any, vocabulary: int) -> None:
    """Raises DamagedCache for ids outside the vocabulary, wrong lengths, or spans out of order or of their row."""
    import numpy as np
    import pyarrow.compute as pc

    if table.schema.remove_metadata() != schema() or not table.num_rows:
        raise DamagedCache(f"{ROWS} has other columns, or no rows")
    if any(column.null_count for column in table.columns):
        raise DamagedCache(f"{ROWS} has gaps")
    for batch in table.to_batches():
        ids, spans = batch.column("ids"), batch.column("spans")
        lengths = batch.column("length").to_numpy()
        edges, counts = spans.flatten().to_numpy(), pc.list_value_length(spans).to_numpy()
        of_row = np.repeat(np.arange(len(lengths)), counts)
        follows = of_row[1:] == of_row[:-1]  # on the edge before, in the same row
        steps = np.diff(edges)[follows]
        is_end = np.arange(len(edges))[1:][follows] % 2 == 1
        bounds = pc.min_max(ids.flatten()).as_py()
        whole = (
            (pc.list_value_length(ids).to_numpy() == lengths).all()
            and bounds["min"] is not None
            and bounds["min"] >= 0
            and bounds["max"] < vocabulary
            and (counts > 0).all()
            and (counts % 2 == 0).all()
            and (edges >= 0).all()
            and (edges <= lengths[of_row]).all()
            and (steps >= is_end).all()
        )
        if not whole:
            raise DamagedCache(f"{ROWS} holds ids or labels that cannot be")
