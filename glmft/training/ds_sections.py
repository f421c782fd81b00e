"""A DeepSpeed configuration, checked by DeepSpeed's own models before anything on the disk is touched."""

import copy
from types import SimpleNamespace
from typing import Any

from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.precision_config import get_bfloat16_config, get_float16_config

from glmft.errors import ConfigError, one_line


def check_sections(given: dict[str, Any], resolved: dict[str, Any], name: str, shares: int | None = None) -> None:
    """Raises ConfigError with a line for each wrong key or value inside the sections of a file.

    Args:
        given: what the file holds, for the sections that another number format leaves out.
        resolved: what DeepSpeed will get.
        name: the file's, for the lines.
        shares: that the data is dealt out in; None: one to each rank.
    """
    unit = None if shares is None else SimpleNamespace(get_data_parallel_world_size=lambda: shares)
    precisions = {key: given[key] for key in ("fp16", "bf16", "bfloat16") if isinstance(given.get(key), dict)}
    problems: list[str] = []
    for read in (
        lambda: get_float16_config(copy.deepcopy(precisions)),
        lambda: get_bfloat16_config(copy.deepcopy(precisions)),
        lambda: DeepSpeedConfig(copy.deepcopy(resolved), unit),
    ):
        try:
            read()
        except Exception as error:  # pydantic's, DeepSpeed's own, and what its older sections raise on a wrong type
            problems += lines_of(error, name)
    if problems:
        raise ConfigError(dict.fromkeys(problems))


def lines_of(error: Exception, name: str) -> list[str]:
    """What pydantic found, a line each; else what the exception says."""
    if not hasattr(error, "errors"):
        return [f"{name}: DeepSpeed refuses it ({one_line(error)})"]
    section = getattr(error, "title", "").removeprefix("DeepSpeed").removesuffix("Config")
    return [
        f"{name}: {'.'.join(str(part) for part in found['loc'])} (of {section}): {one_line(found['msg'])}"
        for found in error.errors()
    ]
