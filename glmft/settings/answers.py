"""How a model answers."""

from dataclasses import dataclass
from typing import ClassVar

from glmft.settings.config import LONG, setting


@dataclass
class SamplingSettings:
    """How an answer comes about, token by token."""

    title: ClassVar[str] = "decoding"

    max_new_tokens: int = setting(256, "longest answer, in tokens", at_least=1, at_most=LONG)
    do_sample: bool = setting(False, "draw every token instead of taking the likeliest")
    temperature: float | None = setting(
        None, "with do_sample: what logits are divided by; none: as the family's chat() has it", more_than=0
    )
    top_p: float | None = setting(
        None,
        "with do_sample: draw among the likeliest tokens that together have this probability; none: as chat() has it",
        more_than=0,
        at_most=1,
    )
    top_k: int | None = setting(None, "with do_sample: draw among this many tokens, 0: all; none: 50", at_least=0)
    repetition_penalty: float = setting(1.0, "divides the logits of tokens that stand there already", more_than=0)
    seed: int = setting(1234, "with do_sample: of the draws; every record has its own", at_least=0, at_most=2**31)
