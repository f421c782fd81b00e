"""The error tree. Every message gives the value, the rule it breaks and the mend, in one line a problem."""

import difflib
from collections.abc import Callable, Iterable


class GlmftError(Exception):
    """Base of all errors that a user can mend; the command line prints its lines and no traceback.

    Args:
        problems: one line, or several independent problems, one line each.
        of_all_ranks: every rank raises the same, so that rank 0 alone prints it.
    """

    exit_code = 2
    label = "error"

    def __init__(self, problems: str | Iterable[str], of_all_ranks: bool = False):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        self.of_all_ranks = of_all_ranks
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple:
        return type(self), (self.problems, self.of_all_ranks)


class ConfigError(GlmftError):
    """A setting, a model folder or an output folder that cannot be used as given."""


class DataError(GlmftError):
    """A data file or record that cannot be used; the message starts with FILE:LINE."""


class CheckpointError(GlmftError):
    """Weights or a run's saved state that are missing, torn or of other shapes."""


class DivergenceError(GlmftError):
    """A loss or a gradient stopped being a finite number."""

    exit_code = 3


class OutOfMemory(GlmftError):
    """The settings need more memory than there is."""

    exit_code = 4


class RankLost(GlmftError):
    """Another rank has ended, so this one cannot go on."""

    exit_code = 5


class Stopped(GlmftError):
    """A signal asked the run to end; it saved a checkpoint first."""

    exit_code = 75  # "try again later" in sysexits.h
    label = "stopped"


def nearest(name: str, known: Iterable[str], shown: Callable[[str], str] = str) -> str:
    """A hint at the known name that a wrong one is closest to; empty if none is close."""
    close = difflib.get_close_matches(name, list(known), 1, 0.5)
    return f"; did you mean {shown(close[0])}?" if close else ""


def one_line(error: object, longest: int = 200) -> str:
    """What an exception says, short enough to stand in a message."""
    return " ".join(str(error).split())[:longest]
