import json

import pytest

from glmft.errors import ConfigError
from glmft.family import family_of_folder


def folder(tmp_path, config: dict | None = None, tokenizer: dict | None = None):
    for name, value in (("config.json", config), ("tokenizer_config.json", tokenizer)):
        if value is not None:
            (tmp_path / name).write_text(json.dumps(value), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("config", "tokenizer", "family"),
    [
        ({"_name_or_path": "THUDM/chatglm2-6b"}, {}, "glm2"),
        ({"_name_or_path": "THUDM/chatglm3-6b-32k"}, {}, "glm3"),
        ({"_name_or_path": "THUDM/codegeex2-6b"}, {}, "glm2"),
        ({}, {"name_or_path": "THUDM/chatglm3-6b"}, "glm3"),
        ({}, {"chat_template": "…<|user|>…"}, "glm3"),
        ({"inner_hidden_size": 16384}, {}, "glm"),
        ({"position_encoding_2d": True}, None, "glm"),
        ({}, {"num_image_tokens": 0}, "glm"),
        ({"_name_or_path": "THUDM/glm-4-9b-chat"}, {}, "glm4"),
        ({"padded_vocab_size": 151552}, None, "glm4"),
        ({"eos_token_id": [608, 615, 617], "pad_token_id": 608}, None, "glm4"),
        ({}, {"tokenizer_class": "ChatGLM4Tokenizer", "chat_template": "…<|user|>…"}, "glm4"),
        ({"glmft_family": "glm3", "_name_or_path": "/models/chatglm2-6b"}, {}, "glm3"),
    ],
)
def test_the_files_tell_the_family(config, tokenizer, family, tmp_path):
    assert family_of_folder(folder(tmp_path, config, tokenizer)) == family


def test_the_folders_own_name_decides_where_its_files_are_silent(tmp_path):
    place = tmp_path / "chatglm2-6b"
    place.mkdir()
    assert family_of_folder(folder(place, {}, {})) == "glm2"


def test_an_undecidable_folder_is_a_question(tmp_path):
    with pytest.raises(ConfigError, match=r"ChatGLM2 or ChatGLM3\?.*--mode glm2\|glm3"):
        family_of_folder(folder(tmp_path, {}, {}))
    assert family_of_folder(tmp_path, "glm3") == "glm3"


def test_a_mode_that_contradicts_the_files_is_an_error(tmp_path):
    place = folder(tmp_path, {"_name_or_path": "THUDM/chatglm2-6b"})
    with pytest.raises(ConfigError, match="holds a glm2 model; give --mode glm2"):
        family_of_folder(place, "glm3")


@pytest.mark.parametrize("text", ["{", "[1]", '"chatglm"'])
def test_a_broken_config_is_one_line(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json"):
        family_of_folder(tmp_path)


def test_a_vocabulary_of_tiktoken_is_glm4s(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    assert family_of_folder(folder(tmp_path, {}, {})) == "glm4"


def test_a_vision_model_is_refused_by_name(tmp_path):
    config = {"padded_vocab_size": 151552, "vision_config": {"hidden_size": 1792}}
    with pytest.raises(ConfigError, match="holds GLM-4V, a model of images and text"):
        family_of_folder(folder(tmp_path, config))
