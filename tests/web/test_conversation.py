"""A conversation with several models at once."""

import itertools

import pytest

import glmft
from glmft.errors import ConfigError
from glmft.settings.answers import SamplingSettings
from glmft.web.conversation import Answer, Conversation, Turn, answered, read_tools, tokens_of

QUESTION = "你现在是一个信息抽取模型，请抽取文本中的三元组，内部用_连接，之间用\\n分割。文本：豹虹是敏勇的一个零件。"
GREEDY = SamplingSettings(max_new_tokens=24)


def done(text: str) -> Answer:
    return Answer(text, [{"role": "assistant", "content": text}], "stop")


def test_a_model_is_told_its_own_answers_and_none_of_another_s():
    talk = Conversation([Turn("user", "一", {"a": done("甲"), "b": done("乙")}), Turn("user", "二", {"a": done("丙")})])
    talk.ask("user", "三")
    assert [m["content"] for m in talk.messages("a", 2, "", [])] == ["一", "甲", "二", "丙", "三"]
    assert [m["content"] for m in talk.messages("b", 2, "", [])] == ["一", "乙", "三"]


def test_failed_answers_and_their_questions_are_left_out():
    talk = Conversation([Turn("user", "一", {"a": Answer(problem="out of memory")}), Turn("user", "二")])
    assert talk.messages("a", 1, "", []) == [{"role": "user", "content": "二"}]


def test_system_text_and_tools_stand_first():
    talk = Conversation([Turn("user", "一")])
    assert talk.messages("a", 0, "短答", [])[0] == {"role": "system", "content": "短答"}
    assert talk.messages("a", 0, "", [{"name": "x"}])[0] == {"role": "system", "tools": [{"name": "x"}]}
    assert talk.messages("a", 0, "短答", [{"name": "x"}])[0].keys() == {"role", "tools", "content"}


def test_a_changed_question_loses_what_came_after_it():
    talk = Conversation(
        [Turn("user", "一", {"a": done("甲")}), Turn("observation", "二", {"a": done("乙")}), Turn("user", "三")]
    )
    talk.change(1, "新")
    assert [(turn.role, turn.text, turn.answers) for turn in talk.turns[1:]] == [("observation", "新", {})]


def test_answers_come_word_by_word_and_end_as_predict_has_them(models):
    for name in models.names:
        turn = Turn("user", QUESTION)
        texts = [
            answer.text for answer in answered(models, name, turn, [{"role": "user", "content": QUESTION}], GREEDY)
        ]
        with models.at_work(name) as (model, tokenizer):
            assert texts[-1] == glmft.answer(model, tokenizer, [QUESTION], max_new_tokens=24)[0]
        assert all(later.startswith(text) for text, later in itertools.pairwise(texts))
        assert len(set(texts)) > 2
        assert turn.answers[name].messages == [{"role": "assistant", "content": texts[-1]}]
        assert turn.answers[name].reason in ("stop", "length")


def test_an_answer_that_is_left_is_stopped_and_kept(models):
    turn = Turn("user", QUESTION)
    growing = answered(models, models.names[1], turn, [{"role": "user", "content": QUESTION}], GREEDY)
    first = next(growing).text
    growing.close()
    answer = turn.answers[models.names[1]]
    assert answer.text.startswith(first)
    assert answer.reason == "cancelled" or len(answer.ids) == 24


def test_the_tokens_of_an_answer_are_prompt_and_answer_with_the_special_ones_marked(models):
    name, turn = models.names[0], Turn("user", QUESTION)
    *_, answer = answered(models, name, turn, [{"role": "user", "content": QUESTION}], GREEDY)
    tokens = tokens_of(answer, models[name].tokenizer)
    assert [t.piece for t in tokens if t.is_special] == ["[gMASK]", "sop", "</s>"]
    assert "".join(t.piece for t in tokens if t.is_learned and not t.is_special).strip("▁ ") == answer.text


def test_a_conversation_that_leaves_no_room_is_a_sentence(models):
    with pytest.raises(ConfigError, match="tokens"):
        list(answered(models, models.names[0], Turn("user", ""), [{"role": "user", "content": "云" * 9000}], GREEDY))


def test_tools_are_a_list_of_functions():
    function = {"name": "weather", "description": "", "parameters": {}}
    assert read_tools("  ") == []
    assert read_tools('{"name": "weather"}') == [{"name": "weather"}]
    assert read_tools(f'[{{"type": "function", "function": {function}}}]'.replace("'", '"'))[0]["function"] == function
    for bad in ("[", "[1]", '[{"parameters": {}}]', '"text"', '[{"name": 1}]'):
        with pytest.raises(ConfigError, match="tools"):
            read_tools(bad)


def test_a_conversation_has_at_most_so_many_turns(monkeypatch):
    monkeypatch.setattr("glmft.web.conversation.MOST_TURNS", 1)
    talk = Conversation()
    talk.ask("user", "一")
    with pytest.raises(ConfigError, match="begin a new one"):
        talk.ask("user", "二")
