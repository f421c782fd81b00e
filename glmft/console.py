"""Output that never ends a run: a reader that leaves and a full disk cost lines, nothing else."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any


class LastingStream:
    """A text stream whose failures are swallowed; everything else is the stream's own.

    What a character set lacks is written as an escape. After a full disk the next line is tried again.

    Args:
        stream: None, if it was closed before the program began: then nothing is written.
    """

    def __init__(self, stream: Any):
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        if self.stream is not None:
            self._try(self._write, text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        if self.stream is not None:
            self._try(self.stream.flush)

    def isatty(self) -> bool:
        return self.stream is not None and self.stream.isatty()

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
        except UnicodeEncodeError:
            self.stream.write(text.encode(self.stream.encoding, "backslashreplace").decode(self.stream.encoding))

    def _try(self, action: Callable[..., Any], *args: Any) -> None:
        try:
            action(*args)
        except BrokenPipeError:  # nobody will read any more, at the end of the process neither
            self.lead_nowhere()
        except OSError:
            pass

    def lead_nowhere(self) -> None:
        """Drop what comes and what is still buffered."""
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), self.stream.fileno())


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """While this lasts, standard output and standard error are `LastingStream`s; for libraries too."""
    before = sys.stdout, sys.stderr
    if isinstance(sys.stdout, LastingStream):
        yield
        return
    sys.stdout, sys.stderr = LastingStream(sys.stdout), LastingStream(sys.stderr)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def say(lines: Iterable[str]) -> None:
    """Print lines at once."""
    for line in lines:
        print(line, flush=True)


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Nothing written to standard error comes through, what C++ libraries write neither."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def hold_standard_files() -> None:
    """Open what was closed of the three standard files, lest a file of the run becomes one of them."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one


def end_output() -> None:
    """Write out what is left; what cannot be written is dropped, lest the interpreter tries again and fails."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            LastingStream(stream).lead_nowhere()
