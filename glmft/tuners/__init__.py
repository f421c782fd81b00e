"""What is trained, and how it is held."""

from glmft.config import TrainConfig
from glmft.tuners.base import Tuner
from glmft.tuners.freeze import Freeze
from glmft.tuners.full import Full
from glmft.tuners.lora import Lora
from glmft.tuners.prefix import Prefix
from glmft.tuners.prompt import Prompt

TUNERS: dict[str, type[Tuner]] = {
    "full": Full,
    "freeze": Freeze,
    "ptuning": Prefix,
    "prompt": Prompt,
    "lora": Lora,
}


def make_tuner(config: TrainConfig) -> Tuner:
    """The tuner that `config.train_type` names."""
    return TUNERS[config.train_type].from_config(config)
