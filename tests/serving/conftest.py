"""A server over small models, in this process."""

from pathlib import Path

import pytest
from adapters import TUNERS, make_adapter
from taught import ANSWER, RETURNED, TOOLS, WEATHER, teach

from glmft.inference.model_set import ModelSet, open_models
from glmft.settings.talk import ServeConfig


@pytest.fixture(scope="session")
def taught_folders(official_folders, tmp_path_factory):
    """Makes models that call a tool, by family."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            records = [
                {"tools": [WEATHER] if family == "glm3" else TOOLS, "messages": messages}
                for messages in (
                    [*RETURNED, {"role": "assistant", "content": ANSWER}],
                    [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好云川"}],
                )
            ]
            made[family] = teach(tmp_path_factory.mktemp(family) / "taught", official_folders[family], records)
        return made[family]

    return folder


@pytest.fixture(scope="session")
def models(taught_folders, official_folders, tmp_path_factory) -> ModelSet:
    """A model of ChatGLM3 that calls a tool, two adapters over it, and one of ChatGLM2."""
    base, root = taught_folders("glm3"), tmp_path_factory.mktemp("served")
    adapters = [make_adapter(root / name, base, TUNERS[name]) for name in ("lora", "prompt")]
    return open_models([base, *adapters, official_folders["glm2"]], ServeConfig(dtype="fp32", device="cpu"))
