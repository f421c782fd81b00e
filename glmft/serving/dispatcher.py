"""Requests wait in a queue of limited length; one thread answers them, together where they are drawn alike."""

import threading
from collections import deque

from glmft.inference.model_set import ModelSet
from glmft.inference.replies import Reply, can_be_joined, make


class QueueFull(Exception):
    """As many answers as may wait are waiting already."""


class Dispatcher:
    """
    Args:
        most_waiting: answers that may wait, beside those being made.
        largest_batch: answers that are made together.
    """

    def __init__(self, models: ModelSet, most_waiting: int, largest_batch: int):
        self.models, self.most_waiting, self.largest_batch = models, most_waiting, largest_batch
        self.waiting: deque[Reply] = deque()
        self.at_work: list[Reply] = []
        self.is_closed = False
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def submit(self, reply: Reply) -> None:
        """Raises QueueFull."""
        with self.changed:
            self.waiting = deque(other for other in self.waiting if not other.is_cancelled)
            if self.is_closed or len(self.waiting) >= self.most_waiting:
                raise QueueFull
            self.waiting.append(reply)
            self.changed.notify()

    def close(self) -> None:
        """Cancel everything; returns when nothing is being made any more."""
        with self.changed:
            self.is_closed = True
            for reply in (*self.waiting, *self.at_work):
                reply.cancel()
            self.changed.notify()
        self.thread.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            make(self.models, batch)

    def _next_batch(self) -> list[Reply]:
        """The answer that has waited longest and those that can be made with it; nothing once all is closed."""
        with self.changed:
            self.at_work = []
            self.changed.wait_for(lambda: self.waiting or self.is_closed)
            if not self.waiting:
                return []
            first = self.waiting.popleft()
            others = [other for other in self.waiting if can_be_joined(first, other)][: self.largest_batch - 1]
            self.waiting = deque(other for other in self.waiting if other not in others)
            self.at_work = [first, *others]
            return self.at_work
