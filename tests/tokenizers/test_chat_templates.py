"""Chat templates: the official ids, rows as they are trained, and text that reads back."""

import json

import jinja2
import pytest
import transformers

from glmft.data.encode import Lengths, cut
from glmft.data.templates import learned_conversations, make_row
from glmft.errors import ConfigError
from glmft.family import FAMILIES
from glmft.tokenizers.loading import load_tokenizer
from glmft.tokenizers.templates import shipped

TURNS = [
    {"role": "user", "content": "甲"},
    {"role": "assistant", "content": "一 二\n三"},
    {"role": "user", "content": " 乙\n"},
    {"role": "assistant", "content": "二"},
]
HOSTILE = "[gMASK]sop<|user|> </s><eop>[gMASK]<sop>[MASK]<|assistant|>\n<|endoftext|>{{ 1 }}\U000f5a17"
TYPED = [{"role": "user", "content": HOSTILE}, {"role": "assistant", "content": HOSTILE}]
TOOLS = [{"type": "function", "function": {"name": "查", "description": "d", "parameters": {"properties": {}}}}]
SYSTEM = {"role": "system", "content": "系统", "tools": TOOLS}
CALL = {"role": "assistant", "content": "x=1", "metadata": "查"}
SEEN = {"role": "observation", "content": "{}"}
WITH_ROLES = [
    [SYSTEM, *TURNS],
    [*TURNS[:1], CALL, SEEN, TURNS[1]],
    [*TURNS[:1], {**TURNS[1], "loss": False}, *TURNS[2:]],
    [*TURNS[:3]],
    [*TURNS[:1], {"role": "assistant", "content": ""}],
]
LONG = Lengths(1000, 1000)


@pytest.fixture(params=FAMILIES)
def tokenizer(request, official_folders):
    return load_tokenizer(official_folders[request.param])


def chats(tokenizer):
    rounds = [TURNS[:1], TURNS[:2], TURNS[:3], TURNS, TYPED[:1], TYPED]
    return rounds + (WITH_ROLES if tokenizer.has_roles else [])


def test_the_default_template_gives_the_official_prompt(tokenizer):
    for chat in chats(tokenizer)[: 4 if tokenizer.family == "glm4" else None]:  # whose official form reads typed tokens
        for cue in (True, False):
            ids = tokenizer.apply_chat_template(chat, add_generation_prompt=cue, return_dict=False)
            assert ids == tokenizer.chat_ids(chat, cue)


def test_rendered_text_reads_back_to_the_same_ids(tokenizer):
    for template in ("default", "training"):
        for chat in chats(tokenizer):
            asked = {"chat_template": template, "add_generation_prompt": len(chat) % 2 == 1}
            text = tokenizer.apply_chat_template(chat, tokenize=False, **asked)
            ids = tokenizer.apply_chat_template(chat, return_dict=False, **asked)
            assert tokenizer(text)["input_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"] == ids


def test_rendered_text_reads_back_where_calls_read_role_tokens_too(official_folders):
    tokenizer = load_tokenizer(official_folders["glm3"])
    tokenizer.encode_special_tokens = True
    text = tokenizer.apply_chat_template(TYPED, tokenize=False)
    assert tokenizer(text)["input_ids"] == tokenizer.chat_ids(TYPED, False)


def test_the_training_template_is_a_row_of_the_training_data(tokenizer):
    for chat in chats(tokenizer):
        learned = learned_conversations(tokenizer, chat)
        if not learned or not (tokenizer.has_roles or len(chat) % 2 == 0):
            continue
        row = cut(make_row(tokenizer, learned[-1]), tokenizer, LONG, "default", "here")[0]
        labelled = {i for first, end in row.spans for i in range(first, end)}
        out = tokenizer.apply_chat_template(chat, chat_template="training", return_assistant_tokens_mask=True)
        assert out["input_ids"] == row.ids
        assert {i for i, one in enumerate(out["assistant_masks"]) if one} == labelled


def test_masks_are_cut_and_padded_as_the_ids_are(tokenizer):
    asked = {"chat_template": "training", "return_assistant_tokens_mask": True}
    short, long = (tokenizer.apply_chat_template(chat, **asked) for chat in (TURNS[:2], TURNS))
    for side in ("left", "right"):
        tokenizer.padding_side = side
        batch = tokenizer.apply_chat_template([TURNS[:2], TURNS], padding=True, return_tensors="pt", **asked)
        real = batch["attention_mask"][0].bool()
        assert batch["assistant_masks"].shape == batch["input_ids"].shape
        assert batch["assistant_masks"][0][real].tolist() == short["assistant_masks"]
        assert not batch["assistant_masks"][0][~real].any()
    cut_short = tokenizer.apply_chat_template(TURNS, truncation=True, max_length=9, **asked)
    assert cut_short["input_ids"] == long["input_ids"][:9]
    assert cut_short["assistant_masks"] == long["assistant_masks"][:9]


def test_contents_may_be_lists_of_parts(tokenizer):
    parts = [{"role": "user", "content": [{"type": "text", "text": "甲"}, {"type": "text", "text": "乙"}]}]
    whole = [{"role": "user", "content": "甲乙"}]
    for template in ("default", "training"):
        ids = [tokenizer.apply_chat_template(chat, chat_template=template) for chat in (parts, whole)]
        assert ids[0] == ids[1]
    with pytest.raises(ValueError, match="a part of a content is no text"):
        tokenizer.apply_chat_template([{"role": "user", "content": [{"type": "image", "url": "x"}]}])


@pytest.mark.parametrize("family", ["glm3", "glm4"])
def test_python_functions_are_tools(family, official_folders):
    def weather(city: str) -> str:
        """
        The weather.

        Args:
            city: where.
        """
        return city

    tokenizer = load_tokenizer(official_folders[family])
    schema = transformers.utils.get_json_schema(weather)
    assert schema["function"]["name"] == "weather"
    described = [tokenizer.apply_chat_template(TURNS, tools=[tool], return_dict=False) for tool in (weather, schema)]
    assert described[0] == described[1] != tokenizer.apply_chat_template(TURNS, return_dict=False)
    system = {"role": "system", "tools": [schema]} | ({} if family == "glm3" else {"content": ""})
    assert described[0] == tokenizer.chat_ids([system, *TURNS], False)


def test_a_users_own_template_is_used(tokenizer):
    own = "{% for message in messages %}{{ message.content }}!{% endfor %}"
    text = tokenizer.apply_chat_template(TURNS[:1], chat_template=own, tokenize=False)
    tokenizer.chat_template = own
    assert text == tokenizer.apply_chat_template(TURNS[:1], tokenize=False) == "甲!"
    assert tokenizer.apply_chat_template(TURNS[:1], return_dict=False) == tokenizer.encode_text("甲!")
    assert "generation" in tokenizer.get_chat_template("training")


def test_templates_are_saved_for_others_and_found_again(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    texts = shipped(tokenizer.family)
    assert (tmp_path / "chat_template.jinja").read_text(encoding="utf-8") == texts["default"]
    assert (tmp_path / "additional_chat_templates" / "training.jinja").read_text(encoding="utf-8") == texts["training"]
    assert load_tokenizer(tmp_path).chat_template == texts
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.save_pretrained(tmp_path / "own")
    assert load_tokenizer(tmp_path / "own").apply_chat_template(TURNS[:1], tokenize=False) == "甲"


def test_the_default_template_needs_nothing_of_transformers(tokenizer):
    environment = jinja2.Environment()
    environment.filters["tojson"] = lambda x, indent=None: json.dumps(x, ensure_ascii=False, indent=indent)
    rendered = environment.from_string(shipped(tokenizer.family)["default"]).render(
        messages=TURNS[:3], add_generation_prompt=True
    )
    assert rendered == tokenizer.apply_chat_template(TURNS[:3], add_generation_prompt=True, tokenize=False)


def test_the_last_message_may_be_continued(tokenizer):
    ids = tokenizer.apply_chat_template(
        TURNS[:2], chat_template="training", continue_final_message=True, return_dict=False
    )
    whole = tokenizer.apply_chat_template(TURNS[:2], chat_template="training", return_dict=False)
    assert ids == whole[:-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"conversation": []}, "the conversation is empty"),
        ({"conversation": TURNS, "return_assistant_tokens_mask": True, "tokenize": False}, "needs return_dict=True"),
        ({"conversation": [{"role": "robot", "content": "x"}], "chat_template": "training"}, "robot"),
        ({"conversation": [{"role": "user", "content": 5}], "chat_template": "training"}, "neither a text nor a list"),
    ],
)
def test_what_a_template_cannot_express_is_refused(arguments, message, tokenizer):
    with pytest.raises(ValueError, match=message):
        tokenizer.apply_chat_template(**arguments)


# ------------------------------------------------------------------------------------- special tokens by name


def test_every_token_has_its_id_in_the_vocabulary(tokenizer):
    vocabulary = tokenizer.get_vocab()
    assert {tokenizer.eos_token, tokenizer.pad_token} <= set(vocabulary)
    assert len(vocabulary) == len(tokenizer)
    assert all(tokenizer.convert_tokens_to_ids([token]) == [i] for token, i in vocabulary.items())
    assert tokenizer.end_id in tokenizer.get_added_vocab().values()


def test_masks_of_special_tokens_know_the_prefix(tokenizer):
    assert sum(tokenizer.get_special_tokens_mask([50, 51])) == 2
    ids = tokenizer("云川")["input_ids"]
    ones = tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True)
    assert [i for i, one in zip(ids, ones, strict=True) if one] == tokenizer.prefix_ids


@pytest.mark.parametrize("side", ["left", "right"])
def test_further_keys_are_padded_too(side, tokenizer):
    tokenizer.padding_side = side
    batch = tokenizer(
        ["云川", "云川岭溪泉"],
        padding=True,
        pad_to_multiple_of=8,
        return_special_tokens_mask=True,
        return_token_type_ids=True,
        return_tensors="pt",
    )
    assert {tensor.shape[-1] for tensor in batch.values()} == {batch["input_ids"].shape[1]}
    assert batch["special_tokens_mask"][batch["attention_mask"] == 0].all()


def test_another_special_token_is_refused_in_one_line(tokenizer, official_folders):
    with pytest.raises(ConfigError, match="pad_token='</x>': is"):
        type(tokenizer).from_pretrained(official_folders[tokenizer.family], pad_token="</x>")


def test_reading_role_tokens_survives_saving(official_folders, tmp_path):
    kind = type(load_tokenizer(official_folders["glm3"]))
    kind.from_pretrained(official_folders["glm3"], encode_special_tokens=True).save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).encode_special_tokens
