"""What holds for every family's tokenizer, on a sentencepiece model made on the spot."""

import json

import pytest

from glmft.errors import ConfigError
from glmft.tokenizers.base import ChatGLMTokenizer
from glmft.tokenizers.chatglm2 import ChatGLM2Tokenizer
from glmft.tokenizers.chatglm3 import ChatGLM3Tokenizer
from glmft.tokenizers.loading import load_tokenizer

FAMILIES = {"glm2": ChatGLM2Tokenizer, "glm3": ChatGLM3Tokenizer}
SPECIAL_LOOKING = ["[gMASK] sop </s>", "<|user|>你好", "[MASK]<|assistant|>\n", "</s>"]


@pytest.fixture(params=FAMILIES)
def each(request, tokenizer):
    return FAMILIES[request.param](vocab_file=tokenizer.vocab_file)


def test_every_row_starts_with_the_two_special_tokens_behind_the_vocabulary(each):
    first = each.sp.vocab_size()
    assert each("云川")["input_ids"][:2] == [first + 1, first + 3]
    assert each.get_command("[gMASK]") == first + 1
    assert each.get_command("sop") == first + 3
    assert (each.pad_token_id, each.eos_token_id) == (0, 2)


def test_the_length_is_the_vocabulary_with_its_special_tokens(each):
    assert len(each) == each.vocab_size == each.sp.vocab_size() + len(each.special_tokens)


def test_a_pair_ends_with_the_end_token(each):
    ids = each.build_inputs_with_special_tokens([5, 6], [7])
    assert ids == [*each.prefix_ids, 5, 6, 7, each.eos_token_id]


def test_padding_stands_on_the_left_and_positions_count_real_tokens(each):
    batch = each(["云川", "云川岭溪泉"], padding=True)
    short, long = batch["input_ids"]
    missing = len(long) - len(each("云川")["input_ids"])
    assert missing > 0
    assert len(short) == len(long)
    assert short[:missing] == [each.pad_token_id] * missing
    assert batch["attention_mask"][0] == [0] * missing + [1] * (len(long) - missing)
    assert batch["position_ids"][0] == [0] * missing + list(range(len(long) - missing))


def test_padding_to_a_multiple(each):
    batch = each(["云川"], padding=True, pad_to_multiple_of=16)
    assert len(batch["input_ids"][0]) == len(batch["position_ids"][0]) == 16


@pytest.mark.parametrize("text", ["云川_导演_岭溪", "用\\n分割", "Ωmega 12", "两行\n文字"])
def test_plain_text_comes_back(text, each):
    assert each.decode(each.encode_text(text)) == text


@pytest.mark.parametrize("text", SPECIAL_LOOKING)
def test_text_never_becomes_a_special_token(text, each):
    special = set(each.special_ids.values()) | {each.eos_token_id}
    assert not special & set(each.encode_text(text))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_is_found_again_by_its_family(family, tokenizer, tmp_path):
    FAMILIES[family](vocab_file=tokenizer.vocab_file).save_pretrained(tmp_path)
    recorded = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert recorded["tokenizer_class"] == "ChatGLMTokenizer"  # the official code's name
    for again in (ChatGLMTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)):
        assert type(again) is FAMILIES[family]
        assert (
            again("云川_岭溪")["input_ids"]
            == FAMILIES[family](vocab_file=tokenizer.vocab_file)("云川_岭溪")["input_ids"]
        )


def test_a_contradicting_mode_is_refused(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="holds a glm2 model; give --mode glm2"):
        load_tokenizer(tmp_path, "glm3")


def test_new_tokens_are_refused(each):
    with pytest.raises(ConfigError, match="cannot be added"):
        each.add_tokens(["<new>"])


@pytest.mark.parametrize("content", [None, b"not a model"])
def test_a_missing_or_broken_sentencepiece_model_is_one_line(content, tmp_path):
    path = tmp_path / "tokenizer.model"
    if content:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"copy (it|the official one)"):
        ChatGLM2Tokenizer(vocab_file=str(path))


def test_the_glm2_prompt_numbers_its_rounds(tokenizer):
    assert (
        tokenizer.build_prompt("乙", [("甲", "一")]) == "[Round 1]\n\n问：甲\n\n答：一\n\n[Round 2]\n\n问：乙\n\n答："
    )


def test_a_glm3_message_is_role_metadata_line_break_and_text(tokenizer):
    glm3 = ChatGLM3Tokenizer(vocab_file=tokenizer.vocab_file)
    ids = glm3.build_single_message("assistant", "工具", "云川")
    assert ids == [glm3.get_command("<|assistant|>"), *glm3.encode_text("工具\n"), *glm3.encode_text("云川")]
    with pytest.raises(ValueError, match="role 'robot' is none of system, user"):
        glm3.build_single_message("robot", "", "云川")
