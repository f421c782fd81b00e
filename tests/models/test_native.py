"""transformers' own GLM models: the same numbers under our loss head, and virtual tokens as in a cache."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicCache

import glmft
from glmft.errors import ConfigError
from glmft.models.loading import load_config, load_model, meta_model
from glmft.models.native import unsupported
from glmft.tuners.prefix import Prefix
from glmft.tuners.prompt import Prompt


@pytest.fixture(params=["native-glm", "native-glm4"])
def folder(request, native_folders):
    return native_folders[request.param]


@pytest.fixture
def rows():
    return torch.randint(5, 200, (2, 13), generator=torch.Generator().manual_seed(1))


def ours(folder, backend="sdpa"):
    return load_model(load_config(folder), folder, torch.float32, backend).eval()


def theirs(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_logits_loss_and_gradients_are_transformers_own(folder, rows):
    labels = rows.masked_fill(torch.arange(13) < 6, -100)
    mine, other = ours(folder), theirs(folder)
    assert isinstance(mine, type(other))
    out = mine(rows, labels=labels, return_logits=False)
    assert out.logits is None
    expected = other(rows, labels=labels).loss
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(mine(rows).logits, other(rows).logits, atol=0, rtol=0)
    out.loss.backward()
    expected.backward()
    for (name, a), b in zip(mine.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_only_supervised_positions_reach_the_head(folder, rows):
    model, seen = ours(folder), []
    model.lm_head.register_forward_pre_hook(lambda module, given: seen.append(given[0].shape[0]))
    model(rows, labels=rows.masked_fill(torch.arange(13) < 9, -100), return_logits=False)
    assert seen == [2 * 4]


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_a_prefix_is_what_transformers_has_as_a_filled_cache(backend, folder, rows):
    torch.manual_seed(0)
    model = Prefix(4, True, 20).apply(ours(folder, backend)).eval()
    cache = DynamicCache()
    for i, (keys, values) in enumerate(model.base_model.prefix_encoder()):
        cache.update(keys.expand(2, -1, -1, -1), values.expand(2, -1, -1, -1), i)
    mask, positions = torch.ones(2, 4 + 13), torch.arange(13)[None]
    expected = theirs(folder)(rows, past_key_values=cache, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(model(rows).logits, expected, atol=1e-5, rtol=1e-4)


def test_a_prompt_is_embeddings_in_front(folder, rows):
    torch.manual_seed(0)
    model = Prompt(4, "none").apply(ours(folder)).eval()
    virtual = model.base_model.prompt_encoder()[None].expand(2, -1, -1)
    embeds = torch.cat((virtual, model.get_input_embeddings()(rows)), dim=1)
    expected = theirs(folder)(inputs_embeds=embeds).logits[:, 4:]
    torch.testing.assert_close(model(rows).logits, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("tuner", [None, Prefix(3, False), Prompt(3, "none")], ids=["base", "prefix", "prompt"])
@pytest.mark.parametrize("name", ["glm4", "native-glm", "native-glm4"])
def test_batched_answers_are_the_single_ones(name, tuner, all_folders):
    torch.manual_seed(0)
    model, tokenizer = glmft.load(all_folders[name], dtype="fp32", device="cpu")
    model = (tuner.apply(model) if tuner else model).eval()
    questions = ["云川", "岭溪泉峰湖岛", "林松柏梅兰竹菊荷莲"]
    batched = glmft.answer(model, tokenizer, questions, max_new_tokens=6)
    assert batched == [glmft.answer(model, tokenizer, [q], max_new_tokens=6)[0] for q in questions]
    [ids] = [tokenizer.chat_ids([{"role": "user", "content": questions[1]}])]
    once = model(torch.tensor([ids])).logits[:, -1].argmax(-1)
    first = model.generate(torch.tensor([ids]), max_new_tokens=1, do_sample=False)[:, -1]
    assert torch.equal(once, first)


def test_what_is_saved_is_a_folder_of_transformers(folder, rows, tmp_path):
    model = ours(folder)
    model.save_pretrained(tmp_path)
    saved, official = (json.loads((place / "config.json").read_text()) for place in (tmp_path, folder))
    assert saved == {**official, "dtype": "float32"}
    torch.testing.assert_close(theirs(tmp_path)(rows).logits, model(rows).logits, atol=0, rtol=0)


def test_virtual_tokens_beside_other_backends_are_refused_in_a_line():
    [problem] = unsupported("ptuning", "flash_attention_2", False)
    assert problem.startswith("--attn_implementation flash_attention_2: takes no virtual tokens")
    [problem] = unsupported("prompt", "sdpa", True)
    assert problem.startswith("--use_reentrant: does not go with --train_type prompt")
    assert unsupported("lora", "flash_attention_2", True) == []


@pytest.mark.parametrize(
    ("kind", "name"), [("glm4_moe", "GLM-4.5, a mixture of experts"), ("glm4v", "GLM-4.1V, a model of images and text")]
)
def test_other_glm_models_are_refused_by_name(kind, name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(ConfigError, match=f"config.json: holds {name}"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"hidden_size": "x"}, "hidden_size is 'x'; it must be a whole number"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0; it must be a whole number"),
        ({"hidden_act": "nope"}, "hidden_act is 'nope'; it must be one of"),
    ],
)
def test_values_that_make_no_model_are_one_line(change, told, folder, tmp_path):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}), encoding="utf-8")
    with pytest.raises(ConfigError, match=told) as error:
        meta_model(load_config(tmp_path))
    assert str(error.value).startswith(f"{tmp_path}/config.json: ")


def test_another_mode_is_refused(folder):
    with pytest.raises(ConfigError, match="holds a glm4 model; give --mode glm4"):
        load_config(folder, "glm")
    assert load_config(folder, "glm4").family == "glm4"
