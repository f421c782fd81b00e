"""ROUGE and BLEU-4 against what the official P-Tuning script computes."""

import json

import pytest

from glmft.inference.metrics import text_score, text_scores

OFFICIAL = ("rouge-1", "rouge-2", "rouge-l", "bleu-4")


@pytest.fixture(scope="module")
def goldens(shared) -> dict:
    return json.loads((shared / "goldens" / "metrics_goldens.json").read_text(encoding="utf-8"))


def test_every_pair_has_the_official_scores(goldens):
    """Where the official script fails, on a side without words, ROUGE is 0."""
    for pair in goldens["pairs"]:
        found, want = text_score(pair["prediction"], pair["label"]), pair["ptuning"]
        if "error" in want:
            assert (found["rouge-1"], found["rouge-2"], found["rouge-l"]) == (0, 0, 0), pair["name"]
        else:
            assert {name: found[name] for name in OFFICIAL} == want, pair["name"]


def test_bleu_over_words_is_that_of_chatglm3s_script(goldens):
    """From 0 to 1, as that script has it; where it fails, on a side without words, 0."""
    for pair in goldens["pairs"]:
        want = pair["chatglm3_6b"].get("bleu-4", 0.0)
        found = text_score(pair["prediction"], pair["label"])["bleu-4-words"]
        assert found == pytest.approx(want, abs=1e-9), pair["name"]


def test_the_means_are_the_official_ones(goldens):
    want = dict(goldens["means"]["ptuning"])
    over = want.pop("over")
    pairs = [pair for pair in goldens["pairs"] if pair["name"] in over]
    found = text_scores([pair["prediction"] for pair in pairs], [pair["label"] for pair in pairs])
    assert {name: found[name] for name in OFFICIAL} == pytest.approx(want)
