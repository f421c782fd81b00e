"""What the tabs share: the models, the folders that may be looked at, and errors as sentences."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmft.errors import GlmftError, Unforeseen, of_the_system, printable
from glmft.web.places import Root
from glmft.web.words import Say


@dataclass
class Site:
    """
    Args:
        models: `glmft.inference.model_set.ModelSet`.
        runs: what run folders and predictions are looked for in.
        data: where data files lie.
        sampling: the settings that an answer starts from.
    """

    models: Any
    runs: Root
    data: Sequence[Root]
    sampling: Any
    longest_message: int = 100_000
    stops: dict[str, Any] = field(default_factory=dict)

    def data_paths(self) -> list[Path]:
        """All data files, for those who look for one by what it holds."""
        from glmft.web.records import data_files

        return [root.inside(name) for root, name in data_files(self.data).values()]


def sentence(error: Exception, say: Say) -> str:
    """What went wrong, for the page. A fault of ours has its line in the terminal, and its traceback in a file."""
    known = error if isinstance(error, GlmftError) else of_the_system(error)
    if known is None:
        print(f"error: {Unforeseen(error)}", file=sys.stderr, flush=True)
        return say("problem") + say("fault")
    return say("problem") + "; ".join(printable(problem) for problem in known.problems)
