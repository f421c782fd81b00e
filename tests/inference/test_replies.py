"""Answers token by token: the same as those of `answer`, alone and side by side."""

import threading
from itertools import pairwise

import pytest
import torch
from adapters import TUNERS, make_adapter
from predicted import predicted

import glmft
from glmft.errors import ConfigError
from glmft.inference.model_set import open_models
from glmft.inference.replies import GrowingText, PromptTooLong, can_be_joined, make, new_reply, settled, stream
from glmft.settings.answers import SamplingSettings
from glmft.settings.config import ModelSettings

QUESTIONS = ["云川", "请复述：云川岭溪泉峰湖岛", "一"]


@pytest.fixture(scope="module", params=["glm", "glm3"])
def models(request, official_folders):
    return open_models([official_folders[request.param]], ModelSettings(dtype="fp32", device="cpu"))


def reply_to(models, question, seed=None, stops=(), **settings):
    (member,) = models.members.values()
    settings = SamplingSettings(**{"max_new_tokens": 12, **settings})
    return new_reply(member, [{"role": "user", "content": question}], settings, seed, stops)


def made(models, *replies):
    make(models, replies)
    return [(reply.text, reply.ids, reply.finish_reason) for reply in replies]


def test_a_stream_grows_into_the_answer(models):
    (member,) = models.members.values()
    expected = predicted(member.base.model, member.tokenizer, QUESTIONS, max_new_tokens=12)
    for question, answer in zip(QUESTIONS, expected, strict=True):
        texts = list(stream(models, reply_to(models, question)))
        assert (texts or [""])[-1] == answer
        assert all(later.startswith(earlier) for earlier, later in pairwise(texts))


@pytest.mark.parametrize("sampled", [False, True])
def test_answers_made_together_are_those_made_alone(sampled, models):
    def replies():
        settings = {"do_sample": True, "temperature": 1.5} if sampled else {}
        limits = enumerate((3, 9, 12))
        return [reply_to(models, QUESTIONS[i], f"seed {i}", max_new_tokens=n, **settings) for i, n in limits]

    together, alone = replies(), replies()
    assert can_be_joined(*together[:2])
    assert made(models, *together) == [made(models, reply)[0] for reply in alone]


def test_what_is_drawn_hangs_on_the_seed(models):
    drawn = [
        made(models, reply_to(models, "云", seed, do_sample=True, temperature=9.0))[0][1] for seed in ("a", "a", "b")
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_answers_that_are_drawn_otherwise_or_penalised_are_not_joined(models):
    plain = reply_to(models, "云")
    assert can_be_joined(plain, reply_to(models, "川", temperature=0.5))  # without effect: nothing is drawn
    assert not can_be_joined(plain, reply_to(models, "川", do_sample=True))
    penalised = [reply_to(models, text, repetition_penalty=1.2) for text in "云川"]
    assert not can_be_joined(*penalised)


def test_a_stop_text_ends_an_answer_and_is_no_part_of_it(models):
    whole = reply_to(models, QUESTIONS[1], max_new_tokens=40)
    make(models, [whole])
    stop = whole.text[3:5]
    reply = reply_to(models, QUESTIONS[1], stops=[stop, "never there"], max_new_tokens=40)
    texts = list(stream(models, reply))
    assert reply.text == whole.text[: whole.text.index(stop)].strip()
    assert reply.finish_reason == "stop"
    assert not any(stop in text for text in texts)
    assert len(reply.ids) < len(whole.ids)


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        (" 云川 ", (), "云川"),
        ("云\ufffd\ufffd", (), "云"),
        ("云" + 5 * "\ufffd", (), "云\ufffd\ufffd"),
        ("云END", ("END.",), "云"),
        ("云 EN", ("END", "N"), "云"),
        ("云EX", ("END",), "云EX"),
    ],
)
def test_a_text_is_shown_as_far_as_it_will_stay(text, stops, expected):
    assert settled(text, stops) == expected


def test_a_long_text_is_decoded_piece_by_piece_to_the_same(models):
    (member,) = models.members.values()
    ids, growing = [], []
    text = GrowingText(member.tokenizer, ids)
    for token in member.tokenizer.encode_text("云川 岭溪泉，峰 hello  world 😀\n湖岛。" * 12):
        ids.append(token)
        growing.append(text.now())
        assert growing[-1] == member.tokenizer.decode(ids, skip_special_tokens=True)
    assert text.start > 64


def test_an_answer_that_nobody_reads_any_more_ends(models):
    reply = reply_to(models, "云", max_new_tokens=10_000, do_sample=True, temperature=9.0)
    before = threading.active_count()
    texts = stream(models, reply)
    next(texts)
    texts.close()
    assert reply.finish_reason == "cancelled"
    assert threading.active_count() == before
    late = reply_to(models, "云")
    late.cancel()
    assert made(models, late) == [("", [], "cancelled")]


def test_a_conversation_without_room_for_an_answer_is_refused(models):
    with pytest.raises(PromptTooLong, match=r"the conversation has \d+ tokens; \w+ takes \d+ with the answer"):
        reply_to(models, "云" * 20_000)


def test_a_role_that_the_family_lacks_is_refused(models):
    (member,) = models.members.values()
    with pytest.raises(ConfigError, match="role"):
        new_reply(member, [{"role": "root", "content": "云"}], SamplingSettings())


def test_an_error_of_generation_reaches_every_reader(models, monkeypatch):
    (member,) = models.members.values()
    monkeypatch.setattr(type(member.base.model), "generate", lambda *_, **__: 1 / 0)
    replies = [reply_to(models, text) for text in "云川"]
    make(models, replies)
    assert [type(reply.error) for reply in replies] == [ZeroDivisionError] * 2
    with pytest.raises(ZeroDivisionError):
        list(stream(models, reply_to(models, "云")))


def test_a_batch_that_memory_does_not_hold_is_answered_one_by_one(models, monkeypatch):
    (member,) = models.members.values()
    generate = type(member.base.model).generate

    def small(self, **settings):
        if len(settings["input_ids"]) > 1:
            raise torch.OutOfMemoryError("no memory")
        return generate(self, **settings)

    expected = made(models, *[reply_to(models, text) for text in "云川"])
    monkeypatch.setattr(type(member.base.model), "generate", small)
    assert made(models, *[reply_to(models, text) for text in "云川"]) == expected


def test_a_prompt_is_as_the_model_was_trained(official_folders, tmp_path):
    base = official_folders["glm3"]
    plain = make_adapter(tmp_path / "plain", base, TUNERS["other-lora"], template="reference", source_prefix="问：")
    models = open_models([base, plain], ModelSettings(dtype="fp32", device="cpu"))
    model, tokenizer = glmft.load(plain, dtype="fp32", device="cpu")
    expected = predicted(model, tokenizer, ["问：云", "问：川"], "reference", max_new_tokens=12)
    for text, answer in zip(["云", "问：川"], expected, strict=True):
        reply = new_reply(models["plain"], [{"role": "user", "content": text}], SamplingSettings(max_new_tokens=12))
        make(models, [reply])
        assert reply.text == answer
    assert not models["plain"].takes_history
    assert models[base.name].takes_history
