"""The error tree. Every message gives the value, the rule it breaks and the mend, in one line a problem."""

import difflib
import tempfile
import traceback
from collections.abc import Callable, Iterable, Sequence


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


class Unforeseen(GlmftError):
    """A fault of the program itself: one line, which names the file that holds the traceback."""

    exit_code = 70  # "internal software error" in sysexits.h

    def __init__(self, error: BaseException):
        super().__init__(f"a fault in glmft: {type(error).__name__}: {one_line(error, 120)}; {_traceback_file(error)}")


def _traceback_file(error: BaseException) -> str:
    lines = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", errors="backslashreplace", prefix="glmft-", suffix=".txt", delete=False
        ) as file:
            file.write(lines)
    except OSError:
        return f"its traceback could not be written: {one_line(lines)}"
    return f"please report it with {file.name}"


def of_the_system(error: Exception) -> GlmftError | None:
    """What the system or the interpreter refused, as an error that a user can mend; None for anything else."""
    if isinstance(error, MemoryError):
        return OutOfMemory("out of memory; give smaller sizes, or free some")
    if isinstance(error, OSError):
        named = ": ".join(str(part) for part in (error.filename, error.strerror or one_line(error)) if part)
        return ConfigError(named)
    if isinstance(error, ImportError):
        return ConfigError(f"a library is missing: {one_line(error)}")
    if isinstance(error, UnicodeError | RecursionError):
        return ConfigError(f"a text that cannot be used ({one_line(error)}); is every file UTF-8?")
    return None


def nearest(name: str, known: Iterable[str], shown: Callable[[str], str] = str) -> str:
    """A hint at the known name that a wrong one is closest to; empty if none is close."""
    close = difflib.get_close_matches(name[:80], list(known), 1, 0.6)
    return f"; did you mean {shown(close[0])}?" if close else ""


def hints(names: Sequence[str], known: Iterable[str], shown: Callable[[str], str] = str) -> list[str]:
    """`nearest` of each name; what will not be printed gets none, as looking takes its time."""
    known = list(known)
    return [nearest(name, known, shown) if i < MOST_LINES else "" for i, name in enumerate(names)]


def one_line(error: object, longest: int = 200) -> str:
    """What an exception says, short enough to stand in a message."""
    return " ".join(str(error).split())[:longest]


LONGEST_LINE, MOST_LINES = 300, 20
CONTINUED = "  "


def shown(problems: Iterable[str], label: str = "error") -> list[str]:
    """Problems as they are printed: at most `MOST_LINES` lines of `LONGEST_LINE` characters, the rest counted.

    What a terminal would take for a command or a line break is written as an escape. A problem that begins with
    `CONTINUED` goes on with the one before and has no label of its own.
    """
    problems = list(problems)
    first = problems if len(problems) <= MOST_LINES else problems[: MOST_LINES - 1]
    more = [f"and {len(problems) - len(first)} more"] if len(first) < len(problems) else []
    labelled = (p if p.startswith(CONTINUED) else f"{label}: {p}" for p in [*first, *more])
    return [shortened(printable(problem), LONGEST_LINE) for problem in labelled]


def printable(text: str) -> str:
    """One line without control characters and halves of characters."""
    text = " ".join(text[: 100 * LONGEST_LINE].split()) if "\n" in text or "\r" in text else text[: 100 * LONGEST_LINE]
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def shortened(text: str, longest: int) -> str:
    """The start and the end of a text, which say what is wrong and how to mend it."""
    end = longest // 3
    return text if len(text) <= longest else f"{text[: longest - end - 3]} … {text[-end:]}"
