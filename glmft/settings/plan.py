"""Settings of a look at what a run would take."""

from dataclasses import dataclass
from typing import ClassVar

from glmft.settings.config import TrainConfig
from glmft.settings.setting import setting


@dataclass
class PlanConfig(TrainConfig):
    """Memory and time of a training run, before it: give it the flags of glmft train, and these."""

    title: ClassVar[str] = "plan"

    gpus: int = setting(1, "GPUs, a rank each", at_least=1, at_most=1 << 16)
    flops: float | None = setting(
        None, "TFLOP/s that a GPU reaches; none: 40% of what its maker says", more_than=0, at_most=10**6
    )
    interconnect: float | None = setting(
        None,
        "GB/s that a GPU sends to those of its host; none: as its maker says (NVLink, else PCI Express)",
        more_than=0,
        at_most=10**6,
    )
    network: float = setting(12.5, "GB/s that a GPU sends to other hosts", more_than=0, at_most=10**6)
    gpus_per_host: int = setting(8, "GPUs of a host", at_least=1, at_most=1024)
    rows: int = setting(10000, "rows of an epoch, where no --train_path is given", at_least=1, at_most=2**31)
    answer_len: int | None = setting(
        None, "tokens of a row that are learned, where no --train_path is given; none: half of it", at_least=1
    )
    json: bool = setting(False, "print all figures as JSON")
    published: bool = setting(False, "published figures of other projects beside the plan of the same settings")
