"""Which files a data path stands for: files, folders, globs, several of them, with weights."""

import glob
from dataclasses import dataclass
from pathlib import Path

from glmft.errors import ConfigError

SMALLEST_WEIGHT, LARGEST_WEIGHT = 1e-9, 1e9
ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")


@dataclass(frozen=True)
class Source:
    """Files that are read one after the other, and their share of an epoch (None: as many records as they hold)."""

    files: tuple[Path, ...]
    weight: float | None


def find_sources(text: str, flag: str = "--train_path") -> list[Source]:
    """`a.json`, a folder, `data/*.jsonl`, `a.json,b.json`, or `a.json:0.7,b.json:0.3`.

    Raises:
        ConfigError: one line for each part that names nothing, or weights that are not all positive numbers.
    """
    sources, problems = [], []
    parts = [text] if Path(text).exists() and text else [p.strip() for p in text.split(",") if p.strip()] or [""]
    for part in parts:
        name, weight = split_weight(part)
        files = _files(name)
        if not files:
            problems.append(f"{flag} {name}: {_why_none(name)}")
        if weight is not None and not SMALLEST_WEIGHT <= weight <= LARGEST_WEIGHT:
            rule = f"a positive number, from {SMALLEST_WEIGHT:g} to {LARGEST_WEIGHT:g}"
            problems.append(f"{flag} {part}: the weight must be {rule}")
        sources.append(Source(tuple(files), weight))
    weighted = [source.weight is not None for source in sources]
    if any(weighted) and not all(weighted):
        problems.append(f"{flag} {text}: give a weight to every part or to none")
    if problems:
        raise ConfigError(problems)
    return sources


def split_weight(part: str) -> tuple[str, float | None]:
    """`path:0.7` in two; a colon that belongs to a path that is there stays."""
    name, colon, weight = part.rpartition(":")
    try:
        return (name, float(weight)) if colon and not Path(part).exists() else (part, None)
    except ValueError:
        return part, None


def _files(name: str) -> list[Path]:
    path = Path(name)
    if not name:
        return []
    if path.is_dir():
        return sorted(p for p in path.iterdir() if p.is_file() and p.name.endswith(ENDINGS))
    if path.is_file():
        return [path]
    return sorted(Path(p) for p in glob.glob(name) if Path(p).is_file())


def _why_none(name: str) -> str:
    if name and Path(name).is_dir():
        return f"a folder without any file that ends in {', '.join(ENDINGS)}"
    return "matches no file" if glob.has_magic(name) else "no such file"
