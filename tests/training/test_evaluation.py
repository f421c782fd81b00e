import pytest

from glmft.data.encode import Example
from glmft.inference.metrics import text_scores
from glmft.training.evaluation import is_better, scores, split_row


def test_a_row_is_split_before_its_last_learned_answer(tokenizer):
    row = Example(list(range(10, 20)), ((3, 5), (7, 10)), "a:1")
    assert split_row(row, tokenizer) == ([10, 11, 12, 13, 14, 15, 16], [17, 18, 19])


def test_a_learned_start_mark_belongs_to_the_question(glm_tokenizer):
    row = Example([7, 8, glm_tokenizer.bos_token_id, 9], ((2, 4),), "a:1")
    assert split_row(row, glm_tokenizer) == ([7, 8, glm_tokenizer.bos_token_id], [9])


def test_triples_have_an_f1_and_other_texts_have_none():
    assert scores(["a_b_c"], ["a_b_c"])["f1"] == 1
    assert set(scores(["云"], ["云"])) == set(text_scores(["云"], ["云"]))


@pytest.mark.parametrize(
    ("metric", "value", "best", "better"),
    [
        ("eval_loss", 2.0, None, True),
        ("eval_loss", 1.9, 2.0, True),
        ("eval_loss", 2.0, 2.0, False),
        ("rouge-l", 1.9, 2.0, False),
        ("rouge-l", 2.1, 2.0, True),
    ],
)
def test_a_loss_is_better_when_lower_and_a_score_when_higher(metric, value, best, better):
    assert is_better(metric, value, best) is better
