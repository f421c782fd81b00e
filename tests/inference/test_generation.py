from collections import Counter

import pytest
import torch

import glmft
from glmft.data.templates import prompt_ids
from glmft.inference.generation import answer, batches
from glmft.inference.sampling import OwnDraws, own_draws, sampling
from glmft.settings.answers import DecodingSettings

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
    net, tokenizer = model
    ids = torch.tensor([prompt_ids(tokenizer, QUESTIONS[0])])
    for _ in range(5):
        ids = torch.cat((ids, net(ids, use_cache=False).logits[:, -1:].argmax(-1)), dim=1)
    new = ids[0, len(prompt_ids(tokenizer, QUESTIONS[0])) :].tolist()
    new = new[: new.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in new else new
    assert answer(net, tokenizer, QUESTIONS[:1], max_new_tokens=5) == [tokenizer.decode(new, skip_special_tokens=True)]


def test_a_batch_has_so_many_records_or_so_many_tokens():
    """Longest first; padding, the room of the answers and beams count."""
    settings = DecodingSettings(max_new_tokens=5)
    lengths = [3, 9, 5, 5, 1]
    assert batches(lengths, settings, 2) == [[1, 2], [3, 0], [4]]
    assert batches(lengths, settings, 2, max_tokens=28) == [[1, 2], [3, 0], [4]]
    assert batches(lengths, settings, 2, max_tokens=1) == [[1], [2], [3], [0], [4]]
    assert batches(lengths, DecodingSettings(max_new_tokens=5, num_beams=2), 2, max_tokens=40) == [[1], [2, 3], [0, 4]]
    assert batches([], settings, 2) == []


def test_beams_give_what_transformers_gives_alone(model):
    net, tokenizer = model
    together = answer(net, tokenizer, QUESTIONS, max_new_tokens=6, num_beams=3)
    for question, text in zip(QUESTIONS, together, strict=True):
        ids = torch.tensor([prompt_ids(tokenizer, question)])
        wanted = net.generate(ids, max_new_tokens=6, num_beams=3, do_sample=False, eos_token_id=tokenizer.stop_ids)
        assert text == tokenizer.decode(wanted[0, ids.shape[1] :], skip_special_tokens=True).strip()
    assert together != answer(net, tokenizer, QUESTIONS, max_new_tokens=6)


def test_what_is_drawn_hangs_on_seed_and_record_and_not_on_the_batch(model):
    drawn = {"do_sample": True, "temperature": 2.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 6}
    first = answer(*model, QUESTIONS, seed=1, **drawn)
    assert first == answer(*model, QUESTIONS, seed=1, batch_size=1, **drawn)
    assert first[:2] == answer(*model, QUESTIONS[:2], seed=1, **drawn)
    assert first != answer(*model, QUESTIONS, seed=2, **drawn)
    assert len(set(answer(*model, [QUESTIONS[0]] * 8, seed=1, **drawn))) > 1, "records of one question have their own"


def test_draws_have_the_models_probabilities_and_never_fall_on_an_impossible_token():
    chances = torch.tensor([0.5, 0.0, 0.3, 0.2, 0.0])
    rows = 4000
    left = OwnDraws([f"7-{i}" for i in range(rows)])(torch.zeros(rows, 1), chances.log().repeat(rows, 1))
    assert (left == 0).sum(-1).eq(1).all()
    assert left.isinf().sum(-1).eq(4).all()
    counts = Counter(left.argmax(-1).tolist())
    assert counts.keys() == {0, 2, 3}
    for token, count in counts.items():
        assert count / rows == pytest.approx(chances[token].item(), abs=0.025)


def test_temperature_and_limits_come_before_the_draw():
    """As transformers has them: temperature, then the likeliest k, then the likeliest p of these."""
    settings = DecodingSettings(do_sample=True, temperature=0.5, top_k=3, top_p=0.9)
    names = [type(p).__name__ for p in own_draws(settings, "glm2", [0])]
    assert names == ["TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper", "OwnDraws"]
    logits = torch.tensor([[2.0, 1.9, 1.0, 0.5]]).repeat(300, 1)
    processors = own_draws(settings, "glm2", range(300))
    drawn = Counter(processors(torch.zeros(300, 1, dtype=torch.long), logits).argmax(-1).tolist())
    assert drawn.keys() == {0, 1}, "with the third token's share of 0.08 the first two have more than 0.9"


def test_without_values_sampling_is_that_of_the_official_chat():
    assert sampling(DecodingSettings(), "glm") == {"temperature": 0.95, "top_p": 0.7, "top_k": 50}
    assert sampling(DecodingSettings(), "glm3") == {"temperature": 0.8, "top_p": 0.8, "top_k": 50}
    assert sampling(DecodingSettings(top_k=0, top_p=1.0), "glm4") == {"temperature": 0.8, "top_p": 1.0, "top_k": 0}


@pytest.mark.parametrize(
    ("text", "tools", "shown"),
    [
        ("\n 云川\n岭溪", False, "云川\n岭溪"),
        ("\n 今天是[[训练时间]]", False, "今天是2023年"),
        ("get_weather\n ```python\ntool_call(city='云川')\n```", True, {"city": "云川"}),
        ("get_weather\n ```python\ntool_call(city='云川')\n```", False, None),
    ],
)
def test_an_answer_of_chatglm3_is_split_into_metadata_and_content_as_chat_does(
    text, tools, shown, official_folders, monkeypatch
):
    model, tokenizer = glmft.load(official_folders["glm3"], dtype="fp32", device="cpu")
    ids = [*tokenizer.encode_text(text.partition("\n")[0]), *tokenizer.encode_text("\n" + text.partition("\n")[2])]
    ids = ids if text[0] != "\n" else tokenizer.encode_text(text)

    def generated(*args, **kwargs):
        prompt = kwargs["input_ids"]
        return torch.cat((prompt, torch.tensor([[*ids, tokenizer.eos_token_id]]).expand(len(prompt), -1)), dim=1)

    monkeypatch.setattr(model, "generate", generated)
    system = [{"role": "system", "content": "", "tools": [{"name": "get_weather"}]}] if tools else []
    (answer,) = glmft.answer(model, tokenizer, [[*system, {"role": "user", "content": "天气？"}]])
    chatted, _ = model.chat(tokenizer, "天气？", history=system, do_sample=False)
    assert answer == chatted
    if isinstance(shown, str):
        assert answer == shown
    else:
        assert answer["name"] == "get_weather"
        assert answer.get("parameters") == shown
