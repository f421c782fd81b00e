"""Conversations to rows: which answers are learned, what has a label, what a cut keeps."""

import random

import pytest
from encoding import encoded

from glmft.data.encode import EncodingReport, Lengths, Rules, encode_prompt, encode_record
from glmft.data.formats import Record
from glmft.data.templates import answer_ids, prompt_ids
from glmft.errors import DataError
from glmft.family import FAMILIES
from glmft.tokenizers.loading import load_tokenizer

LONG = Lengths(4000, 4000)


@pytest.fixture(params=[*FAMILIES, "native-glm", "native-glm4"])
def tokenizer(request, all_folders):
    return load_tokenizer(all_folders[request.param])


@pytest.fixture
def glm3(official_folders):
    return load_tokenizer(official_folders["glm3"])


def talk(*texts: str, loss: dict[int, bool] | None = None) -> Record:
    """User and assistant in turn."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    for i, flag in (loss or {}).items():
        messages[i]["loss"] = flag
    return Record(tuple(messages), "here")


def encode(record, tokenizer, lengths=LONG, loss_on="flagged", template="default"):
    report = EncodingReport()
    return encode_record(record, tokenizer, Rules(lengths, template, loss_on), report), report


def learned(example) -> list[int]:
    return [example.ids[i] for first, end in example.spans for i in range(first, end)]


@pytest.mark.parametrize("template", ["default", "raw", "reference"])
@pytest.mark.parametrize("seed", range(5))
def test_what_is_seen_when_predicting_begins_a_row_and_all_that_must_follow_has_a_label(seed, template, tokenizer):
    if template == "reference" and tokenizer.family == "glm4":
        pytest.skip("the reference project knows no GLM-4")
    rng = random.Random(seed)
    texts = ["".join(rng.choices("云川岭溪 \n\t<|user|>[MASK]</s>。", k=rng.randint(1, 30))) for _ in range(6)]
    record = talk(*(texts if template == "default" else texts[:2]))
    examples, _ = encode(record, tokenizer, template=template)
    prompt, cut = encode_prompt(tokenizer, record.question, 4000, template)
    row = examples[-1]
    assert not cut
    assert row.ids[: len(prompt)] == prompt
    assert row.spans[-1][1] == len(row.ids)
    assert row.spans[-1][0] <= len(prompt)
    assert row.ids[len(prompt) : -1] == answer_ids(tokenizer, record.answer, template)
    assert row.ids[-1] == (tokenizer.eos_token_id if template == "raw" else tokenizer.end_id)
    assert row.ids[-1] in tokenizer.stop_ids


@pytest.mark.parametrize("family", ["glm", "glm2"])
def test_a_dialogue_of_the_first_two_generations_is_a_row_for_each_answer(family, official_folders):
    tokenizer = load_tokenizer(official_folders[family])
    record = talk("甲", "一", "乙", "二", loss={1: False})
    by_setting = {on: encode(record, tokenizer, loss_on=on)[0] for on in ("flagged", "all", "last")}
    assert [len(examples) for examples in by_setting.values()] == [1, 2, 1]
    assert by_setting["flagged"] == by_setting["last"] == by_setting["all"][1:]
    first, second = by_setting["all"]
    assert first.ids == [*prompt_ids(tokenizer, record.messages[:1]), *answer_ids(tokenizer, "一"), first.ids[-1]]
    assert second.ids[: len(prompt_ids(tokenizer, record.messages[:3]))] == prompt_ids(tokenizer, record.messages[:3])


def test_a_chatglm3_dialogue_is_one_row_with_every_answer_and_what_ends_it(glm3):
    record = talk("甲", "一", "乙", "二")
    user = glm3.get_command("<|user|>")
    answers = [answer_ids(glm3, text) for text in "一二"]
    [row], _ = encode(record, glm3)
    assert learned(row) == [*answers[0], user, *answers[1], glm3.eos_token_id]
    [row], _ = encode(record, glm3, loss_on="last")
    assert learned(row) == [*answers[1], glm3.eos_token_id]
    [row], _ = encode(talk("甲", "一", "乙", "二", loss={3: False}), glm3)
    assert learned(row) == [*answers[0], user]


def test_a_tool_chain_makes_the_model_open_its_own_turn(glm3):
    call = {"role": "assistant", "metadata": "查", "content": "f()"}
    messages = ({"role": "user", "content": "热吗"}, {"role": "assistant", "content": "我查"}, call)
    done = ({"role": "observation", "content": "3", "loss": False}, {"role": "assistant", "content": "不热"})
    [row], _ = encode(Record((*messages, *done), "here"), glm3)
    opens, observation = glm3.get_command("<|assistant|>"), glm3.get_command("<|observation|>")
    called = glm3.encode_text("查\n") + glm3.encode_text("f()")
    assert learned(row) == [
        *answer_ids(glm3, "我查"),
        opens,
        *called,
        observation,
        *answer_ids(glm3, "不热"),
        glm3.eos_token_id,
    ]


def test_long_dialogues_lose_their_oldest_turns_first(tokenizer):
    record = talk(*[f"{'云川' * 10}{i}" for i in range(7)], "短")
    [whole], _ = encode(record, tokenizer, loss_on="last")
    lengths = Lengths(len(whole.ids) - 10, 20)
    [row], report = encode(record, tokenizer, lengths, loss_on="last")
    assert len(row.ids) <= lengths.max_len
    assert (report.cut_turns, report.cut_prompt, report.cut_answer) == (1, 0, 0)
    assert row.ids == encode(Record(record.messages[2:], "here"), tokenizer, loss_on="last")[0][0].ids
    _, report = encode(record, tokenizer, Lengths(lengths.max_len, 20, is_skip=True), loss_on="last")
    assert report.dropped == 1


def test_a_system_message_survives_the_cut(glm3):
    system = {"role": "system", "content": "你是助手"}
    record = Record((system, *talk("云" * 60, "一", "乙", "二").messages), "here")
    [row], report = encode(record, glm3, Lengths(60, 40))
    head = [*glm3.prefix_ids, *glm3.message_ids(system)]
    assert report.cut_turns == 1
    assert row.ids[: len(head)] == head
    assert learned(row) == [*answer_ids(glm3, "二"), glm3.eos_token_id]


def test_when_predicting_a_long_history_is_cut_the_same_way(tokenizer):
    record = talk("云川" * 40, "一", "乙", "二")
    prompt, cut = encode_prompt(tokenizer, record.question, 60)
    assert cut
    assert prompt == prompt_ids(tokenizer, record.question[2:])


def test_an_answer_has_its_own_longest_length(tokenizer):
    [row], report = encode(talk("甲", "云川岭溪" * 20), tokenizer, Lengths(200, 100, max_tgt_len=6))
    assert report.cut_answer == 1
    assert row.ids[-7:-1] == answer_ids(tokenizer, "云川岭溪" * 20)[:6]


def test_records_without_anything_to_learn_are_counted(tokenizer):
    records = [talk("甲"), talk("乙", "二", loss={1: False}), talk("丙", "三")]
    examples, report = encoded(records, tokenizer, LONG)
    assert (len(examples), report.nothing_learned) == (1, 2)
    assert "2 left out with nothing to learn" in report.lines()[0]
    with pytest.raises(DataError, match="1 have nothing to learn"):
        encoded(records[:1], tokenizer, LONG)


@pytest.mark.parametrize("family", ["glm", "glm2"])
def test_what_a_family_cannot_express_names_the_record(family, official_folders):
    tokenizer = load_tokenizer(official_folders[family])
    record = Record(({"role": "system", "content": "s"}, *talk("甲", "一").messages), "data.json:7")
    with pytest.raises(DataError, match=r"data\.json:7: message 0 has role 'system'"):
        encoded([record], tokenizer, LONG)
