"""`glmft score`: files of labels and predictions, and sheets for rating by hand."""

import csv
import json

import pytest

from glmft.cli import main
from glmft.inference.rating import FAULTS, points_of, questions_of, repeated


@pytest.fixture
def answers(tmp_path):
    """A file as another program might leave it."""
    path = tmp_path / "theirs.jsonl"
    rows = [
        {"prompt": "甲", "label": "a_r_b", "prediction": "a_r_b"},
        {"labels": "c_r_d", "predict": None, "extra": 1},
        {"labels": "c_s_d", "predict": ["c_s_d"]},
        {"predict": 5, "labels": "5"},
    ]
    path.write_text("\ufeff" + "\r\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_a_file_of_another_program_is_scored(answers, tmp_path, capsys):
    out = tmp_path / "scores.json"
    assert main(["score", str(answers), "--output_file", str(out)]) == 0
    printed = capsys.readouterr().out
    scores = json.loads(out.read_text())
    assert scores["triple"]["recall"] == 0.25
    assert (scores["records"], scores["empty_predictions"], scores["odd_predictions"]) == (4, 2, 2)
    assert scores["predict_exact-match"] == 50
    assert "| r | 1.0000 | 0.5000 | 0.6667 | 2 | 1 |" in printed
    assert "4 predictions, 2 are empty, 2 are no texts" in printed


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "holds no line of labels and predict"),
        ("[]", "holds no line of labels and predict"),
        ("5", "a.txt:1: a int, not an object"),
        ('{"labels": "a"}', "a.txt:1: 'predict' is missing"),
        ('{"predict": "a", "labels": null}', "a.txt:1: the label is a NoneType, not a text"),
        ('{"predict": "a", "labels": "a"}\n{"predict"', "a.txt:2: broken JSON"),
    ],
)
def test_what_is_no_file_of_answers_is_one_line(text, reason, tmp_path, capsys):
    (tmp_path / "a.txt").write_text(text)
    assert main(["score", str(tmp_path / "a.txt")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert reason in line


# ------------------------------------------------------------------------------------- rating by hand


def test_repeated_questions_are_counted():
    text = "1. 云川在哪里？\n2、岭溪多高？\n问题3：云川在哪里\n\n- 云川在哪里！"
    assert questions_of(text) == ["云川在哪里？", "岭溪多高？", "云川在哪里", "云川在哪里！"]
    assert repeated(questions_of(text)) == 2
    assert repeated(["a", "b"]) == 0


@pytest.mark.parametrize(
    ("prediction", "faults", "points"), [("云？", 0, 5), ("云？", 3, 4.25), ("云？", 30, 0), ("", 0, 0), (" \n", 0, 0)]
)
def test_each_fault_costs_a_quarter_of_a_point_and_an_empty_answer_all(prediction, faults, points):
    assert points_of(prediction, faults) == points


def filled(sheet, **counts):
    """The sheet with every open count set to 0, the first record's to these; and saved as a spreadsheet would."""
    rows = list(csv.DictReader(sheet.read_text(encoding="utf-8-sig").splitlines(keepends=True)))
    for row in rows:
        row.update({name: row[name] or "0" for name in FAULTS})
    rows[0].update(counts)
    return rows


def write(path, rows, delimiter=","):
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def sheet(tmp_path):
    rows = [{"labels": "甲", "predict": '1. 云？\n2. 云？\n3. =岭,"溪"？'}, {"labels": "乙", "predict": ""}]
    rows += [{"labels": "丙", "predict": "川？"}] * 30
    path = tmp_path / "answers.txt"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert main(["score", str(path), "--make_sheet", str(tmp_path / "sheet.csv")]) == 0
    return tmp_path / "sheet.csv"


def test_a_sheet_has_twenty_records_with_their_duplicates_counted(sheet):
    rows = list(csv.DictReader(sheet.read_text(encoding="utf-8-sig").splitlines(keepends=True)))
    assert len(rows) == 20
    assert rows[0]["prediction"] == '1. 云？\n2. 云？\n3. =岭,"溪"？'
    assert [rows[0]["questions"], rows[0]["repeated_questions"], rows[0]["harmful"]] == ["3", "1", ""]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_filled_sheet_is_summed(sheet, delimiter, capsys):
    """18 whole records, one that loses 1 + 2 quarters, one empty: 18 * 5 + 4.25 + 0."""
    write(sheet, filled(sheet, not_fluent="2"), delimiter)
    capsys.readouterr()
    assert main(["score", "--sum_sheet", str(sheet)]) == 0
    printed = capsys.readouterr().out
    assert "94.25 points of 100 for 20 records: 94.25 of 100" in printed
    assert "repeated questions: 1\n" in printed
    assert "not fluent: 2\n" in printed


@pytest.mark.parametrize(
    ("count", "reason"),
    [
        ("", "not_fluent is empty"),
        ("-1", "not_fluent '-1' is no count"),
        ("two", "not_fluent 'two' is no"),
        ("0.5", "not_fluent '0.5' is no"),
    ],
)
def test_a_sheet_that_is_not_filled_in_is_refused_with_its_line(count, reason, sheet, capsys):
    write(sheet, filled(sheet, not_fluent=count))
    assert main(["score", "--sum_sheet", str(sheet)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"sheet.csv:4: {reason}" in line, "a record may take several lines"


def test_an_untouched_sheet_and_a_foreign_one_are_refused(sheet, tmp_path, capsys):
    assert main(["score", "--sum_sheet", str(sheet)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 20
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert main(["score", "--sum_sheet", str(tmp_path / "other.csv")]) == 2
    assert "other.csv:1: has no column prediction, repeated_questions" in capsys.readouterr().err


def test_a_sheet_has_the_questions_of_the_records_that_were_answered(tmp_path):
    (tmp_path / "data.json").write_text('{"instruction": "问：", "input": "文", "output": "甲"}', encoding="utf-8")
    (tmp_path / "answers.txt").write_text('{"labels": "甲", "predict": "云？"}', encoding="utf-8")
    flags = ["--make_sheet", str(tmp_path / "sheet.csv"), "--test_path", str(tmp_path / "data.json")]
    assert main(["score", str(tmp_path / "answers.txt"), *flags]) == 0
    [row] = csv.DictReader((tmp_path / "sheet.csv").read_text(encoding="utf-8-sig").splitlines(keepends=True))
    assert row["text"] == "问：文"
    (tmp_path / "answers.txt").write_text('{"labels": "乙", "predict": "云？"}', encoding="utf-8")
    flags[1] = str(tmp_path / "other.csv")
    assert main(["score", str(tmp_path / "answers.txt"), *flags]) == 2
    assert not (tmp_path / "other.csv").exists()
