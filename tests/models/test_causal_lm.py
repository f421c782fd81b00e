"""What transformers and peft expect of a model, for every family."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import glmft  # noqa: F401
from glmft.family import FAMILIES


@pytest.fixture(params=FAMILIES)
def folder(request, official_folders):
    return official_folders[request.param]


@pytest.fixture
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture
def batch(folder):
    return dict(AutoTokenizer.from_pretrained(folder)(["云川", "云川岭溪泉"], padding=True, return_tensors="pt"))


def test_evaluation_with_labels_has_logits_and_training_has_them_when_asked(model, batch):
    labels = batch["input_ids"]
    out = model(**batch, labels=labels)
    torch.testing.assert_close(out.logits, model(**batch).logits)
    assert model.train()(**batch, labels=labels).logits is None
    assert model(**batch, labels=labels, return_logits=True).logits is not None
    assert model.eval()(**batch, labels=labels, return_logits=False).logits is None


def test_shifted_labels_give_the_same_loss_and_gradients(model, batch):
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    gradients = []
    for given in ({"labels": labels}, {"shift_labels": shifted}, {"labels": labels, "shift_labels": shifted}):
        model.zero_grad()
        model.train()(**batch, **given).loss.backward()
        gradients.append(model.get_input_embeddings().weight.grad.clone())
    for others in gradients[1:]:
        torch.testing.assert_close(others, gradients[0])
    last = torch.full_like(labels, -100)
    last[:, -1] = 7  # which `labels` cannot say: the token after the row's last one
    expected = torch.nn.functional.cross_entropy(model.eval()(**batch).logits[:, -1], last[:, -1])
    torch.testing.assert_close(model(**batch, shift_labels=last).loss, expected)


def test_unknown_keyword_arguments_are_refused(model, batch):
    for part in (model, model.base_model):
        with pytest.raises(TypeError, match="unexpected keyword arguments: lables"):
            part(**batch, lables=batch["input_ids"])


def test_attention_probabilities_are_given_with_eager_attention_alone(folder, model, batch):
    with pytest.raises(ValueError, match='attn_implementation="eager"'):
        model(**batch, output_attentions=True)
    eager = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    out = eager(**batch, output_attentions=True)
    length = batch["input_ids"].shape[1]
    assert len(out.attentions) == eager.config.num_hidden_layers
    for weights in out.attentions:
        assert weights.shape == (2, eager.config.num_attention_heads, length, length)
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(out.logits[real], model(**batch).logits[real])


def test_base_models_honour_what_the_configuration_and_the_call_ask(model, batch):
    base = model.base_model
    base.config.output_hidden_states = True
    out = base(**batch)
    assert len(out.hidden_states) == base.config.num_hidden_layers + 1
    as_tuple = base(**batch, return_dict=False, use_cache=False)
    assert isinstance(as_tuple, tuple)
    torch.testing.assert_close(as_tuple[0], out.last_hidden_state)


def test_a_model_without_encoder_is_its_own(model):
    assert model.get_encoder() is model


def test_models_are_exported_where_positions_are_given(model, batch):
    given = {**batch, "use_cache": False}
    exported = torch.export.export(model, args=(), kwargs=given, strict=False).module()
    torch.testing.assert_close(exported(**given).logits, model(**given).logits)


@pytest.mark.parametrize("tied", [True, False])
def test_chatglm_6b_keeps_a_head_of_its_own(tied, official_folders, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(official_folders["glm"], dtype=torch.float32, tie_word_embeddings=tied)
    if not tied:
        torch.nn.init.normal_(model.lm_head.weight)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for part in ("lm_head", "transformer.word_embeddings"):
        assert torch.equal(again.get_submodule(part).weight, model.get_submodule(part).weight)
    assert torch.equal(again.lm_head.weight, again.transformer.word_embeddings.weight) is tied


def test_chatglm3_stops_at_all_tokens_that_end_an_answer(official_folders, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(official_folders["glm3"])
    tokenizer = AutoTokenizer.from_pretrained(official_folders["glm3"])
    assert model.generation_config.eos_token_id == tokenizer.stop_ids
    model.save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).generation_config.eos_token_id == tokenizer.stop_ids
