import pytest

from glmft.inference.scores import Scores


def results(pairs) -> dict:
    scores = Scores()
    for prediction, label in pairs:
        scores.add(prediction, label)
    return scores.results()


def test_triples_are_counted_by_record_by_relation_and_all_together():
    """Two records: of 4 gold triples 2 are hit, of 3 predicted ones; the second record's mean weighs as the first's."""
    found = results([("a_r_b\nc_s_d", "a_r_b\ne_r_f\ng_s_h"), ("i_r_j", "i_r_j")])
    assert found["triple"] == {"precision": 0.75, "recall": round((1 / 3 + 1) / 2, 6), "f1": 0.7}
    assert found["triple_micro"] == {
        **{"precision": round(2 / 3, 6), "recall": 0.5, "f1": round(4 / 7, 6)},
        **{"gold": 4, "predicted": 3},
    }
    assert found["triple_relations"] == {
        "r": {"precision": 1.0, "recall": round(2 / 3, 6), "f1": 0.8, "gold": 3, "predicted": 2},
        "s": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "gold": 1, "predicted": 1},
    }


def test_invented_relations_are_counted_and_weigh_on_the_precision_of_all():
    found = results([("a_r_b\na_x_b\na_y_b", "a_r_b")])
    assert list(found["triple_relations"]) == ["r"]
    assert found["triple_other_relations"] == 2
    assert found["triple_micro"]["precision"] == round(1 / 3, 6)


def test_texts_without_triples_have_no_such_scores():
    assert not [name for name in results([("a_b_c", "云川")]) if "triple" in name]


def test_few_labels_are_classes_with_accuracy_and_macro_f1():
    """By hand: yes 2 of 3 with 3 predicted, no 1 of 2 with 1 predicted; the odd answer is nobody's."""
    pairs = [("yes", "yes"), ("yes ", "yes"), ("perhaps so", "yes"), ("no", "no"), ("yes", "no")]
    found = results(pairs)
    assert found["accuracy"] == 0.6
    assert found["classes"]["yes"]["f1"] == round(2 * 2 / 6, 6)
    assert found["classes"]["no"]["f1"] == round(2 * 1 / 3, 6)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 2 / 3) / 2, abs=1e-6)
    assert found["predict_exact-match"] == 60


@pytest.mark.parametrize(
    "labels", [["云"], ["云", "川"], ["云"] * 5, ["", "", "云", "云"], ["x" * 51, "x" * 51, "云", "云"]]
)
def test_texts_and_single_labels_are_no_classes(labels):
    assert "accuracy" not in results([("云", label) for label in labels])


def test_many_labels_are_no_classes():
    assert "accuracy" in results([(str(i % 50), str(i % 50)) for i in range(200)])
    assert "accuracy" not in results([(str(i % 51), str(i % 51)) for i in range(200)])


ODD = ["", " ", "\n\n", "\0", "。", "？！……", "＿", "\ufeff", "\u200b", "a" * 3000, "😀" * 50, "\ud800", "|"]


@pytest.mark.parametrize("odd", ODD)
def test_empty_and_odd_predictions_score_nothing_and_end_nothing(odd):
    found = results([(odd, "云川_位于_岭溪"), (odd, "云川_位于_岭溪")])
    scores = {name: value for name, value in found.items() if name.startswith("predict_")}
    assert {name: value for name, value in scores.items() if value > 3} == {}, "one mark in common, at most"
    assert found["triple"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert results([("", "")])["predict_exact-match"] == 0
    assert results([("云", odd)])["records"] == 1
