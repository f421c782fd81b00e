"""Adapters that share a base answer as each does alone."""

import dataclasses
import shutil

import pytest
import torch
from adapters import TUNERS, make_adapter

import glmft
from glmft.errors import ConfigError, GlmftError
from glmft.inference.model_set import names_of, open_models
from glmft.settings.config import ModelSettings

SETTINGS = ModelSettings(dtype="fp32", device="cpu")
FAST = ("glm3", ["lora", "dora", "ptuning", "prompt", "freeze"])
SLOW = [(family, list(TUNERS)) for family in ("glm", "glm2", "glm4", "native-glm", "native-glm4")]


@pytest.fixture(scope="module", params=[FAST, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)], ids=str)
def folders(request, all_folders, tmp_path_factory):
    family, names = request.param
    base, root = all_folders[family], tmp_path_factory.mktemp("adapters")
    return [base, *(make_adapter(root / name, base, TUNERS[name]) for name in names)]


def last_logits(model, tokenizer):
    rows = [tokenizer.chat_ids([{"role": "user", "content": text}]) for text in ("云川岭溪泉", "云")]
    with torch.no_grad():
        return model(**tokenizer.pad({"input_ids": rows}, return_tensors="pt")).logits[:, -1]


def test_every_model_of_a_set_is_what_it_is_alone(folders):
    models = open_models(folders, SETTINGS)
    assert models.names == [folder.name for folder in folders]
    assert len({id(models[name].base) for name in models.names}) == 1
    alone = {folder.name: last_logits(*glmft.load(folder, dtype="fp32", device="cpu")) for folder in folders}
    assert len({round(float(logits.sum()), 3) for logits in alone.values()}) == len(folders)
    for name in [*models.names, *reversed(models.names), models.names[0]]:
        with models.at_work(name) as (model, tokenizer):
            assert torch.equal(last_logits(model, tokenizer), alone[name]), name


def test_they_answer_in_half_precision_too(folders):
    chosen = [folder for folder in folders if folder.name in ("lora", "freeze")]
    models = open_models(chosen, dataclasses.replace(SETTINGS, dtype="bf16"))
    for folder in chosen:
        with models.at_work(folder.name) as (model, tokenizer):
            logits = last_logits(model, tokenizer)
        assert logits.dtype == torch.bfloat16
        assert torch.equal(logits, last_logits(*glmft.load(folder, dtype="bf16", device="cpu"))), folder.name


def test_weights_of_a_base_are_there_once(folders):
    models = open_models(folders, SETTINGS)
    base = glmft.load(folders[0], dtype="fp32", device="cpu")[0]
    count = sum(parameter.numel() for parameter in base.parameters())
    shared = {p.data_ptr(): p.numel() for p in models[models.names[0]].base.model.parameters()}
    assert count <= sum(shared.values()) < 2 * count


def test_a_model_that_cannot_be_opened_leaves_the_others(folders, tmp_path):
    torn = tmp_path / "torn"
    shutil.copytree(folders[1], torn)
    (torn / "adapter_model.safetensors").write_bytes(b"\0" * 64)
    paths = [folders[0], tmp_path / "nowhere", torn, folders[1]]
    models = open_models(paths, SETTINGS, tolerant=True)
    assert models.names == [folders[0].name, folders[1].name]
    assert set(models.refused) == {str(tmp_path / "nowhere"), str(torn)}
    with pytest.raises(GlmftError, match="nowhere: no such folder"):
        open_models(paths, SETTINGS)


def test_an_unknown_name_tells_the_nearest(folders):
    models = open_models(folders[:1], SETTINGS)
    with pytest.raises(ConfigError, match=f"no such model; did you mean {folders[0].name}"):
        models[f"{folders[0].name}x"]


def test_a_model_named_twice_is_refused(folders):
    with pytest.raises(ConfigError, match="is named twice"):
        open_models([folders[0], f"{folders[0]}/../{folders[0].name}"], SETTINGS)


def test_names_are_as_short_as_they_can_be():
    assert names_of(["a/run/checkpoint-1", "b/run/checkpoint-1", "c"]) == [
        "a/run/checkpoint-1",
        "b/run/checkpoint-1",
        "c",
    ]
    assert names_of(["x/one/best", "x/two/best"]) == ["one/best", "two/best"]


@pytest.mark.parametrize(("bias", "start"), [("all", True), pytest.param("none", "pissa", marks=pytest.mark.slow)])
def test_lora_that_changes_its_base_is_in_memory_by_itself(bias, start, official_folders, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = official_folders["glm3"]
    model, _ = glmft.load(base, dtype="fp32", device="cpu")
    config = LoraConfig(r=2, target_modules=["query_key_value"], bias=bias, init_lora_weights=start)
    get_peft_model(model, config).save_pretrained(tmp_path / "lora")
    models = open_models(
        [base, tmp_path / "lora"], ModelSettings(dtype="fp32", device="cpu", base_model_path=str(base))
    )
    assert models["lora"].base is not models[base.name].base
