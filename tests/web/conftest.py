"""A page over small models, a run folder and predictions."""

import json
from pathlib import Path

import pytest
import torch
from adapters import TUNERS, make_adapter
from folders import SECRET, make_predictions, make_run

from glmft.settings.defaults import EMBEDDED, shipped
from glmft.settings.web import WebConfig


@pytest.fixture(scope="session")
def workplace(tmp_path_factory) -> Path:
    """A folder with runs and predictions in output/, records in data/, an adapter, and a file that lies outside."""
    place = tmp_path_factory.mktemp("workplace")
    make_run(place / "output" / "first")
    make_predictions(place / "output" / "first" / "predict", [("甲_是_乙", "甲_是_乙"), ("丙_是_丁", "丙_是_戊")])
    (place / "data").mkdir()
    records = [
        {"instruction": "抽取：", "input": f"云{i}", "output": f"{a}_是_{b}"}
        for i, (a, b) in enumerate(["甲乙", "丙丁"])
    ]
    lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    (place / "data" / "two.json").write_text(lines, encoding="utf-8")
    (place / "secret.txt").write_text(SECRET)
    (place / "secret.json").write_text(json.dumps([{"instruction": SECRET, "input": "", "output": SECRET}]))
    return place


@pytest.fixture(scope="session")
def web_config(workplace) -> WebConfig:
    """The embedded base, and a LoRA adapter on it that answers in another way."""
    torch.manual_seed(0)
    base = shipped(f"{EMBEDDED}/base")
    adapter = make_adapter(workplace / "adapter", base, TUNERS["lora"])
    return WebConfig(
        paths=[str(base), str(adapter), str(workplace / "no-such-model")], device="cpu", dtype="fp32",
        output_root=str(workplace / "output"), data_path=str(workplace / "data"), max_new_tokens=24,
    )  # fmt: skip


@pytest.fixture(scope="session")
def models(web_config):
    from glmft.inference.model_set import open_models

    return open_models(web_config.all_paths, web_config, tolerant=True)
