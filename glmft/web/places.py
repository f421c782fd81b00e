"""What the page may read: files below a few folders, by names that the page itself has listed."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from glmft.errors import ConfigError

MOST_LISTED, DEEPEST, MOST_LOOKED_AT = 500, 6, 20_000


@dataclass(frozen=True)
class Root:
    """A folder, or a single file, and nothing outside of it.

    Args:
        flag: the setting that named it, for messages.
    """

    path: Path
    flag: str

    def inside(self, name: str, *more: str) -> Path:
        """The path of what lies below, with every link followed.

        Raises:
            ConfigError: an absolute name, one with `..`, one that is no name, or a link that leads out.
        """
        root = self.path.resolve()
        for part in (name, *more):
            given = Path(part)
            if not part or "\0" in part or "\\" in part or given.is_absolute() or ".." in given.parts:
                raise ConfigError(f"{part!r}: is no name of something in {self.flag}")
        try:
            path = root.joinpath(name, *more).resolve() if root.is_dir() else root
        except (OSError, RuntimeError):  # a circle of links
            raise ConfigError(f"{name!r}: cannot be followed") from None
        if root.is_dir() and not path.is_relative_to(root):
            raise ConfigError(f"{name!r}: leads out of {self.flag}")
        return path

    def listed(self, wanted: Callable[[Path], bool]) -> list[str]:
        """Names of what is wanted below, relative to it, newest first; at most `MOST_LISTED`. No link is followed."""
        found = []
        for path in self._walk():
            try:
                if wanted(path):
                    found.append((path.stat().st_mtime, path.relative_to(self.path).as_posix()))
            except OSError:
                continue
        return [name for _, name in sorted(found, key=lambda item: (-item[0], item[1]))[:MOST_LISTED]]

    def _walk(self) -> Iterator[Path]:
        looked_at = 0
        for folder, names, files in os.walk(self.path):
            here = Path(folder)
            deep = len(here.relative_to(self.path).parts) >= DEEPEST
            names[:] = [] if deep else sorted(n for n in names if not n.startswith(".") and not (here / n).is_symlink())
            for name in (*names, *sorted(files)):
                looked_at += 1
                if looked_at > MOST_LOOKED_AT:
                    return
                if not name.startswith(".") and not (here / name).is_symlink():
                    yield here / name
