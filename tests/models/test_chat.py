"""`chat` and `stream_chat`, as scripts for the official models call them."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import glmft
from glmft.family import FAMILIES
from glmft.models.chat import full_width, messages_of

ROUNDS = [("甲", "一")]
MESSAGES = [{"role": "user", "content": "甲"}, {"role": "assistant", "metadata": "", "content": "一"}]
TOOLS = {"role": "system", "content": "s", "tools": [{"name": "f"}]}
ASKED = {"do_sample": False, "max_new_tokens": 6}


@pytest.fixture(params=FAMILIES)
def loaded(request, official_folders):
    folder = official_folders[request.param]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def history_of(tokenizer):
    return MESSAGES if tokenizer.has_roles else ROUNDS


def test_an_answer_is_that_of_the_same_conversation(loaded):
    model, tokenizer = loaded
    history = history_of(tokenizer)
    answer, after = model.chat(tokenizer, "云川", history=history, **ASKED)
    expected = glmft.answer(model, tokenizer, [[*MESSAGES, {"role": "user", "content": "云川"}]], max_new_tokens=6)[0]
    assert answer == (full_width(expected) if tokenizer.family == "glm" else expected)
    assert after[: len(history)] == history
    assert len(history) == len(history_of(tokenizer))  # the caller's list is left alone


def test_a_stream_ends_with_the_answer_of_chat(loaded):
    model, tokenizer = loaded
    answer, after = model.chat(tokenizer, "云川", **ASKED)
    seen = list(model.stream_chat(tokenizer, "云川", **ASKED))
    assert seen[-1] == (answer, after)


def test_a_stream_goes_on_from_what_the_last_one_computed(loaded):
    model, tokenizer = loaded
    *_, (_, history, cache) = model.stream_chat(tokenizer, "云川", return_past_key_values=True, **ASKED)
    plain = list(model.stream_chat(tokenizer, "岭溪", history=history, **ASKED))
    assert list(model.stream_chat(tokenizer, "岭溪", history=history, past_key_values=cache, **ASKED)) == plain


def test_what_generate_refuses_is_raised_in_the_stream(loaded):
    model, tokenizer = loaded
    with pytest.raises(ValueError, match="nonsense"):
        list(model.stream_chat(tokenizer, "云川", nonsense=1))


def test_a_stream_may_be_left(loaded):
    model, tokenizer = loaded
    stream = model.stream_chat(tokenizer, "云川", do_sample=False, max_new_tokens=10_000, eos_token_id=-1)
    next(stream)
    stream.close()  # returns when generation has stopped


@pytest.mark.parametrize(
    ("output", "as_json", "answer"),
    [
        ("\n 你好", False, "你好"),
        ("f\n ```python\ntool_call(city='北京', days=[1, 2])\n```", False, {"city": "北京", "days": [1, 2]}),
        ('f\n{"city": "北京"}', True, {"city": "北京"}),
    ],
)
def test_a_call_of_a_tool_is_read(output, as_json, answer):
    content, after = messages_of(output, [TOOLS], as_json)
    assert content == (answer if isinstance(answer, str) else {"name": "f", "parameters": answer})
    assert after[-1]["role"] == "assistant"


@pytest.mark.parametrize("code", ["__import__('os').system('true')", "tool_call(a=open('x'))", "tool_call(", "1 +"])
def test_a_call_is_never_executed(code):
    content, _ = messages_of(f"f\n```python\n{code}\n```", [TOOLS], False)
    assert content == {"name": "f", "content": f"```python\n{code}\n```"}
