"""Adapters that share a base answer as each does alone."""

import pytest
import torch
from adapters import TUNERS, make_adapter

import glmft
from glmft.inference.model_set import open_models
from glmft.settings.config import ModelSettings

SETTINGS = ModelSettings(dtype="fp32", device="cpu")


@pytest.fixture(scope="module", params=["glm", "glm3", "native-glm"])
def folders(request, all_folders, tmp_path_factory):
    base, root = all_folders[request.param], tmp_path_factory.mktemp("adapters")
    return [base, *(make_adapter(root / name, base, tuner) for name, tuner in TUNERS.items())]


def last_logits(model, tokenizer):
    rows = [tokenizer.chat_ids([{"role": "user", "content": text}]) for text in ("云川岭溪泉", "云")]
    with torch.no_grad():
        return model(**tokenizer.pad({"input_ids": rows}, return_tensors="pt")).logits[:, -1]


def test_every_model_of_a_set_is_what_it_is_alone(folders):
    models = open_models(folders, SETTINGS)
    assert models.names == [folder.name for folder in folders]
    assert len({id(models[name].base) for name in models.names}) == 1
    seen = []
    for name in [*models.names, *reversed(models.names)]:
        with models.at_work(name) as (model, tokenizer):
            seen.append(last_logits(model, tokenizer))
    for folder, logits in zip([*folders, *reversed(folders)], seen, strict=True):
        assert torch.equal(logits, last_logits(*glmft.load(folder, dtype="fp32", device="cpu"))), folder.name
    assert len({round(float(logits.sum()), 3) for logits in seen}) == len(folders)
