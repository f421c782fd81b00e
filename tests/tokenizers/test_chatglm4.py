"""GLM-4's tokenizer over tiktoken, and what it tells the model of tools."""

import json
import pickle

import pytest

from glmft.errors import ConfigError
from glmft.tokenizers.chatglm4 import ChatGLM4Tokenizer
from glmft.tokenizers.chatglm4_tools import INTRODUCTION
from glmft.tokenizers.loading import ChatGLMTokenizer, load_tokenizer

FUNCTION = {
    "type": "function",
    "function": {"name": "查天气", "parameters": {"properties": {"城市": {"type": "string"}}}},
}


@pytest.fixture
def glm4(official_folders):
    return load_tokenizer(official_folders["glm4"])


def test_special_tokens_stand_behind_the_ranks(glm4):
    first = glm4.vocab_size
    assert glm4.encoding.encode_ordinary("<|endoftext|>")[0] < first
    assert [glm4.special_ids[name] - first for name in ("<|endoftext|>", "[gMASK]", "<sop>", "<|user|>")] == [
        0,
        2,
        4,
        7,
    ]
    assert (len(glm4), glm4.eos_token_id, glm4.pad_token_id) == (first + 14, first, first)
    assert glm4.stop_ids == [first, first + 7, first + 9]


@pytest.mark.parametrize("text", ["<|user|>", "[gMASK]<sop>云", "a <|endoftext|> b", "<|assistant|>\n"])
def test_text_that_looks_like_a_special_token_stays_text_but_in_a_call(text, glm4):
    special = set(glm4.special_texts)
    assert not special & set(glm4.encode_text(text))
    assert glm4.decode(glm4.encode_text(text)) == text
    assert special & set(glm4(text)["input_ids"][2:])
    messages = [{"role": "user", "content": text}]
    assert len(special & set(glm4.chat_ids(messages)[3:-1])) == 0
    assert special & set(glm4.apply_chat_template(messages, return_dict=False)[3:])


def test_tokens_are_bytes_and_bytes_that_are_no_text_survive(glm4):
    ids = [glm4.convert_tokens_to_ids(bytes([byte])) for byte in b"\xff\xe4\xba"]
    assert b"".join(glm4.convert_ids_to_tokens(ids)) == b"\xff\xe4\xba"
    assert glm4.convert_tokens_to_ids(glm4.convert_ids_to_tokens(ids)) == ids
    assert "\ufffd" in glm4.decode(ids)
    whole = glm4.encode_text("𠮷😀")
    assert glm4.decode(whole[:-1]) != "𠮷😀"
    assert glm4.decode(whole) == "𠮷😀"


def test_it_survives_pickling_and_saving(glm4, tmp_path):
    glm4.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert saved["tokenizer_class"] == "ChatGLM4Tokenizer"
    text = "云川 <|user|> mixed\n\n12345"
    copies = [pickle.loads(pickle.dumps(glm4)), load_tokenizer(tmp_path), ChatGLMTokenizer.from_pretrained(tmp_path)]
    for again in copies:
        assert isinstance(again, ChatGLM4Tokenizer)
        assert again(text)["input_ids"] == glm4(text)["input_ids"]
        assert again.encode_text(text) == glm4.encode_text(text)


@pytest.mark.parametrize("content", [b"\x00\x01 no", b"IQ== 0\nIQ== x\n", b"IQ== 0\nIg== 7\n", b"IQ== 0\n", b""])
def test_a_file_that_is_no_vocabulary_is_one_line(content, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ConfigError, match=r"tokenizer\.model: is no vocabulary of tiktoken"):
        ChatGLM4Tokenizer(str(tmp_path / "tokenizer.model"))


# ------------------------------------------------------------------------------------------------------------- tools


def test_a_system_message_about_tools_stands_before_their_message(glm4):
    question = {"role": "user", "content": "北京？"}
    ids = glm4.chat_ids([{"role": "system", "tools": [FUNCTION]}, question])
    assert ids == glm4.apply_chat_template([question], tools=[FUNCTION], add_generation_prompt=True, return_dict=False)
    text = glm4.decode(ids)
    assert text.startswith(f"[gMASK]<sop><|system|>\n{INTRODUCTION}\n## 查天气\n\n{{\n    ")
    assert text.endswith("<|user|>\n北京？<|assistant|>")


def test_a_bare_description_is_a_function(glm4):
    """As ChatGLM3's files have them."""
    bare, full = ([{"role": "system", "tools": [tool]}] for tool in (FUNCTION["function"], FUNCTION))
    assert glm4.chat_ids(bare) == glm4.chat_ids(full)


def test_properties_that_are_null_are_left_out(glm4):
    parameters = {"properties": {"城市": {"type": "string"}, "单位": None}}
    with_null = {"type": "function", "function": {"name": "查天气", "parameters": parameters}}
    assert glm4.chat_ids([{"role": "system", "tools": [with_null]}]) == glm4.chat_ids(
        [{"role": "system", "tools": [FUNCTION]}]
    )


@pytest.mark.parametrize(
    ("tools", "told"),
    [
        (None, "'tools' is null, not a list"),
        ({"a": 1}, "'tools' is a dict, not a list"),
        ([FUNCTION, {"type": "retrieval"}], "tool 2: its type is none of function, python, simple_browser, cogview"),
        ([{"type": "function"}], "tool 1: needs a 'function' with a 'name'"),
        (["python"], "tool 1: its type is none of"),
    ],
)
def test_tools_that_the_template_has_no_words_for_are_refused(tools, told, glm4):
    with pytest.raises(ValueError, match=told):
        glm4.chat_ids([{"role": "system", "tools": tools}])


def test_a_call_is_its_functions_name_and_arguments(glm4):
    call = {"role": "assistant", "metadata": "查天气", "content": "…", "arguments": {"城市": "北京"}}
    assert glm4.decode(glm4.message_ids(call)) == '<|assistant|>查天气\n{"城市": "北京"}'
    with pytest.raises(ValueError, match="role 'robot' is none of system, user, assistant, observation"):
        glm4.chat_ids([{"role": "robot", "content": "x"}])
