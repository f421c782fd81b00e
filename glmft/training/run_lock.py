"""One run a folder: a lock that names its owner, and that a dead owner does not keep."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glmft.errors import ConfigError

LOCK = ".lock"
LEASE = 60.0  # seconds without a sign of life after which an owner that cannot be looked for is taken for dead
BEAT = 5.0  # seconds between two signs of life, which a thread of the owner gives


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """While this lasts, no other run has the folder.

    An owner on this host is looked for among the processes; on another host, or in another container, its signs of
    life are waited for.

    Raises:
        ConfigError: another run has it.
        OSError: the folder cannot be written.
    """
    from filelock import SoftFileLease, Timeout

    path = folder / LOCK
    lock = SoftFileLease(path, lease_duration=LEASE, heartbeat_interval=BEAT, thread_local=False)
    try:
        try:
            lock.acquire(timeout=0.5)
        except Timeout:
            if _owner(path).get("host") == socket.gethostname():  # or it would have been found dead
                raise
            _remove_if_empty(path)
            lock.acquire(timeout=LEASE + BEAT, poll_interval=0.2, cancel_check=_sign_of_life(path))
    except Timeout:
        owner = _owner(path)
        raise ConfigError(
            f"--output_dir {folder}: another run writes into it, process {owner.get('pid', '?')} on "
            f"{owner.get('host', 'an unknown host')}; wait for its end or name another folder"
        ) from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.release()


def is_owned(folder: Path) -> bool:
    """Whether a run that is alive has the folder; nothing is changed."""
    path = folder / LOCK
    try:
        age = time.time() - path.stat().st_mtime
    except OSError:
        return False
    owner = _owner(path)
    if owner.get("host") == socket.gethostname() and owner.get("pid", "").isdigit():
        return age < LEASE and is_process(int(owner["pid"]))
    return age < LEASE


def is_process(pid: int) -> bool:
    """Whether a process of this host has that number."""
    try:
        os.kill(pid, 0)
    except (OSError, OverflowError) as error:
        return isinstance(error, PermissionError)
    return True


def _owner(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    return dict(line.split("=", 1) for line in lines if "=" in line)


def _remove_if_empty(path: Path) -> None:
    """A kill between making and filling the lock leaves an empty one."""
    with contextlib.suppress(OSError):
        if not path.stat().st_size:
            path.unlink()


def _sign_of_life(path: Path) -> Any:
    """A function that tells whether the lock was renewed since now."""

    def renewed_at() -> int | None:
        try:
            with path.open("rb"):  # a network file system asks its server then
                return path.stat().st_mtime_ns
        except OSError:
            return None

    first = renewed_at()
    return lambda: renewed_at() not in (first, None)
