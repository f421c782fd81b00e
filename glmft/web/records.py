"""A data file as a model would learn it: the report, the lengths, the tokens of a record."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmft.commands.rows import learned_rows
from glmft.data.dataset import Rows
from glmft.data.show import TokenRow, token_rows
from glmft.errors import ConfigError
from glmft.family import ADAPTER_JSON
from glmft.reading import is_file
from glmft.settings.checks import length_problems, range_problems
from glmft.settings.sources import ENDINGS, Source
from glmft.settings.tools import InspectConfig
from glmft.training.set_aside import RUN_CONFIG
from glmft.web.places import Root

NO_DATA = ("config.json", "tokenizer_config.json", "adapter_config.json", ADAPTER_JSON, RUN_CONFIG)
MOST_REASONS, MOST_TOKENS = 20, 4096  # that are shown
Bin = tuple[int, int, int]  # shortest, longest, rows


@dataclass(frozen=True)
class Learned:
    """What is learned of a file.

    Args:
        report: lines, as training prints them.
    """

    rows: Rows
    report: list[str]

    @property
    def count(self) -> int:
        return len(self.rows.lengths)

    def tokens(self, number: int, tokenizer: Any) -> tuple[str, list[TokenRow], int]:
        """Of a row, counted from 0: its place, its first tokens, and how many more it has. Raises ConfigError."""
        if not 0 <= number < self.count:
            raise ConfigError(f"record {number}: the last one is {self.count - 1}")
        example = self.rows.examples[number]
        table = token_rows(example, tokenizer)
        return example.place, table[:MOST_TOKENS], max(0, len(table) - MOST_TOKENS)


def data_files(roots: Sequence[Root]) -> dict[str, tuple[Root, str]]:
    """The files of records that the page offers, by the names that it shows."""
    offered: dict[str, tuple[Root, str]] = {}
    for root in roots:
        names = [root.path.name] if root.path.is_file() else sorted(root.listed(is_data))
        for name in names:
            shown = name if name not in offered else f"{root.path.name}/{name}"
            offered.setdefault(shown, (root, name))
    return offered


def is_data(path: Path) -> bool:
    """Whether a file may hold records: by its name, and as it lies in no folder of a model or a run."""
    return path.name.endswith(ENDINGS) and not any(is_file(path.with_name(name)) for name in NO_DATA)


def chosen_file(roots: Sequence[Root], name: str | None) -> Path:
    """The path of a file that the page offers. Raises ConfigError for any other name."""
    root, inner = data_files(roots).get(name or "", (None, ""))
    if root is None:
        raise ConfigError(f"{name!r}: is none of the files here")
    return root.inside(inner)


def read_learned(path: Path, settings: InspectConfig, tokenizer: Any) -> Learned:
    """What is learned of a file. Raises ConfigError, DataError."""
    if problems := length_problems(settings) + range_problems(settings):
        raise ConfigError(problems)
    rows = learned_rows(settings, [Source((path,), None)], tokenizer, seed=0)
    reasons = [f"{Path(place).name}: {reason}" for place, reason in rows.rejected]
    more = [f"… {len(reasons) - MOST_REASONS}"] if len(reasons) > MOST_REASONS else []
    return Learned(rows, [*rows.notes, *rows.lines, *reasons[:MOST_REASONS], *more])


def histogram(lengths: Sequence[int], most: int = 24) -> list[Bin]:
    """How many rows have which length: bins of one width, at most so many, from the shortest to the longest row."""
    if not lengths:
        return []
    low, high = min(lengths), max(lengths)
    width = -(-(high - low + 1) // most)
    bins = [0] * (-(-(high - low + 1) // width))
    for length in lengths:
        bins[(length - low) // width] += 1
    return [(low + i * width, low + (i + 1) * width - 1, count) for i, count in enumerate(bins)]
