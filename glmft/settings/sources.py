"""Which files a data path stands for: files, folders, globs, several of them, with weights."""

import glob
from dataclasses import dataclass
from pathlib import Path

from glmft.errors import ConfigError

SMALLEST_WEIGHT, LARGEST_WEIGHT = 1e-9, 1e9
TABLES, PACKED = (".csv", ".tsv", ".parquet", ".arrow"), (".json.gz", ".jsonl.gz", ".csv.gz", ".tsv.gz")
ENDINGS = (".json", ".jsonl", *TABLES, *PACKED)
ABOUT_DATA = ("dataset_info.json", "dataset_infos.json")  # no records, whoever wrote them
# What shows a folder that `datasets` saved, and which of its splits a flag means, the likeliest first.
SAVED, SAVED_SPLITS, LEFT_BY_MAPS = "state.json", "dataset_dict.json", ("cache-", "tmp")
TRAIN, VALIDATION, TEST = ("train",), ("validation", "valid", "val", "dev", "eval"), ("test",)
SPLITS = {"--val_path": (*VALIDATION, *TEST), "--test_path": (*TEST, *VALIDATION)}


@dataclass(frozen=True)
class Source:
    """Files that are read one after the other, and their share of an epoch (None: as many records as they hold)."""

    files: tuple[Path, ...]
    weight: float | None


def find_sources(text: str, flag: str = "--train_path") -> list[Source]:
    """`a.json`, a folder, `data/*.jsonl`, `a.json,b.json`, or `a.json:0.7,b.json:0.3`.

    Of a folder that `datasets` saved with several splits, the one that the flag means.

    Raises:
        ConfigError: one line for each part that names nothing, or weights that are not all positive numbers.
    """
    sources, problems = [], []
    parts = [text] if Path(text).exists() and text else [p.strip() for p in text.split(",") if p.strip()] or [""]
    for part in parts:
        name, weight = split_weight(part)
        files = _files(name, flag)
        if not files:
            problems.append(f"{flag} {name}: {_why_none(name, flag)}")
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


def _files(name: str, flag: str) -> list[Path]:
    path = Path(name)
    if not name:
        return []
    if path.is_dir():
        path = _split(path, flag) if (path / SAVED_SPLITS).is_file() else path
        return _files_of(path) if path else []
    if path.is_file():
        return [path]
    return sorted(Path(p) for p in glob.glob(name) if Path(p).is_file())


def _files_of(folder: Path) -> list[Path]:
    there = sorted(path for path in folder.iterdir() if path.is_file() and path.name.endswith(ENDINGS))
    if (folder / SAVED).is_file():
        return [path for path in there if path.suffix == ".arrow" and not path.name.startswith(LEFT_BY_MAPS)]
    return [path for path in there if path.name not in ABOUT_DATA]


def _split(folder: Path, flag: str) -> Path | None:
    """The split of a saved folder that a flag means; the only one there is; else None."""
    splits = {path.name: path for path in sorted(folder.iterdir()) if (path / SAVED).is_file()}
    meant = (splits[name] for name in SPLITS.get(flag, TRAIN) if name in splits)
    return next(meant, next(iter(splits.values())) if len(splits) == 1 else None)


def _why_none(name: str, flag: str) -> str:
    folder = Path(name)
    if not name or not folder.is_dir():
        return "matches no file" if glob.has_magic(name) else "no such file"
    inside = sorted(path for path in folder.iterdir() if path.is_dir())
    if (folder / SAVED_SPLITS).is_file() and inside:
        there = ", ".join(path.name for path in inside)
        return f"has no split called {' or '.join(SPLITS.get(flag, TRAIN))}; name the folder of one of {there}"
    below = next((path for path in inside if any(p.name.endswith(ENDINGS) for p in path.iterdir())), None)
    hint = f"; {below} has some: name it, or files of it, as {below}/train*" if below else ""
    return f"a folder without any file that ends in {', '.join(ENDINGS)}{hint}"
