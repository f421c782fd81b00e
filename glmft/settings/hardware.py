"""Settings of how a run uses the machine: memory, speed and the devices; none of them changes what is learned."""

import re
from dataclasses import dataclass
from typing import ClassVar

from glmft.errors import ConfigError
from glmft.settings.setting import setting

TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def every_nth_layer(text: str) -> int:
    """How many layers apart are those that are computed again: `off` 0, `full` 1, `N` or `every N`; a truth is 0 or 1.

    Raises ConfigError for other texts.
    """
    word = text.strip().lower()
    named = {"off": 0, "none": 0, "full": 1, "all": 1, **TRUTHS}.get(word)
    if named is not None:
        return int(named)
    number = re.fullmatch(r"(?:every[ _=-]*)?([0-9]{1,6})", word)
    if not number:
        raise ConfigError(f"--gradient_checkpointing {text}: is neither off, full, nor a number, as in: every 2")
    return int(number[1])


@dataclass
class HardwareSettings:
    """Memory, speed and devices."""

    title: ClassVar[str] = "memory, speed and devices"

    join_micro_batches: bool = setting(
        True,
        "run micro-batches of a step together while they hold no more tokens than the longest records of one may, or "
        "512, or where it is given max_tokens_per_batch: the step's gradient is the same, in fewer passes; a pipeline "
        "keeps them apart",
    )
    gradient_checkpointing: int = setting(
        0,
        "compute activations again in the backward pass instead of storing them: off; full, as without a value: those "
        "of all layers; every N: of every Nth (default: off)",
        bare=1,
        words=every_nth_layer,
        at_least=0,
    )
    longest_batch_first: bool | None = setting(
        None,
        "try a step of zero rate with the longest rows first, so that a lack of memory shows at once; none: on an "
        "accelerator, and on a CPU where the step may take more than half of the host's memory",
        bare=True,
    )
    use_reentrant: bool = setting(False, "the older kind of gradient checkpointing")
    torch_compile: bool = setting(
        False,
        "compile layers around their attention: half a minute at the first step; needs a C++ compiler, or triton",
    )
    cache_frozen_activations: bool = setting(
        False,
        "compute what comes into the lowest trained layer once for each record, and read it from the disk from then "
        "on: tokens x hidden size numbers in cache_dir",
    )
    ds_file: str | None = setting(
        None,
        "DeepSpeed file: a path, or a name in ds_configs/; none: ds_zero2_no_offload.json, in a pipeline ds_zero1.json",
    )
    pipeline_stages: int = setting(
        1, "cut the layers into this many parts, each on ranks of its own, that pass hidden states on", at_least=1
    )
    pipeline_partition: str = setting(
        "parameters", "layers of each stage: by parameters, by the time that they take, or by hand, as 10,9,9"
    )
    plan: bool = setting(False, "print what the run takes in memory and time, and end before weights are loaded")
    gpu: str | None = setting(
        None, "plan: the card that it shall fit, by name (rtx3090, a100-80g, h200 …) or by its memory in GiB"
    )
