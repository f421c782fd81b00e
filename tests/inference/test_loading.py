"""What an adapter's record may say before its base is known."""

import json
import shutil

import pytest
import torch

import glmft
from glmft.errors import ConfigError
from glmft.inference.loading import load, locate
from glmft.models.loading import load_config, load_model, record_of
from glmft.settings.config import TrainConfig
from glmft.settings.recorded import TRAINED_WITH, record_of_settings
from glmft.tuners.freeze import Freeze


@pytest.mark.parametrize("value", [[], {}, 4, True, "4" * 101])
@pytest.mark.parametrize("name", ["base_quantization", "base_embedding", "base_fingerprint"])
def test_a_record_of_a_wrong_type_is_one_line(name, value, official_folders, tmp_path):
    base = str(official_folders["glm2"])
    record = {"train_type": "lora", "base_model_name_or_path": base, name: value}
    (tmp_path / "glmft_adapter.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=rf"glmft_adapter\.json: {name} is .*; it must be a text"):
        locate(tmp_path)


@pytest.mark.parametrize(
    ("trained", "rule"),
    [
        ([], "trained_with is []; it must be an object"),
        ({"template": "alpaca"}, "trained_with: template is 'alpaca'; it must be one of 'default', 'reference', 'raw'"),
        ({"max_len": 3}, "trained_with: max_len is 3; it must be a whole number from 8 to"),
        ({"max_src_len": "256"}, "trained_with: max_src_len is '256'; it must be a whole number from 4 to"),
        ({"prompt_column": 1}, "trained_with: prompt_column is 1; it must be a text"),
        ({"source_prefix": None}, "trained_with: source_prefix is None; it must be a text"),
    ],
)
@pytest.mark.parametrize("name", ["glmft_adapter.json", "glmft_training.json"])
def test_what_a_record_says_of_the_training_is_checked_by_type(name, trained, rule, official_folders, tmp_path):
    base = official_folders["glm2"]
    if name == "glmft_training.json":
        shutil.copy(base / "config.json", tmp_path)
    record = {"train_type": "lora", "base_model_name_or_path": str(base), "trained_with": trained}
    (tmp_path / name).write_text(json.dumps(record))
    with pytest.raises(ConfigError) as error:
        locate(tmp_path)
    assert len(error.value.problems) == 1
    assert rule in error.value.problems[0]


def test_an_adapter_that_records_its_family_needs_no_mode(glm3_like, tmp_path):
    """The base alone could be ChatGLM2 or ChatGLM3."""
    with pytest.raises(ConfigError, match="ChatGLM2 or ChatGLM3"):
        load(glm3_like)
    adapter = save_adapter(tmp_path / "adapter", glm3_like, "glm3", TrainConfig(template="raw", max_len=99))
    model, tokenizer = load(adapter)
    assert tokenizer.family == "glm3"
    assert model.trained_with.max_len == 99
    with pytest.raises(ConfigError, match=r"--mode glm2: .*adapter was trained on a glm3 model; leave --mode out"):
        load(adapter, mode="glm2")


def test_an_adapter_from_before_the_record_loads(official_folders, tmp_path):
    adapter = save_adapter(tmp_path / "adapter", official_folders["glm2"], "glm2", None)
    assert load(adapter)[0].trained_with is None
    assert locate(adapter).trained_folder == adapter


def test_a_base_has_no_record(official_folders):
    place = locate(official_folders["glm2"])
    assert (place.trained_folder, place.trained_with) == (None, None)


@pytest.fixture
def glm3_like(official_folders, tmp_path):
    """ChatGLM3's folder without what tells it from ChatGLM2's."""
    base = tmp_path / "some-base"
    shutil.copytree(official_folders["glm3"], base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "_name_or_path"}))
    for path in base.glob("*token*.json"):
        path.unlink()
    return base


def save_adapter(folder, base, family: str, config: TrainConfig | None):
    base_config = load_config(base, family)
    tuner = Freeze()
    model = tuner.apply(load_model(base_config, base, torch.float32))
    recorded = {} if config is None else {TRAINED_WITH: record_of_settings(config)}
    folder.mkdir()
    tuner.save(model, tuner.state(model), folder, {**record_of(base_config, base), **recorded})
    return folder


@pytest.mark.parametrize("family", ["glm", "glm2", "native-glm"])
def test_a_model_spread_over_devices_answers_as_before(family, all_folders, monkeypatch):
    """Here over the one device there is: which layers may not be split, and what accelerate is told."""
    import accelerate.utils

    from glmft.inference.loading import spread

    model, tokenizer = glmft.load(all_folders[family], dtype="fp32", device="cpu")
    before = glmft.answer(model, tokenizer, ["云川", "岭"], max_new_tokens=4)
    asked = []
    monkeypatch.setattr(
        accelerate.utils, "get_balanced_memory", lambda model, **given: asked.append(given) or {"cpu": 1 << 40}
    )
    assert glmft.answer(spread(model).eval(), tokenizer, ["云川", "岭"], max_new_tokens=4) == before
    [names] = asked[0].values()
    assert {type(module).__name__ for module in model.modules()} >= set(names) != set()
