"""Settings of how a run uses the machine: memory, speed and the devices; none of them changes what is learned."""

from dataclasses import dataclass
from typing import ClassVar

from glmft.settings.setting import setting


@dataclass
class HardwareSettings:
    """Memory, speed and devices."""

    title: ClassVar[str] = "memory, speed and devices"

    join_micro_batches: bool = setting(
        True,
        "run micro-batches of a step together while they hold no more tokens than the longest records of one may, or "
        "than max_tokens_per_batch: the step's gradient is the same, in fewer passes",
    )
    gradient_checkpointing: bool = setting(
        False, "compute activations again in the backward pass instead of storing them"
    )
    use_reentrant: bool = setting(False, "the older kind of gradient checkpointing")
    ds_file: str = setting(
        "ds_zero2_no_offload.json",
        "DeepSpeed file: a path, or a name in ds_configs/",
    )
