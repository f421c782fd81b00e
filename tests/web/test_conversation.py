"""A conversation with several models at once."""

import json
from itertools import pairwise

import pytest
from folders import QUESTION

import glmft
from glmft.errors import ConfigError
from glmft.settings.answers import SamplingSettings
from glmft.web.conversation import Answer, Conversation, Manner, Turn, answered, read_tools, tokens_of

GREEDY = Manner(SamplingSettings(max_new_tokens=24))


def done(question: str, text: str) -> Answer:
    exchange = [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
    return Answer(text, exchange, reason="stop")


def ask(models, name, talk, manner=GREEDY) -> list[str]:
    """The texts of an answer to the last turn, as they came."""
    return [answer.text for answer in answered(models, name, talk, len(talk.turns) - 1, manner)]


def test_a_model_is_told_its_own_answers_and_none_of_another_s():
    talk = Conversation(
        [Turn("一", {"a": done("一", "甲"), "b": done("一", "乙")}), Turn("二", {"a": done("二", "丙")})]
    )
    talk.ask("三")
    assert [message["content"] for message in talk.rounds("a", 2)] == ["一", "甲", "二", "丙"]
    assert [message["content"] for message in talk.rounds("b", 2)] == ["一", "乙"]


def test_failed_answers_and_their_questions_are_left_out():
    talk = Conversation([Turn("一", {"a": Answer(problem="out of memory")}), Turn("二")])
    assert talk.rounds("a", 1) == []
    assert talk.turns_of("a") == [0]


def test_a_changed_question_loses_what_came_after_it():
    talk = Conversation([Turn("一", {"a": done("一", "甲")}), Turn("二", {"a": done("二", "乙")}), Turn("三")])
    talk.change(1, "新")
    assert [(turn.text, turn.answers) for turn in talk.turns[1:]] == [("新", {})]


def test_answers_come_word_by_word_and_end_as_predict_has_them(models):
    for name in models.names:
        talk = Conversation([Turn(QUESTION)])
        texts = ask(models, name, talk)
        with models.at_work(name) as (model, tokenizer):
            assert texts[-1] == glmft.answer(model, tokenizer, [QUESTION], max_new_tokens=24)[0]
        assert all(later.startswith(text) for text, later in pairwise(texts))
        assert len(set(texts)) > 2
        answer = talk.turns[0].answers[name]
        assert [message["content"] for message in answer.exchange] == [QUESTION, texts[-1]]
        assert answer.reason in ("stop", "length")


def test_an_answer_belongs_to_the_conversation_before_it(models):
    name = models.names[0]
    talk = Conversation([Turn(QUESTION)])
    ask(models, name, talk)
    first = talk.turns[0].answers[name]
    talk.ask("云川")
    ask(models, name, talk)
    tokenizer = models[name].tokenizer
    assert talk.turns[1].answers[name].prompt == tokenizer.chat_ids(
        [*first.exchange, {"role": "user", "content": "云川"}]
    )


def test_a_drawn_answer_is_another_one_when_it_is_asked_for_again(models):
    name, talk = models.names[1], Conversation([Turn(QUESTION)])
    drawn = Manner(SamplingSettings(max_new_tokens=16, do_sample=True, temperature=3.0, top_p=1.0))
    first, again = ask(models, name, talk, drawn)[-1], ask(models, name, talk, drawn)[-1]
    assert first == again
    talk.turns[0].tries += 1
    assert ask(models, name, talk, drawn)[-1] != first


def test_an_answer_that_is_left_is_stopped_and_kept(models):
    name, talk = models.names[1], Conversation([Turn(QUESTION)])
    growing = answered(models, name, talk, 0, GREEDY)
    first = next(growing).text
    growing.close()
    answer = talk.turns[0].answers[name]
    assert answer.text.startswith(first)
    assert answer.reason == "cancelled" or len(answer.ids) == 24
    assert answer.exchange[1]["content"] == answer.text


def test_the_tokens_of_an_answer_are_prompt_and_answer_with_the_special_ones_marked(models):
    name, talk = models.names[0], Conversation([Turn(QUESTION)])
    ask(models, name, talk)
    answer = talk.turns[0].answers[name]
    tokens = tokens_of(answer, models[name].tokenizer)
    assert [token.piece for token in tokens if token.is_special] == ["[gMASK]", "sop", "</s>"]
    written = "".join(token.piece for token in tokens if token.is_learned and not token.is_special)
    assert written.strip("▁ ") == answer.text


def test_what_a_model_cannot_be_asked_is_a_sentence(models):
    with pytest.raises(ConfigError, match="tokens"):
        ask(models, models.names[0], Conversation([Turn("云" * 9000)]))
    with pytest.raises(ConfigError, match="system"):
        ask(models, models.names[0], Conversation([Turn("云")]), Manner(SamplingSettings(), system="短答"))


def test_tools_are_told_to_those_models_alone_that_know_tools(models):
    talk = Conversation([Turn(QUESTION)])
    assert ask(models, models.names[0], talk, Manner(GREEDY.sampling, tools=[{"name": "weather"}]))


def test_tools_are_a_list_of_functions():
    function = {"name": "weather", "description": "", "parameters": {}}
    typed = {"type": "function", "function": function}
    assert read_tools("  ") == []
    for text in (function, [function], [typed], {"tools": [typed]}):
        assert read_tools(json.dumps(text)) == [typed]
    for bad in ("[", "[1]", '[{"parameters": {}}]', '"text"'):
        with pytest.raises(ConfigError, match="tools"):
            read_tools(bad)


def test_a_conversation_has_at_most_so_many_turns(monkeypatch):
    monkeypatch.setattr("glmft.web.conversation.MOST_TURNS", 1)
    talk = Conversation()
    talk.ask("一")
    with pytest.raises(ConfigError, match="begin a new one"):
        talk.ask("二")
