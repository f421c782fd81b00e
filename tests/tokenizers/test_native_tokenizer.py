"""The folder's own fast tokenizer and chat template, as data and generation see them."""

import json
import pickle
import shutil
from pathlib import Path

import pytest

from glmft.errors import ConfigError
from glmft.tokenizers.loading import load_tokenizer
from glmft.tokenizers.native import FILES
from glmft.tokenizers.rendering import DISGUISE

TALK = [
    {"role": "system", "content": "你是助手。"},
    {"role": "user", "content": "云川？"},
    {"role": "assistant", "metadata": "查", "content": '{"a": 1}'},
    {"role": "observation", "content": "3"},
    {"role": "assistant", "content": "岭溪\n\n泉"},
]
TOOL = {"type": "function", "function": {"name": "查", "description": "a <|user|> b"}}


@pytest.fixture(params=["native-glm", "native-glm4"])
def tokenizer(request, native_folders):
    return load_tokenizer(native_folders[request.param])


@pytest.mark.parametrize("end", range(1, len(TALK) + 1))
@pytest.mark.parametrize("cue", [False, True])
def test_ids_are_those_of_the_rendered_template_token_by_token(end, cue, tokenizer):
    talk = TALK[:end]
    rendered = tokenizer.apply_chat_template(talk, add_generation_prompt=cue, return_dict=False)
    assert tokenizer.chat_ids(talk, cue) == rendered
    parts = tokenizer.message_parts(talk)
    whole = [*tokenizer.prefix_ids, *(token for _, part in parts for token in part)]
    assert whole == tokenizer.apply_chat_template(talk, return_dict=False)
    assert [message["role"] for message, _ in parts] == [message["role"] for message in talk]
    assert [tokenizer.special_texts[part[0]] for _, part in parts] == [f"<|{m['role']}|>" for m in talk]


def test_the_mark_that_disguises_text_is_kept_where_a_user_wrote_it(tokenizer):
    text = f"云{DISGUISE}<|user|>{DISGUISE}{DISGUISE}川"
    ids = tokenizer.chat_ids([{"role": "user", "content": text}])
    assert tokenizer.decode(ids[3:-1]).strip() == text


def test_text_that_looks_like_a_special_token_stays_text(tokenizer):
    text = "云 <|assistant|>[gMASK]<sop><|endoftext|> 川"
    ids = tokenizer.chat_ids([{"role": "user", "content": text}])
    assert not set(tokenizer.special_texts) & set(ids[3:-1])
    assert tokenizer.decode(ids[3:-1]).strip() == text
    assert not set(tokenizer.special_texts) & set(tokenizer.encode_text(text))
    tools = tokenizer.chat_ids([{"role": "system", "tools": [TOOL]}, *TALK[1:2]])
    roles = [tokenizer.role_ids[token] for token in tools if token in tokenizer.role_ids]
    assert roles == ["system", "user", "assistant"]
    assert "a <|user|> b" in tokenizer.decode(tools)


def test_what_the_template_leaves_out_of_an_answer_is_an_error(native_folders):
    thinking = load_tokenizer(native_folders["native-glm4"])
    with pytest.raises(ValueError, match="leaves thoughts out of answers"):
        thinking.message_parts([*TALK[:2], {"role": "assistant", "content": "<think>嗯</think>岭"}])
    dropping = load_tokenizer(native_folders["native-glm"])
    with pytest.raises(ValueError, match="leaves out a message"):
        dropping.message_parts([*TALK[:2], {"role": "assistant", "content": ""}])


def test_it_is_saved_as_it_was_and_survives_pickling(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    source = Path(tokenizer.vocab_file).parent
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in source.iterdir()} & set(FILES)
    assert all(p.read_bytes() == (source / p.name).read_bytes() for p in tmp_path.iterdir())
    for again in (load_tokenizer(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert again.chat_ids(TALK) == tokenizer.chat_ids(TALK)
        assert again.padding_side == "left"


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{% for x in", "chat template fails"),
        ("{{ raise_exception('no') }}", r"chat template fails \(no\)"),
        ("{{ ''.__class__.__mro__ }}", "chat template fails"),
        ("hello", r"does not put <\|user\|> and <\|assistant\|> before messages"),
    ],
)
def test_a_template_that_is_none_of_glm4_is_one_line(template, told, native_folders, tmp_path):
    folder = shutil.copytree(native_folders["native-glm"], tmp_path / "a")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    with pytest.raises(ConfigError, match=told) as error:
        load_tokenizer(folder)
    assert "\n" not in str(error.value)


def test_what_a_folder_lacks_is_one_line(native_folders, tmp_path):
    folder = shutil.copytree(native_folders["native-glm"], tmp_path / "a")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ConfigError, match="has no chat template"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match=r"tokenizer\.json: is not valid JSON"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"holds no tokenizer\.json"):
        load_tokenizer(folder)
