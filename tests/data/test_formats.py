import gzip
import json

import pytest

from glmft.data.formats import FORMATS, detect, read_records
from glmft.data.record import Options
from glmft.errors import DataError
from glmft.settings.config import DATA_FORMATS

GOOD = {"instruction": "抽取：", "input": "风扇不转。", "output": "风扇_部件故障_不转"}


def file(tmp_path, content: str | bytes, name: str = "data.json"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def line(**changes) -> str:
    return json.dumps({**GOOD, **changes}, ensure_ascii=False)


def one(tmp_path, value, **options):
    """The only record of a file with this value, as (role, content) pairs."""
    [record] = read_records(file(tmp_path, json.dumps(value)), Options(**options))[0]
    return [(m["role"], m.get("content")) for m in record.messages]


# ---------------------------------------------------------------------------------------------------- files


def test_lines_and_arrays_give_the_same_records(tmp_path):
    rows = [GOOD, {**GOOD, "input": ""}]
    by_line = read_records(file(tmp_path, "\n".join(json.dumps(row) for row in rows) + "\n\n"))[0]
    by_array = read_records(file(tmp_path, json.dumps(rows, indent=2)))[0]
    assert [r.messages for r in by_line] == [r.messages for r in by_array]
    assert by_line[1].place.endswith("data.json:2")
    assert by_array[1].place.endswith("data.json: record 2")


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("packed", [False, True])
def test_files_may_be_packed_and_have_a_byte_order_mark(bom, packed, tmp_path):
    content = bom + line().encode()
    path = file(tmp_path, gzip.compress(content) if packed else content, "data.jsonl.gz" if packed else "data.jsonl")
    assert read_records(path)[0][0].answer == GOOD["output"]


def test_several_files_are_read_one_after_the_other(tmp_path):
    files = [file(tmp_path, line(output=name), f"{name}.json") for name in "ab"]
    assert [record.answer for record in read_records(files)[0]] == ["a", "b"]


def test_unicode_line_separators_inside_a_record_do_not_end_it(tmp_path):
    assert "\u2028" in read_records(file(tmp_path, line(input="甲\u2028乙")))[0][0].question[0]["content"]


# ---------------------------------------------------------------------------------------------------- formats


def test_triples(tmp_path):
    assert one(tmp_path, GOOD) == [("user", "抽取：风扇不转。"), ("assistant", GOOD["output"])]
    assert one(tmp_path, GOOD, input_separator="\n")[0] == ("user", "抽取：\n风扇不转。")
    for value in ({"instruction": "你好", "output": ""}, {"instruction": "你好", "input": None, "output": ""}):
        assert one(tmp_path, value, input_separator="\n") == [("user", "你好"), ("assistant", "")]


def test_the_history_of_triples_is_not_learned(tmp_path):
    [record] = read_records(file(tmp_path, line(history=[["一", "二"]])))[0]
    assert [(m["role"], m["content"], m.get("loss")) for m in record.messages[:2]] == [
        ("user", "一", None),
        ("assistant", "二", False),
    ]


def test_pairs(tmp_path):
    assert one(tmp_path, {"content": "类型#上衣", "summary": "百搭"}) == [("user", "类型#上衣"), ("assistant", "百搭")]
    row = {"q": "问", "a": "答", "h": [["前", "后"]]}
    columns = {"prompt_column": "q", "response_column": "a", "history_column": "h", "source_prefix": "请："}
    assert [text for _, text in one(tmp_path, row, **columns)] == ["前", "后", "请：问", "答"]


def test_one_named_column_makes_pairs_with_the_default_of_the_other(tmp_path):
    assert one(tmp_path, {"q": "问", "summary": "答"}, prompt_column="q") == [("user", "问"), ("assistant", "答")]
    assert one(tmp_path, {"content": "问", "a": "答"}, response_column="a") == [("user", "问"), ("assistant", "答")]


def test_conversations_with_a_tool(tmp_path):
    call = {"role": "tool", "name": "查", "parameters": {"城": "京", "n": 1, "x": None}, "observation": {"度": 3}}
    value = {"tools": [{"name": "查"}], "conversations": [{"role": "user", "content": "热吗"}, call]}
    [record] = read_records(file(tmp_path, json.dumps(value)))[0]
    system, _, called, observed = record.messages
    assert system == {"role": "system", "tools": [{"name": "查"}]}
    assert (called["metadata"], called["content"]) == ("查", "```python\ntool_call(城='京', n=1, x=None)\n```")
    assert (observed["role"], observed["content"], observed["loss"]) == ("observation", '{"度": 3}', False)


def test_messages_with_tool_calls(tmp_path):
    function = {"name": "查", "arguments": '{"城": "京"}'}
    value = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "热吗"},
        {"role": "assistant", "content": "我查一下", "tool_calls": [{"type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "1", "content": "3 度"},
        {"role": "assistant", "content": "不热"},
    ]
    assert one(tmp_path, {"messages": value}) == [
        ("system", "s"),
        ("user", "热吗"),
        ("assistant", "我查一下"),
        ("assistant", "```python\ntool_call(城='京')\n```"),
        ("observation", "3 度"),
        ("assistant", "不热"),
    ]


@pytest.mark.parametrize(("loss", "flag"), [(True, True), (0, False), ("0", False), ("1", True), (0.5, False)])
def test_loss_flags_are_read_as_chatglm3_reads_them(loss, flag, tmp_path):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "loss": loss}]
    [record] = read_records(file(tmp_path, json.dumps({"conversations": messages})))[0]
    assert record.messages[1]["loss"] is flag


def test_a_format_can_be_said(tmp_path):
    value = {"content": "a", "summary": "b", "messages": [{"role": "user", "content": "m"}]}
    assert one(tmp_path, value) == [("user", "m")]
    assert one(tmp_path, value, data_format="pairs") == [("user", "a"), ("assistant", "b")]


def test_the_flag_knows_every_format():
    assert set(DATA_FORMATS) == {"auto", *FORMATS}


@pytest.mark.parametrize(("asked", "answered"), [("query", "response"), ("prompt", "response"), ("question", "answer")])
def test_two_columns_with_what_may_stand_beside_them(asked, answered, tmp_path):
    row = {asked: "问", answered: "答"}
    assert one(tmp_path, row) == [("user", "问"), ("assistant", "答")]
    more = {**row, "system": "你是助手", "history": [["前", "后"]]}
    texts = [("system", "你是助手"), ("user", "前"), ("assistant", "后"), ("user", "问"), ("assistant", "答")]
    assert one(tmp_path, more) == texts
    assert one(tmp_path, {**row, "system": None, "history": None, "id": 7}) == [("user", "问"), ("assistant", "答")]


def test_sharegpt_with_a_tool_as_llama_factory_writes_it(tmp_path):
    value = {
        "conversations": [
            {"from": "human", "value": "热吗"},
            {"from": "function_call", "value": '{"name": "查", "arguments": {"城": "京"}}'},
            {"from": "observation", "value": "3 度"},
            {"from": "gpt", "value": "不热"},
        ],
        "system": "你是助手",
        "tools": '[{"name": "查", "parameters": {}}]',
    }
    [record] = read_records(file(tmp_path, json.dumps(value)))[0]
    tools, system, user, called, observed, answer = record.messages
    assert tools == {"role": "system", "tools": [{"name": "查", "parameters": {}}]}
    assert (system["content"], user["content"], answer["content"]) == ("你是助手", "热吗", "不热")
    assert (called["metadata"], called["arguments"], observed["loss"]) == ("查", {"城": "京"}, False)
    as_services = {"messages": [{"role": "user", "content": "热吗"}, {"role": "assistant", "content": "不热"}]}
    plain = {"conversations": [value["conversations"][0], value["conversations"][3]], "system": "", "tools": ""}
    assert one(tmp_path, plain) == one(tmp_path, as_services)


def test_several_calls_of_sharegpt_are_a_message_each(tmp_path):
    calls = [{"name": "f", "arguments": {"a": i}} for i in range(2)]
    spoken = [{"from": "human", "value": "q"}, {"from": "function_call", "value": json.dumps(calls)}]
    [record] = read_records(file(tmp_path, json.dumps({"conversations": spoken})))[0]
    assert [m["arguments"] for m in record.messages[1:]] == [{"a": 0}, {"a": 1}]


def test_plain_text_is_one_message_which_asks_nothing(tmp_path):
    [record] = read_records(file(tmp_path, '{"text": " 云\\n川 ", "id": 3}'))[0]
    assert record.is_text
    assert record.messages == ({"role": "text", "content": " 云\n川 "},)
    assert one(tmp_path, {"body": "云"}, data_format="text", response_column="body") == [("text", "云")]


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ({"instruction": "a", "input": "", "output": "b", "text": "a b"}, "triples"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "messages"),
        ({"prompt": "a", "response": "b", "instruction": "c"}, "prompt"),
        ({"title": "a", "text": "b"}, "text"),
        ({"conversations": [{"role": "user", "content": "a"}]}, "conversations"),
        ({"conversations": '[{"from": "human", "value": "a"}]'}, "sharegpt"),
    ],
)
def test_a_record_is_of_the_format_whose_keys_it_has_all(record, name):
    assert detect(record, Options()) == name


@pytest.mark.parametrize(
    ("record", "mend"),
    [
        ({"ask": "a", "reply": "b"}, "--prompt_column ask --response_column reply would map it"),
        ({"问题": "a", "标准答案": "b", "id": 3}, "--prompt_column 问题 --response_column 标准答案 would map it"),
        ({"x": "a", "y": "b"}, "--prompt_column x --response_column y would map it"),
        ({"x": "a", "y": "b", "z": "c"}, "name its columns with --prompt_column and --response_column"),
        ({"body": "a"}, "--data_format text --response_column body would read it as plain text"),
        ({"data": [{"instruction": "a"}]}, "let the file hold that list alone"),
        ({"dialog": [{"role": "user", "content": "a"}]}, "rename 'dialog' to 'messages'"),
        ({"turns": [{"from": "human", "value": "a"}]}, "rename 'turns' to 'conversations'"),
    ],
)
def test_what_is_not_understood_is_told_once_with_what_would_map_it(record, mend, tmp_path):
    with pytest.raises(DataError) as error:
        read_records(file(tmp_path, "\n".join([json.dumps(record)] * 9)))
    [problem] = error.value.problems
    assert mend in problem
    assert "the nearest is " in problem
    assert problem.endswith("; the same at 2, 3, 4, 5")


def test_missing_columns_name_the_flags_that_map_what_is_there(tmp_path):
    with pytest.raises(
        DataError, match=r"'output' is missing; .*--prompt_column instruction --response_column response"
    ):
        one(tmp_path, {"instruction": "a", "response": "b"})
    assert one(tmp_path, {"instruction": "a", "response": "b"}, prompt_column="instruction") == [
        ("user", "a"),
        ("assistant", "b"),
    ]


# ---------------------------------------------------------------------------------------------------- bad data


def dialogue(*messages, **more) -> str:
    return json.dumps({"conversations": list(messages), **more})


USER = {"role": "user", "content": "a"}
BAD = [
    (line() + "\n" + line()[:-3], ":2: broken JSON"),
    (line() + "\n" + line()[:-1] + "\n" + line(), ":2: broken JSON (Expecting ',' delimiter"),
    ("[" + line() + ",\n" + line()[:-3] + "]", ":2: broken JSON"),
    (line() + '\n["a"]', ":2: a list, not an object"),
    (line() + "\n17", ":2: a int, not an object"),
    (line(instruction=3), ":1: 'instruction' is a int"),
    (line(output=["a"]), ":1: 'output' is a list"),
    (line(output=None), ":1: 'output' is null"),
    (line(history="x"), ":1: the history is no list"),
    (line(history=3), ":1: the history is no list of [question, answer] pairs"),
    (line(history=["cd"]), ":1: the history is no list of [question, answer] pairs"),
    (line(history=[["a", "b"], ["c"]]), ":1: the history is no list of [question, answer] pairs"),
    (line(history=[["c", 3], ["a", "b"]]), ":1: the history is no list of [question, answer] pairs"),
    (line(history={"a": "b"}), ":1: the history is no list of [question, answer] pairs"),
    ('{"input": "a", "output": "b"}', ":1: 'instruction' is missing"),
    ('{"instruction": "a"}', ":1: 'output' is missing"),
    ('{"body": "a", "n": 1}', ":1: an object with body, n: of no known format"),
    ('{"text": " "}', ":1: 'text' is empty"),
    ('{"query": "a"}', ":1: 'response' is missing"),
    ('{"question": "", "answer": "b"}', ":1: 'question' is empty"),
    ('{"prompt": "a", "response": "b", "system": 3}', ":1: 'system' is a int"),
    ('{"conversations": [{"from": "robot", "value": "a"}]}', ":1: message 1: 'from' is 'robot', none of human"),
    ('{"conversations": [{"from": "human", "value": null}]}', ":1: message 1: 'value' is null"),
    ('{"conversations": [{"from": "function_call", "value": "f()"}]}', ":1: message 1: a call must be JSON"),
    ('{"conversations": [{"from": "gpt", "value": "a"}], "tools": "x"}', ":1: 'tools' is no list of tools"),
    ('{"content": "a", "summary": null}', ":1: 'summary' is null"),
    ('{"content": "", "summary": "b"}', ":1: 'content' is empty"),
    ('{"instruction": "a", "output": "\\ud800"}', ":1: a text holds half a surrogate pair"),
    ('{"instruction": "a", "output": "\\u0000"}', ":1: a text holds a NUL byte"),
    ('{"instruction": " ", "output": "b"}', ":1: instruction and input are both empty"),
    ('{"instruction": "a", "output": NaN}', ":1: NaN is no JSON value"),
    ('{"instruction": "a", "output": "b", "output": "c"}', ":1: key 'output' stands twice"),
    (line().encode() + b"\n" + b'{"instruction": "\xff"}', ":2: is not UTF-8"),
    (b'[{"instruction":\n"\xff"}]', ":2: is not UTF-8"),
    (b'[{"instruction": "\xff"}]', ":1: is not UTF-8"),
    ("[" * 100_000, ": JSON nested too deeply"),
    ('{"a":' * 100_000, ":1: JSON nested too deeply"),
    ("", "holds no record"),
    ("\n \n", "holds no record"),
    ("[]", "holds no record"),
    ("\x00", ":1: broken JSON"),
    (dialogue(), ":1: 'conversations' is empty"),
    ('{"conversations": "a"}', ":1: 'conversations' is no list of messages"),
    (dialogue("a"), ":1: message 1: a str, not an object with role, content"),
    (dialogue({"role": "robot", "content": "a"}), ":1: message 1: role 'robot' is none of"),
    (dialogue({"content": "a"}), ":1: message 1: role None is none of"),
    (dialogue(USER, {"role": "assistant"}), ":1: message 2: 'content' of a message of assistant is missing"),
    (dialogue(USER, {"role": "assistant", "content": None}), ":1: message 2: 'content' is null"),
    (dialogue(USER, {"role": "assistant", "content": [{}]}), "code interpreter are not supported"),
    (dialogue(USER, {"role": "assistant", "content": "b", "loss": "no"}), "message 2: 'loss' is 'no'"),
    (dialogue(USER, {"role": "tool", "parameters": {}}), "message 2: 'name' is null"),
    (dialogue(USER, {"role": "tool", "name": "t", "parameters": "x"}), "the parameters of tool 't' are a str"),
    (dialogue(USER, {"role": "assistant", "content": "", "tool_calls": ["x"]}), "'tool_calls' must be a list"),
]


@pytest.mark.parametrize(("content", "part"), BAD, ids=[part for _, part in BAD])
def test_what_is_wrong_is_named_with_file_and_line(content, part, tmp_path):
    with pytest.raises(DataError) as error:
        read_records(file(tmp_path, content))
    [problem] = error.value.problems
    assert part in problem
    assert problem.count("data.json") == 1
    assert "\n" not in problem
    assert len(problem) < 400


@pytest.mark.parametrize("content", [b"no gzip", gzip.compress(b"{}" * 100, mtime=0)[:-9]], ids=["text", "cut"])
def test_a_gz_that_is_none_is_named(content, tmp_path):
    with pytest.raises(DataError, match=r"data\.json\.gz: is no whole gzip file"):
        read_records(file(tmp_path, content, "data.json.gz"))


def test_the_first_few_problems_come_together(tmp_path):
    content = "\n".join(f'{{"instruction": {number}}}' if number % 2 else "17" for number in range(50))
    with pytest.raises(DataError) as error:
        read_records(file(tmp_path, content))
    ends = ["an object with instruction, input, output; the same at 3, 5", "instruction, input, output; the same at 4"]
    assert len(error.value.problems) == len(ends)
    assert all(problem.endswith(end) for problem, end in zip(error.value.problems, ends, strict=True))


def test_a_reason_that_records_of_two_files_share_names_the_second_file(tmp_path):
    first, second = (file(tmp_path, '{"instruction": "a"}\n' * 2, name) for name in ("a.json", "b.json"))
    with pytest.raises(DataError) as error:
        read_records([first, second])
    [problem] = error.value.problems
    assert problem.startswith(f"{first}:1: 'output' is missing")
    assert problem.endswith(f"; the same at 2, {second}:1, {second}:2")


def test_bad_records_can_be_skipped_and_are_listed(tmp_path):
    content = "\n".join([line(), "17", line()[:-2], line(output=None), line()])
    records, rejected = read_records(file(tmp_path, content), Options(on_bad_record="skip"))
    assert [record.place.rsplit(":", 1)[1] for record in records] == ["1", "5"]
    assert [place.rsplit(":", 1)[1] for place, _ in rejected.reasons] == ["2", "3", "4"]
    assert "'output' is null" in rejected.reasons[2][1]
    with pytest.raises(DataError, match="not an object"):
        read_records(file(tmp_path, "17"), Options(on_bad_record="skip"))


def test_a_record_of_two_megabytes_is_read(tmp_path):
    assert len(read_records(file(tmp_path, line(input="云" * 700_000)))[0][0].question[0]["content"]) > 700_000


def test_a_folder_in_the_place_of_a_file_is_one_line(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_records(tmp_path)


TOOLS = [{"type": "function", "function": {"name": "查", "parameters": {}}}]


def test_glm4s_messages_keep_their_metadata_and_tools(tmp_path):
    talk = [
        {"role": "system", "content": "", "tools": TOOLS},
        {"role": "user", "content": "云？"},
        {"role": "assistant", "metadata": "查", "content": "{}"},
        {"role": "observation", "content": "3"},
    ]
    [record], _ = read_records(file(tmp_path, json.dumps({"messages": talk}, ensure_ascii=False)))
    assert record.messages[0] == {"role": "system", "tools": TOOLS}
    assert record.messages[2]["metadata"] == "查"
    talk[0]["content"] = "你是助手"
    [record], _ = read_records(file(tmp_path, json.dumps({"messages": talk, "tools": None}, ensure_ascii=False)))
    assert record.messages[:2] == ({"role": "system", "tools": TOOLS}, {"role": "system", "content": "你是助手"})


def test_a_tool_call_keeps_its_arguments(tmp_path):
    call = {"function": {"name": "f", "arguments": '{"a": 1}'}}
    talk = [{"role": "user", "content": "云？"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    [record], _ = read_records(file(tmp_path, json.dumps({"messages": talk})))
    assert (record.messages[1]["metadata"], record.messages[1]["arguments"]) == ("f", {"a": 1})


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({"role": "system", "content": "", "tools": None}, "'tools' of a message is no list"),
        ({"role": "assistant", "content": "x", "metadata": None}, "'metadata' is null, not a string"),
    ],
)
def test_what_glm4s_template_would_write_as_none_is_refused(message, told, tmp_path):
    with pytest.raises(DataError, match=f"message 1: {told}"):
        read_records(file(tmp_path, json.dumps({"messages": [message]})))
