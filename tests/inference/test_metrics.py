import json
import math

import pytest

from glmft.inference.metrics import text_score, text_scores, triple_f1, triple_score


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


# ------------------------------------------------------------------------------------- ROUGE and BLEU-4 by hand


@pytest.mark.parametrize(
    ("prediction", "label", "precisions", "brevity"),
    [
        ("云川岭溪泉", "云川岭溪峰", (4 / 5, 3 / 4, 2 / 3, 1 / 2), 1),
        ("云川岭溪泉峰", "云川岭溪", (4 / 6, 3 / 5, 2 / 4, 1 / 3), 1),  # too long: precision alone
        ("云川岭溪", "云川岭溪泉峰", (1, 1, 1, 1), math.exp(1 - 6 / 4)),  # too short
        ("云云云云", "云川岭溪", (1 / 4, 1 / (2 * 3), 1 / (4 * 2), 1 / (8 * 1)), 1),  # a hit counts as often as there
        # Without a hit, the k-th such precision is 1 / (2^k n-grams): method 3.
        ("云川湖泉", "云川岭溪泉峰", (3 / 4, 1 / 3, 1 / (2 * 2), 1 / (4 * 1)), math.exp(1 - 6 / 4)),
    ],
)
def test_bleu_4_is_over_characters_smoothed_by_method_3(prediction, label, precisions, brevity):
    expected = 100 * brevity * math.prod(precisions) ** (1 / 4)
    assert text_score(prediction, label)["bleu-4"] == pytest.approx(expected, abs=5e-5)


def test_rouge_is_the_f_over_words():
    """Of three words all are among the label's four; one of two pairs is among its three; three in the same order."""
    score = text_score("cat sat mat", "cat sat on mat")
    f_words, f_pairs = 2 * 1 * (3 / 4) / (1 + 3 / 4), 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3)
    expected = {"rouge-1": 100 * f_words, "rouge-2": 100 * f_pairs, "rouge-l": 100 * f_words}
    assert {name: score[name] for name in expected} == pytest.approx(expected, abs=5e-5)
    swapped = text_score("mat sat cat", "cat sat on mat")
    assert swapped["rouge-1"] == score["rouge-1"]
    assert swapped["rouge-l"] == pytest.approx(100 * 2 * (1 / 3) * (1 / 4) / (1 / 3 + 1 / 4), abs=5e-5)


@pytest.mark.parametrize(("prediction", "label"), [("", "云川"), ("云川", ""), ("", ""), (" ", "云川"), ("云", "川")])
def test_texts_with_nothing_in_common_score_nothing(prediction, label):
    assert set(text_score(prediction, label).values()) == {0}


def test_scores_are_rounded_to_four_digits_and_their_mean_is_not():
    assert text_score("云川岭溪泉", "云川岭溪峰")["bleu-4"] == 66.874
    means = text_scores(["云川岭溪泉", "云", "云川岭溪"], ["云川岭溪峰", "川", "云川岭溪"])
    assert means["bleu-4"] == pytest.approx((66.874 + 0 + 100) / 3)
