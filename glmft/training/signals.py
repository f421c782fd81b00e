"""Signals that ask a run to end: noted at once, obeyed between two optimizer steps."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Self

from glmft.dist import World, env_rank, is_main, launchers, sum_over_ranks
from glmft.errors import Stopped

OBEYED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
PATIENCE = 5.0  # seconds that a library may keep a signal waiting before training begins


class Interrupted(KeyboardInterrupt):
    """A signal has asked the process to end; libraries let it pass, as they let pass Ctrl-C."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


class Interrupt:
    """The handler that raises `Interrupted`.

    Args:
        noticed: set once Python has come to a handler, this one or one that has taken its place for a while.
        names: of the signals that it has had.
    """

    def __init__(self) -> None:
        self.noticed = threading.Event()
        self.names: list[str] = []

    def __call__(self, number: int, _: FrameType | None) -> None:
        self.noticed.set()
        self.names.append(signal.Signals(number).name)
        raise Interrupted(self.names[0])


def obeyed() -> list[signal.Signals]:
    """The signals that ask a run to end; `nohup` has it ignore SIGHUP."""
    return [number for number in OBEYED if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Outside the training loop these signals raise `Interrupted`.

    Python looks at signals between two of its own instructions. If a library, such as one that waits for other ranks,
    lets none pass for `PATIENCE` seconds, a thread ends the process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupt = Interrupt()

    def watch(reader: int) -> None:
        with os.fdopen(reader, "rb", buffering=0) as signals:
            while number := signals.read(1):
                if signal.getsignal(number[0]) is interrupt and not interrupt.noticed.wait(PATIENCE):
                    os.write(2, f"{stopped_line(signal.Signals(number[0]).name)}\n".encode())
                    os._exit(Stopped.exit_code)

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    threading.Thread(target=watch, args=(reader,), daemon=True).start()
    before = {number: signal.signal(number, interrupt) for number in obeyed()}
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield
    except Exception as error:
        if interrupt.names:  # a library was interrupted and made an error of its own of it
            raise Interrupted(interrupt.names[0]) from error
        raise
    finally:
        signal.set_wakeup_fd(wakeup)
        os.close(writer)
        for number, handler in before.items():
            if signal.getsignal(number) is interrupt:
                signal.signal(number, handler)


def stopped_line(reason: str) -> str:
    """What every rank of a run says that is stopped outside its loop."""
    whose = "" if is_main() else f"rank {env_rank()}: "
    return f"{Stopped.label}: {whose}by {reason} before training began; nothing is saved"


def hold_signals() -> None:
    """Let no signal but SIGKILL come between this rank and its last words: a launcher that misses a rank sends some."""
    if launchers() and threading.current_thread() is threading.main_thread():
        signal.pthread_sigmask(signal.SIG_BLOCK, OBEYED)


class StopSignals:
    """While this context lasts, the signals `OBEYED` only leave a note; so does the loss of the launcher.

    Repeated signals change nothing: launchers send several. SIGKILL stays for the impatient. Handlers can be set in the
    main thread only; elsewhere nothing is caught.
    """

    def __init__(self, world: World):
        self.world, self.reason = world, ""
        self.before: dict[int, Any] = {}
        self.launchers = launchers()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._note) for number in obeyed()}
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        ends = self.reason or error
        if ends and self.launchers:  # a launcher's signal must not change the exit code any more
            return
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.reason = self.reason or signal.Signals(number).name
        if isinstance(before := self.before.get(number), Interrupt):  # its watching thread may come to look later
            before.noticed.set()

    @property
    def noted(self) -> bool:
        """Whether this rank alone has been asked to stop."""
        if not self.reason and launchers() != self.launchers:
            self.reason = "the end of the launcher"
        return bool(self.reason)

    def agreed(self) -> bool:
        """Whether any rank has been asked to stop. Collective."""
        return sum_over_ranks(self.world, float(self.noted))[0] > 0
