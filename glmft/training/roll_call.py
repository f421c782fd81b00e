"""Which rank hangs: once one has waited too long, all that still run answer in the store where they first met."""

import threading
import time
from typing import Any

from glmft.console import silenced
from glmft.dist import World

GAVE_UP = "gave up"
SHORTEST, LONGEST = 2.0, 20.0  # seconds that a roll call lasts; launchers allow 30 between SIGTERM and SIGKILL


def silent_ranks(world: World, waited_too_long: bool) -> list[int]:
    """The ranks that do not answer; [] if no rank of the run has waited longer than `world.timeout` seconds.

    Args:
        waited_too_long: whether this rank has. If not, its connections were closed, which one that gave up does too.
    """
    seconds = min(LONGEST, max(SHORTEST, world.timeout / 10))
    silent = [0] if waited_too_long else []  # if the store, which rank 0 keeps, does not answer
    with silenced():
        call = threading.Thread(target=_call, args=(world, waited_too_long, seconds, silent), daemon=True)
        call.start()
        call.join(seconds + SHORTEST)
    return silent


def _call(world: World, waited_too_long: bool, seconds: float, silent: list[int]) -> None:
    """Put the ranks that do not answer into `silent`. Waits for ever where the store is kept by a rank that hangs."""
    from torch.distributed import PrefixStore

    roll = PrefixStore("roll", world.store)
    try:
        if waited_too_long:
            roll.set(GAVE_UP, "")
        elif not _all_there(roll, [GAVE_UP], 1.0):
            return
        roll.set(str(world.rank), "")
        everyone = [str(rank) for rank in range(world.size)]
        _all_there(roll, everyone, seconds)
        silent[:] = [int(name) for name in everyone if not roll.check([name])]
    except RuntimeError:  # rank 0 is gone
        return


def _all_there(roll: Any, names: list[str], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not roll.check(names):
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
