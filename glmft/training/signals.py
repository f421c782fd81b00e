"""Signals that ask a run to end: noted at once, obeyed between two optimizer steps."""

import signal
import threading
from types import FrameType
from typing import Any, Self

from glmft.dist import World, launchers, sum_over_ranks

OBEYED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopSignals:
    """While this context lasts, SIGTERM, SIGINT and SIGUSR1 only leave a note; so does the loss of the launcher.

    Repeated signals change nothing: launchers send several. SIGKILL stays for the impatient. Handlers can be set in the
    main thread only; elsewhere nothing is caught.
    """

    def __init__(self, world: World):
        self.world, self.reason = world, ""
        self.before: dict[int, Any] = {}
        self.launchers = launchers()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._note) for number in OBEYED}
        return self

    def __exit__(self, *_: object) -> None:
        if self.reason and self.launchers:  # on its way out: a launcher's second signal must not change the exit code
            return
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.reason = self.reason or signal.Signals(number).name

    @property
    def noted(self) -> bool:
        """Whether this rank alone has been asked to stop."""
        if not self.reason and launchers() != self.launchers:
            self.reason = "the end of the launcher"
        return bool(self.reason)

    def agreed(self) -> bool:
        """Whether any rank has been asked to stop. Collective."""
        return sum_over_ranks(self.world, float(self.noted))[0] > 0
