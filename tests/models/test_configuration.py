import json

import pytest

from glmft.errors import ConfigError
from glmft.models.configuration import ChatGLM2Config, ChatGLM6BConfig, ChatGLMConfig


def test_one_model_type_gives_the_class_that_the_keys_prove():
    assert type(ChatGLMConfig.from_dict({"inner_hidden_size": 64, "hidden_size": 64, "num_attention_heads": 4})) is (
        ChatGLM6BConfig
    )
    assert type(ChatGLMConfig.from_dict({"multi_query_group_num": 2})) is ChatGLM2Config


@pytest.mark.parametrize(
    ("keys", "divides"),
    [
        ({"rope_ratio": 50, "seq_length": 32768, "_name_or_path": "THUDM/chatglm2-6b-32k"}, True),
        ({"rope_ratio": 50, "seq_length": 32768, "_name_or_path": "THUDM/chatglm3-6b-32k"}, False),
        ({"rope_ratio": 500, "seq_length": 131072, "_name_or_path": "THUDM/chatglm3-6b-128k"}, False),
        ({"rope_ratio": 50, "seq_length": 8192, "glmft_family": "glm2", "rope_ratio_scales": "positions"}, True),
        ({"rope_ratio": 50, "seq_length": 32768, "glmft_family": "glm2", "rope_ratio_scales": "base"}, False),
    ],
)
def test_which_formula_of_rope_ratio_is_taken_can_be_read_and_set(keys, divides):
    config = ChatGLM2Config(**keys)
    assert config.rope_scales_positions is divides
    assert f"rope_ratio {keys['rope_ratio']} {'divides' if divides else 'multiplies'}" in config.rope_line


def test_without_a_ratio_there_is_nothing_to_say():
    config = ChatGLM2Config(seq_length=32768, glmft_family="glm2")
    assert not config.rope_scales_positions
    assert config.rope_line is None


@pytest.mark.parametrize(
    ("kind", "keys", "message"),
    [
        (ChatGLM2Config, {"multi_query_attention": False}, "multi_query_attention false"),
        (ChatGLM2Config, {"num_attention_heads": 5}, "num_attention_heads 5 is no multiple"),
        (ChatGLM2Config, {"kv_channels": 6}, "kv_channels 6 is no multiple of 4"),
        (ChatGLM2Config, {"rope_ratio_scales": "both"}, "is neither base nor positions"),
        (ChatGLM6BConfig, {"position_encoding_2d": False}, "position_encoding_2d false"),
        (ChatGLM6BConfig, {"hidden_size": 72, "num_attention_heads": 4}, "hidden_size 72 is no multiple"),
    ],
)
def test_shapes_that_no_checkpoint_has_are_refused(kind, keys, message):
    with pytest.raises(ConfigError, match=message):
        kind(**keys)


def test_glm4s_second_name_for_its_layers_is_kept():
    """Its official code reads one, transformers' caches in it the other."""
    config = ChatGLM2Config(num_layers=4, num_hidden_layers=4, attn_implementation="sdpa", glmft_family="glm4")
    config.num_layers = 2
    saved = json.loads(config.to_json_string())
    assert (saved["num_layers"], saved["num_hidden_layers"], saved["attn_implementation"]) == (2, 2, "sdpa")
    assert "num_hidden_layers" not in json.loads(ChatGLM2Config(num_layers=4).to_json_string())


def test_glm4_has_one_formula_of_rope_ratio():
    assert ChatGLM2Config(rope_ratio=500, glmft_family="glm4").rope_line is None
