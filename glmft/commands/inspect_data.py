"""`glmft inspect`: what a model would learn of a file."""

import re
import sys

from glmft.commands.quiet import quiet
from glmft.commands.rows import learned_rows
from glmft.errors import ConfigError
from glmft.inference.loading import locate
from glmft.settings.checks import length_problems, range_problems
from glmft.settings.sources import find_sources
from glmft.settings.tools import InspectConfig


def inspect_data(config: InspectConfig) -> str:
    """The report on a file and the token tables of chosen rows. Raises ConfigError, DataError."""
    if config.data_path is None:
        raise ConfigError("name the data: glmft inspect DATA --model FOLDER")
    problems = length_problems(config) + range_problems(config)
    chosen = [part.strip() for part in config.records.split(",") if part.strip() not in ("", "none")]
    problems += [f"--records {part}: is no row number" for part in chosen if not re.fullmatch("[0-9]{1,12}", part)]
    if problems:
        raise ConfigError(problems)
    from glmft.data.show import token_table
    from glmft.tokenizers.loading import load_tokenizer

    sources = find_sources(config.data_path, "DATA")
    quiet()
    place = locate(config.model_name_or_path)
    tokenizer = load_tokenizer(place.base, place.mode(config.mode))
    rows = learned_rows(config, sources, tokenizer, seed=0)
    color = config.color == "always" or (config.color == "auto" and sys.stdout.isatty())
    last = len(rows.examples) - 1
    beyond = [part for part in chosen if int(part) > last]
    if beyond:
        raise ConfigError(f"--records {','.join(beyond)}: the last row is {last}")
    tables = [token_table(rows.examples[int(part)], tokenizer, color) for part in chosen]
    reasons = [f"rejected: {reason}" for _, reason in rows.rejected]
    return "\n".join([*rows.notes, *rows.lines, *reasons, *tables])
