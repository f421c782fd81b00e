"""Settings of how a run uses the machine: memory, speed and the devices; none of them changes what is learned."""

from dataclasses import dataclass
from typing import ClassVar

from glmft.settings.setting import setting


@dataclass
class HardwareSettings:
    """Memory, speed and devices."""

    title: ClassVar[str] = "memory, speed and devices"

    gradient_checkpointing: bool = setting(
        False, "compute activations again in the backward pass instead of storing them"
    )
    use_reentrant: bool = setting(False, "the older kind of gradient checkpointing")
    ds_file: str = setting(
        "ds_zero2_no_offload.json",
        "DeepSpeed file: a path, or a name in ds_configs/",
    )
