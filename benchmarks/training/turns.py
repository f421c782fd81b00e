"""Arms in processes of their own that take turns at every step: fresh memory for each, one noise for all.

A process computes only while it has its turn; its clock counts its own CPU time. One that fails or dies costs its own
figures alone.
"""

import ctypes
import gc
import os
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MIB = 1 << 20
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Turns:
    """The arm's side: it tells what a step took, and waits for the next.

    A step's message is its seconds of CPU, its loss in nats, and the most MiB so far over those of `loaded`.
    """

    def __init__(self, pipe: Connection):
        self.pipe, self.losses, self.began, self.base, self.step = pipe, [], None, 0.0, -1

    def loaded(self) -> None:
        """The model is there, and nothing else: memory counts from here."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        if CLEAR.exists():
            CLEAR.write_text("5")  # the peak starts again
        self.base = resident("VmRSS")

    def note(self, loss: Tensor) -> None:
        """A micro-batch's share of the step's loss."""
        self.losses.append(loss.detach())

    def wait(self) -> None:
        """A step ends here, if one has begun; returns when the next may begin."""
        loss = sum(map(float, self.losses))
        spent = None if self.began is None else time.process_time() - self.began
        self.losses.clear()
        self.pipe.send((spent, loss, max(0.0, resident("VmHWM") - self.base)))
        self.pipe.recv()
        self.step += 1
        self.began = time.process_time()

    def each(self, steps: list) -> Iterator[Any]:
        """Hand out steps by turns."""
        for step in steps:
            self.wait()
            yield step
        self.wait()


def resident(kind: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at most."""
    return int(STATUS.read_text().split(f"{kind}:")[1].split()[0]) / 1024


def pin(core: int | None) -> None:
    """One thread, on one core."""
    torch.set_num_threads(1)
    if core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})


def _run(pipe: Connection, arm: Callable, case: Any, log: str) -> None:
    with open(log, "w", encoding="utf-8", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        pin(case.core)
        try:
            arm(case, Turns(pipe))
        except EOFError:  # nobody waits for it any more
            return
        except BaseException as error:
            traceback.print_exc()
            pipe.send(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


class Lost(Exception):
    """An arm that cannot go on, and why."""


class Running:
    """The table's side of an arm."""

    def __init__(self, context: Any, arm: Callable, case: Any, log: Path, seconds: float):
        self.seconds, self.peak = seconds, 0.0
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_run, args=(other, arm, case, str(log)), daemon=True)
        self.process.start()
        other.close()
        self._answer()  # it is ready

    def step(self) -> tuple[float, float]:
        """Seconds of CPU and the loss of one step. Raises Lost."""
        try:
            self.pipe.send("go")
        except OSError:
            raise Lost(self._end()) from None
        spent, loss, self.peak = self._answer()
        return spent, loss

    def _answer(self) -> tuple[float, float, float]:
        try:
            if not self.pipe.poll(self.seconds):
                self.process.kill()
                self.stop()
                raise Lost(f"no step ended within {self.seconds:.0f} s")
            answer = self.pipe.recv()
        except (EOFError, OSError):
            raise Lost(self._end()) from None
        if isinstance(answer, str):
            self.stop()
            raise Lost(answer)
        return answer

    def _end(self) -> str:
        self.process.join(10)
        return f"its process ended with {self.process.exitcode}"

    def stop(self) -> None:
        """Let it end; one that does not is killed."""
        self.pipe.close()
        self.process.join(20)
        self.process.kill()
        self.process.join()
