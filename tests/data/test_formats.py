import json

import pytest

from glmft.data.formats import MOST_PROBLEMS, read_records
from glmft.errors import DataError

GOOD = {"instruction": "抽取：", "input": "风扇不转。", "output": "风扇_部件故障_不转"}


def file(tmp_path, content: str | bytes):
    path = tmp_path / "data.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def line(**changes) -> str:
    return json.dumps({**GOOD, **changes}, ensure_ascii=False)


def test_lines_and_arrays_give_the_same_records(tmp_path):
    rows = [GOOD, {**GOOD, "input": ""}]
    by_line = read_records(file(tmp_path, "\n".join(json.dumps(row) for row in rows) + "\n\n"))
    by_array = read_records(file(tmp_path, json.dumps(rows, indent=2)))
    assert [(r.query, r.answer) for r in by_line] == [(r.query, r.answer) for r in by_array]
    assert by_line[1].place.endswith("data.json:2")
    assert by_array[1].place.endswith("data.json: record 2")


def test_instruction_and_input_are_joined_with_nothing_between(tmp_path):
    record = read_records(file(tmp_path, line()))[0]
    assert record.query == "抽取：风扇不转。"


@pytest.mark.parametrize("row", [{"instruction": "你好", "output": "好"}, {**GOOD, "input": None}])
def test_input_may_be_absent_or_null(row, tmp_path):
    assert read_records(file(tmp_path, json.dumps(row)))[0].query == row["instruction"]


def test_an_empty_answer_is_an_answer(tmp_path):
    assert read_records(file(tmp_path, line(output="")))[0].answer == ""


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    assert read_records(file(tmp_path, b"\xef\xbb\xbf" + line().encode()))[0].answer == GOOD["output"]


def test_unicode_line_separators_inside_a_record_do_not_end_it(tmp_path):
    assert "\u2028" in read_records(file(tmp_path, line(input="甲\u2028乙")))[0].query


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (line() + "\n" + line()[:-3], ":2: broken JSON"),
        ("[" + line() + ",\n" + line()[:-3] + "]", ":2: broken JSON"),
        (line() + '\n["a"]', ":2: a list, not an object"),
        (line() + "\n17", ":2: a int, not an object"),
        (line(instruction=3), ":1: 'instruction' is a int"),
        (line(output=["a"]), ":1: 'output' is a list"),
        (line(output=None), ":1: 'output' is a NoneType"),
        ('{"input": "a", "output": "b"}', ":1: 'instruction' is missing"),
        ('{"instruction": "a"}', ":1: 'output' is missing"),
        ('{"instruction": "a", "output": "\\ud800"}', ":1: 'output' holds half a surrogate pair"),
        ('{"instruction": " ", "output": "b"}', ":1: instruction and input are both empty"),
        (line().encode() + b"\n" + b'{"instruction": "\xff"}', ":2: is not UTF-8"),
        ("[" * 100_000, ":1: JSON nested too deeply"),
        ("", "holds no record"),
        ("\n \n", "holds no record"),
        ("[]", "holds no record"),
        ("\x00", ":1: broken JSON"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(content, part, tmp_path):
    with pytest.raises(DataError) as error:
        read_records(file(tmp_path, content))
    assert len(error.value.problems) == 1
    assert f"data.json{part}" in error.value.problems[0] or part in error.value.problems[0]
    assert "\n" not in error.value.problems[0]


def test_the_first_few_problems_come_together(tmp_path):
    with pytest.raises(DataError) as error:
        read_records(file(tmp_path, "\n".join(["17"] * 50)))
    assert len(error.value.problems) == MOST_PROBLEMS


def test_a_folder_in_the_place_of_a_file_is_one_line(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_records(tmp_path)
