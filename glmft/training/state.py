"""Where a run stands: what a checkpoint holds besides weights, moments and random states."""

from dataclasses import dataclass, field, fields
from pathlib import Path

from glmft.errors import CheckpointError
from glmft.reading import read_json
from glmft.schema import FLAG, NULL, Kind, number, problems, table_of, text, whole

STATE = "trainer_state.json"


@dataclass(frozen=True)
class LogFigures:
    """Of the steps since the last log line: mean loss of a supervised token in nats, and the tokens of all ranks."""

    loss: float
    supervised: int
    tokens: int


@dataclass
class TrainerState:
    """
    Args:
        step: optimizer steps that are done.
        adam_step: those that the optimizer counted.
        loss_sum, supervised, tokens: over the whole run up to the last log line.
        open_loss, open_supervised, open_tokens: since that line.
        last_loss: mean of the last log line.
        window, records, seed, grouped: what the order of the records follows from.
        skipped: steps in a row that the loss scaler skipped.
        loss_scaler: its numbers, for fp16.
        best, best_step, best_loss: best value of the watched metric, when it was seen, and the validation loss then.
        waited: evaluations since then.
        saved_step: that of the newest checkpoint.
        first_answer: to the first record before training, the start of it; None: it was not asked.
    """

    step: int = 0
    total_steps: int = 0
    adam_step: int = 0
    tokens: int = 0
    supervised: int = 0
    loss_sum: float = 0.0
    open_loss: float = 0.0
    open_supervised: int = 0
    open_tokens: int = 0
    last_loss: float | None = None
    window: int = 0
    records: int = 0
    seed: int = 0
    grouped: bool = False
    skipped: int = 0
    loss_scaler: dict[str, float] = field(default_factory=dict)
    best: float | None = None
    best_step: int | None = None
    best_loss: float | None = None
    waited: int = 0
    saved_step: int = 0
    first_answer: str | None = None

    def add(self, loss: float, supervised: int, tokens: int) -> None:
        """Count one optimizer step: its summed loss and its tokens, of all ranks."""
        self.step += 1
        self.open_loss += loss
        self.open_supervised += supervised
        self.open_tokens += tokens

    def take(self) -> LogFigures:
        """What has come together since the last call, which from here on belongs to the whole run's figures."""
        mean = self.open_loss / max(1, self.open_supervised)
        figures = LogFigures(mean, self.open_supervised, self.open_tokens)
        self.loss_sum += self.open_loss
        self.supervised += self.open_supervised
        self.tokens += self.open_tokens
        self.open_loss, self.open_supervised, self.open_tokens = 0.0, 0, 0
        self.last_loss = mean
        return figures


_COUNT, _FINITE = whole(0, 2**62), number(-1e300, 1e300)
KINDS: dict[str, Kind] = {
    **{f.name: _COUNT for f in fields(TrainerState) if f.type is int},
    "loss_sum": _FINITE,
    "open_loss": _FINITE,
    "last_loss": _FINITE | NULL,
    "grouped": FLAG,
    "loss_scaler": table_of(number(0, 1e300) | FLAG, 100),
    "best": _FINITE | NULL,
    "best_step": _COUNT | NULL,
    "best_loss": _FINITE | NULL,
    "first_answer": text() | NULL,
}


def load_state(checkpoint: Path) -> TrainerState:
    """Raises CheckpointError if another program wrote it."""
    stored = read_json(checkpoint / STATE)
    wrong = problems({"step": None, **stored}, KINDS, f"{checkpoint / STATE}: is no state of a run of glmft")
    if wrong:
        raise CheckpointError([f"{line}; resume from another checkpoint" for line in wrong])
    return TrainerState(**{f.name: stored[f.name] for f in fields(TrainerState) if f.name in stored})
