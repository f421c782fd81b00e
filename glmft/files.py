"""Files that appear whole or not at all: written aside, flushed, then renamed.

Whatever is written aside begins with `.writing-`, whatever is on its way out with `.deleting-`: what a kill leaves of
either is rubbish.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from glmft.errors import CheckpointError, GlmftError, one_line
from glmft.reading import open_regular

WRITING, DELETING = ".writing-", ".deleting-"


def write_json(path: Path, value: Any) -> None:
    """Indented JSON, whole or not at all. Raises OSError."""
    with new_file(path) as aside:
        aside.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def write_lines(path: Path, values: Iterable[Any]) -> None:
    """A JSON line for each value, whole or not at all. Raises OSError."""
    with new_file(path) as aside, aside.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


@contextlib.contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """A path to write to inside the block; at its end the file takes its place. After an error nothing has changed."""
    aside = target.with_name(f"{WRITING}{target.name}")
    try:
        yield aside
        flush(aside)
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """An empty folder to fill inside the block; at its end it takes its place, in exchange for one that is there.

    After an error nothing has changed.
    """
    aside = start_folder(target)
    try:
        yield aside
        place_folder(aside, target)
    finally:
        remove_folder(aside)


def start_folder(target: Path) -> Path:
    """The empty folder in which `target` is prepared."""
    aside = target.with_name(f"{WRITING}{target.name}")
    remove_folder(aside)
    aside.mkdir(parents=True)
    return aside


def place_folder(aside: Path, target: Path) -> None:
    """Flush a prepared folder and put it in its place; one that is there already goes out first."""
    for path in (*(p for p in aside.rglob("*") if p.is_file()), aside):
        flush(path)
    old = target.with_name(f"{DELETING}{target.name}")
    if target.exists() or target.is_symlink():
        remove_folder(old)
        os.replace(target, old)
    os.replace(aside, target)
    flush(target.parent)
    remove_folder(old)


def place_files(aside: Path, folder: Path) -> None:
    """Flush what a prepared folder holds and move each file, and each folder as a whole, to its place in `folder`."""
    for path in sorted(aside.iterdir()):
        flush(path)
    for path in sorted(aside.iterdir()):
        if path.is_dir():
            place_folder(path, folder / path.name)
        else:
            os.replace(path, folder / path.name)
    aside.rmdir()
    flush(folder)


def point_link(link: Path, destination: str) -> None:
    """Let a symbolic link lead to a folder beside it, in one step."""
    aside = link.with_name(f"{WRITING}{link.name}")
    aside.unlink(missing_ok=True)
    aside.symlink_to(destination, target_is_directory=True)
    os.replace(aside, link)


def delete_folder(folder: Path) -> None:
    """Remove a folder that matters: first out of sight, so that a kill leaves no half of it under its name."""
    going = folder.with_name(f"{DELETING}{folder.name}")
    remove_folder(going)
    os.replace(folder, going)
    remove_folder(going)


def remove_folder(folder: Path) -> None:
    """Remove a folder, or what stands in its place, as far as the system lets us."""
    if folder.is_symlink() or folder.is_file():
        folder.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what a kill left half written or half deleted."""
    for left in (*folder.glob(f"{WRITING}*"), *folder.glob(f"{DELETING}*")):
        remove_folder(left)


@contextlib.contextmanager
def refusals_as(target: Path, advice: str) -> Iterator[None]:
    """What the file system, or a library that writes, refuses becomes a CheckpointError of one line."""
    try:
        yield
    except GlmftError:
        raise
    except Exception as error:  # safetensors has a class of its own for a full disk
        reason = getattr(error, "strerror", None) or one_line(error)
        raise CheckpointError(f"{target}: could not be saved ({reason}); {advice}") from None


def digest_of(path: Path) -> str:
    """SHA-256 of a file's bytes. Raises OSError, also for what is no regular file."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def listed(folder: Path, names: Iterable[str]) -> dict[str, list]:
    """Size and hash of files by name, for `is_as_listed`. Raises OSError."""
    return {name: [(folder / name).stat().st_size, digest_of(folder / name)] for name in names}


def is_as_listed(path: Path, entry: Any) -> bool:
    """Whether a file has the size and the hash that were listed. Raises OSError if it cannot be read."""
    size, digest = entry
    return path.stat().st_size == size and digest_of(path) == digest


def share(file: Path) -> None:
    """Give a file the permissions of its folder: safetensors writes for the owner alone."""
    file.chmod(file.parent.stat().st_mode & 0o666)


def flush(path: Path) -> None:
    """Flush a file or a folder to the disk; let a file be read by whoever may read its folder."""
    if path.is_file():
        share(path)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
