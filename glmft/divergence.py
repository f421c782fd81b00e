"""What is left behind when a loss or a gradient is no finite number."""

import json
import math
from collections.abc import Sequence
from typing import Any

from glmft.data.encode import Example
from glmft.dist import gather_objects
from glmft.errors import DivergenceError
from glmft.job import Job

BAD_BATCH = "bad_batch.json"
NAMED = 4  # records that the message names


def bad_batch(
    problem: str,
    step: int,
    data: Sequence[Example],
    window: list[int],
    shares: list[list[int]],
    losses: list[float],
    job: Job,
) -> DivergenceError:
    """Write the records of an optimizer step to bad_batch.json; the error to raise. Collective.

    Args:
        step: counted from 1; 0 for the try with the longest rows.
        window: rows of the step.
        shares: this rank's rows of each micro-batch.
        losses: and the summed loss of each.
    """
    own = [{"rank": job.world.rank, "rows": rows, "loss": loss} for rows, loss in zip(shares, losses, strict=True)]
    parts = [part for rank in gather_objects(job.world, own) for part in rank]
    worst = [row for part in parts if not math.isfinite(part["loss"]) for row in part["rows"]]
    path = job.folder / BAD_BATCH
    if job.world.is_main:
        report = {
            "step": step,
            "problem": problem,
            "micro_batches": [part | {"loss": str(part["loss"])} for part in parts],
            "records": [described(data[row], row, job.tokenizer) for row in window],
        }
        path.write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    named = ", ".join(data[row].place for row in (worst or window)[:NAMED])
    more = " and others" if len(worst or window) > NAMED else ""
    when = f"at step {step}" if step else "of the longest rows"
    error = DivergenceError(
        f"{problem} {when}, records {named}{more}: the weights were not changed; look at {path}, then go on with "
        "--resume yes and a lower --learning_rate, or mend the records and start anew"
    )
    error.agreed = True
    return error


def described(row: Example, number: int, tokenizer: Any) -> dict[str, Any]:
    """A row for a person: where it comes from, its text, and what of it is learned."""
    learned = [tokenizer.decode(row.ids[first:end]) for first, end in row.spans]
    text = {"text": tokenizer.decode(row.ids), "learned": learned}
    return {"row": number, "place": row.place, "tokens": len(row.ids), "supervised": row.supervised, **text}
