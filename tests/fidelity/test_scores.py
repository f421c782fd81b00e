"""ROUGE and BLEU-4 against what the official P-Tuning script computes."""

import json

import pytest

from glmft.inference.metrics import text_score, text_scores


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
            assert found == want, pair["name"]


def test_the_means_are_the_official_ones(goldens):
    want = dict(goldens["means"]["ptuning"])
    over = want.pop("over")
    pairs = [pair for pair in goldens["pairs"] if pair["name"] in over]
    found = text_scores([pair["prediction"] for pair in pairs], [pair["label"] for pair in pairs])
    assert found == pytest.approx(want)
