"""glmft: fine-tune ChatGLM-6B, ChatGLM2-6B and ChatGLM3-6B with a training loop that you can read and own."""

from typing import Any

from glmft import auto as _auto

__version__ = "0.1.0"
__all__ = ["TrainConfig", "load", "train"]

_auto.register()


def __getattr__(name: str) -> Any:
    """Heavy parts load when first used."""
    if name == "load":
        from glmft.loading import load as value
    elif name == "train":
        from glmft.run import train as value
    elif name == "TrainConfig":
        from glmft.config import TrainConfig as value
    else:
        raise AttributeError(f"module 'glmft' has no attribute {name!r}")
    return value
