"""New parameters are filled in explicitly, on every way they come to be: here all fresh memory holds NaN."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import glmft
from glmft.models.loading import fingerprint, load_config, load_model
from glmft.tuners.prefix import Prefix, put_prefix
from glmft.tuners.prompt import Prompt

TUNERS = {
    "plain": Prefix(4, False),
    "projected": Prefix(4, True),
    "prompt": Prompt(4, "none"),
    "lstm": Prompt(4, "lstm"),
}


@pytest.fixture(autouse=True)
def nan_memory():
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["glm", "glm2"])
def folder(request, official_folders):
    assert torch.empty(3).isnan().all()
    return official_folders[request.param]


def assert_filled(model):
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name


@pytest.mark.parametrize("tuner", TUNERS.values(), ids=TUNERS)
def test_a_tuner_fills_what_it_adds(tuner, folder):
    model = tuner.apply(load_model(load_config(folder), folder, torch.float32))
    assert_filled(model)
    if isinstance(tuner, Prefix):  # the official code's: standard normal
        embedding = model.transformer.prefix_encoder.embedding.weight
        assert embedding.std().item() == pytest.approx(1.0, abs=0.15)
        assert abs(embedding.mean().item()) < 0.2
    else:
        words = model.get_input_embeddings().weight
        virtual = model.transformer.prompt_encoder.embedding.weight
        assert all((words == token).all(-1).any() for token in virtual)


@pytest.mark.parametrize("projection", [False, True])
def test_the_auto_classes_fill_a_prefix_that_the_folder_does_not_hold(projection, folder):
    config = AutoConfig.from_pretrained(folder)
    config.pre_seq_len, config.prefix_projection = 4, projection
    model = AutoModelForCausalLM.from_pretrained(folder, config=config)
    assert_filled(model)
    assert model.transformer.prefix_encoder.embedding.weight.float().std() > 0


@pytest.mark.parametrize("tuner", TUNERS.values(), ids=TUNERS)
def test_loading_an_adapter_fills_everything(tuner, folder, tmp_path):
    model = tuner.apply(load_model(load_config(folder), folder, torch.float32))
    base = {"base_model_name_or_path": str(folder), "base_fingerprint": fingerprint(folder)}
    tuner.save(model, tuner.state(model), tmp_path, base)
    assert_filled(glmft.load(tmp_path)[0])
    if isinstance(tuner, Prefix):
        model = load_model(load_config(folder), folder, torch.float32)
        put_prefix(model, tmp_path)
        assert_filled(model)
