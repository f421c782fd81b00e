"""Predictions as a table."""

import json

import pytest
from folders import make_predictions

from glmft.errors import ConfigError, DataError
from glmft.inference.metrics import text_score
from glmft.web import answers
from glmft.web.answers import predictions_in, read_predictions, with_questions
from glmft.web.places import Root

ROWS = [("甲_是_乙", "甲_是_乙"), ("丙_是_丁", "丙_是_戊"), ("己_是_庚", "")]


@pytest.fixture
def root(tmp_path) -> Root:
    make_predictions(tmp_path / "output" / "mine" / "predict", ROWS)
    return Root(tmp_path / "output", "--output_root")


def test_every_record_has_its_label_its_answer_and_its_scores(root):
    assert predictions_in(root) == ["mine/predict"]
    predictions = read_predictions(root, "mine/predict")
    assert [(row.label, row.answer) for row in predictions.rows] == ROWS
    assert [row.scores["f1"] for row in predictions.rows] == [100.0, 0.0, 0.0]
    expected = {name: round(value, 2) for name, value in text_score("丙_是_戊", "丙_是_丁").items()}
    assert {name: predictions.rows[1].scores[name] for name in expected} == expected
    assert predictions.means == {"records": 2, "rouge-1": 50.0, "f1": 0.5}


def test_without_triples_there_is_no_f1(tmp_path):
    make_predictions(tmp_path / "predict", [("好的", "好")])
    assert "f1" not in read_predictions(Root(tmp_path, "--output_root"), "predict").score_names


def test_the_questions_are_those_of_the_file_with_the_same_labels(root, tmp_path):
    def records(name: str, labels: list[str]):
        rows = [{"instruction": "问", "input": str(i), "output": label} for i, label in enumerate(labels)]
        (tmp_path / name).write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        return tmp_path / name

    other = records("other.json", ["甲_是_乙", "x", "y"])
    right = records("right.json", [label for label, _ in ROWS] + ["one more"])
    (tmp_path / "broken.json").write_text("{")
    predictions, source = with_questions(
        read_predictions(root, "mine/predict"), [tmp_path / "broken.json", tmp_path / "none.json", other, right]
    )
    assert source == right
    assert [row.question for row in predictions.rows] == ["问0", "问1", "问2"]
    assert with_questions(predictions, [other])[1] is None


def test_only_the_first_records_are_scored(root, monkeypatch):
    monkeypatch.setattr(answers, "MOST_ROWS", 2)
    predictions = read_predictions(root, "mine/predict")
    assert len(predictions.rows) == 2
    assert predictions.is_cut


@pytest.mark.parametrize("line", ["{}", "[]", "nonsense", '{"labels": "x"}', "\\xff"])
def test_a_line_that_holds_no_answer_is_a_sentence(root, line):
    path = root.path / "mine" / "predict" / "generated_predictions.txt"
    path.write_bytes(path.read_bytes() + line.encode())
    with pytest.raises(DataError, match=r"generated_predictions\.txt:4"):
        read_predictions(root, "mine/predict")


def test_predictions_that_are_a_link_outwards_are_not_read(root, tmp_path):
    (tmp_path / "secret.txt").write_text('{"labels": "secret", "predict": "secret"}')
    path = root.path / "mine" / "predict" / "generated_predictions.txt"
    path.unlink()
    path.symlink_to(tmp_path / "secret.txt")
    assert predictions_in(root) == []
    with pytest.raises(ConfigError, match="leads out"):
        read_predictions(root, "mine/predict")
