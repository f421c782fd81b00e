"""The worked example of CONTRIBUTING.md, run as it stands."""

import re
import sys
import types
from pathlib import Path

import pytest
import torch

import glmft
from glmft.family import FAMILIES
from glmft.models.loading import fingerprint, load_config, load_model, meta_model
from glmft.tuners import TUNERS

PAGE = Path(__file__).resolve().parents[2] / "CONTRIBUTING.md"


@pytest.fixture
def bitfit(monkeypatch):
    [source] = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    module = types.ModuleType("glmft.tuners.bitfit")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(source, "bitfit.py", "exec"), module.__dict__)
    monkeypatch.setitem(TUNERS, "bitfit", module.BitFit)
    return module.BitFit


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tuner_of_one_file_trains_saves_and_loads(family, bitfit, official_folders, tmp_path):
    folder = official_folders[family]
    tuner = bitfit("query_key_value")
    model = tuner.apply(load_model(load_config(folder), folder, torch.float32)).eval()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == 3
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.5)
    base = {"base_model_name_or_path": str(folder), "base_fingerprint": fingerprint(folder)}
    tuner.save(model, tuner.state(model), tmp_path, base)
    loaded, tokenizer = glmft.load(tmp_path, dtype="fp32", device="cpu")
    batch = tokenizer(["云川"], return_tensors="pt")
    torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits, atol=0, rtol=0)


def test_it_says_what_it_cannot_train(bitfit, official_folders):
    model = meta_model(load_config(official_folders["glm2"]))
    assert bitfit("mlp").problems(model) == ["--bitfit_module_name mlp: has no bias"]
