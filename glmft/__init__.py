"""glmft: fine-tune ChatGLM-6B to GLM-4 with a training loop that you can read and own."""

import importlib
from typing import Any

from glmft import auto as _auto

__version__ = "0.1.0"

# What a notebook needs; each is imported when it is first used, as torch and transformers take seconds.
_EXPORTS = {
    "GlmftError": "glmft.errors",
    "CompareConfig": "glmft.settings.compare",
    "ExportConfig": "glmft.settings.tools",
    "InspectConfig": "glmft.settings.tools",
    "MergeConfig": "glmft.settings.tools",
    "PredictConfig": "glmft.settings.answers",
    "ScoreConfig": "glmft.settings.answers",
    "TrainConfig": "glmft.settings.config",
    "answer": "glmft.inference.generation",
    "compare": "glmft.commands.compare",
    "export": "glmft.commands.export",
    "inspect_data": "glmft.commands.inspect_data",
    "load": "glmft.inference.loading",
    "merge": "glmft.commands.merge",
    "predict": "glmft.commands.predict",
    "prefix_to_peft": "glmft.inference.loading",
    "quiet": "glmft.commands.quiet",
    "score": "glmft.commands.score",
    "shipped": "glmft.settings.defaults",
    "text_scores": "glmft.inference.metrics",
    "train": "glmft.commands.train",
    "triple_f1": "glmft.inference.metrics",
}
__all__ = sorted(_EXPORTS)

_auto.register()


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'glmft' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
