"""What holds for every family's tokenizer, on a sentencepiece model made on the spot."""

import json
import re
import shutil

import pytest

from glmft.errors import ConfigError
from glmft.family import FAMILIES as ALL
from glmft.tokenizers.chatglm import ChatGLM6BTokenizer
from glmft.tokenizers.chatglm2 import ChatGLM2Tokenizer
from glmft.tokenizers.chatglm3 import TOOLS_SENTENCE, ChatGLM3Tokenizer
from glmft.tokenizers.loading import ChatGLMTokenizer, load_tokenizer

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


@pytest.mark.parametrize("family", ALL)
def test_an_official_tokenizer_config_comes_back_with_nothing_lost_or_added(family, official_folders, tmp_path):
    """Keys that current transformers would add (`eos_token`, …) make the official glm2 and glm3 classes fail."""
    load_tokenizer(official_folders[family]).save_pretrained(tmp_path)
    saved, official = (
        json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        for folder in (tmp_path, official_folders[family])
    )
    assert saved.pop("glmft_family") == family
    assert saved == official


# ---------------------------------------------------------------------------------------------------- ChatGLM-6B


def test_glm_special_tokens_stand_behind_the_prompt(glm_tokenizer):
    text = glm_tokenizer.encode_text("云川")
    gmask, sop = glm_tokenizer.gmask_token_id, glm_tokenizer.bos_token_id
    assert glm_tokenizer("云川")["input_ids"] == [*text, gmask, sop]
    assert glm_tokenizer.build_inputs_with_special_tokens([5], [6]) == [5, gmask, sop, 6, glm_tokenizer.eos_token_id]


def test_glm_positions_are_of_two_dimensions_and_padding_has_none(glm_tokenizer):
    batch = glm_tokenizer(["云川", "云川岭溪"], padding=True)
    short, long = (len(glm_tokenizer(text)["input_ids"]) for text in ("云川", "云川岭溪"))
    places, blocks = batch["position_ids"][0]
    assert places == [0] * (long - short) + [*range(short - 1), short - 2]
    assert blocks == [0] * (long - 1) + [1]
    assert batch["attention_mask"][0] == [0] * (long - short) + [1] * short


def test_glm_white_space_is_kept_by_tokens_of_its_own(glm_tokenizer):
    text = "云川\n岭\t溪   泉"
    pieces = [glm_tokenizer._convert_id_to_token(i) for i in glm_tokenizer.encode_text(text)]
    assert {"<n>", "<|tab|>", "<|blank_3|>"} <= set(pieces)
    assert glm_tokenizer.decode(glm_tokenizer.encode_text(text)) == text


def test_glm_calls_read_written_special_tokens_and_chats_do_not(glm_tokenizer):
    """The official class reads them in a call; a prompt must not, or a user could end it."""
    mask = glm_tokenizer.mask_token_id
    assert mask in glm_tokenizer("云 [MASK] 川")["input_ids"]
    for text in ("云 [MASK] 川", "<sop>", "<eop>云", "[gMASK]"):
        ids = glm_tokenizer.chat_ids([{"role": "user", "content": text}])
        assert not set(ids[:-2]) & {mask, *glm_tokenizer.prefix_ids, glm_tokenizer.eos_token_id}
        assert ids[-2:] == glm_tokenizer.prefix_ids


def test_glm_image_tokens_stand_before_the_vocabulary(official_folders):
    plain = load_tokenizer(official_folders["glm"])
    shifted = ChatGLM6BTokenizer.from_pretrained(official_folders["glm"], num_image_tokens=20)
    assert shifted.vocab_size == plain.vocab_size + 20
    assert shifted("云川")["input_ids"] == [i + 20 for i in plain("云川")["input_ids"]]
    assert shifted.convert_ids_to_tokens(19) == "<image_19>"


@pytest.mark.parametrize(("size", "images"), [(150528, 20000), (130528, 0)])
def test_glm_revisions_are_told_apart_by_the_models_vocabulary(size, images, official_folders, tmp_path):
    """The first revision's tokenizer_config.json says nothing of its image tokens."""
    shutil.copytree(official_folders["glm"], tmp_path / "old")
    for name, change in (("config.json", {"vocab_size": size}), ("tokenizer_config.json", {"num_image_tokens": None})):
        content = {**json.loads((tmp_path / "old" / name).read_text(encoding="utf-8")), **change}
        (tmp_path / "old" / name).write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    assert load_tokenizer(tmp_path / "old").num_image_tokens == images


# ---------------------------------------------------------------------------------------------------- chats

CHAT = [{"role": "user", "content": "甲"}, {"role": "assistant", "content": "一"}, {"role": "user", "content": "乙"}]
WRITTEN = {
    "glm": "[Round 0]\n问：甲\n答：一\n[Round 1]\n问：乙\n答：[gMASK]<sop>",
    "glm2": "[gMASK]sop[Round 1]\n\n问：甲\n\n答：一\n\n[Round 2]\n\n问：乙\n\n答：",
    "glm3": "[gMASK]sop<|user|>\n 甲<|assistant|>\n 一<|user|>\n 乙<|assistant|>",
}


@pytest.mark.parametrize("family", WRITTEN)
def test_chat_templates_give_the_official_prompts(family, official_folders):
    tokenizer = load_tokenizer(official_folders[family])
    text = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    assert re.sub("：", ":", text) == re.sub("：", ":", WRITTEN[family])  # glm's vocabulary normalises the colon
    ids = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    assert ids == tokenizer.chat_ids(CHAT)
    batch = tokenizer.apply_chat_template(
        [CHAT, CHAT[:1]], add_generation_prompt=True, padding=True, return_tensors="pt"
    )
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["input_ids"][0].tolist() == ids
    answered = tokenizer.apply_chat_template(CHAT[:2], return_dict=False)
    assert answered[-1] == tokenizer.encode_text("一")[-1]


@pytest.mark.parametrize("family", ["glm", "glm2"])
def test_what_a_family_cannot_express_is_refused(family, official_folders):
    tokenizer = load_tokenizer(official_folders[family])
    with pytest.raises(ValueError, match="message 0 has role 'system'"):
        tokenizer.chat_ids([{"role": "system", "content": "s"}, *CHAT])
    with pytest.raises(ValueError, match="the conversation is empty"):
        tokenizer.chat_ids([])
    with pytest.raises(ValueError, match="knows no tools"):
        tokenizer.apply_chat_template(CHAT, tools=[{"name": "f"}])


def test_glm3_tools_stand_in_a_system_message(official_folders):
    tokenizer = load_tokenizer(official_folders["glm3"])
    tools = [{"name": "查", "parameters": {}}]
    with_tools = tokenizer.chat_ids([{"role": "system", "content": TOOLS_SENTENCE, "tools": tools}, *CHAT])
    assert tokenizer.apply_chat_template(CHAT, tools=tools, add_generation_prompt=True, return_dict=False) == with_tools
    system = tokenizer.build_single_message(
        "system", "", f"{TOOLS_SENTENCE}\n{json.dumps(tools, indent=4, ensure_ascii=False)}"
    )
    assert with_tools == [*tokenizer.prefix_ids, *system, *tokenizer.chat_ids(CHAT)[2:]]
    assert tokenizer.build_chat_input("乙", CHAT[:2])["input_ids"].tolist() == [tokenizer.chat_ids(CHAT)]


def test_glm_ids_behind_the_vocabulary_with_which_matrices_are_padded_are_no_text(glm_tokenizer):
    text = glm_tokenizer.encode_text("云川")
    behind = [len(glm_tokenizer), len(glm_tokenizer) + 100]
    assert glm_tokenizer.decode([*text, *behind, glm_tokenizer.pad_token_id]) == "云川"
    assert glm_tokenizer.convert_ids_to_tokens(behind) == ["", ""]
    assert glm_tokenizer.decode([-100, *text]) == "云川"
