import torch

from glmft.data.collate import collate
from glmft.data.encode import Example
from glmft.models.head import positions_with_target

ROWS = [
    Example([5, 6, 7, 2], ((2, 4),), "a"),
    Example([5, 6, 7, 8, 9, 2], ((1, 2), (3, 6)), "b"),
    Example([5, 2], ((1, 2),), "c"),
]


def test_rows_are_padded_on_the_right_and_labelled_by_position(tokenizer):
    batch = collate(ROWS, tokenizer)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 2, 0, 0], [5, 6, 7, 8, 9, 2], [5, 2, 0, 0, 0, 0]]
    assert batch["labels"].tolist() == [
        [-100, -100, 7, 2, -100, -100],
        [-100, 6, -100, 8, 9, 2],
        [-100, 2, -100, -100, -100, -100],
    ]


def test_an_end_token_that_equals_the_padding_keeps_its_label(tokenizer):
    batch = collate([Example([5, 0], ((1, 2),), "a"), Example([5, 6, 0], ((1, 3),), "b")], tokenizer)
    assert batch["labels"].tolist() == [[-100, 0, -100], [-100, 6, 0]]


def test_loss_positions_are_the_tokens_whose_successor_has_a_label(tokenizer):
    batch = collate(ROWS, tokenizer)
    assert torch.equal(batch["loss_positions"], positions_with_target(batch["labels"]))


def test_an_unsupervised_micro_batch_has_no_label(tokenizer):
    batch = collate(ROWS, tokenizer, supervise=False)
    assert (batch["labels"] == -100).all()
    assert batch["loss_positions"].shape == (0,)
    assert batch["loss_positions"].dtype == torch.long


def test_chatglm_6b_gets_its_mask_and_positions_from_the_host(glm_tokenizer):
    first, second = ([*glm_tokenizer.chat_ids([{"role": "user", "content": q}]), 7, 8] for q in ("云", "云川岭溪"))
    batch = collate([Example(first, ((2, 3),), "a"), Example(second, ((2, 3),), "b")], glm_tokenizer)
    assert batch["attention_mask"].tolist() == [[1] * len(first) + [0] * (len(second) - len(first)), [1] * len(second)]
    start = second.index(glm_tokenizer.bos_token_id)
    assert batch["position_ids"][1, 0].tolist() == [*range(start), *[start - 1] * (len(second) - start)]
    assert batch["position_ids"][1, 1].tolist() == [0] * start + [1, 2, 3]
