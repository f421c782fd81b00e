"""Answers that call tools, in the forms in which ChatGLM3 and GLM-4 write them."""

from types import SimpleNamespace

import pytest

from glmft.inference.tool_calls import answer_messages, may_be_call, shown_calls, tool_names, tools_as_trained

BARE = {"name": "天气", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
TYPED = {"type": "function", "function": BARE}
WRITTEN = {"glm3": "天气\n ```python\ntool_call(city='云', days=[1])\n```", "glm4": '天气\n{"city": "云", "days": [1]}'}
ASSISTANT = 1


class Letters:
    """Ids are characters, and one that stands for the assistant's role."""

    has_roles, stop_ids = True, [0]

    def __init__(self, family):
        self.family = family

    def get_command(self, name):
        return {"<|assistant|>": ASSISTANT}[name]

    def decode(self, ids, skip_special_tokens):
        return "".join(map(chr, ids))


def reply(family, text, parts=()):
    ids = [*map(ord, text)]
    for part in parts:
        ids += [ASSISTANT, *map(ord, part)]
    tokenizer = Letters(family)
    shown = "".join([text, *parts]).strip()
    member = SimpleNamespace(tokenizer=tokenizer)
    return SimpleNamespace(member=member, ids=[*ids, 0], text=shown, finish_reason="stop")


@pytest.mark.parametrize("family", WRITTEN)
def test_a_call_is_its_name_and_its_arguments(family):
    (message,) = answer_messages(reply(family, WRITTEN[family]), {"天气"})
    assert message["metadata"] == "天气"
    assert message["arguments"] == {"city": "云", "days": [1]}
    assert shown_calls([message]) == ["天气(city='云', days=[1])"]


@pytest.mark.parametrize("family", WRITTEN)
def test_text_may_come_before_a_call(family):
    first, call = answer_messages(reply(family, "\n 我看看", [WRITTEN[family]]), {"天气"})
    assert first == {"role": "assistant", "content": "我看看"}
    assert call["arguments"]["city"] == "云"


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("glm3", "\n 你好"),
        ("glm3", "\n天气\n```python\ntool_call(city='云')\n```"),  # no metadata: the name stands in the text
        ("glm3", "天气\n```python\ntool_call(city=open('x'))\n```"),
        ("glm3", "天气"),
        ("glm4", "天气\n{"),
        ("glm4", "天气\n[1]"),
        ("glm4", "新闻\n{}"),
        ("glm4", '云川\n{"city": "云"}'),
    ],
)
def test_what_is_no_call_that_can_be_read_is_text(family, text):
    given = reply(family, text)
    assert answer_messages(given, {"天气"}) == [{"role": "assistant", "content": given.text}]


def test_without_tools_there_are_no_calls():
    given = reply("glm4", WRITTEN["glm4"])
    assert answer_messages(given, set()) == [{"role": "assistant", "content": given.text}]


def test_what_may_become_a_call_is_told_from_its_beginning():
    assert [may_be_call(text, {"天气"}) for text in ("", "天", "天气", "天气\n{")] == [True] * 4
    assert [may_be_call(text, {"天气"}) for text in ("\n", "云", "天气好", "天气好\n")] == [False] * 4


def test_tools_are_told_as_a_family_was_trained():
    for given in ([BARE], [TYPED]):
        assert tools_as_trained(given, "glm3") == [BARE]
        assert tools_as_trained(given, "glm4") == [TYPED]
        assert tool_names([{"role": "system", "tools": given}]) == {"天气"}
    with pytest.raises(ValueError, match="glm2 knows no tools"):
        tools_as_trained([BARE], "glm2")
    with pytest.raises(ValueError, match="not a list"):
        tools_as_trained({"name": "天气"}, "glm3")
