"""The error tree. Every message gives the value, the rule it breaks and the mend, in one line a problem."""

from collections.abc import Iterable


class GlmftError(Exception):
    """Base of all errors that a user can mend; the command line prints its lines and no traceback.

    Args:
        problems: one line, or several independent problems, one line each.
    """

    exit_code = 2

    def __init__(self, problems: str | Iterable[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class ConfigError(GlmftError):
    """A setting, a model folder or an output folder that cannot be used as given."""


class DataError(GlmftError):
    """A data file or record that cannot be used; the message starts with FILE:LINE."""


class CheckpointError(GlmftError):
    """Weights or a run's saved state that are missing, torn or of other shapes."""


class DivergenceError(GlmftError):
    """The loss stopped being a finite number."""

    exit_code = 3
