"""Conversations to rows: which answers are learned, what has a label, what a cut keeps."""

import random

import pytest
from encoding import encoded

from glmft.data.encode import EncodingReport, Lengths, Rules, encode_prompt, encode_record, positions_after_cut, spans
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


def test_the_raw_template_is_the_text_and_the_two_special_tokens_where_the_family_has_them(tokenizer):
    text, answer = tokenizer.encode_text("云川"), tokenizer.encode_text("岭")
    behind = tokenizer.family == "glm"
    prompt = [*text, *tokenizer.prefix_ids] if behind else [*tokenizer.prefix_ids, *text]
    assert prompt_ids(tokenizer, "云川", "raw") == prompt
    [row], _ = encode(talk("云川", "岭"), tokenizer, template="raw")
    assert row.ids == [*prompt, *answer, tokenizer.eos_token_id]
    opening = prompt[-1:] if behind else []  # ChatGLM-6B learns to open its answer
    assert learned(row) == [*opening, *answer, row.ids[-1]]


def test_a_row_that_just_fits_is_whole_and_one_token_less_costs_the_oldest_turn(tokenizer):
    """Also where the prompt alone would fit: an answer is not cut to keep an old turn."""
    record = talk("甲", "一", "乙", "云川岭溪" * 5)
    [whole], _ = encode(record, tokenizer, loss_on="last")
    [row], report = encode(record, tokenizer, Lengths(len(whole.ids), 4), loss_on="last")
    assert row == whole
    assert (report.cut_turns, report.cut_prompt, report.cut_answer) == (0, 0, 0)
    [row], report = encode(record, tokenizer, Lengths(len(whole.ids) - 1, 100), loss_on="last")
    assert row.ids == encode(talk("乙", "云川岭溪" * 5), tokenizer)[0][0].ids
    assert (report.cut_turns, report.cut_prompt, report.cut_answer) == (1, 0, 0)


def test_the_longest_question_is_that_of_a_single_one_whatever_stands_before_it(glm3):
    """A dialogue's prompt may fill the row, also one of which a single turn is left; a question may not."""
    system = {"role": "system", "content": "你是助手"}
    for messages, cut in (
        (talk("云川岭溪" * 9, "一").messages, 1),
        ((system, *talk("云川岭溪" * 9, "一").messages), 1),
        (talk("甲", "二", "云川岭溪" * 9, "一").messages, 0),
        (talk("湖岛" * 200, "二", "云川岭溪" * 9, "一").messages, 0),
    ):
        [row], report = encode(Record(tuple(messages), "here"), glm3, Lengths(200, 20), loss_on="last")
        assert report.cut_prompt == cut
        assert (len(row.ids) <= 20 + len(answer_ids(glm3, "一")) + 1) == bool(cut)


def test_an_answer_that_just_fits_is_whole(tokenizer):
    record = talk("甲", "云川岭溪")
    [whole], _ = encode(record, tokenizer)
    for shorter in (0, 1):
        lengths = Lengths(len(whole.ids) - shorter, 100, is_skip=True)
        rows, report = encode(record, tokenizer, lengths)
        assert (rows, report.dropped) == ([] if shorter else [whole], shorter)
    room = len(answer_ids(tokenizer, "云川岭溪"))
    assert encode(record, tokenizer, Lengths(400, 100, max_tgt_len=room))[1].cut_answer == 0
    assert encode(record, tokenizer, Lengths(400, 100, max_tgt_len=room - 1))[1].cut_answer == 1


def test_when_predicting_a_prompt_that_just_fits_is_whole(tokenizer):
    for record in (talk("云川岭溪", "一"), talk("甲", "一", "乙", "二")):
        whole = prompt_ids(tokenizer, record.question)
        assert encode_prompt(tokenizer, record.question, len(whole)) == (whole, False)
        shorter, cut = encode_prompt(tokenizer, record.question, len(whole) - 1)
        assert len(shorter) < len(whole)
        assert cut


@pytest.mark.parametrize("seed", range(20))
def test_labels_go_where_their_tokens_go_when_the_middle_is_cut_out(seed):
    rng = random.Random(seed)
    before = rng.randint(2, 12)
    after, labelled = rng.randint(1, before), [rng.random() < 0.5 for _ in range(before)]
    cue = rng.randint(0, after)
    expected = labelled[: after - cue] + labelled[before - cue :]
    moved = positions_after_cut([i for i in range(before) if labelled[i]], before, after, cue)
    assert sorted(moved) == [i for i in range(after) if expected[i]]


def test_neighbouring_positions_are_one_span_and_others_are_not_joined():
    assert spans([7, 1, 2, 3, 5]) == ((1, 4), (5, 6), (7, 8))
    assert spans([]) == ()


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


@pytest.mark.parametrize("family", ["glm4", "native-glm"])
def test_combined_is_the_last_answer_without_its_first_token_and_all_that_follows(family, all_folders):
    tokenizer = load_tokenizer(all_folders[family])
    talked = talk("甲", "一", "乙", "二三", "丙")
    [row], _ = encode(talked, tokenizer, loss_on="combined")
    asked = tokenizer.message_parts(talked.messages)[-1][1]
    assert learned(row) == [*answer_ids(tokenizer, "二三")[1:], *asked, tokenizer.end_id]
    assert encode(talk("甲"), tokenizer, loss_on="combined")[1].nothing_learned == 1


@pytest.mark.parametrize("family", ["glm4", "native-glm", "native-glm4"])
def test_a_glm4_dialogue_learns_every_answer_and_the_role_that_follows_it(family, all_folders):
    tokenizer = load_tokenizer(all_folders[family])
    user, observation = (tokenizer.get_command(f"<|{role}|>") for role in ("user", "observation"))
    call = {"role": "assistant", "metadata": "查", "content": "{}"}
    messages = (*talk("甲", "一", "乙").messages, call, {"role": "observation", "content": "3", "loss": None})
    [row], _ = encode(Record((*messages, {"role": "assistant", "content": "二"}), "here"), tokenizer)
    called = tokenizer.body_ids(call)
    first, last = (answer_ids(tokenizer, text) for text in "一二")
    assert learned(row) == [*first, user, *called, observation, *last, user]
    assert row.ids[-1] == tokenizer.end_id == user
