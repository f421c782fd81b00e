"""What is left behind when a loss or a gradient is no finite number."""

import math
from typing import Any

from glmft.data.encode import Example
from glmft.dist import gather_objects
from glmft.errors import DivergenceError
from glmft.files import write_json
from glmft.training.job import Job

BAD_BATCH = "bad_batch.json"
NAMED = 4  # records that the message names


def bad_batch(
    problem: str,
    step: int,
    window: list[int],
    rows: list[list[int]],
    losses: list[float],
    job: Job,
) -> DivergenceError:
    """Write the records of an optimizer step to bad_batch.json; the error to raise. Collective.

    Args:
        step: counted from 1; 0 for the try with the longest rows.
        window: numbers of the step's rows.
        rows: numbers of this rank's rows, by micro-batch.
        losses: the summed loss of each micro-batch.
    """
    rank, examples = job.world.rank, job.rows.examples
    seen = zip(rows, losses, strict=True) if job.world.sees_loss else ()
    here = [{"rank": rank, "rows": numbers, "loss": loss} for numbers, loss in seen]
    parts = [part for of_rank in gather_objects(job.world, here) for part in of_rank]
    worst = [row for part in parts if not math.isfinite(part["loss"]) for row in part["rows"]]
    path = job.folder / BAD_BATCH
    if job.world.is_main:
        report = {
            "step": step,
            "problem": problem,
            "micro_batches": [part | {"loss": str(part["loss"])} for part in parts],
            "records": [described(examples[row], row, job.tokenizer) for row in window],
        }
        write_json(path, report)
    named = ", ".join(examples[row].place for row in (worst or window)[:NAMED])
    more = " and others" if len(worst or window) > NAMED else ""
    when = f"at step {step}" if step else "of the longest rows"
    return DivergenceError(
        f"{problem} {when}, records {named}{more}: the weights were not changed; look at {path}, then go on with "
        "--resume yes and a lower --learning_rate, or mend the records and start anew",
        of_all_ranks=True,
    )


def described(row: Example, number: int, tokenizer: Any) -> dict[str, Any]:
    """A row for a person: where it comes from, its text, and what of it is learned."""
    learned = [tokenizer.decode(row.ids[first:end]) for first, end in row.spans]
    text = {"text": tokenizer.decode(row.ids), "learned": learned}
    return {"row": number, "place": row.place, "tokens": len(row.ids), "supervised": row.supervised, **text}
