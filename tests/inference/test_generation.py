import pytest

import glmft
from glmft.data.templates import prompt_ids
from glmft.inference.generation import answer

QUESTIONS = ["云川", "请复述：云川岭溪泉峰湖岛", "找出关系：云川坐落在岭溪境内。", "一"]


@pytest.fixture
def model(model_folder):
    return glmft.load(model_folder, dtype="fp32", device="cpu")


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_answers_keep_the_order_and_do_not_depend_on_the_batch(batch_size, model):
    alone = [answer(*model, [question], max_new_tokens=6)[0] for question in QUESTIONS]
    finished = []
    together = answer(*model, QUESTIONS, batch_size=batch_size, max_new_tokens=6, advance=finished.append)
    assert together == alone
    assert sum(finished) == len(QUESTIONS)


def test_an_answer_is_what_greedy_generation_adds_to_the_prompt(model):
    import torch

    net, tokenizer = model
    ids = torch.tensor([prompt_ids(tokenizer, QUESTIONS[0])])
    for _ in range(5):
        ids = torch.cat((ids, net(ids, use_cache=False).logits[:, -1:].argmax(-1)), dim=1)
    new = ids[0, len(prompt_ids(tokenizer, QUESTIONS[0])) :].tolist()
    new = new[: new.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in new else new
    assert answer(net, tokenizer, QUESTIONS[:1], max_new_tokens=5) == [tokenizer.decode(new, skip_special_tokens=True)]
