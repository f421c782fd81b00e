"""lm-eval's log-likelihoods and generations."""

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-eval is not installed; `make ecosystem` makes an environment with it")

pytestmark = pytest.mark.slow


@pytest.fixture
def evaluated(model, tokenizer):
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model.eval(), tokenizer=tokenizer, batch_size=2, device="cpu", max_length=64)


def instance(kind, *arguments):
    from lm_eval.api.instance import Instance

    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def test_log_likelihoods_are_those_of_the_model(evaluated, model, tokenizer):
    if tokenizer.family == "glm":
        pytest.skip("ChatGLM-6B reads a context in both directions and needs its marks: lm-eval has no place for them")
    pairs = [("云川", "岭溪"), ("甲乙", "泉")]
    requests = [instance("loglikelihood", *pair) for pair in pairs]
    for (value, _), pair in zip(evaluated.loglikelihood(requests, disable_tqdm=True), pairs, strict=True):
        context, continuation = evaluated._encode_pair(*pair)
        ids = torch.tensor([context + continuation])
        scores = model(ids).logits[0].log_softmax(-1)
        places = range(len(context) - 1, ids.shape[1] - 1)
        assert value == pytest.approx(sum(scores[i, ids[0, i + 1]].item() for i in places), abs=1e-3)


def test_chats_are_rendered_and_answered(evaluated, tokenizer):
    text = evaluated.apply_chat_template([{"role": "user", "content": "云川"}])
    assert evaluated.tok_encode(text) == tokenizer.chat_ids([{"role": "user", "content": "云川"}])
    request = instance("generate_until", text, {"until": ["\n\n"], "max_gen_toks": 4, "do_sample": False})
    assert isinstance(evaluated.generate_until([request], disable_tqdm=True)[0], str)
