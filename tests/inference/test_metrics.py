import json

import pytest

from glmft.inference.metrics import triple_f1, triple_score


@pytest.mark.parametrize(
    ("prediction", "label", "scores"),
    [
        ("a_r_b", "a_r_b", (1, 1, 1)),
        ("a_r_b\nc_r_d", "a_r_b", (0.5, 1, 2 / 3)),
        ("a_r_b", "a_r_b\nc_r_d", (1, 0.5, 2 / 3)),
        ("", "a_r_b", (0, 0, 0)),
        ("a_r", "a_r", (0, 0, 0)),  # malformed: dropped from the prediction, still gold in the label
        ("a_r_b\na_r_b", "a_r_b", (1, 1, 1)),  # sets
        ("__", "__", (1, 1, 1)),  # three empty parts count
        ("b_r_a", "a_r_b", (0, 0, 0)),
    ],
)
def test_scores_of_one_record_by_hand(prediction, label, scores):
    assert triple_score(prediction, label) == pytest.approx(scores)


def test_the_score_of_a_file_is_the_mean_over_its_records():
    assert triple_f1(["a_r_b", "x"], ["a_r_b", "c_r_d"]) == {"precision": 0.5, "recall": 0.5, "f1": 0.5}


def test_triples_equal_the_reference_projects(shared):
    goldens = json.loads((shared / "goldens" / "metrics_goldens.json").read_text(encoding="utf-8"))
    for row in goldens["triples"]:
        want = row["precision"], row["recall"], row["f1"]
        assert triple_score(row["prediction"], row["gold"]) == pytest.approx(want), row["name"]
    rows = goldens["triples"]
    means = triple_f1([row["prediction"] for row in rows], [row["gold"] for row in rows])
    assert means == pytest.approx(goldens["triples_mean"])
